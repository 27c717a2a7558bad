//! Permitted traffic, with real Docker daemons and CNI plugins: published ports, health checks,
//! port mappers and services of hosts. Docker's own isolation still drops packets.

use serde_json::{Value, json};

use super::lab::{Lab, Rules};
use super::probe::Verdict::{Drop, Pass};
use super::probe::{Action, Row, Verdict, differences};
use crate::cluster::Cluster;
use crate::cluster::container::Container;
use crate::cni::{PLUGINS, plugin};
use crate::docker_daemon::IMAGE;
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files};
use crate::process::Process;

const WEB_SERVER: [&str; 6] = ["httpd", "-f", "-p", "80", "-h", "/"];

/// A Docker container.
struct Web {
    namespace: Namespace,
    address: String,
}

impl Web {
    fn start(cluster: &Cluster, host: u8, name: &str, options: &[&str]) -> Self {
        let daemon = &cluster.host(host).daemon;
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", name];
        let command = [&[IMAGE, "/bin/busybox"], &WEB_SERVER[..]].concat();
        daemon.succeed(&[&run[..], options, &command].concat());
        let inspect =
            |format: &str| daemon.succeed(&["inspect", "-f", format, name]).trim().to_owned();
        let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let pid = inspect("{{.State.Pid}}");
        Self { namespace: Namespace::of_process(&pid), address: inspect(address) }
    }
}

/// The containers of both hosts: two in the overlay's Docker network, and one in another network.
struct Containers {
    web: [Web; 2],
    peer: [Web; 2],
    other: [Web; 2],
}

impl Containers {
    fn start(cluster: &Cluster) -> Self {
        let start = |host: u8| {
            let daemon = &cluster.host(host).daemon;
            daemon.import_image();
            let subnet = format!("10.77.{host}.0/24");
            daemon.succeed(&["network", "create", "--subnet", &subnet, "lab"]);
            let overlay = ["--net", "vxlan-1"];
            let published = ["--net", "vxlan-1", "-p", "8088:80"];
            [
                Web::start(cluster, host, "web", &published),
                Web::start(cluster, host, "peer", &overlay),
                Web::start(cluster, host, "other", &["--net", "lab"]),
            ]
        };
        let [first, second] = std::thread::scope(|scope| {
            let spawn = |host| {
                let thread = std::thread::Builder::new();
                thread.spawn_scoped(scope, move || start(host)).expect("a thread")
            };
            [1, 2].map(spawn).map(|thread| thread.join().expect("no panic"))
        });
        let ([web1, peer1, other1], [web2, peer2, other2]) = (first, second);
        Self { web: [web1, web2], peer: [peer1, peer2], other: [other1, other2] }
    }
}

/// Starts a web server on a host or in a container of the MesosContainerizer.
fn serve(lab: &Lab, namespace: &Namespace, port: &str) -> Process {
    let mut command = namespace.command(BUSYBOX);
    command.args(["httpd", "-f", "-p", port, "-h", "/"]);
    Process::spawn(command, &lab.cluster.dir.path().join("httpd.log"))
}

/// Maps a port of host 1 to a container with the CNI plugin `portmap`, chained behind the bridge.
fn map_port_by_cni(lab: &Lab, port: u16, container: &Container) {
    let address = container.address();
    let configuration = json!({
        "cniVersion": "0.3.1",
        "name": "vxlan-1",
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": {
            "portMappings": [{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }],
        },
        "prevResult": {
            "cniVersion": "0.3.1",
            "interfaces": [{ "name": "eth0", "sandbox": container.namespace.path() }],
            "ips": [{ "version": "4", "address": format!("{address}/25"), "interface": 0 }],
        },
    });
    plugin(lab.host(1), "ADD", &configuration, &container.namespace);
}

/// Maps a port of host 1 as Mesos' port mapper does: it makes one DNAT rule per port.
fn map_port_by_mesos(lab: &Lab, port: u16, container: &Container) {
    let to = container.address();
    for chain in ["PREROUTING", "OUTPUT"] {
        lab.host(1).run(&format!(
            "iptables -t nat -A {chain} -p tcp -m tcp --dport {port} -m addrtype --dst-type LOCAL \
             -j DNAT --to {to}:80"
        ));
    }
}

fn request<'a>(
    (source, from): (&str, &'a Namespace),
    (target, to): (&str, &str),
    expected: Verdict,
) -> Row<'a> {
    let to = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
    Row::new(source, target, expected, Action::Request { from, to })
}

fn published_port_rows<'a>(lab: &'a Lab, containers: &'a Containers) -> Vec<Row<'a>> {
    let Containers { web, peer, other } = containers;
    let sources = [
        ("stranger", lab.stranger()),
        ("host 2", lab.host(2)),
        ("host 1", lab.host(1)),
        ("container itself (hairpin)", &web[0].namespace),
        ("container on the same bridge (hairpin)", &peer[0].namespace),
        ("container a1, Mesos half of host 1", lab.container("a1")),
        ("container a2 of host 2", lab.container("a2")),
        ("Docker container of host 2", &peer[1].namespace),
        ("container of another Docker network", &other[0].namespace),
    ];
    let target = ("published port of host 1", "10.0.0.1:8088");
    let mut rows: Vec<_> =
        sources.into_iter().map(|source| request(source, target, Pass)).collect();
    let loopback = ("own published port, loopback", "127.0.0.1:8088");
    rows.push(request(("host 1", lab.host(1)), loopback, Pass));
    rows
}

fn unpublished_port_rows<'a>(lab: &'a Lab, containers: &'a Containers) -> Vec<Row<'a>> {
    let Containers { web, peer, other } = containers;
    let ports: [String; 2] = std::array::from_fn(|index| format!("{}:80", web[index].address));
    let other_port = format!("{}:80", other[0].address);
    let target = ("Docker container of host 1", ports[0].as_str());
    let through_2 = ("Docker container of host 2 through host 1", ports[1].as_str());
    let isolated = ("container of another Docker network", other_port.as_str());
    vec![
        request(("host 1 (health check)", lab.host(1)), target, Pass),
        request(("host 2 (health check)", lab.host(2)), target, Pass),
        request(("container on the same bridge", &peer[0].namespace), target, Pass),
        request(("container a1, Mesos half of host 1", lab.container("a1")), target, Pass),
        request(("container a2 of host 2", lab.container("a2")), target, Pass),
        request(("Docker container of host 2", &peer[1].namespace), target, Pass),
        request(("container of another Docker network", &other[0].namespace), target, Drop),
        request(("other Docker network of host 2", &other[1].namespace), target, Drop),
        request(("Docker container (Docker's isolation)", &peer[0].namespace), isolated, Drop),
        request(("container a1 (Docker's isolation)", lab.container("a1")), isolated, Drop),
        request(("container a2 (Docker's isolation)", lab.container("a2")), isolated, Drop),
        request(("host 1", lab.host(1)), isolated, Pass),
        request(("stranger by route", lab.stranger()), target, Drop),
        request(("stranger by route", lab.stranger()), through_2, Drop),
    ]
}

/// Rows to ports that a port mapper maps to container a1, and to services of host 1.
fn mapped_port_and_service_rows<'a>(lab: &'a Lab, containers: &'a Containers) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (target, port) in
        [("port mapper of host 1", "10.0.0.1:9090"), ("CNI portmap of host 1", "10.0.0.1:9092")]
    {
        for source in [
            ("stranger", lab.stranger()),
            ("host 2", lab.host(2)),
            ("host 1", lab.host(1)),
            ("container a2 of host 2", lab.container("a2")),
            ("Docker container of host 1", &containers.peer[0].namespace),
            ("Docker container of host 2", &containers.peer[1].namespace),
        ] {
            rows.push(request(source, (target, port), Pass));
        }
    }
    // Mesos' port mapper does not masquerade a hairpin. The CNI plugin does.
    let itself = ("container itself (hairpin)", lab.container("a1"));
    rows.push(request(itself, ("CNI portmap of host 1", "10.0.0.1:9092"), Pass));
    for source in
        [("container a1", lab.container("a1")), ("Docker container", &containers.web[0].namespace)]
    {
        let service = ("service of own host", "10.0.0.1:8080");
        rows.push(request(source, service, Pass));
        rows.push(request(source, ("service by gateway address", "192.168.0.1:8080"), Pass));
        rows.push(request(source, ("own agent port by a foreign DNAT", "10.0.0.1:9091"), Drop));
    }
    let agent = ("agent port of host 1", "10.0.0.1:5051");
    rows.push(request(("stranger", lab.stranger()), agent, Pass));
    // Shows that the DNAT works, so that the rules drop the packets of the containers.
    let by_dnat = ("agent port by a foreign DNAT", "10.0.0.1:9091");
    rows.push(request(("stranger", lab.stranger()), by_dnat, Pass));
    let mesos_half = ("Mesos container of host 1", "192.168.0.2:80");
    rows.push(request(("host 1 (health check)", lab.host(1)), mesos_half, Pass));
    rows.push(request(("host 2 (health check)", lab.host(2)), mesos_half, Pass));
    rows.push(request(("stranger by route", lab.stranger()), mesos_half, Drop));
    rows
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn closed_overlays_keep_published_ports_and_services() {
    require_root_and_files(&[&format!("{PLUGINS}/portmap")]);
    let mut different = Vec::new();
    for rules in [Rules::Nftables, Rules::IptablesNft] {
        let mut lab = Lab::new(rules, "{}", &Value::Object(serde_json::Map::new()));
        for number in [1, 2] {
            let name = if number == 1 { "a1" } else { "a2" };
            let container = Container::for_mesos(lab.cluster.host(number), "vxlan-1");
            lab.containers.insert(name, container);
            // Bridged packets pass the rules too, as Docker configures most hosts.
            lab.host(number).run("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
        }
        let containers = Containers::start(&lab.cluster);
        let _servers = [serve(&lab, lab.container("a1"), "80"), serve(&lab, lab.host(1), "8080")];
        map_port_by_mesos(&lab, 9090, &lab.containers["a1"]);
        map_port_by_cni(&lab, 9092, &lab.containers["a1"]);
        let to_agent =
            "iptables -t nat -A PREROUTING -p tcp --dport 9091 -j DNAT --to 10.0.0.1:5051";
        lab.host(1).run(to_agent);
        let mut rows = published_port_rows(&lab, &containers);
        rows.extend(unpublished_port_rows(&lab, &containers));
        rows.extend(mapped_port_and_service_rows(&lab, &containers));
        different.extend(differences(rows.iter(), rules.name(), |row| row.expected));
    }
    assert!(different.is_empty(), "{} rows differ:\n{}", different.len(), different.join("\n"));
}

//! The CNI plugin `mesos-overlay-cni` as Mesos and clusterd run it: alone, beside bridge and
//! host-local, killed at any time, and for a container that Docker has attached.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::scope;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cni::{PLUGINS, plugin};
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files};

const GATEWAY: &str = "192.168.0.1";

/// A host with a lease directory.
struct Host {
    namespace: Namespace,
    root: tempfile::TempDir,
    /// A shell command that the plugin runs after, in a mount namespace of its own.
    prepare: Option<String>,
}

impl Host {
    fn new() -> Self {
        require_root_and_files(&[BUSYBOX, "/usr/lib/cni/bridge", "/usr/lib/cni/host-local"]);
        let root = tempfile::tempdir().expect("a directory");
        Self { namespace: Namespace::new(), root, prepare: None }
    }

    fn config(&self) -> Value {
        json!({
            "name": "vxlan-1", "type": "mesos-overlay-cni", "bridge": "m-vxlan-1",
            "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1420,
            "dockerSubnets": ["192.168.0.128/25"],
            "ipam": {"type": "mesos-overlay-cni", "dataDir": self.root.path(),
                "subnet": "192.168.0.0/25", "routes": [{"dst": "0.0.0.0/0"}]},
        })
    }

    /// The same network for bridge and host-local.
    fn former_config(&self) -> Value {
        let mut config = self.config();
        config["type"] = "bridge".into();
        config["ipam"]["type"] = "host-local".into();
        config
    }

    fn start(&self, command: &str, config: &Value, container: &Attached<'_>) -> Child {
        let mut program = match &self.prepare {
            None => self.namespace.command(program()),
            Some(prepare) => {
                let mut shell = self.namespace.command("unshare");
                let script = format!("{prepare} && exec \"$1\"");
                shell.args(["--mount", "sh", "-c", &script, "sh"]).arg(program());
                shell
            }
        };
        program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container.id)
            .env("CNI_IFNAME", container.interface)
            .env("CNI_PATH", PLUGINS);
        if let Some(path) = &container.path {
            program.env("CNI_NETNS", path);
        }
        start(&mut program, &config.to_string())
    }

    fn run(&self, command: &str, config: &Value, container: &Attached<'_>) -> Output {
        let child = self.start(command, config, container);
        child.wait_with_output().expect("the plugin ends")
    }

    fn succeed(&self, command: &str, config: &Value, container: &Attached<'_>) -> Value {
        let output = self.run(command, config, container);
        assert!(output.status.success(), "{command}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Returns the code and the message of a command that fails.
    fn fail(&self, command: &str, config: &Value, container: &Attached<'_>) -> (u64, String) {
        let output = self.run(command, config, container);
        assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).expect("an error as JSON");
        let message = error["msg"].as_str().expect("a message").to_owned();
        (error["code"].as_u64().expect("a code"), message)
    }

    fn leased(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.root.path().join("vxlan-1")) else {
            return BTreeSet::new();
        };
        let names = entries.map(|entry| entry.expect("a readable entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Fails unless the containers are detached: without interfaces, ports and leases.
    fn assert_detached<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a Namespace>,
        context: impl std::fmt::Debug,
    ) {
        assert_eq!(self.leased(), BTreeSet::new(), "{context:?}");
        assert_eq!(self.namespace.devices(), ["m-vxlan-1"], "{context:?}");
        for container in containers {
            assert_eq!(container.devices(), [""; 0], "{context:?}");
        }
    }
}

/// A container as its containerizer names it.
struct Attached<'a> {
    id: &'a str,
    interface: &'a str,
    path: Option<PathBuf>,
}

fn attached<'a>(id: &'a str, interface: &'a str, namespace: &Namespace) -> Attached<'a> {
    Attached { id, interface, path: Some(namespace.path()) }
}

/// Returns the plugin, which Cargo builds beside the program.
pub(crate) fn program() -> PathBuf {
    let plugin = Path::new(env!("CARGO_BIN_EXE_mesos-overlay")).with_file_name("mesos-overlay-cni");
    assert!(plugin.exists(), "run 'cargo build -p overlay-cni-plugin' first");
    plugin
}

/// Returns a client that reaches the host at 10.9.0.1.
fn client_of(host: &Host) -> Namespace {
    let client = Namespace::new();
    let path = client.path();
    host.namespace.succeed(
        "ip",
        &["link", "add", "veth1", "type", "veth", "peer", "eth0", "netns", &path.to_string_lossy()],
    );
    host.namespace.run("ip address add 10.9.0.1/24 dev veth1");
    host.namespace.run("ip link set veth1 up");
    client.run("ip address add 10.9.0.2/24 dev eth0");
    client.run("ip link set eth0 up");
    client
}

fn start(command: &mut Command, input: &str) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A plugin that is killed early reads nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_attaches_and_detaches_containers() {
    let host = Host::new();
    let config = host.config();
    let containers = [Namespace::new(), Namespace::new()];
    for (index, container) in containers.iter().enumerate() {
        let (id, address) = (["c1", "c2"][index], ["192.168.0.2", "192.168.0.3"][index]);
        let one = attached(id, "eth0", container);
        let result = host.succeed("ADD", &config, &one);
        assert_eq!(
            result,
            json!({
                "cniVersion": "0.1.0", "dns": {},
                "ip4": {"ip": format!("{address}/25"), "gateway": GATEWAY,
                    "routes": [{"dst": "0.0.0.0/0"}]},
            })
        );
        assert!(container.can_reach(GATEWAY));
        let link = container.succeed("ip", &["link", "show", "eth0"]);
        let mac = format!("02:4d:c0:a8:00:{:02x}", index + 2);
        assert!(link.contains(" mtu 1420 ") && link.contains(&mac), "{link}");
        let route = container.succeed("ip", &["route", "show", "default"]);
        assert_eq!(route.trim(), "default via 192.168.0.1 dev eth0");
        assert_eq!(host.succeed("ADD", &config, &one), result, "repeated");
    }
    assert!(containers[0].can_reach("192.168.0.3"));
    assert_eq!(host.leased(), ["192.168.0.2".to_owned(), "192.168.0.3".to_owned()].into());
    let port = host.namespace.run("bridge -d link show");
    assert_eq!(port.matches("hairpin on").count(), 2, "{port}");
    assert_eq!(port.matches("state forwarding").count(), 2, "{port}");
    let bridge = host.namespace.run("ip link show m-vxlan-1");
    assert!(bridge.contains("02:4e:c0:a8:00:01"), "{bridge}");

    for (container, id) in containers.iter().zip(["c1", "c2"]) {
        let one = attached(id, "eth0", container);
        host.succeed("DEL", &config, &one);
        assert_eq!(container.devices(), [""; 0]);
        host.succeed("DEL", &config, &one);
    }
    host.assert_detached(&containers, "DEL");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_attaches_ipv6_and_checks_it() {
    let host = Host::new();
    host.namespace.enable_ipv6();
    let mut config = host.config();
    config["cniVersion"] = "1.1.0".into();
    config["ipam"]["subnet6"] = "fd01:b::/81".into();
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let container = Namespace::new();
    let one = attached("c1", "eth0", &container);
    let result = host.succeed("ADD", &config, &one);
    assert_eq!(result["ips"][1]["address"], "fd01:b::2/81", "{result}");
    assert_eq!(result["interfaces"][1]["sandbox"], json!(container.path()));
    assert!(container.can_reach(GATEWAY) && container.can_reach("fd01:b::1"));
    config["prevResult"] = result;
    host.succeed("CHECK", &config, &one);
    container.run("ip address del 192.168.0.2/25 dev eth0");
    let (code, message) = host.fail("CHECK", &config, &one);
    assert_eq!((code, message.as_str()), (3, "the interface does not have 192.168.0.2/25"));
    let again = host.succeed("ADD", &config, &one);
    assert_eq!(again["ips"][0]["address"], "192.168.0.2/25", "the same address: {again}");
    host.succeed("CHECK", &config, &one);

    host.succeed("STATUS", &config, &one);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    host.succeed("GC", &config, &one);
    assert_eq!(host.leased().len(), 2);
    config["cni.dev/valid-attachments"] = json!([]);
    host.succeed("GC", &config, &one);
    host.assert_detached([&container], "GC");
}

/// A task in two overlays keeps the default route of the first.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn repeated_add_beside_other_default_route_changes_nothing() {
    let host = Host::new();
    let config = host.config();
    let container = Namespace::new();
    container.run("ip link add eth9 type veth peer name eth8");
    container.run("ip link set eth9 up");
    container.run("ip route add default dev eth9");
    let one = attached("c1", "eth0", &container);
    let result = host.succeed("ADD", &config, &one);
    let link = || container.succeed("ip", &["-o", "link", "show", "eth0"]);
    let before = link();
    assert_eq!(host.succeed("ADD", &config, &one), result);
    assert_eq!(link(), before, "the index shows whether the interface is another one");
    host.succeed("DEL", &config, &one);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn network_with_ipv6_only_is_refused_before_cni_0_3() {
    let host = Host::new();
    host.namespace.enable_ipv6();
    let mut config = host.config();
    let ipam = config["ipam"].as_object_mut().expect("an object");
    ipam.remove("subnet");
    ipam.insert("subnet6".to_owned(), "fd01:b::/81".into());
    ipam.remove("routes");
    let container = Namespace::new();
    let one = attached("c1", "eth0", &container);
    assert_eq!(host.fail("ADD", &config, &one).0, 104);
    assert_eq!((host.leased().len(), container.devices().len()), (0, 0));
    config["cniVersion"] = "1.0.0".into();
    let result = host.succeed("ADD", &config, &one);
    assert_eq!(result["ips"][0]["address"], "fd01:b::2/81", "{result}");
    host.succeed("DEL", &config, &one);
    host.assert_detached([&container], "DEL");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn container_of_docker_half_keeps_its_only_address() {
    let host = Host::new();
    let config = host.config();
    let container = Namespace::new();
    host.namespace.run("ip link add d-vxlan-1 type bridge");
    host.namespace.run("ip link add veth1 type veth peer name eth0");
    host.namespace
        .succeed("ip", &["link", "set", "eth0", "netns", &container.path().to_string_lossy()]);
    container.run("ip address add 192.168.0.130/25 dev eth0");
    container.run("ip link set eth0 up");
    let one = attached("c1", "eth1", &container);
    for _ in 0..2 {
        let result = host.succeed("ADD", &config, &one);
        assert_eq!(result["ip4"], json!({"ip": "192.168.0.130/25"}), "{result}");
    }
    assert_eq!(container.devices(), ["eth0"]);
    assert_eq!(host.namespace.devices(), ["d-vxlan-1", "veth1"], "no bridge is made");
    host.succeed("DEL", &config, &one);
    assert_eq!(container.devices(), ["eth0"]);
    assert_eq!(host.leased(), BTreeSet::new());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_and_host_local_share_leases() {
    let host = Host::new();
    let (config, former) = (host.config(), host.former_config());
    let containers = [Namespace::new(), Namespace::new(), Namespace::new()];
    let name = |container: &Namespace| {
        let path = container.path();
        path.file_name().expect("a name").to_string_lossy().into_owned()
    };
    let first = plugin(&host.namespace, "ADD", &former, &containers[0]);
    assert_eq!(first["ip4"]["ip"], "192.168.0.2/25");
    let second = host.succeed("ADD", &config, &attached("c2", "eth0", &containers[1]));
    assert_eq!(second["ip4"]["ip"], "192.168.0.3/25");
    let third = plugin(&host.namespace, "ADD", &former, &containers[2]);
    assert_eq!(third["ip4"]["ip"], "192.168.0.4/25");
    assert!(containers[0].can_reach("192.168.0.3") && containers[1].can_reach("192.168.0.4"));

    // clusterd detaches with the configuration of the moment, whichever attached.
    let former_name = name(&containers[0]);
    // Another container may have the number of the process by now.
    let foreign = attached(&former_name, "eth0", &containers[2]);
    host.succeed("DEL", &config, &foreign);
    assert_eq!(containers[2].devices(), ["eth0"]);
    assert!(!host.leased().contains("192.168.0.2"));
    let third_name = name(&containers[2]);
    host.succeed("DEL", &config, &attached(&third_name, "eth0", &containers[2]));
    assert_eq!(containers[2].devices(), [""; 0]);
    assert_eq!(host.leased(), ["192.168.0.3".to_owned()].into());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_refuses_what_it_cannot_give() {
    let host = Host::new();
    let mut config = host.config();
    let container = Namespace::new();
    let one = attached("c1", "eth0", &container);
    let info = |info: Value| json!({"org.apache.mesos": {"network_info": info}});
    let label = |address: &str| {
        let label = json!({"key": "org.apache.mesos.overlay.address", "value": address});
        info(json!({"labels": {"labels": [label]}}))
    };
    config["args"] = label("192.168.0.1");
    assert_eq!(host.fail("ADD", &config, &one).0, 101);
    config["args"] = info(json!({"port_mappings": [{"host_port": 0, "container_port": 80}]}));
    assert_eq!(host.fail("ADD", &config, &one).0, 102);
    host.succeed("DEL", &config, &one);
    config["args"] = label("192.168.0.77");
    let result = host.succeed("ADD", &config, &one);
    assert_eq!(result["ip4"]["ip"], "192.168.0.77/25");
    let other = attached("c2", "eth0", &container);
    assert_eq!(host.fail("ADD", &host.config(), &other).0, 103, "the interface exists");
    let none = Attached { id: "c3", interface: "eth0", path: Some("/run/netns/none".into()) };
    assert_eq!(host.fail("ADD", &host.config(), &none).0, 3);
    let own = attached("c4", "eth0", &host.namespace);
    assert_eq!(host.fail("ADD", &host.config(), &own).0, 4, "the namespace of the host");
    assert_eq!(host.leased(), ["192.168.0.77".to_owned()].into());
    assert_eq!(host.namespace.devices().len(), 2, "the bridge and one port");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_maps_ports_until_container_ends() {
    let host = Host::new();
    let mut config = host.config();
    let mappings = json!([{"host_port": 8080, "container_port": 80}]);
    let info = json!({"network_info": {"port_mappings": mappings}});
    config["args"] = json!({"org.apache.mesos": info});
    let containers = [Namespace::new(), Namespace::new()];
    let one = attached("c1", "eth0", &containers[0]);
    for _ in 0..2 {
        host.succeed("ADD", &config, &one);
    }
    let listing = || host.namespace.run("nft list table inet mesos_overlay_ports");
    assert!(listing().contains("tcp . 8080 : 192.168.0.2 . 80"), "{}", listing());
    let other = attached("c2", "eth0", &containers[1]);
    let (code, message) = host.fail("ADD", &config, &other);
    let text = "port 8080/tcp of the host leads to 192.168.0.2 already";
    assert_eq!((code, message.as_str()), (102, text));
    assert_eq!((host.leased().len(), containers[1].devices().len()), (1, 0));

    let mut server = containers[0].command(BUSYBOX);
    let mut server = start(server.args(["nc", "-l", "-p", "80", "-e", "echo", "mapped"]), "");
    let client = client_of(&host);
    let answer = client.succeed(BUSYBOX, &["nc", "-w", "5", "10.9.0.1", "8080"]);
    assert_eq!(answer, "mapped\n");
    let _ = server.kill();
    let _ = server.wait();

    host.succeed("DEL", &config, &one);
    assert!(!listing().contains("8080"), "{}", listing());
    host.succeed("ADD", &config, &other);
    // The refused container had .3 for a moment.
    assert!(listing().contains("tcp . 8080 : 192.168.0.4 . 80"), "{}", listing());
}

/// Hides nft, and makes `iptables` the program of the kernel's iptables.
const WITHOUT_NFT: &str = "\
    mkdir /tmp/sbin && mount --bind /usr/sbin /tmp/sbin && mount -t tmpfs tmpfs /usr/sbin && \
    cp -a /tmp/sbin/xtables-legacy-multi /usr/sbin && \
    for name in iptables ip6tables; do for part in '' -save -restore; do \
        ln -s xtables-legacy-multi /usr/sbin/$name$part; done; done";

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_maps_ports_by_iptables_without_nft() {
    let mut host = Host::new();
    host.prepare = Some(format!("mount -t tmpfs tmpfs /tmp && {WITHOUT_NFT}"));
    // The mount hides a directory in /tmp.
    host.root = tempfile::tempdir_in("/var/tmp").expect("a directory");
    host.namespace.enable_ipv6();
    let mut config = host.config();
    config["ipam"]["subnet6"] = "fd01:b::/81".into();
    let info = |port: u16| {
        let mappings = json!([{"host_port": port, "container_port": 80}]);
        json!({"org.apache.mesos": {"network_info": {"port_mappings": mappings}}})
    };
    let containers: Vec<Namespace> = (0..6).map(|_| Namespace::new()).collect();
    let ids: Vec<String> = (0..6).map(|number| format!("c{number}")).collect();
    let configs: Vec<Value> = (0..6)
        .map(|number| {
            config["args"] = info(8080 + number);
            config.clone()
        })
        .collect();
    let each = |command: &str| {
        scope(|scope| {
            for ((id, container), config) in ids.iter().zip(&containers).zip(&configs) {
                let host = &host;
                scope
                    .spawn(move || host.succeed(command, config, &attached(id, "eth0", container)));
            }
        });
    };
    each("ADD");
    let rules = |program: &str| host.namespace.run(&format!("{program}-legacy-save -t nat"));
    for (program, loopback) in [("iptables", "127.0.0.0/8"), ("ip6tables", "::1/128")] {
        let rules = rules(program);
        assert_eq!(rules.matches("-j DNAT").count(), 6, "{rules}");
        assert_eq!(rules.matches("-i m-vxlan-1 -j RETURN").count(), 1, "{rules}");
        let jump = format!("-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j");
        assert_eq!(rules.matches(&jump).count(), 1, "{rules}");
    }
    let ruleset = host.namespace.run("nft list ruleset");
    assert!(!ruleset.contains("mesos_overlay_ports"), "{ruleset}");
    let mut server = containers[0].command(BUSYBOX);
    let mut server = start(server.args(["nc", "-l", "-p", "80", "-e", "echo", "mapped"]), "");
    let client = client_of(&host);
    let answer = client.succeed(BUSYBOX, &["nc", "-w", "5", "10.9.0.1", "8080"]);
    assert_eq!(answer, "mapped\n");
    let _ = server.kill();
    let _ = server.wait();
    let other = attached("other", "eth0", &client);
    assert_eq!(host.fail("ADD", &configs[0], &other).0, 103, "eth0 exists");
    let fresh = Namespace::new();
    let (code, message) = host.fail("ADD", &configs[0], &attached("other", "eth0", &fresh));
    assert!(code == 102 && message.contains("port 8080/tcp"), "{code} {message}");
    each("DEL");
    for program in ["iptables", "ip6tables"] {
        assert!(!rules(program).contains("MESOS-OVERLAY"), "{}", rules(program));
    }
    assert_eq!(host.leased(), BTreeSet::new());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_refuses_hostile_input() {
    let host = Host::new();
    let config = host.config();
    let container = Namespace::new();
    let path = |path: &str| Attached { id: "c1", interface: "eth0", path: Some(path.into()) };
    for (id, interface) in [("../c1", "eth0"), ("c1", "../eth0"), ("", "eth0"), ("c1\r\nx", "eth0")]
    {
        let (code, message) = host.fail("ADD", &config, &attached(id, interface, &container));
        assert_eq!((code, message.contains('\n')), (4, false), "{message}");
    }
    let pipe = host.root.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    for no_namespace in [&pipe, Path::new("/etc/passwd"), Path::new("/proc/self/ns/mnt")] {
        let (code, message) = host.fail("ADD", &config, &path(&no_namespace.to_string_lossy()));
        assert!(code == 4 && message.contains("is no network namespace"), "{code} {message}");
    }
    for (input, code) in [
        ("{".to_owned(), 6),
        ("[".repeat(100_000), 7),
        (format!("{{\"name\":\"{}\"}}", "\u{7}".repeat(100_000)), 6),
        (" ".repeat(5 << 20), 6),
        ("\"text\"".to_owned(), 7),
    ] {
        let mut command = host.namespace.command(program());
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
        let output = start(command.env("CNI_NETNS", container.path()), &input);
        let output = output.wait_with_output().expect("the plugin ends");
        let error: Value = serde_json::from_slice(&output.stdout).expect("an error as JSON");
        assert_eq!(error["code"], code, "{error}");
        assert!(output.stdout.len() < 2000 && output.stderr.len() < 2000, "{error}");
        assert!(!output.stdout.contains(&b'\n'), "{error}");
    }
    // A directory of leases that leads elsewhere, and leases that another program has left.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let leases = host.root.path().join("vxlan-1");
    std::os::unix::fs::symlink(elsewhere.path(), &leases).expect("a link");
    assert_eq!(host.fail("ADD", &config, &path(&container.path().to_string_lossy())).0, 5);
    assert_eq!(fs::read_dir(elsewhere.path()).expect("a directory").count(), 0);
    fs::remove_file(&leases).expect("a link");
    fs::create_dir(&leases).expect("a directory");
    std::os::unix::fs::symlink("/etc/passwd", leases.join("192.168.0.2")).expect("a link");
    fs::write(leases.join("192.168.0.3"), vec![b'x'; 1 << 20]).expect("a file");
    std::os::unix::fs::symlink("/etc/hostname", leases.join("last_reserved_ip.0")).expect("a link");
    let hostname = fs::read("/etc/hostname").expect("a file");
    let result = host.succeed("ADD", &config, &attached("c1", "eth0", &container));
    assert_eq!(result["ip4"]["ip"], "192.168.0.4/25");
    assert_eq!(fs::read("/etc/hostname").expect("a file"), hostname);
    host.succeed("DEL", &config, &attached("c1", "eth0", &container));
    let unknown = attached("unknown", "eth0", &container);
    host.succeed("DEL", &config, &unknown);
    host.succeed("DEL", &config, &Attached { path: None, ..unknown });
    // A namespace whose mount is gone leaves a plain file.
    let lease = leases.join("192.168.0.9");
    fs::write(&lease, "c1\r\neth0").expect("a file");
    host.succeed("DEL", &config, &path("/etc/passwd"));
    assert!(!lease.exists());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_plugin_without_address_or_space_leaves_nothing() {
    let mut host = Host::new();
    let mut config = host.config();
    config["ipam"]["subnet"] = "192.168.0.0/30".into();
    let containers = [Namespace::new(), Namespace::new()];
    let [first, second] = &containers;
    host.succeed("ADD", &config, &attached("c1", "eth0", first));
    let output = host.run("ADD", &config, &attached("c2", "eth0", second));
    let error: Value = serde_json::from_slice(&output.stdout).expect("an error as JSON");
    assert_eq!(error["code"], 100);
    assert_eq!(error["msg"], "no address of 192.168.0.0/30 is free");
    let details = "run fewer containers of this overlay on this host, or add an overlay with a \
                   shorter prefix at the master for new containers";
    assert_eq!(error["details"], details);
    assert_eq!((second.devices().len(), host.namespace.devices().len()), (0, 2));
    host.succeed("DEL", &config, &attached("c1", "eth0", first));

    let full = host.root.path().join("full");
    fs::create_dir(&full).expect("a directory");
    host.prepare = Some(format!("mount -t tmpfs -o size=4k,nr_inodes=3 tmpfs {}", full.display()));
    config["ipam"]["dataDir"] = full.to_string_lossy().into();
    let (code, message) = host.fail("ADD", &config, &attached("c1", "eth0", first));
    assert!(code == 5 && message.contains("No space left on device"), "{code} {message}");
    assert_eq!((first.devices().len(), host.namespace.devices().len()), (0, 1));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn concurrent_commands_of_one_container_leave_one_or_no_address() {
    let host = Host::new();
    let config = host.config();
    let container = Namespace::new();
    let one = attached("c1", "eth0", &container);
    for _ in 0..10 {
        scope(|scope| {
            for number in 0..8 {
                let (host, config, one) = (&host, &config, &one);
                let command = if number % 2 == 0 { "ADD" } else { "DEL" };
                scope.spawn(move || host.run(command, config, one));
            }
        });
        assert!(host.leased().len() <= 1, "{:?}", host.leased());
    }
    host.succeed("ADD", &config, &one);
    assert_eq!(host.leased().len(), 1);
    assert!(container.can_reach(GATEWAY));
    host.succeed("DEL", &config, &one);
    host.assert_detached([&container], "at the end");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
#[expect(clippy::disallowed_methods, reason = "a kill at each time")]
fn killed_cni_plugin_leaks_no_lease_and_no_port() {
    let host = Host::new();
    let config = host.config();
    // The first ADD makes the bridge too, so the second one shows the usual time.
    let mut durations = [Duration::ZERO; 2];
    for _ in 0..2 {
        let container = Namespace::new();
        durations = ["ADD", "DEL"].map(|command| {
            let start = Instant::now();
            host.succeed(command, &config, &attached("c0", "eth0", &container));
            start.elapsed()
        });
    }
    let steps = 60;
    let (mut kills, mut without_del) = (0, 0);
    for step in 0..steps {
        let container = Namespace::new();
        let one = attached("c1", "eth0", &container);
        let share = f64::from(step) * 1.2 / f64::from(steps);
        let delay = durations[0].mul_f64(share);
        let kill = |command: &str| {
            let mut child = host.start(command, &config, &one);
            std::thread::sleep(durations[usize::from(command == "DEL")].mul_f64(share));
            let _ = child.kill();
            u32::from(!child.wait().expect("the plugin ends").success())
        };
        kills += kill("ADD");
        // A containerizer repeats the command, or detaches the container.
        if step % 2 == 0 {
            let result = host.succeed("ADD", &config, &one);
            let address = result["ip4"]["ip"].as_str().expect("an address").to_owned();
            let address = address.trim_end_matches("/25").to_owned();
            assert_eq!(host.leased(), [address].into(), "one lease after {delay:?}");
            assert!(container.can_reach(GATEWAY), "after {delay:?}");
            kills += kill("DEL");
        } else {
            without_del += 1;
        }
        host.succeed("DEL", &config, &one);
        host.assert_detached([&container], delay);
    }
    println!("{kills} kills, {without_del} without a second ADD, {durations:?} for ADD and DEL");
    assert!(kills > steps / 4, "{kills} kills");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn thousand_containers_in_turn_get_one_address_each() {
    let host = Host::new();
    let config = host.config();
    let container = Namespace::new();
    let mut former = BTreeSet::new();
    for number in 0..1000 {
        let id = format!("c{number}");
        let one = attached(&id, "eth0", &container);
        let result = host.succeed("ADD", &config, &one);
        let address = result["ip4"]["ip"].as_str().expect("an address").to_owned();
        let (ip, _) = address.split_once('/').expect("an address with a length");
        assert_eq!(host.leased(), [ip.to_owned()].into(), "{id}");
        if number % 100 == 0 {
            let found = container.run("ip -4 -o address show scope global");
            assert!(found.lines().count() == 1 && found.contains(&address), "{found}");
            assert!(container.can_reach(GATEWAY));
        }
        former.insert(address);
        host.succeed("DEL", &config, &one);
    }
    assert_eq!(former.len(), 125, "the addresses are used in turn");
    host.assert_detached([&container], "at the end");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
#[expect(clippy::disallowed_methods, reason = "the test prints the time")]
fn hundred_containers_at_once_get_one_address_each() {
    const COUNT: usize = 100;
    let host = Host::new();
    let config = host.config();
    let containers: Vec<Namespace> = (0..COUNT).map(|_| Namespace::new()).collect();
    let ids: Vec<String> = (0..COUNT).map(|number| format!("c{number}")).collect();
    let each = |command: &str| -> (Duration, Vec<Value>) {
        let start = Instant::now();
        let results = scope(|scope| {
            let run = |(id, container): (&String, &Namespace)| {
                host.succeed(command, &config, &attached(id, "eth0", container))
            };
            let one = |pair| scope.spawn(move || run(pair));
            let threads: Vec<_> = ids.iter().zip(&containers).map(one).collect();
            threads.into_iter().map(|thread| thread.join().expect("the plugin succeeds")).collect()
        });
        (start.elapsed(), results)
    };
    let (add, results) = each("ADD");
    let addresses: BTreeSet<String> =
        results.iter().map(|result| result["ip4"]["ip"].to_string()).collect();
    assert_eq!((addresses.len(), host.leased().len()), (COUNT, COUNT));
    assert!(containers.iter().all(|container| container.can_reach(GATEWAY)));
    let (del, _) = each("DEL");
    assert_eq!((host.leased().len(), host.namespace.devices().len()), (0, 1));
    println!("{COUNT} at once: ADD {add:?}, DEL {del:?}");
}

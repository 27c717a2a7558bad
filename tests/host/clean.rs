//! `mesos-overlay clean` after an agent has programmed the host: the host has the same state as
//! before the agent, and foreign objects are unchanged. The host is a network namespace. The
//! program runs as its first process, so that it treats the namespace as a host, and with an `/etc`
//! of its own.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::docker_daemon::{DOCKER, DockerDaemon, IMAGE, TIMEOUT, sleep_poll_interval};
use crate::hosts::without_volatile_fields;
use crate::namespace::{Namespace, run, succeed};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
const PLUGINS: &str = "/usr/lib/cni";
const MASTER: &str = "10.0.0.1:5050";
const AGENT: &str = "10.0.0.1:5051";
/// Mounts another directory over /etc, and its file `nft`, if present, over the program nft. Then
/// runs a program.
const WITH_ETC: &str = "mount --bind \"$0\" /etc || exit 1
if [ -e /etc/nft ]; then mount --bind /etc/nft /usr/sbin/nft || exit 1; fi
exec \"$@\"";
/// Replaces nft: behaves like nft on a kernel without nftables.
const NFT_WITHOUT_KERNEL_SUPPORT: &str = "#!/bin/sh
echo 'netlink: Error: cache initialization failed: Operation not supported' >&2
exit 1
";

/// Commands that create foreign objects, as similar to managed objects as possible.
const FOREIGN_OBJECTS: [&str; 24] = [
    "ip link add vtep7 type vxlan id 7 dstport 64007 local 10.0.0.1",
    "ip addr add 44.7.0.1/16 dev vtep7",
    "ip link set vtep7 up",
    "ip route add 172.30.0.0/16 via 44.7.0.2",
    "ip route add unreachable 172.31.0.0/16 metric 65000",
    "ip link add m-lab type bridge",
    "ip link add d-lab type bridge",
    "nft add table inet others",
    "nft add chain inet others input { type filter hook input priority 0 ; }",
    "nft add rule inet others input udp dport 64007 counter accept",
    "iptables -P FORWARD DROP",
    "iptables -N MESOS-OVERLAY-LAB",
    "iptables -A FORWARD -s 172.30.0.0/16 -j MESOS-OVERLAY-LAB",
    "iptables -t nat -A POSTROUTING -s 172.30.0.0/16 -j MASQUERADE",
    "ip6tables -P FORWARD DROP",
    "ip6tables -t nat -A POSTROUTING -s fd09::/64 -j MASQUERADE",
    // iptables creates its chains with the first rule, and keeps them.
    "iptables -A INPUT -s 172.30.0.0/16 -j ACCEPT",
    "ip6tables -A INPUT -s fd09::/64 -j ACCEPT",
    "iptables -t mangle -A FORWARD -s 172.30.0.0/16 -j ACCEPT",
    "ip6tables -t mangle -A FORWARD -s fd09::/64 -j ACCEPT",
    "iptables -t mangle -A INPUT -s 172.30.0.0/16 -j ACCEPT",
    "ip6tables -t mangle -A INPUT -s fd09::/64 -j ACCEPT",
    "ipset create mesos-overlay-lab hash:ip",
    "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.vtep7.forwarding=1",
];

/// Listings of all kernel state that an agent could have changed.
const LISTINGS: [&str; 12] = [
    "ip -d link show",
    "ip addr show",
    "ip rule show",
    "ip -6 rule show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip neigh show nud permanent",
    "bridge fdb show",
    "nft -s list ruleset",
    "ipset save",
    "sysctl -a --pattern ^net.ipv[46].(conf|ip_forward)",
    "sysctl -a --pattern ^net.bridge",
];

struct Host {
    daemon: DockerDaemon,
}

/// A running process. Dropping this value kills the process with all its children.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    fn new(agent: &Value) -> Self {
        let host = Self { daemon: DockerDaemon::stopped() };
        let namespace = &host.daemon.namespace;
        namespace.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        namespace.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        // Without duplicate address detection, addresses do not change after the first listing.
        namespace.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        namespace.run("ip link add eth0 type veth peer name wire");
        namespace.run("ip link set wire up");
        namespace.run("ip addr add 10.0.0.1/24 dev eth0");
        namespace.run("ip link set eth0 up");
        for dir in ["etc/NetworkManager/conf.d", "etc/systemd/network", "etc/sysctl.d", "cni"] {
            fs::create_dir_all(host.path(dir)).expect("a directory");
        }
        fs::write(host.path("etc/sysctl.d/99-lab.conf"), "net.ipv4.tcp_ecn = 1\n").expect("a file");
        fs::write(host.path("cni/lab.conf"), r#"{"name":"lab","type":"bridge"}"#).expect("a file");
        // The symbolic links through which iptables is found.
        let mut copy = Command::new("cp");
        succeed(copy.arg("-a").arg("/etc/alternatives").arg(host.path("etc")));
        let mut config = serde_json::json!({
            "master": MASTER,
            "cni_dir": host.path("cni"),
            "cni_data_dir": host.path("leases"),
            "cni_plugins_dir": PLUGINS,
            "state_dir": host.path("state"),
            "docker": DOCKER,
            "verify_interval": "1s",
        });
        let keys = config.as_object_mut().expect("a JSON object");
        keys.extend(agent.as_object().expect("a JSON object").clone());
        fs::write(host.path("agent.json"), config.to_string()).expect("an agent_config");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    /// Builds a command that runs the program as the first process of the host, with the host's
    /// `/etc`.
    fn program_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.daemon.namespace.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", WITH_ETC]).arg(self.path("etc")).arg(PROGRAM).args(arguments);
        command.env("DOCKER_HOST", self.daemon.socket());
        command
    }

    fn start(&self, log: &str, arguments: &[&str]) -> Process {
        let log = fs::File::create(self.path(log)).expect("a log");
        let mut command = self.program_command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Process(command.spawn().expect("the program starts"))
    }

    /// Runs a master and an agent until all overlays are ready.
    fn start_all(&self, network: &Value) -> [Process; 2] {
        self.start_until(network, |state| state["status"] == "STATUS_OK")
    }

    /// Runs a master and an agent until the state of every overlay is as expected.
    fn start_until(&self, network: &Value, is_expected: impl Fn(&Value) -> bool) -> [Process; 2] {
        fs::write(self.path("network.json"), network.to_string()).expect("a network file");
        let (network, work_dir) = (self.path_text("network.json"), self.path_text("work"));
        let listen = ["--listen", MASTER, "--work-dir", &work_dir];
        let master =
            self.start("master.log", &[&["master", "--config", &network][..], &listen].concat());
        let config = self.path_text("agent.json");
        let agent = self.start("agent.log", &["agent", "--config", &config, "--listen", AGENT]);
        let mut waited = Duration::ZERO;
        loop {
            let state: Value = serde_json::from_str(&self.state()).unwrap_or_default();
            let overlays = state["agents"][0]["overlays"].as_array().cloned().unwrap_or_default();
            if !overlays.is_empty() && overlays.iter().all(|overlay| is_expected(&overlay["state"]))
            {
                return [master, agent];
            }
            let log = fs::read_to_string(self.path("agent.log")).unwrap_or_default();
            assert!(waited < TIMEOUT, "{state}\n{log}");
            waited += sleep_poll_interval();
        }
    }

    fn path_text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a UTF-8 path").to_owned()
    }

    fn state(&self) -> String {
        let mut command = self.daemon.namespace.command(PROGRAM);
        let output = run(command.args(["state", "--master", MASTER, "--json"]), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `clean`. Returns the exit code, and the output without the path of the test's
    /// directory.
    fn clean(&self, flags: &[&str]) -> (Option<i32>, String) {
        let config = self.path_text("agent.json");
        let arguments = [&["clean", "--config", &config][..], flags].concat();
        let output = run(&mut self.program_command(&arguments), "");
        let output_text = [output.stdout, output.stderr].concat();
        let output_text = String::from_utf8_lossy(&output_text).replace(&self.path_text(""), "/");
        // Collapse the spaces that align the columns.
        fn without_veth_name(word: &str) -> &str {
            if word.starts_with("(veth") { "(PORT)" } else { word }
        }
        let line = |line: &str| {
            line.split_whitespace().map(without_veth_name).collect::<Vec<_>>().join(" ") + "\n"
        };
        (output.status.code(), output_text.lines().map(line).collect())
    }

    /// Waits until the killed agent has released its lock.
    fn wait_for_agent_exit(&self) {
        let mut waited = Duration::ZERO;
        while fs::File::open(self.path("state/agent.lock"))
            .is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
        {
            assert!(waited < TIMEOUT, "the agent still holds its lock");
            waited += sleep_poll_interval();
        }
    }

    /// Connects a container of Mesos to an overlay.
    fn add_mesos_container(&self, overlay: &str, container: &Namespace) {
        let configuration = fs::read_to_string(self.path(&format!("cni/{overlay}.conf")));
        let mut command = self.daemon.namespace.command(Path::new(PLUGINS).join("bridge"));
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", container.path()).env("CNI_PATH", PLUGINS);
        let output = run(&mut command, &configuration.expect("file written by the agent"));
        assert!(output.status.success(), "{output:?}");
    }

    /// Lists all kernel state and files that an agent could have changed.
    fn dump(&self) -> String {
        let listing = |line: &&str| {
            format!("# {line}\n{}", without_volatile_fields(&self.daemon.namespace.run(line)))
        };
        let mut state: String = LISTINGS.iter().map(listing).collect();
        let mut files = BTreeMap::new();
        for dir in ["etc", "cni", "leases", "state"] {
            collect_files(&self.path(dir), &mut files);
        }
        files.iter().for_each(|(path, content)| {
            state += &format!("# {}\n{content}\n", path.display());
        });
        state
    }
}

/// Collects every file and directory below `path`, with the contents of files.
fn collect_files(path: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    let content = if found.is_file() { fs::read_to_string(path) } else { Ok(String::new()) };
    files.insert(path.to_owned(), content.unwrap_or_default());
    if found.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            collect_files(&entry.path(), files);
        }
    }
}

#[track_caller]
fn assert_same(before: &str, after: &str) {
    let is_in = |text: &str, line: &str| text.lines().any(|other| other == line);
    let gone: Vec<_> = before.lines().filter(|line| !is_in(after, line)).collect();
    let new: Vec<_> = after.lines().filter(|line| !is_in(before, line)).collect();
    assert!(before == after, "gone: {gone:#?}\nnew: {new:#?}");
}

fn networks() -> Value {
    serde_json::json!({
        "vtep_subnet": "44.128.0.0/16",
        "vtep_subnet6": "fd01:a::/64",
        "vtep_mac_oui": "70:B3:D5:00:00:00",
        "overlays": [
            { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
            { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
              "subnet6": "fd01:b::/64", "prefix6": 80 },
        ],
    })
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn clean_restores_previous_host_state() {
    for firewall in ["nftables", "iptables"] {
        let host = Host::new(&serde_json::json!({
            "firewall": firewall,
            "isolate_overlays": true,
            "network_config": { "docker_bridge": false },
        }));
        FOREIGN_OBJECTS.iter().for_each(|line| drop(host.daemon.namespace.run(line)));
        let before = host.dump();
        assert_eq!(
            host.clean(&[]),
            (Some(0), "nothing of mesos-overlay is on this host\n".to_owned())
        );
        assert_same(&before, &host.dump());

        let [master, agent] = host.start_all(&networks());
        let container = Namespace::new();
        host.add_mesos_container("vxlan-1", &container);
        host.add_mesos_container("vxlan-2", &Namespace::new());
        drop(master);
        assert_eq!(
            host.clean(&[]),
            (
                Some(1),
                "mesos-overlay: clean: /state/agent.lock is held by process 1, a running agent: \
                 stop it, or it would create everything again\n"
                    .to_owned()
            )
        );
        drop(agent);
        host.wait_for_agent_exit();

        let during = host.dump();
        for word in ["vtep1024", "m-vxlan-1", "99-zz-mesos-overlay.conf", "networkd.conf.d"] {
            assert!(during.contains(word), "{word}\n{during}");
        }
        let (code, plan) = host.clean(&["--dry-run"]);
        assert_eq!(host.clean(&["--dry-run"]), (code, plan.clone()), "a dry run changed the host");
        let (code_done, done) = host.clean(&[]);
        assert_eq!((code, code_done), (Some(1), Some(1)), "{plan}{done}");
        assert_eq!(plan, failed_report(&planned_actions(firewall)));
        let done_actions: Vec<_> = planned_actions(firewall)
            .iter()
            .map(|line| line.replace("would be done", "done"))
            .collect();
        assert_eq!(done, failed_report(&done_actions));
        // The container ends without a DEL of the CNI plugin.
        drop(container);
        assert_eq!(
            host.clean(&[]),
            (
                Some(0),
                "ACTION RESULT\n\
                 remove bridge m-vxlan-1 done\n\
                 remove leases /leases/vxlan-1 done\n\
                 remove /state done\n"
                    .to_owned()
            )
        );
        assert_eq!(
            host.clean(&["--json"]),
            (Some(0), "{\"dry_run\":false,\"actions\":[]}\n".to_owned())
        );
        fs::remove_dir(host.path("leases")).expect("an empty directory of host-local");
        assert_same(&before, &host.dump());
    }
}

/// Returns the expected actions while a container is connected to an overlay.
fn planned_actions(firewall: &str) -> Vec<String> {
    let in_use = "failed: containers are on m-vxlan-1: stop them (PORT)";
    let chains = |program: &str, names: &[String]| -> Vec<String> {
        let chain = |name: &String| format!("remove {program} chain {name} would be done");
        names.iter().map(chain).collect()
    };
    let of = |table: &str, suffixes: &[&str]| -> Vec<String> {
        suffixes.iter().map(|suffix| format!("MESOS-OVERLAY{suffix} of {table}")).collect()
    };
    let rules = |program: &str| {
        let mut names = of("filter", &["", "-OUT", "-SRC", "-TUN"]);
        if firewall == "iptables" {
            let numbered = ["-E0", "-E1", "-ERR", "-F0", "-F1", "-I0", "-I1", "-IN", "-INS"];
            let others = ["-N0", "-N1", "-OER", "-OFF", "-OUT", "-PORTS", "-STR", "-TER", "-TIN"];
            let last = ["-TUN", "-VXLAN"];
            names.extend(of("mangle", &[&[""][..], &numbered, &others, &last].concat()));
            names.extend(of("nat", &[""]));
        }
        chains(program, &names)
    };
    // Not those of bridges with containers and tunnels, and not the defaults of new devices.
    let settings = ["all", "eth0", "lo", "wire"]
        .map(|device| format!("set net/ipv6/conf/{device}/accept_ra to 1 would be done"));
    let mut lines: Vec<String> = [
        "remove CNI configuration /cni/vxlan-1.conf would be done",
        "remove CNI configuration /cni/vxlan-2.conf would be done",
        "remove device vtep1024 would be done",
        "remove route to 192.168.0.0/17 metric 65000 unreachable would be done",
        "remove route to 192.168.128.0/17 metric 65000 unreachable would be done",
        "remove route to fd01:b::/64 metric 65000 unreachable would be done",
    ]
    .map(str::to_owned)
    .into();
    if firewall == "nftables" {
        lines.push("remove nftables table inet mesos_overlay would be done".to_owned());
    }
    lines.extend(["iptables", "ip6tables"].into_iter().flat_map(rules));
    if firewall == "iptables" {
        let sets = ["4", "6", "inner-4", "inner-6", "hosts", "masters"];
        lines.extend(sets.map(|set| format!("remove ipset mesos-overlay-{set} would be done")));
    }
    lines.push("remove /state/firewall-rules would be done".to_owned());
    lines.extend([
        format!("remove bridge m-vxlan-1 {in_use}"),
        format!("remove leases /leases/vxlan-1 {in_use}"),
    ]);
    let rest = [
        "remove bridge m-vxlan-2 would be done",
        "remove leases /leases/vxlan-2 would be done",
        "remove /etc/NetworkManager/conf.d/mesos-overlay.conf would be done",
        "remove /etc/systemd/network/00-mesos-overlay.network would be done",
        "remove /etc/systemd/networkd.conf.d/mesos-overlay.conf would be done",
        "remove /etc/sysctl.d/99-zz-mesos-overlay.conf would be done",
        "set net/ipv4/ip_forward to 0 would be done",
        "set net/ipv6/conf/all/forwarding to 0 would be done",
        "set net/ipv4/conf/all/accept_redirects to 0 would be done",
        "set net/ipv4/conf/vtep7/forwarding to 1 would be done",
    ];
    lines.extend(rest.map(str::to_owned));
    lines.extend(settings);
    lines.push("remove /state/agent.lock would be done".to_owned());
    lines
}

/// Returns the expected report of `clean` after two failed actions.
fn failed_report(lines: &[String]) -> String {
    let count = lines.len();
    format!(
        "ACTION RESULT\n{}\nmesos-overlay: clean: 2 of {count} actions failed: follow the reasons, \
         and run it again\n",
        lines.join("\n")
    )
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn clean_keeps_docker_network_with_container() {
    let mut host = Host::new(&serde_json::json!({ "network_config": { "mesos_bridge": false } }));
    host.daemon.start();
    host.daemon.import_image();
    host.daemon.succeed(&["network", "create", "--subnet=10.77.0.0/24", "lab"]);
    let before = host.dump();
    let network = serde_json::json!({
        "vtep_subnet": "44.128.0.0/16",
        "vtep_mac_oui": "70:B3:D5:00:00:00",
        "overlays": [{ "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 }],
    });
    drop(host.start_all(&network));
    host.wait_for_agent_exit();
    // The container was never started, so Docker itself would remove its network.
    let container = ["create", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "true"];
    host.daemon.succeed(&container);
    let (code, output_text) = host.clean(&[]);
    let network = "remove Docker network vxlan-1";
    let in_use = format!("{network} failed: it has containers: remove them (web)\n");
    assert!(code == Some(1) && output_text.contains(&in_use), "{output_text}");
    assert!(!host.clean(&["--keep-docker"]).1.contains("Docker"));
    host.daemon.succeed(&["rm", "web"]);
    let done = format!("ACTION RESULT\n{network} done\n");
    assert_eq!(host.clean(&[]), (Some(0), done));
    assert_same(&before, &host.dump());

    assert!(host.daemon.stop());
    let (code, output_text) = host.clean(&[]);
    let beginning = "ACTION RESULT\nfind the Docker networks failed: the Docker daemon is not \
                     running: ";
    assert!(code == Some(1) && output_text.starts_with(beginning), "{output_text}");
    assert!(output_text.contains(": start it, or "), "{output_text}");
    assert_eq!(host.clean(&["--keep-docker"]).0, Some(0));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn kernel_without_nftables_uses_iptables_or_fails() {
    let no_docker = serde_json::json!({ "docker_bridge": false });
    let start = |firewall: &str| {
        let config = serde_json::json!({ "firewall": firewall, "network_config": no_docker });
        let host = Host::new(&config);
        let nft = host.path("etc/nft");
        fs::write(&nft, NFT_WITHOUT_KERNEL_SUPPORT).expect("a file");
        succeed(Command::new("chmod").arg("+x").arg(nft));
        host
    };
    let host = start("auto");
    drop(host.start_all(&networks()));
    let rules = host.daemon.namespace.run("iptables-save");
    assert!(rules.contains("-A POSTROUTING -j MESOS-OVERLAY"), "{rules}");
    assert!(host.daemon.namespace.run("ipset save").contains("mesos-overlay-4"));

    let host = start("nftables");
    let reason = "firewall: 'nft -f -' failed: netlink: Error: cache initialization failed: \
                  Operation not supported: ";
    let reports_reason = |state: &Value| {
        state["status"] == "STATUS_FAILED"
            && state["error"].as_str().is_some_and(|error| error.starts_with(reason))
    };
    drop(host.start_until(&networks(), reports_reason));
    // Without rules the device would accept packets of every host.
    let devices = host.daemon.namespace.devices();
    assert!(!devices.contains(&"vtep1024".to_owned()), "{devices:?}");
}

//! The files that we write, given to the real plugins in the way in which Mesos gives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesos_network_overlay::addr::{Mtu, OverlayName};
use mesos_network_overlay::agent::CniNetwork;
use mesos_network_overlay::cni::{CniDirectory, Outcome};
use serde_json::{Value, json};

use crate::namespace::{BUSYBOX, Namespace, demand, run, succeed};

/// Where the package containernetworking-plugins has them.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
const GATEWAY: &str = "192.168.0.1";

/// A host whose Mesos agent reads `cni/`.
struct Host {
    namespace: Namespace,
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        demand(&["/usr/lib/cni/bridge", "/usr/lib/cni/host-local", BUSYBOX]);
        let root = tempfile::tempdir().expect("a temporary directory");
        Self { namespace: Namespace::new(), root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The file of the overlay, written in the form that `plugins` leads to.
    fn configuration(&self, plugins: &[&str]) -> Value {
        let data_dir = Some(self.path("data"));
        let plugins = plugins.iter().map(PathBuf::from).collect();
        let directory = CniDirectory::new(self.path("cni"), data_dir, plugins, true);
        directory.prepare().expect("the directory is made");
        assert_eq!(directory.write(&network()), Ok(Outcome::Created));
        let content = fs::read(self.path("cni/vxlan-1.conf")).expect("the file is there");
        serde_json::from_slice(&content).expect("it is JSON")
    }

    /// Addresses that host-local has given away.
    fn reserved(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("data/vxlan-1")).expect("host-local keeps its data");
        let names = entries.map(|entry| entry.expect("it is readable").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }

    /// Two containers join, reach the gateway and each other, and leave.
    fn join_and_leave(&self, configuration: &Value) {
        let containers = [Namespace::new(), Namespace::new()];
        for (container, address) in containers.iter().zip(["192.168.0.2", "192.168.0.3"]) {
            let result = plugin(&self.namespace, "ADD", configuration, container);
            // The shape of CNI 0.2, the only one in which Mesos finds the address.
            assert_eq!(result["ip4"]["ip"], format!("{address}/25"), "{result}");
            assert_eq!(result["ip4"]["gateway"], GATEWAY);
            assert_eq!(result["ip4"]["routes"][0]["dst"], "0.0.0.0/0");
            assert_eq!(result.get("ips"), None);
            assert!(container.can_reach(GATEWAY));
            let link = container.succeed("ip", &["link", "show", "eth0"]);
            assert!(link.contains(" mtu 1420 "), "{link}");
            let route = container.succeed("ip", &["route", "show", "default"]);
            assert_eq!(route.trim(), "default via 192.168.0.1 dev eth0");
        }
        assert!(containers[0].can_reach("192.168.0.3"));
        assert_eq!(self.reserved().len(), 2);
        let nat = self.namespace.succeed("iptables", &["-t", "nat", "-S", "POSTROUTING"]);
        assert!(!nat.contains("MASQUERADE"), "{nat}");

        for container in &containers {
            plugin(&self.namespace, "DEL", configuration, container);
            assert_eq!(container.devices(), [""; 0]);
        }
        assert_eq!(self.namespace.devices(), ["m-vxlan-1"]);
        assert_eq!(self.reserved(), [""; 0]);
    }
}

/// Runs the plugin that `configuration` names on a host, with the environment and the input that
/// Mesos gives it.
pub(crate) fn plugin(
    host: &Namespace,
    command: &str,
    configuration: &Value,
    container: &Namespace,
) -> Value {
    let mut input = configuration.clone();
    input["args"] = json!({"org.apache.mesos": {"network_info": {"name": configuration["name"]}}});
    let plugin = configuration["type"].as_str().expect("it names its plugin");
    let netns = container.path();
    let mut program = host.command(Path::new(PLUGINS).join(plugin));
    program
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", netns.file_name().expect("it has a name"))
        .env("CNI_PATH", PLUGINS)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", &netns);
    let output = run(&mut program, &input.to_string());
    assert!(output.status.success(), "{command}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn network() -> CniNetwork {
    let name: OverlayName = "vxlan-1".parse().expect("it is a name");
    CniNetwork {
        bridge: name.mesos_bridge(),
        name,
        subnet: "192.168.0.0/25".parse().expect("it is a subnet"),
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_join_through_the_plain_file() {
    let host = Host::new();
    let configuration = host.configuration(&[PLUGINS]);
    assert_eq!(configuration["type"], "bridge", "the packages have no port mapper");
    host.join_and_leave(&configuration);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_join_through_what_the_port_mapper_delegates() {
    let host = Host::new();
    let configuration = host.configuration(&[]);
    assert_eq!(configuration["type"], "mesos-cni-port-mapper");
    // The port mapper itself comes with Mesos. It gives its delegate its own name.
    let mut delegate = configuration["delegate"].clone();
    delegate["name"] = configuration["name"].clone();
    host.join_and_leave(&delegate);
}

/// A mounted file system.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn a_directory_that_is_a_mount_of_its_own_gets_its_files_all_the_same() {
    demand(&[]);
    let root = tempfile::tempdir().expect("a temporary directory");
    let path = root.path().join("cni");
    fs::create_dir(&path).expect("the directory is made");
    succeed(Command::new("mount").args(["-t", "tmpfs", "mesos-overlay-test"]).arg(&path));
    let mount = Mount(&path);

    let directory = CniDirectory::new(path.clone(), None, Vec::new(), true);
    directory.prepare().expect("the directory is there");
    assert_eq!(directory.write(&network()), Ok(Outcome::Created));
    assert_eq!(directory.write(&network()), Ok(Outcome::Unchanged));
    let names = |path: &Path| {
        let entries = fs::read_dir(path).expect("it is readable");
        entries.map(|entry| entry.expect("it is readable").file_name()).collect::<Vec<_>>()
    };
    assert_eq!(names(&path), ["vxlan-1.conf"]);
    assert_eq!(names(root.path()), ["cni"]);
    drop(mount);
}

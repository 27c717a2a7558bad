//! The agent's CNI configurations, passed to the real plugins as Mesos passes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlay_linux::cni::{CniDirectory, Outcome};
use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::container_network::CniNetwork;
use serde_json::{Value, json};

use crate::namespace::{BUSYBOX, Namespace, require_root_and_files, run, succeed};

/// Directory of the CNI plugins of the package containernetworking-plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
const GATEWAY: &str = "192.168.0.1";

/// A host with a CNI configuration directory for the Mesos agent.
struct Host {
    namespace: Namespace,
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        require_root_and_files(&["/usr/lib/cni/bridge", "/usr/lib/cni/host-local", BUSYBOX]);
        let root = tempfile::tempdir().expect("a temporary directory");
        Self { namespace: Namespace::new(), root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes the overlay's CNI configuration, and returns its content. The configuration uses the
    /// port mapper if `plugin_dirs` is empty, or if one of these directories has the port mapper.
    fn configuration(&self, plugin_dirs: &[&str]) -> Value {
        let data_dir = Some(self.path("data"));
        let plugin_dirs = plugin_dirs.iter().map(PathBuf::from).collect();
        let directory = CniDirectory::new(self.path("cni"), data_dir, plugin_dirs, true);
        directory.prepare().expect("a new directory");
        assert_eq!(directory.write(&network()), Ok(Outcome::Created));
        let content = fs::read(self.path("cni/vxlan-1.conf")).expect("a written file");
        serde_json::from_slice(&content).expect("valid JSON")
    }

    /// Lists the addresses that host-local has leased.
    fn leased(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("data/vxlan-1")).expect("the data of host-local");
        let names = entries.map(|entry| entry.expect("a readable entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }

    /// Adds two containers, checks that they reach the gateway and each other, and removes them.
    fn check_add_and_del(&self, configuration: &Value) {
        let containers = [Namespace::new(), Namespace::new()];
        for (container, address) in containers.iter().zip(["192.168.0.2", "192.168.0.3"]) {
            let result = plugin(&self.namespace, "ADD", configuration, container);
            // Mesos finds the address only in a result of CNI 0.2.
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
        assert_eq!(self.leased().len(), 2);
        let nat = self.namespace.succeed("iptables", &["-t", "nat", "-S", "POSTROUTING"]);
        assert!(!nat.contains("MASQUERADE"), "{nat}");

        for container in &containers {
            plugin(&self.namespace, "DEL", configuration, container);
            assert_eq!(container.devices(), [""; 0]);
        }
        assert_eq!(self.namespace.devices(), ["m-vxlan-1"]);
        assert_eq!(self.leased(), [""; 0]);
    }
}

/// Runs the plugin of `configuration` on a host, with the environment and the input that Mesos
/// passes.
pub(crate) fn plugin(
    host: &Namespace,
    command: &str,
    configuration: &Value,
    container: &Namespace,
) -> Value {
    let result = try_plugin(host, command, configuration, container);
    result.unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// Runs the plugin like [`plugin`]. Returns its output as the error if it fails.
pub(crate) fn try_plugin(
    host: &Namespace,
    command: &str,
    configuration: &Value,
    container: &Namespace,
) -> Result<Value, String> {
    let mut input = configuration.clone();
    input["args"] = json!({"org.apache.mesos": {"network_info": {"name": configuration["name"]}}});
    let plugin = configuration["type"].as_str().expect("a plugin type");
    let netns = container.path();
    let mut program = host.command(Path::new(PLUGINS).join(plugin));
    program
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", netns.file_name().expect("a path with a file name"))
        .env("CNI_PATH", PLUGINS)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", &netns);
    let output = run(&mut program, &input.to_string());
    if !output.status.success() {
        return Err(format!("{output:?}"));
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

fn network() -> CniNetwork {
    let name: OverlayName = "vxlan-1".parse().expect("a valid overlay name");
    CniNetwork {
        bridge: name.mesos_bridge(),
        name,
        subnet: "192.168.0.0/25".parse().expect("a valid subnet"),
        subnet6: None,
        docker_subnets: Vec::new(),
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn plain_cni_config_connects_containers() {
    let host = Host::new();
    let configuration = host.configuration(&[PLUGINS]);
    assert_eq!(configuration["type"], "bridge", "the Debian packages have no port mapper");
    host.check_add_and_del(&configuration);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn port_mapper_delegate_connects_containers() {
    let host = Host::new();
    let configuration = host.configuration(&[]);
    assert_eq!(configuration["type"], "mesos-cni-port-mapper");
    // Mesos ships the port mapper, which passes its own name to the delegate.
    let mut delegate = configuration["delegate"].clone();
    delegate["name"] = configuration["name"].clone();
    host.check_add_and_del(&delegate);
}

/// A mounted file system. Dropping this value unmounts the file system.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cni_directory_that_is_mount_point_is_writable() {
    require_root_and_files(&[]);
    let root = tempfile::tempdir().expect("a temporary directory");
    let path = root.path().join("cni");
    fs::create_dir(&path).expect("a new directory");
    succeed(Command::new("mount").args(["-t", "tmpfs", "mesos-overlay-test"]).arg(&path));
    let mount = Mount(&path);

    let directory = CniDirectory::new(path.clone(), None, Vec::new(), true);
    directory.prepare().expect("an existing directory");
    assert_eq!(directory.write(&network()), Ok(Outcome::Created));
    assert_eq!(directory.write(&network()), Ok(Outcome::Unchanged));
    let names = |path: &Path| {
        let entries = fs::read_dir(path).expect("a readable entry");
        entries.map(|entry| entry.expect("a readable entry").file_name()).collect::<Vec<_>>()
    };
    assert_eq!(names(&path), ["vxlan-1.conf"]);
    assert_eq!(names(root.path()), ["cni"]);
    drop(mount);
}

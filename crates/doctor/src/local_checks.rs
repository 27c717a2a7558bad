//! Reads the local state of this host: files of the kernel, and the output of other programs.
//! Nothing is changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_config::{AgentConfig, CniPlugin};
use overlay_linux::cni;
use overlay_linux::subprocess::{ProcessOutput, find_system_program, run_blocking};

use super::observation::{CniPlugins, NetworkManagement, NetworkManager, PortOwner, TunnelState};

/// Timeout of a subprocess. iptables waits for other processes that hold its lock.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The relevant settings below `/proc/sys/net`, besides those of the tunnels' devices.
const SETTINGS: [&str; 10] = [
    "ipv4/ip_forward",
    "ipv4/conf/all/rp_filter",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/neigh/default/gc_thresh3",
];
/// Network managers: the process name, which the kernel truncates to 15 characters; the full name;
/// and the file with which the agent excludes the overlays' devices.
const NETWORK_MANAGERS: [(&str, &str, &str); 2] = [
    ("NetworkManager", "NetworkManager", "/etc/NetworkManager/conf.d/mesos-overlay.conf"),
    ("systemd-network", "systemd-networkd", "/etc/systemd/network/00-mesos-overlay.network"),
];

/// Runs a program of the system. Returns `None` if it is missing or times out.
fn run_program(program: &str, arguments: &[&str]) -> Option<ProcessOutput> {
    let path = find_system_program(program)?;
    run_blocking(&path, arguments.iter().map(OsStr::new), b"", TIMEOUT).ok()
}

/// Returns the output of a program of the system if the program succeeds.
fn program_output(program: &str, arguments: &[&str]) -> Option<String> {
    let finished = run_program(program, arguments).filter(|finished| finished.success)?;
    Some(String::from_utf8_lossy(&finished.stdout).into_owned())
}

pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub(crate) fn settings(tunnel: &TunnelState) -> BTreeMap<String, u32> {
    let of_devices = tunnel.devices().flat_map(|device| {
        [format!("ipv4/conf/{device}/rp_filter"), format!("ipv6/conf/{device}/disable_ipv6")]
    });
    let names = SETTINGS.iter().map(|name| (*name).to_owned()).chain(of_devices);
    names.filter_map(|name| read_setting(&name).map(|value| (name, value))).collect()
}

fn read_setting(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}

/// Returns the names of all processes by their IDs.
fn processes() -> BTreeMap<u32, String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, name.trim_end().to_owned()))
    });
    named.collect()
}

pub(crate) fn network_management(ports: &[u16]) -> NetworkManagement {
    let processes = processes();
    let is_running = |process: &str| processes.values().any(|name| name == process);
    let mut networks = Vec::new();
    for (process, name, exclusion_file) in NETWORK_MANAGERS {
        if is_running(process) {
            let has_exclusion = Path::new(exclusion_file).exists();
            networks.push(NetworkManager { name, exclusion_file, has_exclusion });
        }
    }
    let firewalld = is_running("firewalld").then(|| ports.iter().all(is_open_in_firewalld));
    NetworkManagement { networks, firewalld, ufw: is_ufw_enabled().then(|| ufw_accepts(ports)) }
}

fn is_open_in_firewalld(port: &u16) -> bool {
    let query = format!("--query-port={port}/udp");
    run_program("firewall-cmd", &[&query]).is_some_and(|finished| finished.success)
}

fn is_ufw_enabled() -> bool {
    let config = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    config.lines().any(|line| line.trim() == "ENABLED=yes")
}

fn ufw_accepts(ports: &[u16]) -> bool {
    let status = program_output("ufw", &["status"]).unwrap_or_default();
    ports.iter().all(|port| status.contains(&format!("{port}/udp")))
}

/// Returns the processes with a socket on one of `ports`. A socket of the kernel, such as the
/// socket of a VXLAN device, belongs to no process.
pub(crate) fn port_owners(ports: &[u16], is_root: bool) -> Vec<PortOwner> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(udp_socket));
    }
    sockets.retain(|(port, _)| ports.contains(port));
    // Without root, the descriptors of other users' processes are invisible. Their sockets could
    // not be distinguished from sockets of the kernel.
    if sockets.is_empty() || !is_root {
        return Vec::new();
    }
    let mut owners = Vec::new();
    for (pid, name) in processes() {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets: Vec<PathBuf> =
            descriptors.filter_map(|file| fs::read_link(file.path()).ok()).collect();
        let owned = sockets.iter().filter(|(_, inode)| {
            targets.iter().any(|target| target.as_os_str() == format!("socket:[{inode}]").as_str())
        });
        for (port, _) in owned {
            let owner = PortOwner { port: *port, pid, name: name.clone() };
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
    }
    owners
}

/// Returns the local port and the inode from a line of `/proc/net/udp`.
pub(crate) fn udp_socket(line: &str) -> Option<(u16, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = words.get(1)?.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, words.get(9)?.parse().ok()?))
}

pub(crate) fn cni_plugins(config: &AgentConfig) -> CniPlugins {
    let searched: Vec<PathBuf> = if config.cni_plugins_dir.is_empty() {
        cni::PLUGIN_FOLDERS.iter().map(PathBuf::from).collect()
    } else {
        config.cni_plugins_dir.clone()
    };
    let options = &config.options;
    if !options.allocate_subnet || !options.mesos_bridge {
        return CniPlugins { searched, missing: Vec::new() };
    }
    let is_installed =
        |plugin: &str| searched.iter().any(|directory| is_executable(&directory.join(plugin)));
    let mut missing = Vec::new();
    if config.cni_plugin == CniPlugin::Overlay {
        if is_installed(cni::OVERLAY_PLUGIN) {
            return CniPlugins { searched, missing };
        }
        missing.push(cni::OVERLAY_PLUGIN);
    }
    // The agent uses these plugins instead.
    missing.extend(cni::PLUGINS.into_iter().filter(|plugin| !is_installed(plugin)));
    CniPlugins { searched, missing }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Returns whether the devices leave checksums to the hardware. A device that ethtool cannot read
/// is absent.
pub(crate) fn checksum_offloads(devices: impl Iterator<Item = String>) -> BTreeMap<String, bool> {
    let read = |device: String| has_checksum_offload(&device).map(|is_on| (device, is_on));
    devices.filter_map(read).collect()
}

fn has_checksum_offload(device: &str) -> Option<bool> {
    // Kernels before 5.6 answer the program only.
    if let Ok(is_on) = overlay_linux::dataplane::has_checksum_offload(device) {
        return Some(is_on);
    }
    let features = program_output("ethtool", &["-k", device])?;
    let mut lines = features.lines();
    let value = lines.find_map(|line| line.trim().strip_prefix("tx-checksum-ip-generic:"))?;
    Some(value.trim().starts_with("on"))
}

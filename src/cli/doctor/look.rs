//! Looks at this host: files of the kernel, other programs' listings. Reads and never writes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::observed::{Holder, Managers, Plugins, Rules, Tunnel};
use crate::cni;
use crate::config::AgentConfig;
use crate::program::{Finished, of_system, run_blocking};

/// How long a listing may take: that of iptables waits for others who are at work.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The numbers below `/proc/sys/net` that matter, besides those of our devices.
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
/// How the kernel calls the processes of what manages networks, at most 15 characters; what that is
/// called; and the file by which the agent tells it to leave our devices alone.
const NETWORK_MANAGERS: [(&str, &str, &str); 2] = [
    ("NetworkManager", "NetworkManager", "/etc/NetworkManager/conf.d/mesos-overlay.conf"),
    ("systemd-network", "systemd-networkd", "/etc/systemd/network/00-mesos-overlay.network"),
];

/// What a program of the system said, if it is there and ended in time.
fn listing(program: &str, arguments: &[&str]) -> Option<Finished> {
    let place = of_system(program)?;
    run_blocking(&place, arguments.iter().map(OsStr::new), b"", TIMEOUT).ok()
}

/// The output of one that succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let finished = listing(program, arguments).filter(|finished| finished.success)?;
    Some(String::from_utf8_lossy(&finished.stdout).into_owned())
}

pub(super) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub(super) fn settings(tunnel: &Tunnel) -> BTreeMap<String, u32> {
    let own = tunnel.devices().flat_map(|device| {
        [format!("ipv4/conf/{device}/rp_filter"), format!("ipv6/conf/{device}/disable_ipv6")]
    });
    let names = SETTINGS.iter().map(|name| (*name).to_owned()).chain(own);
    let read = |name: String| {
        let number = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
        Some((name, number.trim().parse().ok()?))
    };
    names.filter_map(read).collect()
}

pub(super) fn rules() -> Rules {
    Rules {
        nft: output("nft", &["-a", "list", "ruleset"]),
        iptables: output("iptables", &["-w", "5", "-S"]),
        ip6tables: output("ip6tables", &["-w", "5", "-S"]),
    }
}

/// The names of the processes, by their numbers.
fn processes() -> BTreeMap<u32, String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((number, name.trim_end().to_owned()))
    });
    named.collect()
}

pub(super) fn managers(ports: &[u16]) -> Managers {
    let processes = processes();
    let runs = |wanted: &str| processes.values().any(|name| name == wanted);
    let networks = NETWORK_MANAGERS.into_iter().filter(|(process, ..)| runs(process));
    let networks = networks.map(|(_, name, file)| (name, file, Path::new(file).exists()));
    let asked = |port: &u16| format!("--query-port={port}/udp");
    let is_open = |port: &u16| {
        listing("firewall-cmd", &[&asked(port)]).is_some_and(|finished| finished.success)
    };
    let enabled = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    let ufw = enabled.lines().any(|line| line.trim() == "ENABLED=yes");
    let status = ufw.then(|| output("ufw", &["status"]).unwrap_or_default());
    Managers {
        networks: networks.collect(),
        firewalld: runs("firewalld").then(|| ports.iter().all(is_open)),
        ufw: status.map(|status| ports.iter().all(|port| status.contains(&format!("{port}/udp")))),
    }
}

/// The processes with a socket on one of `ports`. Those of the kernel, as VXLAN has them, belong to
/// no process.
pub(super) fn holders(ports: &[u16], is_root: bool) -> Vec<Holder> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(udp_socket));
    }
    sockets.retain(|(port, _)| ports.contains(port));
    // Who is not root sees only their own files, and could not tell others' from the kernel's.
    if sockets.is_empty() || !is_root {
        return Vec::new();
    }
    let mut holders = Vec::new();
    for (number, name) in processes() {
        let files = fs::read_dir(format!("/proc/{number}/fd")).into_iter().flatten().flatten();
        let targets: Vec<PathBuf> =
            files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
        let held = sockets.iter().filter(|(_, inode)| {
            targets.iter().any(|target| target.as_os_str() == format!("socket:[{inode}]").as_str())
        });
        for (port, _) in held {
            let holder = Holder { port: *port, process: Some((number, name.clone())) };
            if !holders.contains(&holder) {
                holders.push(holder);
            }
        }
    }
    holders
}

/// The local port and the inode of a line of `/proc/net/udp`.
pub(super) fn udp_socket(line: &str) -> Option<(u16, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = words.get(1)?.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, words.get(9)?.parse().ok()?))
}

pub(super) fn plugins(config: &AgentConfig) -> Plugins {
    let searched = if config.cni_plugins_dir.is_empty() {
        cni::PLUGIN_FOLDERS.iter().map(PathBuf::from).collect()
    } else {
        config.cni_plugins_dir.clone()
    };
    let options = &config.options;
    if !options.allocate_subnet || !options.mesos_bridge {
        return Plugins { searched, missing: Vec::new() };
    }
    let is_there = |plugin: &str| {
        searched.iter().any(|folder| {
            fs::metadata(folder.join(plugin))
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
    };
    let missing = cni::PLUGINS.into_iter().filter(|plugin| !is_there(plugin));
    let missing = missing.collect();
    Plugins { searched, missing }
}

/// Whether the devices leave checksums to the hardware, of those of which ethtool tells.
pub(super) fn offloads(devices: impl Iterator<Item = String>) -> BTreeMap<String, bool> {
    let read = |device: String| {
        let features = output("ethtool", &["-k", &device])?;
        let line = features.lines().find_map(|line| {
            line.trim().strip_prefix("tx-checksum-ip-generic:").map(|rest| rest.trim().to_owned())
        })?;
        Some((device, line.starts_with("on")))
    };
    devices.filter_map(read).collect()
}

//! What is wrong with the host itself: kernel, settings, firewalls, programs. Pure: findings from
//! what was seen, each with its remedy.

use super::super::host::counted;
use super::finding::{Finding, Grade};
use super::observed::{Holder, Observed};
use crate::docker::Reason;

/// Kernels before this one miscalculate the checksums of packets that are masqueraded into a VXLAN
/// whose outer checksum is off.
const CHECKSUMS_MENDED: (u32, u32) = (5, 8);
/// From how much of a table on a warning is in place, in percent.
const FULL: u64 = 90;

/// All of it, in a fixed order.
pub(super) fn check(observed: &Observed) -> Vec<Finding> {
    let checks: [fn(&Observed) -> Vec<Finding>; 12] = [
        kernel,
        forwarding,
        rp_filter,
        br_netfilter,
        offload,
        udp_port,
        super::rules::udp_rules,
        super::rules::forward_policy,
        managers,
        plugins,
        docker,
        tables,
    ];
    checks.iter().flat_map(|check| check(observed)).collect()
}

fn kernel(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let trials = match &observed.trials {
        Ok(trials) => trials,
        Err(reason) => {
            let what = format!("not tried whether it has VXLAN and the firewall: {reason}");
            return vec![Finding::note(CHECK, what).advise("run 'mesos-overlay doctor' as root")];
        }
    };
    let mut findings = Vec::new();
    let kernel = &observed.kernel;
    match (&trials.vxlan, &trials.vxlan6) {
        (Err(reason), _) => findings.push(
            Finding::wrong(
                CHECK,
                format!("kernel {kernel} makes no VXLAN device: {reason}"),
                "no tunnel can be made",
            )
            .mend("modprobe vxlan")
            .advise("install the kernel's modules if there is no such module"),
        ),
        (Ok(()), Err(reason)) => {
            let finding = Finding::wrong(
                CHECK,
                format!("kernel {kernel} makes no VXLAN device with IPv6: {reason}"),
                "overlays with IPv6 cannot be made",
            )
            .advise("start the kernel without ipv6.disable=1, or use overlays of IPv4 only");
            let is_needed = observed.wants_ipv6();
            findings.push(if is_needed { finding } else { finding.at_most(Grade::Note) });
        }
        (Ok(()), Ok(())) => {
            findings.push(Finding::ok(CHECK, format!("kernel {kernel} makes VXLAN devices")));
        }
    }
    findings.push(match &trials.firewall {
        Ok(backend) => Finding::ok("firewall", format!("rules are made by {backend}")),
        Err(reason) => Finding::wrong(
            "firewall",
            format!("no rules can be made: {reason}"),
            "what leaves the overlays is not masqueraded, and strangers are not kept out",
        )
        .advise("install nftables, or iptables and ipset, or set firewall to none"),
    });
    findings
}

/// What the agent sets by itself is no fault before it has run.
fn unless_set_later(observed: &Observed, finding: Finding) -> Finding {
    if observed.is_before() && observed.config.dataplane.host_settings {
        let finding = finding.at_most(Grade::Note);
        return Finding { command: None, ..finding }.advise("nothing: the agent sets it");
    }
    finding
}

fn forwarding(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "forwarding";
    let mut names = vec![("ipv4/ip_forward", "net.ipv4.ip_forward")];
    if observed.wants_ipv6() {
        names.push(("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"));
    }
    let off = names.iter().filter(|(name, _)| observed.setting(name) == Some(0));
    let finding = |(_, name): &(&str, &str)| {
        let what = format!("{name} is 0");
        let why = "this host does not forward, so other hosts do not reach its containers";
        let finding = Finding::wrong(CHECK, what, why).mend(format!("sysctl -w {name}=1"));
        unless_set_later(observed, finding)
    };
    let mut findings: Vec<_> = off.map(finding).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "this host forwards"));
    }
    findings
}

/// The kernel takes the larger of the number of all devices and that of the device; 1 is strict.
fn rp_filter(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "rp-filter";
    let all = observed.setting("ipv4/conf/all/rp_filter").unwrap_or(0);
    let mut findings = Vec::new();
    for device in observed.tunnel.devices() {
        let Some(own) = observed.setting(&format!("ipv4/conf/{device}/rp_filter")) else {
            continue;
        };
        if all.max(own) == 1 {
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!("device {device} has rp_filter 1, strict"),
                    "packets of peers are dropped whose way back is another device",
                )
                .mend(format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2")),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "packets are taken whose way back is another device"));
    }
    findings
}

fn br_netfilter(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "br-netfilter";
    let on = observed.setting("bridge/bridge-nf-call-iptables") == Some(1);
    if !on {
        return vec![Finding::ok(CHECK, "packets on a bridge do not go through iptables")];
    }
    let what = "net.bridge.bridge-nf-call-iptables is 1";
    let why = "packets between containers on one bridge go through the FORWARD chain";
    let command = "sysctl -w net.bridge.bridge-nf-call-iptables=0";
    if super::rules::drops_unasked(observed) {
        return vec![
            Finding::warning(CHECK, what, format!("{why}, which drops them")).mend(command),
        ];
    }
    let then = match (&observed.rules.nft, &observed.rules.iptables) {
        (None, None) => "whose rules could not be read",
        _ => "which lets them pass",
    };
    vec![Finding::note(CHECK, format!("{what}: {why}, {then}"))]
}

fn offload(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "offload";
    let kernel = &observed.kernel;
    let mut numbers = kernel.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    let version = number().zip(number());
    if version.is_none_or(|version| version >= CHECKSUMS_MENDED) {
        return vec![Finding::ok(CHECK, format!("kernel {kernel} calculates checksums right"))];
    }
    let on = observed.tunnel.devices().filter(|device| {
        let is_there = observed.tunnel.seen.state.devices.keys();
        is_there.clone().any(|there| there.as_str() == device)
            && observed.offloads.get(device) != Some(&false)
    });
    let finding = |device: String| {
        Finding::warning(
            CHECK,
            format!("kernel {kernel} leaves the checksums of device {device} to the hardware"),
            "before 5.8 those of masqueraded packets come out wrong, and the peer drops them",
        )
        .mend(format!("ethtool -K {device} tx-checksum-ip-generic off"))
    };
    let findings: Vec<_> = on.map(finding).collect();
    if findings.is_empty() {
        return vec![Finding::ok(CHECK, "no VXLAN device leaves checksums to the hardware")];
    }
    findings
}

fn udp_port(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "udp-port";
    let mut findings: Vec<_> = observed
        .holders
        .iter()
        .map(|Holder { port, process }| {
            let who = match process {
                Some((number, name)) => format!("process {number} ({name})"),
                None => "a process".to_owned(),
            };
            let finding = Finding::wrong(
                CHECK,
                format!("UDP port {port} is taken by {who}"),
                "VXLAN cannot have it, so no packet of a peer arrives",
            );
            match process {
                Some((number, _)) => finding.advise(format!(
                    "stop it, as with 'kill {number}', or set another vtep_port at the master"
                )),
                None => finding.advise(format!("see 'ss -lunp sport = :{port}'")),
            }
        })
        .collect();
    for (name, vni, port) in &observed.tunnel.seen.others {
        if observed.tunnel.ports().contains(port) {
            let what = format!("VXLAN device {name} with VNI {vni} shares UDP port {port}");
            findings.push(Finding::note(CHECK, what));
        }
    }
    if findings.is_empty() {
        let ports: Vec<_> = observed.tunnel.ports().iter().map(ToString::to_string).collect();
        let what = format!("UDP port {} is free for VXLAN", ports.join(" and "));
        findings.push(if observed.is_root {
            Finding::ok(CHECK, what)
        } else {
            Finding::note(CHECK, "not looked who holds the UDP port: that needs root")
        });
    }
    findings
}

fn managers(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "managers";
    let managers = &observed.managers;
    let mut findings = Vec::new();
    for (name, file, _) in managers.networks.iter().filter(|(.., is_told)| !is_told) {
        let finding = Finding::warning(
            CHECK,
            format!("{name} runs and was not told to leave the overlays' devices alone"),
            "it takes addresses and routes away that it does not know",
        )
        .advise(format!("set host_settings to true, with which the agent writes {file}"));
        findings.push(unless_set_later(observed, finding));
    }
    for port in observed.tunnel.ports() {
        let why = "the tunnels of peers end there unheard";
        if managers.firewalld == Some(false) {
            let what = format!("firewalld does not open UDP port {port}");
            let open = format!("--add-port={port}/udp");
            let command = format!("firewall-cmd {open} && firewall-cmd --permanent {open}");
            findings.push(Finding::warning(CHECK, what, why).mend(command));
        }
        if managers.ufw == Some(false) {
            let what = format!("ufw does not open UDP port {port}");
            let command = format!("ufw allow {port}/udp");
            findings.push(Finding::warning(CHECK, what, why).mend(command));
        }
    }
    if findings.is_empty() {
        let running = managers.networks.iter().map(|(name, ..)| *name);
        let running: Vec<_> = running
            .chain(managers.firewalld.map(|_| "firewalld"))
            .chain(managers.ufw.map(|_| "ufw"))
            .collect();
        findings.push(Finding::ok(
            CHECK,
            match running[..] {
                [] => "nothing else manages the network or its firewall".to_owned(),
                _ => format!("{} let the overlays be", running.join(" and ")),
            },
        ));
    }
    findings
}

fn plugins(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "cni-plugins";
    let plugins = &observed.plugins;
    let searched: Vec<_> =
        plugins.searched.iter().map(|folder| folder.display().to_string()).collect();
    let searched = searched.join(":");
    if plugins.missing.is_empty() {
        let options = &observed.config.options;
        let what = if options.allocate_subnet && options.mesos_bridge {
            "bridge and host-local are there"
        } else {
            "none are needed: mesos_bridge is off"
        };
        return vec![Finding::ok(CHECK, what)];
    }
    let is_told = !observed.config.cni_plugins_dir.is_empty();
    let finding = |plugin: &&str| {
        let finding = Finding::wrong(
            CHECK,
            format!("CNI plugin {plugin} is not in {searched}"),
            "tasks of the MesosContainerizer get no network",
        )
        .advise(
            "install the CNI plugins, in Debian the package containernetworking-plugins, and name \
             their directory in cni_plugins_dir",
        );
        // Elsewhere they may be.
        if is_told { finding } else { finding.at_most(Grade::Warning) }
    };
    plugins.missing.iter().map(finding).collect()
}

fn docker(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "docker";
    let examined = match &observed.docker {
        None => return vec![Finding::ok(CHECK, "none is needed: docker_bridge is off")],
        Some(Err(Reason::PermissionDenied { .. })) if !observed.is_root => {
            let what = "not asked: its socket is not for us";
            return vec![Finding::note(CHECK, what).advise("run 'mesos-overlay doctor' as root")];
        }
        Some(Err(reason)) => return vec![no_docker(CHECK, reason)],
        Some(Ok(examined)) => examined,
    };
    let engine = &examined.engine;
    let unfit = examined.unfit.iter().map(|(name, containers)| {
        let finding = Finding::wrong(
            CHECK,
            format!("docker network {name} has not the gateway mode nat-unprotected"),
            format!("Docker {engine} drops what other agents send to its containers"),
        );
        let remove = format!("docker network rm {name}");
        match &containers[..] {
            [] => finding.mend(remove).advise("the agent then makes it anew"),
            some => finding.advise(format!(
                "end the containers {} and run '{remove}': the agent then makes it anew",
                some.join(", ")
            )),
        }
    });
    let mut findings: Vec<_> = unfit.collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("Docker {engine} answers")));
    }
    findings
}

fn no_docker(check: &'static str, reason: &Reason) -> Finding {
    let why = "tasks of the DockerContainerizer get no network";
    let without = "set network_config.docker_bridge to false in the agent_config";
    match reason {
        Reason::NotRunning { said } => {
            Finding::wrong(check, format!("{}: {said}", Reason::NOT_RUNNING), why)
                .mend("systemctl start docker")
                .advise(format!("if no task here is to have a network of Docker's, {without}"))
        }
        Reason::ProgramNotFound { program } => {
            Finding::wrong(check, format!("program '{}' not found", program.display()), why)
                .advise(format!("install Docker, or {without}"))
        }
        // The others have their remedies in them.
        reason => Finding::wrong(check, reason.to_string(), why),
    }
}

fn tables(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "tables";
    let mut findings = Vec::new();
    let count = observed.setting("netfilter/nf_conntrack_count").map(u64::from);
    let most = observed.setting("netfilter/nf_conntrack_max").map(u64::from);
    if let (Some(count), Some(most)) = (count, most.filter(|most| *most > 0))
        && count * 100 >= most * FULL
    {
        let what = format!("{count} of {most} connections are tracked");
        let why = "when the table is full, packets of new connections are dropped";
        let command = format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2);
        let finding = Finding::wrong(CHECK, what, why).mend(command);
        findings.push(if count >= most { finding } else { finding.at_most(Grade::Warning) });
    }
    let peers = observed.tunnel.seen.state.devices.values().map(|device| device.neighbours.len());
    let peers = peers.sum::<usize>() as u64;
    for family in ["ipv4", "ipv6"] {
        let most = observed.setting(&format!("{family}/neigh/default/gc_thresh3")).map(u64::from);
        if let Some(most) = most.filter(|most| peers * 100 >= most * FULL) {
            let neighbours = counted(peers, "neighbour");
            let what =
                format!("{neighbours} on the VXLAN devices, and {family} has room for {most}");
            let why = "kernels that count permanent ones as well forget the others";
            let name = format!("net.{family}.neigh.default.gc_thresh3");
            let command = format!("sysctl -w {name}={}", (peers * 2).max(most * 2));
            findings.push(Finding::warning(CHECK, what, why).mend(command));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "connections and neighbours have room"));
    }
    findings
}

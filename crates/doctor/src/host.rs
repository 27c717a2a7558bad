//! Checks of the host itself: kernel, settings, firewalls and programs. The checks are pure
//! functions of the observation.

use overlay_config::CniPlugin;
use overlay_linux::cni::OVERLAY_PLUGIN;
use overlay_linux::docker::DockerFailure;
use overlay_types::addr::{DeviceName, Family, OverlayName};
use overlay_types::advice::Command;
use overlay_types::text::pluralize;

use super::cause::{Object, Topic};
use super::finding::{Finding, Severity};
use super::observation::{NetworkManager, Observation, PortOwner};
use super::rules;

/// Kernels before this version miscalculate the checksums of packets that are masqueraded into a
/// VXLAN device without outer checksums.
const CHECKSUM_FIX_VERSION: (u32, u32) = (5, 8);
/// A table causes a warning if at least this percentage of its entries is used.
const NEARLY_FULL_PERCENT: u64 = 90;

/// Runs all checks of the host in a fixed order.
pub(crate) fn check(observation: &Observation) -> Vec<Finding> {
    let checks: [fn(&Observation) -> Vec<Finding>; 12] = [
        kernel,
        forwarding,
        rp_filter,
        br_netfilter,
        offload,
        udp_port,
        rules::udp_rules,
        rules::forward_policy,
        managers,
        plugins,
        docker,
        tables,
    ];
    checks.iter().flat_map(|check| check(observation)).collect()
}

fn kernel(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let kernel_support = match &observation.kernel_support {
        Ok(kernel_support) => kernel_support,
        Err(reason) => {
            let summary = format!("VXLAN and firewall support not tested: {reason}");
            return vec![
                Finding::note(CHECK, summary).with_advice("run 'mesos-overlay doctor' as root"),
            ];
        }
    };
    let mut findings = Vec::new();
    let kernel = &observation.kernel;
    match (&kernel_support.vxlan, &kernel_support.vxlan6) {
        (Err(reason), _) => findings.push(
            Finding::wrong(
                CHECK,
                format!("kernel {kernel} cannot create a VXLAN device: {reason}"),
                "no tunnel can be created",
            )
            .about(Topic::Kernel)
            .with_command(Command::load_vxlan_module())
            .with_advice("install the kernel's modules if this module is missing"),
        ),
        (Ok(()), Err(reason)) => {
            let finding = Finding::wrong(
                CHECK,
                format!("kernel {kernel} cannot create a VXLAN device with IPv6: {reason}"),
                "overlays with IPv6 cannot be created",
            )
            .with_advice("start the kernel without ipv6.disable=1, or use IPv4 overlays only");
            let is_needed = observation.needs_ipv6();
            findings.push(if is_needed { finding } else { finding.at_most(Severity::Note) });
        }
        (Ok(()), Ok(())) => {
            findings.push(Finding::ok(CHECK, format!("kernel {kernel} creates VXLAN devices")));
        }
    }
    findings.push(match &kernel_support.firewall {
        Ok(backend) => Finding::ok("firewall", format!("the firewall backend is {backend}")),
        Err(reason) => Finding::wrong(
            "firewall",
            format!("firewall rules cannot be created: {reason}"),
            "the agent creates no new tunnel, which would accept packets of every host",
        )
        .about(Topic::Firewall)
        .with_advice("install nftables, or iptables and ipset, or set firewall to none"),
    });
    findings
}

/// Lowers the finding to a note if the agent has not run yet and will fix the problem itself.
fn note_if_agent_will_fix(observation: &Observation, finding: Finding) -> Finding {
    if observation.is_before_first_run() && observation.config.dataplane.host_settings {
        let finding = finding.at_most(Severity::Note);
        return Finding { command: None, ..finding }.with_advice("no action: the agent sets it");
    }
    finding
}

fn forwarding(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "forwarding";
    let mut settings = vec![("ipv4/ip_forward", "net.ipv4.ip_forward", Family::V4)];
    if observation.needs_ipv6() {
        settings.push(("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", Family::V6));
    }
    settings.retain(|(path, ..)| observation.setting(path) == Some(0));
    if settings.is_empty() {
        return vec![Finding::ok(CHECK, "this host forwards")];
    }
    let mut findings = Vec::new();
    for (_, name, family) in settings {
        let finding = Finding::wrong(
            CHECK,
            format!("{name} is 0"),
            "this host does not forward packets, so other hosts do not reach its containers",
        )
        .about(Topic::HostForwarding)
        .with_command(Command::enable_host_forwarding(family));
        findings.push(note_if_agent_will_fix(observation, finding));
    }
    findings
}

/// Checks for strict `rp_filter` (1). The kernel uses the maximum of the setting of all devices and
/// the setting of the device.
fn rp_filter(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "rp-filter";
    let all = observation.setting("ipv4/conf/all/rp_filter").unwrap_or(0);
    let mut findings = Vec::new();
    for local in &observation.tunnel.desired.vxlan_devices {
        let device = &local.device;
        let Some(own) = observation.setting(&format!("ipv4/conf/{device}/rp_filter")) else {
            continue;
        };
        if all.max(own) == 1 {
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!("device {device} has rp_filter 1, strict"),
                    "packets of peers are dropped if their reverse path is another device",
                )
                .about(Topic::ReversePath)
                .on(Object::device(device))
                .with_command(Command::loosen_rp_filter(device)),
            );
        }
    }
    if findings.is_empty() {
        findings
            .push(Finding::ok(CHECK, "packets whose reverse path is another device are accepted"));
    }
    findings
}

fn br_netfilter(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "br-netfilter";
    if observation.setting("bridge/bridge-nf-call-iptables") != Some(1) {
        return vec![Finding::ok(CHECK, "bridged packets do not pass through iptables")];
    }
    let summary = "net.bridge.bridge-nf-call-iptables is 1";
    let path = "packets between containers on one bridge pass through the FORWARD chain";
    if let Some(obstacle) = rules::bridged_obstacle(observation) {
        // The setting itself belongs to Docker or Kubernetes.
        let explanation = format!("{path}, where {} drops them", obstacle.rule_description());
        return vec![
            Finding::warning(CHECK, summary, explanation)
                .about(Topic::BridgedRules)
                .on(Object::Overlays(obstacle.overlays))
                .with_command(obstacle.command),
        ];
    }
    let rules = &observation.rules;
    let effect = if rules.is_readable() || rules.errors.is_empty() {
        "which accepts them"
    } else {
        "whose rules could not be read"
    };
    vec![Finding::note(CHECK, format!("{summary}: {path}, {effect}"))]
}

fn offload(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "offload";
    let kernel = &observation.kernel;
    if kernel_version(kernel).is_none_or(|version| version >= CHECKSUM_FIX_VERSION) {
        let devices = observation.tunnel.desired.vxlan_devices.iter().map(|local| &local.device);
        let is_off =
            |device: &&DeviceName| observation.offloads.get(device.as_str()) == Some(&false);
        let notes: Vec<Finding> =
            devices.filter(is_off).map(|device| disabled_offload(CHECK, device)).collect();
        if !notes.is_empty() {
            return notes;
        }
        return vec![Finding::ok(CHECK, format!("kernel {kernel} calculates checksums correctly"))];
    }
    let mut findings = Vec::new();
    for local in &observation.tunnel.desired.vxlan_devices {
        let device = &local.device;
        let exists = observation.tunnel.observed.state.devices.contains_key(device);
        if !exists || observation.offloads.get(device.as_str()) == Some(&false) {
            continue;
        }
        findings.push(
            Finding::warning(
                CHECK,
                format!("kernel {kernel} leaves the checksums of device {device} to the hardware"),
                "before 5.8 the checksums of masqueraded packets are wrong, and the peer drops \
                 the packets",
            )
            .with_command(Command::disable_checksum_offload(device)),
        );
    }
    if findings.is_empty() {
        return vec![Finding::ok(CHECK, "no VXLAN device leaves checksums to the hardware")];
    }
    findings
}

/// Returns the note about a device without checksum offload, and how the offload comes back.
fn disabled_offload(check: &'static str, device: &DeviceName) -> Finding {
    let summary = format!(
        "device {device} computes checksums in software: an operator or the agent \
         (repair_offloads) switched the offload off"
    );
    Finding::note(check, summary).with_advice(format!(
        "if hardware and hypervisor are fixed: restart the agent, run {}, and check with \
         --probe",
        Command::enable_checksum_offload(device)
    ))
}

/// Returns the major and minor version from the release of a kernel.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    number().zip(number())
}

fn udp_port(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "udp-port";
    let tunnel = &observation.tunnel;
    let mut findings = Vec::new();
    for PortOwner { port, pid, name } in &observation.port_owners {
        findings.push(
            Finding::wrong(
                CHECK,
                format!("UDP port {port} is used by process {pid} ({name})"),
                "VXLAN cannot use the port, so no packet of a peer arrives",
            )
            .about(Topic::Port)
            .with_advice(format!(
                "see the process with {}, and stop its service if this host does not need it, or \
                 set another vtep_port at the master",
                Command::show_process(*pid)
            )),
        );
    }
    for (name, vni, port) in &tunnel.observed.foreign_vxlans {
        if tunnel.ports().contains(port) {
            let summary = format!("VXLAN device {name} with VNI {vni} shares UDP port {port}");
            findings.push(Finding::note(CHECK, summary));
        }
    }
    if findings.is_empty() {
        let ports: Vec<_> = tunnel.ports().iter().map(ToString::to_string).collect();
        findings.push(if observation.is_root {
            Finding::ok(CHECK, format!("UDP port {} is free for VXLAN", ports.join(" and ")))
        } else {
            Finding::note(CHECK, "processes on the UDP port not checked: this check needs root")
        });
    }
    findings
}

fn managers(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "managers";
    let managers = &observation.managers;
    let mut findings = Vec::new();
    for manager in managers.networks.iter().filter(|manager| !manager.has_exclusion) {
        let NetworkManager { name, exclusion_file, .. } = manager;
        let finding = Finding::warning(
            CHECK,
            format!("{name} runs and does not ignore the overlays' devices"),
            "it removes addresses and routes that it does not know",
        )
        .with_advice(format!("set host_settings to true: the agent then writes {exclusion_file}"));
        findings.push(note_if_agent_will_fix(observation, finding));
    }
    for port in observation.tunnel.ports() {
        let explanation = "the packets of peers are dropped";
        if managers.firewalld == Some(false) {
            let summary = format!("firewalld does not open UDP port {port}");
            let finding = Finding::warning(CHECK, summary, explanation).about(Topic::VxlanRules);
            findings.push(finding.with_command(Command::open_firewalld_port(port)));
        }
        if managers.ufw == Some(false) {
            let summary = format!("ufw does not open UDP port {port}");
            let finding = Finding::warning(CHECK, summary, explanation).about(Topic::VxlanRules);
            findings.push(finding.with_command(Command::open_ufw_port(port, false)));
        }
    }
    if findings.is_empty() {
        let running: Vec<_> = managers
            .networks
            .iter()
            .map(|manager| manager.name)
            .chain(managers.firewalld.map(|_| "firewalld"))
            .chain(managers.ufw.map(|_| "ufw"))
            .collect();
        findings.push(Finding::ok(
            CHECK,
            match running[..] {
                [] => "no other program manages the network or its firewall".to_owned(),
                _ => format!("{} do not interfere with the overlays", running.join(" and ")),
            },
        ));
    }
    findings
}

fn plugins(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "cni-plugins";
    let plugins = &observation.plugins;
    if plugins.missing.is_empty() {
        let options = &observation.config.options;
        let summary = if !options.allocate_subnet || !options.mesos_bridge {
            "no CNI plugin is needed: mesos_bridge is off"
        } else if observation.config.cni_plugin == CniPlugin::Overlay {
            "mesos-overlay-cni is installed"
        } else {
            "bridge and host-local are installed"
        };
        return vec![Finding::ok(CHECK, summary)];
    }
    let directories: Vec<_> =
        plugins.searched.iter().map(|directory| directory.display().to_string()).collect();
    let directories = directories.join(":");
    // Without cni_plugins_dir, the plugins may be in another directory.
    let severity = match (observation.is_config_known(), observation.uses_mesos_bridges()) {
        (false, false) => Severity::Note,
        _ if observation.config.cni_plugins_dir.is_empty() => Severity::Warning,
        _ => Severity::Wrong,
    };
    let mut findings = Vec::new();
    for plugin in &plugins.missing {
        let summary = format!("CNI plugin {plugin} is not in {directories}");
        findings.push(if *plugin == OVERLAY_PLUGIN {
            let consequence = "the agent configures the plugins bridge and host-local instead";
            Finding::warning(CHECK, summary, consequence).about(Topic::Plugins).with_advice(
                "copy mesos-overlay-cni to a directory of cni_plugins_dir, or set cni_plugin to \
                 bridge",
            )
        } else {
            let consequence = "tasks of the MesosContainerizer get no network";
            let finding = Finding::wrong(CHECK, summary, consequence).about(Topic::Plugins);
            let finding = finding.with_advice(
                "install the CNI plugins, in Debian the package containernetworking-plugins, and \
                 name their directory in cni_plugins_dir",
            );
            finding.at_most(severity)
        });
    }
    findings
}

fn docker(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "docker";
    let examined = match &observation.docker {
        None => return vec![Finding::ok(CHECK, "Docker is not needed: docker_bridge is off")],
        Some(Err(_)) if !observation.is_config_known() && !observation.uses_docker_bridges() => {
            let summary = "not checked: it is unknown whether the agent uses Docker";
            let finding = Finding::note(CHECK, summary).about(Topic::Unchecked);
            return vec![finding.with_advice("name the agent's configuration with --config")];
        }
        Some(Err(DockerFailure::PermissionDenied { .. })) if !observation.is_root => {
            let summary = "not checked: no permission to use Docker's socket";
            let finding = Finding::note(CHECK, summary);
            return vec![finding.with_advice("run 'mesos-overlay doctor' as root")];
        }
        Some(Err(reason)) => {
            return vec![docker_unavailable(CHECK, reason).about(Topic::DockerDaemon)];
        }
        Some(Ok(examined)) => examined,
    };
    let engine = &examined.engine;
    let mut findings = Vec::new();
    for (name, containers) in &examined.unfit {
        let finding = Finding::wrong(
            CHECK,
            format!("docker network {name} does not have the gateway mode nat-unprotected"),
            format!("Docker {engine} drops packets of other agents to its containers"),
        );
        // Docker accepts names that no overlay has.
        let network = name.parse::<OverlayName>().ok();
        let overlays = network.iter().cloned().collect();
        let finding = finding.about(Topic::DockerNetwork).on(Object::Overlays(overlays));
        let remove = network.as_ref().map(Command::remove_docker_network);
        findings.push(match remove {
            Some(remove) if containers.is_empty() => {
                finding.with_command(remove).with_advice("the agent then creates the network again")
            }
            Some(remove) => finding.with_advice(format!(
                "stop the containers {} and run {remove}: the agent then creates the network again",
                containers.join(", ")
            )),
            None => finding,
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("Docker {engine} answers")));
    }
    findings
}

fn docker_unavailable(check: &'static str, reason: &DockerFailure) -> Finding {
    let explanation = "tasks of the DockerContainerizer get no network";
    let disable = "set network_config.docker_bridge to false in the agent_config";
    match reason {
        DockerFailure::NotRunning { message } => {
            Finding::wrong(check, format!("{}: {message}", DockerFailure::NOT_RUNNING), explanation)
                .with_command(Command::start_docker())
                .with_advice(format!("if no task on this host needs a Docker network, {disable}"))
        }
        DockerFailure::ProgramNotFound { program } => {
            Finding::wrong(check, format!("program '{}' not found", program.display()), explanation)
                .with_advice(format!("install Docker, or {disable}"))
        }
        // All other reasons include their remedy.
        reason => Finding::wrong(check, reason.to_string(), explanation),
    }
}

fn tables(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "tables";
    let mut findings = Vec::new();
    let count = observation.setting("netfilter/nf_conntrack_count").map(u64::from);
    let max = observation.setting("netfilter/nf_conntrack_max").map(u64::from);
    if let (Some(count), Some(max)) = (count, max.filter(|max| *max > 0))
        && count * 100 >= max * NEARLY_FULL_PERCENT
    {
        let finding = Finding::wrong(
            CHECK,
            format!("{count} of {max} connections are tracked"),
            "when the table is full, packets of new connections are dropped",
        )
        .with_command(Command::raise_conntrack_max(max * 2));
        findings.push(if count >= max { finding } else { finding.at_most(Severity::Warning) });
    }
    let devices = observation.tunnel.observed.state.devices.values();
    let count = devices.map(|device| device.neighbors.len()).sum::<usize>() as u64;
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let max = observation.setting(&format!("{name}/neigh/default/gc_thresh3"));
        let Some(max) = max.map(u64::from) else { continue };
        if count * 100 < max * NEARLY_FULL_PERCENT {
            continue;
        }
        let neighbors = pluralize(count, "neighbor");
        findings.push(
            Finding::warning(
                CHECK,
                format!("{neighbors} on the VXLAN devices, and the {name} table holds {max}"),
                "kernels that also count permanent entries remove other entries",
            )
            .with_command(Command::raise_neighbor_max(family, (count * 2).max(max * 2))),
        );
    }
    if findings.is_empty() {
        let summary = "the tables of connections and neighbors have free entries";
        findings.push(Finding::ok(CHECK, summary));
    }
    findings
}

//! The complete text of every finding: summary, explanation, command and advice.

mod configuration;

use std::collections::BTreeMap;
use std::path::PathBuf;

use overlay_config::{AgentConfig, CniPlugin};
use overlay_linux::dataplane::{
    self, Detour, Device, Hop, Identity, Link, MtuProblem, Operation, Problem, RouteKey,
    RouteResult,
};
use overlay_linux::docker::{DockerFailure, EngineReport};
use overlay_linux::firewall::foreign::{Listing, ListingError, SavedTables};
use overlay_types::addr::{DeviceName, Family, Mac, Mtu, Vni};
use overlay_types::advice::Command;
use overlay_types::protocol::{AgentInfo, Network, State, Vxlan};
use overlay_types::tunnel::{
    Desired, HostAddress, HostRoute, OverlayBridge, OverlaySubnets, VxlanDevice, collisions,
};

use super::finding::Severity;
use super::observation::{
    AgentObservation, AgentProcess, AgentQueryError, AgentReport, CniPlugins, ConfigSource,
    Configuration, DesiredSource, KernelSupport, MasterObservation, NetworkManagement,
    NetworkManager, Observation, PortOwner, ReportedAuthentication, ReportedProblem, TunnelState,
};
use super::report::Report;
use super::{check, local_checks};

fn device() -> DeviceName {
    DeviceName::vtep(Vni::DEFAULT)
}

fn mac(last: u8) -> Mac {
    Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, last])
}

fn local() -> VxlanDevice {
    VxlanDevice {
        device: device(),
        vni: Vni::DEFAULT,
        port: 64_000,
        mac: mac(1),
        underlay: "10.0.0.1".parse().unwrap(),
        mtu: None,
        containers_mtu: None,
        ip: "44.128.0.1/16".parse().ok(),
        ip6: None,
    }
}

fn space() -> OverlaySubnets {
    OverlaySubnets {
        overlay: "vxlan-1".parse().unwrap(),
        device: device(),
        whole: vec!["192.168.0.0/17".parse().unwrap()],
        own: vec!["192.168.0.0/24".parse().unwrap()],
        bridges: vec![OverlayBridge {
            device: "m-vxlan-1".parse().unwrap(),
            subnets: vec!["192.168.0.0/25".parse().unwrap()],
            gateways: vec!["192.168.0.1/25".parse().unwrap()],
        }],
    }
}

/// Returns a device with one peer.
fn device_with_peer() -> Device {
    let identity = Identity { vni: Vni::DEFAULT, port: 64_000, family: Family::V4 };
    let mut device = Device::bare(Link {
        identity,
        mac: mac(1),
        mtu: Mtu::new(1450).unwrap(),
        underlay: "10.0.0.1".parse().ok(),
        is_learning: false,
        has_checksum: true,
        is_up: true,
        forwarding: [Family::V4, Family::V6].into(),
        is_marked: true,
        has_ipv6: false,
        has_loose_rp_filter: true,
        is_port: false,
    });
    device.addresses.extend(local().addresses());
    device.neighbors.insert("44.128.0.2".parse().unwrap(), mac(2));
    device.forwards.insert(mac(2), "10.0.0.2".parse().unwrap());
    device
}

fn named_configuration() -> Configuration {
    let source = Some(ConfigSource::Flag("agent.json".to_owned()));
    Configuration { source, ..Configuration::default() }
}

fn underlay(mtu: u32) -> dataplane::Underlay {
    dataplane::Underlay {
        device: "eth0".to_owned(),
        mtu: Mtu::new(mtu).unwrap(),
        limited_route: None,
        is_routed: true,
        others: Vec::new(),
    }
}

fn healthy_tunnel() -> TunnelState {
    let own = "10.0.0.1".parse().unwrap();
    let mut observed = dataplane::Observed::default();
    observed.state.devices.insert(device(), device_with_peer());
    observed.underlays.insert(own, underlay(1500));
    let address = "10.0.0.1/24".parse().unwrap();
    TunnelState {
        desired: Desired {
            vxlan_devices: vec![local()],
            spaces: vec![space()],
            ..Desired::default()
        },
        source: DesiredSource::Assignments,
        observed,
        addresses: vec![HostAddress { address, device: "eth0".to_owned() }],
        uplinks: [(own, "eth0".to_owned())].into(),
        ..TunnelState::default()
    }
}

/// Returns a host with an agent and no problems.
fn healthy_host() -> Observation {
    let info = AgentInfo {
        ip: "10.0.0.1".parse().unwrap(),
        overlays: Vec::new(),
        configuration_attempts: None,
    };
    let network = Network {
        vtep_subnet: "44.128.0.0/16".parse().unwrap(),
        vtep_subnet6: None,
        vtep_mac_oui: "70:B3:D5:00:00:00".parse().unwrap(),
        vtep_mtu: None,
        vxlan: Vxlan::default(),
        overlays: Vec::new(),
    };
    let state = State {
        network: network.into(),
        agents: vec![info.clone().into()],
        contacts: BTreeMap::new(),
        peer_failures: BTreeMap::new(),
        address_counts: BTreeMap::new(),
        principals: BTreeMap::new(),
    };
    let settings = [
        ("ipv4/ip_forward", 1),
        ("ipv4/conf/all/rp_filter", 0),
        ("ipv4/conf/vtep1024/rp_filter", 2),
        ("netfilter/nf_conntrack_count", 10),
        ("netfilter/nf_conntrack_max", 1000),
        ("ipv4/neigh/default/gc_thresh3", 1024),
    ];
    Observation {
        is_root: true,
        config: AgentConfig::new(PathBuf::new()),
        configuration: named_configuration(),
        kernel: "6.1.0-18-amd64".to_owned(),
        kernel_support: Ok(KernelSupport {
            vxlan: Ok(()),
            vxlan6: Ok(()),
            firewall: Ok("nftables"),
        }),
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        port_owners: Vec::new(),
        managers: NetworkManagement::default(),
        rules: Listing { nft: Some(String::new()), ..Listing::default() },
        plugins: CniPlugins { searched: vec!["/usr/lib/cni".into()], missing: Vec::new() },
        docker: Some(Ok(EngineReport { engine: "28.5.2".to_owned(), unfit: Vec::new() })),
        offloads: BTreeMap::new(),
        tunnel: healthy_tunnel(),
        agent: AgentObservation {
            address: "127.0.0.1:5051".to_owned(),
            answer: Ok(AgentReport {
                info,
                paths: None,
                health: Some(("ok".to_owned(), Vec::new())),
                is_external: false,
                master: Some("10.0.0.9:5050".to_owned()),
                authentication: None,
            }),
        },
        master: Some(MasterObservation { address: "10.0.0.9:5050".to_owned(), answer: Ok(state) }),
    }
}

/// Returns a host on which no agent has run.
fn fresh_host() -> Observation {
    let mut observation = healthy_host();
    observation.tunnel.observed.state = dataplane::State::default();
    observation.tunnel.source = DesiredSource::Defaults;
    observation.agent.answer = Err(AgentQueryError::NoResponse("Connection refused".to_owned()));
    observation.master = None;
    observation
}

/// Returns the text of the findings that `inject_fault` adds on a healthy host.
fn findings_after(inject_fault: impl FnOnce(&mut Observation)) -> String {
    findings_on(healthy_host(), inject_fault)
}

fn findings_on(
    mut observation: Observation,
    inject_fault: impl FnOnce(&mut Observation),
) -> String {
    let before = check(&observation);
    inject_fault(&mut observation);
    let new = check(&observation).into_iter().filter(|finding| !before.contains(finding));
    new.map(|finding| finding.to_string()).collect::<Vec<_>>().join("\n")
}

#[test]
fn healthy_host_has_no_problem() {
    let shown: Vec<_> = check(&healthy_host()).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "ok       configuration    agent.json",
            "ok       kernel           kernel 6.1.0-18-amd64 creates VXLAN devices",
            "ok       firewall         the firewall backend is nftables",
            "ok       forwarding       this host forwards",
            "ok       rp-filter        packets whose reverse path is another device are accepted",
            "ok       br-netfilter     bridged packets do not pass through iptables",
            "ok       offload          kernel 6.1.0-18-amd64 calculates checksums correctly",
            "ok       udp-port         UDP port 64000 is free for VXLAN",
            "ok       udp-rules        no rule drops the packets of peers",
            "ok       forward-policy   no chain drops packets that are forwarded for the overlays",
            "ok       managers         no other program manages the network or its firewall",
            "ok       cni-plugins      bridge and host-local are installed",
            "ok       docker           Docker 28.5.2 answers",
            "ok       tables           the tables of connections and neighbors have free entries",
            "ok       agent            the agent at 127.0.0.1:5051 has 0 overlays",
            "ok       master           master 10.0.0.9:5050 knows this agent, 10.0.0.1",
            "ok       collisions       no route or address of the host overlaps the overlays",
            "ok       mtu              the tunnel carries inner packets of up to 1450 bytes",
            "ok       dataplane        the kernel matches the desired state of the overlays",
            "ok       peers            the kernel has a route to each of 1 peer",
        ]
    );
}

/// Returns the lines of a finding. The kind of a remedy is `run` for a command, or `do` for advice.
fn lines(severity: &str, check: &str, summary: &str, remedies: &[(&str, &str)]) -> String {
    let mut text = format!("{severity:<7}  {check:<15}  {summary}");
    for (kind, remedy) in remedies {
        let label = if *kind == "run" { "  fix with" } else { "  what to do" };
        text += &format!("\n{:<7}  {label:<15}  {remedy}", "");
    }
    text
}

#[test]
fn missing_kernel_support_is_reported() {
    let kernel_support =
        |observation: &mut Observation| observation.kernel_support.clone().unwrap();
    let text = findings_after(|observation| {
        let vxlan = Err("the kernel has no VXLAN".to_owned());
        observation.kernel_support = Ok(KernelSupport { vxlan, ..kernel_support(observation) });
    });
    let summary = "kernel 6.1.0-18-amd64 cannot create a VXLAN device: the kernel has no VXLAN: \
                   no tunnel can be created";
    let advice = "install the kernel's modules if this module is missing";
    assert_eq!(
        text,
        lines(
            "wrong",
            "kernel",
            summary,
            &[("run", "modprobe vxlan  # adds a module to the kernel"), ("do", advice)]
        )
    );
    let no_v6 = |observation: &mut Observation| {
        observation.kernel_support =
            Ok(KernelSupport { vxlan6: Err("no IPv6".to_owned()), ..kernel_support(observation) });
    };
    let summary = "kernel 6.1.0-18-amd64 cannot create a VXLAN device with IPv6: no IPv6: \
                   overlays with IPv6 cannot be created";
    let advice = "start the kernel without ipv6.disable=1, or use IPv4 overlays only";
    assert_eq!(findings_after(no_v6), lines("note", "kernel", summary, &[("do", advice)]));
    let mut with_v6 = healthy_host();
    with_v6.tunnel.desired.vxlan_devices[0].ip6 = "fd01:a::1/64".parse().ok();
    assert_eq!(findings_on(with_v6, no_v6), lines("wrong", "kernel", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        let firewall = Err("program 'nft' not found".to_owned());
        observation.kernel_support = Ok(KernelSupport { firewall, ..kernel_support(observation) });
    });
    let summary = "firewall rules cannot be created: program 'nft' not found: the agent creates no \
                   new tunnel, which would accept packets of every host";
    let advice = "install nftables, or iptables and ipset, or set firewall to none";
    assert_eq!(text, lines("wrong", "firewall", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        observation.kernel_support = Err("the test needs root".to_owned())
    });
    let summary = "VXLAN and firewall support not tested: the test needs root";
    let advice = "run 'mesos-overlay doctor' as root";
    assert_eq!(text, lines("note", "kernel", summary, &[("do", advice)]));
}

#[test]
fn authentication_of_master_is_shown() {
    let authentication = |is_master_authenticated| {
        move |observation: &mut Observation| {
            let report = observation.agent.answer.as_mut().unwrap();
            let principal = "agents".to_owned();
            report.authentication =
                Some(ReportedAuthentication { principal, is_master_authenticated });
        }
    };
    let summary = "the master does not authenticate, and the agent permits that: a container on the \
                   master's host may send in the name of the master";
    let advice = "set 'credentials' of the master";
    let text = findings_after(authentication(false));
    assert_eq!(text, lines("warning", "authentication", summary, &[("do", advice)]));
    let mut observation = healthy_host();
    authentication(true)(&mut observation);
    let findings = crate::overlay::check(&observation);
    let shown = "agent and master authenticate each other, principal 'agents'";
    assert!(findings.iter().any(|finding| finding.summary == shown), "{findings:?}");
}

#[test]
fn wrong_setting_is_reported_with_sysctl_command() {
    let set = |name: &'static str, value| {
        move |observation: &mut Observation| observation.settings.extend([(name.to_owned(), value)])
    };
    let summary = "net.ipv4.ip_forward is 0: this host does not forward packets, so other hosts \
                   do not reach its containers";
    assert_eq!(
        findings_after(set("ipv4/ip_forward", 0)),
        lines(
            "wrong",
            "forwarding",
            summary,
            &[(
                "run",
                "sysctl -w net.ipv4.ip_forward=1  # lets this host forward IPv4 between all of its \
                 devices"
            )]
        )
    );
    assert_eq!(
        findings_on(fresh_host(), set("ipv4/ip_forward", 0)),
        lines("note", "forwarding", summary, &[("do", "no action: the agent sets it")])
    );
    let summary = "device vtep1024 has rp_filter 1, strict: packets of peers are dropped if their \
                   reverse path is another device";
    let command = "sysctl -w net/ipv4/conf/vtep1024/rp_filter=2";
    assert_eq!(
        findings_after(set("ipv4/conf/vtep1024/rp_filter", 1)),
        lines("wrong", "rp-filter", summary, &[("run", command)])
    );
    // The kernel uses the larger value.
    assert_eq!(findings_after(set("ipv4/conf/all/rp_filter", 1)), "");
    let summary = "net.bridge.bridge-nf-call-iptables is 1: packets between containers on one \
                   bridge pass through the FORWARD chain, which accepts them";
    let on = set("bridge/bridge-nf-call-iptables", 1);
    assert_eq!(findings_after(on), lines("note", "br-netfilter", summary, &[]));
    let summary = "950 of 1000 connections are tracked: when the table is full, packets of new \
                   connections are dropped";
    let command = "sysctl -w net.netfilter.nf_conntrack_max=2000  # raises the limit of the whole \
                   host, for about 300 bytes of memory a connection";
    let count = "netfilter/nf_conntrack_count";
    assert_eq!(
        findings_after(set(count, 950)),
        lines("warning", "tables", summary, &[("run", command)])
    );
    let summary = summary.replace("950", "1000");
    assert_eq!(
        findings_after(set(count, 1000)),
        lines("wrong", "tables", &summary, &[("run", command)])
    );
    let summary = "1 neighbor on the VXLAN devices, and the ipv4 table holds 1: kernels that \
                   also count permanent entries remove other entries";
    let command = "sysctl -w net.ipv4.neigh.default.gc_thresh3=2  # raises the limit of the whole \
                   host";
    let thresh = set("ipv4/neigh/default/gc_thresh3", 1);
    assert_eq!(findings_after(thresh), lines("warning", "tables", summary, &[("run", command)]));
}

#[test]
fn old_kernel_with_checksum_offload_is_reported() {
    let summary = "kernel 5.4.0-150-generic leaves the checksums of device vtep1024 to the \
                   hardware: before 5.8 the checksums of masqueraded packets are wrong, and the \
                   peer drops the packets";
    let command = "ethtool -K vtep1024 tx-checksum-ip-generic off";
    let old = |observation: &mut Observation| {
        observation.kernel = "5.4.0-150-generic".to_owned();
        observation.kernel_support = Err(String::new());
    };
    let text = findings_after(old);
    assert!(text.ends_with(&lines("warning", "offload", summary, &[("run", command)])), "{text}");
    let text = findings_after(|observation| {
        old(observation);
        observation.offloads.insert("vtep1024".to_owned(), false);
    });
    let fixed = "no VXLAN device leaves checksums to the hardware";
    assert!(text.ends_with(&lines("ok", "offload", fixed, &[])), "{text}");
}

#[test]
fn device_without_checksum_offload_is_named() {
    let text = findings_after(|observation| {
        observation.offloads.insert("vtep1024".to_owned(), false);
    });
    let summary = "device vtep1024 computes checksums in software: an operator or the agent \
                   (repair_offloads) switched the offload off";
    let advice = "if hardware and hypervisor are fixed: restart the agent, run 'ethtool -K \
                  vtep1024 tx-checksum-ip-generic on', and check with --probe";
    assert!(text.contains(&lines("note", "offload", summary, &[("what to do", advice)])), "{text}");
}

#[test]
fn owner_of_udp_port_is_named() {
    let text = findings_after(|observation| {
        let owner = PortOwner { port: 64_000, pid: 4711, name: "nc".to_owned() };
        observation.port_owners.push(owner);
    });
    let summary = "UDP port 64000 is used by process 4711 (nc): VXLAN cannot use the port, so no \
                   packet of a peer arrives";
    let stop = "see the process with 'ps -fp 4711', and stop its service if this host does not \
                need it, or set another vtep_port at the master";
    assert_eq!(text, lines("wrong", "udp-port", summary, &[("do", stop)]));
    let text = findings_after(|observation| {
        observation.tunnel.observed.foreign_vxlans.push((
            "calico".to_owned(),
            Vni::new(4096).unwrap(),
            64_000,
        ));
    });
    let summary = "VXLAN device calico with VNI 4096 shares UDP port 64000";
    assert_eq!(text, lines("note", "udp-port", summary, &[]));
    let line = "  12: 0A000001:FA00 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
                0  0 12345 2 0000000000000000 0";
    assert_eq!(local_checks::udp_socket(line), Some((64_000, 12_345)));
    assert_eq!(local_checks::udp_socket("  sl  local_address"), None);
}

/// Returns the rules of a table of nftables with one chain that the kernel calls.
fn nft_rules(hook: &str, policy: &str, rules: &[&str]) -> Listing {
    let mut objects = vec![
        r#"{"table": {"family": "inet", "name": "site"}}"#.to_owned(),
        format!(
            r#"{{"chain": {{"family": "inet", "table": "site", "name": "in", "type": "filter",
                "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
        ),
    ];
    objects.extend(rules.iter().enumerate().map(|(index, rule)| {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "site", "chain": "in", "handle": {index},
                "expr": [{rule}]}}}}"#
        )
    }));
    let nft = Some(format!(r#"{{"nftables": [{}]}}"#, objects.join(",")));
    let nft_text =
        "table inet site { # handle 1\n\tchain in { # handle 1\n\t\tudp dport 64000 drop \
                    # handle 1\n\t}\n}\n"
            .to_owned();
    Listing { nft, nft_text, ..Listing::default() }
}

/// Returns the rules of the table filter of iptables.
fn iptables_rules(rules: &str) -> Listing {
    let text = format!("# Generated by iptables-save v1.8.9 (nf_tables)\n*filter\n{rules}\nCOMMIT");
    let saved = SavedTables { family: Family::V4, text, is_default: true };
    Listing { iptables: vec![saved], ..Listing::default() }
}

const TO_TUNNEL: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "udp",
    "field": "dport"}}, "right": 64000}}, {"drop": null}"#;

#[test]
fn rule_that_drops_tunnels_is_reported_with_remedy() {
    let text = findings_after(|observation| {
        observation.rules = nft_rules("input", "accept", &[r#"{"counter": null}"#, TO_TUNNEL]);
    });
    let summary = "rule 'udp dport 64000 drop' (nftables, table inet site, chain in, handle 1): \
                   VXLAN packets of peers to UDP port 64000 are dropped";
    let command = "nft insert rule inet site in udp dport 64000 accept  # adds rules to chain in of \
                   table inet site";
    let advice = "check the purpose of the rule first";
    let remedy = [("run", command), ("do", advice)];
    assert_eq!(text, lines("wrong", "udp-rules", summary, &remedy));
    let text = findings_after(|observation| {
        let accept = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp",
            "field": "dport"}}, "right": 22}}, {"accept": null}"#;
        observation.rules = nft_rules("input", "drop", &[accept]);
    });
    let summary = "the policy of chain in (nftables, table inet site, chain in): VXLAN packets of \
                   peers to UDP port 64000 are dropped";
    assert_eq!(text, lines("wrong", "udp-rules", summary, &remedy));
}

#[test]
fn rule_after_unknown_accept_is_a_warning() {
    let text = findings_after(|observation| {
        let limited = r#"{"limit": {"rate": 5}}, {"accept": null}"#;
        observation.rules = nft_rules("input", "accept", &[limited, TO_TUNNEL]);
    });
    let summary = "rule 'udp dport 64000 drop' (nftables, table inet site, chain in, handle 1): \
                   VXLAN packets of peers to UDP port 64000 may be dropped: an earlier rule has \
                   conditions that doctor cannot check";
    let advice = "check that the packets of all agents are accepted, or run 'nft insert rule inet \
                  site in udp dport 64000 accept', which adds rules to chain in of table inet site";
    assert_eq!(text, lines("warning", "udp-rules", summary, &[("do", advice)]));
}

#[test]
fn dropped_forwarded_packets_are_reported() {
    let rules = ":FORWARD DROP\n:SITE -\n-A FORWARD -p tcp -j SITE\n-A SITE -i lo -j ACCEPT";
    let text = findings_after(|observation| observation.rules = iptables_rules(rules));
    let place = "the policy of chain FORWARD (iptables-nft, table filter, chain FORWARD)";
    let summary = format!(
        "{place}: packets of containers from m-vxlan-1 to peers (192.168.0.0/17) are dropped"
    );
    let command = "iptables -I FORWARD -i vtep1024 -j ACCEPT && iptables -I FORWARD -o vtep1024 -j ACCEPT  \
         # adds rules to chain FORWARD of table filter";
    let advice = "check the purpose of the rule first";
    let remedy = [("run", command), ("do", advice)];
    assert_eq!(text, lines("wrong", "forward-policy", &summary, &remedy));
    for accept in [
        "-A FORWARD -j ACCEPT",
        "-A FORWARD -i vtep+ -j ACCEPT\n-A FORWARD -o vtep1024 -j ACCEPT",
        ":MESOS-OVERLAY -\n-A FORWARD -j MESOS-OVERLAY\n\
         -A MESOS-OVERLAY -s 192.168.0.0/17 -j ACCEPT",
    ] {
        let rules = iptables_rules(&format!(":FORWARD DROP\n{accept}"));
        assert_eq!(findings_after(|observation| observation.rules = rules), "", "{accept}");
    }
    // The agent accepts the packets before the policy applies.
    let text = findings_on(fresh_host(), |observation| {
        observation.rules = iptables_rules(":FORWARD DROP");
    });
    let advice = "no action: the agent creates rules that accept the packets";
    assert_eq!(text, lines("note", "forward-policy", place, &[("do", advice)]));
}

#[test]
fn checks_without_root_are_noted() {
    let mut observation = healthy_host();
    let reason = "firewall: 'nft' failed: Operation not permitted".to_owned();
    let errors = vec![ListingError { is_iptables: false, reason }];
    let rules = Listing { errors, ..Listing::default() };
    (observation.is_root, observation.rules) = (false, rules);
    observation.settings.insert("bridge/bridge-nf-call-iptables".to_owned(), 1);
    observation.docker = Some(Err(DockerFailure::PermissionDenied { message: String::new() }));
    let findings = check(&observation);
    let shown = |check: &str| {
        let of_check = findings.iter().find(|finding| finding.check == check);
        of_check.expect("a finding of every check").to_string()
    };
    let root = [("do", "run 'mesos-overlay doctor' as root")];
    for check in ["udp-rules", "forward-policy"] {
        let summary = "no firewall rules could be read";
        assert_eq!(shown(check), lines("note", check, summary, &root));
    }
    let summary = "not checked: no permission to use Docker's socket";
    assert_eq!(shown("docker"), lines("note", "docker", summary, &root));
    assert!(shown("br-netfilter").ends_with(" FORWARD chain, whose rules could not be read"));
}

#[test]
fn interfering_network_managers_are_reported() {
    let networkd = NetworkManager {
        name: "systemd-networkd",
        exclusion_file: "/etc/systemd/network/00-mesos-overlay.network",
        has_exclusion: false,
    };
    let summary = "systemd-networkd runs and does not ignore the overlays' devices: it removes \
                   addresses and routes that it does not know";
    let advice = "set host_settings to true: the agent then writes \
                  /etc/systemd/network/00-mesos-overlay.network";
    let run = |observation: &mut Observation| observation.managers.networks.push(networkd.clone());
    assert_eq!(findings_after(run), lines("warning", "managers", summary, &[("do", advice)]));
    let text = findings_on(fresh_host(), run);
    assert_eq!(text, lines("note", "managers", summary, &[("do", "no action: the agent sets it")]));
    let summary = "firewalld does not open UDP port 64000: the packets of peers are dropped";
    let command = "firewall-cmd --add-port=64000/udp && firewall-cmd --permanent \
                   --add-port=64000/udp  # adds the port to firewalld's default zone, for every host";
    let text = findings_after(|observation| observation.managers.firewalld = Some(false));
    assert_eq!(text, lines("warning", "managers", summary, &[("run", command)]));
    let summary = "ufw does not open UDP port 64000: the packets of peers are dropped";
    let text = findings_after(|observation| observation.managers.ufw = Some(false));
    assert_eq!(
        text,
        lines(
            "warning",
            "managers",
            summary,
            &[("run", "ufw allow 64000/udp  # adds rules to ufw's own rules")]
        )
    );
}

#[test]
fn missing_cni_plugin_is_reported() {
    let remove_plugin =
        |observation: &mut Observation| observation.plugins.missing.push("host-local");
    let summary = "CNI plugin host-local is not in /usr/lib/cni: tasks of the MesosContainerizer \
                   get no network";
    let advice = "install the CNI plugins, in Debian the package containernetworking-plugins, and \
                  name their directory in cni_plugins_dir";
    assert_eq!(
        findings_after(remove_plugin),
        lines("warning", "cni-plugins", summary, &[("do", advice)])
    );
    let mut configured = healthy_host();
    configured.config.cni_plugins_dir = vec!["/usr/lib/cni".into()];
    assert_eq!(
        findings_on(configured, remove_plugin),
        lines("wrong", "cni-plugins", summary, &[("do", advice)])
    );
}

#[test]
fn missing_overlay_plugin_is_reported() {
    let summary = "CNI plugin mesos-overlay-cni is not in /usr/lib/cni: the agent configures the \
                   plugins bridge and host-local instead";
    let advice = "copy mesos-overlay-cni to a directory of cni_plugins_dir, or set cni_plugin to \
                  bridge";
    let mut configured = healthy_host();
    configured.config.cni_plugins_dir = vec!["/usr/lib/cni".into()];
    configured.config.cni_plugin = CniPlugin::Overlay;
    assert_eq!(
        findings_on(configured, |observation| {
            observation.plugins.missing.push("mesos-overlay-cni");
        }),
        lines("warning", "cni-plugins", summary, &[("do", advice)])
    );
}

#[test]
fn stopped_docker_daemon_is_one_problem() {
    let text = findings_after(|observation| {
        observation.docker =
            Some(Err(DockerFailure::NotRunning { message: "no socket".to_owned() }));
    });
    let summary = "the Docker daemon is not running: no socket: tasks of the DockerContainerizer \
                   get no network";
    let advice = [
        (
            "run",
            "systemctl start docker  # starts the Docker daemon of this host, and containers with \
             a restart policy",
        ),
        (
            "do",
            "if no task on this host needs a Docker network, set network_config.docker_bridge to \
             false in the agent_config",
        ),
    ];
    let daemon = lines("wrong", "docker", summary, &advice);
    assert_eq!(text, daemon);
    // The agent's report of the same cause is not another problem.
    let mut observation = healthy_host();
    observation.docker = Some(Err(DockerFailure::NotRunning { message: "no socket".to_owned() }));
    report_problems(
        &mut observation,
        &[
            ("vxlan-1: docker network vxlan-1: stopped", &["docker network"], Some("vxlan-1")),
            ("vxlan-2: docker network vxlan-2: stopped", &["docker network"], Some("vxlan-2")),
            ("vxlan-3: no space; stopped", &["cni network", "docker network"], Some("vxlan-3")),
        ],
    );
    assert_eq!(
        problem_lines(&observation),
        [
            format!(
                "{daemon}\n{:<7}    also           2 that follow (agent: vxlan-1: docker network \
             vxlan-1: stopped, and 1 more)",
                ""
            ),
            lines(
                "wrong",
                "agent",
                "vxlan-3: no space; stopped: the agent reports this problem and retries",
                &[("do", "fix the reported problem, or see the agent's log")],
            ),
        ]
    );
}

/// Sets the problems that the agent reports: text, parts, and overlay.
fn report_problems(observation: &mut Observation, problems: &[(&str, &[&str], Option<&str>)]) {
    let problems = problems.iter().map(|(text, parts, overlay)| ReportedProblem {
        text: (*text).to_owned(),
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        overlay: overlay.map(str::to_owned),
    });
    let answer = observation.agent.answer.as_mut().unwrap();
    answer.health = Some(("degraded".to_owned(), problems.collect()));
}

/// Returns the lines of the problems, with what follows from them.
fn problem_lines(observation: &Observation) -> Vec<String> {
    let report = Report::new(check(observation), observation);
    let lines = report.lines().into_iter();
    lines.filter(|line| line.starts_with("wrong") || line.starts_with("warning")).collect()
}

#[test]
fn bridge_that_is_down_is_the_only_root() {
    let mut observation = healthy_host();
    let bridge: DeviceName = "m-vxlan-1".parse().unwrap();
    let gateway = "192.168.0.1/25".parse().unwrap();
    observation.tunnel.plan.operations =
        vec![Operation::SetUp(bridge.clone()), Operation::AddAddress(bridge.clone(), gateway)];
    observation.tunnel.plan.problems.push(Problem::from(Detour {
        from: device(),
        to: bridge,
        source: "192.168.2.2".parse().unwrap(),
        destination: "192.168.0.2".parse().unwrap(),
        subnet: "192.168.0.0/25".parse().unwrap(),
        whole: "192.168.0.0/17".parse().unwrap(),
        found: RouteResult::Through { device: Some("eth0".to_owned()), table: 254 },
        rule: None,
        vrf_member: None,
    }));
    report_problems(
        &mut observation,
        &[
            ("vxlan-1: packets leave through eth0", &["tunnel"], Some("vxlan-1")),
            ("packets leave through eth0", &["tunnel"], None),
            ("none of 1 peers answers probes", &["probes"], None),
            // Another overlay has another cause.
            ("vxlan-9: something else", &["tunnel"], Some("vxlan-9")),
        ],
    );
    let shown = problem_lines(&observation);
    assert_eq!(shown.len(), 2, "{shown:#?}");
    assert!(
        shown[0].starts_with("wrong    dataplane        bridge m-vxlan-1 is down (and 1 more"),
        "{}",
        shown[0]
    );
    assert!(shown[0].contains("ip link set m-vxlan-1 up && ip addr add 192.168.0.1/25 dev m-"));
    assert!(shown[0].contains("also           4 that follow (dataplane: packets from vtep1024 to"));
    assert!(shown[1].contains("vxlan-9: something else"), "{}", shown[1]);
}

#[test]
fn causes_are_in_the_json_report() {
    let mut observation = healthy_host();
    observation.settings.insert("ipv4/ip_forward".to_owned(), 0);
    observation.tunnel.plan.operations = vec![Operation::EnableForwarding(device(), Family::V4)];
    report_problems(&mut observation, &[("forwarding is off", &["tunnel"], None)]);
    let report = Report::new(check(&observation), &observation);
    let [root, first, second, ..] = report.entries() else { panic!("three findings") };
    assert_eq!(
        (root.finding.check, root.cause, &root.follows[..]),
        ("forwarding", None, &[1, 2][..])
    );
    assert_eq!((first.cause, second.cause), (Some(0), Some(0)));
    assert_eq!(
        root.effect.as_deref(),
        Some("lets this host forward IPv4 between all of its devices")
    );
    assert_eq!(report.count(Severity::Wrong), 1);
    assert_eq!(report.count_followers(), 2);
    // The correct conditions share a line.
    let last = report.lines().pop().unwrap();
    assert!(last.starts_with("ok       configuration, kernel, firewall, rp-filter, "), "{last}");
}

fn process(pid: u32, name: &str, is_here: bool, distrust: Option<&str>) -> AgentProcess {
    AgentProcess { pid, name: name.to_owned(), is_here, distrust: distrust.map(str::to_owned) }
}

#[test]
fn unknown_configuration_is_noted_without_guesses() {
    let mut observation = fresh_host();
    observation.configuration = Configuration {
        source: None,
        agents: vec![process(7, "mesos-agent", false, None)],
        problems: Vec::new(),
    };
    observation.docker = Some(Err(DockerFailure::NotRunning { message: String::new() }));
    observation.plugins.missing.push("bridge");
    let report = Report::new(check(&observation), &observation);
    assert_eq!(report.count(Severity::Wrong) + report.count(Severity::Warning), 0);
    let lines = report.lines().join("\n");
    assert!(lines.contains("no configuration of an agent found: the checks use the defaults"));
    assert!(
        lines.contains("the agent of process 7 (mesos-agent) runs in another network namespace\n")
    );
    assert!(lines.contains("run 'nsenter --net=/proc/7/ns/net mesos-overlay doctor'"), "{lines}");
    assert!(lines.contains("also           2 that follow (docker: not checked: "), "{lines}");
}

#[test]
fn several_agents_and_changed_file_are_warnings() {
    let text = findings_after(|observation| {
        let file = Some("/etc/agent.json".to_owned());
        let agent = |pid| process(pid, "mesos-overlay", true, None);
        observation.configuration = Configuration {
            source: Some(ConfigSource::Agent { pid: 7, file, is_edited: true }),
            agents: vec![agent(7), agent(8)],
            problems: Vec::new(),
        };
    });
    let changed = lines(
        "warning",
        "configuration",
        "/etc/agent.json was changed after the agent of process 7 started: the checks use the \
         file, and the agent its former content",
        &[("do", "restart the agent to apply the file: its containers keep running")],
    );
    let several = lines(
        "warning",
        "configuration",
        "several agents run on this host: processes 7 (mesos-overlay), 8 (mesos-overlay): one \
         agent at a time programs a host",
        &[(
            "do",
            "process 7 is checked: name another one with --config and --agent, and stop the \
             agents that this host does not need",
        )],
    );
    assert_eq!(text, [changed, several].join("\n"));
}

#[test]
fn missing_docker_and_unfit_network_are_reported() {
    let text = findings_after(|observation| {
        observation.docker =
            Some(Err(DockerFailure::ProgramNotFound { program: PathBuf::from("/no/docker") }));
    });
    let summary = "program '/no/docker' not found: tasks of the DockerContainerizer get no network";
    let advice = "install Docker, or set network_config.docker_bridge to false in the agent_config";
    assert_eq!(text, lines("wrong", "docker", summary, &[("do", advice)]));
    let with_unfit = |containers: &'static [&str]| {
        move |observation: &mut Observation| {
            let containers = containers.iter().map(|&name| name.to_owned()).collect();
            let unfit = vec![("vxlan-1".to_owned(), containers)];
            observation.docker = Some(Ok(EngineReport { engine: "28.5.2".to_owned(), unfit }));
        }
    };
    let summary = "docker network vxlan-1 does not have the gateway mode nat-unprotected: Docker \
                   28.5.2 drops packets of other agents to its containers";
    let advice =
        [("run", "docker network rm vxlan-1"), ("do", "the agent then creates the network again")];
    assert_eq!(findings_after(with_unfit(&[])), lines("wrong", "docker", summary, &advice));
    let advice = "stop the containers web, db and run 'docker network rm vxlan-1': the agent then \
                  creates the network again";
    assert_eq!(
        findings_after(with_unfit(&["web", "db"])),
        lines("wrong", "docker", summary, &[("do", advice)])
    );
}

#[test]
fn problems_of_agent_and_master_are_reported() {
    let text = findings_after(|observation| {
        let answer = observation.agent.answer.as_mut().unwrap();
        let text = "docker hangs".to_owned();
        let problem = ReportedProblem { text, ..ReportedProblem::default() };
        answer.health = Some(("degraded".to_owned(), vec![problem]));
    });
    let summary = "docker hangs: the agent reports this problem and retries";
    let advice = "fix the reported problem, or see the agent's log";
    assert_eq!(text, lines("wrong", "agent", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        let answer = observation.agent.answer.as_mut().unwrap();
        answer.health = Some(("detached".to_owned(), Vec::new()));
    });
    let summary = "the agent at 127.0.0.1:5051 is detached: no master has sent its assignment";
    let advice = "check that the master runs and is reachable, and see the agent's log";
    assert_eq!(text, lines("wrong", "agent", summary, &[("do", advice)]));
    let no_response = || AgentQueryError::NoResponse("Connection refused".to_owned());
    let text = findings_after(|observation| observation.agent.answer = Err(no_response()));
    let summary = "no agent answers at 127.0.0.1:5051: Connection refused: the programmed \
                   dataplane stays, but nothing is repaired and no peer is added";
    let advice = "start the agent, or name its address with --agent";
    assert!(text.starts_with(&lines("warning", "agent", summary, &[("do", advice)])), "{text}");
    let not_an_agent = || AgentQueryError::NotAnAgent("404 Not Found".to_owned());
    let text = findings_after(|observation| observation.agent.answer = Err(not_an_agent()));
    let summary = "something else answers at 127.0.0.1:5051 (404 Not Found), perhaps a Mesos \
                   agent: it is unknown whether an agent maintains the programmed dataplane";
    let advice = "give the address of the overlay agent as --agent";
    assert!(text.starts_with(&lines("warning", "agent", summary, &[("do", advice)])), "{text}");
    let refused = || AgentQueryError::NoPermission("401 Unauthorized".to_owned());
    let text = findings_after(|observation| observation.agent.answer = Err(refused()));
    let summary = "the agent at 127.0.0.1:5051 refuses the request (401 Unauthorized): it is \
                   unknown whether the agent maintains the programmed dataplane";
    let advice = "give the file of a credential that the agent accepts as --credential";
    assert!(text.starts_with(&lines("warning", "agent", summary, &[("do", advice)])), "{text}");
    let text = findings_after(|observation| {
        let master = observation.master.as_mut().unwrap();
        master.answer.as_mut().unwrap().agents.clear();
    });
    let summary = "master 10.0.0.9:5050 does not know this agent, 10.0.0.1: its peers do not know \
                   the agent, and drop its packets";
    let advice = "check that the agent has the same master, and which address the agent advertises";
    assert_eq!(text, lines("wrong", "master", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        observation.master.as_mut().unwrap().answer =
            Err("master 10.0.0.9:5050: connect".to_owned());
    });
    let summary = "master 10.0.0.9:5050: connect: starting agents get no assignment, and running \
                   agents learn of no new peer";
    assert_eq!(text, lines("wrong", "master", summary, &[]));
}

#[test]
fn route_of_refused_overlay_is_no_finding() {
    let text = findings_after(|observation| {
        let route = HostRoute {
            subnet: "192.168.1.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
            gateway: None,
            is_ours: false,
        };
        let tunnel = &mut observation.tunnel;
        tunnel.collisions = collisions(&tunnel.desired, &[route], &[]);
        let key = RouteKey { subnet: "192.168.1.0/24".parse().unwrap(), metric: 0 };
        tunnel.plan.operations = vec![Operation::AddRoute(key, Hop::Unreachable)];
    });
    // The command of the route would cut the host off from its network.
    assert!(text.contains("collides with the host's route"), "{text}");
    assert!(!text.contains("missing change") && !text.contains("route add"), "{text}");
}

#[test]
fn collision_with_route_is_reported() {
    let text = findings_after(|observation| {
        let route = HostRoute {
            subnet: "192.168.77.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
            gateway: "10.0.0.2".parse().ok(),
            is_ours: false,
        };
        observation.tunnel.collisions = collisions(&observation.tunnel.desired, &[route], &[]);
    });
    let summary = "subnet 192.168.0.0/17 of overlay vxlan-1 collides with the host's route \
                   '192.168.77.0/24 via 10.0.0.2 dev eth0': the overlay would make these \
                   addresses unreachable, so the agent refuses the overlay";
    // No remedy removes the route, perhaps the operator's own way to this host.
    let advice = "change the subnet of the overlay at the master, or that of the network behind it";
    assert_eq!(text, lines("wrong", "collisions", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        let route = HostRoute {
            subnet: "192.168.77.0/24".parse().unwrap(),
            device: Some("eth1".to_owned()),
            gateway: None,
            is_ours: false,
        };
        let own = HostRoute {
            subnet: "192.168.0.0/17".parse().unwrap(),
            device: None,
            gateway: None,
            is_ours: true,
        };
        observation.tunnel.collisions = collisions(&observation.tunnel.desired, &[route, own], &[]);
    });
    let summary = "subnet 192.168.0.0/17 of overlay vxlan-1 collides with the host's route \
                   '192.168.77.0/24 dev eth1': the overlay was in use before, so the agent keeps \
                   it until the next reboot";
    // A route of the host's own network must not be deleted.
    let advice = "change the subnet of the overlay at the master, or the addresses of the host";
    assert_eq!(text, lines("wrong", "collisions", summary, &[("do", advice)]));
}

#[test]
fn foreign_device_and_missing_entry_are_reported() {
    let text = findings_after(|observation| {
        let (device, other) = (device(), "other".to_owned());
        let problem = Problem::VniTaken { device, vni: Vni::DEFAULT, port: 64_000, other };
        observation.tunnel.plan.problems.push(problem);
    });
    let summary = "VXLAN device other has VNI 1024 on UDP port 64000, which device vtep1024 \
                   needs: the agent does not change foreign devices, and creates no tunnel";
    let advice = "find its owner with 'ip -d link show other', and let the owner rename or remove \
                  it";
    assert_eq!(text, lines("wrong", "dataplane", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        observation.tunnel.plan.operations.push(Operation::SetUp(device()));
    });
    let summary = "device vtep1024 is down: packets of containers are lost until the agent \
                   repairs it, normally within a second";
    let remedy =
        [("run", "ip link set vtep1024 up"), ("do", "if it does not go away, see the agent's log")];
    assert_eq!(text, lines("wrong", "dataplane", summary, &remedy));
    let text = findings_after(|observation| {
        observation.agent.answer.as_mut().unwrap().is_external = true;
        let kind = "dummy".to_owned();
        observation.tunnel.plan.problems.push(Problem::NameTaken { device: device(), kind });
        observation.tunnel.plan.operations.push(Operation::SetUp(device()));
    });
    let summary = "another program manages the tunnels: they are not compared with the assignment";
    assert_eq!(text, lines("note", "dataplane", summary, &[]));
    let text = findings_after(|observation| {
        let unroutable = &mut observation.tunnel.unroutable;
        unroutable.push(("10.0.0.2".parse().unwrap(), "Network is unreachable".to_owned()));
    });
    let summary = "no route to agent 10.0.0.2: Network is unreachable: tunnel packets to the \
                   agent cannot be sent";
    assert_eq!(text, lines("wrong", "peers", summary, &[("do", "see 'ip route get 10.0.0.2'")]));
    let text = findings_after(|observation| {
        observation.tunnel.observed.state.devices.get_mut(&device()).unwrap().forwards.clear();
    });
    let summary = "device vtep1024 has no FDB entry for 70:b3:d5:80:00:02, the MAC of VTEP \
                   44.128.0.2: packets to the VTEP are dropped";
    let advice = "start the agent, or see its log";
    assert_eq!(text, lines("wrong", "peers", summary, &[("do", advice)]));
}

#[test]
fn mtu_that_does_not_fit_is_reported() {
    let text = findings_after(|observation| {
        let own = "10.0.0.1".parse().unwrap();
        observation.tunnel.observed.underlays.insert(own, underlay(1400));
    });
    let summary = "device vtep1024 has an MTU of 1450, and the underlay carries 1350 \
                   (underlay device eth0 has an MTU of 1400): large packets are fragmented, and many routers drop fragments";
    let advice = "set vtep_mtu to 1350 or less, or remove it";
    let command = "ip link set vtep1024 mtu 1350";
    assert_eq!(text, lines("wrong", "mtu", summary, &[("run", command), ("do", advice)]));
    let mtu_problem = Problem::Mtu(MtuProblem::ContainersDoNotFit {
        device: device(),
        mtu: Mtu::new(1350).unwrap(),
        containers: Mtu::new(1420).unwrap(),
        overhead: 50,
        underlay: "10.0.0.1".parse().unwrap(),
    });
    let text = findings_after(|observation| {
        observation.tunnel.plan.problems.push(mtu_problem.clone());
    });
    let summary = "device vtep1024 has an MTU of 1350, and the containers 1420: large packets of \
                   containers do not fit";
    let advice = "set network_config.overlay_mtu to 1350 or less, or remove it, or, if the network \
                  between the agents carries 1470 bytes, raise the MTU of the host's device eth0 \
                  to 1470";
    assert_eq!(text, lines("wrong", "mtu", summary, &[("do", advice)]));
    let text =
        findings_on(fresh_host(), |observation| observation.tunnel.plan.problems.push(mtu_problem));
    let summary = summary.replace("has", "would have");
    assert_eq!(text, lines("wrong", "mtu", &summary, &[("do", advice)]));
    let text = findings_after(|observation| observation.tunnel.observed.underlays.clear());
    let summary = "no device of this host has the address 10.0.0.1: the tunnels of this agent use \
                   it as their source";
    let advice = "restore the address of the host, or register the agent with another address";
    assert_eq!(text, lines("wrong", "mtu", summary, &[("do", advice)]));
    let mtu_problem = Problem::Mtu(MtuProblem::UnderlayTooSmall {
        device: device(),
        underlay: underlay(575),
        family: Family::V4,
        least: 576,
        subnet: None,
    });
    let text = findings_after(|observation| observation.tunnel.plan.problems.push(mtu_problem));
    let summary = "underlay device eth0 has an MTU of 575, and IPv4 overlays need 576: these \
                   overlays have no connection";
    let advice = "if the network carries 576 bytes, raise it, which changes all traffic of eth0";
    assert_eq!(text, lines("wrong", "mtu", summary, &[("do", advice)]));
    let text = findings_after(|observation| {
        let path = observation.tunnel.observed.underlays.values_mut().next().unwrap();
        path.others.push("eth1".to_owned());
    });
    let summary = "eth1 has the address 10.0.0.1 too: the MTU is that of eth0, which leads to the \
                   peers";
    assert_eq!(text, lines("note", "mtu", summary, &[]));
}

#[test]
fn device_without_checksum_is_named_unless_configured() {
    let mut observation = healthy_host();
    let found = |observation: &mut Observation, has_checksum| {
        let devices = observation.tunnel.observed.state.devices.values_mut();
        devices.for_each(|device| device.link.has_checksum = has_checksum);
        crate::dataplane::dataplane(observation)
    };
    assert_eq!(found(&mut observation, true).len(), 1);
    let findings = found(&mut observation, false);
    let [_, note] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(note.severity, Severity::Note);
    assert!(note.summary.contains("vtep1024 was made without outer UDP checksums"), "{note:?}");
    assert_eq!(note.command.as_ref().map(Command::text), Some("ip link delete vtep1024"));
    observation.config.dataplane.vxlan_checksum = false;
    assert_eq!(found(&mut observation, false).len(), 1);
}

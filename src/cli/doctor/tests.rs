//! Every finding with its whole text: what an operator reads, and what is to be run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::finding::Finding;
use super::observed::{
    AgentAnswer, AgentSeen, Basis, Holder, Managers, MasterSeen, NoAgent, Observed, Plugins, Rules,
    Trials, Tunnel,
};
use super::{host, look, overlay};
use crate::addr::{DeviceName, Family, Mac, Mtu, Vni};
use crate::config::AgentConfig;
use crate::dataplane::{self, Device, Identity, Link, Operation, Problem};
use crate::docker::{Examined, Reason};
use crate::protocol::{AgentInfo, Network, State, Vxlan};
use crate::tunnel::{Desired, HostAddress, HostRoute, Local, Space, collisions};

fn device() -> DeviceName {
    DeviceName::vtep(Vni::DEFAULT)
}

fn mac(last: u8) -> Mac {
    Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, last])
}

fn local() -> Local {
    Local {
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

fn space() -> Space {
    Space {
        overlay: "vxlan-1".parse().unwrap(),
        device: device(),
        whole: vec!["192.168.0.0/17".parse().unwrap()],
        own: vec!["192.168.0.0/24".parse().unwrap()],
    }
}

/// A device with one peer.
fn programmed() -> Device {
    let identity = Identity { vni: Vni::DEFAULT, port: 64_000, family: Family::V4 };
    let mut device = Device::bare(Link {
        identity,
        mac: mac(1),
        mtu: Mtu::new(1450).unwrap(),
        underlay: "10.0.0.1".parse().ok(),
        is_learning: false,
        is_up: true,
        is_marked: true,
        has_ipv6: false,
        is_loose: true,
    });
    device.addresses.extend(local().addresses());
    device.neighbours.insert("44.128.0.2".parse().unwrap(), mac(2));
    device.forwards.insert(mac(2), "10.0.0.2".parse().unwrap());
    device
}

/// A host with an agent on which nothing is wrong.
fn healthy() -> Observed {
    let mut seen = dataplane::Observed::default();
    seen.state.devices.insert(device(), programmed());
    seen.underlay_mtus.insert("10.0.0.1".parse().unwrap(), Mtu::new(1500).unwrap());
    let desired = Desired { locals: vec![local()], spaces: vec![space()], ..Desired::default() };
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
    let state = State { network: network.into(), agents: vec![info.clone().into()] };
    let settings = [
        ("ipv4/ip_forward", 1),
        ("ipv4/conf/all/rp_filter", 0),
        ("ipv4/conf/vtep1024/rp_filter", 2),
        ("netfilter/nf_conntrack_count", 10),
        ("netfilter/nf_conntrack_max", 1000),
        ("ipv4/neigh/default/gc_thresh3", 1024),
    ];
    Observed {
        is_root: true,
        config: AgentConfig::new(PathBuf::new()),
        kernel: "6.1.0-18-amd64".to_owned(),
        trials: Ok(Trials { vxlan: Ok(()), vxlan6: Ok(()), firewall: Ok("nftables") }),
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        holders: Vec::new(),
        managers: Managers::default(),
        rules: Rules { nft: Some(String::new()), ..Rules::default() },
        plugins: Plugins { searched: vec!["/usr/lib/cni".into()], missing: Vec::new() },
        docker: Some(Ok(Examined { engine: "28.5.2".to_owned(), unfit: Vec::new() })),
        offloads: BTreeMap::new(),
        tunnel: Tunnel {
            desired,
            basis: Basis::Assignments,
            seen,
            addresses: vec![HostAddress {
                address: "10.0.0.1/24".parse().unwrap(),
                device: "eth0".to_owned(),
            }],
            ..Tunnel::default()
        },
        agent: AgentSeen {
            address: "127.0.0.1:5051".to_owned(),
            answer: Ok(AgentAnswer {
                info,
                health: Some(("ok".to_owned(), Vec::new())),
                is_external: false,
            }),
        },
        master: Some(MasterSeen { address: "10.0.0.9:5050".to_owned(), answer: Ok(state) }),
    }
}

/// A host before its first agent.
fn fresh() -> Observed {
    let mut observed = healthy();
    observed.tunnel.seen.state = dataplane::State::default();
    observed.tunnel.basis = Basis::Defaults;
    observed.agent.answer = Err(NoAgent::Silent("Connection refused".to_owned()));
    observed.master = None;
    observed
}

fn all(observed: &Observed) -> Vec<Finding> {
    let mut findings = host::check(observed);
    findings.extend(overlay::check(observed));
    findings
}

/// What is found on a healthy host after `break_it`, and not without.
fn found(break_it: impl FnOnce(&mut Observed)) -> String {
    found_on(healthy(), break_it)
}

fn found_on(mut observed: Observed, break_it: impl FnOnce(&mut Observed)) -> String {
    let before = all(&observed);
    break_it(&mut observed);
    let news = all(&observed).into_iter().filter(|finding| !before.contains(finding));
    news.map(|finding| finding.to_string()).collect::<Vec<_>>().join("\n")
}

#[test]
fn on_a_healthy_host_everything_is_ok() {
    let shown: Vec<_> = all(&healthy()).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "ok       kernel           kernel 6.1.0-18-amd64 makes VXLAN devices",
            "ok       firewall         rules are made by nftables",
            "ok       forwarding       this host forwards",
            "ok       rp-filter        packets are taken whose way back is another device",
            "ok       br-netfilter     packets on a bridge do not go through iptables",
            "ok       offload          kernel 6.1.0-18-amd64 calculates checksums right",
            "ok       udp-port         UDP port 64000 is free for VXLAN",
            "ok       udp-rules        no rule drops the packets of peers",
            "ok       forward-policy   no chain drops what is forwarded for the overlays",
            "ok       managers         nothing else manages the network or its firewall",
            "ok       cni-plugins      bridge and host-local are there",
            "ok       docker           Docker 28.5.2 answers",
            "ok       tables           connections and neighbours have room",
            "ok       agent            the agent at 127.0.0.1:5051 has 0 overlays",
            "ok       master           master 10.0.0.9:5050 knows this agent, 10.0.0.1",
            "ok       collisions       the host has nothing where the overlays are",
            "ok       mtu              the underlay has room for packets of 1450 bytes",
            "ok       dataplane        the kernel has what is wanted for the overlays",
            "ok       peers            there is a way to each of 1 peer",
        ]
    );
}

/// The lines of a finding: grade, check and what; then the rest.
fn lines(grade: &str, check: &str, what: &str, more: &[(&str, &str)]) -> String {
    let mut text = format!("{grade:<7}  {check:<15}  {what}");
    for (label, rest) in more {
        let label = if *label == "run" { "  mend it with" } else { "  what to do" };
        text += &format!("\n{:<7}  {label:<15}  {rest}", "");
    }
    text
}

#[test]
fn what_the_kernel_lacks_is_told() {
    let trials = |observed: &mut Observed| observed.trials.clone().unwrap();
    let said = found(|observed| {
        let vxlan = Err("the kernel has no VXLAN".to_owned());
        observed.trials = Ok(Trials { vxlan, ..trials(observed) });
    });
    let what = "kernel 6.1.0-18-amd64 makes no VXLAN device: the kernel has no VXLAN: no tunnel \
                can be made";
    let more = "install the kernel's modules if there is no such module";
    assert_eq!(said, lines("wrong", "kernel", what, &[("run", "modprobe vxlan"), ("do", more)]));
    let no_v6 = |observed: &mut Observed| {
        observed.trials = Ok(Trials { vxlan6: Err("no IPv6".to_owned()), ..trials(observed) });
    };
    let what = "kernel 6.1.0-18-amd64 makes no VXLAN device with IPv6: no IPv6: overlays with IPv6 \
                cannot be made";
    let more = "start the kernel without ipv6.disable=1, or use overlays of IPv4 only";
    assert_eq!(found(no_v6), lines("note", "kernel", what, &[("do", more)]));
    let mut with_v6 = healthy();
    with_v6.tunnel.desired.locals[0].ip6 = "fd01:a::1/64".parse().ok();
    assert_eq!(found_on(with_v6, no_v6), lines("wrong", "kernel", what, &[("do", more)]));
    let said = found(|observed| {
        let firewall = Err("program 'nft' not found".to_owned());
        observed.trials = Ok(Trials { firewall, ..trials(observed) });
    });
    let what = "no rules can be made: program 'nft' not found: what leaves the overlays is not \
                masqueraded, and strangers are not kept out";
    let more = "install nftables, or iptables and ipset, or set firewall to none";
    assert_eq!(said, lines("wrong", "firewall", what, &[("do", more)]));
    let said = found(|observed| observed.trials = Err("that needs root".to_owned()));
    let what = "not tried whether it has VXLAN and the firewall: that needs root";
    let more = "run 'mesos-overlay doctor' as root";
    assert_eq!(said, lines("note", "kernel", what, &[("do", more)]));
}

#[test]
fn settings_are_told_with_the_command_that_changes_them() {
    let set = |name: &'static str, value| {
        move |observed: &mut Observed| observed.settings.extend([(name.to_owned(), value)])
    };
    let what = "net.ipv4.ip_forward is 0: this host does not forward, so other hosts do not reach \
                its containers";
    assert_eq!(
        found(set("ipv4/ip_forward", 0)),
        lines("wrong", "forwarding", what, &[("run", "sysctl -w net.ipv4.ip_forward=1")])
    );
    assert_eq!(
        found_on(fresh(), set("ipv4/ip_forward", 0)),
        lines("note", "forwarding", what, &[("do", "nothing: the agent sets it")])
    );
    let what = "device vtep1024 has rp_filter 1, strict: packets of peers are dropped whose way \
                back is another device";
    let command = "sysctl -w net.ipv4.conf.vtep1024.rp_filter=2";
    assert_eq!(
        found(set("ipv4/conf/vtep1024/rp_filter", 1)),
        lines("wrong", "rp-filter", what, &[("run", command)])
    );
    // The larger of the two counts.
    assert_eq!(found(set("ipv4/conf/all/rp_filter", 1)), "");
    let what = "net.bridge.bridge-nf-call-iptables is 1: packets between containers on one bridge \
                go through the FORWARD chain, which lets them pass";
    let on = set("bridge/bridge-nf-call-iptables", 1);
    assert_eq!(found(on), lines("note", "br-netfilter", what, &[]));
    let what = "950 of 1000 connections are tracked: when the table is full, packets of new \
                connections are dropped";
    let command = "sysctl -w net.netfilter.nf_conntrack_max=2000";
    let count = "netfilter/nf_conntrack_count";
    assert_eq!(found(set(count, 950)), lines("warning", "tables", what, &[("run", command)]));
    let what = what.replace("950", "1000");
    assert_eq!(found(set(count, 1000)), lines("wrong", "tables", &what, &[("run", command)]));
    let what = "1 neighbour on the VXLAN devices, and ipv4 has room for 1: kernels that count permanent \
                ones as well forget the others";
    let command = "sysctl -w net.ipv4.neigh.default.gc_thresh3=2";
    let thresh = set("ipv4/neigh/default/gc_thresh3", 1);
    assert_eq!(found(thresh), lines("warning", "tables", what, &[("run", command)]));
}

#[test]
fn old_kernels_are_told_to_calculate_checksums_themselves() {
    let what = "kernel 5.4.0-150-generic leaves the checksums of device vtep1024 to the hardware: \
                before 5.8 those of masqueraded packets come out wrong, and the peer drops them";
    let command = "ethtool -K vtep1024 tx-checksum-ip-generic off";
    let old = |observed: &mut Observed| {
        observed.kernel = "5.4.0-150-generic".to_owned();
        observed.trials = Err(String::new());
    };
    let said = found(old);
    assert!(said.ends_with(&lines("warning", "offload", what, &[("run", command)])), "{said}");
    let said = found(|observed| {
        old(observed);
        observed.offloads.insert("vtep1024".to_owned(), false);
    });
    let mended = "no VXLAN device leaves checksums to the hardware";
    assert!(said.ends_with(&lines("ok", "offload", mended, &[])), "{said}");
}

#[test]
fn who_has_the_port_is_named() {
    let said = found(|observed| {
        let process = Some((4711, "nc".to_owned()));
        observed.holders.push(Holder { port: 64_000, process });
    });
    let what = "UDP port 64000 is taken by process 4711 (nc): VXLAN cannot have it, so no packet of \
                a peer arrives";
    let stop = "stop it, as with 'kill 4711', or set another vtep_port at the master";
    assert_eq!(said, lines("wrong", "udp-port", what, &[("do", stop)]));
    let said = found(|observed| {
        observed.tunnel.seen.others.push(("calico".to_owned(), Vni::new(4096).unwrap(), 64_000));
    });
    let what = "VXLAN device calico with VNI 4096 shares UDP port 64000";
    assert_eq!(said, lines("note", "udp-port", what, &[]));
    let line = "  12: 0A000001:FA00 00000000:0000 07 00000000:00000000 00:00000000 00000000     0  \
                0 12345 2 0000000000000000 0";
    assert_eq!(look::udp_socket(line), Some((64_000, 12_345)));
    assert_eq!(look::udp_socket("  sl  local_address"), None);
}

#[test]
fn rules_that_drop_the_tunnels_are_told_with_their_removal() {
    let nft = |text: &'static str| {
        move |observed: &mut Observed| observed.rules.nft = Some(text.to_owned())
    };
    let said = found(nft("table inet site { # handle 3
    chain in { # handle 1
        type filter hook input priority filter; policy accept;
        udp dport 64000 counter packets 0 bytes 0 drop # handle 7
    }
}
table inet mesos_overlay { # handle 4
    chain input { # handle 1
        type filter hook input priority -10; policy accept;
        udp dport 64000 ip saddr != @agents4 drop # handle 2
    }
}"));
    let what = "a rule of nftables in table inet site, chain in: 'udp dport 64000 counter packets 0 \
                bytes 0 drop': VXLAN packets to UDP port 64000 are dropped on this host";
    let command = "nft delete rule inet site in handle 7";
    assert_eq!(said, lines("wrong", "udp-rules", what, &[("run", command)]));
    let strict = "table inet site { # handle 3
    chain in { # handle 1
        type filter hook input priority filter; policy drop;
        tcp dport 22 accept # handle 7
    }
}";
    let what = "chain in of nftables table inet site drops what no rule accepts, and none names UDP \
                port 64000: the tunnels of peers end there unheard";
    let command = "nft insert rule inet site in udp dport 64000 accept";
    assert_eq!(found(nft(strict)), lines("warning", "udp-rules", what, &[("run", command)]));
    let among_others = strict.replace("tcp dport 22", "udp dport { 53, 60000-65000 }");
    assert_eq!(found(|observed| observed.rules.nft = Some(among_others)), "");
}

#[test]
fn rules_that_keep_strangers_out_are_no_fault() {
    let table = |rules: &str| {
        format!(
            "table inet site {{ # handle 3\n chain in {{ # handle 1\n  type filter hook input \
             priority filter; policy accept;\n{rules} }}\n}}"
        )
    };
    let advice = "see that those of every agent pass, or remove it: nft delete rule inet site in \
                  handle 8";
    for (rules, drop) in [
        ("", "udp dport 64000 ip saddr != 10.0.0.0/8 drop"),
        ("udp dport 64000 ip saddr 10.0.0.0/8 accept # handle 7\n", "udp dport 64000 drop"),
    ] {
        let listing = table(&format!("{rules}{drop} # handle 8\n"));
        let what = format!(
            "a rule of nftables in table inet site, chain in: '{drop}': VXLAN packets to UDP port \
             64000 are dropped unless others accept them"
        );
        let said = found(|observed| observed.rules.nft = Some(listing));
        assert_eq!(said, lines("warning", "udp-rules", &what, &[("do", advice)]));
    }
    let rule = "INPUT ! -s 10.0.0.0/8 -p udp -m udp --dport 64000 -j DROP";
    let said = found(|observed| observed.rules.iptables = Some(format!("-A {rule}\n")));
    let what = format!(
        "a rule of iptables: '{rule}': VXLAN packets to UDP port 64000 are dropped unless others \
         accept them"
    );
    let advice = format!("see that those of every agent pass, or remove it: iptables -D {rule}");
    assert_eq!(said, lines("warning", "udp-rules", &what, &[("do", &advice)]));
}

#[test]
fn what_is_forwarded_may_be_dropped_by_nftables_alone() {
    let table = |rule: &str| {
        let listing = format!(
            "table inet site {{ # handle 3\n chain way {{ # handle 1\n  type filter hook forward \
             priority filter; policy drop;\n{rule} # handle 2\n }}\n}}"
        );
        move |observed: &mut Observed| observed.rules.nft = Some(listing)
    };
    let what = "chain way of nftables table inet site drops what no rule accepts, and none names \
                device vtep1024: packets between the tunnels and the containers are dropped";
    let command = "nft insert rule inet site way iifname vtep1024 accept && nft insert rule inet \
                   site way oifname vtep1024 accept";
    let expected = lines("warning", "forward-policy", what, &[("run", command)]);
    assert_eq!(found(table("ct state established accept")), expected);
    assert_eq!(found(table("iifname \"vtep1024\" accept")), "");
    assert_eq!(found(table("iifname \"vtep*\" accept")), "");
    for family in ["table ip6 site", "table bridge site"] {
        let mut observed = healthy();
        table("ct state established accept")(&mut observed);
        let listing = observed.rules.nft.unwrap().replace("table inet site", family);
        let said = found(|observed| observed.rules.nft = Some(listing));
        assert_eq!(said, "", "its packets do not meet {family}");
    }
}

#[test]
fn who_is_not_root_is_told_what_could_not_be_looked_at() {
    let mut observed = healthy();
    (observed.is_root, observed.rules) = (false, Rules::default());
    observed.settings.insert("bridge/bridge-nf-call-iptables".to_owned(), 1);
    observed.docker = Some(Err(Reason::PermissionDenied { said: String::new() }));
    let all = all(&observed);
    let shown = |check: &str| {
        let of_check = all.iter().find(|finding| finding.check == check);
        of_check.expect("every check finds something").to_string()
    };
    let root = [("do", "run 'mesos-overlay doctor' as root")];
    for check in ["udp-rules", "forward-policy"] {
        let what = "no rules of a firewall could be read";
        assert_eq!(shown(check), lines("note", check, what, &root));
    }
    let what = "not asked: its socket is not for us";
    assert_eq!(shown("docker"), lines("note", "docker", what, &root));
    assert!(shown("br-netfilter").ends_with(" FORWARD chain, whose rules could not be read"));
}

#[test]
fn rules_of_iptables_are_read_as_well() {
    let said = found(|observed| {
        observed.rules.iptables = Some(
            "-P INPUT DROP\n-P FORWARD DROP\n-A INPUT -p udp -m udp --dport 64000 -j DROP\n"
                .to_owned(),
        );
    });
    let first = lines(
        "wrong",
        "udp-rules",
        "a rule of iptables: 'INPUT -p udp -m udp --dport 64000 -j DROP': VXLAN packets to UDP port \
         64000 are dropped on this host",
        &[("run", "iptables -D INPUT -p udp -m udp --dport 64000 -j DROP")],
    );
    let second = lines(
        "warning",
        "udp-rules",
        "chain INPUT of iptables drops what no rule accepts, and none names UDP port 64000: the \
         tunnels of peers end there unheard",
        &[("run", "iptables -I INPUT -p udp --dport 64000 -j ACCEPT")],
    );
    let third = lines(
        "wrong",
        "forward-policy",
        "chain FORWARD of iptables drops what no rule accepts, and the agent's are not there: \
         packets between the tunnels and the containers are dropped",
        &[(
            "run",
            "iptables -I FORWARD -i vtep1024 -j ACCEPT && iptables -I FORWARD -o vtep1024 -j ACCEPT",
        )],
    );
    assert_eq!(said, [first, second, third].join("\n"));
    let said = found(|observed| {
        observed.rules.iptables = Some(
            "-P FORWARD DROP\n-A FORWARD -j MESOS-OVERLAY\n-A INPUT -j MESOS-OVERLAY-IN\n\
             -A MESOS-OVERLAY-IN -p udp --dport 64000 -j DROP\n"
                .to_owned(),
        );
    });
    assert_eq!(said, "", "those are ours");
    for accept in ["-j ACCEPT", "-o vtep1024 -j ACCEPT"] {
        let listing = format!("-P FORWARD DROP\n-A FORWARD {accept}\n");
        assert_eq!(found(|observed| observed.rules.iptables = Some(listing)), "", "{accept}");
    }
}

#[test]
fn managers_are_told_to_leave_the_overlays_alone() {
    let networkd = ("systemd-networkd", "/etc/systemd/network/00-mesos-overlay.network", false);
    let what = "systemd-networkd runs and was not told to leave the overlays' devices alone: it \
                takes addresses and routes away that it does not know";
    let more = "set host_settings to true, with which the agent writes \
                /etc/systemd/network/00-mesos-overlay.network";
    let run = |observed: &mut Observed| observed.managers.networks.push(networkd);
    assert_eq!(found(run), lines("warning", "managers", what, &[("do", more)]));
    let said = found_on(fresh(), run);
    assert_eq!(said, lines("note", "managers", what, &[("do", "nothing: the agent sets it")]));
    let what = "firewalld does not open UDP port 64000: the tunnels of peers end there unheard";
    let command = "firewall-cmd --add-port=64000/udp && firewall-cmd --permanent \
                   --add-port=64000/udp";
    let said = found(|observed| observed.managers.firewalld = Some(false));
    assert_eq!(said, lines("warning", "managers", what, &[("run", command)]));
    let what = "ufw does not open UDP port 64000: the tunnels of peers end there unheard";
    let said = found(|observed| observed.managers.ufw = Some(false));
    assert_eq!(said, lines("warning", "managers", what, &[("run", "ufw allow 64000/udp")]));
}

#[test]
fn what_container_runtimes_lack_is_told() {
    let lack = |observed: &mut Observed| observed.plugins.missing.push("host-local");
    let what = "CNI plugin host-local is not in /usr/lib/cni: tasks of the MesosContainerizer get \
                no network";
    let more = "install the CNI plugins, in Debian the package containernetworking-plugins, and \
                name their directory in cni_plugins_dir";
    assert_eq!(found(lack), lines("warning", "cni-plugins", what, &[("do", more)]));
    let mut told = healthy();
    told.config.cni_plugins_dir = vec!["/usr/lib/cni".into()];
    assert_eq!(found_on(told, lack), lines("wrong", "cni-plugins", what, &[("do", more)]));
    let said = found(|observed| {
        observed.docker = Some(Err(Reason::NotRunning { said: "no socket".to_owned() }));
    });
    let what = "the Docker daemon is not running: no socket: tasks of the DockerContainerizer get \
                no network";
    let more = [
        ("run", "systemctl start docker"),
        (
            "do",
            "if no task here is to have a network of Docker's, set network_config.docker_bridge to \
             false in the agent_config",
        ),
    ];
    let daemon = lines("wrong", "docker", what, &more);
    assert_eq!(said, daemon);
    // What the agent says of the same is not one more thing to mend.
    let down = Reason::NotRunning { said: "no socket".to_owned() };
    let problems =
        ["vxlan-1", "vxlan-2"].map(|name| format!("{name}: docker network {name}: {down}"));
    let said = found(|observed| {
        observed.docker = Some(Err(down.clone()));
        let answer = observed.agent.answer.as_mut().unwrap();
        let other = "vxlan-3: no space".to_owned();
        let all = problems.iter().cloned().chain([other]).collect();
        answer.health = Some(("degraded".to_owned(), all));
    });
    let what = "vxlan-3: no space: the agent says so, and tries again by itself";
    let other = lines("wrong", "agent", what, &[("do", "mend what it says, or see its log")]);
    let what = "the agent has 2 problems for want of the Docker daemon, as told above";
    let rest = lines("note", "agent", what, &[("do", "mend that: it tries again by itself")]);
    assert_eq!(said, [daemon, other, rest].join("\n"));
    let said = found(|observed| {
        observed.docker =
            Some(Err(Reason::ProgramNotFound { program: PathBuf::from("/no/docker") }));
    });
    let what = "program '/no/docker' not found: tasks of the DockerContainerizer get no network";
    let more = "install Docker, or set network_config.docker_bridge to false in the agent_config";
    assert_eq!(said, lines("wrong", "docker", what, &[("do", more)]));
    let unfit = |containers: &'static [&str]| {
        move |observed: &mut Observed| {
            let containers = containers.iter().map(|&name| name.to_owned()).collect();
            let unfit = vec![("vxlan-1".to_owned(), containers)];
            observed.docker = Some(Ok(Examined { engine: "28.5.2".to_owned(), unfit }));
        }
    };
    let what = "docker network vxlan-1 has not the gateway mode nat-unprotected: Docker 28.5.2 \
                drops what other agents send to its containers";
    let more = [("run", "docker network rm vxlan-1"), ("do", "the agent then makes it anew")];
    assert_eq!(found(unfit(&[])), lines("wrong", "docker", what, &more));
    let more = "end the containers web, db and run 'docker network rm vxlan-1': the agent then \
                makes it anew";
    assert_eq!(found(unfit(&["web", "db"])), lines("wrong", "docker", what, &[("do", more)]));
}

#[test]
fn what_agent_and_master_say_is_told() {
    let said = found(|observed| {
        let answer = observed.agent.answer.as_mut().unwrap();
        answer.health = Some(("degraded".to_owned(), vec!["docker hangs".to_owned()]));
    });
    let what = "docker hangs: the agent says so, and tries again by itself";
    let more = "mend what it says, or see its log";
    assert_eq!(said, lines("wrong", "agent", what, &[("do", more)]));
    let said = found(|observed| {
        let answer = observed.agent.answer.as_mut().unwrap();
        answer.health = Some(("detached".to_owned(), Vec::new()));
    });
    let what = "the agent at 127.0.0.1:5051 is detached: no master has given it its share";
    let more = "see whether the master runs and is reached, and the agent's log";
    assert_eq!(said, lines("wrong", "agent", what, &[("do", more)]));
    let silent = || NoAgent::Silent("Connection refused".to_owned());
    let said = found(|observed| observed.agent.answer = Err(silent()));
    let what = "no agent answers at 127.0.0.1:5051: Connection refused: what is programmed stays, \
                but nothing is repaired and no peer is added";
    let more = "start the agent, or name its address with --agent";
    assert!(said.starts_with(&lines("warning", "agent", what, &[("do", more)])), "{said}");
    let stranger = || NoAgent::Stranger("404 Not Found".to_owned());
    let said = found(|observed| observed.agent.answer = Err(stranger()));
    let what = "something else answers at 127.0.0.1:5051 (404 Not Found), perhaps a Mesos agent: \
                whether anybody looks after what is programmed is not known";
    let more = "give the address of the overlay agent as --agent";
    assert!(said.starts_with(&lines("warning", "agent", what, &[("do", more)])), "{said}");
    let said = found(|observed| {
        let master = observed.master.as_mut().unwrap();
        master.answer.as_mut().unwrap().agents.clear();
    });
    let what = "master 10.0.0.9:5050 does not know this agent, 10.0.0.1: its peers are not told of \
                it, and drop its packets";
    let more = "see whether both name the same master, and which address the agent advertises";
    assert_eq!(said, lines("wrong", "master", what, &[("do", more)]));
    let said = found(|observed| {
        observed.master.as_mut().unwrap().answer = Err("master 10.0.0.9:5050: connect".to_owned());
    });
    let what = "master 10.0.0.9:5050: connect: agents that start get nothing, and hear of no new \
                peer";
    assert_eq!(said, lines("wrong", "master", what, &[]));
}

#[test]
fn what_is_in_the_way_of_the_overlays_is_told() {
    let said = found(|observed| {
        let route = HostRoute {
            subnet: "192.168.77.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
            gateway: "10.0.0.2".parse().ok(),
            is_ours: false,
        };
        observed.tunnel.collisions = collisions(&observed.tunnel.desired, &[route], &[]);
    });
    let what = "subnet 192.168.0.0/17 of overlay vxlan-1 collides with the host's route \
                '192.168.77.0/24 via 10.0.0.2 dev eth0': what is there would be cut off, so the \
                agent refuses the overlay";
    let more = "give one of the two other addresses: the overlay's are the master's; if nobody \
                needs the route, 'ip route delete 192.168.77.0/24'";
    assert_eq!(said, lines("wrong", "collisions", what, &[("do", more)]));
    let said = found(|observed| {
        let route = HostRoute {
            subnet: "192.168.77.0/24".parse().unwrap(),
            device: Some("eth1".to_owned()),
            gateway: None,
            is_ours: false,
        };
        let ours = HostRoute {
            subnet: "192.168.0.0/17".parse().unwrap(),
            device: None,
            gateway: None,
            is_ours: true,
        };
        observed.tunnel.collisions = collisions(&observed.tunnel.desired, &[route, ours], &[]);
    });
    let what = "subnet 192.168.0.0/17 of overlay vxlan-1 collides with the host's route \
                '192.168.77.0/24 dev eth1': it came later, so the agent keeps the overlay as it is, \
                until the next reboot";
    // Its own network is nobody's to delete.
    let more = "give one of the two other addresses: the overlay's are the master's";
    assert_eq!(said, lines("wrong", "collisions", what, &[("do", more)]));
}

#[test]
fn what_is_in_the_way_of_the_tunnels_is_told() {
    let said = found(|observed| {
        let (device, other) = (device(), "other".to_owned());
        let taken = Problem::VniTaken { device, vni: Vni::DEFAULT, port: 64_000, other };
        observed.tunnel.plan.problems.push(taken);
    });
    let what = "VXLAN device other has VNI 1024 on UDP port 64000, which device vtep1024 needs: the \
                agent leaves alone what is not its own, and makes no tunnel";
    let more = "see whose it is; if nobody needs it, 'ip link delete other'";
    assert_eq!(said, lines("wrong", "dataplane", what, &[("do", more)]));
    let said = found(|observed| {
        observed.tunnel.plan.operations.push(Operation::SetUp(device()));
    });
    let what = "the kernel is not as it is wanted, to do: set device vtep1024 up: an agent that \
                runs repairs it within its verify_interval";
    assert_eq!(said, lines("wrong", "dataplane", what, &[("run", "ip link set vtep1024 up")]));
    let said = found(|observed| {
        observed.agent.answer.as_mut().unwrap().is_external = true;
        let kind = "dummy".to_owned();
        observed.tunnel.plan.problems.push(Problem::NameTaken { device: device(), kind });
        observed.tunnel.plan.operations.push(Operation::SetUp(device()));
    });
    let what = "the tunnels are left to somebody else, and not compared with what is assigned";
    assert_eq!(said, lines("note", "dataplane", what, &[]));
    let said = found(|observed| {
        let unroutable = &mut observed.tunnel.unroutable;
        unroutable.push(("10.0.0.2".parse().unwrap(), "Network is unreachable".to_owned()));
    });
    let what = "no way to agent 10.0.0.2: Network is unreachable: packets in the tunnel to it \
                cannot be sent";
    assert_eq!(said, lines("wrong", "peers", what, &[("do", "see 'ip route get 10.0.0.2'")]));
    let said = found(|observed| {
        observed.tunnel.seen.state.devices.get_mut(&device()).unwrap().forwards.clear();
    });
    let what = "nothing says behind which agent VTEP 44.128.0.2 is, 70:b3:d5:80:00:02 on vtep1024: \
                packets to it are dropped";
    let more = "start the agent, or see its log";
    assert_eq!(said, lines("wrong", "peers", what, &[("do", more)]));
}

#[test]
fn an_mtu_that_does_not_fit_is_told() {
    let said = found(|observed| {
        let mtu = Mtu::new(1400).unwrap();
        observed.tunnel.seen.underlay_mtus.insert("10.0.0.1".parse().unwrap(), mtu);
    });
    let what = "device vtep1024 has an MTU of 1450, and the underlay has room for 1350: large \
                packets are cut in pieces, which much equipment drops";
    let more = "set vtep_mtu to 1350 or less, or leave it out";
    let command = "ip link set vtep1024 mtu 1350";
    assert_eq!(said, lines("wrong", "mtu", what, &[("run", command), ("do", more)]));
    let too_small = Problem::ContainersDoNotFit {
        device: device(),
        mtu: Mtu::new(1350).unwrap(),
        containers: Mtu::new(1420).unwrap(),
        overhead: 50,
        underlay: "10.0.0.1".parse().unwrap(),
    };
    let said = found(|observed| {
        observed.tunnel.plan.problems.push(too_small.clone());
    });
    let what = "device vtep1024 has an MTU of 1350, and the containers 1420: large packets of \
                containers do not fit";
    let more = "set network_config.overlay_mtu to 1350 or less, or, if the network between the \
                agents carries 1470 bytes, 'ip link set eth0 mtu 1470'";
    assert_eq!(said, lines("wrong", "mtu", what, &[("do", more)]));
    let said = found_on(fresh(), |observed| observed.tunnel.plan.problems.push(too_small));
    let what = what.replace("has", "would have");
    assert_eq!(said, lines("wrong", "mtu", &what, &[("do", more)]));
    let said = found(|observed| observed.tunnel.seen.underlay_mtus.clear());
    let what = "no device of this host has the address 10.0.0.1: the tunnels of this agent begin \
                there";
    let more = "give the host its address back, or register with another one";
    assert_eq!(said, lines("wrong", "mtu", what, &[("do", more)]));
}

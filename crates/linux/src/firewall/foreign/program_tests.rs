//! Rules as other programs make them, together with the chains of the agent where they exist.

use super::listing::Listing;
use super::tests::{found_in, iptables_filter, nft_table, summary};

/// Removes the indentation.
fn filter(rules: &str) -> Listing {
    iptables_filter(&rules.lines().map(str::trim).collect::<Vec<_>>().join("\n"))
}

/// Rules of Docker 20.10 with one user-defined network.
const DOCKER: &str = "
    :INPUT ACCEPT
    :FORWARD DROP
    :OUTPUT ACCEPT
    :DOCKER -
    :DOCKER-ISOLATION-STAGE-1 -
    :DOCKER-ISOLATION-STAGE-2 -
    :DOCKER-USER -
    :MESOS-OVERLAY -
    :MESOS-OVERLAY-SRC -
    :MESOS-OVERLAY-TUN -
    -A FORWARD -j DOCKER-USER
    -A FORWARD -j DOCKER-ISOLATION-STAGE-1
    -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A FORWARD -o docker0 -j DOCKER
    -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
    -A FORWARD -i docker0 -o docker0 -j ACCEPT
    -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
    -A DOCKER-ISOLATION-STAGE-1 -i m-vxlan-1 ! -o m-vxlan-1 -j DOCKER-ISOLATION-STAGE-2
    -A DOCKER-ISOLATION-STAGE-1 -j RETURN
    -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
    -A DOCKER-ISOLATION-STAGE-2 -o m-vxlan-1 -j DROP
    -A DOCKER-ISOLATION-STAGE-2 -j RETURN
    -A MESOS-OVERLAY -s 192.168.0.0/17 -g MESOS-OVERLAY-SRC
    -A MESOS-OVERLAY -i vtep1024 -g MESOS-OVERLAY-TUN
    -A MESOS-OVERLAY-SRC -d 192.168.0.0/17 -j ACCEPT
    -A MESOS-OVERLAY-SRC -o vtep1024 -j ACCEPT
    -A MESOS-OVERLAY-TUN -d 192.168.0.0/17 -j ACCEPT";

#[test]
fn docker_drops_unless_managed_chain_accepts() {
    let listing = filter(&format!("{DOCKER}\n-A DOCKER-USER -j RETURN"));
    assert_eq!(summary(&listing), ">< FORWARD policy");
    assert_eq!(found_in(&listing)[0].owner, Some("Docker"));
    let accepted = filter(&format!("{DOCKER}\n-A DOCKER-USER -j MESOS-OVERLAY"));
    assert_eq!(summary(&accepted), "");
}

#[test]
fn docker_28_drops_only_unpublished_networks() {
    let rules = |mode: &str| {
        filter(&format!(
            ":FORWARD ACCEPT\n:DOCKER -\n:DOCKER-FORWARD -\n:DOCKER-CT -\n:DOCKER-BRIDGE -
            -A FORWARD -j DOCKER-FORWARD
            -A DOCKER-FORWARD -j DOCKER-CT
            -A DOCKER-FORWARD -j DOCKER-BRIDGE
            -A DOCKER-FORWARD -i m-vxlan-1 -j ACCEPT
            -A DOCKER-CT -o m-vxlan-1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A DOCKER-BRIDGE -o m-vxlan-1 -j DOCKER
            -A DOCKER ! -i m-vxlan-1 -o m-vxlan-1 -j {mode}"
        ))
    };
    assert_eq!(summary(&rules("ACCEPT")), "");
    assert_eq!(summary(&rules("DROP")), "< DOCKER 1");
}

#[test]
fn kubernetes_and_calico_are_no_obstacles() {
    let rules = "
        :INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT
        :KUBE-FIREWALL -\n:KUBE-FORWARD -\n:KUBE-SERVICES -
        :cali-FORWARD -\n:cali-INPUT -\n:cali-from-hep-forward -\n:cali-from-wl-dispatch -
        -A INPUT -m comment --comment \"cali:Cz_u1IQiXIMmKD4c\" -j cali-INPUT
        -A INPUT -j KUBE-FIREWALL
        -A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD
        -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
        -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
        -A OUTPUT -j KUBE-FIREWALL
        -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate \
         RELATED,ESTABLISHED,DNAT -j DROP
        -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
        -A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name dropped -j DROP
        -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
        -A KUBE-SERVICES -d 10.96.3.7/32 -p tcp -m comment --comment \"a has no endpoints\" -m tcp \
         --dport 80 -j REJECT --reject-with icmp-port-unreachable
        -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
        -A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
        -A cali-FORWARD -i cali+ -j cali-from-wl-dispatch
        -A cali-INPUT -p udp -m comment --comment \"VXLAN packets\" -m multiport --dports 4789 -m \
         addrtype --dst-type LOCAL -j DROP
        -A cali-INPUT -i cali+ -j DROP
        -A cali-from-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP
        -A FORWARD -m comment --comment \"Policy accepted packet.\" -m mark --mark \
         0x10000/0x10000 -j ACCEPT";
    assert_eq!(summary(&filter(rules)), "");
    let strict = rules.replace(":FORWARD ACCEPT", ":FORWARD DROP");
    assert_eq!(summary(&filter(&strict)), ">< FORWARD policy");
}

#[test]
fn ufw_drops_unless_port_and_devices_are_allowed() {
    let rules = |allowed: &str| {
        filter(&format!(
            ":INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT
            :ufw-before-input -\n:ufw-before-forward -\n:ufw-not-local -\n:ufw-user-input -
            :ufw-user-forward -\n:ufw-after-input -\n:ufw-skip-to-policy-input -
            -A INPUT -j ufw-before-input
            -A INPUT -j ufw-after-input
            -A FORWARD -j ufw-before-forward
            -A ufw-before-input -i lo -j ACCEPT
            -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
            -A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
            -A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
            -A ufw-before-input -j ufw-not-local
            -A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
            -A ufw-before-input -j ufw-user-input
            -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
            -A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
            -A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
            -A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG
            -A ufw-not-local -j DROP
            -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A ufw-before-forward -j ufw-user-forward
            -A ufw-after-input -p udp -m udp --dport 137 -j ufw-skip-to-policy-input
            -A ufw-skip-to-policy-input -j DROP
            {allowed}"
        ))
    };
    assert_eq!(summary(&rules("")), ">< FORWARD policy, i INPUT policy");
    assert!(found_in(&rules("")).iter().all(|found| found.owner == Some("ufw")));
    let allowed = "-A ufw-user-input -p udp -m udp --dport 64000 -j ACCEPT
                   -A ufw-user-forward -i vtep1024 -j ACCEPT
                   -A ufw-user-forward -o vtep1024 -j ACCEPT";
    assert_eq!(summary(&rules(allowed)), "");
}

#[test]
fn firewalld_rejects_unless_devices_are_trusted() {
    const STATE: &str = r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},
        "right":["established","related"]}},{"accept":null}"#;
    const LOOPBACK: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},
        "right":"lo"}},{"accept":null}"#;
    const POLICIES: &str = r#"{"jump":{"target":"sub"}}"#;
    const REJECT: &str = r#"{"reject":{"type":"icmpx","expr":"admin-prohibited"}}"#;
    let zone = |input: &str, output: &str, verdict: &str| {
        format!(
            r#"sub:{{"match":{{"op":"==","left":{{"meta":{{"key":"iifname"}}}},
                "right":"{input}"}}}},
            {{"match":{{"op":"==","left":{{"meta":{{"key":"oifname"}}}},"right":"{output}"}}}},
            {{"{verdict}":null}}"#
        )
    };
    let rules = |zones: &[String]| {
        let base = [STATE, LOOPBACK, POLICIES, REJECT];
        let zones = zones.iter().map(String::as_str);
        nft_table("inet", "forward", "drop", &base.into_iter().chain(zones).collect::<Vec<_>>())
    };
    assert_eq!(summary(&rules(&[])), ">< c 3");
    let public = zone("eth0", "eth1", "accept");
    assert_eq!(summary(&rules(&[public])), ">< c 3");
    let trusted =
        [zone("m-vxlan-1", "vtep1024", "accept"), zone("vtep1024", "m-vxlan-1", "accept")];
    assert_eq!(summary(&rules(&trusted)), "");
    assert_eq!(summary(&rules(&trusted[..1])), "< c 3");
}

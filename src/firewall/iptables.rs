//! The rules in chains of our own, for two purposes: where there is no nft, all of them; where
//! there is, what it cannot do: a table of nftables cannot accept what the FORWARD chain of
//! iptables drops, so the acceptance has to be there. Docker's chains are not touched but for
//! `DOCKER-USER`, which it leaves to others.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::ruleset::{AgentNews, Ruleset};
use crate::addr::{Family, Subnet};

/// Chain that accepts before others, and isolates overlays.
pub const FORWARD: &str = "MESOS-OVERLAY";
/// Chain that accepts after Docker's have had their say.
pub(super) const OUTSIDE: &str = "MESOS-OVERLAY-OUT";
/// Chain that drops VXLAN packets of strangers.
pub(super) const INPUT: &str = "MESOS-OVERLAY-IN";
/// Chain that masquerades.
pub(super) const LEAVING: &str = "MESOS-OVERLAY";

/// All of them.
pub(super) const CHAINS: [&str; 4] = [FORWARD, OUTSIDE, INPUT, LEAVING];
/// What the name of a set ends with while it is filled.
pub(super) const ASIDE: &str = "-new";

/// Which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that nft cannot make.
    Forward,
    /// All of them.
    Everything,
}

/// Name of the set with the addresses of agents.
pub(super) const fn agents_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "mesos-overlay-4",
        Family::V6 => "mesos-overlay-6",
    }
}

/// The chains, for `iptables-restore --noflush`, which writes a table at once.
pub(super) fn script(rules: &Ruleset, family: Family, scope: Scope) -> String {
    let spaces = rules.subnets(family, None);
    let mut filter = format!("*filter\n:{FORWARD} - [0:0]\n:{OUTSIDE} - [0:0]\n");
    if scope == Scope::Everything && rules.isolate {
        isolate(&mut filter, rules, family);
    }
    for space in &spaces {
        for other in &spaces {
            let _ = writeln!(filter, "-A {FORWARD} -s {space} -d {other} -j ACCEPT");
        }
        for device in &rules.devices {
            let _ = writeln!(filter, "-A {FORWARD} -i {device} -d {space} -j ACCEPT");
            let _ = writeln!(filter, "-A {FORWARD} -o {device} -s {space} -j ACCEPT");
        }
        let _ = writeln!(filter, "-A {OUTSIDE} -s {space} -j ACCEPT");
        let established = "-m conntrack --ctstate RELATED,ESTABLISHED";
        let _ = writeln!(filter, "-A {OUTSIDE} -d {space} {established} -j ACCEPT");
    }
    if scope == Scope::Forward {
        return filter + "COMMIT\n";
    }
    let _ = writeln!(filter, ":{INPUT} - [0:0]");
    if rules.agents.is_some() {
        let set = agents_set(family);
        for port in &rules.ports {
            let strangers = format!("-m set ! --match-set {set} src");
            let _ = writeln!(filter, "-A {INPUT} -p udp --dport {port} {strangers} -j DROP");
        }
    }
    filter.push_str("COMMIT\n");
    filter + &leaving(rules, &spaces)
}

fn isolate(filter: &mut String, rules: &Ruleset, family: Family) {
    for name in rules.spaces.keys() {
        for own in rules.subnets(family, Some(name)) {
            for other in rules.spaces.keys().filter(|other| *other != name) {
                for to in rules.subnets(family, Some(other)) {
                    let _ = writeln!(filter, "-A {FORWARD} -s {own} -d {to} -j DROP");
                }
            }
        }
    }
}

fn leaving(rules: &Ruleset, spaces: &[Subnet]) -> String {
    let mut nat = format!("*nat\n:{LEAVING} - [0:0]\n");
    if rules.masquerade {
        for device in &rules.devices {
            let _ = writeln!(nat, "-A {LEAVING} -o {device} -j RETURN");
        }
        for space in spaces {
            let _ = writeln!(nat, "-A {LEAVING} -d {space} -j RETURN");
        }
        for space in spaces {
            let _ = writeln!(nat, "-A {LEAVING} -s {space} -j MASQUERADE");
        }
    }
    nat + "COMMIT\n"
}

/// The set of agents, for `ipset restore`: filled aside and put in place at once.
pub(super) fn sets(rules: &Ruleset, family: Family) -> String {
    let set = agents_set(family);
    let kind = if family == Family::V4 { "inet" } else { "inet6" };
    let mut text = String::new();
    let aside = format!("{set}{ASIDE}");
    for name in [set, &aside] {
        let _ = writeln!(text, "create -exist {name} hash:ip family {kind} maxelem 1048576");
    }
    let _ = writeln!(text, "flush {aside}");
    for agent in rules.agents(family) {
        let _ = writeln!(text, "add -exist {aside} {agent}");
    }
    let _ = write!(text, "swap {set} {aside}\ndestroy {aside}\n");
    text
}

/// What brings the sets of agents up to date, for `ipset restore`.
pub(super) fn agents(news: &AgentNews) -> String {
    let set = |agent: &IpAddr| match agent {
        IpAddr::V4(_) => agents_set(Family::V4),
        IpAddr::V6(_) => agents_set(Family::V6),
    };
    let mut text = String::new();
    for (how, agents) in [("add", &news.came), ("del", &news.gone)] {
        for agent in agents {
            let _ = writeln!(text, "{how} {} {agent}", set(agent));
        }
    }
    text
}

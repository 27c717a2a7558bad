//! Writes the rules as managed iptables chains.
//!
//! Without nft these chains hold all rules. With nft they hold only the rules that accept forwarded
//! packets: an nftables table cannot accept a packet that the FORWARD chain of iptables drops. The
//! only changed chain of Docker is `DOCKER-USER`, which Docker reserves for other programs.

use std::fmt::Write as _;
use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};

use super::ruleset::{AgentChanges, Ruleset};

/// Chain that isolates overlays and accepts their packets, before other chains decide.
pub const FORWARD: &str = "MESOS-OVERLAY";
/// Chain that accepts packets to and from other networks, after Docker's chains have decided.
pub(super) const EXTERNAL: &str = "MESOS-OVERLAY-OUT";
/// Chain that drops VXLAN packets from unknown senders.
pub(super) const INPUT: &str = "MESOS-OVERLAY-IN";
/// Chain that masquerades.
pub(super) const MASQUERADE: &str = "MESOS-OVERLAY";

/// Docker's chain for the rules of other programs. Docker evaluates it before its other chains.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// All managed chains.
pub(super) const CHAINS: [&str; 4] = [FORWARD, EXTERNAL, INPUT, MASQUERADE];
/// Suffix of the temporary set that is filled and then swapped in.
pub(super) const TEMPORARY_SUFFIX: &str = "-new";

/// The rules that the chains contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Only the rules that nft cannot replace.
    Forward,
    /// All rules.
    Everything,
}

/// A rule that jumps from a foreign chain to a managed chain.
#[derive(Debug)]
pub(super) struct Jump {
    pub(super) table: &'static str,
    pub(super) from: &'static str,
    /// `-I` for the beginning of the chain, `-A` for its end.
    position: &'static str,
    pub(super) to: &'static str,
    /// The scope that needs the jump.
    scope: Scope,
}

/// All jumps. Docker inserts its chains before the first jump, so `DOCKER-USER` gets a jump as
/// well.
pub(super) const JUMPS: [Jump; 5] = {
    use Scope::{Everything, Forward};
    const fn jump(
        table: &'static str,
        from: &'static str,
        position: &'static str,
        to: &'static str,
        scope: Scope,
    ) -> Jump {
        Jump { table, from, position, to, scope }
    }
    [
        jump("filter", "FORWARD", "-I", FORWARD, Forward),
        jump("filter", DOCKER_USER, "-I", FORWARD, Forward),
        jump("filter", "FORWARD", "-A", EXTERNAL, Forward),
        jump("filter", "INPUT", "-I", INPUT, Everything),
        jump("nat", "POSTROUTING", "-I", MASQUERADE, Everything),
    ]
};

/// Returns whether a set is ours. A crash may leave a temporary set behind.
pub(super) fn is_own_set(name: &str) -> bool {
    [Family::V4, Family::V6].map(agents_set).iter().any(|set| {
        let suffix = name.strip_prefix(set);
        suffix.is_some_and(|suffix| suffix.is_empty() || suffix == TEMPORARY_SUFFIX)
    })
}

/// Returns the name of the ipset with the addresses of agents.
pub(super) const fn agents_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "mesos-overlay-4",
        Family::V6 => "mesos-overlay-6",
    }
}

/// Returns the chains, and those of the `missing` jumps that the scope needs, as input of
/// `iptables-restore --noflush`, which replaces each table's chains atomically.
pub(super) fn script(rules: &Ruleset, family: Family, scope: Scope, missing: &[&Jump]) -> String {
    let spaces = rules.subnets(family, None);
    let mut filter = format!("*filter\n:{FORWARD} - [0:0]\n:{EXTERNAL} - [0:0]\n");
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
        let _ = writeln!(filter, "-A {EXTERNAL} -s {space} -j ACCEPT");
        let established = "-m conntrack --ctstate RELATED,ESTABLISHED";
        let _ = writeln!(filter, "-A {EXTERNAL} -d {space} {established} -j ACCEPT");
    }
    if scope == Scope::Forward {
        add_jumps(&mut filter, "filter", scope, missing);
        return filter + "COMMIT\n";
    }
    let _ = writeln!(filter, ":{INPUT} - [0:0]");
    if rules.agents.is_some() {
        let set = agents_set(family);
        for port in &rules.ports {
            let unknown = format!("-m set ! --match-set {set} src");
            let _ = writeln!(filter, "-A {INPUT} -p udp --dport {port} {unknown} -j DROP");
        }
    }
    add_jumps(&mut filter, "filter", scope, missing);
    filter.push_str("COMMIT\n");
    let mut nat = masquerade(rules, &spaces);
    add_jumps(&mut nat, "nat", scope, missing);
    filter + &nat + "COMMIT\n"
}

fn add_jumps(text: &mut String, table: &str, scope: Scope, missing: &[&Jump]) {
    let is_needed = |jump: &&&Jump| {
        jump.table == table && (scope == Scope::Everything || jump.scope == Scope::Forward)
    };
    for Jump { from, position, to, .. } in missing.iter().filter(is_needed) {
        let _ = writeln!(text, "{position} {from} -j {to}");
    }
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

fn masquerade(rules: &Ruleset, spaces: &[Subnet]) -> String {
    let mut nat = format!("*nat\n:{MASQUERADE} - [0:0]\n");
    if rules.masquerade {
        for device in &rules.devices {
            let _ = writeln!(nat, "-A {MASQUERADE} -o {device} -j RETURN");
        }
        for space in spaces {
            let _ = writeln!(nat, "-A {MASQUERADE} -d {space} -j RETURN");
        }
        for space in spaces {
            let _ = writeln!(nat, "-A {MASQUERADE} -s {space} -j MASQUERADE");
        }
    }
    nat
}

/// Returns the set of agents as input of `ipset restore`. A temporary set is filled and then
/// swapped in, so that the change is atomic.
pub(super) fn sets(rules: &Ruleset, family: Family) -> String {
    let set = agents_set(family);
    let kind = if family == Family::V4 { "inet" } else { "inet6" };
    let mut text = String::new();
    let temporary = format!("{set}{TEMPORARY_SUFFIX}");
    for name in [set, &temporary] {
        let _ = writeln!(text, "create -exist {name} hash:ip family {kind} maxelem 1048576");
    }
    let _ = writeln!(text, "flush {temporary}");
    for agent in rules.agents(family) {
        let _ = writeln!(text, "add -exist {temporary} {agent}");
    }
    let _ = write!(text, "swap {set} {temporary}\ndestroy {temporary}\n");
    text
}

/// Returns the changes of the sets of agents as input of `ipset restore`.
pub(super) fn agents(changes: &AgentChanges) -> String {
    let set = |agent: &IpAddr| match agent {
        IpAddr::V4(_) => agents_set(Family::V4),
        IpAddr::V6(_) => agents_set(Family::V6),
    };
    let mut text = String::new();
    for (verb, agents) in [("add", &changes.added), ("del", &changes.removed)] {
        for agent in agents {
            let _ = writeln!(text, "{verb} {} {agent}", set(agent));
        }
    }
    text
}

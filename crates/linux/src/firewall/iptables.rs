//! Writes the rules as managed iptables chains.
//!
//! Without nft these chains hold all rules: those that drop packets in the table `mangle`, which
//! [`super::ipt_mangle`] writes. With nft they hold only the rules that accept forwarded packets:
//! an nftables table cannot accept a packet that the FORWARD chain of iptables drops. The only
//! changed chain of Docker is `DOCKER-USER`, which Docker reserves for other programs.

use std::collections::BTreeSet;

use overlay_types::addr::Family;

use super::ipt_mangle;
use super::ruleset::{Ruleset, of_family};

/// The beginning of the names of all managed chains, and the name of the first chain of each table.
/// In `mangle` the first chain drops forwarded packets, in `filter` it accepts packets before other
/// chains decide, in `nat` it masquerades.
pub(super) const CHAIN: &str = "MESOS-OVERLAY";
/// Chain of `filter` for packets with a source in an overlay.
const SOURCE: &str = "MESOS-OVERLAY-SRC";
/// Chain of `filter` for packets from a tunnel.
const TUNNEL: &str = "MESOS-OVERLAY-TUN";
/// Chain of `filter` that accepts packets between the overlays and other networks. Docker's chains
/// decide before it. `mangle` has a chain of the same name.
const EXTERNAL: &str = "MESOS-OVERLAY-OUT";
/// Chain for packets to this host. A former version had it in `filter`.
pub(super) const INPUT: &str = "MESOS-OVERLAY-IN";

/// Docker's chain for the rules of other programs. Docker evaluates it before its other chains.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// The rules that the chains contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Only the rules that accept forwarded packets, since nft cannot replace them.
    Forward,
    /// All rules.
    Everything,
}

/// Our chains of one table of iptables.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) chains: Vec<Chain>,
}

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    /// The rules, without the chain.
    pub(super) rules: Vec<String>,
}

impl Table {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, chains: Vec::new() }
    }

    pub(super) fn add(&mut self, name: impl Into<String>, rules: Vec<String>) {
        self.chains.push(Chain { name: name.into(), rules });
    }

    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.iter().any(|other| other.name == chain)
    }
}

/// A rule that jumps from a foreign chain to a managed chain. It exists as long as the managed
/// chain.
#[derive(Debug)]
pub(super) struct Jump {
    pub(super) table: &'static str,
    pub(super) from: &'static str,
    /// `-I` for the beginning of the chain, `-A` for its end.
    pub(super) position: &'static str,
    pub(super) to: &'static str,
}

impl Jump {
    /// Returns whether the jump has to be the first rule: a rule before it that accepts a packet
    /// would skip our chain.
    pub(super) fn is_first(&self) -> bool {
        self.table == "mangle"
    }

    pub(super) fn rule(&self) -> String {
        format!("-A {} -j {}", self.from, self.to)
    }
}

/// All jumps. Docker inserts its chains before the first jump, so `DOCKER-USER` gets a jump as
/// well.
pub(super) const JUMPS: [Jump; 7] = {
    const fn jump(
        table: &'static str,
        from: &'static str,
        position: &'static str,
        to: &'static str,
    ) -> Jump {
        Jump { table, from, position, to }
    }
    [
        jump("mangle", "FORWARD", "-I", CHAIN),
        jump("mangle", "INPUT", "-I", INPUT),
        jump("filter", "FORWARD", "-I", CHAIN),
        jump("filter", DOCKER_USER, "-I", CHAIN),
        jump("filter", "FORWARD", "-A", EXTERNAL),
        // Of a former version.
        jump("filter", "INPUT", "-I", INPUT),
        jump("nat", "POSTROUTING", "-I", CHAIN),
    ]
};

/// Returns the bridge of a network if the line of `iptables-save` is the rule by which Docker
/// decides about packets to that network.
pub(super) fn docker_bridge(line: &str) -> Option<&str> {
    match *line.split(' ').collect::<Vec<_>>() {
        ["-A", _, "-o", bridge, "-j", "DOCKER"] => Some(bridge),
        _ => None,
    }
}

/// Returns whether a chain is ours, also one of a former version.
pub(super) fn is_own_chain(name: &str) -> bool {
    let chains = [CHAIN, SOURCE, TUNNEL, EXTERNAL, INPUT];
    chains.contains(&name) || ipt_mangle::is_own_chain(name)
}

/// Returns all tables without our chains, in the order in which they are changed: the chains that
/// drop packets come first.
pub(super) const fn no_tables() -> [Table; 3] {
    [Table::new("mangle"), Table::new("filter"), Table::new("nat")]
}

/// Returns our chains of all tables. `docker_bridges` are the bridges that Docker protects.
pub(super) fn tables(
    rules: &Ruleset,
    family: Family,
    scope: Scope,
    docker_bridges: &BTreeSet<&str>,
) -> [Table; 3] {
    let [mut mangle, mut filter, mut nat] = no_tables();
    if scope == Scope::Everything {
        ipt_mangle::write(&mut mangle, rules, family);
        masquerade(&mut nat, rules, family);
    }
    accept(&mut filter, rules, family, docker_bridges);
    [mangle, filter, nat]
}

/// Adds the chains that accept packets of the overlays. There are two levels of chains, so that the
/// number of rules grows linearly with the number of overlays.
///
/// Docker engines before 28 protect their networks by the policy of FORWARD. Packets to such a
/// network that Docker's chains did not accept are not accepted here either.
fn accept(filter: &mut Table, rules: &Ruleset, family: Family, docker_bridges: &BTreeSet<&str>) {
    let layout = &rules.layout;
    let spaces = layout.spaces(family);
    let to_space = || spaces.iter().map(|space| format!("-d {space} -j ACCEPT"));
    let from_space = spaces.iter().map(|space| format!("-s {space} -g {SOURCE}"));
    let from_tunnel = layout.devices.iter().map(|device| format!("-i {device} -g {TUNNEL}"));
    // Packets of a peer's host with the address of its VTEP. The other rules have checked the MAC.
    let from_peers = layout.direct.iter().flat_map(|device| {
        let vteps = of_family(layout.vteps.iter(), family);
        vteps.map(move |vteps| format!("-i {device} -s {vteps} -g {TUNNEL}"))
    });
    filter.add(CHAIN, from_space.chain(from_tunnel).chain(from_peers).collect());
    let to_tunnel = layout.devices.iter().map(|device| format!("-o {device} -j ACCEPT"));
    filter.add(SOURCE, to_space().chain(to_tunnel).collect());
    filter.add(TUNNEL, to_space().collect());
    let is_foreign = |bridge: &&&str| !layout.bridges.keys().any(|own| own.as_str() == **bridge);
    let to_docker = docker_bridges.iter().filter(is_foreign);
    let to_docker = to_docker.map(|bridge| format!("-o {bridge} -j RETURN"));
    let external = spaces.iter().flat_map(|space| {
        let established = "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT";
        [format!("-s {space} -j ACCEPT"), format!("-d {space} {established} -j ACCEPT")]
    });
    filter.add(EXTERNAL, to_docker.chain(external).collect());
}

fn masquerade(nat: &mut Table, rules: &Ruleset, family: Family) {
    let layout = &rules.layout;
    if !layout.masquerade {
        return;
    }
    let spaces = layout.spaces(family);
    let mut chain = Vec::new();
    chain.extend(layout.devices.iter().map(|device| format!("-o {device} -j RETURN")));
    chain.extend(spaces.iter().map(|space| format!("-d {space} -j RETURN")));
    chain.extend(spaces.iter().map(|space| format!("-s {space} -j MASQUERADE")));
    nat.add(CHAIN, chain);
}

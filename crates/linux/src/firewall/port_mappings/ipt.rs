//! Port mappings as rules of iptables, in one chain of the table `nat`. Each change replaces the
//! chain, and without mappings it is removed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlay_types::addr::Family;
use overlay_types::port_mapping::{PortMapping, PortProtocol};

use super::{Mapped, PortMappingError, Request};
use crate::firewall::chains::{LOCK_SECONDS, Programs, SavedRules};
use crate::firewall::command::{FirewallError, Tools};

/// The chain of all mappings.
pub(in crate::firewall) const CHAIN: &str = "MESOS-OVERLAY-PORTS";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The rules of one family.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    /// The bridges whose packets are not mapped.
    bridges: BTreeSet<String>,
    mapped: BTreeSet<Mapped>,
    has_chain: bool,
    /// The jumps to the chain that exist.
    jumps: Vec<String>,
}

/// Returns whether the programs are installed.
pub(super) fn is_installed(tools: &dyn Tools) -> bool {
    tools.has("iptables-save") && tools.has("iptables-restore")
}

/// Maps the ports. The caller has the lock.
pub(super) fn map(
    tools: &dyn Tools,
    request: &Request<'_>,
    is_stale: &dyn Fn(IpAddr) -> bool,
) -> Result<(), PortMappingError> {
    for family in FAMILIES {
        let mut rules = read(tools, family)?;
        let is_of_family = |mapped: &&Mapped| mapped.address.is_ipv4() == (family == Family::V4);
        let changes = request.plan(&rules.mapped, is_stale)?;
        rules.mapped.retain(|mapped| !changes.removed.contains(mapped));
        rules.mapped.extend(changes.added.iter().filter(is_of_family));
        if request.desired.iter().any(|mapped| is_of_family(&mapped)) {
            rules.bridges.insert(request.bridge.to_string());
        }
        write(tools, family, &rules)?;
    }
    Ok(())
}

/// Returns whether there is a mapping to one of the addresses.
pub(super) fn has_mappings(
    tools: &dyn Tools,
    addresses: &BTreeSet<IpAddr>,
) -> Result<bool, FirewallError> {
    for family in FAMILIES {
        let found = read(tools, family)?.mapped;
        if found.iter().any(|mapped| addresses.contains(&mapped.address)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes all mappings to the addresses. The caller has the lock.
pub(super) fn unmap(tools: &dyn Tools, addresses: &BTreeSet<IpAddr>) -> Result<(), FirewallError> {
    for family in FAMILIES {
        let mut rules = read(tools, family)?;
        let before = rules.mapped.len();
        rules.mapped.retain(|mapped| !addresses.contains(&mapped.address));
        if rules.mapped.len() < before {
            write(tools, family, &rules)?;
        }
    }
    Ok(())
}

/// Describes the chains for an operator.
pub(super) fn describe(tools: &dyn Tools) -> Result<Vec<String>, FirewallError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        if read(tools, family)?.has_chain {
            found.push(format!("{} chain {CHAIN} of nat", Programs::of(family).change));
        }
    }
    Ok(found)
}

/// Removes the chains.
pub(super) fn remove_all(tools: &dyn Tools) -> Result<(), FirewallError> {
    for family in FAMILIES {
        let Rules { has_chain, jumps, .. } = read(tools, family)?;
        write(tools, family, &Rules { has_chain, jumps, ..Rules::default() })?;
    }
    Ok(())
}

fn read(tools: &dyn Tools, family: Family) -> Result<Rules, FirewallError> {
    Ok(parse(SavedRules::read(tools, family)?.text()))
}

fn write(tools: &dyn Tools, family: Family, rules: &Rules) -> Result<(), FirewallError> {
    let script = script(family, rules);
    if script.is_empty() {
        return Ok(());
    }
    let restore = Programs::of(family).restore;
    tools.run(restore, &["--noflush", "-w", LOCK_SECONDS], &script).map(drop)
}

/// Returns the jumps to the chain, as iptables-save writes them.
fn jumps(family: Family) -> [String; 2] {
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    let local = format!("-m addrtype --dst-type LOCAL -j {CHAIN}");
    [format!("-A PREROUTING {local}"), format!("-A OUTPUT ! -d {loopback} {local}")]
}

/// Returns the input of `iptables-restore --noflush` that replaces the chain. Without mappings it
/// removes the chain.
fn script(family: Family, rules: &Rules) -> String {
    let mut script = String::new();
    if !rules.mapped.is_empty() {
        // The declaration of an existing chain removes its rules.
        let _ = writeln!(script, ":{CHAIN} - [0:0]");
        for bridge in &rules.bridges {
            let _ = writeln!(script, "-A {CHAIN} -i {bridge} -j RETURN");
        }
        for Mapped { mapping, address } in &rules.mapped {
            let PortMapping { protocol, host_port, container_port } = mapping;
            let to = SocketAddr::new(*address, *container_port);
            let _ = writeln!(
                script,
                "-A {CHAIN} -p {protocol} -m {protocol} --dport {host_port} -j DNAT \
                 --to-destination {to}"
            );
        }
        for jump in jumps(family).iter().filter(|jump| !rules.jumps.contains(jump)) {
            let _ = writeln!(script, "{jump}");
        }
    } else if rules.has_chain {
        for jump in &rules.jumps {
            let _ = writeln!(script, "{}", jump.replacen("-A ", "-D ", 1));
        }
        let _ = writeln!(script, "-F {CHAIN}\n-X {CHAIN}");
    }
    if script.is_empty() { script } else { format!("*nat\n{script}COMMIT\n") }
}

/// Parses the output of iptables-save. Rules of another form are left out.
fn parse(saved: &str) -> Rules {
    let mut rules = Rules::default();
    let mut is_nat = false;
    for line in saved.lines() {
        if let Some(table) = line.strip_prefix('*') {
            is_nat = table == "nat";
        } else if !is_nat {
        } else if line.strip_prefix(':').is_some_and(|line| line.split(' ').next() == Some(CHAIN)) {
            rules.has_chain = true;
        } else if line.ends_with(&format!(" -j {CHAIN}")) {
            rules.jumps.push(line.to_owned());
        } else if let Some(rule) = line.strip_prefix(&format!("-A {CHAIN} ")) {
            match &rule.split(' ').collect::<Vec<_>>()[..] {
                ["-i", bridge, "-j", "RETURN"] => drop(rules.bridges.insert((*bridge).to_owned())),
                words => rules.mapped.extend(parse_mapping(words)),
            }
        }
    }
    rules
}

fn parse_mapping(words: &[&str]) -> Option<Mapped> {
    let ["-p", protocol, "-m", _, "--dport", port, "-j", "DNAT", "--to-destination", to] = words
    else {
        return None;
    };
    let to: SocketAddr = to.parse().ok()?;
    let is_special = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let mapping = PortMapping {
        protocol: PortProtocol::parse(protocol)?,
        host_port: port.parse().ok()?,
        container_port: to.port(),
    };
    (!is_special.contains(&to.ip())).then_some(Mapped { mapping, address: to.ip() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, to};
    use super::*;

    /// Recorded from iptables 1.8.9, with a rule of another program and one of an operator.
    const SAVED: &str = "*nat
:PREROUTING ACCEPT [0:0]
:MESOS-OVERLAY-PORTS - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j MESOS-OVERLAY-PORTS
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j MESOS-OVERLAY-PORTS
-A MESOS-OVERLAY-PORTS -i m-vxlan-1 -j RETURN
-A MESOS-OVERLAY-PORTS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 192.168.0.2:80
-A MESOS-OVERLAY-PORTS -p tcp -j LOG
COMMIT
*filter
:MESOS-OVERLAY-PORTS - [0:0]
COMMIT
";

    #[test]
    fn rules_are_read_and_written_again() {
        let rules = parse(SAVED);
        assert_eq!(
            rules,
            Rules {
                bridges: ["m-vxlan-1".to_owned()].into(),
                mapped: [to(8080, "192.168.0.2")].into(),
                has_chain: true,
                jumps: jumps(Family::V4).into(),
            }
        );
        assert_eq!(
            script(Family::V4, &rules),
            "*nat\n:MESOS-OVERLAY-PORTS - [0:0]\n-A MESOS-OVERLAY-PORTS -i m-vxlan-1 -j RETURN\n\
             -A MESOS-OVERLAY-PORTS -p tcp -m tcp --dport 8080 -j DNAT --to-destination \
             192.168.0.2:80\nCOMMIT\n"
        );
        let without_jumps = Rules { jumps: Vec::new(), ..rules };
        assert_eq!(script(Family::V4, &without_jumps).matches("--dst-type LOCAL").count(), 2);
        let last = Rules { mapped: BTreeSet::new(), ..parse(SAVED) };
        assert_eq!(
            script(Family::V4, &last),
            "*nat\n-D PREROUTING -m addrtype --dst-type LOCAL -j MESOS-OVERLAY-PORTS\n-D OUTPUT ! -d \
             127.0.0.0/8 -m addrtype --dst-type LOCAL -j MESOS-OVERLAY-PORTS\n-F \
             MESOS-OVERLAY-PORTS\n-X MESOS-OVERLAY-PORTS\nCOMMIT\n"
        );
        assert_eq!(script(Family::V4, &parse("*filter\n")), "");
    }

    #[test]
    fn ipv6_mapping_has_brackets() {
        let mapped = [to(53, "fd01:b::2")].into();
        let text = script(Family::V6, &Rules { mapped, ..Rules::default() });
        assert!(text.contains("--to-destination [fd01:b::2]:80\n"), "{text}");
        assert!(text.contains("-A OUTPUT ! -d ::1/128 -m addrtype"), "{text}");
        let rule = text.lines().find(|line| line.contains("DNAT")).unwrap();
        let found = parse(&format!("*nat\n{rule}\n"));
        assert_eq!(found.mapped.first().map(|mapped| mapped.address), Some(ip("fd01:b::2")));
    }
}

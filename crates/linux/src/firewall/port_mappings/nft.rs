//! Port mappings as elements of nftables maps.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use overlay_types::port_mapping::{PortMapping, PortProtocol};
use serde_json::Value;

use super::{Changes, Mapped, PortMappingError, Request};
use crate::firewall::command::{FirewallError, Tools};
use crate::firewall::table;

/// The table of the port mappings. The agent replaces its own table as a whole, so this is another.
pub(in crate::firewall) const TABLE: &str = "inet mesos_overlay_ports";
/// The maps of IPv4 and IPv6.
const MAPS: [&str; 2] = ["to4", "to6"];

/// Maps the ports in one transaction. It refuses a port that another container has got meanwhile.
pub(super) fn map(
    tools: &dyn Tools,
    request: &Request<'_>,
    is_stale: &dyn Fn(IpAddr) -> bool,
) -> Result<(), PortMappingError> {
    let changes = request.plan(&list(tools)?, is_stale)?;
    tools.run("nft", &["-f", "-"], &script(request, &changes))?;
    Ok(())
}

/// Removes all mappings to the addresses.
pub(super) fn unmap(
    tools: &dyn Tools,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), PortMappingError> {
    let found = list(tools)?.into_iter().filter(|found| addresses.contains(&found.address));
    let removal = removal(&found.collect());
    if !removal.is_empty() {
        tools.run("nft", &["-f", "-"], &removal)?;
    }
    Ok(())
}

/// Returns whether the table exists. Without nft it does not.
pub(super) fn exists(tools: &dyn Tools) -> Result<bool, FirewallError> {
    Ok(table::names(tools)?.iter().any(|name| name == TABLE))
}

/// Removes the table.
pub(super) fn remove_all(tools: &dyn Tools) -> Result<(), FirewallError> {
    if exists(tools)? {
        tools.run("nft", &["-f", "-"], &table::removal(TABLE))?;
    }
    Ok(())
}

/// Lists all mappings.
fn list(tools: &dyn Tools) -> Result<BTreeSet<Mapped>, PortMappingError> {
    if !exists(tools)? {
        return Ok(BTreeSet::new());
    }
    let mut arguments = vec!["-j", "list", "table"];
    arguments.extend(TABLE.split(' '));
    parse(&tools.run("nft", &arguments, "")?)
}

/// Returns the input of `nft -f -` that makes the table if it is missing, and changes the mappings.
fn script(request: &Request<'_>, changes: &Changes) -> String {
    let bridge = request.bridge;
    let mut script = format!(
        "\
add table {TABLE}
add set {TABLE} bridges {{ type ifname; }}
add map {TABLE} to4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} to6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain {TABLE} to_container
add chain {TABLE} prerouting {{ type nat hook prerouting priority -100; }}
add chain {TABLE} output {{ type nat hook output priority -100; }}
flush chain {TABLE} to_container
flush chain {TABLE} prerouting
flush chain {TABLE} output
add rule {TABLE} to_container dnat ip to meta l4proto . th dport map @to4
add rule {TABLE} to_container dnat ip6 to meta l4proto . th dport map @to6
add rule {TABLE} prerouting iifname != @bridges fib daddr type local jump to_container
add rule {TABLE} output ip daddr != 127.0.0.0/8 fib daddr type local jump to_container
add rule {TABLE} output ip6 daddr != ::1 fib daddr type local jump to_container
add element {TABLE} bridges {{ \"{bridge}\" }}
"
    );
    script.push_str(&removal(&changes.removed));
    for Mapped { mapping, address } in &changes.added {
        let PortMapping { protocol, host_port, container_port } = mapping;
        let map = map_of(*address);
        let _ = writeln!(
            script,
            "add element {TABLE} {map} {{ {protocol} . {host_port} : {address} . {container_port} }}"
        );
    }
    script
}

fn removal(mapped: &BTreeSet<Mapped>) -> String {
    let mut script = String::new();
    for Mapped { mapping: PortMapping { protocol, host_port, .. }, address } in mapped {
        let map = map_of(*address);
        let _ = writeln!(script, "delete element {TABLE} {map} {{ {protocol} . {host_port} }}");
    }
    script
}

const fn map_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { MAPS[0] } else { MAPS[1] }
}

/// Parses the output of `nft -j list table`. Elements of another form are left out.
fn parse(output: &str) -> Result<BTreeSet<Mapped>, PortMappingError> {
    let listing: Value = serde_json::from_str(output)
        .map_err(|error| PortMappingError::Listing(error.to_string()))?;
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let maps = objects.map(|object| &object["map"]);
    let maps = maps.filter(|map| MAPS.iter().any(|name| map["name"] == *name));
    let elements = maps.filter_map(|map| map["elem"].as_array()).flatten();
    Ok(elements.filter_map(parse_element).collect())
}

fn parse_element(element: &Value) -> Option<Mapped> {
    let pair = |value: &Value| match &value["concat"].as_array()?[..] {
        [first, second] => Some((first.clone(), second.clone())),
        _ => None,
    };
    let port = |port: &Value| u16::try_from(port.as_u64()?).ok();
    let (protocol, host_port) = pair(element.get(0)?)?;
    let (address, container_port) = pair(element.get(1)?)?;
    let mapping = PortMapping {
        protocol: PortProtocol::parse(protocol.as_str()?)?,
        host_port: port(&host_port)?,
        container_port: port(&container_port)?,
    };
    Some(Mapped { mapping, address: address.as_str()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, to};
    use super::*;

    #[test]
    fn listing_of_nft_is_read() {
        // Recorded from nft 1.0.6.
        let output = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "inet", "name": "bridges", "elem": ["m-vxlan-1"]}},
            {"map": {"family": "inet", "name": "to4", "table": "mesos_overlay_ports",
                "type": ["inet_proto", "inet_service"], "handle": 2,
                "map": "ipv4_addr . inet_service", "elem": [
                    [{"concat": ["udp", 53]}, {"concat": ["192.168.0.2", 5353]}],
                    [{"concat": ["tcp", 8080]}, {"concat": ["192.168.0.2", 80]}],
                    [{"concat": ["sctp", 1]}, {"concat": ["192.168.0.2", 1]}]]}},
            {"map": {"family": "inet", "name": "to6", "table": "mesos_overlay_ports"}}]}"#;
        let protocol = PortProtocol::Udp;
        let mapping = PortMapping { protocol, host_port: 53, container_port: 5353 };
        let udp = Mapped { mapping, address: ip("192.168.0.2") };
        assert_eq!(parse(output), Ok([to(8080, "192.168.0.2"), udp].into()));
        assert_eq!(parse("{}"), Ok(BTreeSet::new()));
        assert!(parse("").is_err());
    }

    #[test]
    fn script_removes_before_it_adds() {
        let changes = Changes {
            removed: [to(8080, "192.168.0.9")].into(),
            added: [to(8080, "192.168.0.2"), to(8080, "fd01:b::2")].into(),
        };
        let bridge = "m-vxlan-1".parse().unwrap();
        let script = script(&Request::new(&bridge, &[], &[]), &changes);
        let elements: Vec<&str> = script.lines().filter(|line| line.contains("element")).collect();
        assert_eq!(
            elements,
            [
                "add element inet mesos_overlay_ports bridges { \"m-vxlan-1\" }",
                "delete element inet mesos_overlay_ports to4 { tcp . 8080 }",
                "add element inet mesos_overlay_ports to4 { tcp . 8080 : 192.168.0.2 . 80 }",
                "add element inet mesos_overlay_ports to6 { tcp . 8080 : fd01:b::2 . 80 }",
            ]
        );
    }
}

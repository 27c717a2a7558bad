//! The policy rules of the host (`ip rule`), and which of them decides about a packet.
//!
//! The kernel does not tell which rule has led to a route. So the rules are applied here to the
//! packet of a lookup, in their order and with the routes of all tables. A rule whose condition the
//! packet does not meet is never named as the cause: VPN programs have such rules, and an operator
//! who removes one cuts the VPN.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};
use rustix::io::Errno;

use super::message::{Message, address, attributes, family_of, text, u32_at};
use super::socket::Netlink;
use super::uapi::{
    AF_INET, AF_INET6, FIB_RULE_INVERT, FRA_DST, FRA_FLOW, FRA_FWMARK, FRA_FWMASK, FRA_GOTO,
    FRA_IIFNAME, FRA_IP_PROTO, FRA_L3MDEV, FRA_OIFNAME, FRA_PRIORITY, FRA_PROTOCOL, FRA_SRC,
    FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_UID_RANGE, RTA_DST, RTA_PRIORITY,
    RTA_TABLE, RTM_F_CLONED, RTM_GETROUTE, RTM_GETRULE, RTN_UNICAST,
};

/// The tables that every host has: `default`, `main` and `local`.
const DEFAULT_TABLES: [u32; 3] = [253, 254, 255];
/// The type of a route that continues with the next rule, from `linux/rtnetlink.h`.
const RTN_THROW: u8 = 9;
/// The protocol of the packets of a lookup.
const UDP: u8 = 17;
/// The input device of a lookup that checks a source address.
pub(super) const LOOPBACK: &str = "lo";

/// A packet whose route is looked up. It has no mark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    /// Name of the device that the packet enters through.
    pub(super) input: &'a str,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// A policy rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) priority: u32,
    action: Action,
    selector: Selector,
    /// The rule as `ip rule` prints it.
    pub(super) text: String,
}

/// What a rule does with the packets that it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The routes of a table apply, except those with a prefix of at most the given length.
    Table(u32, Option<u8>),
    /// The routes of the VRF apply that the packet belongs to, if it belongs to one.
    Vrf,
    /// The rules from this priority on apply.
    Goto(u32),
    /// The packet is dropped.
    Drop,
    /// The next rule applies.
    Continue,
}

/// The condition of a rule.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selector {
    is_inverted: bool,
    source: Option<Subnet>,
    destination: Option<Subnet>,
    input: Option<String>,
    mark: u32,
    mark_mask: u32,
    users: Option<(u32, u32)>,
    protocol: u8,
    /// Whether the rule has a condition that no packet of a lookup meets, such as an output device.
    is_never_met: bool,
}

/// A route of any table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableRoute {
    pub(super) table: u32,
    pub(super) subnet: Subnet,
    pub(super) metric: u32,
    pub(super) kind: u8,
}

impl Selector {
    fn matches(&self, packet: Packet<'_>) -> bool {
        let contains = |subnet: Option<Subnet>, ip| subnet.is_none_or(|subnet| subnet.contains(ip));
        let is_met = !self.is_never_met
            && contains(self.source, packet.source)
            && contains(self.destination, packet.destination)
            && self.input.as_ref().is_none_or(|input| input == packet.input)
            && self.mark & self.mark_mask == 0
            && [0, UDP].contains(&self.protocol)
            && self.users.is_none_or(|(first, _)| first == 0);
        is_met != self.is_inverted
    }
}

impl TableRoute {
    fn covers(&self, ip: IpAddr) -> bool {
        self.subnet.contains(ip)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let [family, prefix, _, tos, table, _, _, kind] = *body.get(..8)? else { return None };
        let (mut to, mut metric, mut table) = (any_of(family)?, 0, u32::from(table));
        for (attribute, value) in attributes(body, 12) {
            match attribute {
                RTA_DST => to = address(value).filter(|to| family_of(*to) == family)?,
                RTA_PRIORITY => metric = u32_at(value, 0)?,
                RTA_TABLE => table = u32_at(value, 0)?,
                _ => {}
            }
        }
        let is_cached = u32_at(body, 8)? & RTM_F_CLONED != 0;
        let subnet = Subnet::containing(to, prefix)?;
        (tos == 0 && !is_cached).then_some(Self { table, subnet, metric, kind })
    }
}

/// Returns the zero address of a family of the kernel.
fn any_of(family: u8) -> Option<IpAddr> {
    [IpAddr::from([0; 4]), IpAddr::from([0; 16])].into_iter().find(|ip| family_of(*ip) == family)
}

/// Returns the header of a dump of a family.
const fn header(family: Family) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family_number(family);
    header
}

const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// Lists the policy rules of a family, in the order in which they apply.
pub(super) fn rules(netlink: &mut Netlink, family: Family) -> io::Result<Vec<Rule>> {
    let number = family_number(family);
    let read = |rules: &mut Vec<_>, message: Message<'_>| {
        rules.extend(Rule::parse(message.body).filter(|_| message.body.first() == Some(&number)));
    };
    netlink.dump(RTM_GETRULE, &header(family), |_| {}, read, Vec::new)
}

/// Lists the routes of all tables that lead to one of some addresses.
pub(super) fn routes_to(
    netlink: &mut Netlink,
    family: Family,
    addresses: &[IpAddr],
) -> io::Result<Vec<TableRoute>> {
    let read = |routes: &mut Vec<_>, message: Message<'_>| {
        let route = TableRoute::parse(message.body);
        routes.extend(route.filter(|route| addresses.iter().any(|ip| route.covers(*ip))));
    };
    netlink.dump(RTM_GETROUTE, &header(family), |_| {}, read, Vec::new)
}

/// Returns the rule that decides about the packet, if it is a rule that not every host has: it drops
/// the packet, or selects a table with a route for it. `found` is the table that the kernel names.
pub(super) fn decider<'a>(
    rules: &'a [Rule],
    routes: &[TableRoute],
    packet: Packet<'_>,
    found: Option<u32>,
) -> Option<&'a Rule> {
    let mut first = 0;
    for rule in rules {
        if rule.priority < first || !rule.selector.matches(packet) {
            continue;
        }
        let (table, suppressed) = match rule.action {
            Action::Drop => return Some(rule),
            Action::Goto(priority) => {
                first = priority;
                continue;
            }
            Action::Continue => continue,
            Action::Table(table, suppressed) => (table, suppressed),
            Action::Vrf => match found.filter(|found| !rules.iter().any(|rule| rule.has(*found))) {
                Some(table) => (table, None),
                None => continue,
            },
        };
        if decides(routes, packet.destination, table, suppressed) {
            return Some(rule).filter(|_| !DEFAULT_TABLES.contains(&table));
        }
    }
    None
}

/// Returns whether a table has a route for the address.
fn decides(routes: &[TableRoute], destination: IpAddr, table: u32, suppressed: Option<u8>) -> bool {
    let of_table = routes.iter().filter(|route| route.table == table && route.covers(destination));
    let best = of_table.min_by_key(|route| (u8::MAX - route.subnet.prefix(), route.metric));
    // The kernel suppresses no route that drops packets.
    let is_suppressed = |route: &TableRoute| {
        route.kind == RTN_UNICAST
            && suppressed.is_some_and(|longest| route.subnet.prefix() <= longest)
    };
    best.is_some_and(|route| route.kind != RTN_THROW && !is_suppressed(route))
}

/// Returns whether the kernel does not have the objects that were requested.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::PROTONOSUPPORT].contains(&errno)
    })
}

impl Rule {
    /// Returns whether every packet uses the table.
    pub(super) fn leads_all_to(&self, table: u32) -> bool {
        self.has(table) && self.selector == Selector::default()
    }

    /// Returns the mark of the packets that the rule applies to, if it applies to marked packets
    /// only.
    pub(super) fn mark(&self) -> Option<u32> {
        let Selector { mark, mark_mask, is_inverted, .. } = self.selector;
        (mark & mark_mask != 0 && !is_inverted).then_some(mark)
    }

    /// Returns whether the rule selects this table by its number.
    fn has(&self, table: u32) -> bool {
        matches!(self.action, Action::Table(own, _) if own == table)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        /// Actions of a rule, from `linux/fib_rules.h`.
        const DROPS: [(u8, &str); 3] = [(6, "blackhole"), (7, "unreachable"), (8, "prohibit")];
        const TO_TABLE: u8 = 1;
        const GOTO: u8 = 2;
        let [_, to_length, from_length, tos, table, _, _, action] = *body.get(..8)? else {
            return None;
        };
        let mut selector = Selector {
            is_inverted: u32_at(body, 8)? & FIB_RULE_INVERT != 0,
            is_never_met: tos != 0,
            ..Selector::default()
        };
        let (mut priority, mut table, mut target) = (0, u32::from(table), 0);
        let (mut suppressed, mut is_vrf) = (None, false);
        let mut mark_mask = None;
        let mut words = Words::default();
        for (kind, value) in attributes(body, 12) {
            match kind {
                FRA_PRIORITY => priority = u32_at(value, 0)?,
                FRA_TABLE => table = u32_at(value, 0)?,
                FRA_GOTO => target = u32_at(value, 0)?,
                FRA_SRC => selector.source = Subnet::containing(address(value)?, from_length),
                FRA_DST => selector.destination = Subnet::containing(address(value)?, to_length),
                FRA_IIFNAME => selector.input = Some(text(value)),
                FRA_FWMARK => selector.mark = u32_at(value, 0)?,
                FRA_FWMASK => mark_mask = Some(u32_at(value, 0)?),
                FRA_UID_RANGE => selector.users = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
                FRA_IP_PROTO => selector.protocol = *value.first()?,
                FRA_L3MDEV => is_vrf = value.first() == Some(&1),
                FRA_SUPPRESS_PREFIXLEN => {
                    suppressed = u32_at(value, 0).and_then(|length| u8::try_from(length).ok());
                }
                FRA_OIFNAME => {
                    selector.is_never_met = true;
                    words.output = Some(text(value));
                }
                // They restrict no packets: the program that made the rule, the realm, and a group
                // of devices whose routes are suppressed, which VPN programs do not use.
                FRA_PROTOCOL | FRA_FLOW | FRA_SUPPRESS_IFGROUP => {}
                // Ports, tunnels and everything that is not known here.
                _ => selector.is_never_met = true,
            }
        }
        selector.mark_mask = mark_mask.unwrap_or(if selector.mark == 0 { 0 } else { u32::MAX });
        words.tail = match DROPS.iter().find(|(number, _)| *number == action) {
            Some((_, name)) => (*name).to_owned(),
            None if is_vrf => "lookup [l3mdev-table]".to_owned(),
            None if action == GOTO => format!("goto {target}"),
            None if action == TO_TABLE => format!("lookup {table}"),
            None => "nop".to_owned(),
        };
        if let Some(length) = suppressed {
            let _ = write!(words.tail, " suppress_prefixlength {length}");
        }
        let action = match action {
            action if DROPS.iter().any(|(number, _)| *number == action) => Action::Drop,
            TO_TABLE if is_vrf => Action::Vrf,
            TO_TABLE => Action::Table(table, suppressed),
            GOTO => Action::Goto(target),
            _ => Action::Continue,
        };
        let text = words.text(priority, &selector);
        Some(Self { priority, action, selector, text })
    }
}

/// Parts of the text of a rule that are not in its condition.
#[derive(Default)]
struct Words {
    output: Option<String>,
    tail: String,
}

impl Words {
    /// Returns the text of the rule, in the order of `ip rule`.
    fn text(&self, priority: u32, selector: &Selector) -> String {
        let Selector { source, destination, input, mark, mark_mask, .. } = selector;
        let not = if selector.is_inverted { "not " } else { "" };
        let from = source.map_or_else(|| "all".to_owned(), |subnet| subnet.to_string());
        let mut text = format!("{priority}: {not}from {from}");
        let mut add = |word: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = write!(text, " {word} {value}");
            }
        };
        add("to", destination.map(|subnet| subnet.to_string()));
        let mark = match *mark_mask {
            0 => None,
            u32::MAX => Some(format!("{mark:#x}")),
            mask => Some(format!("{mark:#x}/{mask:#x}")),
        };
        add("fwmark", mark);
        add("iif", input.clone());
        add("oif", self.output.clone());
        add("uidrange", selector.users.map(|(first, last)| format!("{first}-{last}")));
        add("ipproto", (selector.protocol != 0).then(|| selector.protocol.to_string()));
        text.push(' ');
        text.push_str(&self.tail);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Batch;
    use super::super::uapi::{NLMSG_HEADER, RTN_UNREACHABLE};
    use super::*;

    const TO_TABLE: u8 = 1;
    const PROHIBIT: u8 = 8;

    /// Writes a rule as the kernel does.
    fn rule(
        priority: u32,
        action: u8,
        flags: u32,
        (from_length, to_length): (u8, u8),
        attributes: &[(u16, &[u8])],
    ) -> Rule {
        let mut header = [AF_INET, to_length, from_length, 0, 0, 0, 0, action, 0, 0, 0, 0];
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let mut batch = Batch::default();
        batch.begin(0, 0, &header);
        batch.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
        attributes.iter().for_each(|(kind, value)| batch.attribute(*kind, value));
        Rule::parse(&batch.finish(1, 0)[NLMSG_HEADER..]).unwrap()
    }

    fn lookup(priority: u32, table: u32, attributes: &[(u16, &[u8])]) -> Rule {
        let table = table.to_ne_bytes();
        let all = [&[(FRA_TABLE, &table[..])], attributes].concat();
        rule(priority, TO_TABLE, 0, (0, 0), &all)
    }

    fn route(table: u32, subnet: &str, kind: u8) -> TableRoute {
        TableRoute { table, subnet: subnet.parse().unwrap(), metric: 0, kind }
    }

    fn to_peer() -> Packet<'static> {
        Packet {
            input: "m-vxlan-1",
            source: "192.168.0.2".parse().unwrap(),
            destination: "192.168.1.2".parse().unwrap(),
        }
    }

    fn priority(rules: &[Rule], routes: &[TableRoute], found: Option<u32>) -> Option<u32> {
        decider(rules, routes, to_peer(), found).map(|rule| rule.priority)
    }

    /// The rules of wg-quick and of Tailscale on a host with both.
    fn vpn() -> Vec<Rule> {
        let number = |number: u32| number.to_ne_bytes();
        let (wireguard, tailscale, bits) = (number(0xca6c), number(0x8_0000), number(0xff_0000));
        let no_group = number(u32::MAX);
        let (to_default, to_main) = (number(51_820), number(254));
        let marked = [(FRA_FWMARK, &tailscale[..]), (FRA_FWMASK, &bits[..])];
        vec![
            lookup(0, 255, &[]),
            lookup(5210, 254, &marked),
            lookup(5230, 253, &marked),
            rule(5250, 7, 0, (0, 0), &marked),
            lookup(5270, 52, &[]),
            lookup(
                32_764,
                254,
                &[(FRA_SUPPRESS_PREFIXLEN, &number(0)), (13, &no_group), (FRA_PROTOCOL, &[3])],
            ),
            rule(
                32_765,
                TO_TABLE,
                FIB_RULE_INVERT,
                (0, 0),
                &[(FRA_TABLE, &to_default), (FRA_FWMARK, &wireguard)],
            ),
            rule(32_766, TO_TABLE, 0, (0, 0), &[(FRA_TABLE, &to_main)]),
        ]
    }

    #[test]
    fn rules_of_vpn_are_printed_like_ip_rule() {
        let texts: Vec<_> = vpn().into_iter().map(|rule| rule.text).collect();
        assert_eq!(
            texts,
            [
                "0: from all lookup 255",
                "5210: from all fwmark 0x80000/0xff0000 lookup 254",
                "5230: from all fwmark 0x80000/0xff0000 lookup 253",
                "5250: from all fwmark 0x80000/0xff0000 unreachable",
                "5270: from all lookup 52",
                "32764: from all lookup 254 suppress_prefixlength 0",
                "32765: not from all fwmark 0xca6c lookup 51820",
                "32766: from all lookup 254",
            ]
        );
    }

    #[test]
    fn rules_of_vpn_are_not_the_cause_of_missing_route() {
        let vpn_default = route(51_820, "0.0.0.0/0", RTN_UNICAST);
        let mesh = route(52, "100.64.0.0/10", RTN_UNICAST);
        let unallocated = route(254, "192.168.0.0/17", RTN_UNREACHABLE);
        assert_eq!(priority(&vpn(), &[vpn_default, mesh, unallocated], None), None);
        let default = route(254, "0.0.0.0/0", RTN_UNICAST);
        assert_eq!(
            priority(&vpn(), &[vpn_default, mesh, default], Some(51_820)),
            Some(32_765),
            "nothing in main but a default route, which is suppressed"
        );
        let routed = route(52, "192.168.0.0/16", RTN_UNICAST);
        assert_eq!(
            priority(&vpn(), &[vpn_default, routed, unallocated], Some(52)),
            Some(5270),
            "the mesh has a route to the peers"
        );
    }

    #[test]
    fn first_rule_that_matches_and_has_route_decides() {
        let here = [192, 168, 0, 0];
        let source: (u16, &[u8]) = (FRA_SRC, &here);
        let main = || lookup(32_766, 254, &[]);
        let with = |rule| vec![lookup(0, 255, &[]), rule, main()];
        let routes = [route(254, "192.168.1.0/24", RTN_UNICAST)];
        let all = route(7, "0.0.0.0/0", RTN_UNICAST);
        // A rule for other sources, another device, or with a table that has no route.
        let other = rule(50, PROHIBIT, 0, (24, 0), &[(FRA_SRC, &[10, 0, 0, 0])]);
        assert_eq!(priority(&with(other), &routes, None), None);
        let other = rule(50, PROHIBIT, 0, (0, 0), &[(FRA_IIFNAME, b"eth0\0")]);
        assert_eq!(priority(&with(other), &routes, None), None);
        let other = rule(50, PROHIBIT, 0, (0, 0), &[(FRA_OIFNAME, b"eth0\0")]);
        assert_eq!(priority(&with(other), &routes, None), None);
        assert_eq!(priority(&with(lookup(50, 7, &[])), &routes, None), None);
        // The decider.
        let own = rule(50, PROHIBIT, 0, (24, 0), &[source]);
        assert_eq!(priority(&with(own), &routes, None), Some(50));
        assert_eq!(priority(&with(lookup(50, 7, &[])), &[routes[0], all], Some(7)), Some(50));
        let thrown = TableRoute { kind: RTN_THROW, ..all };
        assert_eq!(priority(&with(lookup(50, 7, &[])), &[routes[0], thrown], None), None);
        // A rule that skips others.
        let mut rules = vec![rule(40, 2, 0, (0, 0), &[(FRA_GOTO, &60_u32.to_ne_bytes())])];
        rules.extend([lookup(50, 7, &[]), main()]);
        assert_eq!(priority(&rules, &[routes[0], all], None), None);
        // A VRF.
        let vrf = rule(1000, TO_TABLE, 0, (0, 0), &[(FRA_L3MDEV, &[1])]);
        assert_eq!(priority(&with(vrf), &[routes[0], all], Some(7)), Some(1000));
    }

    proptest::proptest! {
        #[test]
        fn parsers_accept_arbitrary_bytes(bytes: Vec<u8>) {
            drop(Rule::parse(&bytes));
            let _ = TableRoute::parse(&bytes);
        }
    }
}

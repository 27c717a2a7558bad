//! Tests of the readers of the kernel's answers, and of the thresholds.

use overlay_types::tunnel::FaultScope;

use super::ipsec::policy;
use super::settings::full_table_of_flows;
use super::traffic_control::{discipline, filter};
use super::{Impact, Interference, Remedy};

/// Returns an attribute.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns the message about the root discipline of device 7.
fn root(kind: &str, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    bytes[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend(attribute(1, &[kind.as_bytes(), b"\0"].concat()));
    bytes.extend(attribute(2, options));
    bytes
}

#[test]
fn discipline_that_drops_is_recognized() {
    let numbers = |numbers: &[u32]| -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    };
    let htb = |default, room| {
        let init = attribute(2, &numbers(&[3, 10, default, 0, 0]));
        [init, attribute(5, &numbers(&[room]))].concat()
    };
    let cases = [
        ("blackhole", vec![], Some("drops every packet")),
        ("pfifo", numbers(&[0]), Some("has limit 0, so it drops every packet")),
        ("pfifo", numbers(&[1000]), None),
        ("netem", numbers(&[0, 1000, u32::MAX, 0]), Some("drops 100 % of the packets")),
        ("netem", numbers(&[0, 1000, u32::MAX / 4, 0]), Some("drops 25 % of the packets")),
        ("netem", numbers(&[5000, 1000, 0, 0]), None),
        (
            "htb",
            htb(0, 0),
            Some("has neither a default class nor a direct queue, so it drops packets"),
        ),
        ("htb", htb(0, 1000), None),
        ("htb", htb(1, 0), None),
        ("fq_codel", attribute(1, &numbers(&[0])), None),
        ("noqueue", vec![], None),
    ];
    for (kind, options, expected) in cases {
        let found = discipline(&root(kind, &options)).unwrap();
        assert_eq!((found.device, found.is_root), (7, true));
        assert_eq!((found.kind.as_str(), found.drops.as_deref()), (kind, expected));
    }
}

#[test]
fn filter_has_name_of_its_program() {
    let bpf = root("bpf", &attribute(7, b"cil_from_netdev\0"));
    assert_eq!(filter(&bpf).as_deref(), Some("bpf cil_from_netdev"));
    assert_eq!(filter(&root("matchall", &[])).as_deref(), Some("matchall"));
}

#[test]
fn table_of_flows_is_named_from_98_percent() {
    assert_eq!(full_table_of_flows(Some(970), Some(1000), true), None);
    assert_eq!(full_table_of_flows(None, Some(1000), true), None);
    assert_eq!(full_table_of_flows(Some(5), Some(0), true), None);
    let impact = |count, is_tracked| {
        full_table_of_flows(Some(count), Some(1000), is_tracked).unwrap().impact
    };
    assert_eq!((impact(999, true), impact(1000, true)), (Impact::SomeContainers, Impact::Overlays));
    assert_eq!(impact(1000, false), Impact::SomeContainers);
    let found = full_table_of_flows(Some(980), Some(1000), true).unwrap();
    assert_eq!(
        found.to_string(),
        "the table of tracked flows is 98 % full (980 of 1000): the kernel drops the packets of new \
         flows when it is full: run 'sysctl -w net.netfilter.nf_conntrack_max=2000', which raises the limit of \
         the whole host, for about 300 bytes of memory a connection"
    );
}

#[test]
fn interference_without_command_shows_advice() {
    let interference = Interference {
        scope: FaultScope::Host,
        cause: "a cause".to_owned(),
        remedy: Remedy::Advice("an advice".to_owned()),
        impact: Impact::Overlays,
        removes_routes: false,
    };
    assert_eq!(interference.to_string(), "a cause: an advice");
}

proptest::proptest! {
    #[test]
    fn readers_accept_arbitrary_bytes(bytes: Vec<u8>) {
        let _ = (policy(&bytes), discipline(&bytes), filter(&bytes));
    }
}

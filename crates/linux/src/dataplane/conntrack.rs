//! Ends the tracking of flows that began before the firewall rules. The kernel decides about NAT
//! with the first packet of a flow, so a flow of a container that is older than the masquerade
//! keeps the container's address, and a flow that is older than the closed overlays stays
//! established. The next packet of a deleted entry begins a new flow under the current rules.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use overlay_types::tunnel::Desired;
use rustix::io::Errno;

use super::message::{Batch, Message, address, attributes, u32_at};
use super::socket::Netlink;
use super::uapi::{
    AF_UNSPEC, CTA_ID, CTA_IP_V4_DST, CTA_IP_V4_SRC, CTA_IP_V6_DST, CTA_IP_V6_SRC, CTA_STATUS,
    CTA_TUPLE_IP, CTA_TUPLE_ORIG, CTA_ZONE, IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, IPS_NAT_MASK,
    NLA_F_NESTED, NLM_F_REQUEST,
};

/// A tracked flow, with the bytes that identify it.
struct Flow {
    family: u8,
    source: IpAddr,
    destination: IpAddr,
    has_nat: bool,
    original: Vec<u8>,
    id: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// Deletes the flows between containers of the overlays and other hosts that have no NAT. Returns
/// their number.
///
/// # Errors
/// When the kernel has no connection tracking, or does not answer.
pub(super) fn forget_flows(desired: &Desired) -> io::Result<usize> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let read = |flows: &mut Vec<Flow>, message: Message<'_>| {
        flows.extend(flow(message.body).filter(|flow| is_outdated(flow, desired)));
    };
    let flows = netlink.dump(IPCTNL_MSG_CT_GET, &header(AF_UNSPEC), |_| {}, read, Vec::new)?;
    let mut deleted = 0;
    let mut batch = Batch::default();
    for flow in &flows {
        write_deletion(&mut batch, flow);
        if Netlink::is_full(&batch) {
            deleted += run(&mut netlink, &mut batch)?;
        }
    }
    Ok(deleted + run(&mut netlink, &mut batch)?)
}

/// Runs the deletions of a batch. A flow that ended meanwhile is not an error.
fn run(netlink: &mut Netlink, batch: &mut Batch) -> io::Result<usize> {
    let count = batch.count();
    let errors = netlink.run(batch)?;
    batch.clear();
    match errors.iter().find(|error| error.errno != Errno::NOENT) {
        Some(error) => Err(error.errno.into()),
        None => Ok(count - errors.len()),
    }
}

/// Returns whether a flow has one end in an overlay, the other end elsewhere, and no NAT.
fn is_outdated(flow: &Flow, desired: &Desired) -> bool {
    let is_inside = |ip: IpAddr| {
        desired.spaces.iter().flat_map(|space| &space.whole).any(|whole| whole.contains(ip))
    };
    !flow.has_nat && is_inside(flow.source) != is_inside(flow.destination)
}

/// Returns the header of a message about flows: family, version 0, and resource 0.
const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn write_deletion(batch: &mut Batch, flow: &Flow) {
    batch.begin(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST, &header(flow.family));
    batch.attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, &flow.original);
    batch.attribute(CTA_ID, &flow.id);
    if let Some(zone) = &flow.zone {
        batch.attribute(CTA_ZONE, zone);
    }
}

fn flow(body: &[u8]) -> Option<Flow> {
    let family = *body.first()?;
    let (mut original, mut id, mut zone, mut status) = (None, None, None, 0);
    for (kind, value) in attributes(body, 4) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(value),
            CTA_STATUS => status = u32::from_be(u32_at(value, 0)?),
            CTA_ID => id = Some(value.to_vec()),
            CTA_ZONE => zone = Some(value.to_vec()),
            _ => {}
        }
    }
    let original = original?;
    let (_, ends) = attributes(original, 0).find(|(kind, _)| *kind == CTA_TUPLE_IP)?;
    let end = |kinds: [u16; 2]| {
        let mut found = attributes(ends, 0).filter(|(kind, _)| kinds.contains(kind));
        found.find_map(|(_, value)| address(value))
    };
    Some(Flow {
        family,
        source: end([CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        destination: end([CTA_IP_V4_DST, CTA_IP_V6_DST])?,
        has_nat: status & IPS_NAT_MASK != 0,
        original: original.to_vec(),
        id: id?,
        zone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the attributes of a flow as the kernel does.
    fn message(source: [u8; 4], destination: [u8; 4], status: u32) -> Vec<u8> {
        let mut batch = Batch::default();
        batch.begin(0, 0, &header(2));
        batch.nested(CTA_TUPLE_ORIG, |batch| {
            batch.nested(CTA_TUPLE_IP, |batch| {
                batch.attribute(CTA_IP_V4_SRC, &source);
                batch.attribute(CTA_IP_V4_DST, &destination);
            });
        });
        batch.attribute(CTA_STATUS, &status.to_be_bytes());
        batch.attribute(CTA_ID, &[1, 2, 3, 4]);
        batch.finish(1, 0)[super::super::uapi::NLMSG_HEADER..].to_vec()
    }

    #[test]
    fn only_flows_across_the_edge_without_nat_are_outdated() {
        let space = overlay_types::tunnel::OverlaySubnets {
            overlay: "vxlan-1".parse().unwrap(),
            device: "vtep1024".parse().unwrap(),
            whole: vec!["192.168.0.0/17".parse().unwrap()],
            own: Vec::new(),
            bridges: Vec::new(),
        };
        let desired = Desired { spaces: vec![space], ..Desired::default() };
        let (inside, peer, outside) = ([192, 168, 1, 2], [192, 168, 2, 2], [10, 0, 0, 9]);
        for (source, destination, status, expected) in [
            (inside, outside, 0, true),
            (outside, inside, 0, true),
            (inside, peer, 0, false),
            (outside, outside, 0, false),
            (inside, outside, 0x10, false),
            (outside, inside, 0x20, false),
        ] {
            let flow = flow(&message(source, destination, status)).unwrap();
            assert_eq!(is_outdated(&flow, &desired), expected, "{source:?} {destination:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parser_accepts_arbitrary_bytes(bytes: Vec<u8>) {
            drop(flow(&bytes));
        }
    }
}

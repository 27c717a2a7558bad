//! The features of devices, by the netlink interface of ethtool (kernel 5.6 or later). The numbers
//! are those of `linux/genetlink.h` and `linux/ethtool_netlink.h`.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;

use super::message::{Batch, Message, attributes, text};
use super::socket::Netlink;
use super::uapi::NLM_F_REQUEST;

/// The feature with which a VXLAN device leaves checksums to the hardware. Without it the kernel
/// also divides large packets itself.
const CHECKSUM: &str = "tx-checksum-ip-generic";

const CONTROL_FAMILY: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const VERSION: u8 = 1;
const GET_FEATURES: u8 = 11;
const SET_FEATURES: u8 = 12;
const HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const DEVICE_NAME: u16 = 2;
const FLAGS: u16 = 3;
const FLAG_NO_REPLY: u32 = 2;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
/// Length of the header of generic netlink.
const GENERIC: usize = 4;

/// Returns whether a device of the calling thread's network namespace leaves checksums to the
/// hardware.
///
/// # Errors
/// When the kernel has no such interface, or there is no such device.
pub fn has_checksum_offload(device: &str) -> io::Result<bool> {
    let (mut netlink, family) = open()?;
    let mut request = Batch::default();
    request.begin(family, NLM_F_REQUEST, &[GET_FEATURES, VERSION, 0, 0]);
    request.nested(HEADER, |request| request.text(DEVICE_NAME, device));
    Ok(netlink.ask(&mut request, |answer| is_active(&answer))??)
}

/// Makes a device compute checksums in software.
///
/// # Errors
/// As [`has_checksum_offload`]; or when the device cannot change this feature.
pub(super) fn disable_checksum_offload(device: &str) -> io::Result<()> {
    let (mut netlink, family) = open()?;
    let mut request = Batch::default();
    request.begin(family, NLM_F_REQUEST, &[SET_FEATURES, VERSION, 0, 0]);
    request.nested(HEADER, |request| {
        request.text(DEVICE_NAME, device);
        request.attribute(FLAGS, &FLAG_NO_REPLY.to_ne_bytes());
    });
    // A bit without a value is 0.
    request.nested(FEATURES_WANTED, |request| {
        request.nested(BITS, |request| {
            request.nested(BIT, |request| request.text(BIT_NAME, CHECKSUM));
        });
    });
    if let Some(error) = netlink.run(&mut request)?.into_iter().next() {
        return Err(error.errno.into());
    }
    if has_checksum_offload(device)? {
        return Err(io::Error::other(format!("the kernel keeps {CHECKSUM} on")));
    }
    Ok(())
}

/// Opens a socket, and returns it with the number of ethtool's family.
fn open() -> io::Result<(Netlink, u16)> {
    let mut netlink = Netlink::open(NETLINK_GENERIC)?;
    let mut request = Batch::default();
    request.begin(CONTROL_FAMILY, NLM_F_REQUEST, &[GET_FAMILY, VERSION, 0, 0]);
    request.text(FAMILY_NAME, "ethtool");
    let family = netlink.ask(&mut request, |answer| {
        let mut found = attributes(answer.body, GENERIC);
        let (_, value) = found.find(|(kind, _)| *kind == FAMILY_ID)?;
        Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
    })?;
    let family = family.ok().flatten().ok_or_else(|| {
        let reason = "the kernel has no netlink interface of ethtool, which 5.6 and later have";
        io::Error::new(io::ErrorKind::Unsupported, reason)
    })?;
    Ok((netlink, family))
}

/// Returns whether an answer lists the feature as active.
fn is_active(answer: &Message<'_>) -> bool {
    let inside = |value: &[u8], kind: u16| {
        let found = attributes(value, 0).filter(|(found, _)| *found == kind);
        found.map(|(_, value)| value.to_vec()).collect::<Vec<_>>()
    };
    let active = attributes(answer.body, GENERIC).filter(|(kind, _)| *kind == FEATURES_ACTIVE);
    active
        .flat_map(|(_, set)| inside(set, BITS))
        .flat_map(|bits| inside(&bits, BIT))
        .any(|bit| inside(&bit, BIT_NAME).iter().any(|name| text(name) == CHECKSUM))
}

//! The VXLAN devices of a network: the one that overlays share, and those of overlays with a VNI of
//! their own.

use super::document::{Document, Object};
use super::overlay::Draft;
use crate::addr::{DeviceName, VTEP_PREFIX, Vni};
use crate::protocol::Vxlan;
use crate::tunnel::PORT_DEFAULT;

/// Reads what carries the overlays of `drafts`.
pub(super) fn read<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    drafts: &[Draft<'a>],
) -> Option<Vxlan> {
    let vni = object.value("vtep_vni").map_or(Some(Vni::DEFAULT), |node| document.vni(&node));
    let port = read_port(document, object);
    let name = read_name(document, object, vni, drafts);
    let vni = vni?;
    // `None` is a name that was refused, or none that was given.
    let device = if object.value("vtep_name").is_some() { name? } else { DeviceName::vtep(vni) };
    Some(Vxlan { vni, device, port: port? })
}

fn read_port<'a>(document: &mut Document<'a>, object: &Object<'a>) -> Option<u16> {
    const EXPECTED: &str = "1 to 65535";
    let Some(node) = object.value("vtep_port") else { return Some(PORT_DEFAULT) };
    let number = document.whole(&node, EXPECTED)?;
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        document.refuse(&node, format_args!("{number} is no UDP port: write {EXPECTED}"));
    }
    port
}

/// The name must be free on every agent, where a device of another VNI is called after that.
fn read_name<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    shared: Option<Vni>,
    drafts: &[Draft<'a>],
) -> Option<DeviceName> {
    let node = object.value("vtep_name")?;
    let name: DeviceName = document.parsed(&node, "vtep1024")?;
    if !name.is_vtep_name() {
        document.refuse(
            &node,
            format_args!(
                "'{name}' does not begin with '{VTEP_PREFIX}', by which NetworkManager and \
                 systemd-networkd know what to leave alone: write another"
            ),
        );
        return None;
    }
    let own = drafts.iter().filter_map(|draft| Some((draft, draft.vni.as_ref()?.1)));
    let mut own = own.filter(|(_, vni)| Some(*vni) != shared);
    if let Some((draft, vni)) = own.find(|(_, vni)| DeviceName::vtep(*vni) == name) {
        document.refuse(
            &node,
            format_args!(
                "'{name}' is the device of VNI {vni}, which {} has: write another",
                draft.label()
            ),
        );
        return None;
    }
    Some(name)
}

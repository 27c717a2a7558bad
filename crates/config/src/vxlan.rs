//! The VXLAN devices of a network: the shared device, and the devices of overlays that have their
//! own VNI.

use overlay_types::addr::{DeviceName, VTEP_PREFIX, Vni};
use overlay_types::protocol::Vxlan;
use overlay_types::tunnel::PORT_DEFAULT;

use super::document::{Document, Object};
use super::overlay::OverlayDraft;

/// Reads the shared VXLAN device. `drafts` are the overlays, some with their own VNIs.
pub(super) fn read<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    drafts: &[OverlayDraft<'a>],
) -> Option<Vxlan> {
    let vni = object.value("vtep_vni").map_or(Some(Vni::DEFAULT), |node| document.read_vni(&node));
    let port = read_port(document, object);
    let name = read_name(document, object, vni, drafts);
    let vni = vni?;
    // `name` is `None` if the name was refused or not given.
    let device = if object.value("vtep_name").is_some() { name? } else { DeviceName::vtep(vni) };
    Some(Vxlan { vni, device, port: port? })
}

fn read_port<'a>(document: &mut Document<'a>, object: &Object<'a>) -> Option<u16> {
    const EXPECTED: &str = "1 to 65535";
    let Some(node) = object.value("vtep_port") else { return Some(PORT_DEFAULT) };
    let number = document.read_integer(&node, EXPECTED)?;
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        document.refuse(&node, format_args!("{number} is no UDP port: write {EXPECTED}"));
    }
    port
}

/// Reads the device name. On every agent the name must not be in use by the device of another VNI,
/// whose name derives from that VNI.
fn read_name<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    shared: Option<Vni>,
    drafts: &[OverlayDraft<'a>],
) -> Option<DeviceName> {
    let node = object.value("vtep_name")?;
    let name: DeviceName = document.parse_string(&node, "vtep1024")?;
    if !name.is_vtep_name() {
        document.refuse(
            &node,
            format_args!(
                "'{name}' does not begin with '{VTEP_PREFIX}': NetworkManager and systemd-networkd \
                 ignore only devices with this prefix; write another name"
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

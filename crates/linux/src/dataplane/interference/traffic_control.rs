//! Queueing disciplines, their filters, and XDP programs on the devices of the overlays.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use overlay_types::advice::Command;

use super::super::message::{Message, attributes, text, u32_at};
use super::super::policy_rules::is_unsupported;
use super::super::socket::Netlink;
use super::super::uapi::{RTM_GETQDISC, RTM_GETTFILTER, TCA_KIND, TCA_OPTIONS};
use super::{Impact, InspectionContext, Interference, PathDevice, Remedy};

/// Parent of the discipline of a device, from `linux/pkt_sched.h`.
const TC_H_ROOT: u32 = u32::MAX;
/// The filters of packets that enter and that leave a device, from `linux/pkt_sched.h`.
const HOOKS: [(u32, &str); 2] = [(0xffff_fff2, "ingress"), (0xffff_fff3, "egress")];
/// Attributes of filters and disciplines, from `linux/pkt_cls.h` and `linux/pkt_sched.h`.
const TCA_BPF_NAME: u16 = 7;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_DIRECT_QLEN: u16 = 5;
/// Share of lost packets from which `netem` is a fault: one in a hundred.
const LOSS_MIN: u32 = u32::MAX / 100;

/// A queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Discipline {
    pub(super) device: u32,
    pub(super) kind: String,
    pub(super) is_root: bool,
    /// How it drops packets.
    pub(super) drops: Option<String>,
}

pub(super) fn find(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
) -> io::Result<Vec<Interference>> {
    let devices = context.devices();
    let disciplines = disciplines(netlink)?;
    let mut found = Vec::new();
    for device in &devices {
        let own = disciplines.iter().filter(|found| found.device == device.link.index);
        for discipline in own {
            found.extend(discipline.interference(device));
            if matches!(discipline.kind.as_str(), "clsact" | "ingress") {
                let hooks = HOOKS.iter().take(if discipline.kind == "ingress" { 1 } else { 2 });
                for (hook, name) in hooks {
                    let filters = filters(netlink, device.link.index, *hook)?;
                    found.extend(interference_of_filters(device, name, &filters));
                }
            }
        }
        found.extend(device.link.xdp.map(|program| xdp(device, program)));
    }
    Ok(found)
}

/// Lists the queueing disciplines of all devices, without those that the kernel hides.
fn disciplines(netlink: &mut Netlink) -> io::Result<Vec<Discipline>> {
    let add = |found: &mut Vec<_>, message: Message<'_>| found.extend(discipline(message.body));
    match netlink.dump(RTM_GETQDISC, &[0; 20], |_| {}, add, Vec::new) {
        Err(error) if is_unsupported(&error) => Ok(Vec::new()),
        result => result,
    }
}

pub(super) fn discipline(body: &[u8]) -> Option<Discipline> {
    let (device, parent) = (u32_at(body, 4)?, u32_at(body, 12)?);
    let (mut kind, mut drops) = (String::new(), None);
    for (attribute, value) in attributes(body, 20) {
        match attribute {
            TCA_KIND => kind = text(value),
            TCA_OPTIONS => drops = drops_of(&kind, value),
            _ => {}
        }
    }
    if kind == "blackhole" {
        drops = Some("drops every packet".to_owned());
    }
    Some(Discipline { device, kind, is_root: parent == TC_H_ROOT, drops })
}

/// Returns how a discipline drops packets, by its options.
fn drops_of(kind: &str, options: &[u8]) -> Option<String> {
    match kind {
        "pfifo" | "bfifo" | "pfifo_head_drop" if u32_at(options, 0) == Some(0) => {
            Some("has limit 0, so it drops every packet".to_owned())
        }
        "netem" => {
            let loss = u32_at(options, 8).filter(|loss| *loss >= LOSS_MIN)?;
            let percent = u64::from(loss).saturating_mul(100).div_ceil(u64::from(u32::MAX));
            Some(format!("drops {percent} % of the packets"))
        }
        // Packets of no class are sent directly, through a queue without room.
        "htb" => {
            let options: BTreeMap<u16, &[u8]> = attributes(options, 0).collect();
            let default = options.get(&TCA_HTB_INIT).and_then(|init| u32_at(init, 8));
            let room = options.get(&TCA_HTB_DIRECT_QLEN).and_then(|length| u32_at(length, 0));
            (default == Some(0) && room == Some(0)).then(|| {
                "has neither a default class nor a direct queue, so it drops packets".to_owned()
            })
        }
        _ => None,
    }
}

impl Discipline {
    fn interference(&self, device: &PathDevice<'_>) -> Option<Interference> {
        let drops = self.drops.as_ref().filter(|_| self.is_root)?;
        let (name, kind) = (&device.link.name, &self.kind);
        Some(Interference {
            scope: device.scope.clone(),
            cause: format!("the queueing discipline {kind} of {name} {drops}"),
            remedy: Remedy::Run(Command::restore_discipline(name, kind)),
            impact: Impact::Overlays,
            removes_routes: false,
        })
    }
}

/// Returns the names of the filters of a device.
fn filters(netlink: &mut Netlink, device: u32, hook: u32) -> io::Result<BTreeSet<String>> {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&device.to_ne_bytes());
    header[12..16].copy_from_slice(&hook.to_ne_bytes());
    let add = |found: &mut BTreeSet<String>, message: Message<'_>| {
        if u32_at(message.body, 4) == Some(device) {
            found.extend(filter(message.body));
        }
    };
    netlink.dump(RTM_GETTFILTER, &header, |_| {}, add, BTreeSet::new)
}

pub(super) fn filter(body: &[u8]) -> Option<String> {
    let (mut kind, mut name) = (None, None);
    for (attribute, value) in attributes(body, 20) {
        match attribute {
            TCA_KIND => kind = Some(text(value)),
            TCA_OPTIONS => {
                let mut attributes = attributes(value, 0);
                name = attributes.find(|(kind, _)| *kind == TCA_BPF_NAME);
            }
            _ => {}
        }
    }
    let kind = kind?;
    match name.filter(|_| kind == "bpf") {
        Some((_, name)) => Some(format!("{kind} {}", text(name))),
        None => Some(kind),
    }
}

fn interference_of_filters(
    device: &PathDevice<'_>,
    hook: &str,
    filters: &BTreeSet<String>,
) -> Option<Interference> {
    // A BPF program is listed once more without its name.
    let named =
        |filter: &&String| !filters.iter().any(|other| other.starts_with(&format!("{filter} ")));
    let names: Vec<_> = filters.iter().filter(named).cloned().collect();
    (!names.is_empty()).then(|| {
        let name = &device.link.name;
        Interference {
            scope: device.scope.clone(),
            cause: format!(
                "filters of {name} ({hook}: {}) may drop or redirect packets",
                names.join(", ")
            ),
            remedy: Remedy::Advice(format!(
                "see {}, and let the program that made them remove them",
                Command::show_filters(name, hook)
            )),
            impact: Impact::Possible,
            removes_routes: false,
        }
    })
}

fn xdp(device: &PathDevice<'_>, program: u32) -> Interference {
    let name = &device.link.name;
    Interference {
        scope: device.scope.clone(),
        cause: format!("XDP program {program} of {name} may drop packets that enter {name}"),
        remedy: Remedy::Advice(format!(
            "find the program that loaded it with {}, and remove it there",
            Command::show_device(name)
        )),
        impact: Impact::Possible,
        removes_routes: false,
    }
}

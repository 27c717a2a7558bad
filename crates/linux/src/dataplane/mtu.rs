//! The MTUs of the desired state: those of the VXLAN devices and of the bridges, and the reasons
//! why an underlay is too small. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Family, Mtu, Subnet};
use overlay_types::text::pluralize;
use overlay_types::tunnel::{
    ContainersMtu, Desired, FaultScope, UNDERLAY_MIN, UNDERLAY_MIN_IPV6, UnderlayMtu, VxlanDevice,
};

use super::plan::Observed;
use super::underlay::Underlay;

/// Assumed MTU of an underlay that does not exist, for a new device: the MTU of Ethernet.
const UNDERLAY_DEFAULT: u32 = 1500;
/// Number of containers that a sentence names.
const NAMED_MAX: usize = 3;

/// A reason why packets of full size do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MtuProblem {
    /// No device has the address of this host in the underlay.
    #[error(
        "no device of this host has the address {underlay}, from which device {device} sends, so \
         the MTU of the underlay is unknown: restore the address, or register the agent with \
         another one"
    )]
    NoUnderlay {
        /// Our device.
        device: DeviceName,
        /// The address.
        underlay: IpAddr,
    },
    /// The underlay carries no overlay, or none of IPv6.
    #[error(
        "{} an MTU of {}, and {family} overlays need {least}: if the network carries {least} \
         bytes, raise it, which changes all traffic of {}{}",
        describe_limit(.underlay),
        .underlay.mtu,
        .underlay.device,
        if *.family == Family::V6 { "; otherwise remove subnet6 of the overlay" } else { "" }
    )]
    UnderlayTooSmall {
        /// Our device.
        device: DeviceName,
        /// The underlay.
        underlay: Underlay,
        /// The family of the overlays.
        family: Family,
        /// The least MTU of the underlay.
        least: u32,
        /// The subnet that is not carried. `None` if it is all of the device.
        subnet: Option<Subnet>,
    },
    /// The master sets an MTU that carries no overlay, or none of IPv6.
    #[error(
        "the vtep_mtu of the master gives device {device} an MTU of {mtu}, and {family} overlays \
         need {least}: raise or remove vtep_mtu"
    )]
    VtepMtuTooSmall {
        /// Our device.
        device: DeviceName,
        /// The MTU.
        mtu: Mtu,
        /// The family of the overlays.
        family: Family,
        /// The least MTU of the device.
        least: u32,
        /// The subnet that is not carried. `None` if it is all of the device.
        subnet: Option<Subnet>,
    },
    /// The configured MTU of the containers exceeds the MTU of the device. The device is programmed
    /// anyway.
    #[error(
        "device {device} has an MTU of {mtu}, and the containers have one of {containers}: set \
         network_config.overlay_mtu to {mtu} or less, or remove it, or raise the MTU of the device \
         with {underlay} to {}",
        .containers.bytes() + .overhead
    )]
    ContainersDoNotFit {
        /// Our device.
        device: DeviceName,
        /// Its MTU.
        mtu: Mtu,
        /// MTU of the containers.
        containers: Mtu,
        /// The bytes that VXLAN adds to each packet.
        overhead: u32,
        /// This host's address in the underlay.
        underlay: IpAddr,
    },
}

impl MtuProblem {
    /// Returns the object that the problem affects.
    #[must_use]
    pub fn scope(&self) -> FaultScope {
        match self {
            Self::UnderlayTooSmall { subnet: Some(subnet), .. }
            | Self::VtepMtuTooSmall { subnet: Some(subnet), .. } => FaultScope::Subnet(*subnet),
            Self::NoUnderlay { device, .. }
            | Self::UnderlayTooSmall { device, .. }
            | Self::VtepMtuTooSmall { device, .. }
            | Self::ContainersDoNotFit { device, .. } => FaultScope::Device(device.clone()),
        }
    }
}

/// Names what determines the MTU of the underlay.
fn describe_limit(underlay: &Underlay) -> String {
    let device = &underlay.device;
    match underlay.limited_route {
        Some(peer) => format!("the route to {peer} through {device} has"),
        None => format!("underlay device {device} has"),
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} an MTU of {}", describe_limit(self), self.mtu)
    }
}

/// Returns the MTU of a desired device.
pub(super) fn target_mtu(local: &VxlanDevice, observed: &Observed) -> Result<Mtu, MtuProblem> {
    let (device, overhead, family) = (local.device.clone(), local.overhead(), Family::V4);
    let Some(underlay) = observed.underlays.get(&local.underlay) else {
        let current = observed.state.devices.get(&local.device).map(|device| device.link.mtu);
        let assumed = Mtu::new(UNDERLAY_DEFAULT - overhead).unwrap_or(Mtu::OVERLAY_DEFAULT);
        return Ok(local.mtu.or(current).unwrap_or(assumed));
    };
    let is_derived = matches!(local.containers_mtu, Some(ContainersMtu::Derived(_)));
    if underlay.mtu.bytes() < UNDERLAY_MIN && (is_derived || local.mtu.is_none()) {
        let (underlay, least) = (underlay.clone(), UNDERLAY_MIN);
        return Err(MtuProblem::UnderlayTooSmall { device, underlay, family, least, subnet: None });
    }
    let least = UNDERLAY_MIN - overhead;
    let mtu =
        local.mtu.unwrap_or_else(|| Mtu::new(local.mtu_on(underlay.mtu)).unwrap_or(underlay.mtu));
    if mtu.bytes() < least {
        return Err(MtuProblem::VtepMtuTooSmall { device, mtu, family, least, subnet: None });
    }
    Ok(mtu)
}

/// Returns whether a device with this MTU carries IPv6.
pub(super) fn carries_ipv6(local: &VxlanDevice, mtu: Mtu, observed: &Observed) -> bool {
    let underlay = observed.underlays.get(&local.underlay);
    mtu.bytes() >= Mtu::MIN_IPV6 && underlay.is_none_or(|underlay| local.carries_ipv6(underlay.mtu))
}

/// Returns the problems of a device with the target MTU `mtu`.
pub(super) fn problems(
    local: &VxlanDevice,
    mtu: Mtu,
    desired: &Desired,
    observed: &Observed,
) -> Vec<MtuProblem> {
    let mut problems = Vec::new();
    let device = || local.device.clone();
    if observed.missing_underlays.contains(&local.underlay) {
        problems.push(MtuProblem::NoUnderlay { device: device(), underlay: local.underlay });
    }
    if let Some(ContainersMtu::Configured(containers)) = local.containers_mtu
        && containers > mtu
    {
        let (overhead, underlay) = (local.overhead(), local.underlay);
        let device = device();
        problems.push(MtuProblem::ContainersDoNotFit {
            device,
            mtu,
            containers,
            overhead,
            underlay,
        });
    }
    if local.ip6.is_some() && !carries_ipv6(local, mtu, observed) {
        let spaces = desired.spaces.iter().filter(|space| space.device == local.device);
        let wholes = spaces.flat_map(|space| &space.whole);
        for subnet in wholes.filter(|whole| whole.family() == Family::V6) {
            problems.push(too_small_for_ipv6(local, mtu, observed, *subnet));
        }
    }
    problems
}

fn too_small_for_ipv6(
    local: &VxlanDevice,
    mtu: Mtu,
    observed: &Observed,
    subnet: Subnet,
) -> MtuProblem {
    let (device, family, subnet) = (local.device.clone(), Family::V6, Some(subnet));
    let is_of_master = local.mtu.is_some_and(|mtu| mtu.bytes() < Mtu::MIN_IPV6);
    match observed.underlays.get(&local.underlay).filter(|_| !is_of_master) {
        Some(underlay) => {
            let underlay = underlay.clone();
            let least = match local.containers_mtu {
                Some(ContainersMtu::Derived(_)) => UNDERLAY_MIN_IPV6,
                Some(ContainersMtu::Configured(_)) | None => Mtu::MIN_IPV6 + local.overhead(),
            };
            MtuProblem::UnderlayTooSmall { device, underlay, family, least, subnet }
        }
        None => MtuProblem::VtepMtuTooSmall { device, mtu, family, least: Mtu::MIN_IPV6, subnet },
    }
}

/// Returns the MTU of a bridge. A bridge forwards to its ports what fits itself, so packets for a
/// container with a smaller MTU would be lost without an ICMP error.
pub(super) fn bridge_mtu(
    containers: Option<ContainersMtu>,
    seen: Mtu,
    ports: Option<&Vec<(String, Mtu)>>,
    has_ipv6: bool,
) -> Mtu {
    match containers {
        None => seen,
        Some(ContainersMtu::Configured(mtu)) => mtu.max(seen),
        Some(ContainersMtu::Derived(mtu)) => {
            let ports = ports.into_iter().flatten().map(|(_, port)| *port);
            let ipv6 = Mtu::new(Mtu::MIN_IPV6).ok().filter(|least| has_ipv6 && mtu >= *least);
            let least = ports.min().map_or(mtu, |port| port.min(mtu));
            ipv6.map_or(least, |ipv6| ipv6.max(least))
        }
    }
}

impl Observed {
    /// Returns the MTU of the underlay of the first desired device, if it is known.
    #[must_use]
    pub fn underlay_mtu(&self, desired: &Desired) -> Option<UnderlayMtu> {
        let local = desired.vxlan_devices.first()?;
        let underlay = self.underlays.get(&local.underlay)?;
        Some(UnderlayMtu { mtu: underlay.mtu, is_routed: underlay.is_routed })
    }

    /// Returns the containers that keep another MTU than the desired one, one sentence for each
    /// bridge and MTU. Docker gives all containers of a network its MTU, and a network with another
    /// MTU is named itself.
    #[must_use]
    pub fn kept_mtus(&self, desired: &Desired) -> Vec<String> {
        let mut sentences = Vec::new();
        for space in &desired.spaces {
            let local = desired.vxlan_devices.iter().find(|local| local.device == space.device);
            let Some(containers) = local.and_then(|local| local.containers_mtu) else { continue };
            let bridge = space.overlay.mesos_bridge();
            let mut kept: BTreeMap<Mtu, Vec<&str>> = BTreeMap::new();
            for (port, mtu) in self.ports.get(&bridge).into_iter().flatten() {
                if *mtu != containers.mtu() {
                    kept.entry(*mtu).or_default().push(port);
                }
            }
            for (mtu, ports) in kept {
                let count = pluralize(ports.len(), "container");
                let more = if ports.len() > NAMED_MAX { ", …" } else { "" };
                let ports: Vec<&str> = ports.into_iter().take(NAMED_MAX).collect();
                let (ports, desired) = (ports.join(", "), containers.mtu());
                sentences.push(format!(
                    "{count} of overlay {} (ports {ports}{more} of {bridge}) with an MTU of {mtu} \
                     instead of {desired}: restart them as tasks of their framework to change it",
                    space.overlay
                ));
            }
        }
        sentences
    }
}

/// Returns whether a device carries a family.
pub(super) const fn is_carried(family: Family, has_ipv6: bool) -> bool {
    matches!(family, Family::V4) || has_ipv6
}

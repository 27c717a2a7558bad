//! Releases the leases of containers that are gone, and finds ranges that are nearly full.

use overlay_linux::cni::{self, CniError, ContainerEvidence, Lease, Leases, StaleLeases};
use overlay_linux::dataplane::{ContainerPorts, Dataplane, DataplaneError};
use overlay_linux::firewall;
use overlay_types::addr::{DeviceName, Subnet};
use overlay_types::repetition::Repetitions;
use overlay_types::tunnel::{Desired, OverlaySubnets};
use tokio::time::Instant;

/// Maximum number of released leases that a line of the log names.
const NAMED_MAX: usize = 8;

/// The result of one look at the leases of all overlays.
#[derive(Debug, Default)]
pub(super) struct LeaseReport {
    /// Number of the leases that were released.
    pub(super) released: u64,
    /// The ranges that are nearly full, one sentence each.
    pub(super) warnings: Vec<String>,
}

/// Releases the leases of one host.
pub(super) struct LeaseReaper {
    leases: Leases,
    stale: StaleLeases,
    start: Instant,
    errors: Repetitions,
}

#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("{0}")]
    Cni(#[from] CniError),
    #[error("{0}")]
    Dataplane(#[from] DataplaneError),
}

impl LeaseReaper {
    pub(super) fn new(leases: Leases) -> Self {
        let (stale, errors) = (StaleLeases::default(), Repetitions::new());
        Self { leases, stale, start: Instant::now(), errors }
    }

    /// Releases the leases of the overlays whose containers are gone.
    pub(super) fn run(&mut self, desired: &Desired, dataplane: &mut Dataplane) -> LeaseReport {
        let mut report = LeaseReport::default();
        if desired.spaces.is_empty() {
            return report;
        }
        // A container that starts meanwhile may have a lease without a port here. `release` reads
        // the ports again.
        let ports = match dataplane.container_ports(false) {
            Ok(ports) => ports,
            Err(error) => {
                self.log_error(&format!("look for containers: {error}"));
                return report;
            }
        };
        for space in &desired.spaces {
            if let Err(error) = self.run_overlay(space, &ports, dataplane, &mut report) {
                let overlay = &space.overlay;
                self.log_error(&format!("overlay {overlay}: look for stale leases: {error}"));
            }
        }
        report
    }

    /// Removes the port mappings of stale leases, which a container without DEL leaves. Returns
    /// whether they are gone: otherwise the leases stay, since a port would lead to the next
    /// container with the address.
    fn remove_port_mappings(&mut self, space: &OverlaySubnets, stale: &[Lease]) -> bool {
        let addresses = stale.iter().map(|lease| lease.address).collect();
        let removed = firewall::unmap_ports(&addresses);
        if let Err(error) = &removed {
            let overlay = &space.overlay;
            self.log_error(&format!(
                "overlay {overlay}: the leases of containers that are gone stay, since a port \
                 would lead to the next container: {error}: see why root cannot change the tables \
                 of nftables or iptables on this host"
            ));
        }
        removed.is_ok()
    }

    fn log_error(&mut self, problem: &str) {
        if let Some(repetition) = self.errors.note(problem) {
            log::warn!("{problem}{repetition}");
        }
    }

    fn run_overlay(
        &mut self,
        space: &OverlaySubnets,
        ports: &ContainerPorts,
        dataplane: &mut Dataplane,
        report: &mut LeaseReport,
    ) -> Result<(), LeaseError> {
        let Some((name, range)) = range_at(space, &space.overlay.mesos_bridge()) else {
            return Ok(());
        };
        let mut leases = self.leases.of_containers(&space.overlay)?;
        let connected = ports.count_at(name.as_str());
        // A container has one lease of each family.
        let is_v4 = |lease: &&Lease| lease.address.is_ipv4();
        let count4 = leases.iter().filter(is_v4).count();
        if count4.max(leases.len() - count4) > connected {
            report.released += self.release(space, name, dataplane)?;
            leases = self.leases.of_containers(&space.overlay)?;
        }
        report.warnings.extend(cni::nearly_full(&space.overlay, range, &leases, connected));
        Ok(())
    }

    /// Releases the stale leases of an overlay. Returns their number.
    fn release(
        &mut self,
        space: &OverlaySubnets,
        bridge: &DeviceName,
        dataplane: &mut Dataplane,
    ) -> Result<u64, LeaseError> {
        // The plugin has the lock: the next verification tries again.
        let Some(locked) = self.leases.try_lock(&space.overlay)? else { return Ok(0) };
        let leases = locked.list()?;
        let evidence = ContainerEvidence::new(dataplane.container_ports(true)?, bridge);
        let stale = self.stale.find(&space.overlay, &leases, &evidence, self.start.elapsed())?;
        if stale.is_empty() || !self.remove_port_mappings(space, &stale) {
            return Ok(0);
        }
        for lease in &stale {
            locked.release(lease)?;
        }
        log::warn!("overlay {}: released {}", space.overlay, describe(&stale));
        Ok(stale.len() as u64)
    }
}

/// Returns the device of a bridge and the IPv4 addresses of its containers.
pub(super) fn range_at<'a>(
    space: &'a OverlaySubnets,
    name: &DeviceName,
) -> Option<(&'a DeviceName, &'a Subnet)> {
    let bridge = space.bridges.iter().find(|bridge| bridge.device == *name)?;
    let range = bridge.subnets.iter().find(|subnet| subnet.first().is_ipv4())?;
    Some((&bridge.device, range))
}

/// Names released leases with their containers.
fn describe(leases: &[Lease]) -> String {
    let named = leases
        .iter()
        .take(NAMED_MAX)
        .map(|lease| format!("{} of container {}", lease.address, lease.container.escape_debug()));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = leases.len().saturating_sub(NAMED_MAX);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    format!("the leases of containers that are gone: {named}{rest}")
}

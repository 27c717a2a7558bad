//! Removes leaked leases under the lock of host-local. Everything that makes a lease a leak is read
//! again under the lock: the plugin adds and removes no lease meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlay_linux::cni::{LeaseFiles, LeaseState, Leases, LockedLeases};
use overlay_linux::dataplane::Dataplane;
use overlay_linux::firewall;
use overlay_types::addr::OverlayName;

use super::check::{Problem, ProblemKind, Repair};
use super::host::{Observation, judge, read_ports};
use crate::cli::Failure;
use crate::cli::http_client::block_on;

/// Number of attempts to take the lock, and the time between two. The plugin holds it for some
/// milliseconds.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Removes the leases of the problems that are leaks, and notes the result of each.
pub(super) fn release(observed: &Observation, problems: &mut [Problem]) {
    let Some(store) = &observed.lease_store else { return };
    for overlay in observed.leases.keys() {
        let name = overlay.to_string();
        let is_leak = |problem: &&mut Problem| {
            problem.kind == ProblemKind::Leak && problem.overlay.as_deref() == Some(&name)
        };
        let mut leaks: Vec<&mut Problem> = problems.iter_mut().filter(is_leak).collect();
        if leaks.is_empty() {
            continue;
        }
        let addresses: BTreeSet<IpAddr> = leaks.iter().filter_map(|leak| leak.address).collect();
        let results = release_overlay(observed, store, overlay, &addresses);
        for leak in &mut leaks {
            leak.repair = Some(match &results {
                Err(reason) => Repair::Failed(reason.clone()),
                Ok(failed) => {
                    let failure = failed.iter().find(|(address, _)| Some(*address) == leak.address);
                    failure.map_or(Repair::Fixed, |(_, reason)| Repair::Failed(reason.clone()))
                }
            });
        }
    }
}

/// Removes the leaked leases of an overlay. Returns the leases that stay, and why.
fn release_overlay(
    observed: &Observation,
    store: &Leases,
    overlay: &OverlayName,
    addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<(IpAddr, String)>, String> {
    let locked = lock(store, overlay)?;
    let leases = locked.list().map_err(|error| error.to_string())?;
    let files = LeaseFiles { leases, ..LeaseFiles::default() };
    let mut kernel = Dataplane::open().map_err(|error| error.to_string())?;
    let ports = read_ports(&mut kernel).map_err(|error| error.to_string())?;
    let bridges = kernel.bridges().map_err(|error| error.to_string())?;
    let mesos = observed.halves.get(overlay).map(|halves| halves.mesos.clone()).unwrap_or_default();
    let states = judge(overlay, &files, &ports, &bridges, &mesos);
    let states = states.map_err(|error| error.to_string())?;
    let mut failed = Vec::new();
    for (lease, state) in files.leases.iter().zip(states) {
        if !addresses.contains(&lease.address) {
            continue;
        }
        if state != LeaseState::Leaked {
            failed.push((lease.address, "the address may be in use now".to_owned()));
        } else if let Err(error) = firewall::unmap_ports(&BTreeSet::from([lease.address])) {
            // A port of the host would lead to the next container with the address.
            failed.push((lease.address, error.to_string()));
        } else if let Err(error) = locked.release(lease) {
            failed.push((lease.address, error.to_string()));
        }
    }
    Ok(failed)
}

fn lock(store: &Leases, overlay: &OverlayName) -> Result<LockedLeases, String> {
    for attempt in 0..LOCK_ATTEMPTS {
        if attempt > 0 {
            let interval = async {
                tokio::time::sleep(LOCK_INTERVAL).await;
                Ok::<_, Failure>(())
            };
            block_on(interval).map_err(|failure| failure.to_string())?;
        }
        if let Some(locked) = store.try_lock(overlay).map_err(|error| error.to_string())? {
            return Ok(locked);
        }
    }
    Err("the CNI plugin host-local holds the lock of its leases: try again".to_owned())
}

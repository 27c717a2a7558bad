//! The VXLAN dataplane: brings the kernel's devices, addresses, neighbours, forwarding entries and
//! routes to the state that [`crate::tunnel`] describes, and keeps them there. What is decided is
//! in [`plan()`], which is pure; the rest reads and writes, by netlink from this process.
//!
//! Ours is what bears our mark: a device by its alias, all that is on it, and routes by their
//! protocol number. Nothing else is ever changed or removed. Everything happens in the network
//! namespace of the thread that calls [`Dataplane::open`], which must be the one that goes on
//! calling. All calls block, for milliseconds.

mod apply;
mod bridge;
mod change;
mod error;
mod message;
mod monitor;
mod observe;
mod plan;
mod socket;
mod state;
mod sysctl;
#[cfg(test)]
mod tests;
mod uapi;
mod wiring;

use std::collections::BTreeMap;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_ROUTE;

pub use bridge::Bridge;
pub use change::plan_change;
pub use error::{DataplaneError, Failure};
pub use monitor::{Heard, Monitor, Watch};
pub use plan::{METRIC_UNALLOCATED, Observed, Plan, Problem, plan, target};
pub use state::{Device, Hop, Identity, Link, Operation, RouteKey, State};
pub use wiring::{Wiring, WiringError};

use self::observe::Indices;
use self::socket::Netlink;
use crate::tunnel::{Collision, Desired, Fault, HostAddress, HostRoute, collisions};

/// Protocol number of our routes, by which we know them again. One that is given to nobody in
/// `rtnetlink.h`, and used by none of the routing daemons that we know of.
pub const PROTOCOL: u8 = 109;
/// Alias of our devices, by which we know them again.
pub const MARK: &str = "mesos-overlay";
/// How often a state is read anew that others change while we do. What is still not right then has
/// its next chance at the next verification.
const ROUNDS: usize = 3;

/// What came of a verification or a change.
#[derive(Debug, Default)]
pub struct Report {
    /// What was changed, in order. Nothing, if all was right.
    pub done: Vec<Operation>,
    /// What the kernel refused.
    pub failures: Vec<Failure>,
    /// What is left out, and why.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether everything is as it is wanted.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.problems.is_empty()
    }

    /// What is not as it is wanted.
    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        let failed = |failure: &Failure| Fault {
            part: failure.operation.part(),
            reason: failure.to_string(),
        };
        let left_out =
            |problem: &Problem| Fault { part: problem.part(), reason: problem.to_string() };
        self.failures.iter().map(failed).chain(self.problems.iter().map(left_out))
    }
}

/// The kernel's part of the overlays on this host.
#[derive(Debug)]
pub struct Dataplane {
    netlink: Netlink,
    indices: Indices,
    /// `None` if it is in doubt.
    known: Option<Known>,
}

/// What there was when we last looked, and what we have done since.
#[derive(Debug)]
struct Known {
    observed: Observed,
    /// What that is all of, unless a peer was left out.
    settled: Option<Arc<Desired>>,
}

impl Dataplane {
    /// The dataplane of the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, DataplaneError> {
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(DataplaneError::Open)?;
        Ok(Self { netlink, indices: BTreeMap::new(), known: None })
    }

    /// What there is. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn observe(&mut self, desired: &Desired) -> Result<Observed, DataplaneError> {
        self.known = None;
        let (observed, indices) =
            observe::observe(&mut self.netlink, desired).map_err(DataplaneError::Read)?;
        self.indices = indices;
        Ok(observed)
    }

    /// What of `desired` the host's own routes and addresses stand in the way of. Needs no
    /// privilege. To be asked for before it is programmed; what we programmed does not count.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn collisions(&mut self, desired: &Desired) -> Result<Vec<Collision>, DataplaneError> {
        let (routes, addresses) = self.surroundings()?;
        Ok(collisions(desired, &routes, &addresses))
    }

    /// The host's routes that lead somewhere or are ours, and its addresses. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn surroundings(&mut self) -> Result<(Vec<HostRoute>, Vec<HostAddress>), DataplaneError> {
        observe::surroundings(&mut self.netlink).map_err(DataplaneError::Read)
    }

    /// Compares the kernel with what is wanted, and mends what differs. What is right stays as it
    /// is, and so does all traffic through it.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn verify(&mut self, desired: &Arc<Desired>) -> Result<Report, DataplaneError> {
        let mut report = Report::default();
        for _ in 0..ROUNDS {
            let observed = self.observe(desired)?;
            if !self.step(desired, Known { observed, settled: None }, &mut report) {
                break;
            }
        }
        Ok(report)
    }

    /// Brings about what changed in what is wanted, on the word of the last verification instead of
    /// a new one: for one peer that came or went it costs a few operations.
    ///
    /// # Errors
    /// When the kernel's state must be read and cannot be.
    pub fn update(&mut self, desired: &Arc<Desired>) -> Result<Report, DataplaneError> {
        let mut report = Report::default();
        match self.known.take() {
            // The MTU of an underlay that was not asked for before is not known.
            Some(known) if is_known(desired, &known.observed) => {
                if self.step(desired, known, &mut report) || !report.failures.is_empty() {
                    let done = std::mem::take(&mut report.done);
                    report = self.verify(desired)?;
                    report.done.splice(0..0, done);
                }
                Ok(report)
            }
            _ => self.verify(desired),
        }
    }

    /// One plan, done. Whether another round is needed.
    fn step(&mut self, desired: &Arc<Desired>, known: Known, report: &mut Report) -> bool {
        let Known { mut observed, settled } = known;
        let plan = plan_change(settled.as_deref(), desired, &observed);
        let settled = plan.leaves_out_no_peer().then(|| Arc::clone(desired));
        let applied = apply::apply(&mut self.netlink, &mut self.indices, plan.operations);
        applied.done.iter().for_each(|operation| observed.state.perform(operation));
        report.done.extend(applied.done);
        report.failures = applied.failures;
        report.problems = plan.problems;
        if applied.is_stale {
            return true;
        }
        if report.failures.is_empty() {
            self.known = Some(Known { observed, settled });
        }
        false
    }

    /// Removes everything that is ours from the kernel.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn clean(&mut self) -> Result<Report, DataplaneError> {
        self.verify(&Arc::default())
    }

    /// The bridges of this host, ours or not: those of the containers are made by the CNI plugin
    /// and by Docker. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn bridges(&mut self) -> Result<Vec<Bridge>, DataplaneError> {
        bridge::bridges(&mut self.netlink).map_err(DataplaneError::Read)
    }

    /// Removes a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_bridge(&mut self, bridge: &Bridge) -> Result<(), DataplaneError> {
        bridge::remove(&mut self.netlink, bridge)
            .map_err(|error| DataplaneError::Remove(bridge.name.clone(), error))
    }

    /// What a [`Monitor`] should listen for. To be asked for again after each call that changed
    /// something.
    #[must_use]
    pub fn watch(&self, desired: &Desired) -> Watch {
        let underlays: Vec<_> = desired.locals.iter().map(|local| local.underlay).collect();
        let underlay_indices = self.known.iter().flat_map(|known| &known.observed.underlay_indices);
        Watch {
            devices: desired.locals.iter().map(|local| local.device.clone()).collect(),
            indices: self.indices.values().chain(underlay_indices).copied().collect(),
            underlays,
            spaces: desired.spaces.iter().flat_map(|space| space.whole.iter().copied()).collect(),
        }
    }
}

/// Whether all that the plan needs to know was looked at.
fn is_known(desired: &Desired, observed: &Observed) -> bool {
    desired.locals.iter().all(|local| {
        observed.state.devices.contains_key(&local.device)
            && observed.underlay_mtus.contains_key(&local.underlay)
    })
}

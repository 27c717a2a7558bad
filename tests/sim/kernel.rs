//! The kernel of an agent's host, with the real plan and the real effect of every operation. It
//! refuses operations, hangs, has foreign changes, and keeps its state when the agent is killed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use overlay_engine::agent::{FirewallState, Programmed, Scope};
use overlay_linux::dataplane::{
    Hop, Observed, Operation, RouteKey, State, Underlay, plan, plan_change,
};
use overlay_types::addr::{DeviceName, Mac, Mtu, Subnet};
use overlay_types::tunnel::{Collision, Desired, Fault, HostAddress, HostRoute, collisions};

use crate::chance::Chance;
use crate::host::SIMULATED;
use crate::scenario::Faults;

/// How long a job takes without faults, besides the time for each peer.
const USUAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// The time for each peer, measured while a kernel programs thousands of peers.
const PEER: Duration = Duration::from_micros(20);
/// The longest time for which a job hangs.
const HANGING: Duration = Duration::from_secs(20);

/// A job of the agent for the kernel.
pub(crate) enum Job {
    Inspect(Arc<Desired>),
    Program(Arc<Desired>, Scope),
}

/// The outcome of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum JobOutcome {
    Works,
    /// Nothing can be read, and nothing is programmed.
    Fails,
    /// This share of the operations is refused.
    Refuses(f64),
}

/// The result of a job.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) result: Programmed,
    pub(crate) operations: Vec<Operation>,
    /// Whether the kernel was observed and now has the desired state.
    pub(crate) is_exact: bool,
}

/// Returns the state of the firewall, whose rules are not simulated.
const fn rules() -> FirewallState {
    FirewallState {
        backend: "nftables",
        inner_check: Some("pair"),
        keeps_agents: false,
        forwarding: "tracked",
    }
}

/// One kernel.
#[derive(Default)]
pub(crate) struct Kernel {
    actual: Rc<Observed>,
    /// The last observation of the agent's process; `None` if there is none, or it is uncertain.
    known: Option<Rc<Observed>>,
    /// The desired state of that observation, as in `dataplane::Dataplane`.
    settled: Option<Arc<Desired>>,
    /// The host's own routes that may overlap an overlay.
    pub(crate) obstacles: Vec<HostRoute>,
    /// Whether the process was notified of changes since its last job.
    pub(crate) is_notified: bool,
    /// The programmed peers of a kernel that only takes time.
    plain: Option<BTreeMap<IpAddr, Mac>>,
}

impl Kernel {
    /// Returns a kernel without faults that is cheap to simulate.
    pub(crate) fn plain() -> Self {
        Self { plain: Some(BTreeMap::new()), ..Self::default() }
    }

    pub(crate) fn state(&self) -> &State {
        &self.actual.state
    }

    /// Drops the observation, for a new process.
    pub(crate) fn forget(&mut self) {
        self.known = None;
        self.is_notified = true;
    }

    /// Returns when a job that begins now ends, and its outcome.
    pub(crate) fn begin(
        now: Duration,
        job: &Job,
        faults: Option<&Faults>,
        chance: &mut Chance,
    ) -> (Duration, JobOutcome) {
        let peers = match job {
            Job::Inspect(_) => 0,
            Job::Program(desired, _) => desired.peers.as_ref().map_or(0, BTreeMap::len),
        };
        let mut end = now + Self::programming_time(peers, chance);
        let mut outcome = JobOutcome::Works;
        if faults.is_some_and(|faults| chance.is(faults.kernel)) {
            outcome = if chance.is(0.4) { JobOutcome::Fails } else { JobOutcome::Refuses(0.3) };
            if chance.is(0.3) {
                end += chance.time_up_to(HANGING);
            }
        }
        (end, outcome)
    }

    /// Returns how long a job with so many peers takes without faults. A job whose peers change
    /// little is as long as the first job.
    pub(crate) fn programming_time(peers: usize, chance: &mut Chance) -> Duration {
        let peers = PEER * u32::try_from(peers).unwrap_or(u32::MAX);
        chance.time_between(USUAL.0, USUAL.1) + peers
    }

    pub(crate) fn inspect(
        &self,
        claims: &Desired,
        outcome: JobOutcome,
    ) -> Result<Vec<Collision>, String> {
        match outcome {
            JobOutcome::Fails => Err(format!("{SIMULATED}: the routes cannot be read")),
            JobOutcome::Works | JobOutcome::Refuses(_) => {
                let (routes, addresses) = self.surroundings();
                Ok(collisions(claims, &routes, &addresses))
            }
        }
    }

    /// Returns the host's own routes, unusable managed routes, and the addresses of managed
    /// devices.
    fn surroundings(&self) -> (Vec<HostRoute>, Vec<HostAddress>) {
        let State { routes, devices, .. } = self.state();
        let ours = routes.iter().filter(|(_, hop)| **hop == Hop::Unreachable).map(|(key, _)| {
            HostRoute { subnet: key.subnet, device: None, gateway: None, is_ours: true }
        });
        let addresses = devices.iter().flat_map(|(name, device)| {
            let of_device = |&address| HostAddress { address, device: name.to_string() };
            device.addresses.iter().map(of_device)
        });
        (self.obstacles.iter().cloned().chain(ours).collect(), addresses.collect())
    }

    /// Programs the desired state, as `dataplane::Dataplane` does.
    pub(crate) fn program(
        &mut self,
        (desired, scope): (&Arc<Desired>, Scope),
        outcome: JobOutcome,
        chance: &mut Chance,
    ) -> Done {
        self.is_notified = false;
        let mut done = Done::default();
        if let Some(plain) = &mut self.plain {
            done.result.firewall = Some(rules());
            let Some(local) = desired.vxlan_devices.first() else { return done };
            for (agent, peer) in desired.peers.iter().flatten() {
                if plain.insert(*agent, peer.mac) != Some(peer.mac) {
                    let device = local.device.clone();
                    done.operations.push(Operation::SetForward(device, peer.mac, *agent));
                }
            }
            return done;
        }
        if outcome == JobOutcome::Fails {
            let reason = format!("{SIMULATED}: the kernel does not answer");
            done.result.faults.push(Fault::of_host(reason));
            return done;
        }
        done.result.firewall = Some(rules());
        let has_devices = |known: &&Rc<Observed>| {
            let mut vxlan_devices = desired.vxlan_devices.iter();
            vxlan_devices.all(|local| known.state.devices.contains_key(&local.device))
        };
        let is_change = !scope.has_kernel() && self.known.as_ref().filter(has_devices).is_some();
        let mut is_to_be_read = !is_change;
        if is_change {
            is_to_be_read = !self.step(desired, outcome, chance, &mut done);
        }
        if is_to_be_read {
            self.known = Some(self.read(desired));
            self.settled = None;
            done.is_exact = self.step(desired, outcome, chance, &mut done);
        }
        done.result.underlay_mtu =
            self.known.as_ref().and_then(|known| known.underlay_mtu(desired));
        done.result.changes = done.operations.len() as u64;
        let examples = done.operations.iter().take(Programmed::EXAMPLES);
        done.result.examples = examples.map(ToString::to_string).collect();
        done
    }

    /// Runs the beginning of a job whose process was killed.
    pub(crate) fn program_in_part(&mut self, desired: &Desired, chance: &mut Chance) -> Done {
        let observed = self.read(desired);
        let mut operations = plan(desired, &observed).operations;
        operations.truncate(chance.index(operations.len() + 1));
        let actual = &mut Rc::make_mut(&mut self.actual).state;
        operations.iter().for_each(|operation| actual.perform(operation));
        self.known = None;
        Done { operations, ..Done::default() }
    }

    fn read(&mut self, desired: &Desired) -> Rc<Observed> {
        let is_known = |underlay: &IpAddr| self.actual.underlays.contains_key(underlay);
        let underlays = desired.vxlan_devices.iter().map(|local| local.underlay);
        let unknown: Vec<IpAddr> = underlays.filter(|underlay| !is_known(underlay)).collect();
        if !unknown.is_empty() {
            let ethernet = Underlay {
                device: "eth0".to_owned(),
                mtu: Mtu::new(1500).expect("it is an MTU"),
                limited_route: None,
                is_routed: true,
                others: Vec::new(),
            };
            let ways = unknown.into_iter().map(|underlay| (underlay, ethernet.clone()));
            Rc::make_mut(&mut self.actual).underlays.extend(ways);
        }
        Rc::clone(&self.actual)
    }

    /// Applies a plan. Returns whether all of it was applied.
    fn step(
        &mut self,
        desired: &Arc<Desired>,
        outcome: JobOutcome,
        chance: &mut Chance,
        done: &mut Done,
    ) -> bool {
        let Some(mut known) = self.known.take() else { return false };
        let plan = plan_change(self.settled.take().as_deref(), desired, &known);
        self.settled = plan.includes_every_peer().then(|| Arc::clone(desired));
        let is_as_known = Rc::ptr_eq(&known, &self.actual);
        if is_as_known {
            // Avoids a copy of the shared state.
            drop(std::mem::take(&mut known));
        }
        done.result.faults.clear();
        for problem in plan.problems {
            done.result.faults.push(Fault { scope: problem.scope(), reason: problem.to_string() });
        }
        let share = if let JobOutcome::Refuses(share) = outcome { share } else { 0.0 };
        let mut is_done = true;
        for operation in plan.operations {
            let is_there = device_of(&operation)
                .is_none_or(|device| self.actual.state.devices.contains_key(device));
            if !is_there || chance.is(share) {
                is_done = false;
                let reason = format!("{SIMULATED}: the kernel refuses to {operation}");
                done.result.faults.push(Fault { scope: operation.scope(), reason });
                continue;
            }
            Rc::make_mut(&mut self.actual).state.perform(&operation);
            if !is_as_known {
                Rc::make_mut(&mut known).state.perform(&operation);
            }
            done.operations.push(operation);
        }
        if is_done {
            self.known = Some(if is_as_known { Rc::clone(&self.actual) } else { known });
        }
        is_done
    }

    /// Makes a foreign change. Returns whether there was anything to change.
    pub(crate) fn drift(&mut self, chance: &mut Chance) -> bool {
        let state = &mut Rc::make_mut(&mut self.actual).state;
        let Some(name) = state.devices.keys().next().cloned() else { return false };
        let index = chance.index(state.routes.len().max(1));
        let route = state.routes.iter().nth(index).map(|(key, hop)| (*key, hop.clone()));
        let Some(device) = state.devices.get_mut(&name) else { return false };
        match chance.number(0..7) {
            0 => state.perform(&Operation::RemoveDevice(name)),
            1 => {
                if let Some(address) = device.addresses.first().copied() {
                    state.perform(&Operation::RemoveAddress(name, address));
                }
            }
            2 => device.neighbors.clear(),
            3 => {
                device.forwards.pop_first();
            }
            4 => {
                let stray = "44.128.66.6".parse().expect("it is an address");
                device.neighbors.insert(stray, device.link.mac);
            }
            5 => {
                device.link.is_up = false;
                device.neighbors.clear();
                state.routes.retain(|_, hop| !hop.is_on(&name));
            }
            _ => match route {
                Some((key, Hop::Unreachable)) => drop(state.routes.remove(&key)),
                Some((key, _)) => drop(state.routes.insert(key, Hop::Elsewhere)),
                None => return false,
            },
        }
        true
    }

    /// Reboots the host: nothing programmed is left.
    pub(crate) fn reboot(&mut self) {
        self.actual = Rc::default();
        self.known = None;
    }

    /// Adds a foreign route that may overlap overlays.
    pub(crate) fn obstruct(&mut self, chance: &mut Chance) {
        let number = chance.number(0..6);
        let text = match number {
            0 => "44.128.0.0/28".to_owned(),
            _ => format!("10.{}.{}.0/24", 99 + number, chance.number(0..4)),
        };
        let subnet: Subnet = text.parse().expect("it is a subnet");
        let gateway = "10.0.255.254".parse().ok();
        let device = Some("eth1".to_owned());
        self.obstacles.push(HostRoute { subnet, device, gateway, is_ours: false });
    }
}

/// Returns the device that an operation needs.
fn device_of(operation: &Operation) -> Option<&DeviceName> {
    operation.device().filter(|_| !matches!(operation, Operation::AddDevice(..)))
}

/// Returns the routes to peers.
pub(crate) fn routes_to_peers(state: &State) -> impl Iterator<Item = (&RouteKey, &IpAddr)> {
    state.routes.iter().filter_map(|(key, hop)| match hop {
        Hop::Via { gateway, .. } => Some((key, gateway)),
        Hop::Unreachable | Hop::Direct { .. } | Hop::Elsewhere => None,
    })
}

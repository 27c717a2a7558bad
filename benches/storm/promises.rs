//! What agents were told: promises, each of which has to fit all others. An agent is told the same
//! again and again, and what it was told nobody else is, until it is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use mesos_network_overlay::protocol::{Assignment, State, Status};

/// How many overlays the networks here have, and the length of an agent's subnet in each.
const OVERLAYS: usize = 2;
const PREFIX: u8 = 24;

/// What all agents were told.
#[derive(Default)]
pub(crate) struct Promises {
    agents: BTreeMap<Ipv4Addr, Promise>,
    /// Who was told each address and subnet last.
    owners: HashMap<String, Ipv4Addr>,
    /// How many messages were compared with all that is here.
    pub(crate) compared: usize,
    /// How many times an agent was told what another one had before.
    pub(crate) reused: usize,
    /// What no master may do.
    faults: Vec<String>,
}

/// What an agent was told.
struct Promise {
    told: Vec<Assignment>,
    /// What it was told before it was forgotten.
    earlier: Vec<Vec<Assignment>>,
    /// Whether it still has to be so.
    is_firm: bool,
}

impl Promises {
    /// The agent at `ip` was told `overlays` by its master.
    pub(crate) fn told(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) {
        self.compared += 1;
        match self.agents.get_mut(&ip) {
            Some(promise) if promise.told == overlays => promise.is_firm = true,
            Some(promise) if promise.is_firm => {
                let fault = format!("{ip} was told {:?} and then {overlays:?}", promise.told);
                return self.fault(fault);
            }
            Some(promise) => {
                let before = std::mem::replace(&mut promise.told, overlays.to_vec());
                promise.is_firm = true;
                for piece in pieces(&before) {
                    if self.owners.get(&piece) == Some(&ip) {
                        self.owners.remove(&piece);
                    }
                }
                promise.earlier.push(before);
            }
            None => {
                let promise =
                    Promise { told: overlays.to_vec(), earlier: Vec::new(), is_firm: true };
                self.agents.insert(ip, promise);
            }
        }
        if let Err(fault) = self.own(ip, overlays) {
            self.fault(fault);
        }
    }

    /// The agent at `ip` was told `overlays` by a master that is not its own, or not any more, and
    /// does not believe it. They have to be what it was promised all the same, now or before it was
    /// forgotten.
    pub(crate) fn told_by_another(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) {
        self.compared += 1;
        if let Some(promise) = self.agents.get(&ip)
            && promise.is_firm
            && promise.told != overlays
            && !promise.earlier.iter().any(|earlier| earlier == overlays)
        {
            let told = &promise.told;
            self.fault(format!("{ip} was told {told:?} and by another master {overlays:?}"));
        }
    }

    /// The agent at `ip` may be forgotten from now on.
    pub(crate) fn release(&mut self, ip: Ipv4Addr) {
        if let Some(promise) = self.agents.get_mut(&ip) {
            promise.is_firm = false;
        }
    }

    /// Somebody has seen what must not be.
    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// How many agents have what they were told.
    pub(crate) fn count(&self) -> usize {
        self.agents.values().filter(|promise| promise.is_firm).count()
    }

    /// Fails if there was a fault.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.faults.first() {
            Some(first) => Err(format!("{} faults, the first: {first}", self.faults.len())),
            None => Ok(()),
        }
    }

    /// The agents that a master shows, and that were not told anything that would still hold.
    pub(crate) fn unpromised(&self, state: &State) -> Vec<Ipv4Addr> {
        let is_promised = |ip: &Ipv4Addr| self.agents.get(ip).is_some_and(|one| one.is_firm);
        state.agents.iter().map(|agent| agent.ip).filter(|ip| !is_promised(ip)).collect()
    }

    /// Checks that there was no fault, and that the master shows every agent with what it was told,
    /// as ready, and no others.
    pub(crate) fn check_state(&self, state: &State) -> Result<(), String> {
        self.check()?;
        if state.agents.len() != self.count() {
            return Err(format!("{} agents were told, {} shown", self.count(), state.agents.len()));
        }
        for agent in &state.agents {
            let promise = self.agents.get(&agent.ip).filter(|promise| promise.is_firm);
            let told = &promise.ok_or_else(|| format!("{} was told nothing", agent.ip))?.told;
            let is_told = agent.overlays.len() == told.len()
                && agent.overlays.iter().zip(told).all(|(shown, told)| {
                    shown.name() == told.name()
                        && shown.has_addresses_of(told)
                        && shown.status == Some(Status::Ok)
                });
            if !is_told {
                return Err(format!("{} was told {told:?}, shown {:?}", agent.ip, agent.overlays));
            }
        }
        Ok(())
    }

    /// Makes the agent at `ip` the owner of all that it was told, which must be something of
    /// everything, and nothing that another one has.
    fn own(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) -> Result<(), String> {
        // All subnets have one length, so those that differ do not overlap either.
        let is_whole = |one: &Assignment| {
            one.vtep == overlays[0].vtep
                && one.subnet.is_some_and(|subnet| {
                    subnet.prefix() == PREFIX
                        && one.overlay.range.is_some_and(|range| range.subnet.covers(&subnet))
                })
        };
        if overlays.len() != OVERLAYS || !overlays.iter().all(is_whole) {
            return Err(format!("{ip} was told {overlays:?}"));
        }
        let mut is_reused = false;
        for piece in pieces(overlays) {
            let other = self.owners.get(&piece).filter(|other| **other != ip);
            if let Some(other) = other {
                if self.agents.get(other).is_some_and(|promise| promise.is_firm) {
                    return Err(format!("{ip} was told {piece}, which {other} has"));
                }
                is_reused = true;
            }
            self.owners.insert(piece, ip);
        }
        self.reused += usize::from(is_reused);
        Ok(())
    }
}

/// All that nobody else may have.
fn pieces(overlays: &[Assignment]) -> impl Iterator<Item = String> {
    let vteps = overlays.iter().take(1).map(|one| &one.vtep);
    let vteps = vteps.flat_map(|vtep| [vtep.ip.to_string(), vtep.mac.to_string()]);
    vteps.chain(overlays.iter().filter_map(|one| one.subnet).map(|subnet| subnet.to_string()))
}

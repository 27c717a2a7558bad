//! The host of an agent: its container networks in a CNI directory and a Docker engine. Both fail,
//! hang, and keep their state when the agent is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use overlay_engine::agent::{FoundNetworks, has_named_subnet};
use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::container_network::{ContainerNetwork, NetworkKind};

use crate::chance::Chance;
use crate::scenario::Faults;

/// The beginning of errors that the simulation injects. After healing no status may have one.
pub(crate) const SIMULATED: &str = "simulated";

/// How long an attempt takes without faults.
const USUAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(300));
/// How long a hanging call takes until its timeout.
const HANGING: Duration = Duration::from_secs(15);

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobOutcome {
    Works,
    Fails,
    /// The network is applied, and the call returns an error.
    WorksAndFails,
}

/// One host.
#[derive(Default)]
pub(crate) struct Host {
    networks: BTreeMap<(OverlayName, NetworkKind), ContainerNetwork>,
    /// Overlays whose Docker network is used by containers and cannot be replaced.
    used: BTreeSet<OverlayName>,
    /// When the CNI directory has finished all its jobs.
    cni_free: Duration,
}

impl Host {
    /// Returns when an attempt that begins now ends, and its outcome.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        kind: NetworkKind,
        faults: Option<&Faults>,
        chance: &mut Chance,
    ) -> (Duration, JobOutcome) {
        let mut end = now + chance.time_between(USUAL.0, USUAL.1);
        let mut outcome = JobOutcome::Works;
        if let Some(faults) = faults {
            let is_failing = chance.is(faults.drivers);
            if is_failing {
                outcome =
                    if chance.is(0.3) { JobOutcome::WorksAndFails } else { JobOutcome::Fails };
                if chance.is(0.3) {
                    end = now + HANGING;
                }
            }
        }
        if kind == NetworkKind::Cni {
            end = end.max(self.cni_free);
            self.cni_free = end;
        }
        (end, outcome)
    }

    /// Ends an attempt.
    pub(crate) fn finish(
        &mut self,
        network: &ContainerNetwork,
        outcome: JobOutcome,
    ) -> Result<(), String> {
        let key = (network.name().clone(), network.kind());
        if outcome == JobOutcome::Fails {
            return Err(format!("{SIMULATED}: the {} fails", network.kind()));
        }
        let differs = self.networks.get(&key).is_some_and(|existing| existing != network);
        if differs && network.kind() == NetworkKind::Docker && self.used.contains(network.name()) {
            return Err(format!("the docker network {} differs and is in use", network.name()));
        }
        self.networks.insert(key, network.clone());
        if outcome == JobOutcome::Works { Ok(()) } else { Err(format!("{SIMULATED}: it hangs")) }
    }

    /// Adds or removes the containers that use the Docker network of an overlay.
    pub(crate) fn use_docker_network(&mut self, overlay: &OverlayName, chance: &mut Chance) {
        if chance.is(0.5) {
            self.used.insert(overlay.clone());
        } else {
            self.used.remove(overlay);
        }
    }

    /// Removes all CNI configurations, except those of these overlays.
    pub(crate) fn retain_cni(&mut self, desired: &BTreeSet<OverlayName>) {
        self.networks.retain(|(name, kind), _| *kind != NetworkKind::Cni || desired.contains(name));
    }

    /// Removes all Docker networks, except those of these overlays. Networks that containers use
    /// stay.
    pub(crate) fn retain_docker(
        &mut self,
        desired: &BTreeSet<OverlayName>,
        outcome: JobOutcome,
    ) -> Result<Vec<String>, String> {
        if outcome == JobOutcome::Fails {
            return Err(format!("{SIMULATED}: docker does not answer"));
        }
        let mut not_removed = Vec::new();
        self.networks.retain(|(name, kind), _| {
            let is_desired = *kind != NetworkKind::Docker || desired.contains(name);
            let is_used = self.used.contains(name);
            if !is_desired && is_used {
                not_removed.push(format!("docker network {name}: is in use"));
            }
            is_desired || is_used
        });
        if outcome == JobOutcome::Works {
            Ok(not_removed)
        } else {
            Err(format!("{SIMULATED}: it hangs"))
        }
    }

    /// Adds a network that an earlier process of the agent left.
    pub(crate) fn leave(&mut self, network: ContainerNetwork) {
        self.networks.insert((network.name().clone(), network.kind()), network);
    }

    /// Removes the CNI configurations of these overlays with these subnets. Returns the removed
    /// networks.
    pub(crate) fn remove_cni(&mut self, named: &FoundNetworks) -> Vec<ContainerNetwork> {
        let names = self.named(NetworkKind::Cni, named).into_iter();
        names.filter_map(|name| self.networks.remove(&(name, NetworkKind::Cni))).collect()
    }

    /// Removes the Docker networks of these overlays with these subnets, unless containers use
    /// them. Returns the result, and the removed networks.
    pub(crate) fn remove_docker(
        &mut self,
        named: &FoundNetworks,
        outcome: JobOutcome,
    ) -> (Result<Vec<String>, String>, Vec<ContainerNetwork>) {
        let names = self.named(NetworkKind::Docker, named);
        let all = self.found(NetworkKind::Docker).into_keys();
        let kept = all.filter(|name| !names.contains(name)).collect();
        let before = self.networks.clone();
        let result = self.retain_docker(&kept, outcome);
        let removed = before.into_iter().filter(|(key, _)| !self.networks.contains_key(key));
        (result, removed.map(|(_, network)| network).collect())
    }

    /// Returns the overlays whose network of this kind has a named subnet.
    fn named(&self, kind: NetworkKind, named: &FoundNetworks) -> BTreeSet<OverlayName> {
        let found = self.found(kind).into_iter();
        let is_named = |name: &OverlayName, subnets: &[Subnet]| {
            named.get(name).is_some_and(|named| has_named_subnet(subnets, named))
        };
        found.filter(|(name, subnets)| is_named(name, subnets)).map(|(name, _)| name).collect()
    }

    /// Returns the networks of a kind with their subnets.
    pub(crate) fn found(&self, kind: NetworkKind) -> FoundNetworks {
        let networks = self.networks.values().filter(|network| network.kind() == kind);
        networks.map(|network| (network.name().clone(), subnets(network))).collect()
    }

    /// Returns when the CNI directory has finished all its jobs.
    pub(crate) fn cni_free(&self, now: Duration) -> Duration {
        self.cni_free.max(now)
    }

    /// Returns the networks of the host.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &ContainerNetwork> {
        self.networks.values()
    }
}

/// Returns the subnets of a network.
pub(crate) fn subnets(network: &ContainerNetwork) -> Vec<Subnet> {
    match network {
        ContainerNetwork::Cni(network) => vec![network.subnet],
        ContainerNetwork::Docker(network) => {
            network.subnet.into_iter().chain(network.subnet6).collect()
        }
    }
}

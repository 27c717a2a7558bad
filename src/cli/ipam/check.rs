//! Derives the problems of the addresses from an observation, without IO.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use overlay_linux::cni::{Doubt, Lease, LeaseState, is_nearly_full};
use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::advice::Command;
use overlay_types::protocol::{AgentInfo, State};
use serde::Serialize;

use super::host::{Halves, Observation, OverlayLeases, halves};
use super::usage::{Half, HalfUsage, Source, UsedAddress};

/// The kinds of problems, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProblemKind {
    /// A source could not be read.
    Unreadable,
    /// Two users have one address, or a user has an address that is not assigned to it.
    Conflict,
    /// A lease without its container.
    Leak,
    /// Almost all addresses are in use.
    NearlyFull,
    /// A lease that may be without its container.
    Unknown,
}

impl ProblemKind {
    pub(super) const ALL: [Self; 5] =
        [Self::Unreadable, Self::Conflict, Self::Leak, Self::NearlyFull, Self::Unknown];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Conflict => "conflict",
            Self::Leak => "leak",
            Self::NearlyFull => "nearly full",
            Self::Unknown => "unknown",
        }
    }
}

/// The result of `--fix`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Repair {
    Fixed,
    Failed(String),
}

/// A problem, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) kind: ProblemKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) overlay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
    pub(super) problem: String,
    pub(super) remedy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repair: Option<Repair>,
}

impl Problem {
    fn new(kind: ProblemKind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (problem, remedy) = (problem.into(), remedy.into());
        Self { kind, overlay: None, address: None, problem, remedy, repair: None }
    }

    fn of(mut self, overlay: &OverlayName) -> Self {
        self.overlay = Some(overlay.to_string());
        self
    }

    fn at(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    pub(super) fn is_fixed(&self) -> bool {
        self.repair == Some(Repair::Fixed)
    }

    /// Whether `--fix` could repair the problem and was not tried.
    pub(super) fn can_be_fixed(&self) -> bool {
        self.kind == ProblemKind::Leak && self.repair.is_none()
    }
}

/// Writes a line such as `leak: overlay vxlan-1: 192.168.0.5 is …: run …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_fixed() { "fixed" } else { self.kind.name() };
        write!(f, "{prefix}: ")?;
        if let Some(overlay) = &self.overlay {
            write!(f, "overlay {overlay}: ")?;
        }
        write!(f, "{}", self.problem)?;
        match &self.repair {
            None => write!(f, ": {}", self.remedy),
            Some(Repair::Fixed) => write!(f, ": removed the lease"),
            Some(Repair::Failed(reason)) => write!(f, ": not fixed: {reason}"),
        }
    }
}

/// Returns all problems of a host.
pub(super) fn problems(
    observed: &Observation,
    addresses: &[UsedAddress],
    usage: &[HalfUsage],
) -> Vec<Problem> {
    let failures = observed.failures.iter();
    let unreadable = failures
        .map(|(reason, remedy)| Problem::new(ProblemKind::Unreadable, reason.clone(), *remedy));
    let mut problems: Vec<Problem> = unreadable.collect();
    problems.extend(lease_problems(observed));
    problems.extend(address_conflicts(observed, addresses));
    problems.extend(configuration_conflicts(observed));
    if let Some(state) = &observed.master {
        problems.extend(
            observed
                .agent
                .iter()
                .flat_map(|agent| agent_conflicts(agent, state, &observed.master_name)),
        );
        problems.extend(overlapping_agents(state, &observed.master_name));
    }
    problems.extend(usage.iter().filter_map(nearly_full));
    problems
}

/// Returns the leases whose containers may be gone.
pub(super) fn unknown_leases(observed: &Observation) -> Vec<Problem> {
    let mut unknown = Vec::new();
    for (overlay, lease, state) in leases(observed) {
        let LeaseState::Unknown(doubt) = state else { continue };
        let (reason, remedy) = match doubt {
            Doubt::KnownToMesos => (
                "no device has it, and Mesos knows the container",
                "the Mesos agent ends the lease with the container: see that it runs",
            ),
            Doubt::Answers => (
                "no container has it, and something answers at it",
                "find the device with this address",
            ),
            Doubt::AddressesUnreadable => (
                "the addresses of containers cannot be read",
                "run this command as root, with Linux 4.20 or later",
            ),
            Doubt::NoContainerName => (
                "no device has it, and its file names no container",
                "remove the file if nothing uses the address",
            ),
            Doubt::NoAge => (
                "no device has it, and the time of its file is in the future",
                "correct the clock, or wait until then",
            ),
        };
        let text = format!("{}: {reason}", describe(lease));
        unknown
            .push(Problem::new(ProblemKind::Unknown, text, remedy).of(overlay).at(lease.address));
    }
    unknown
}

/// Returns all leases with their states.
fn leases(observed: &Observation) -> impl Iterator<Item = (&OverlayName, &Lease, LeaseState)> {
    observed.leases.iter().flat_map(|(overlay, OverlayLeases { files, states })| {
        files.leases.iter().zip(states).map(move |(lease, state)| (overlay, lease, *state))
    })
}

/// Describes a lease: `192.168.0.5 is leased to container 0a1b (eth0)`.
fn describe(lease: &Lease) -> String {
    let Lease { address, container, interface, .. } = lease;
    match interface.as_str() {
        "" => format!("{address} is leased to container {container}"),
        interface => format!("{address} is leased to container {container} ({interface})"),
    }
}

/// Returns the leaked leases, and the files that are no leases.
fn lease_problems(observed: &Observation) -> Vec<Problem> {
    let mut problems = Vec::new();
    let remedy = format!("run {}", Command::release_leaked_leases());
    for (overlay, lease, _) in leases(observed).filter(|(.., state)| *state == LeaseState::Leaked) {
        let text = format!("{}, which is gone", describe(lease));
        let problem = Problem::new(ProblemKind::Leak, text, remedy.clone());
        problems.push(problem.of(overlay).at(lease.address));
    }
    for (overlay, OverlayLeases { files, .. }) in &observed.leases {
        for (address, reason) in &files.unreadable {
            let text = format!("the file {address} is no lease of host-local: {reason}");
            let remedy = "find out who wrote it, and remove it: no container gets its address";
            let problem = Problem::new(ProblemKind::Conflict, text, remedy);
            problems.push(problem.of(overlay).at(*address));
        }
        if files.is_truncated {
            let text = "its lease directory has too many files, and not all were read";
            let remedy = "find out who writes them, and remove the files that are no addresses";
            problems.push(Problem::new(ProblemKind::Unreadable, text, remedy).of(overlay));
        }
    }
    problems
}

/// Returns the addresses with two users, or with a user that may not have them.
fn address_conflicts(observed: &Observation, addresses: &[UsedAddress]) -> Vec<Problem> {
    let mut problems = twice_leased(observed);
    problems.extend(twice_connected(observed));
    let leaked: BTreeSet<(&OverlayName, IpAddr)> = leases(observed)
        .filter(|(.., state)| matches!(state, LeaseState::Leaked | LeaseState::Unknown(_)))
        .map(|(overlay, lease, _)| (overlay, lease.address))
        .collect();
    for used in addresses {
        let (overlay, address) = (&used.overlay, used.address);
        let is_leased = used.has(Source::Lease) && !leaked.contains(&(overlay, address));
        let is_docker = used.has(Source::Docker);
        let halves = observed.halves.get(overlay);
        let name = used.container_label().unwrap_or_default();
        let container = used.container.as_deref().unwrap_or_default();
        let (text, remedy) = if is_leased && is_docker {
            let text = format!(
                "{address} is leased to container {container} and used by the Docker container {name}"
            );
            (text, "stop one of the two containers")
        } else if is_leased && is_outside(halves, Half::Mesos, used) {
            let text = format!(
                "{address} of container {container} is outside of {}, the addresses of Mesos \
                 containers on this host",
                join(&of_family(halves.map(|halves| &halves.mesos), address))
            );
            (text, "restart the container: other hosts do not reach it")
        } else if is_docker && is_outside(halves, Half::Docker, used) {
            let text = format!(
                "{address} of the Docker container {name} is outside of {}, the addresses of \
                 Docker containers on this host",
                join(&of_family(halves.map(|halves| &halves.docker), address))
            );
            (text, "stop the containers of the network, which the agent then creates again")
        } else if let Some(found) = unleased(observed, used) {
            found
        } else {
            continue;
        };
        let problem = Problem::new(ProblemKind::Conflict, text, remedy);
        problems.push(problem.of(overlay).at(address));
    }
    problems
}

/// Returns whether an address is outside of the half, if the half is known.
fn is_outside(halves: Option<&Halves>, half: Half, used: &UsedAddress) -> bool {
    let subnets = halves.map(|halves| match half {
        Half::Mesos => &halves.mesos,
        Half::Docker => &halves.docker,
    });
    let is_known = |subnet: &Subnet| subnet.first().is_ipv4() == used.address.is_ipv4();
    subnets.is_some_and(|subnets| subnets.iter().any(is_known)) && used.half != Some(half)
}

/// Describes an address that a container uses and that host-local or Docker may allocate again.
fn unleased(observed: &Observation, used: &UsedAddress) -> Option<(String, &'static str)> {
    let address = used.address;
    let is_owned = [Source::Lease, Source::Probe, Source::Docker].iter().any(|it| used.has(*it));
    if is_owned {
        return None;
    }
    if observed.lasting.contains(&address) {
        let port = used.port.as_deref().unwrap_or_default();
        match used.half? {
            // CNI configurations have IPv4 only.
            Half::Mesos if address.is_ipv4() => Some((
                format!("a container at port {port} has {address} without a lease of host-local"),
                "restart the container: another one may get the same address",
            )),
            Half::Docker if observed.docker.is_some() => Some((
                format!("a container at port {port} has {address}, which Docker does not know"),
                "stop the container: one of Docker may get the same address",
            )),
            _ => None,
        }
    } else if observed.answering.contains(&address) && used.half == Some(Half::Mesos) {
        let bridge = used.overlay.mesos_bridge();
        Some((
            format!("{address} answers at bridge {bridge} without a lease of host-local"),
            "find the device with this address, and give it another one",
        ))
    } else {
        None
    }
}

/// Returns the addresses that have leases in several overlays.
fn twice_leased(observed: &Observation) -> Vec<Problem> {
    let mut by_address: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (overlay, lease, _) in leases(observed).filter(|(.., state)| *state != LeaseState::Leaked) {
        let holder = format!("container {} in overlay {overlay}", lease.container);
        by_address.entry(lease.address).or_default().push(holder);
    }
    let twice = by_address.into_iter().filter(|(_, holders)| holders.len() > 1);
    let problem = |(address, holders): (IpAddr, Vec<String>)| {
        let text = format!("{address} is leased twice: to {}", holders.join(" and to "));
        Problem::new(ProblemKind::Conflict, text, "stop one of the containers").at(address)
    };
    twice.map(problem).collect()
}

/// Returns the addresses that are at several ports.
fn twice_connected(observed: &Observation) -> Vec<Problem> {
    let mut by_address: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for endpoint in &observed.endpoints {
        let is_ours = observed.halves.values().any(|halves| {
            halves.mesos.iter().chain(&halves.docker).any(|it| it.contains(endpoint.address))
        });
        if is_ours {
            by_address.entry(endpoint.address).or_default().insert(&endpoint.port);
        }
    }
    let twice = by_address.into_iter().filter(|(_, ports)| ports.len() > 1);
    let problem = |(address, ports): (IpAddr, BTreeSet<&str>)| {
        let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
        let text = format!("several containers have {address}: at ports {ports}");
        Problem::new(ProblemKind::Conflict, text, "stop all of them but one").at(address)
    };
    twice.map(problem).collect()
}

/// Compares the CNI configurations, the Docker networks and the bridges with the assignment.
fn configuration_conflicts(observed: &Observation) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (overlay, halves) in observed.halves.iter().filter(|_| observed.is_assigned) {
        let mut differ =
            |object: &str, found: &[Subnet], assigned: &Vec<Subnet>, remedy: String| {
                // A CNI configuration has IPv4 only, and an old Docker adds IPv4 of its own.
                let foreign = found.iter().find(|subnet| !assigned.contains(subnet));
                if let Some(subnet) = foreign.filter(|_| !assigned.is_empty()) {
                    let text = format!(
                        "{object} has {subnet}, and the assigned addresses are {}",
                        join(&of_family(Some(assigned), subnet.first()))
                    );
                    problems.push(Problem::new(ProblemKind::Conflict, text, remedy).of(overlay));
                }
            };
        if let Some(found) = observed.cni.get(overlay) {
            let remedy = "the agent writes it again: see the status of the overlay".to_owned();
            differ("its CNI configuration", found, &halves.mesos, remedy);
        }
        let networks = observed.docker.iter().flatten();
        for network in networks.filter(|network| network.overlay == *overlay) {
            let remedy = format!(
                "stop its containers and run {}, then the agent creates it again",
                Command::remove_docker_network(overlay)
            );
            differ("its Docker network", &network.subnets, &halves.docker, remedy);
        }
        for (bridge, assigned) in
            [(overlay.mesos_bridge(), &halves.mesos), (overlay.docker_bridge(), &halves.docker)]
        {
            let addresses = observed.bridges.get(bridge.as_str()).into_iter().flatten();
            let subnets: Vec<Subnet> =
                addresses.filter_map(|it| Subnet::containing(it.address(), it.prefix())).collect();
            let remedy = "run 'mesos-overlay doctor', which shows the command".to_owned();
            differ(&format!("bridge {bridge}"), &subnets, assigned, remedy);
        }
    }
    problems
}

/// Compares the assignment that the agent shows with that of the master.
fn agent_conflicts(agent: &AgentInfo, state: &State, master: &str) -> Vec<Problem> {
    let Some(assigned) = state.agents.iter().find(|other| other.ip == agent.ip) else {
        let text = format!("master {master} has no agent {}, which runs here", agent.ip);
        let remedy = "see that the agent has the same master in its configuration";
        return vec![Problem::new(ProblemKind::Conflict, text, remedy)];
    };
    let subnets = |info: &AgentInfo| -> BTreeMap<OverlayName, Halves> {
        info.overlays.iter().map(|found| (found.name().clone(), halves(found))).collect()
    };
    let (own, masters) = (subnets(agent), subnets(assigned));
    let overlays: BTreeSet<&OverlayName> = own.keys().chain(masters.keys()).collect();
    let differs = |overlay: &&OverlayName| own.get(overlay) != masters.get(overlay);
    let problem = |overlay: &OverlayName| {
        let text = format!(
            "master {master} has assigned {} to agent {}, which uses {}",
            show(masters.get(overlay)),
            agent.ip,
            show(own.get(overlay))
        );
        Problem::new(ProblemKind::Conflict, text, "restart the agent, which then registers again")
            .of(overlay)
    };
    overlays.into_iter().filter(differs).map(problem).collect()
}

/// Returns the agents of the master whose subnets overlap. Sorts the subnets, so that each is
/// compared with its neighbor only.
fn overlapping_agents(state: &State, master: &str) -> Vec<Problem> {
    let mut subnets: Vec<(IpAddr, IpAddr, Ipv4Addr)> = Vec::new();
    for agent in state.agents.iter().map(Arc::as_ref) {
        for overlay in &agent.overlays {
            let own = overlay.subnet.into_iter().chain(overlay.subnet6);
            subnets.extend(own.map(|subnet| (subnet.first(), subnet.last(), agent.ip)));
        }
    }
    subnets.sort_unstable();
    let mut problems = Vec::new();
    let mut highest: Option<(IpAddr, Ipv4Addr)> = None;
    for (first, last, agent) in subnets {
        if let Some((end, other)) = highest
            && end.is_ipv4() == first.is_ipv4()
            && first <= end
            && other != agent
        {
            let text = format!("master {master}: agents {other} and {agent} both have {first}");
            let remedy = "run 'mesos-overlay status', and forget the agent that is gone";
            problems.push(Problem::new(ProblemKind::Conflict, text, remedy).at(first));
        }
        let is_higher =
            highest.is_none_or(|(end, _)| end.is_ipv4() != last.is_ipv4() || last > end);
        if is_higher {
            highest = Some((last, agent));
        }
    }
    problems
}

fn nearly_full(usage: &HalfUsage) -> Option<Problem> {
    let HalfUsage { overlay, half, subnet, used, free } = usage;
    let capacity = used + free;
    let is_full = is_nearly_full(capacity.into(), (*used).into());
    is_full.then(|| {
        let half = match half {
            Half::Mesos => "Mesos",
            Half::Docker => "Docker",
        };
        let text =
            format!("{used} of {capacity} addresses of {subnet} for {half} containers are in use");
        let remedy = "run fewer containers of this overlay on this host, or add an overlay with a \
                      shorter prefix at the master for new containers";
        Problem::new(ProblemKind::NearlyFull, text, remedy).of(overlay)
    })
}

/// Shows the halves of an overlay: `192.168.0.0/25 and 192.168.0.128/25`.
fn show(halves: Option<&Halves>) -> String {
    match halves {
        None => "nothing".to_owned(),
        Some(Halves { mesos, docker }) => join(&[mesos.as_slice(), docker].concat()),
    }
}

/// Returns the subnets of the family of an address.
fn of_family(subnets: Option<&Vec<Subnet>>, address: IpAddr) -> Vec<Subnet> {
    let all = subnets.into_iter().flatten().copied();
    all.filter(|subnet| subnet.first().is_ipv4() == address.is_ipv4()).collect()
}

fn join(subnets: &[Subnet]) -> String {
    match subnets {
        [] => "nothing".to_owned(),
        subnets => subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
    }
}

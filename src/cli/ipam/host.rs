//! Observes the addresses of a host: what the agent and the master have assigned, and what CNI,
//! Docker and the kernel use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use overlay_config::AgentConfig;
use overlay_doctor::observation::AgentQueryError;
use overlay_linux::cni::{
    CniDirectory, CniError, ContainerEvidence, LeaseFiles, LeaseState, Leases, StaleLeases,
};
use overlay_linux::dataplane::{Bridge, ContainerEndpoint, ContainerPorts, Dataplane};
use overlay_linux::docker::{Docker, DockerFailure, NetworkUse};
use overlay_linux::probe;
use overlay_types::addr::{InterfaceAddress, OverlayName, Subnet};
use overlay_types::protocol::{AgentInfo, Assignment, State};

use super::is_allocatable;
use crate::cli::doctor::agent_query::agent_info;
use crate::cli::http_client::MasterClient;
use crate::cli::http_exchange::Endpoint;
use crate::cli::master_address::{Authorization, MasterSource};

/// A Docker daemon that takes longer hangs.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of attempts to read the addresses of containers. An attempt fails if a container ends
/// meanwhile.
const PORTS_ATTEMPTS: usize = 5;

/// Where the addresses of a host are found.
pub(super) struct Sources {
    pub(super) agent: Endpoint,
    /// Whether the agent is known to serve its address. Only then it gets the credential.
    pub(super) is_agent_known: bool,
    pub(super) master: Option<MasterSource>,
    pub(super) credential: Option<Authorization>,
    pub(super) has_docker: bool,
    pub(super) config: AgentConfig,
}

/// The subnets of one overlay on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) mesos: Vec<Subnet>,
    pub(super) docker: Vec<Subnet>,
}

/// The leases of one overlay.
#[derive(Debug, Default)]
pub(super) struct OverlayLeases {
    pub(super) files: LeaseFiles,
    /// The state of each lease.
    pub(super) states: Vec<LeaseState>,
}

/// What a host and its master show.
#[derive(Debug, Default)]
pub(super) struct Observation {
    /// The assignment that the agent shows.
    pub(super) agent: Option<AgentInfo>,
    /// The state of the master, if it was asked.
    pub(super) master: Option<State>,
    /// The address of the master for messages.
    pub(super) master_name: String,
    /// The subnets of each overlay: as assigned, or else as this host is configured.
    pub(super) halves: BTreeMap<OverlayName, Halves>,
    /// Whether `halves` are those that the agent or the master shows.
    pub(super) is_assigned: bool,
    /// The subnets of the managed CNI configurations.
    pub(super) cni: BTreeMap<OverlayName, Vec<Subnet>>,
    pub(super) leases: BTreeMap<OverlayName, OverlayLeases>,
    /// The networks of Docker; `None` if Docker was not asked.
    pub(super) docker: Option<Vec<NetworkUse>>,
    /// The addresses of containers at ports of the host.
    pub(super) endpoints: Vec<ContainerEndpoint>,
    /// Those of `endpoints` that existed before and after the leases and Docker were read.
    pub(super) lasting: BTreeSet<IpAddr>,
    /// Addresses that were reachable at a bridge within the last seconds.
    pub(super) neighbors: Vec<(IpAddr, String)>,
    /// Those of `neighbors` without a lease or an endpoint that answer now.
    pub(super) answering: BTreeSet<IpAddr>,
    /// The addresses of the bridges.
    pub(super) bridges: BTreeMap<String, Vec<InterfaceAddress>>,
    /// The sources that could not be read, with the remedy.
    pub(super) failures: Vec<(String, &'static str)>,
    /// Judges and releases leases again, under their lock.
    pub(super) lease_store: Option<Leases>,
}

impl Observation {
    /// Returns the address of the agent of this host, if the agent or the master shows it.
    pub(super) fn agent_ip(&self) -> Option<Ipv4Addr> {
        self.agent.as_ref().map(|agent| agent.ip)
    }

    /// Returns why sources could not be read, one sentence each.
    pub(super) fn failures(&self) -> Vec<String> {
        self.failures.iter().map(|(reason, remedy)| format!("{reason}: {remedy}")).collect()
    }

    fn fail(&mut self, reason: String, remedy: &'static str) {
        self.failures.push((reason, remedy));
    }

    /// Returns the value, or adds the error as a failure.
    fn read<T: Default>(
        &mut self,
        result: Result<T, impl ToString>,
        what: &str,
        remedy: &'static str,
    ) -> T {
        result.unwrap_or_else(|error| {
            self.fail(format!("{what}: {}", error.to_string()), remedy);
            T::default()
        })
    }
}

impl Sources {
    /// Observes the host. Each source that cannot be read is a failure in the result.
    pub(super) async fn observe(&self) -> Observation {
        let mut observed = Observation::default();
        self.read_assignment(&mut observed).await;
        let config = &self.config;
        if !config.cni_dir.as_os_str().is_empty() {
            let cni = CniDirectory::new(config.cni_dir.clone(), None, Vec::new(), true);
            observed.cni = observed.read(cni.subnets(), "read the CNI configurations", AS_ROOT);
        }
        let mut kernel = match Dataplane::open() {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                observed.fail(format!("read the kernel: {error}"), AS_ROOT);
                None
            }
        };
        let before = kernel.as_mut().map(|kernel| observed.ports(kernel)).unwrap_or_default();
        if self.has_docker {
            observed.docker = self.docker_networks(&mut observed).await;
        }
        observed.derive_halves();
        let leases = Leases::new(config.cni_data_dir.as_deref());
        if let Some(kernel) = &mut kernel {
            observed.read_kernel(kernel, &before, &leases);
        } else {
            observed.read_leases(&leases, |_, _| Ok(Vec::new()));
        }
        observed.lease_store = Some(leases);
        observed
    }

    async fn read_assignment(&self, observed: &mut Observation) {
        let authorization = self.credential.as_ref();
        let for_agent = authorization.filter(|_| self.is_agent_known);
        match agent_info(&self.agent, for_agent).await {
            Ok(info) => observed.agent = Some(info),
            Err(error) => {
                let (reason, remedy) = describe(&error);
                observed.fail(format!("agent {}: {reason}", self.agent), remedy);
            }
        }
        let Some(source) = &self.master else { return };
        let state = async {
            let client = MasterClient::find(source, authorization).await?;
            let body = client.state().await?;
            Ok::<_, crate::cli::Failure>((client.to_string(), client.read_state(&body)?))
        };
        match state.await {
            Ok((name, state)) => {
                (observed.master_name, observed.master) = (name, Some(state));
            }
            Err(failure) => observed.fail(failure.to_string(), "name the master with --master"),
        }
    }

    /// Returns the networks of Docker; `None` on a host without Docker.
    async fn docker_networks(&self, observed: &mut Observation) -> Option<Vec<NetworkUse>> {
        let docker = Docker::new(&self.config.docker, DOCKER_TIMEOUT);
        let is_needed = self.config.options.docker_bridge;
        match docker.networks_in_use().await {
            Ok(networks) => return Some(networks),
            Err(DockerFailure::ProgramNotFound { .. }) if docker.existing_socket().is_none() => {}
            // An agent without Docker networks does not use Docker, so its errors do not matter.
            Err(_) if !is_needed => {}
            Err(error) => {
                observed.fail(format!("list the Docker networks: {error}"), "or give --no-docker");
            }
        }
        None
    }
}

const AS_ROOT: &str = "run this command as root on the host of the agent";

impl Observation {
    /// Determines the subnets of each overlay. Without an agent, they are those that the master has
    /// assigned to an address of this host, or those of the configurations on this host.
    fn derive_halves(&mut self) {
        if let Some(agent) = &self.agent {
            self.is_assigned = true;
            self.halves =
                agent.overlays.iter().map(|found| (found.name().clone(), halves(found))).collect();
            return;
        }
        for (overlay, subnets) in &self.cni {
            self.halves.entry(overlay.clone()).or_default().mesos.clone_from(subnets);
        }
        for network in self.docker.iter().flatten() {
            let halves = self.halves.entry(network.overlay.clone()).or_default();
            halves.docker.clone_from(&network.subnets);
        }
    }

    /// Reads the ports of containers with their addresses.
    fn ports(&mut self, kernel: &mut Dataplane) -> ContainerPorts {
        self.read(read_ports(kernel), "read the ports of containers", AS_ROOT)
    }

    fn read_kernel(&mut self, kernel: &mut Dataplane, before: &ContainerPorts, leases: &Leases) {
        let (_, addresses) =
            self.read(kernel.host_routes_and_addresses(), "read the addresses of devices", AS_ROOT);
        self.adopt_assignment_of_master(&addresses.iter().map(|it| it.address.address()).collect());
        for found in addresses {
            self.bridges.entry(found.device).or_default().push(found.address);
        }
        self.neighbors = self.read(kernel.reachable_neighbors(), "read the neighbors", AS_ROOT);
        let bridges = self.read(kernel.bridges(), "read the bridges", AS_ROOT);
        let halves = self.halves.clone();
        self.read_leases(leases, |overlay, files| {
            // Read after the leases, and again for each overlay: containers start and end.
            let ports = read_ports(kernel).map_err(|error| error.to_string())?;
            let mesos = halves.get(overlay).map(|halves| halves.mesos.clone()).unwrap_or_default();
            judge(overlay, files, &ports, &bridges, &mesos).map_err(|error| error.to_string())
        });
        let after = self.ports(kernel);
        if after.addresses.is_none() {
            self.fail("read the addresses of containers: no permission".to_owned(), AS_ROOT);
        }
        let earlier: BTreeSet<IpAddr> = before.endpoints.iter().map(|it| it.address).collect();
        let is_allocated = |endpoint: &ContainerEndpoint| is_allocatable(endpoint.address);
        self.endpoints = after.endpoints.into_iter().filter(is_allocated).collect();
        let later = self.endpoints.iter().map(|endpoint| endpoint.address);
        self.lasting = later.filter(|address| earlier.contains(address)).collect();
        self.ask_neighbors();
    }

    /// Uses the assignment of the master if the agent shows none. The agent is found by the addresses
    /// of this host.
    fn adopt_assignment_of_master(&mut self, addresses: &BTreeSet<IpAddr>) {
        let Some(state) = self.master.as_ref().filter(|_| !self.is_assigned) else { return };
        let mut agents = state.agents.iter().map(Arc::as_ref);
        let Some(agent) = agents.find(|agent| addresses.contains(&agent.ip.into())) else { return };
        self.is_assigned = true;
        self.halves =
            agent.overlays.iter().map(|found| (found.name().clone(), halves(found))).collect();
    }

    /// Reads the leases of the overlays of this host. Leases of other networks are not examined.
    fn read_leases(
        &mut self,
        store: &Leases,
        mut judge: impl FnMut(&OverlayName, &LeaseFiles) -> Result<Vec<LeaseState>, String>,
    ) {
        let overlays: BTreeSet<OverlayName> =
            self.halves.keys().chain(self.cni.keys()).cloned().collect();
        for overlay in overlays {
            let files = store.files(&overlay);
            let files = self.read(files, &format!("overlay {overlay}: read its leases"), AS_ROOT);
            let states = judge(&overlay, &files);
            let what = format!("overlay {overlay}: examine its leases");
            let states = self.read(states, &what, AS_ROOT);
            self.leases.insert(overlay, OverlayLeases { files, states });
        }
    }

    /// Asks the neighbors that nothing else shows whether they still exist.
    fn ask_neighbors(&mut self) {
        let mut known: BTreeSet<IpAddr> =
            self.endpoints.iter().map(|endpoint| endpoint.address).collect();
        for leases in self.leases.values() {
            known.extend(leases.files.leases.iter().map(|lease| lease.address));
            known.extend(&leases.files.probes);
        }
        for (overlay, halves) in &self.halves {
            let bridge = overlay.mesos_bridge();
            let at_bridge = self.neighbors.iter().filter(|(_, name)| *name == bridge.as_str());
            let unknown = at_bridge.filter(|(address, _)| !known.contains(address));
            let unknown: BTreeSet<Ipv4Addr> =
                unknown.filter_map(|(address, _)| v4(*address)).collect();
            if let Some(gateway) = gateway(&halves.mesos).filter(|_| !unknown.is_empty())
                && let Ok(found) = probe::answering_addresses(&bridge, gateway, &unknown)
            {
                self.answering.extend(found.into_iter().map(IpAddr::V4));
            }
        }
    }
}

/// Judges the leases of an overlay by the ports of the host and by what answers at its bridge.
pub(super) fn judge(
    overlay: &OverlayName,
    files: &LeaseFiles,
    ports: &ContainerPorts,
    bridges: &[Bridge],
    mesos: &[Subnet],
) -> Result<Vec<LeaseState>, CniError> {
    let name = overlay.mesos_bridge();
    let evidence = ContainerEvidence {
        ports: ports.count_at(name.as_str()),
        has_detached_ports: ports.has_detached,
        addresses: ports.addresses.clone(),
        boot: None,
    };
    let finder = StaleLeases::default();
    let judge = |answering: Option<&BTreeSet<IpAddr>>| {
        finder.judge(&files.leases, &evidence, answering, now())
    };
    let states = judge(Some(&BTreeSet::new()))?;
    let leaked = files.leases.iter().zip(&states);
    let leaked = leaked.filter(|(_, state)| **state == LeaseState::Leaked);
    let leaked: BTreeSet<Ipv4Addr> = leaked.filter_map(|(lease, _)| v4(lease.address)).collect();
    // A bridge without any port has nothing that could answer.
    let has_ports =
        bridges.iter().any(|bridge| bridge.name == name.as_str() && !bridge.ports.is_empty());
    if leaked.is_empty() || !has_ports {
        return Ok(states);
    }
    let answering =
        gateway(mesos).map(|gateway| probe::answering_addresses(&name, gateway, &leaked));
    let Some(Ok(answering)) = answering else { return judge(None) };
    judge(Some(&answering.into_iter().map(IpAddr::V4).collect()))
}

/// Returns why an agent gave no assignment, and what to do.
fn describe(error: &AgentQueryError) -> (&str, &'static str) {
    match error {
        AgentQueryError::NoResponse(reason) => {
            (reason, "start the agent, or name its address with --agent")
        }
        AgentQueryError::NotAnAgent(reason) => (reason, "name the agent's address with --agent"),
        AgentQueryError::NoPermission(reason) => (reason, "name a credential with --credential"),
        AgentQueryError::CredentialWithheld(reason) => {
            (reason, "name its address with --agent, so that it gets the credential")
        }
    }
}

/// Reads the ports of containers with their addresses, repeatedly if a container ends meanwhile.
pub(super) fn read_ports(
    kernel: &mut Dataplane,
) -> Result<ContainerPorts, overlay_linux::dataplane::DataplaneError> {
    let mut ports = kernel.container_ports(true)?;
    for _ in 1..PORTS_ATTEMPTS {
        if ports.addresses.is_some() {
            break;
        }
        ports = kernel.container_ports(true)?;
    }
    Ok(ports)
}

/// Returns the subnets of an assignment.
pub(super) fn halves(assignment: &Assignment) -> Halves {
    let subnets = |bridge: &Option<overlay_types::protocol::Bridge>| {
        let bridge = bridge.as_ref();
        let v4 = bridge.and_then(|bridge| bridge.subnet);
        v4.into_iter().chain(bridge.and_then(|bridge| bridge.subnet6)).collect()
    };
    Halves { mesos: subnets(&assignment.mesos_bridge), docker: subnets(&assignment.docker_bridge) }
}

/// Returns the address of the bridge in its subnet: the first one.
fn gateway(subnets: &[Subnet]) -> Option<Ipv4Addr> {
    let subnet = subnets.iter().find(|subnet| subnet.first().is_ipv4())?;
    v4(subnet.address_at(1)?)
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line may read the clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

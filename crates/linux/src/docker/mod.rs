//! Networks of the DockerContainerizer: one Docker network per overlay, created and compared
//! through the `docker` program.
//!
//! This module runs the program instead of the Engine API, because the program follows contexts,
//! `DOCKER_HOST` and TLS. The operator configured these for Mesos, which runs the same program. It
//! runs with an argument vector, never in a shell, and always with a deadline.
//!
//! An existing network with the right name is compared in full: the C++ modules accepted any such
//! network, and containers then got addresses of a wrong subnet. A difference is reported, not
//! repaired: Docker cannot change the options of a network, and its replacement would disconnect
//! containers.

mod engine;
mod error;
mod network;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use overlay_types::addr::{DeviceName, OverlayName, Subnet};
use overlay_types::container_network::DockerNetwork;
use tokio::time::Instant;

use self::engine::Engine;
use self::error::ErrorKind;
pub use self::error::{DockerError, DockerFailure};
use self::network::{Comparison, InspectedNetwork};
pub use self::network::{Difference, Endpoint, Overlap};
use crate::subprocess::{self, ProcessOutput, SubprocessError};

/// Result of [`Docker::ensure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The network did not exist.
    Created,
    /// The network was made for an older engine or had lost its bridge, and had no containers, so it
    /// was replaced.
    Recreated,
    /// The network had the desired options.
    Unchanged,
    /// The network has the desired options except for this MTU, which is smaller. Its containers
    /// work with it, so the network is kept.
    SmallerMtu(u32),
}

/// Result of the removal of stale networks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The overlays whose networks were removed.
    pub removed: Vec<OverlayName>,
    /// The networks that were kept, and why.
    pub kept: Vec<DockerError>,
}

/// A managed network and the addresses of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUse {
    /// The overlay.
    pub overlay: OverlayName,
    /// The subnets of the network.
    pub subnets: Vec<Subnet>,
    /// The containers that run in the network.
    pub endpoints: Vec<Endpoint>,
}

/// Result of [`Docker::examine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineReport {
    /// The version of the engine.
    pub engine: String,
    /// Managed networks whose containers other agents cannot reach, with the containers.
    pub unfit: Vec<(String, Vec<String>)>,
}

/// The Docker engine of this host.
#[derive(Debug, Clone)]
pub struct Docker {
    program: PathBuf,
    /// Arguments before every command.
    leading: Vec<OsString>,
    timeout: Duration,
    /// Returns whether this host has a device. `None` if the bridges are not examined.
    has_device: Option<fn(&DeviceName) -> bool>,
}

impl Docker {
    /// Creates a client. `program` is a path, or a name that is searched in `PATH`. `timeout`
    /// limits all commands about one network, and all commands that list networks.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { program: program.into(), leading: Vec::new(), timeout, has_device: None }
    }

    /// Selects the engine at `host`, such as `unix:///run/docker.sock`, instead of the program's
    /// own choice.
    #[must_use]
    pub fn with_host(mut self, host: &str) -> Self {
        self.leading.push(format!("--host={host}").into());
        self
    }

    /// Examines the bridges of the networks as well: the engine does not notice that another program
    /// removed one.
    #[must_use]
    pub fn with_bridges(mut self) -> Self {
        self.has_device = Some(|name| if_nametoindex(name.as_str()).is_ok());
        self
    }

    /// Creates `network` if it does not exist. Otherwise compares the existing network with it.
    ///
    /// # Errors
    /// When the network does not exist or differs afterwards. A later attempt may succeed.
    pub async fn ensure(&self, network: &DockerNetwork) -> Result<Outcome, DockerError> {
        let call = self.call(&network.name);
        // The version is not cached: an upgrade may restart the daemon at any time, and the command
        // takes only some 30 ms.
        let engine = call.engine().await?;
        let Some(found) = call.inspect().await? else {
            return call.create(network, &engine).await;
        };
        match found.compare(network, &engine) {
            Comparison::Equal | Comparison::SmallerMtu(_) if self.lacks(&network.bridge) => {
                call.replace_without_bridge(&found, network, &engine).await
            }
            Comparison::Equal => Ok(Outcome::Unchanged),
            Comparison::SmallerMtu(mtu) => Ok(Outcome::SmallerMtu(mtu)),
            Comparison::Differs(differences) => Err(call.differs(differences)),
            Comparison::UnfitGatewayMode if found.running_containers().is_empty() => {
                log::info!(
                    "docker network {}: replacing it for Docker {engine}: it was made for an older \
                     engine and has no containers",
                    network.name
                );
                call.remove(&found).await?;
                match call.create(network, &engine).await? {
                    Outcome::Created => Ok(Outcome::Recreated),
                    outcome => Ok(outcome),
                }
            }
            Comparison::UnfitGatewayMode => Err(call.unfit(&found, &engine)),
        }
    }

    fn lacks(&self, bridge: &DeviceName) -> bool {
        self.has_device.is_some_and(|has_device| !has_device(bridge))
    }

    /// Returns whether a network of this name exists, managed or foreign.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn exists(&self, name: &OverlayName) -> Result<bool, DockerError> {
        Ok(self.call(name).inspect().await?.is_some())
    }

    /// Removes the network of the overlay `name`. Returns whether it existed.
    ///
    /// # Errors
    /// When the removal fails, or the network of this name is foreign.
    pub async fn remove(&self, name: &OverlayName) -> Result<bool, DockerError> {
        let call = self.call(name);
        let Some(found) = call.inspect().await? else {
            return Ok(false);
        };
        if !found.is_ours(name) {
            return Err(call.failed(DockerFailure::Foreign));
        }
        call.remove(&found).await?;
        Ok(true)
    }

    /// Removes the managed networks of all overlays except the `assigned` ones. Networks with
    /// containers stay: a stopped container could not be started again without its network.
    ///
    /// # Errors
    /// When the networks cannot be listed.
    pub async fn remove_stale(
        &self,
        assigned: &BTreeSet<OverlayName>,
    ) -> Result<Removal, DockerFailure> {
        self.remove_unused(|name| !assigned.contains(name)).await
    }

    /// Removes the managed networks of these overlays. Networks with containers stay.
    ///
    /// # Errors
    /// When the networks cannot be listed.
    pub async fn remove_overlays(
        &self,
        overlays: &BTreeSet<OverlayName>,
    ) -> Result<Removal, DockerFailure> {
        self.remove_unused(|name| overlays.contains(name)).await
    }

    async fn remove_unused(
        &self,
        is_stale: impl Fn(&OverlayName) -> bool,
    ) -> Result<Removal, DockerFailure> {
        let mut removal = Removal::default();
        let networks = match self.managed_networks().await {
            // A host without Docker has no networks.
            Err(DockerFailure::ProgramNotFound { .. }) => return Ok(removal),
            networks => networks?,
        };
        for (name, found) in networks.into_iter().filter(|(name, _)| is_stale(name)) {
            match self.call(&name).remove_unused(&found).await {
                Ok(()) => removal.removed.push(name),
                Err(error) => removal.kept.push(error),
            }
        }
        Ok(removal)
    }

    /// Lists the subnets of the managed networks.
    ///
    /// # Errors
    /// When the networks cannot be listed. A host without Docker has no networks.
    pub async fn subnets(&self) -> Result<BTreeMap<OverlayName, Vec<Subnet>>, DockerFailure> {
        let networks = match self.managed_networks().await {
            Err(DockerFailure::ProgramNotFound { .. }) => Vec::new(),
            networks => networks?,
        };
        let subnets = |found: &InspectedNetwork| {
            found.subnets().filter_map(|text| text.parse().ok()).collect()
        };
        Ok(networks.iter().map(|(name, found)| (name.clone(), subnets(found))).collect())
    }

    /// Lists the managed networks with their containers, running or stopped.
    ///
    /// # Errors
    /// When the networks or containers cannot be listed.
    pub async fn ours(&self) -> Result<BTreeMap<OverlayName, Vec<String>>, DockerFailure> {
        let mut ours = BTreeMap::new();
        for (name, found) in self.managed_networks().await? {
            let containers = self.call(&name).containers(&found).await;
            let containers = containers.map_err(|error| error.reason)?;
            ours.insert(name, containers);
        }
        Ok(ours)
    }

    /// Lists the addresses of the containers that run in networks at bridges of overlays. The
    /// addresses of stopped containers are free.
    ///
    /// # Errors
    /// When the networks cannot be listed.
    pub async fn networks_in_use(&self) -> Result<Vec<NetworkUse>, DockerFailure> {
        let networks = self.networks().await?.into_iter();
        let named = networks.filter_map(|found| Some((found.name.parse().ok()?, found)));
        let ours = named.filter(|(name, found)| found.is_ours(name));
        let network_use = |(overlay, found): (OverlayName, InspectedNetwork)| NetworkUse {
            subnets: found.subnets().filter_map(|text| text.parse().ok()).collect(),
            endpoints: found.endpoints(),
            overlay,
        };
        Ok(ours.map(network_use).collect())
    }

    async fn managed_networks(
        &self,
    ) -> Result<Vec<(OverlayName, InspectedNetwork)>, DockerFailure> {
        let networks = self.networks().await?.into_iter();
        let named = networks.filter_map(|found| Some((found.name.parse().ok()?, found)));
        Ok(named.filter(|(name, found)| found.has_our_options(name)).collect())
    }

    /// Returns the engine's version, and the managed networks that were made for an older engine
    /// and that other agents therefore cannot reach.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn examine(&self) -> Result<EngineReport, DockerFailure> {
        let deadline = Instant::now() + self.timeout;
        let arguments = ["version", "--format={{json .Server}}"];
        let output = self.run(&arguments, deadline).await?;
        if !output.success {
            return Err(command_failure(&arguments, &output));
        }
        let engine = Engine::parse(&output.stdout).map_err(|error| DockerFailure::Unreadable {
            command: short_command(&arguments),
            reason: error.to_string(),
        })?;
        let has_mode = engine.has_unprotected_gateway_mode();
        let is_unfit = |found: &InspectedNetwork| {
            let name = found.name.parse::<OverlayName>();
            has_mode && name.is_ok_and(|name| found.is_ours(&name)) && !found.is_unprotected()
        };
        let networks = self.networks().await?.into_iter().filter(is_unfit);
        let unfit =
            networks.map(|found| (found.name.clone(), found.running_containers())).collect();
        Ok(EngineReport { engine: engine.to_string(), unfit })
    }

    /// Lists all networks of the bridge driver.
    async fn networks(&self) -> Result<Vec<InspectedNetwork>, DockerFailure> {
        let deadline = Instant::now() + self.timeout;
        let list = ["network", "ls", "--no-trunc", "--quiet", "--filter=driver=bridge"];
        let listed = self.run(&list, deadline).await?;
        if !listed.success {
            return Err(command_failure(&list, &listed));
        }
        let ids = String::from_utf8_lossy(&listed.stdout);
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let command = ["network", "inspect"];
        let inspect: Vec<&str> = command.into_iter().chain(ids.iter().copied()).collect();
        let inspected = self.run(&inspect, deadline).await?;
        // The command fails if a network was removed meanwhile. It prints all other networks
        // anyway. After any other failure it prints an empty list, which does not mean that there
        // are no networks.
        if !inspected.success && !error::is_missing_network_only(&inspected) {
            return Err(command_failure(&command, &inspected));
        }
        let unreadable =
            |reason| DockerFailure::Unreadable { command: short_command(&command), reason };
        let networks = InspectedNetwork::parse_all(&inspected.stdout)
            .map_err(|error| unreadable(error.to_string()))?;
        let stderr = String::from_utf8_lossy(&inspected.stderr);
        let is_answered =
            |id: &&str| networks.iter().any(|found| found.id == **id) || stderr.contains(*id);
        match ids.iter().find(|id| !is_answered(id)) {
            Some(id) => Err(unreadable(format!("it does not mention the network {id}"))),
            None => Ok(networks),
        }
    }

    async fn run(
        &self,
        arguments: &[impl AsRef<str>],
        deadline: Instant,
    ) -> Result<ProcessOutput, DockerFailure> {
        let program = &self.program;
        let all = self.leading.iter().map(OsString::as_os_str);
        let all = all.chain(arguments.iter().map(|argument| argument.as_ref().as_ref()));
        subprocess::run(&self.program, all, b"", deadline).await.map_err(|failure| {
            let command = short_command(arguments);
            match failure {
                SubprocessError::NotFound => {
                    DockerFailure::ProgramNotFound { program: program.clone() }
                }
                SubprocessError::Start(error) => {
                    DockerFailure::Start { program: program.clone(), reason: error.to_string() }
                }
                SubprocessError::Io(error) => {
                    DockerFailure::Lost { command, reason: error.to_string() }
                }
                SubprocessError::TimedOut => {
                    DockerFailure::TimedOut { command, timeout: self.timeout }
                }
                SubprocessError::TooMuchOutput => DockerFailure::TooMuchOutput { command },
            }
        })
    }

    fn call<'a>(&'a self, name: &'a OverlayName) -> NetworkCall<'a> {
        NetworkCall { docker: self, name, deadline: Instant::now() + self.timeout }
    }
}

/// An operation on one network. All its commands share the deadline.
struct NetworkCall<'a> {
    docker: &'a Docker,
    name: &'a OverlayName,
    deadline: Instant,
}

impl NetworkCall<'_> {
    async fn engine(&self) -> Result<Engine, DockerError> {
        let arguments = ["version", "--format={{json .Server}}"];
        let output = self.run(&arguments).await?;
        if !output.success {
            return Err(self.refused(&arguments, &output));
        }
        Engine::parse(&output.stdout)
            .map_err(|error| self.unreadable(&arguments, error.to_string()))
    }

    async fn inspect(&self) -> Result<Option<InspectedNetwork>, DockerError> {
        let arguments = ["network", "inspect", self.name.as_str()];
        let output = self.run(&arguments).await?;
        if !output.success {
            return match ErrorKind::of(&output) {
                ErrorKind::NotFound => Ok(None),
                _ => Err(self.refused(&arguments, &output)),
            };
        }
        let networks = InspectedNetwork::parse_all(&output.stdout)
            .map_err(|error| self.unreadable(&arguments, error.to_string()))?;
        // Docker (20.10 to 29) accepts the beginning of an ID instead of a name. So the answer may
        // be a network with another name.
        Ok(networks.into_iter().find(|network| network.name == self.name.as_str()))
    }

    async fn create(
        &self,
        network: &DockerNetwork,
        engine: &Engine,
    ) -> Result<Outcome, DockerError> {
        let arguments = network::create_arguments(network, engine);
        let output = self.run(&arguments).await?;
        let mut outcome = Outcome::Created;
        if !output.success {
            match ErrorKind::of(&output) {
                // Another program created the network first. It is compared below.
                ErrorKind::NameExists => outcome = Outcome::Unchanged,
                ErrorKind::PoolOverlaps => {
                    let other = self.overlapping(network).await;
                    return Err(self.failed(DockerFailure::PoolOverlaps {
                        subnets: network::subnets(network),
                        other,
                    }));
                }
                ErrorKind::BridgeInUse { id } => {
                    let other = self.name_of(&id).await.unwrap_or(id);
                    let bridge = network.bridge.clone();
                    return Err(self.failed(DockerFailure::BridgeInUse { bridge, other }));
                }
                _ => return Err(self.refused(&["network", "create"], &output)),
            }
        }
        let Some(found) = self.inspect().await? else {
            return Err(self.failed(DockerFailure::Vanished));
        };
        match found.compare(network, engine) {
            Comparison::Equal => Ok(outcome),
            Comparison::SmallerMtu(mtu) => Ok(Outcome::SmallerMtu(mtu)),
            Comparison::Differs(differences) => Err(self.differs(differences)),
            Comparison::UnfitGatewayMode => Err(self.unfit(&found, engine)),
        }
    }

    /// Replaces a network whose bridge is gone, unless it has containers, running or stopped.
    async fn replace_without_bridge(
        &self,
        found: &InspectedNetwork,
        network: &DockerNetwork,
        engine: &Engine,
    ) -> Result<Outcome, DockerError> {
        let all = self.containers(found).await?;
        if !all.is_empty() {
            return Err(self.failed(DockerFailure::BridgeMissing {
                bridge: network.bridge.clone(),
                running: found.running_containers(),
            }));
        }
        log::warn!(
            "docker network {}: replacing it: its bridge {} was removed, and it has no containers",
            network.name,
            network.bridge
        );
        self.remove(found).await?;
        match self.create(network, engine).await? {
            Outcome::Created => Ok(Outcome::Recreated),
            outcome => Ok(outcome),
        }
    }

    async fn remove(&self, found: &InspectedNetwork) -> Result<(), DockerError> {
        // By ID, because another network may have the name by now.
        let output = self.run(&["network", "rm", &found.id]).await?;
        if output.success {
            return Ok(());
        }
        match ErrorKind::of(&output) {
            ErrorKind::NotFound => Ok(()),
            ErrorKind::StillAttached => Err(self
                .failed(DockerFailure::StillAttached { containers: found.running_containers() })),
            _ => Err(self.refused(&["network", "rm"], &output)),
        }
    }

    /// Removes the network unless it has containers.
    async fn remove_unused(&self, found: &InspectedNetwork) -> Result<(), DockerError> {
        let containers = self.containers(found).await?;
        if !containers.is_empty() {
            return Err(self.failed(DockerFailure::Unassigned { containers }));
        }
        self.remove(found).await
    }

    /// Lists the containers of the network, running or stopped.
    async fn containers(&self, found: &InspectedNetwork) -> Result<Vec<String>, DockerError> {
        // By name as well: Docker stores only the name for a container that was never started.
        let filters = [&found.id, &found.name].map(|value| format!("--filter=network={value}"));
        let [id, name] = &filters;
        let arguments = ["ps", "--all", "--no-trunc", "--format={{.Names}}", id, name];
        let output = self.run(&arguments).await?;
        if !output.success {
            return Err(self.refused(&arguments, &output));
        }
        let names = String::from_utf8_lossy(&output.stdout);
        let containers: Vec<String> =
            names.split_whitespace().map(|name| name.escape_debug().to_string()).collect();
        Ok(if containers.is_empty() { found.running_containers() } else { containers })
    }

    /// Finds the network that overlaps `network`, because Docker does not name it. Returns `None`
    /// if it cannot be found.
    async fn overlapping(&self, network: &DockerNetwork) -> Option<Overlap> {
        let listed = self.run(&["network", "ls", "--no-trunc", "--quiet"]).await.ok()?;
        let listed = String::from_utf8(listed.stdout).ok()?;
        let arguments = ["network", "inspect"].into_iter().chain(listed.split_whitespace());
        // The command fails if a network was removed meanwhile. It prints all other networks
        // anyway.
        let inspected = self.run(&arguments.collect::<Vec<_>>()).await.ok()?;
        let found = InspectedNetwork::parse_all(&inspected.stdout).ok()?;
        found.iter().find_map(|other| other.overlap(network))
    }

    async fn name_of(&self, id: &str) -> Option<String> {
        let inspected = self.run(&["network", "inspect", id]).await.ok()?;
        let found = InspectedNetwork::parse_all(&inspected.stdout).ok()?;
        found.into_iter().next().map(|network| network.name.escape_debug().to_string())
    }

    async fn run(&self, arguments: &[impl AsRef<str>]) -> Result<ProcessOutput, DockerError> {
        let output = self.docker.run(arguments, self.deadline).await;
        output.map_err(|reason| self.failed(reason))
    }

    fn unfit(&self, found: &InspectedNetwork, engine: &Engine) -> DockerError {
        self.failed(DockerFailure::UnfitGatewayMode {
            engine: engine.to_string(),
            containers: found.running_containers(),
        })
    }

    fn refused(&self, arguments: &[&str], output: &ProcessOutput) -> DockerError {
        self.failed(command_failure(arguments, output))
    }

    fn unreadable(&self, arguments: &[&str], reason: String) -> DockerError {
        self.failed(DockerFailure::Unreadable { command: short_command(arguments), reason })
    }

    fn differs(&self, differences: Vec<Difference>) -> DockerError {
        self.failed(DockerFailure::Differs { network: self.name.clone(), differences })
    }

    fn failed(&self, reason: DockerFailure) -> DockerError {
        DockerError { network: self.name.clone(), reason }
    }
}

/// Returns the failure that the output of a command describes.
fn command_failure(arguments: &[&str], output: &ProcessOutput) -> DockerFailure {
    let message = error::error_message(output);
    match ErrorKind::of(output) {
        ErrorKind::NotRunning => {
            DockerFailure::NotRunning { message: error::without_question(&message) }
        }
        ErrorKind::PermissionDenied => DockerFailure::PermissionDenied { message },
        ErrorKind::AmbiguousName => DockerFailure::AmbiguousName,
        _ => DockerFailure::Refused { command: short_command(arguments), message },
    }
}

/// Returns a command as an operator types it, without its longer arguments.
fn short_command(arguments: &[impl AsRef<str>]) -> String {
    let words = arguments.iter().map(AsRef::as_ref).take(2);
    let words = words.filter(|word| !word.starts_with('-'));
    ["docker"].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;

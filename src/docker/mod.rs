//! The network of the DockerContainerizer: one Docker network per overlay, made and compared
//! through the `docker` program.
//!
//! The program and not the Engine API, because it follows contexts, `DOCKER_HOST` and TLS as the
//! operator set them up for Mesos, which runs the same program. It is run with an argument vector,
//! never by a shell, and never longer than a deadline.
//!
//! A network that has the right name is not thereby right: the C++ modules took any, and containers
//! then got addresses of another subnet. What exists is compared, and what differs is told, not
//! repaired: the options of a network cannot be changed, and to make it anew would cut off
//! containers.

mod engine;
mod error;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use self::engine::Engine;
use self::error::Complaint;
use self::network::{Found, Verdict};
use crate::addr::OverlayName;
use crate::agent::DockerNetwork;
use crate::program::{self, Failure, Finished};

pub use self::error::{DockerError, Overlap, Reason};
pub use self::network::Difference;

/// What [`Docker::ensure`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no network of this name.
    Created,
    /// The network was made for an older engine and had no containers: it was made anew.
    Recreated,
    /// The network was right already.
    Unchanged,
}

/// What became of networks that are not wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The overlays whose networks were removed.
    pub removed: Vec<OverlayName>,
    /// Those that are still there, and why.
    pub kept: Vec<DockerError>,
}

/// What [`Docker::examine`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The version of the engine.
    pub engine: String,
    /// Networks of ours whose containers other agents do not reach, and the containers.
    pub unfit: Vec<(String, Vec<String>)>,
}

/// The Docker engine of this host.
#[derive(Debug, Clone)]
pub struct Docker {
    program: PathBuf,
    /// Arguments in front of every command.
    leading: Vec<OsString>,
    timeout: Duration,
}

impl Docker {
    /// `program` is found through `PATH` unless it is a path. `timeout` bounds each call as a
    /// whole.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { program: program.into(), leading: Vec::new(), timeout }
    }

    /// The engine at `host`, as in `unix:///run/docker.sock`, instead of the program's own choice.
    #[must_use]
    pub fn with_host(mut self, host: &str) -> Self {
        self.leading.push(format!("--host={host}").into());
        self
    }

    /// Sees to it that `network` exists as it should be.
    ///
    /// # Errors
    /// When it does not. Each reason is of its own kind; any of them may be gone at the next
    /// attempt.
    pub async fn ensure(&self, network: &DockerNetwork) -> Result<Outcome, DockerError> {
        let call = self.call(&network.name);
        // Asked each time and kept nowhere: an upgrade restarts the daemon under us, and one
        // command of some 30 ms is all it costs.
        let engine = call.engine().await?;
        let Some(found) = call.inspect().await? else {
            return call.create(network, &engine).await;
        };
        match found.compare(network, &engine) {
            Verdict::Equal => Ok(Outcome::Unchanged),
            Verdict::Differs(differences) => Err(call.differs(differences)),
            Verdict::UnfitGatewayMode if found.attached().is_empty() => {
                log::info!(
                    "docker network {}: made for an older engine, without containers: making it \
                     anew for Docker {engine}",
                    network.name
                );
                call.remove(&found).await?;
                match call.create(network, &engine).await? {
                    Outcome::Created => Ok(Outcome::Recreated),
                    outcome => Ok(outcome),
                }
            }
            Verdict::UnfitGatewayMode => Err(call.failed(Reason::UnfitGatewayMode {
                engine: engine.to_string(),
                containers: found.attached(),
            })),
        }
    }

    /// Whether there is a network of this name, ours or not.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn exists(&self, name: &OverlayName) -> Result<bool, DockerError> {
        Ok(self.call(name).inspect().await?.is_some())
    }

    /// Removes the network of the overlay `name` and says whether there was one.
    ///
    /// # Errors
    /// When it is still there, or the network of this name is not ours: then it was left alone.
    pub async fn remove(&self, name: &OverlayName) -> Result<bool, DockerError> {
        let call = self.call(name);
        let Some(found) = call.inspect().await? else {
            return Ok(false);
        };
        if !found.is_ours(name) {
            return Err(call.failed(Reason::Foreign));
        }
        call.remove(&found).await?;
        Ok(true)
    }

    /// Removes the networks that are ours, of none of the overlays `wanted`, and of no container,
    /// be it running or not: one that was stopped could not be started again.
    ///
    /// # Errors
    /// When it cannot be found out which networks there are.
    pub async fn remove_unwanted(&self, wanted: &BTreeSet<OverlayName>) -> Result<Removal, Reason> {
        let mut removal = Removal::default();
        let networks = match self.made_by_us().await {
            // Without Docker there are none.
            Err(Reason::ProgramNotFound { .. }) => return Ok(removal),
            networks => networks?,
        };
        for (name, found) in networks {
            if wanted.contains(&name) {
                continue;
            }
            match self.call(&name).remove_unused(&found).await {
                Ok(()) => removal.removed.push(name),
                Err(error) => removal.kept.push(error),
            }
        }
        Ok(removal)
    }

    /// The networks that are ours, and the containers that belong to each, be they running or not.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub async fn ours(&self) -> Result<BTreeMap<OverlayName, Vec<String>>, Reason> {
        let mut ours = BTreeMap::new();
        for (name, found) in self.made_by_us().await? {
            let containers = self.call(&name).containers(&found).await;
            let containers = containers.map_err(|error| error.reason)?;
            ours.insert(name, containers);
        }
        Ok(ours)
    }

    async fn made_by_us(&self) -> Result<Vec<(OverlayName, Found)>, Reason> {
        let named = self.networks().await?.into_iter();
        let named = named.filter_map(|found| Some((found.name.parse().ok()?, found)));
        Ok(named.filter(|(name, found)| found.was_made_by_us(name)).collect())
    }

    /// Which engine answers, and which networks of ours it keeps from other agents: those that were
    /// made for an older one.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn examine(&self) -> Result<Examined, Reason> {
        let deadline = Instant::now() + self.timeout;
        let arguments = ["version", "--format={{json .Server}}"];
        let finished = self.run(&arguments, deadline).await?;
        if !finished.success {
            return Err(refusal(&arguments, &finished));
        }
        let engine = Engine::parse(&finished.stdout)
            .map_err(|reason| Reason::Unreadable { command: shown(&arguments), reason })?;
        let has_mode = engine.has_unprotected_gateway_mode();
        let is_unfit = |found: &Found| {
            let name = found.name.parse::<OverlayName>();
            has_mode && name.is_ok_and(|name| found.is_ours(&name)) && !found.is_unprotected()
        };
        let networks = self.networks().await?.into_iter().filter(is_unfit);
        let unfit = networks.map(|found| (found.name.clone(), found.attached())).collect();
        Ok(Examined { engine: engine.to_string(), unfit })
    }

    /// All networks that could be ours.
    async fn networks(&self) -> Result<Vec<Found>, Reason> {
        let deadline = Instant::now() + self.timeout;
        let list = ["network", "ls", "--no-trunc", "--quiet", "--filter=driver=bridge"];
        let listed = self.run(&list, deadline).await?;
        if !listed.success {
            return Err(refusal(&list, &listed));
        }
        let ids = String::from_utf8_lossy(&listed.stdout);
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let inspect: Vec<&str> = ["network", "inspect"].into_iter().chain(ids).collect();
        // Networks that are gone by now make the command fail, the others are printed all the same.
        let inspected = self.run(&inspect, deadline).await?;
        Found::parse_all(&inspected.stdout).map_err(|error| Reason::Unreadable {
            command: shown(&inspect),
            reason: error.to_string(),
        })
    }

    async fn run(
        &self,
        arguments: &[impl AsRef<str>],
        deadline: Instant,
    ) -> Result<Finished, Reason> {
        let program = &self.program;
        let all = self.leading.iter().map(OsString::as_os_str);
        let all = all.chain(arguments.iter().map(|argument| argument.as_ref().as_ref()));
        program::run(&self.program, all, b"", deadline).await.map_err(|failure| {
            let command = shown(arguments);
            match failure {
                Failure::NotFound => Reason::ProgramNotFound { program: program.clone() },
                Failure::Start(error) => {
                    Reason::Start { program: program.clone(), reason: error.to_string() }
                }
                Failure::Lost(error) => Reason::Lost { command, reason: error.to_string() },
                Failure::TimedOut => Reason::TimedOut { command, timeout: self.timeout },
                Failure::TooMuchOutput => Reason::TooMuchOutput { command },
            }
        })
    }

    fn call<'a>(&'a self, name: &'a OverlayName) -> Call<'a> {
        Call { docker: self, name, deadline: Instant::now() + self.timeout }
    }
}

/// One call about one network, with the deadline that all its commands share.
struct Call<'a> {
    docker: &'a Docker,
    name: &'a OverlayName,
    deadline: Instant,
}

impl Call<'_> {
    async fn engine(&self) -> Result<Engine, DockerError> {
        let arguments = ["version", "--format={{json .Server}}"];
        let finished = self.run(&arguments).await?;
        if !finished.success {
            return Err(self.refused(&arguments, &finished));
        }
        Engine::parse(&finished.stdout).map_err(|reason| self.unreadable(&arguments, reason))
    }

    async fn inspect(&self) -> Result<Option<Found>, DockerError> {
        let arguments = ["network", "inspect", self.name.as_str()];
        let finished = self.run(&arguments).await?;
        if !finished.success {
            return match Complaint::of(&finished) {
                Complaint::NotFound => Ok(None),
                _ => Err(self.refused(&arguments, &finished)),
            };
        }
        let networks = Found::parse_all(&finished.stdout)
            .map_err(|error| self.unreadable(&arguments, error.to_string()))?;
        // Docker (20.10 to 29) takes the beginning of an ID for a name as well, so that 'a' may
        // answer with a network that has another name.
        Ok(networks.into_iter().find(|network| network.name == self.name.as_str()))
    }

    async fn create(
        &self,
        network: &DockerNetwork,
        engine: &Engine,
    ) -> Result<Outcome, DockerError> {
        let arguments = network::create_arguments(network, engine);
        let finished = self.run(&arguments).await?;
        let mut outcome = Outcome::Created;
        if !finished.success {
            match Complaint::of(&finished) {
                // Somebody was faster. Whether it is the right one shows below.
                Complaint::NameExists => outcome = Outcome::Unchanged,
                Complaint::PoolOverlaps => {
                    let other = self.overlapping(network).await;
                    return Err(self.failed(Reason::PoolOverlaps {
                        subnets: network::subnets(network),
                        other,
                    }));
                }
                Complaint::BridgeInUse { id } => {
                    let other = self.name_of(&id).await.unwrap_or(id);
                    let bridge = network.bridge.clone();
                    return Err(self.failed(Reason::BridgeInUse { bridge, other }));
                }
                _ => return Err(self.refused(&["network", "create"], &finished)),
            }
        }
        let Some(found) = self.inspect().await? else {
            return Err(self.failed(Reason::Vanished));
        };
        match found.compare(network, engine) {
            Verdict::Equal => Ok(outcome),
            Verdict::Differs(differences) => Err(self.differs(differences)),
            Verdict::UnfitGatewayMode => Err(self.failed(Reason::UnfitGatewayMode {
                engine: engine.to_string(),
                containers: found.attached(),
            })),
        }
    }

    async fn remove(&self, found: &Found) -> Result<(), DockerError> {
        // By ID: by now the name could belong to another network.
        let finished = self.run(&["network", "rm", &found.id]).await?;
        if finished.success {
            return Ok(());
        }
        match Complaint::of(&finished) {
            Complaint::NotFound => Ok(()),
            Complaint::StillAttached => {
                Err(self.failed(Reason::StillAttached { containers: found.attached() }))
            }
            _ => Err(self.refused(&["network", "rm"], &finished)),
        }
    }

    /// Removes it unless a container belongs to it.
    async fn remove_unused(&self, found: &Found) -> Result<(), DockerError> {
        let containers = self.containers(found).await?;
        if !containers.is_empty() {
            return Err(self.failed(Reason::Unassigned { containers }));
        }
        self.remove(found).await
    }

    /// The containers that belong to it, be they running or not.
    async fn containers(&self, found: &Found) -> Result<Vec<String>, DockerError> {
        // By its name too: of a container that was never started Docker knows no more.
        let filters = [&found.id, &found.name].map(|it| format!("--filter=network={it}"));
        let [id, name] = &filters;
        let arguments = ["ps", "--all", "--no-trunc", "--format={{.Names}}", id, name];
        let finished = self.run(&arguments).await?;
        if !finished.success {
            return Err(self.refused(&arguments, &finished));
        }
        let names = String::from_utf8_lossy(&finished.stdout);
        let containers: Vec<String> =
            names.split_whitespace().map(|name| name.escape_debug().to_string()).collect();
        Ok(if containers.is_empty() { found.attached() } else { containers })
    }

    /// The network that has addresses of `network`: Docker does not name it. `None` if it cannot be
    /// told.
    async fn overlapping(&self, network: &DockerNetwork) -> Option<Overlap> {
        let listed = self.run(&["network", "ls", "--no-trunc", "--quiet"]).await.ok()?;
        let listed = String::from_utf8(listed.stdout).ok()?;
        let arguments = ["network", "inspect"].into_iter().chain(listed.split_whitespace());
        // Networks that are gone by now make the command fail, the others are printed all the same.
        let inspected = self.run(&arguments.collect::<Vec<_>>()).await.ok()?;
        let found = Found::parse_all(&inspected.stdout).ok()?;
        found.iter().find_map(|other| other.overlap(network))
    }

    async fn name_of(&self, id: &str) -> Option<String> {
        let inspected = self.run(&["network", "inspect", id]).await.ok()?;
        let found = Found::parse_all(&inspected.stdout).ok()?;
        found.into_iter().next().map(|network| network.name.escape_debug().to_string())
    }

    async fn run(&self, arguments: &[impl AsRef<str>]) -> Result<Finished, DockerError> {
        let finished = self.docker.run(arguments, self.deadline).await;
        finished.map_err(|reason| self.failed(reason))
    }

    fn refused(&self, arguments: &[&str], finished: &Finished) -> DockerError {
        self.failed(refusal(arguments, finished))
    }

    fn unreadable(&self, arguments: &[&str], reason: String) -> DockerError {
        self.failed(Reason::Unreadable { command: shown(arguments), reason })
    }

    fn differs(&self, differences: Vec<Difference>) -> DockerError {
        self.failed(Reason::Differs { network: self.name.clone(), differences })
    }

    fn failed(&self, reason: Reason) -> DockerError {
        DockerError { network: self.name.clone(), reason }
    }
}

/// Why a command failed.
fn refusal(arguments: &[&str], finished: &Finished) -> Reason {
    let said = error::first_line(finished);
    match Complaint::of(finished) {
        Complaint::NotRunning => Reason::NotRunning { said: error::statement(&said) },
        Complaint::PermissionDenied => Reason::PermissionDenied { said },
        Complaint::AmbiguousName => Reason::AmbiguousName,
        _ => Reason::Refused { command: shown(arguments), said },
    }
}

/// A command as an operator would type it, without the arguments that only fill the line.
fn shown(arguments: &[impl AsRef<str>]) -> String {
    let words = arguments.iter().map(AsRef::as_ref).take(2);
    let words = words.filter(|word| !word.starts_with('-'));
    ["docker"].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;

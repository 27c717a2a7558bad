//! `mesos-overlay clean`.
//!
//! First goes what lets new containers in, then what is between them and their peers, and last the
//! files by which we know what a host was like. What cannot be removed is named, and everything
//! else is removed nevertheless: whoever takes a host out of service is not to begin anew because
//! of one container. So it can be run again at any time, and finds what is left.
//!
//! Ours is what the rooms know for ours. One thing is made by others for us and bears no mark, the
//! bridge that the CNI plugin makes for the containers of Mesos: it is ours if it has the name of
//! an overlay of which there is our CNI configuration, or addresses that host-local gave, or that
//! an earlier run had to leave.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::host::{counted, read_config, runtime};
use super::output::{Form, Output, Table, harmless};
use crate::addr::{DeviceName, OverlayName};
use crate::cni::{CniDirectory, Leases};
use crate::config::{AgentConfig, parse_agent};
use crate::dataplane::{Bridge, Dataplane, plan};
use crate::docker::{Docker, Reason};
use crate::firewall::{Backend, Firewall};
use crate::host::{HostError, HostLock, HostSettings};
use crate::tunnel::Desired;

/// Most ports of a bridge that are named.
const PORTS_SHOWN: usize = 3;

/// Remove everything that agents made on this host.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay clean --config agent.json --dry-run
  mesos-overlay clean --cni-dir /var/lib/mesos/cni

Stop the agent first, or the Mesos agent with its module: while it runs nothing is removed. Run it as root, in
the network namespace of the agent. What belongs to containers stays, with exit code 1: end them, and run it
again. The directory of CNI configurations stays, since a Mesos agent does not start without it.")]
pub(super) struct CleanCommand {
    /// The agent_config of the agent that ran here
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it wrote CNI configurations
    #[arg(
        long,
        env = "MESOS_OVERLAY_CNI_DIR",
        value_name = "DIR",
        required_unless_present = "config"
    )]
    cni_dir: Option<PathBuf>,
    /// Where it kept what settings were before, and its lock; otherwise the key state_dir, or
    /// /var/lib/mesos-overlay
    #[arg(long, env = "MESOS_OVERLAY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Its docker program; otherwise the key docker, or the one in PATH
    #[arg(long, env = "MESOS_OVERLAY_DOCKER", value_name = "PROGRAM")]
    docker: Option<PathBuf>,
    /// Leave Docker and its networks alone
    #[arg(
        long,
        env = "MESOS_OVERLAY_KEEP_DOCKER",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    keep_docker: bool,
    /// Show what would be removed, and remove nothing
    #[arg(
        long,
        env = "MESOS_OVERLAY_DRY_RUN",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    dry_run: bool,
    #[command(flatten)]
    form: Form,
}

/// What became of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    Done,
    WouldBeDone,
    Failed,
}

#[derive(Debug, Serialize)]
struct Action {
    action: String,
    result: Fate,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    actions: Vec<Action>,
}

impl CleanCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.configuration()?;
        // Others would see half of it, and take the rest for not there.
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new(
                "clean: only root sees and removes all of it: run it as root",
            ));
        }
        // An agent that runs does not mind to be looked at.
        let state_dir = &config.dataplane.state_dir;
        let lock = if self.dry_run { None } else { lock(state_dir)? };
        let mut report = Report { dry_run: self.dry_run, actions: Vec::new() };
        let left = report.found("what the last run has left", Left::read(state_dir));
        let has_memory = HostSettings::new(state_dir).has_memory() || !left.overlays.is_empty();
        let has_state = has_memory || lock.is_some();
        let mut kernel = Dataplane::open().map_err(|error| Failure::new(error.to_string()))?;
        let mut overlays = report.overlays(&config, &mut kernel);
        overlays.extend(left.overlays);
        let has_docker = !self.keep_docker && report.clean_docker(&config)?;
        report.clean_kernel(&mut kernel);
        report.clean_firewall();
        report.clean_bridges(&mut kernel, &config, &overlays, has_docker || self.keep_docker);
        report.remember(state_dir, &mut kernel, overlays);
        report.clean_settings(state_dir);
        report.clean_state(state_dir, lock, has_state);
        report.show(&self.form)
    }

    fn configuration(&self) -> Result<AgentConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => read_config(path, parse_agent)?,
            None => AgentConfig::new(PathBuf::new()),
        };
        let absolute = |flag: &str, path: &Path| {
            std::path::absolute(path).map_err(|error| Failure::new(format!("{flag}: {error}")))
        };
        if let Some(cni_dir) = &self.cni_dir {
            config.cni_dir = absolute("--cni-dir", cni_dir)?;
        }
        if let Some(state_dir) = &self.state_dir {
            config.dataplane.state_dir = absolute("--state-dir", state_dir)?;
        }
        if let Some(docker) = &self.docker {
            config.docker.clone_from(docker);
        }
        Ok(config)
    }
}

fn lock(state_dir: &Path) -> Result<Option<HostLock>, Failure> {
    HostLock::acquire_existing(state_dir).map_err(|error| {
        Failure::new(match error {
            HostError::Held { path, holder } => format!(
                "clean: {} is held by {holder}, an agent that runs: stop it, or it would make \
                 everything again",
                path.display()
            ),
            error => format!("clean: {error}"),
        })
    })
}

impl Report {
    fn add(&mut self, action: String, result: Result<(), String>) {
        let (result, reason) = match result {
            Ok(()) if self.dry_run => (Fate::WouldBeDone, None),
            Ok(()) => (Fate::Done, None),
            Err(reason) => (Fate::Failed, Some(reason)),
        };
        self.actions.push(Action { action, result, reason });
    }

    /// Does it, unless nothing is to be changed.
    fn act(&mut self, action: String, act: impl FnOnce() -> Result<(), String>) {
        let result = if self.dry_run { Ok(()) } else { act() };
        self.add(action, result);
    }

    /// What was found; if it cannot be found out, that is told.
    fn found<T: Default>(&mut self, what: &str, found: Result<T, impl ToString>) -> T {
        found.unwrap_or_else(|error| {
            self.add(format!("find {what}"), Err(error.to_string()));
            T::default()
        })
    }

    /// Removes our CNI configurations, and tells of which overlays there is something on this host.
    fn overlays(&mut self, config: &AgentConfig, kernel: &mut Dataplane) -> BTreeSet<OverlayName> {
        let cni = CniDirectory::new(config.cni_dir.clone(), None, Vec::new(), true);
        let files = self.found("the CNI configurations", cni.ours());
        let leases = Leases::new(config.cni_data_dir.as_deref()).networks();
        let mut overlays = self.found("the leases of host-local", leases);
        let bridges = self.found("the bridges", kernel.bridges());
        overlays.retain(|name| find(&bridges, &name.mesos_bridge()).is_some());
        for (overlay, path) in files {
            let action = format!("remove CNI configuration {}", path.display());
            self.act(action, || cni.remove(&overlay).map_err(|error| error.to_string()));
            overlays.insert(overlay);
        }
        overlays
    }

    /// Whether there is a Docker on this host.
    fn clean_docker(&mut self, config: &AgentConfig) -> Result<bool, Failure> {
        let docker = Docker::new(&config.docker, config.options.command_timeout);
        let runtime = runtime()?;
        let networks = match runtime.block_on(docker.ours()) {
            Ok(networks) => networks,
            Err(Reason::ProgramNotFound { .. }) => return Ok(false),
            // An agent with no Docker networks has nothing to do with Docker, whatever ails it.
            Err(_) if !config.options.docker_bridge => return Ok(true),
            Err(reason) => {
                let reason = format!("{reason}: or give --keep-docker");
                self.add("find the Docker networks".to_owned(), Err(reason));
                return Ok(true);
            }
        };
        for (overlay, containers) in networks {
            let action = format!("remove Docker network {overlay}");
            if containers.is_empty() {
                self.act(action, || {
                    let removed = runtime.block_on(docker.remove(&overlay));
                    removed.map(drop).map_err(|error| error.reason.to_string())
                });
            } else {
                let reason = format!("it has containers: remove them ({})", listed(&containers));
                self.add(action, Err(reason));
            }
        }
        Ok(true)
    }

    fn clean_kernel(&mut self, kernel: &mut Dataplane) {
        if self.dry_run {
            let nothing = Desired::default();
            let observed = self.found("the devices and routes", kernel.observe(&nothing));
            for operation in plan(&nothing, &observed).operations {
                self.add(operation.to_string(), Ok(()));
            }
            return;
        }
        let cleaned = self.found("the devices and routes", kernel.clean());
        cleaned.done.iter().for_each(|operation| self.add(operation.to_string(), Ok(())));
        for failure in cleaned.failures {
            self.add(failure.operation.to_string(), Err(failure.reason));
        }
    }

    fn clean_firewall(&mut self) {
        let found = self.found("the rules of the firewall", Firewall::found());
        let mut result = Ok(());
        if !self.dry_run && !found.is_empty() {
            result = Firewall::new(Backend::None).clean().map_err(|error| error.to_string());
        }
        let left = result.is_err().then(Firewall::found).and_then(Result::ok);
        for object in found {
            let is_gone = left.as_ref().is_some_and(|left| !left.contains(&object));
            let result = if is_gone { Ok(()) } else { result.clone() };
            self.add(format!("remove {object}"), result);
        }
    }

    /// The bridges of the overlays, and what the plugin host-local knows of who is on them. Those
    /// of Docker go with its networks, and are looked at only where there is no Docker.
    fn clean_bridges(
        &mut self,
        kernel: &mut Dataplane,
        config: &AgentConfig,
        overlays: &BTreeSet<OverlayName>,
        is_docker: bool,
    ) {
        let leases = Leases::new(config.cni_data_dir.as_deref());
        let bridges = self.found("the bridges", kernel.bridges());
        for overlay in overlays {
            let own = [Some(overlay.mesos_bridge()), (!is_docker).then(|| overlay.docker_bridge())];
            for bridge in own.iter().flatten().filter_map(|name| find(&bridges, name)) {
                let action = format!("remove bridge {}", bridge.name);
                match in_use(bridge) {
                    Some(reason) => self.add(action, Err(reason)),
                    None => self.act(action, || {
                        kernel.remove_bridge(bridge).map_err(|error| error.to_string())
                    }),
                }
            }
            if !leases.path(overlay).exists() {
                continue;
            }
            let action = format!("remove leases {}", leases.path(overlay).display());
            match find(&bridges, &overlay.mesos_bridge()).and_then(in_use) {
                Some(reason) => self.add(action, Err(reason)),
                None => {
                    self.act(action, || leases.remove(overlay).map_err(|error| error.to_string()))
                }
            }
        }
    }

    /// A bridge that stays is found by the next run, when there is no CNI configuration any more.
    fn remember(
        &mut self,
        state_dir: &Path,
        kernel: &mut Dataplane,
        mut overlays: BTreeSet<OverlayName>,
    ) {
        if self.dry_run {
            return;
        }
        let bridges = self.found("the bridges", kernel.bridges());
        overlays.retain(|overlay| {
            let own = [overlay.mesos_bridge(), overlay.docker_bridge()];
            own.iter().any(|name| find(&bridges, name).is_some())
        });
        if let Err(error) = (Left { overlays }).write(state_dir) {
            let action = format!("note what is left in {}", state_dir.join(Left::FILE).display());
            self.add(action, Err(error.to_string()));
        }
    }

    fn clean_settings(&mut self, state_dir: &Path) {
        let settings = HostSettings::new(state_dir);
        if self.dry_run {
            let list = self.found("the settings of the host", settings.to_restore());
            list.into_iter().for_each(|what| self.add(what, Ok(())));
            return;
        }
        let restored = settings.restore();
        restored.done.into_iter().for_each(|what| self.add(what, Ok(())));
        for (what, error) in restored.failed {
            let reason = match error {
                HostError::Write { reason, .. }
                | HostError::File { reason, .. }
                | HostError::Reload { reason, .. } => reason,
                error => error.to_string(),
            };
            self.add(what, Err(reason));
        }
    }

    /// The lock, and its directory if there was something of ours in it, and nothing else is.
    fn clean_state(&mut self, state_dir: &Path, lock: Option<HostLock>, has_state: bool) {
        let path = HostLock::path_in(state_dir);
        if path.exists() {
            let action = format!("remove {}", path.display());
            let remove = || lock.map_or(Ok(()), HostLock::remove);
            self.act(action, || remove().map_err(|error| error.to_string()));
        }
        if self.dry_run || !has_state {
            return;
        }
        match fs::remove_dir(state_dir) {
            Ok(()) => self.add(format!("remove {}", state_dir.display()), Ok(())),
            // A master's state may be there too.
            Err(error) => log::info!("{} stays: {error}", state_dir.display()),
        }
    }

    fn show(self, form: &Form) -> Result<(), Failure> {
        let mut output = Output::new();
        if form.json {
            output.json(&self)?;
        } else if self.actions.is_empty() {
            output.line("nothing of mesos-overlay is on this host")?;
        } else {
            let mut table = Table::with_sentences(&["ACTION", "RESULT"]);
            for Action { action, result, reason } in &self.actions {
                let result = match (result, reason) {
                    (Fate::Done, _) => "done".to_owned(),
                    (Fate::WouldBeDone, _) => "would be done".to_owned(),
                    (Fate::Failed, None) => "failed".to_owned(),
                    (Fate::Failed, Some(reason)) => format!("failed: {}", harmless(reason)),
                };
                table.row(&mut output, [harmless(action), result])?;
            }
            table.finish(&mut output)?;
        }
        output.finish()?;
        let failed = self.actions.iter().filter(|action| action.result == Fate::Failed).count();
        if failed == 0 {
            return Ok(());
        }
        let all = counted(self.actions.len() as u128, "action");
        Err(Failure::new(format!(
            "clean: {failed} of {all} failed: do what is said of them, and run it again"
        )))
    }
}

/// The overlays of which a run has left a bridge, as it was in use.
#[derive(Default)]
struct Left {
    overlays: BTreeSet<OverlayName>,
}

impl Left {
    /// In the state directory: a name a line.
    const FILE: &str = "clean.left";

    fn read(state_dir: &Path) -> io::Result<Self> {
        match fs::read_to_string(state_dir.join(Self::FILE)) {
            Ok(text) => {
                Ok(Self { overlays: text.lines().filter_map(|it| it.parse().ok()).collect() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn write(&self, state_dir: &Path) -> io::Result<()> {
        let path = state_dir.join(Self::FILE);
        if self.overlays.is_empty() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        fs::create_dir_all(state_dir)?;
        let lines = self.overlays.iter().map(|overlay| format!("{overlay}\n"));
        fs::write(path, lines.collect::<String>())
    }
}

fn find<'a>(bridges: &'a [Bridge], name: &DeviceName) -> Option<&'a Bridge> {
    bridges.iter().find(|bridge| bridge.name == name.as_str())
}

/// Why a bridge is not removed.
fn in_use(bridge: &Bridge) -> Option<String> {
    let ports = listed(&bridge.ports);
    let reason = format!("containers are on {}: end them ({ports})", bridge.name);
    (!bridge.ports.is_empty()).then_some(reason)
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(PORTS_SHOWN)].join(", ");
    match names.len().saturating_sub(PORTS_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

//! `mesos-overlay clean`.
//!
//! Objects are removed in this order: CNI configurations and Docker networks, which admit new
//! containers; then the dataplane; and last the files with the former settings of the host. If an
//! object cannot be removed, the command reports it and removes the rest. So the command can be
//! repeated at any time and removes what remains.
//!
//! Each module recognizes the objects that it manages. The exception is the bridge that the CNI
//! plugin creates for the containers of Mesos: it has no mark of mesos-overlay. It is removed if an
//! overlay with its name has a managed CNI configuration, leases of host-local, or a record of an
//! earlier run that could not remove the bridge.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use clap::Args;
use overlay_config::AgentConfig;
use overlay_linux::cni::{CniDirectory, Leases};
use overlay_linux::dataplane::{Bridge, Dataplane, plan};
use overlay_linux::docker::{Docker, DockerFailure};
use overlay_linux::firewall::{self, Backend, Firewall, RulesFile};
use overlay_linux::host::{HostError, HostLock, HostSettings, read_private, write_private};
use overlay_linux::probe;
use overlay_types::addr::{DeviceName, OverlayName};
use overlay_types::tunnel::Desired;
use serde::Serialize;

use super::Failure;
use super::agent_options::{AgentConfigFile, AgentHostOptions, absolute};
use super::output::{DryRun, Output, OutputFormat, Table, sanitize};
use super::process::{FILE_MAX, pluralize, runtime};
use crate::runtime::AuthenticationMark;

/// Most ports of a bridge that a message names.
const PORTS_SHOWN: usize = 3;

/// Remove everything that agents created on this host.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay clean --config agent.json --dry-run
  mesos-overlay clean --cni-dir /var/lib/mesos/cni

Stop the agent first, or the Mesos agent with its module: nothing is removed while it runs. Run
the command as root, in the network namespace of the agent. Objects that containers use stay, with
exit code 1: stop the containers, and repeat the command. The directory of CNI configurations
stays, since a Mesos agent does not start without it.")]
pub(super) struct CleanCommand {
    #[command(flatten)]
    file: AgentConfigFile,
    #[command(flatten)]
    host: AgentHostOptions,
    /// Keep the Docker networks
    #[arg(
        long,
        env = "MESOS_OVERLAY_KEEP_DOCKER",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    keep_docker: bool,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    format: OutputFormat,
}

/// The result of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ActionResult {
    Done,
    WouldBeDone,
    Failed,
}

#[derive(Debug, Serialize)]
struct Action {
    action: String,
    result: ActionResult,
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
        // Another user sees only some of the objects, and would report the rest as absent.
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new(
                "clean: only root sees and removes all objects: run it as root",
            ));
        }
        let DryRun { dry_run } = self.dry_run;
        let state_dir = &config.dataplane.state_dir;
        // A dry run only reads, so it needs no lock and can run beside an agent.
        let lock = if dry_run { None } else { lock(state_dir)? };
        let mut report = Report { dry_run, actions: Vec::new() };
        let remaining = report.found_or_default(
            "the bridges that the last run left",
            RemainingBridges::read(state_dir),
        );
        let has_saved_settings =
            HostSettings::new(state_dir).has_saved_settings() || !remaining.overlays.is_empty();
        let has_state = has_saved_settings || lock.is_some();
        let mut kernel = Dataplane::open().map_err(|error| Failure::new(error.to_string()))?;
        report.clean_probes(&config);
        let mut overlays = report.clean_cni(&config, &mut kernel);
        overlays.extend(remaining.overlays);
        let has_docker = !self.keep_docker && report.clean_docker(&config)?;
        report.clean_kernel(&mut kernel);
        report.clean_firewall(state_dir);
        report.clean_bridges(&mut kernel, &config, &overlays, has_docker || self.keep_docker);
        report.record_remaining_bridges(state_dir, &mut kernel, overlays);
        report.clean_settings(state_dir);
        report.clean_state(state_dir, lock, has_state);
        self.format.print(&report, |output| report.print(output))?;
        report.require_success()
    }

    fn configuration(&self) -> Result<AgentConfig, Failure> {
        let mut config = self.file.read()?;
        if let Some(cni_dir) = &self.file.cni_dir {
            config.cni_dir = absolute("--cni-dir", cni_dir)?;
        }
        self.host.apply(&mut config)?;
        Ok(config)
    }
}

fn lock(state_dir: &Path) -> Result<Option<HostLock>, Failure> {
    HostLock::acquire_existing(state_dir).map_err(|error| {
        Failure::new(match error {
            HostError::Held { path, holder } => format!(
                "clean: {} is held by {holder}, a running agent: stop it, or it would create \
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
            Ok(()) if self.dry_run => (ActionResult::WouldBeDone, None),
            Ok(()) => (ActionResult::Done, None),
            Err(reason) => (ActionResult::Failed, Some(reason)),
        };
        self.actions.push(Action { action, result, reason });
    }

    /// Runs the action, unless this is a dry run, and adds its result.
    fn run(&mut self, action: String, act: impl FnOnce() -> Result<(), String>) {
        let result = if self.dry_run { Ok(()) } else { act() };
        self.add(action, result);
    }

    /// Returns the found objects. An error is added as a failed action.
    fn found_or_default<T: Default>(&mut self, what: &str, found: Result<T, impl ToString>) -> T {
        found.unwrap_or_else(|error| {
            self.add(format!("find {what}"), Err(error.to_string()));
            T::default()
        })
    }

    /// Removes the ports of the probes and the leases of their addresses, which a killed agent
    /// leaves.
    fn clean_probes(&mut self, config: &AgentConfig) {
        for port in probe::existing_ports() {
            let action = format!("remove device {port} of the probes");
            self.run(action, || probe::remove_port(&port).map_err(|error| error.to_string()));
        }
        let leases = Leases::new(config.cni_data_dir.as_deref());
        // Another step reports leases that cannot be listed.
        for overlay in leases.networks().unwrap_or_default() {
            for address in leases.probe_addresses(&overlay).unwrap_or_default() {
                let action = format!("remove the lease of {address} for probes");
                self.run(action, || {
                    leases.release_probe_address(&overlay, address);
                    Ok(())
                });
            }
        }
    }

    /// Removes the managed CNI configurations. Returns the overlays that may have bridges here.
    fn clean_cni(&mut self, config: &AgentConfig, kernel: &mut Dataplane) -> BTreeSet<OverlayName> {
        let cni = CniDirectory::new(config.cni_dir.clone(), None, Vec::new(), true);
        let files = self.found_or_default("the CNI configurations", cni.ours());
        let leases = Leases::new(config.cni_data_dir.as_deref()).networks();
        let mut overlays = self.found_or_default("the leases of host-local", leases);
        let bridges = self.found_or_default("the bridges", kernel.bridges());
        overlays.retain(|name| find(&bridges, &name.mesos_bridge()).is_some());
        for error in files.unreadable {
            self.add("find the CNI configurations".to_owned(), Err(error.to_string()));
        }
        for (overlay, path) in files.files {
            let action = format!("remove CNI configuration {}", path.display());
            self.run(action, || cni.remove(&overlay).map_err(|error| error.to_string()));
            overlays.insert(overlay);
        }
        overlays
    }

    /// Removes the managed Docker networks. Returns whether this host has Docker.
    fn clean_docker(&mut self, config: &AgentConfig) -> Result<bool, Failure> {
        let docker = Docker::new(&config.docker, config.options.command_timeout);
        let runtime = runtime()?;
        let networks = match runtime.block_on(docker.ours()) {
            Ok(networks) => networks,
            Err(reason @ DockerFailure::ProgramNotFound { .. }) => {
                let Some(socket) =
                    docker.existing_socket().filter(|_| config.options.docker_bridge)
                else {
                    return Ok(false);
                };
                let reason = format!(
                    "{reason}: {} exists, so this host may have Docker networks: name the program \
                     with --docker, or give --keep-docker",
                    socket.display()
                );
                self.add("find the Docker networks".to_owned(), Err(reason));
                return Ok(true);
            }
            // An agent without Docker networks does not use Docker, so its errors do not matter.
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
                self.run(action, || {
                    let removed = runtime.block_on(docker.remove(&overlay));
                    removed.map(drop).map_err(|error| error.reason.to_string())
                });
            } else {
                let reason = format!("it has containers: remove them ({})", join_few(&containers));
                self.add(action, Err(reason));
            }
        }
        Ok(true)
    }

    fn clean_kernel(&mut self, kernel: &mut Dataplane) {
        if self.dry_run {
            let nothing = Desired::default();
            let observed =
                self.found_or_default("the devices and routes", kernel.observe(&nothing));
            for operation in plan(&nothing, &observed).operations {
                self.add(operation.to_string(), Ok(()));
            }
            return;
        }
        let cleaned = self.found_or_default("the devices and routes", kernel.clean());
        cleaned.done.iter().for_each(|operation| self.add(operation.to_string(), Ok(())));
        for failure in cleaned.failures {
            self.add(failure.operation.to_string(), Err(failure.reason));
        }
    }

    fn clean_firewall(&mut self, state_dir: &Path) {
        let found = self.found_or_default("the rules of the firewall", Firewall::list_owned());
        let mut result = Ok(());
        if !self.dry_run && !found.is_empty() {
            result = Firewall::new(Backend::None).clean().map_err(|error| error.to_string());
        }
        let remaining = result.is_err().then(Firewall::list_owned).and_then(Result::ok);
        for object in found {
            let is_gone = remaining.as_ref().is_some_and(|objects| !objects.contains(&object));
            let result = if is_gone { Ok(()) } else { result.clone() };
            self.add(format!("remove {object}"), result);
        }
        let ports = self.found_or_default("the port mappings", firewall::list_port_mappings());
        for object in ports {
            self.run(format!("remove {object}"), || {
                firewall::remove_port_mappings().map_err(|error| error.to_string())
            });
        }
        let mut file = RulesFile::new(state_dir);
        if file.path().exists() {
            let action = format!("remove {}", file.path().display());
            self.run(action, || file.remove().map_err(|error| error.to_string()));
        }
    }

    /// Removes the bridges of the overlays and the leases of host-local. Docker removes its bridges
    /// with its networks, so they are removed here only on a host without Docker.
    fn clean_bridges(
        &mut self,
        kernel: &mut Dataplane,
        config: &AgentConfig,
        overlays: &BTreeSet<OverlayName>,
        has_docker: bool,
    ) {
        let leases = Leases::new(config.cni_data_dir.as_deref());
        let bridges = self.found_or_default("the bridges", kernel.bridges());
        for overlay in overlays {
            let names =
                [Some(overlay.mesos_bridge()), (!has_docker).then(|| overlay.docker_bridge())];
            for bridge in names.iter().flatten().filter_map(|name| find(&bridges, name)) {
                let action = format!("remove bridge {}", bridge.name);
                match in_use(bridge) {
                    Some(reason) => self.add(action, Err(reason)),
                    None => self.run(action, || {
                        kernel.remove_bridge(bridge).map_err(|error| error.to_string())
                    }),
                }
            }
            let path = leases.path(overlay);
            let what = format!("the leases {}", path.display());
            if !self.found_or_default(&what, leases.has(overlay)) {
                continue;
            }
            let action = format!("remove leases {}", leases.path(overlay).display());
            match find(&bridges, &overlay.mesos_bridge()).and_then(in_use) {
                Some(reason) => self.add(action, Err(reason)),
                None => {
                    self.run(action, || leases.remove(overlay).map_err(|error| error.to_string()))
                }
            }
        }
    }

    /// Writes the overlays of the remaining bridges to a file. The next run finds these bridges by
    /// this file, since their CNI configurations are removed.
    fn record_remaining_bridges(
        &mut self,
        state_dir: &Path,
        kernel: &mut Dataplane,
        mut overlays: BTreeSet<OverlayName>,
    ) {
        if self.dry_run {
            return;
        }
        let bridges = self.found_or_default("the bridges", kernel.bridges());
        overlays.retain(|overlay| {
            let names = [overlay.mesos_bridge(), overlay.docker_bridge()];
            names.iter().any(|name| find(&bridges, name).is_some())
        });
        if let Err(error) = (RemainingBridges { overlays }).write(state_dir) {
            let path = state_dir.join(RemainingBridges::FILE);
            let action = format!("record the remaining bridges in {}", path.display());
            self.add(action, Err(error.to_string()));
        }
    }

    fn clean_settings(&mut self, state_dir: &Path) {
        let settings = HostSettings::new(state_dir);
        if self.dry_run {
            let list =
                self.found_or_default("the settings of the host", settings.preview_restore());
            list.into_iter().for_each(|setting| self.add(setting, Ok(())));
            return;
        }
        let restored = settings.restore();
        restored.done.into_iter().for_each(|setting| self.add(setting, Ok(())));
        for (setting, error) in restored.failed {
            let reason = match error {
                HostError::Write { reason, .. }
                | HostError::File { reason, .. }
                | HostError::Reload { reason, .. } => reason,
                error => error.to_string(),
            };
            self.add(setting, Err(reason));
        }
    }

    /// Removes the lock, and its directory if the directory held files of the agent and is empty
    /// now.
    fn clean_state(&mut self, state_dir: &Path, lock: Option<HostLock>, has_state: bool) {
        let mark = AuthenticationMark::in_directory(state_dir);
        if mark.path().exists() {
            let action = format!("remove {}", mark.path().display());
            let remove = || fs::remove_file(mark.path()).map_err(|error| error.to_string());
            self.run(action, remove);
        }
        let path = HostLock::path_in(state_dir);
        if path.exists() {
            let action = format!("remove {}", path.display());
            let remove = || lock.map_or(Ok(()), HostLock::remove);
            self.run(action, || remove().map_err(|error| error.to_string()));
        }
        if self.dry_run || !has_state {
            return;
        }
        match fs::remove_dir(state_dir) {
            Ok(()) => self.add(format!("remove {}", state_dir.display()), Ok(())),
            // The directory may also hold the state of a master.
            Err(error) => log::info!("{} stays: {error}", state_dir.display()),
        }
    }

    fn print(&self, output: &mut Output) -> Result<(), Failure> {
        if self.actions.is_empty() {
            return output.line("nothing of mesos-overlay is on this host");
        }
        let mut table = Table::with_sentences(&["ACTION", "RESULT"]);
        for Action { action, result, reason } in &self.actions {
            let result = match (result, reason) {
                (ActionResult::Done, _) => "done".to_owned(),
                (ActionResult::WouldBeDone, _) => "would be done".to_owned(),
                (ActionResult::Failed, None) => "failed".to_owned(),
                (ActionResult::Failed, Some(reason)) => format!("failed: {}", sanitize(reason)),
            };
            table.row(output, [sanitize(action), result])?;
        }
        table.finish(output)
    }

    /// Fails if an action failed.
    fn require_success(&self) -> Result<(), Failure> {
        let is_failed = |action: &&Action| action.result == ActionResult::Failed;
        let failed = self.actions.iter().filter(is_failed).count();
        if failed == 0 {
            return Ok(());
        }
        let all = pluralize(self.actions.len() as u128, "action");
        Err(Failure::new(format!(
            "clean: {failed} of {all} failed: follow the reasons, and run it again"
        )))
    }
}

/// The overlays whose bridges an earlier run could not remove, since containers used them.
#[derive(Default)]
struct RemainingBridges {
    overlays: BTreeSet<OverlayName>,
}

impl RemainingBridges {
    /// Name of the file in the state directory. Each line is the name of an overlay.
    const FILE: &str = "clean.left";

    fn read(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(Self::FILE);
        let text = read_private(&path, FILE_MAX).map_err(|error| {
            io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
        })?;
        let lines = text.iter().flat_map(|text| text.lines());
        Ok(Self { overlays: lines.filter_map(|line| line.parse().ok()).collect() })
    }

    fn write(&self, state_dir: &Path) -> io::Result<()> {
        let path = state_dir.join(Self::FILE);
        if self.overlays.is_empty() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let lines = self.overlays.iter().map(|overlay| format!("{overlay}\n"));
        write_private(&path, lines.collect::<String>().as_bytes())
    }
}

fn find<'a>(bridges: &'a [Bridge], name: &DeviceName) -> Option<&'a Bridge> {
    bridges.iter().find(|bridge| bridge.name == name.as_str())
}

/// Returns why a bridge cannot be removed, if it has ports.
fn in_use(bridge: &Bridge) -> Option<String> {
    let ports = join_few(&bridge.ports);
    let reason = format!("containers are on {}: stop them ({ports})", bridge.name);
    (!bridge.ports.is_empty()).then_some(reason)
}

/// Joins the first names: `a, b, c and 2 more`.
fn join_few(names: &[String]) -> String {
    let shown = names[..names.len().min(PORTS_SHOWN)].join(", ");
    match names.len().saturating_sub(PORTS_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

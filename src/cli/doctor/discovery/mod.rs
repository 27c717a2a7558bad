//! Finds the configuration of the agent of this host: of the running agent, the program or a Mesos
//! agent with the module, or else at default paths.
//!
//! The doctor runs the program `docker` of the configuration, and may send a credential to the
//! address of the agent. So it uses nothing that another user controls: neither a process nor a
//! file. It names them, and the operator can name them as flags.

mod modules;
mod processes;
#[cfg(test)]
mod tests;
mod trusted_files;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_config::{AgentConfig, DataplaneKind, Problems, parse_agent};
use overlay_doctor::observation::{AgentProcess, ConfigSource, Configuration};
use overlay_types::secret::show_path;

use self::processes::{AgentKind, ProcFiles, RunningAgent};
use self::trusted_files::TrustedFiles;
use crate::cli::Failure;
use crate::cli::agent_options::{AgentHostOptions, DockerOptions};
use crate::cli::process::{pluralize, read_agent_config};

/// The port of an agent without `--listen`, and of a Mesos agent.
const PORT_DEFAULT: u16 = 5051;
/// Where configurations are without an agent that runs: of the program, and of the module.
const DIRECTORIES: [&str; 2] = ["/etc/mesos-overlay", "/usr/local/etc/mesos-overlay"];
const AGENT_FILE: &str = "agent.json";
const MODULES_FILE: &str = "agent_modules.json";
/// A file whose time is later than the start of the agent by more than this was changed after it.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// The configuration of the agent, and where the agent answers.
#[derive(Debug)]
pub(in crate::cli) struct Discovery {
    pub(in crate::cli) config: AgentConfig,
    pub(in crate::cli) configuration: Configuration,
    /// The address of the running agent; `None` without a trusted one.
    pub(in crate::cli) address: Option<SocketAddrV4>,
}

/// The places to search, so that tests can use others.
#[derive(Debug)]
struct SearchPaths {
    proc: PathBuf,
    directories: Vec<PathBuf>,
    files: TrustedFiles,
}

/// Finds the configuration. A file that the operator names is always used.
pub(in crate::cli) fn discover(flag: Option<&Path>) -> Result<Discovery, Failure> {
    let named = flag.map(|path| read_agent_config(Some(path)).map(|config| (path, config)));
    let directories = DIRECTORIES.iter().map(PathBuf::from).collect();
    let files = TrustedFiles::of_this_process();
    let paths = SearchPaths { proc: "/proc".into(), directories, files };
    Ok(paths.discover(named.transpose()?))
}

impl SearchPaths {
    fn discover(&self, named: Option<(&Path, AgentConfig)>) -> Discovery {
        let (agents, problem) = ProcFiles::new(&self.proc, self.files).agents();
        let here = agents.iter().find(|agent| agent.is_here && agent.distrust.is_none());
        let mut configuration = Configuration {
            source: None,
            agents: agents.iter().map(RunningAgent::describe).collect(),
            problems: problem.into_iter().collect(),
        };
        let found = match (named, here) {
            (Some((path, config)), _) => Some((config, ConfigSource::Flag(show_path(path)))),
            (None, Some(agent)) => configuration.note(agent.configuration()),
            (None, None) => self.at_default_path(&mut configuration),
        };
        let (config, source) = found.unzip();
        configuration.source = source;
        Discovery {
            config: config.unwrap_or_else(|| AgentConfig::new(PathBuf::new())),
            configuration,
            address: here.and_then(RunningAgent::address),
        }
    }

    fn at_default_path(
        &self,
        configuration: &mut Configuration,
    ) -> Option<(AgentConfig, ConfigSource)> {
        for directory in &self.directories {
            for (name, read) in [
                (AGENT_FILE, read_config as fn(TrustedFiles, &Path) -> Result<AgentConfig, String>),
                (MODULES_FILE, modules::read_file),
            ] {
                let path = directory.join(name);
                if path.exists() {
                    let source = ConfigSource::DefaultPath(show_path(&path));
                    return configuration
                        .note(read(self.files, &path).map(|config| (config, source)));
                }
            }
        }
        None
    }
}

/// Adds a problem to the configuration.
trait Note {
    fn note<T>(&mut self, result: Result<T, String>) -> Option<T>;
}

impl Note for Configuration {
    fn note<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }
}

fn read_config(files: TrustedFiles, path: &Path) -> Result<AgentConfig, String> {
    parse_config(path, &files.read_text(path)?)
}

fn parse_config(path: &Path, text: &str) -> Result<AgentConfig, String> {
    parse_agent(&show_path(path), text).map(|(config, _)| config).map_err(|all| describe(&all))
}

/// Describes the problems of a configuration in one line.
fn describe(problems: &Problems) -> String {
    let count = pluralize(problems.count() as u128, "problem");
    let first = problems.to_string();
    let first = first.lines().next().unwrap_or_default();
    format!("the configuration has {count}: {first}")
}

impl RunningAgent {
    fn describe(&self) -> AgentProcess {
        AgentProcess {
            pid: self.pid,
            name: self.name.clone(),
            is_here: self.is_here,
            distrust: self.distrust.clone(),
        }
    }

    /// Returns the address at which the agent answers requests of this host.
    fn address(&self) -> Option<SocketAddrV4> {
        let (ip, port) = match self.kind {
            AgentKind::Program => {
                let default = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT_DEFAULT);
                let listen = self.flag("listen", "MESOS_OVERLAY_LISTEN");
                let listen = listen.map_or(Ok(default), |listen| listen.parse()).ok()?;
                (*listen.ip(), listen.port())
            }
            AgentKind::Mesos => {
                let ip = self.flag("ip", "MESOS_IP").and_then(|ip| ip.parse().ok());
                let port = self.flag("port", "MESOS_PORT").and_then(|port| port.parse().ok());
                (ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port.unwrap_or(PORT_DEFAULT))
            }
        };
        Some(SocketAddrV4::new(if ip.is_unspecified() { Ipv4Addr::LOCALHOST } else { ip }, port))
    }

    fn configuration(&self) -> Result<(AgentConfig, ConfigSource), String> {
        let (config, file) = match self.kind {
            AgentKind::Program => self.of_program()?,
            AgentKind::Mesos => modules::of_mesos_agent(self)?,
        };
        let is_edited = file.as_ref().is_some_and(|file| self.is_older_than(file));
        let file = file.as_deref().map(show_path);
        Ok((config, ConfigSource::Agent { pid: self.pid, file, is_edited }))
    }

    /// Returns the configuration of the program, and its file.
    fn of_program(&self) -> Result<(AgentConfig, Option<PathBuf>), String> {
        let file = self.flag("config", "MESOS_OVERLAY_CONFIG").map(PathBuf::from);
        let mut config = match &file {
            Some(file) if file.as_os_str() == "-" => {
                let pid = self.pid;
                return Err(format!("the agent of process {pid} has read its file from stdin"));
            }
            Some(file) => parse_config(file, &self.read_text(file)?)?,
            None => AgentConfig::new(PathBuf::new()),
        };
        if let Some(cni_dir) = self.flag("cni-dir", "MESOS_OVERLAY_CNI_DIR") {
            config.set_cni_dir(Path::new(&cni_dir)).map_err(|error| error.to_string())?;
        }
        match self.flag("dataplane", "MESOS_OVERLAY_DATAPLANE").as_deref() {
            Some("external") => config.dataplane.kind = DataplaneKind::External,
            Some("vxlan") => config.dataplane.kind = DataplaneKind::Vxlan,
            _ => {}
        }
        let options = AgentHostOptions {
            state_dir: self.flag("state-dir", "MESOS_OVERLAY_STATE_DIR").map(PathBuf::from),
            docker: DockerOptions {
                docker: self.flag("docker", "MESOS_OVERLAY_DOCKER").map(PathBuf::from),
                no_docker: self.has_switch("no-docker", "MESOS_OVERLAY_NO_DOCKER"),
            },
        };
        options
            .apply_with(&mut config, |path| self.resolve(path))
            .map_err(|(flag, reason)| format!("{flag}: {reason}"))?;
        Ok((config, file))
    }

    /// Reads a file of the agent.
    fn read_text(&self, file: &Path) -> Result<String, String> {
        self.files.read_text(&self.resolve(file)?)
    }

    /// Returns whether the file was changed after the start of the process.
    fn is_older_than(&self, file: &Path) -> bool {
        let metadata = self.resolve(file).ok().and_then(|path| fs::metadata(path).ok());
        let changed = metadata.and_then(|metadata| metadata.modified().ok());
        let (Some(changed), Some(started)) = (changed, self.started) else { return false };
        changed.duration_since(started).is_ok_and(|later| later > CLOCK_TOLERANCE)
    }
}

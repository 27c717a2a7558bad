//! The agents that run on this host, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Longest command line or environment that is read.
const LENGTH_MAX: u64 = 256 * 1024;
/// Clock ticks per second in `/proc/PID/stat`, on every architecture of Linux that Rust supports.
const TICKS: u64 = 100;
const PROGRAM: &str = "mesos-overlay";
/// The names of a Mesos agent: of releases, of Mesos before 1.0, and in its build directory.
const MESOS_AGENTS: [&str; 4] = ["mesos-agent", "mesos-slave", "lt-mesos-agent", "lt-mesos-slave"];

/// The program that the agent is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentKind {
    /// `mesos-overlay agent`.
    Program,
    /// A Mesos agent, with or without the module.
    Mesos,
}

/// A process that is an agent.
#[derive(Debug, Clone)]
pub(super) struct RunningAgent {
    pub(super) pid: u32,
    /// Name of the program.
    pub(super) name: String,
    pub(super) kind: AgentKind,
    /// Whether the process has the network namespace of the doctor.
    pub(super) is_here: bool,
    /// Start of the process; `None` if it is unknown.
    pub(super) started: Option<SystemTime>,
    folder: PathBuf,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// The file system `/proc`.
#[derive(Debug)]
pub(super) struct ProcFiles<'a>(&'a Path);

impl<'a> ProcFiles<'a> {
    pub(super) const fn new(path: &'a Path) -> Self {
        Self(path)
    }

    /// Returns the agents by process ID, those in this network namespace first. Returns also why
    /// some may be missing.
    pub(super) fn agents(&self) -> (Vec<RunningAgent>, Option<String>) {
        let entries = match fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(error) => {
                return (Vec::new(), Some(format!("list the processes in /proc: {error}")));
            }
        };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let (mut agents, mut denied) = (Vec::new(), 0_u32);
        for pid in pids {
            match self.agent(pid) {
                Ok(agent) => agents.extend(agent),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => denied += 1,
                // The process has ended.
                Err(_) => {}
            }
        }
        agents.sort_by_key(|agent| (!agent.is_here, agent.pid));
        let problem = (denied > 0 && agents.is_empty()).then(|| {
            format!("{denied} processes cannot be read: run 'mesos-overlay doctor' as root")
        });
        (agents, problem)
    }

    fn agent(&self, pid: u32) -> std::io::Result<Option<RunningAgent>> {
        let folder = self.0.join(pid.to_string());
        let arguments = read_list(&folder.join("cmdline"))?;
        let Some((name, kind)) = kind_of(&arguments) else { return Ok(None) };
        // Another user's environment is not readable. Flags on the command line still are.
        let environment = read_list(&folder.join("environ")).unwrap_or_default();
        let variable = |entry: String| {
            let (name, value) = entry.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let environment = environment.into_iter().filter_map(variable).collect();
        let agent = RunningAgent {
            pid,
            name,
            kind,
            is_here: self.is_here(&folder),
            started: self.started(&folder),
            folder,
            arguments,
            environment,
        };
        // A Mesos agent without modules is none of ours.
        Ok(Some(agent).filter(|agent| kind == AgentKind::Program || agent.has_modules()))
    }

    /// Returns whether a process has the network namespace of this process, as far as that is
    /// known.
    fn is_here(&self, folder: &Path) -> bool {
        let own = fs::read_link(self.0.join("self/ns/net"));
        match (own, fs::read_link(folder.join("ns/net"))) {
            (Ok(own), Ok(other)) => own == other,
            _ => true,
        }
    }

    fn started(&self, folder: &Path) -> Option<SystemTime> {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The name of the process may contain spaces and parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
        let kernel = fs::read_to_string(self.0.join("stat")).ok()?;
        let boot = kernel.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot = Duration::from_secs(boot.trim().parse().ok()?);
        SystemTime::UNIX_EPOCH.checked_add(boot + Duration::from_secs(ticks / TICKS))
    }
}

/// Reads a file of texts that end with a null byte.
fn read_list(path: &Path) -> std::io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LENGTH_MAX).read_to_end(&mut bytes)?;
    let texts = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    Ok(texts.filter(|text| !text.is_empty()).map(std::borrow::Cow::into_owned).collect())
}

/// Returns the name and the kind of an agent with this command line.
fn kind_of(arguments: &[String]) -> Option<(String, AgentKind)> {
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    if MESOS_AGENTS.contains(&name) {
        return Some((name.to_owned(), AgentKind::Mesos));
    }
    // Flags of all subcommands may precede the subcommand.
    let is_agent = name.starts_with(PROGRAM)
        && arguments.iter().skip(1).any(|argument| argument == "agent")
        && !arguments.iter().any(|argument| argument == "doctor");
    is_agent.then(|| (name.to_owned(), AgentKind::Program))
}

impl RunningAgent {
    /// Returns the value of a flag, or else of its environment variable.
    pub(super) fn flag(&self, name: &str, variable: &str) -> Option<String> {
        let mut arguments = self.arguments.iter().skip(1);
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--") else { continue };
            match flag.split_once('=') {
                Some((found, value)) if found == name => return Some(value.to_owned()),
                // Flags of Mesos have their value after an equals sign.
                None if flag == name && self.kind == AgentKind::Program => {
                    return arguments.next().cloned();
                }
                _ => {}
            }
        }
        self.variable(variable)
    }

    /// Returns a variable of the environment. An empty variable counts as unset.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Returns the path at which this process finds a file of the agent: the agent may have another
    /// directory or another root, as in a container.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        let base = if path.is_absolute() { "root" } else { "cwd" };
        let relative = path.strip_prefix("/").unwrap_or(path);
        let inside = self.folder.join(base).join(relative);
        // Only the owner and root can follow the links of a process.
        if fs::symlink_metadata(&inside).is_err() && path.is_absolute() {
            return path.to_owned();
        }
        inside
    }

    fn has_modules(&self) -> bool {
        ["modules", "modules_dir"]
            .into_iter()
            .any(|flag| self.flag(flag, &format!("MESOS_{}", flag.to_uppercase())).is_some())
    }
}

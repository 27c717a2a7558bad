//! The agents that run on this host, from `/proc`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::builder::TypedValueParser as _;
use overlay_types::escape::bounded_line;
use overlay_types::secret::show_path;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, openat, readlinkat, statat};

use super::trusted_files::{FileError, TrustedFiles};

/// Longest command line or environment that is read.
const LENGTH_MAX: u64 = 256 * 1024;
/// Clock ticks per second in `/proc/PID/stat`, on every architecture of Linux that Rust supports.
const TICKS: u64 = 100;
/// Longest shown name of a program, in characters. Another user can choose any name.
const NAME_MAX: usize = 64;
const PROGRAM: &str = "mesos-overlay";
/// The names of a Mesos agent: of releases, of Mesos before 1.0, and in its build directory.
const MESOS_AGENTS: [&str; 4] = ["mesos-agent", "mesos-slave", "lt-mesos-agent", "lt-mesos-slave"];

/// The control group of the unit of the packages. Only root can add a process to it.
const UNIT_CONTROL_GROUP: &str = "/system.slice/mesos-overlay-agent.service";

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
    /// The rules for the files of the agent.
    pub(super) files: TrustedFiles,
    /// The working directory; `None` if it is unknown.
    directory: Option<PathBuf>,
    /// Empty without trust, like the environment.
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    /// Why the process is not trusted: then nothing of it is used.
    pub(super) distrust: Option<String>,
}

/// The file system `/proc`, and the rules for the files of processes.
#[derive(Debug)]
pub(super) struct ProcFiles<'a> {
    path: &'a Path,
    files: TrustedFiles,
}

/// The directory of a process in `/proc`. It is opened once: when the process ends, a later process
/// with the same ID is not read in its place.
struct ProcFolder(OwnedFd);

/// The facts on which trust in a process depends. They change when the process executes another
/// program or changes its user.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    users: Vec<u32>,
    program: PathBuf,
    file: (u64, u64),
}

impl<'a> ProcFiles<'a> {
    pub(super) const fn new(path: &'a Path, files: TrustedFiles) -> Self {
        Self { path, files }
    }

    /// Returns the agents by process ID, those in this network namespace first, and there the
    /// trusted ones first. Returns also why some may be missing.
    pub(super) fn agents(&self) -> (Vec<RunningAgent>, Option<String>) {
        let listed = ProcFolder::open(&self.path.join("self"))
            .and_then(|own| Ok((own, fs::read_dir(self.path)?)));
        let (own, entries) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                return (Vec::new(), Some(format!("list the processes in /proc: {error}")));
            }
        };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let (mut agents, mut denied) = (Vec::new(), 0_u32);
        for pid in pids {
            match self.agent(pid, &own) {
                Ok(agent) => agents.extend(agent),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => denied += 1,
                // The process has ended.
                Err(_) => {}
            }
        }
        agents.sort_by_key(|agent| (!agent.is_here, agent.distrust.is_some(), agent.pid));
        let problem = (denied > 0 && agents.is_empty()).then(|| {
            format!("{denied} processes cannot be read: run 'mesos-overlay doctor' as root")
        });
        (agents, problem)
    }

    fn agent(&self, pid: u32, own: &ProcFolder) -> io::Result<Option<RunningAgent>> {
        let folder = ProcFolder::open(&self.path.join(pid.to_string()))?;
        let Some((name, kind)) = kind_of(&folder.list("cmdline")?) else { return Ok(None) };
        // A process can execute another program at any time. So the arguments count only if the
        // process was the same before and after they were read.
        let before = self.examine(&folder, own, kind);
        let arguments = folder.list("cmdline")?;
        // Another user's environment is not readable. Flags on the command line still are.
        let environment = folder.list("environ").unwrap_or_default();
        let after = self.examine(&folder, own, kind);
        if kind_of(&arguments).is_none() {
            return Ok(None);
        }
        let distrust = match (before, after) {
            (Ok(before), Ok(after)) if before == after => None,
            (Ok(_), Ok(_)) => Some("it has executed another program meanwhile".to_owned()),
            (Err(reason), _) | (_, Err(reason)) => Some(reason),
        };
        let variable = |entry: String| {
            let (name, value) = entry.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let mut agent = RunningAgent {
            pid,
            name: bounded_line(&name, NAME_MAX),
            kind,
            is_here: folder.has_same_namespace("net", own).unwrap_or(true),
            started: self.started(&folder),
            files: self.files,
            directory: folder.link("cwd").ok(),
            arguments,
            environment: environment.into_iter().filter_map(variable).collect(),
            distrust,
        };
        // A Mesos agent without modules is none of ours.
        if kind == AgentKind::Mesos && !agent.has_modules() {
            return Ok(None);
        }
        if agent.distrust.is_some() {
            // Nothing may use them. Another user can start many processes with long arguments.
            agent.arguments = Vec::new();
            agent.environment = BTreeMap::new();
        }
        Ok(Some(agent))
    }

    /// Checks that no other user controls the arguments, the program and the files of a process.
    ///
    /// The name in the arguments proves nothing: every user can choose it, also for a program that
    /// runs as root, such as `sudo`.
    fn examine(
        &self,
        folder: &ProcFolder,
        own: &ProcFolder,
        kind: AgentKind,
    ) -> Result<Identity, String> {
        let unreadable = |error: io::Error| format!("it cannot be examined: {error}");
        let users = folder.users().map_err(unreadable)?;
        let user = self.files.user();
        if let Some(other) = users.iter().find(|other| **other != user) {
            return Err(match (*other, user) {
                (0, _) => "it runs as root, and only root can examine it".to_owned(),
                (other, _) => format!("it runs as user {other}"),
            });
        }
        for namespace in ["user", "mnt"] {
            // systemd gives the agent other mounts of the same files.
            let is_unit = namespace == "mnt" && folder.is_in_control_group(UNIT_CONTROL_GROUP);
            if !is_unit && !folder.has_same_namespace(namespace, own).map_err(unreadable)? {
                let name = if namespace == "mnt" { "mount" } else { namespace };
                return Err(format!("it runs in another {name} namespace, as in a container"));
            }
        }
        let root = |folder: &ProcFolder| folder.stat("root").map(|root| id_of(&root));
        if root(folder).map_err(unreadable)? != root(own).map_err(unreadable)? {
            return Err("it has another root directory".to_owned());
        }
        let program = folder.link("exe").map_err(unreadable)?;
        // The kernel appends this to the path of a removed file, such as after an upgrade.
        let path = program.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
        let path = path.map_or(program.as_path(), Path::new);
        let name = path.file_name().and_then(OsStr::to_str);
        if name.and_then(kind_of_program) != Some(kind) {
            return Err(format!("its program is {}", show_path(&program)));
        }
        let file = folder.stat("exe").map_err(unreadable)?;
        self.files.check_program(path, &file).map_err(|error| match error {
            FileError::Io(error) => format!("its program {}: {error}", show_path(&program)),
            error => format!("its program is {}: {error}", show_path(&program)),
        })?;
        Ok(Identity { users, file: id_of(&file), program })
    }

    fn started(&self, folder: &ProcFolder) -> Option<SystemTime> {
        let stat = String::from_utf8_lossy(&folder.read("stat").ok()?).into_owned();
        // The name of the process may contain spaces and parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
        let kernel = fs::read_to_string(self.path.join("stat")).ok()?;
        let boot = kernel.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot = Duration::from_secs(boot.trim().parse().ok()?);
        SystemTime::UNIX_EPOCH.checked_add(boot + Duration::from_secs(ticks / TICKS))
    }
}

impl ProcFolder {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::new();
        fs::File::from(file).take(LENGTH_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a file of texts that end with a null byte.
    fn list(&self, name: &str) -> io::Result<Vec<String>> {
        let bytes = self.read(name)?;
        let texts = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        Ok(texts.filter(|text| !text.is_empty()).map(std::borrow::Cow::into_owned).collect())
    }

    fn link(&self, name: &str) -> io::Result<PathBuf> {
        let target = readlinkat(&self.0, name, Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Returns the metadata of a file of `/proc`, or of the file to which it is a link.
    fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(statat(&self.0, name, AtFlags::empty())?)
    }

    /// Returns the real, the effective, the saved and the file system's user.
    fn users(&self) -> io::Result<Vec<u32>> {
        let status = String::from_utf8_lossy(&self.read("status")?).into_owned();
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let users = users.map(|users| users.split_whitespace().map(str::parse).collect());
        match users {
            Some(Ok(users)) if !Vec::is_empty(&users) => Ok(users),
            _ => Err(io::Error::other("its user is unknown")),
        }
    }

    /// Returns whether both processes have the same namespace of a kind.
    fn has_same_namespace(&self, kind: &str, other: &Self) -> io::Result<bool> {
        let name = format!("ns/{kind}");
        Ok(self.link(&name)? == other.link(&name)?)
    }

    /// Returns whether the host's systemd has put the process into a control group. A process in a
    /// container has the control group of the container above its own.
    fn is_in_control_group(&self, group: &str) -> bool {
        let groups = self.read("cgroup").unwrap_or_default();
        String::from_utf8_lossy(&groups).lines().any(|line| {
            // Hierarchy, controllers and path. systemd manages version 2, or a hierarchy of its own.
            let fields: Vec<&str> = line.splitn(3, ':').collect();
            matches!(fields[..], [_, "" | "name=systemd", path] if path == group)
        })
    }
}

fn id_of(file: &Stat) -> (u64, u64) {
    (file.st_dev, file.st_ino)
}

/// Returns the name and the kind of an agent with this command line.
fn kind_of(arguments: &[String]) -> Option<(String, AgentKind)> {
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    let kind = kind_of_program(name)?;
    // Flags of all subcommands may precede the subcommand.
    let is_agent = kind == AgentKind::Mesos
        || arguments.iter().skip(1).any(|argument| argument == "agent")
            && !arguments.iter().any(|argument| argument == "doctor");
    is_agent.then(|| (name.to_owned(), kind))
}

/// Returns the kind of agent that a program of this name can be.
fn kind_of_program(name: &str) -> Option<AgentKind> {
    if MESOS_AGENTS.contains(&name) {
        return Some(AgentKind::Mesos);
    }
    name.starts_with(PROGRAM).then_some(AgentKind::Program)
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

    /// Returns whether a flag without a value is given, or its environment variable is true.
    pub(super) fn has_switch(&self, name: &str, variable: &str) -> bool {
        let is_flag = |argument: &String| argument.strip_prefix("--") == Some(name);
        let parser = clap::builder::BoolishValueParser::new();
        let is_true = |value: String| {
            let command = clap::Command::new(PROGRAM);
            parser.parse_ref(&command, None, value.as_ref()).unwrap_or(false)
        };
        self.arguments.iter().skip(1).any(is_flag) || self.variable(variable).is_some_and(is_true)
    }

    /// Returns a variable of the environment. An empty variable counts as unset.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Returns the absolute path of a file of the agent. A trusted agent has the root directory of
    /// the doctor.
    pub(super) fn resolve(&self, path: &Path) -> Result<PathBuf, String> {
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        let directory = self.directory.as_deref().filter(|directory| directory.is_absolute());
        directory.map(|directory| directory.join(path)).ok_or_else(|| {
            format!("read {}: the directory of process {} is unknown", show_path(path), self.pid)
        })
    }

    fn has_modules(&self) -> bool {
        ["modules", "modules_dir"]
            .into_iter()
            .any(|flag| self.flag(flag, &format!("MESOS_{}", flag.to_uppercase())).is_some())
    }
}

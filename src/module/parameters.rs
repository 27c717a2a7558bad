//! The configuration of a module: the parameters of the module file, a file that a parameter names,
//! and the environment of the Mesos process.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use overlay_config::{Environment, HttpConfig, Problem, Problems};
use overlay_types::secret::show_path;

use super::kind::Kind;
use crate::http::{AccessRules, Authentication};
use crate::runtime::AccessControl;

/// Maximum length of a file in bytes. The parser has a stricter limit with a message of its own.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// The input of a module at its creation. `Debug` omits values, which may contain a password.
pub struct Inputs {
    pub(super) parameters: Vec<(String, String)>,
    pub(super) environment: Environment,
    /// The name of the host that Mesos advertises, if it was configured.
    pub(super) hostname: Option<String>,
}

/// Returns the parameter that names a file, and the path.
type NamedFile = fn(&[(String, String)]) -> Option<(String, PathBuf)>;
/// Parses the configuration from the parameters, name and text of the file, and the environment.
type Parse<T> = fn(&[(String, String)], Option<(&str, &str)>, &Environment) -> Parsed<T>;
type Parsed<T> = Result<(T, Vec<Problem>), Problems>;

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.parameters.iter().map(|(name, _)| name).collect();
        f.debug_struct("Inputs").field("parameters", &names).finish_non_exhaustive()
    }
}

impl Inputs {
    /// Adds the environment variables that the C++ modules read. The caller must be the thread on
    /// which Mesos creates modules, since other threads may change the environment later.
    #[must_use]
    pub fn new(parameters: Vec<(String, String)>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "flags of Mesos in the environment")]
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let environment = Environment {
            mesos_master: read("MESOS_MASTER"),
            mesos_zk: read("MESOS_ZK"),
            mesos_quorum: read("MESOS_QUORUM"),
        };
        let hostname = read("MESOS_HOSTNAME").or_else(hostname_flag);
        Self { parameters, environment, hostname }
    }

    /// Returns the access control of a module, whose clients Mesos authenticates. `names` are
    /// further names of the host.
    pub(super) fn access(&self, config: HttpConfig, names: &[&str]) -> AccessControl {
        let authentication = Authentication::Mesos;
        let rules = AccessRules { config, authentication, ..AccessRules::default() };
        let access = AccessControl::new(rules);
        let names = names.iter().map(|&name| name.to_owned());
        access.add_names(self.hostname.clone().into_iter().chain(names));
        access
    }

    /// Parses and checks the configuration. Each warning and problem is logged in a line.
    pub(super) fn read<T>(
        &self,
        kind: Kind,
        named_file: NamedFile,
        parse: Parse<T>,
    ) -> Result<T, String> {
        let file = match named_file(&self.parameters) {
            None => None,
            Some((parameter, path)) => {
                let text = read_text(&path)
                    .map_err(|reason| format!("{kind}: parameter '{parameter}': {reason}"))?;
                Some((path.display().to_string(), text))
            }
        };
        let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        match parse(&self.parameters, file, &self.environment) {
            Ok((config, warnings)) => {
                for warning in warnings {
                    log::warn!("{kind}: {warning}");
                }
                Ok(config)
            }
            Err(problems) => {
                for problem in problems.as_slice() {
                    log::error!("{kind}: {problem}");
                }
                let count = problems.as_slice().len();
                let problems = if count == 1 { "1 problem" } else { "these problems" };
                Err(format!("{kind}: not loaded: fix {problems} of its configuration (above)"))
            }
        }
    }
}

/// Returns the value of the flag `--hostname` of the Mesos process.
fn hostname_flag() -> Option<String> {
    let command_line = std::fs::read("/proc/self/cmdline").ok()?;
    let mut arguments = command_line.split(|byte| *byte == 0);
    let value = arguments.find_map(|argument| argument.strip_prefix(b"--hostname="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Reads a file that the configuration names. Reading anything but a regular file could block the
/// main thread of Mesos.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let read = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut text = String::new();
        let length = File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if u64::try_from(length).is_ok_and(|length| length > FILE_MAX) {
            let mebibytes = FILE_MAX / (1024 * 1024);
            let reason = format!("larger than {mebibytes} MiB: check the path");
            return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
        }
        Ok(text)
    };
    read().map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::InvalidData => "not UTF-8: save the file as UTF-8".to_owned(),
            ErrorKind::NotFound => format!("{error}: check the path"),
            ErrorKind::PermissionDenied => format!("{error}: let the user of Mesos read it"),
            _ => error.to_string(),
        };
        format!("read {}: {remedy}", show_path(path))
    })
}

//! What a module is configured with: the parameters of the module file, a file that one of them
//! names, the environment of the Mesos process.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use super::Kind;
use crate::config::{Environment, Problem, Problems};

/// More than any configuration; the parser has its own, stricter limit and words for it.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// What Mesos gives a module when it makes it. Not printed: it may hold a password.
pub struct Inputs {
    pub(super) parameters: Vec<(String, String)>,
    pub(super) environment: Environment,
}

/// Which parameter names a file, and which file.
type NamedFile = fn(&[(String, String)]) -> Option<(String, PathBuf)>;
/// The configuration that parameters, the named file's name and text, and the environment make.
type Parse<T> = fn(&[(String, String)], Option<(&str, &str)>, &Environment) -> Parsed<T>;
type Parsed<T> = Result<(T, Vec<Problem>), Problems>;

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.parameters.iter().map(|(name, _)| name).collect();
        f.debug_struct("Inputs").field("parameters", &names).finish_non_exhaustive()
    }
}

impl Inputs {
    /// These parameters, and what the C++ modules read from the environment. To be called on the
    /// thread on which Mesos makes modules: only that one may read the environment.
    #[must_use]
    pub fn new(parameters: Vec<(String, String)>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the flags of Mesos that are set there")]
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let environment = Environment {
            mesos_master: read("MESOS_MASTER"),
            mesos_zk: read("MESOS_ZK"),
            mesos_quorum: read("MESOS_QUORUM"),
        };
        Self { parameters, environment }
    }

    /// The checked configuration. Its warnings and problems go to the log, a line each.
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
                let them = if count == 1 { "1 problem" } else { "these problems" };
                Err(format!("{kind}: not loaded: mend {them} of its configuration (above)"))
            }
        }
    }
}

/// The content of a file that the configuration names. Anything else than a file could keep the
/// main thread of Mesos waiting.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let read = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut text = String::new();
        let length = File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if u64::try_from(length).is_ok_and(|length| length > FILE_MAX) {
            let mebibytes = FILE_MAX / (1024 * 1024);
            let reason = format!("it has more than {mebibytes} MiB: is it the right file?");
            return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
        }
        Ok(text)
    };
    read().map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::InvalidData => "it is no text in UTF-8: save it as such".to_owned(),
            ErrorKind::NotFound => format!("{error}: check the path"),
            ErrorKind::PermissionDenied => format!("{error}: let the user of Mesos read it"),
            _ => error.to_string(),
        };
        format!("read {}: {remedy}", path.display())
    })
}

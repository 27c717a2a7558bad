//! Keeps the rules in a file. After a reboot the agent loads them at its start, so that the host is
//! closed before a master has answered: containers that start with the host need no agent.
//!
//! The file has the input of each program after a comment that names the program. The last line
//! shows that the file is complete.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use overlay_types::addr::Family;
use overlay_types::repetition::Repetitions;

use super::chains;
use super::command::{FirewallError, SystemTools, Tools};
use super::table;
use crate::host::{read_private, write_private};

/// Name of the file in the state directory.
const NAME: &str = "firewall-rules";
const FIRST_LINE: &str = "# Firewall rules of mesos-overlay, version 1. The agent writes this file, \
                          and loads it after a reboot.\n";
/// The beginning of the line before the input of a program.
const PROGRAM: &str = "# input of ";
const LAST_LINE: &str = "# end\n";
/// The programs whose input the file may have, with their arguments.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("nft", &["-f", "-"]),
    ("ipset", &["restore"]),
    ("iptables-restore", &["--noflush", "-w", chains::LOCK_SECONDS]),
    ("ip6tables-restore", &["--noflush", "-w", chains::LOCK_SECONDS]),
];
/// Maximum length of the file, which has at most a few hundred bytes for each peer.
const LENGTH_MAX: u64 = 256 << 20;

/// The input of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) program: &'static str,
    pub(super) input: String,
}

/// Why the rules of the file are not in place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system, or the defect of the file.
        reason: String,
    },
    /// The file is not a file of ours, or is not complete.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: &'static str,
    },
    /// A program did not load its rules, or the existing rules cannot be listed.
    #[error("{}: {error}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The error of the program.
        error: FirewallError,
    },
}

/// The file with the rules of this host.
#[derive(Debug)]
pub struct RulesFile {
    path: PathBuf,
    /// The hash of the content that was written last.
    written: Option<u64>,
    problems: Repetitions,
}

impl RulesFile {
    /// Creates the file of a state directory. Writes nothing yet.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        let path = state_dir.join(NAME);
        Self { path, written: None, problems: Repetitions::new() }
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the rules if the host has none of ours. Returns whether it loaded them.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or a program refuses it.
    pub fn load(&self) -> Result<bool, LoadError> {
        self.load_with(&SystemTools::default())
    }

    pub(super) fn load_with(&self, tools: &dyn Tools) -> Result<bool, LoadError> {
        let path = || self.path.clone();
        let Some(text) = self.read()? else { return Ok(false) };
        let sections =
            parse(&text).map_err(|reason| LoadError::Damaged { path: path(), reason })?;
        let refused = |error| LoadError::Refused { path: path(), error };
        if has_rules(tools).map_err(refused)? {
            return Ok(false);
        }
        // A program that fails does not keep the others from loading their part.
        let mut loaded = Ok(());
        for Section { program, input } in &sections {
            let arguments = PROGRAMS.iter().find(|(name, _)| name == program);
            let arguments = arguments.map_or(&[][..], |(_, arguments)| arguments);
            let result = tools.run(program, arguments, input).map(drop);
            loaded = loaded.and(result);
        }
        loaded.map(|()| true).map_err(refused)
    }

    /// Reads the file. Another user could make the agent load other rules, so nobody else may write
    /// the file.
    fn read(&self) -> Result<Option<String>, LoadError> {
        read_private(&self.path, LENGTH_MAX)
            .map_err(|error| LoadError::Read { path: self.path.clone(), reason: error.to_string() })
    }

    /// Writes the rules, unless the file has them. A failure changes nothing on the host, so it is
    /// only logged.
    pub(super) fn write(&mut self, sections: &[Section]) {
        let text = compose(sections);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.written == Some(hash) && self.path.exists() {
            return;
        }
        match write_private(&self.path, text.as_bytes()) {
            Ok(()) => {
                self.written = Some(hash);
                self.problems.clear();
            }
            Err(error) => {
                self.written = None;
                let path = self.path.display();
                let problem = format!(
                    "write {path}: {error}: after a reboot this host has no firewall rules until \
                     a master has assigned its overlays"
                );
                if let Some(repetition) = self.problems.note(&problem) {
                    log::warn!("{problem}{repetition}");
                }
            }
        }
    }

    /// Returns whether the file has the rules that were last passed to [`Self::write`].
    pub(super) fn is_written(&self) -> bool {
        self.written.is_some() && self.path.exists()
    }

    /// Removes the file, since the host is to have no rules.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub fn remove(&mut self) -> io::Result<()> {
        self.written = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Returns whether the host has rules of ours.
fn has_rules(tools: &dyn Tools) -> Result<bool, FirewallError> {
    if !table::describe(tools)?.is_empty() {
        return Ok(true);
    }
    for family in [Family::V4, Family::V6] {
        if !chains::describe(tools, family)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn compose(sections: &[Section]) -> String {
    let mut text = FIRST_LINE.to_owned();
    for Section { program, input } in sections {
        text.push_str(PROGRAM);
        text.push_str(program);
        text.push('\n');
        text.push_str(input);
    }
    text.push_str(LAST_LINE);
    text
}

fn parse(text: &str) -> Result<Vec<Section>, &'static str> {
    const FOREIGN: &str = "it is no file of this version: remove it";
    const TRUNCATED: &str = "it is damaged: remove it";

    let text = text.strip_prefix(FIRST_LINE).ok_or(FOREIGN)?;
    let text = text.strip_suffix(LAST_LINE).ok_or(TRUNCATED)?;
    let mut sections: Vec<Section> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(program) = line.strip_prefix(PROGRAM) {
            let known = PROGRAMS.iter().find(|(known, _)| *known == program.trim_end());
            let (program, _) = known.ok_or(FOREIGN)?;
            sections.push(Section { program, input: String::new() });
        } else {
            sections.last_mut().ok_or(TRUNCATED)?.input.push_str(line);
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use overlay_types::tunnel::Desired;
    use tempfile::TempDir;

    use super::super::fake_host::{FakeHost, refused};
    use super::super::tests::{desired, program};
    use super::super::{Backend, Firewall, Outcome, Ruleset};
    use super::*;

    const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

    fn rules() -> Ruleset {
        Ruleset::new(&desired(), &program(true))
    }

    fn firewall(host: &FakeHost, backend: Backend, state_dir: &TempDir) -> Firewall {
        let mut firewall = host.firewall(backend);
        firewall.keep_in(state_dir.path());
        firewall
    }

    fn state(host: &FakeHost) -> String {
        let state = host.0.lock();
        format!("{:?} {:?} {:?}", state.table, state.saved, state.sets)
    }

    #[test]
    fn rebooted_host_gets_its_rules_once() {
        for backend in BACKENDS {
            let (dir, before) = (TempDir::new().unwrap(), FakeHost::default());
            let file = RulesFile::new(dir.path());
            assert!(!file.load_with(&before).unwrap(), "there is no file");
            firewall(&before, backend, &dir).verify(&rules()).unwrap();
            let mode = fs::metadata(file.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);

            let rebooted = FakeHost::default();
            assert!(file.load_with(&rebooted).unwrap(), "{backend:?}");
            assert_eq!(state(&rebooted), state(&before));
            assert!(!file.load_with(&rebooted).unwrap(), "{backend:?}: the host has rules");
            // The master does not answer yet.
            let unknown = Desired { peers: None, agents: [].into(), ..desired() };
            let mut firewall = firewall(&rebooted, backend, &dir);
            let outcome = firewall.verify(&Ruleset::new(&unknown, &program(true)));
            assert_eq!(outcome, Ok(Outcome::Made));
            assert!(firewall.keeps_agents() && rebooted.accepts_only_known_agents());
        }
    }

    #[test]
    fn file_follows_elements_and_is_written_only_if_changed() {
        let (dir, host) = (TempDir::new().unwrap(), FakeHost::default());
        let mut firewall = firewall(&host, Backend::Nftables, &dir);
        let path = RulesFile::new(dir.path()).path;
        let inode = || fs::metadata(&path).unwrap().ino();
        firewall.verify(&rules()).unwrap();
        let first = inode();
        assert_eq!(firewall.verify(&rules()), Ok(Outcome::Unchanged));
        assert_eq!(inode(), first);
        fs::remove_file(&path).unwrap();
        assert_eq!(firewall.verify(&rules()), Ok(Outcome::Unchanged));
        assert!(path.exists(), "a removed file is written again");
        let mut more = desired();
        more.masters.insert("10.0.0.9:5050".parse().unwrap());
        firewall.verify(&Ruleset::new(&more, &program(true))).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("10.0.0.9 . 5050"));
    }

    #[test]
    fn damaged_or_refused_file_is_an_error_and_loads_nothing() {
        let (dir, host) = (TempDir::new().unwrap(), FakeHost::default());
        firewall(&host, Backend::Nftables, &dir).verify(&rules()).unwrap();
        let file = RulesFile::new(dir.path());
        let good = fs::read_to_string(file.path()).unwrap();
        let rebooted = FakeHost::default();
        let half = &good[..good.len() / 2];
        let other = good.replace("# input of nft", "# input of sh");
        for damaged in ["", half, "table inet x {}\n", &other, &good[1..]] {
            fs::write(file.path(), damaged).unwrap();
            let error = file.load_with(&rebooted).unwrap_err();
            assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("firewall-rules: it is "), "{error}");
            assert_eq!(rebooted.0.lock().runs, 0);
        }
        fs::write(file.path(), &good).unwrap();
        for run in 0..4 {
            rebooted.fail(Some((run, refused("Device or resource busy"))));
            let error = file.load_with(&rebooted).unwrap_err().to_string();
            assert!(error.contains("firewall-rules: ") && error.contains("busy"), "{error}");
            assert_eq!(rebooted.0.lock().table, None);
        }
        rebooted.fail(None);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o622)).unwrap();
        let error = file.load_with(&rebooted).unwrap_err().to_string();
        assert!(error.ends_with("another user can write it: remove it"), "{error}");
    }

    #[test]
    fn file_goes_with_the_rules() {
        let empty = Ruleset::default();
        for backend in BACKENDS {
            let (dir, host) = (TempDir::new().unwrap(), FakeHost::default());
            let path = RulesFile::new(dir.path()).path;
            for none in [false, true] {
                firewall(&host, backend, &dir).verify(&rules()).unwrap();
                assert!(path.exists());
                if none {
                    firewall(&host, Backend::None, &dir).verify(&rules()).unwrap();
                } else {
                    firewall(&host, backend, &dir).verify(&empty).unwrap();
                }
                assert!(!path.exists(), "{backend:?} {none}");
            }
        }
    }
}

//! What the overlays need of the host as a whole: that it forwards, and that the programs which
//! manage its network leave our devices alone. All of it is given back by
//! [`HostSettings::restore`]. And the lock by which there is one agent on a host that programs it.
//!
//! Whatever was there before is kept in a file before it is changed, so that it can be given back
//! by a later run, or by one whose configuration is gone. Files are made whole or not at all, bear
//! our mark, and one of somebody else is never touched.

mod drop_in;
mod error;
mod lock;
mod sysctl;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fs, io};

pub use self::error::HostError;
pub use self::lock::HostLock;
use crate::tunnel::Desired;

/// Where the host's files are, for tests in another place.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/etc`.
    pub etc: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { etc: "/etc".into(), proc: "/proc".into() }
    }
}

/// What came of giving back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// What was changed, in words.
    pub done: Vec<String>,
    /// What should have been changed, in words, and why it was not.
    pub failed: Vec<(String, HostError)>,
}

impl Restored {
    fn note(&mut self, what: String, result: Result<(), HostError>) -> bool {
        match result {
            Ok(()) => self.done.push(what),
            Err(error) => {
                self.failed.push((what, error));
                return false;
            }
        }
        true
    }
}

/// The settings of this host, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct HostSettings {
    state_dir: PathBuf,
    roots: Roots,
}

impl HostSettings {
    /// `state_dir` holds what the settings were before.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::with_roots(state_dir, Roots::default())
    }

    /// The same with another `/etc` and `/proc`.
    #[must_use]
    pub fn with_roots(state_dir: &Path, roots: Roots) -> Self {
        Self { state_dir: state_dir.to_owned(), roots }
    }

    /// Makes the settings what `desired` needs, as far as they are not, and returns what was
    /// changed, in words. Of a host in no overlay nothing is needed. Costs a few reads of files if
    /// nothing is to be done.
    ///
    /// What cannot be done is told after all else is done.
    ///
    /// # Errors
    /// When a setting, a file, or what was there before cannot be written.
    pub fn apply(&self, desired: &Desired) -> Result<Vec<String>, HostError> {
        self.make(desired, false)
    }

    /// The same after [`HostError::Reload`]: whoever did not read our files then is told again.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn retry(&self, desired: &Desired) -> Result<Vec<String>, HostError> {
        self.make(desired, true)
    }

    fn make(&self, desired: &Desired, has_to_tell: bool) -> Result<Vec<String>, HostError> {
        if desired.locals.is_empty() {
            return Ok(Vec::new());
        }
        let sysctl = self.sysctl();
        let mut done = sysctl.apply(has_ipv6(desired))?;
        if self.is_the_hosts_own_namespace() {
            done.extend(drop_in::apply(
                &self.roots,
                desired,
                &sysctl.listeners_made()?,
                has_to_tell,
            )?);
        }
        Ok(done)
    }

    /// Gives back what was there before, and removes our files. A setting that somebody changed
    /// after us stays as it is. What fails keeps nothing else from being done.
    #[must_use]
    pub fn restore(&self) -> Restored {
        let mut restored = Restored::default();
        // First the files, or their programs would undo the rest.
        if self.is_the_hosts_own_namespace() {
            drop_in::remove(&self.roots, &mut restored);
        }
        self.sysctl().restore(&mut restored);
        restored
    }

    /// Whether it is kept what something was before.
    #[must_use]
    pub fn has_memory(&self) -> bool {
        self.sysctl().memory.exists()
    }

    /// What [`Self::restore`] would do.
    ///
    /// # Errors
    /// When what was there before cannot be read.
    pub fn to_restore(&self) -> Result<Vec<String>, HostError> {
        let mut list = Vec::new();
        if self.is_the_hosts_own_namespace() {
            list.extend(
                drop_in::ours(&self.roots).map(|path| format!("remove {}", path.display())),
            );
        }
        list.extend(self.sysctl().to_restore()?.iter().map(ToString::to_string));
        Ok(list)
    }

    fn sysctl(&self) -> sysctl::Sysctl {
        sysctl::Sysctl {
            root: self.roots.proc.join("sys/net"),
            memory: self.state_dir.join(sysctl::MEMORY),
        }
    }

    /// Files in `/etc` are read by programs that manage the network of the first process. In
    /// another namespace they have no business, and there would be no use in them.
    fn is_the_hosts_own_namespace(&self) -> bool {
        let namespace = |of: &str| fs::read_link(self.roots.proc.join(of).join("ns/net")).ok();
        match (namespace("1"), namespace("thread-self")) {
            (Some(first), Some(own)) => first == own,
            // Who may not look at the first process is not the master of this host.
            _ => false,
        }
    }
}

fn has_ipv6(desired: &Desired) -> bool {
    desired.locals.iter().any(|local| local.ip6.is_some())
}

/// Puts `content` at `path`, whole or not at all, readable for everybody.
fn place(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".mesos-overlay").tempfile_in(folder)?;
    file.write_all(content)?;
    // Not at creation: there the umask, which is the host process' own, takes bits away.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(io::Error::from)?;
    fs::File::open(folder)?.sync_all()
}

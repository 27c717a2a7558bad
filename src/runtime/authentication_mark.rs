//! The file that says that a master has authenticated. An agent whose mode is `permitted` accepts
//! only such masters from then on.

use std::path::{Path, PathBuf};

use overlay_linux::host::write_private;

/// The name of the file in the state directory.
const FILE: &str = "authenticated-master";
const CONTENT: &str = "A master has authenticated. The agent accepts no other masters while this \
                       file exists. Remove it with the agent stopped to accept them again.\n";

/// The file that says that a master has authenticated.
#[derive(Debug, Clone)]
pub struct AuthenticationMark(PathBuf);

impl AuthenticationMark {
    /// Returns the file of a state directory.
    #[must_use]
    pub fn in_directory(state_dir: &Path) -> Self {
        Self(state_dir.join(FILE))
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns whether a master has authenticated. If that cannot be found out, a master has.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0
            .symlink_metadata()
            .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |_| true)
    }

    /// Notes that a master has authenticated. Until the file can be written, only this process
    /// knows it.
    pub(super) fn set(&self) {
        if let Err(error) = write_private(&self.0, CONTENT.as_bytes()) {
            log::warn!(
                "{}: {error}: after a restart, this agent may accept a master that does not \
                 authenticate: let it write the file, or set 'authentication' to required",
                self.0.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_survives_and_counts_as_set_if_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let mark = AuthenticationMark::in_directory(&folder.path().join("state"));
        assert!(!mark.is_set());
        mark.set();
        assert!(mark.is_set() && mark.path().ends_with("state/authenticated-master"));
        // A directory whose parent is a file cannot be examined.
        assert!(AuthenticationMark::in_directory(mark.path()).is_set());
    }
}

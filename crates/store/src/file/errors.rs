//! The errors of the file store, with a remedy for the operator.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

use overlay_types::state::StoreError;
use rustix::io::Errno;

use super::FileStore;
use crate::with_counts_remedy;

/// The reason for a file to which another process wrote.
pub(super) const OVERWRITTEN: &str = "another process wrote to the file";

impl FileStore {
    /// Creates the error for a state that this master no longer holds.
    pub(super) fn lost_error(
        &self,
        action: &'static str,
        reason: &impl fmt::Display,
    ) -> StoreError {
        let reason = format!(
            "{reason}: this master assigns no addresses until the same file is back; otherwise \
             stop this master, restore the latest copy of the state and start one master"
        );
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// Creates the error for a file with a content of another process. The path leads to the file,
    /// so that nothing but a restart helps.
    pub(super) fn overwritten_error(&self, action: &'static str, reason: &str) -> StoreError {
        let reason = format!(
            "{reason}: this master assigns no addresses until it is restarted: stop it, restore \
             the latest copy of the state and start one master"
        );
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// Creates the error of a lock file or directory that cannot be opened or locked.
    pub(super) fn lock_error(&self, path: &Path, error: &io::Error) -> StoreError {
        let path = path.display();
        let reason = if Errno::from_io_error(error) == Some(Errno::LOOP) {
            format!("{path} is a symbolic link, which is not followed: remove it")
        } else if error.kind() == ErrorKind::IsADirectory {
            format!("{path} is a directory: remove it")
        } else {
            format!("{path}: {}", self.with_io_remedy(error))
        };
        self.open_error(reason)
    }

    pub(super) fn store_error(&self, action: &'static str, error: &redb::Error) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: self.with_remedy(error) }
    }

    pub(super) fn open_error(&self, reason: String) -> StoreError {
        StoreError::Failed { store: self.to_string(), action: "open", reason }
    }

    pub(super) fn counts_error(&self, action: &'static str, reason: &str) -> StoreError {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        let uri = format!("file --work-dir {}", directory.display());
        let reason = with_counts_remedy(reason, &uri);
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// Returns the text of `error` with a remedy for the operator.
    fn with_remedy(&self, error: &redb::Error) -> String {
        match error {
            redb::Error::Io(error) => self.with_io_remedy(error),
            redb::Error::DatabaseAlreadyOpen => held_by_other(&self.path),
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => self.not_a_state(&error.to_string()),
            error => error.to_string(),
        }
    }

    fn with_io_remedy(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "free some disk space, the state needs a few MB"
            }
            ErrorKind::ReadOnlyFilesystem => {
                "mount the file system for writing, or use another work directory"
            }
            ErrorKind::PermissionDenied => {
                "run as the owner of the work directory, or use another work directory"
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                "the work directory must be a directory"
            }
            // The path exists, since a missing file is created.
            ErrorKind::NotFound => {
                "if it is a symbolic link, mount the file system to which it leads"
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::IsADirectory => {
                return self.not_a_state(&error.to_string());
            }
            _ if Errno::from_io_error(error) == Some(Errno::IO) => {
                "the disk or its file system fails: see the log of the kernel (`dmesg`)"
            }
            _ => return error.to_string(),
        };
        format!("{error}: {remedy}")
    }

    pub(super) fn not_a_state(&self, cause: &str) -> String {
        let path = self.path.display();
        format!(
            "the file is damaged, or no state of an overlay master ({cause}): restore a copy of \
             it, or move it away (`mv {path} {path}.aside`): the master then starts with an empty \
             state"
        )
    }
}

/// Returns the reason why a state is not opened whose lock at `path` another process holds.
pub(super) fn held_by_other(path: &Path) -> String {
    format!(
        "another process has it open, such as a running `mesos-overlay master` or mesos-master \
         with this module (`fuser {}` shows it): stop that process, or use another work directory",
        path.display()
    )
}

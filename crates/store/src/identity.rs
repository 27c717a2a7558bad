//! Recognizes the files of a store. A path can be removed, replaced, or hidden by a mount while a
//! process has the file open. What the process writes then is lost, although every write succeeds.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The identity of a file: no other file has these numbers while the file exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn new(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Returns the identity of an open file.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::new(&file.metadata()?))
    }

    /// Returns the identity of the file or directory at `path`.
    ///
    /// # Errors
    /// When there is none, or this process may not see it.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&fs::metadata(path)?))
    }

    /// Checks that the file at `path` is the file with this identity.
    ///
    /// # Errors
    /// With the difference, as a part of a sentence whose subject is the file.
    pub fn check_path(self, path: &Path) -> Result<(), String> {
        match Self::at(path) {
            Ok(found) if found == self => Ok(()),
            Ok(found) if found.device == self.device => {
                Err("was replaced: another file has its path".to_owned())
            }
            Ok(_) => Err("is hidden: a file of another file system has its path".to_owned()),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Err("was removed or moved away, or its file system was unmounted".to_owned())
            }
            Err(error) => Err(format!("cannot be checked: {error}")),
        }
    }
}

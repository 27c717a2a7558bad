//! The lock that an agent holds while it programs a host. The kernel gives it back when the process
//! ends, however it ends; so a file that lies about means nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use super::HostError;

/// Its name in the state directory.
const NAME: &str = "agent.lock";

/// Held by the one process that programs this host, until it is dropped.
#[derive(Debug)]
pub struct HostLock {
    /// The kernel's lock is that of the open file.
    _file: File,
}

impl HostLock {
    /// Takes the lock of `state_dir`, at once or not at all.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn acquire(state_dir: &Path) -> Result<Self, HostError> {
        let path = state_dir.join(NAME);
        let failed = |error| HostError::file("lock", &path, &error);
        fs::create_dir_all(state_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        let open = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // Who has just taken it may not have written its number yet.
                let _ = file.read_to_string(&mut process);
                let holder = match process.trim().parse::<u32>() {
                    Ok(process) => format!("process {process}"),
                    Err(_) => "another process".to_owned(),
                };
                return Err(HostError::Held { path, holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut note = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note().map_err(failed)?;
        Ok(Self { _file: file })
    }
}

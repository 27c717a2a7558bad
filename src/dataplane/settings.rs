//! The host's own settings that forwarding needs, in `/proc/sys/net`, and what they were before: so
//! that they can be given back. Settings of our devices are no part of it, they go with the device.
//! A setting that somebody changed after us is left as it is then.
//!
//! Forwarding of IPv6 has a trap: a host that forwards no longer listens to routers, and would lose
//! its default route. A device that listens is told to go on before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Where the settings of the network are, of the namespace of the calling thread.
const ROOT: &str = "/proc/sys/net";
/// Forwarding of IPv4.
const FORWARD_V4: &str = "ipv4/ip_forward";
/// Forwarding of IPv6.
const FORWARD_V6: &str = "ipv6/conf/all/forwarding";
/// The devices of IPv6, and the defaults of those to come.
const DEVICES_V6: &str = "ipv6/conf";
/// Listening to routers unless the host forwards, and in any case.
const LISTEN_UNLESS_FORWARDING: u32 = 1;
const LISTEN: u32 = 2;

/// What a setting was, and what we made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    before: u32,
    after: u32,
}

/// The host's settings, with a file in which is kept what they were.
#[derive(Debug, Clone)]
pub struct Settings {
    memory: PathBuf,
}

/// Why a setting is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A setting could not be written.
    #[error(
        "set {name} to {value}: {reason}: set it with 'sysctl -w {}={value}', or let the agent \
         write to /proc/sys",
        name.replace('/', ".")
    )]
    Write {
        /// Its name below `/proc/sys`.
        name: String,
        /// What it should be.
        value: u32,
        /// The system's answer.
        reason: String,
    },
    /// What the settings were could not be kept or read, so nothing is changed.
    #[error("{action} {}: {reason}: let the agent write there", path.display())]
    Memory {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
}

impl Settings {
    /// Settings whose former values are kept in the file `memory`.
    #[must_use]
    pub const fn new(memory: PathBuf) -> Self {
        Self { memory }
    }

    /// Lets the host forward IPv4, and IPv6 if `is_v6`. Returns what was changed, in words.
    ///
    /// # Errors
    /// When a setting, or what it was, cannot be written.
    pub fn apply(&self, is_v6: bool) -> Result<Vec<String>, SettingsError> {
        let mut wanted = vec![(FORWARD_V4.to_owned(), 1)];
        if is_v6 && read_number(FORWARD_V6) == Some(0) {
            wanted.extend(listeners().map(|device| (device, LISTEN)));
        }
        if is_v6 {
            wanted.push((FORWARD_V6.to_owned(), 1));
        }
        let mut memory = self.load()?;
        let mut changes = Vec::new();
        for (name, after) in wanted {
            match read_number(&name) {
                Some(before) if before != after => changes.push((name, before, after)),
                _ => {}
            }
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        for (name, before, after) in &changes {
            // The first of several changes has seen what was there before us.
            let known = memory.entry(name.clone());
            known.or_insert(Changed { before: *before, after: *after }).after = *after;
        }
        self.keep(&memory)?;
        let mut done = Vec::with_capacity(changes.len());
        for (name, _, after) in changes {
            set(&name, after)?;
            done.push(format!("net/{name} = {after}"));
        }
        Ok(done)
    }

    /// Gives back what was there before, and forgets it.
    ///
    /// # Errors
    /// When a setting cannot be written.
    pub fn restore(&self) -> Result<Vec<String>, SettingsError> {
        let mut memory: Vec<_> = self.load()?.into_iter().collect();
        // Forwarding first: it resets settings of devices.
        memory.sort_by_key(|(name, _)| !matches!(name.as_str(), FORWARD_V4 | FORWARD_V6));
        let mut done = Vec::new();
        for (name, changed) in memory {
            if read_number(&name) == Some(changed.after) {
                set(&name, changed.before)?;
                done.push(format!("net/{name} = {}", changed.before));
            }
        }
        match fs::remove_file(&self.memory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(memory_error("remove", &self.memory, &error))
            }
            _ => Ok(done),
        }
    }

    fn load(&self) -> Result<BTreeMap<String, Changed>, SettingsError> {
        match fs::read(&self.memory) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| memory_error("read", &self.memory, &error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(memory_error("read", &self.memory, &error)),
        }
    }

    /// Whole or not at all: half of a file would be no memory.
    fn keep(&self, memory: &BTreeMap<String, Changed>) -> Result<(), SettingsError> {
        let write = || {
            let folder = self.memory.parent().unwrap_or_else(|| Path::new("."));
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&mut file, memory)?;
            file.persist(&self.memory).map_err(io::Error::from)?;
            Ok(())
        };
        write().map_err(|error: io::Error| memory_error("write", &self.memory, &error))
    }
}

/// The settings of the devices that listen to routers and would cease to when the host forwards.
fn listeners() -> impl Iterator<Item = String> {
    let folder = fs::read_dir(format!("{ROOT}/{DEVICES_V6}")).into_iter().flatten().flatten();
    let names = folder.filter_map(|entry| entry.file_name().into_string().ok());
    let settings = names.map(|device| format!("{DEVICES_V6}/{device}/accept_ra"));
    settings.filter(|name| read_number(name) == Some(LISTEN_UNLESS_FORWARDING))
}

fn set(name: &str, value: u32) -> Result<(), SettingsError> {
    write_number(name, value).map_err(|error| SettingsError::Write {
        name: format!("net/{name}"),
        value,
        reason: error.to_string(),
    })
}

fn memory_error(action: &'static str, path: &Path, error: &io::Error) -> SettingsError {
    SettingsError::Memory { action, path: path.to_owned(), reason: error.to_string() }
}

/// The number in a file below `/proc/sys/net`.
pub(super) fn read_number(name: &str) -> Option<u32> {
    fs::read_to_string(format!("{ROOT}/{name}")).ok()?.trim().parse().ok()
}

pub(super) fn write_number(name: &str, value: u32) -> io::Result<()> {
    fs::write(format!("{ROOT}/{name}"), value.to_string())
}

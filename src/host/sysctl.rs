//! The host's own settings that forwarding needs, in `/proc/sys/net`, and what they were before: so
//! that they can be given back. Settings of our devices are no part of it, they go with the device.
//! A setting that somebody changed after us is left as it is then.
//!
//! Forwarding has two traps. A host that forwards IPv6 no longer listens to routers, and would lose
//! its default route: a device that listens is told to go on before. And when forwarding is
//! switched back, the kernel does so for each device as well, and has the host follow redirects: so
//! it is kept which devices forwarded by themselves, and that redirects were not followed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};

use super::{HostError, Restored, place};

/// The file in which is kept what was there before.
pub(super) const MEMORY: &str = "host-settings.json";
/// Forwarding of IPv4.
pub(super) const FORWARD_V4: &str = "ipv4/ip_forward";
/// Forwarding of IPv6.
pub(super) const FORWARD_V6: &str = "ipv6/conf/all/forwarding";
/// The devices of IPv6, and the defaults of those to come.
const DEVICES_V6: &str = "ipv6/conf";
/// The devices of IPv4, likewise.
const DEVICES_V4: &str = "ipv4/conf";
/// Whether a device forwards.
const FORWARDING: &str = "/forwarding";
/// Whether the host follows redirects.
const REDIRECTS_V4: &str = "ipv4/conf/all/accept_redirects";
/// How a device listens to routers.
const LISTENING: &str = "/accept_ra";
/// Listening to routers unless the host forwards, and in any case.
const LISTEN_UNLESS_FORWARDING: u32 = 1;
const LISTEN: u32 = 2;

/// What a setting was, and what we made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    before: u32,
    after: u32,
}

/// A setting and its value, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    name: String,
    value: u32,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set net/{} to {}", self.name, self.value)
    }
}

/// The settings below `root`, with a file in which is kept what they were.
#[derive(Debug)]
pub(super) struct Sysctl {
    pub(super) root: PathBuf,
    pub(super) memory: PathBuf,
}

impl Sysctl {
    /// Lets the host forward IPv4, and IPv6 if `is_v6`. Returns what was changed, in words.
    pub(super) fn apply(&self, is_v6: bool) -> Result<Vec<String>, HostError> {
        let mut wanted = vec![(FORWARD_V4.to_owned(), 1)];
        if is_v6 && self.read(FORWARD_V6) == Some(0) {
            wanted.extend(self.listeners().map(|device| (device, LISTEN)));
        }
        if is_v6 {
            wanted.push((FORWARD_V6.to_owned(), 1));
        }
        let is_other = |(name, after): (String, u32)| {
            let before = self.read(&name).filter(|before| *before != after)?;
            Some((name, before, after))
        };
        let changes: Vec<_> = wanted.into_iter().filter_map(is_other).collect();
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut memory = self.load()?;
        for (name, value) in changes.iter().flat_map(|(name, ..)| self.reset_with(name)) {
            memory.entry(name).or_insert(Changed { before: value, after: value });
        }
        for (name, before, after) in &changes {
            // The first of several changes has seen what was there before us.
            let known = memory.entry(name.clone());
            known.or_insert(Changed { before: *before, after: *after }).after = *after;
        }
        self.keep(&memory)?;
        let changes = changes.into_iter().map(|(name, _, value)| Setting { name, value });
        changes.map(|setting| self.set(&setting).map(|()| setting.to_string())).collect()
    }

    /// Gives back what was there before, and forgets it if all of it could be given back.
    pub(super) fn restore(&self, restored: &mut Restored) {
        let settings = match self.to_restore() {
            Ok(settings) => settings,
            Err(error) => {
                restored.note("give the settings of the host back".to_owned(), Err(error));
                return;
            }
        };
        let mut is_complete = true;
        for setting in settings {
            is_complete &= restored.note(setting.to_string(), self.set(&setting));
        }
        if is_complete
            && let Err(error) = fs::remove_file(&self.memory)
            && error.kind() != io::ErrorKind::NotFound
        {
            let what = format!("remove {}", self.memory.display());
            restored.note(what, Err(HostError::file("remove", &self.memory, &error)));
        }
    }

    /// What there is to give back.
    pub(super) fn to_restore(&self) -> Result<Vec<Setting>, HostError> {
        let mut memory: Vec<_> = self.load()?.into_iter().collect();
        memory.retain(|(name, changed)| self.read(name) == Some(changed.after));
        // Forwarding first: it resets settings of devices.
        memory.sort_by_key(|(name, _)| !matches!(name.as_str(), FORWARD_V4 | FORWARD_V6));
        let setting = |(name, changed): (String, Changed)| Setting { name, value: changed.before };
        Ok(memory.into_iter().map(setting).collect())
    }

    /// The settings of the devices that we told to go on listening.
    pub(super) fn listeners_made(&self) -> Result<Vec<String>, HostError> {
        let names = self.load()?.into_keys();
        Ok(names.filter(|name| name.ends_with(LISTENING)).collect())
    }

    fn load(&self) -> Result<BTreeMap<String, Changed>, HostError> {
        let failed = |error| HostError::file("read", &self.memory, &error);
        match fs::read(&self.memory) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(failed(error)),
        }
    }

    fn keep(&self, memory: &BTreeMap<String, Changed>) -> Result<(), HostError> {
        let write = || place(&self.memory, &serde_json::to_vec(memory)?);
        write().map_err(|error: io::Error| HostError::file("write", &self.memory, &error))
    }

    /// The settings of the devices that listen to routers and would cease to when the host
    /// forwards.
    fn listeners(&self) -> impl Iterator<Item = String> {
        let settings = self.of_devices(DEVICES_V6, LISTENING);
        settings.filter(|name| self.read(name) == Some(LISTEN_UNLESS_FORWARDING))
    }

    /// What the kernel resets when forwarding, which is now to be switched on, is switched off
    /// again: the settings that are not then what they are now.
    fn reset_with(&self, forwarding: &str) -> Vec<(String, u32)> {
        let (devices, redirects) = match forwarding {
            FORWARD_V4 => (DEVICES_V4, Some(REDIRECTS_V4)),
            FORWARD_V6 => (DEVICES_V6, None),
            _ => return Vec::new(),
        };
        let forwards = self.of_devices(devices, FORWARDING).map(|name| (name, 1));
        let ignored = redirects.map(|name| (name.to_owned(), 0));
        forwards.chain(ignored).filter(|(name, value)| self.read(name) == Some(*value)).collect()
    }

    /// A setting of each device, and of those to come.
    fn of_devices(&self, folder: &str, setting: &str) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.map(move |device| format!("{folder}/{device}{setting}"))
    }

    fn read(&self, name: &str) -> Option<u32> {
        read_number(&self.root.join(name))
    }

    fn set(&self, setting: &Setting) -> Result<(), HostError> {
        let Setting { name, value } = setting;
        fs::write(self.root.join(name), value.to_string()).map_err(|error| HostError::Write {
            name: format!("net/{name}"),
            value: *value,
            reason: error.to_string(),
        })
    }
}

fn read_number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

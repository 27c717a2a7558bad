//! The host's settings in `/proc/sys/net` that forwarding needs, and their former values, so that
//! they can be restored. The settings of our devices are not restored: the kernel removes them with
//! the device. A setting that another program has changed since keeps its value.
//!
//! Forwarding has two side effects. A host that forwards IPv6 ignores router advertisements and
//! loses its default route. So each device that accepts them is first set to accept them always.
//! When forwarding is disabled again, the kernel also disables it for each device, and enables
//! redirects. So the per-device forwarding and disabled redirects are saved as well.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};

use super::{HostError, RestoreResult, read_private, write_private};

/// Name of the file with the former values.
pub(super) const SAVED_FILE: &str = "host-settings.json";
/// Forwarding of IPv4.
pub(super) const FORWARD_V4: &str = "ipv4/ip_forward";
/// Forwarding of IPv6.
pub(super) const FORWARD_V6: &str = "ipv6/conf/all/forwarding";
/// The IPv6 settings of each device, and the defaults for new devices.
const DEVICES_V6: &str = "ipv6/conf";
/// The IPv4 settings of each device, and the defaults for new devices.
const DEVICES_V4: &str = "ipv4/conf";
/// Forwarding of a device.
const FORWARDING: &str = "/forwarding";
/// Whether the host accepts ICMP redirects.
const REDIRECTS_V4: &str = "ipv4/conf/all/accept_redirects";
/// How a device accepts router advertisements.
const ACCEPT_RA: &str = "/accept_ra";
/// Router advertisements are accepted unless the host forwards.
const ACCEPT_UNLESS_FORWARDING: u32 = 1;
/// Router advertisements are accepted, even if the host forwards.
const ACCEPT_ALWAYS: u32 = 2;

/// Maximum length of the file with the former values. A device has a few settings of 60 bytes.
const LENGTH_MAX: u64 = 16 << 20;

/// Returns whether the name of a setting is a path below the directory of the settings.
fn is_below_root(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The value of a setting before and after our change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedSetting {
    before: u32,
    after: u32,
}

/// A setting and the value to set.
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

/// The settings that still have the value of our change.
struct Changed {
    /// The former values.
    settings: Vec<Setting>,
    /// Settings that cannot be read, with the error.
    unreadable: Vec<(String, HostError)>,
}

/// The settings below `root`, and the file with their former values.
#[derive(Debug)]
pub(super) struct Sysctl {
    pub(super) root: PathBuf,
    pub(super) saved: PathBuf,
}

impl Sysctl {
    /// Enables forwarding of IPv4, also from `uplinks`, and of IPv6 if `has_ipv6`. Returns
    /// descriptions of the changes.
    pub(super) fn apply(
        &self,
        has_ipv6: bool,
        uplinks: &[String],
    ) -> Result<Vec<String>, HostError> {
        let mut desired = vec![(FORWARD_V4.to_owned(), 1)];
        if has_ipv6 && self.read(FORWARD_V6) == Some(0) {
            desired.extend(self.accept_ra_to_change().map(|name| (name, ACCEPT_ALWAYS)));
        }
        if has_ipv6 {
            desired.push((FORWARD_V6.to_owned(), 1));
        }
        let closed = self.closed_uplinks(uplinks).into_iter();
        desired.extend(closed.map(|device| (forwarding_of(&device), 1)));
        let change = |(name, after): (String, u32)| {
            let before = self.read(&name).filter(|before| *before != after)?;
            Some((name, before, after))
        };
        let changes: Vec<_> = desired.into_iter().filter_map(change).collect();
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut saved = self.load()?;
        for (name, value) in changes.iter().flat_map(|(name, ..)| self.reset_with(name)) {
            saved.entry(name).or_insert(SavedSetting { before: value, after: value });
        }
        for (name, before, after) in &changes {
            // An earlier change may have saved the former value, which must not be replaced.
            let entry = saved.entry(name.clone());
            entry.or_insert(SavedSetting { before: *before, after: *after }).after = *after;
        }
        self.save(&saved)?;
        let changes = changes.into_iter().map(|(name, _, value)| Setting { name, value });
        changes.map(|setting| self.set(&setting).map(|()| setting.to_string())).collect()
    }

    /// Returns the uplinks whose own switch is off. The global switch sets those of all devices.
    pub(super) fn closed_uplinks(&self, uplinks: &[String]) -> Vec<String> {
        if self.read(FORWARD_V4) != Some(1) {
            return Vec::new();
        }
        let closed = uplinks.iter().filter(|device| self.read(&forwarding_of(device)) == Some(0));
        closed.cloned().collect()
    }

    /// Restores the former values, and removes the file with them if all could be restored.
    pub(super) fn restore(&self, result: &mut RestoreResult) {
        let Changed { settings, unreadable } = match self.changed() {
            Ok(changed) => changed,
            Err(error) => {
                result.record("restore the settings of the host".to_owned(), Err(error));
                return;
            }
        };
        let mut is_complete = unreadable.is_empty();
        for (name, error) in unreadable {
            result.record(format!("restore net/{name}"), Err(error));
        }
        for setting in settings {
            is_complete &= result.record(setting.to_string(), self.set(&setting));
        }
        if is_complete
            && let Err(error) = fs::remove_file(&self.saved)
            && error.kind() != io::ErrorKind::NotFound
        {
            let change = format!("remove {}", self.saved.display());
            result.record(change, Err(HostError::file("remove", &self.saved, &error)));
        }
    }

    /// Returns the settings to restore: the settings that still have the value of our change.
    pub(super) fn preview_restore(&self) -> Result<Vec<Setting>, HostError> {
        let Changed { settings, unreadable } = self.changed()?;
        unreadable.into_iter().next().map_or(Ok(settings), |(_, error)| Err(error))
    }

    /// Returns the settings that still have the value of our change, and those that cannot be read.
    fn changed(&self) -> Result<Changed, HostError> {
        let (mut saved, mut unreadable) = (Vec::new(), Vec::new());
        for (name, changed) in self.load()? {
            match self.try_read(&name) {
                Ok(Some(value)) if value == changed.after => saved.push((name, changed)),
                Ok(_) => {}
                Err(error) => unreadable.push((name, error)),
            }
        }
        // Forwarding first: when it changes, the kernel resets settings of devices.
        saved.sort_by_key(|(name, _)| !matches!(name.as_str(), FORWARD_V4 | FORWARD_V6));
        let setting =
            |(name, changed): (String, SavedSetting)| Setting { name, value: changed.before };
        let settings = saved.into_iter().map(setting).collect();
        Ok(Changed { settings, unreadable })
    }

    /// Returns the settings of the devices that were set to accept router advertisements always.
    pub(super) fn changed_accept_ra(&self) -> Result<Vec<String>, HostError> {
        let names = self.load()?.into_keys();
        Ok(names.filter(|name| name.ends_with(ACCEPT_RA)).collect())
    }

    fn load(&self) -> Result<BTreeMap<String, SavedSetting>, HostError> {
        let load = || {
            let Some(text) = read_private(&self.saved, LENGTH_MAX)? else {
                return Ok(BTreeMap::new());
            };
            let saved: BTreeMap<String, SavedSetting> = serde_json::from_str(&text)?;
            match saved.keys().find(|name| !is_below_root(name)) {
                None => Ok(saved),
                Some(name) => Err(io::Error::other(format!("'{name}' is no setting: remove it"))),
            }
        };
        load().map_err(|error: io::Error| HostError::file("read", &self.saved, &error))
    }

    fn save(&self, saved: &BTreeMap<String, SavedSetting>) -> Result<(), HostError> {
        let write = || write_private(&self.saved, &serde_json::to_vec(saved)?);
        write().map_err(|error: io::Error| HostError::file("write", &self.saved, &error))
    }

    /// Returns the settings of the devices that accept router advertisements only while the host
    /// does not forward. Containers are no routers, so the settings of their bridges and the defaults
    /// of new devices stay.
    fn accept_ra_to_change(&self) -> impl Iterator<Item = String> {
        let settings = self.device_settings(DEVICES_V6, ACCEPT_RA);
        settings.filter(|name| {
            let device = name.strip_suffix(ACCEPT_RA).and_then(|name| name.rsplit('/').next());
            device.is_some_and(|device| device != "default" && !has_containers(device))
                && self.read(name) == Some(ACCEPT_UNLESS_FORWARDING)
        })
    }

    /// Returns the settings that the kernel resets when forwarding is disabled again, with their
    /// current values.
    fn reset_with(&self, forwarding: &str) -> Vec<(String, u32)> {
        let (devices, redirects) = match forwarding {
            FORWARD_V4 => (DEVICES_V4, Some(REDIRECTS_V4)),
            FORWARD_V6 => (DEVICES_V6, None),
            _ => return Vec::new(),
        };
        let forwards = self.device_settings(devices, FORWARDING).map(|name| (name, 1));
        let ignored = redirects.map(|name| (name.to_owned(), 0));
        forwards.chain(ignored).filter(|(name, value)| self.read(name) == Some(*value)).collect()
    }

    /// Returns the name of a setting for each device, and for the defaults of new devices.
    fn device_settings(&self, folder: &str, setting: &str) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.map(move |device| format!("{folder}/{device}{setting}"))
    }

    fn read(&self, name: &str) -> Option<u32> {
        self.try_read(name).ok().flatten()
    }

    /// Reads a setting. Returns `None` if the kernel has no such setting, for example because its
    /// device is gone.
    fn try_read(&self, name: &str) -> Result<Option<u32>, HostError> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::file("read", &path, &error)),
        }
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

/// Returns the switch for packets of IPv4 from a device.
fn forwarding_of(device: &str) -> String {
    format!("{DEVICES_V4}/{device}{FORWARDING}")
}

/// Returns whether a device is a tunnel, or a bridge of containers: ours, or one of Docker.
fn has_containers(device: &str) -> bool {
    let is_network =
        |name: &str| name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    ["vtep", "m-", "d-"].iter().any(|beginning| device.starts_with(beginning))
        || device == "docker0"
        || device.strip_prefix("br-").is_some_and(is_network)
}

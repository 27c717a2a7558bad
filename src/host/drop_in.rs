//! Files in `/etc` by which the programs that manage a host's network leave our devices alone, and
//! our settings as they are: `NetworkManager`, systemd-networkd, and `sysctl` with systemd-sysctl.
//! Each is written only where its program is installed, and its program is told if it runs.
//!
//! firewalld is not among them: which of a host's ports are open is the operator's decision, and to
//! have it read new files it must be reloaded, which throws away rules of others.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::sysctl::{FORWARD_V4, FORWARD_V6};
use super::{HostError, Restored, Roots, has_ipv6, place};
use crate::program::{Failure, run_blocking};
use crate::tunnel::Desired;

/// The first line of every file of ours, by which we know it again.
const MARK: &str = "# Written by the agent of mesos-overlay. 'mesos-overlay clean' removes it.\n";
/// The second line of a file for which we made its folder.
const FOLDER_MARK: &str = "# So was its folder.\n";
/// What reads it is asked to within this time; it takes tens of milliseconds.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the programs are.
const FOLDERS: [&str; 2] = ["/usr/bin", "/bin"];

/// A program that manages the network, and how it is told.
struct Manager {
    /// What is there if it is installed, below `/etc`.
    installed: &'static str,
    /// How the kernel calls its process: at most 15 characters.
    process: &'static str,
    /// What has it read its files again.
    reload: &'static [&'static str],
    /// Its files below `/etc`, and what they say of the devices.
    files: &'static [(&'static str, &'static str)],
}

/// The names are those of the VXLAN devices and of the two bridges of an overlay. A `[device]` of
/// its own adds to what others say; `unmanaged-devices` would take its place. The first `.network`
/// file that fits is the one that counts. Routes of ours that are on no device networkd takes for
/// forgotten, and removes them when it is started.
const MANAGERS: [Manager; 2] = [
    Manager {
        installed: "NetworkManager",
        process: "NetworkManager",
        reload: &["nmcli", "general", "reload", "conf"],
        files: &[(
            "NetworkManager/conf.d/mesos-overlay.conf",
            "[device-mesos-overlay]\n\
             match-device=interface-name:vtep*;interface-name:m-*;interface-name:d-*\n\
             managed=0\n",
        )],
    },
    Manager {
        installed: "systemd/network",
        process: "systemd-network",
        reload: &["networkctl", "reload"],
        files: &[
            (
                "systemd/network/00-mesos-overlay.network",
                "[Match]\nName=vtep* m-* d-*\n\n[Link]\nUnmanaged=yes\n",
            ),
            ("systemd/networkd.conf.d/mesos-overlay.conf", "[Network]\nManageForeignRoutes=no\n"),
        ],
    },
];

/// The last of all by its name: what is written later wins.
const SYSCTL_FOLDER: &str = "sysctl.d";
const SYSCTL: &str = "sysctl.d/99-zz-mesos-overlay.conf";

/// Writes what is missing or different, and returns what was changed, in words. `listeners` are the
/// settings of devices that go on listening to routers although the host forwards. Who manages the
/// network is told if there is something new for it, or it has to be told.
pub(super) fn apply(
    roots: &Roots,
    desired: &Desired,
    listeners: &[String],
    has_to_tell: bool,
) -> Result<Vec<String>, HostError> {
    let mut done = Vec::new();
    let mut failure = Ok(());
    for manager in &MANAGERS {
        if !roots.etc.join(manager.installed).is_dir() {
            continue;
        }
        let mut is_changed = has_to_tell;
        for (name, content) in manager.files {
            match write(&roots.etc.join(name), content) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    is_changed = true;
                    done.push(text);
                }
                Err(error) => failure = Err(error),
            }
        }
        if is_changed {
            match manager.tell(roots) {
                Ok(text) => done.extend(text),
                Err(error) => failure = Err(error),
            }
        }
    }
    if roots.etc.join(SYSCTL_FOLDER).is_dir() {
        match write(&roots.etc.join(SYSCTL), &settings(desired, listeners)) {
            Ok(text) => done.extend(text),
            Err(error) => failure = Err(error),
        }
    }
    failure.map(|()| done)
}

/// Removes our files, with the folders that were made for them.
pub(super) fn remove(roots: &Roots, restored: &mut Restored) {
    let ours: Vec<PathBuf> = ours(roots).collect();
    for path in &ours {
        let has_folder = fs::read_to_string(path).is_ok_and(|text| text.contains(FOLDER_MARK));
        let removed = fs::remove_file(path);
        let removed = removed.map_err(|error| HostError::file("remove", path, &error));
        let is_removed = restored.note(format!("remove {}", path.display()), removed);
        if let Some(folder) = path.parent().filter(|_| is_removed && has_folder) {
            // Unless there is something of others in it by now.
            let _ = fs::remove_dir(folder);
        }
    }
    for manager in &MANAGERS {
        let files = manager.files.iter().map(|(name, _)| roots.etc.join(name));
        if files.filter(|path| ours.contains(path)).count() > 0 {
            match manager.tell(roots) {
                Ok(text) => restored.done.extend(text),
                Err(error) => {
                    restored.note(manager.reload.join(" "), Err(error));
                }
            }
        }
    }
}

/// The files that are there and ours.
pub(super) fn ours(roots: &Roots) -> impl Iterator<Item = PathBuf> {
    let names = MANAGERS.iter().flat_map(|manager| manager.files).map(|(name, _)| *name);
    let paths = names.chain([SYSCTL]).map(|name| roots.etc.join(name));
    paths.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK)))
}

/// In the order in which they have to be set. A device that is not there yet, or never, is no
/// error: so says the dash in front.
fn settings(desired: &Desired, listeners: &[String]) -> String {
    let loose = |local: &crate::tunnel::Local| format!("ipv4/conf/{}/rp_filter", local.device);
    let mut settings = vec![(FORWARD_V4.to_owned(), 1)];
    settings.extend(desired.locals.iter().map(|local| (loose(local), 2)));
    if has_ipv6(desired) {
        settings.extend(listeners.iter().map(|name| (name.clone(), 2)));
        settings.push((FORWARD_V6.to_owned(), 1));
    }
    settings.iter().map(|(name, value)| format!("-net/{name} = {value}\n")).collect()
}

/// Writes a file of ours unless it is right, and says so.
fn write(path: &Path, content: &str) -> Result<Option<String>, HostError> {
    let found = fs::read_to_string(path);
    let has_folder = match &found {
        Ok(found) if found.starts_with(MARK) => found.contains(FOLDER_MARK),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().is_some_and(|folder| !folder.exists())
        }
        Ok(_) | Err(_) => return Err(HostError::Foreign { path: path.to_owned() }),
    };
    let folder = if has_folder { FOLDER_MARK } else { "" };
    let content = format!("{MARK}{folder}{content}");
    if found.is_ok_and(|found| found == content) {
        return Ok(None);
    }
    place(path, content.as_bytes()).map_err(|error| HostError::file("write", path, &error))?;
    Ok(Some(format!("write {}", path.display())))
}

impl Manager {
    /// Has it read its files again, if it runs.
    fn tell(&self, roots: &Roots) -> Result<Option<String>, HostError> {
        if !is_running(&roots.proc, self.process) {
            return Ok(None);
        }
        let command = self.reload.join(" ");
        match run(self.reload, RELOAD_TIMEOUT) {
            Ok(()) => Ok(Some(command)),
            Err(reason) => Err(HostError::Reload { command, reason }),
        }
    }
}

fn is_running(proc: &Path, process: &str) -> bool {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.any(|name| name.trim_end() == process)
}

/// Runs a program that must succeed.
fn run(words: &[&str], timeout: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let place = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    let missing = || format!("program '{program}' not found");
    let place = place.into_iter().find(|path| path.exists()).ok_or_else(missing)?;
    match run_blocking(&place, arguments.iter().map(OsStr::new), b"", timeout) {
        Ok(finished) if finished.success => Ok(()),
        Ok(finished) => Err(finished.complaint(&["Error: "])),
        Err(Failure::NotFound) => Err(missing()),
        Err(Failure::Start(error) | Failure::Lost(error)) => Err(error.to_string()),
        Err(Failure::TimedOut) => {
            Err(format!("no answer within {}", humantime::format_duration(timeout)))
        }
        Err(Failure::TooMuchOutput) => Err("it wrote without end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_or_hangs_is_told() {
        let second = Duration::from_secs(1);
        assert_eq!(run(&["true"], second), Ok(()));
        let silent = run(&["false"], second).unwrap_err();
        assert_eq!(silent, "it said nothing and ended with exit status: 1");
        assert_eq!(run(&["no-such"], second), Err("program 'no-such' not found".to_owned()));
        let short = Duration::from_millis(10);
        assert_eq!(run(&["sleep", "1000"], short), Err("no answer within 10ms".to_owned()));
    }
}

//! Writes drop-in files in `/etc`, so that the programs that manage a host's network ignore our
//! devices and keep our settings: `NetworkManager`, systemd-networkd, and `sysctl` with
//! systemd-sysctl. A file is written only if its program is installed. A running program reloads
//! its configuration.
//!
//! firewalld has no such file: the operator decides about open ports, and firewalld drops foreign
//! rules when it reloads its files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use overlay_types::tunnel::{Desired, VxlanDevice};

use super::sysctl::{FORWARD_V4, FORWARD_V6};
use super::{HostError, HostPaths, RestoreResult, has_ipv6, write_public};
use crate::subprocess::{SubprocessError, run_blocking};

/// The first line of every managed file, which marks it.
const MARK: &str = "# Written by the agent of mesos-overlay. 'mesos-overlay clean' removes it.\n";
/// The second line of a file if the agent also created the directory of the file.
const FOLDER_MARK: &str = "# So was its folder.\n";
/// Timeout for a program to reload its configuration. It takes tens of milliseconds.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The directories of the programs.
const FOLDERS: [&str; 2] = ["/usr/bin", "/bin"];

/// A program that manages the network.
struct Manager {
    /// The directory below `/etc` that exists if the program is installed.
    installed: &'static str,
    /// The name of its process, which the kernel truncates to 15 characters.
    process: &'static str,
    /// The command that makes it reload its configuration.
    reload_command: &'static [&'static str],
    /// Its files below `/etc`, with their content.
    files: &'static [(&'static str, &'static str)],
}

/// The patterns match the names of the VXLAN devices, of an overlay's two bridges, and of the ports
/// of the probes.
///
/// `NetworkManager` merges `[device]` sections; a second `unmanaged-devices` would replace the
/// first one. systemd-networkd uses the first `.network` file that matches, so the file name begins
/// with 00. When systemd-networkd starts, it removes foreign routes without a device unless
/// `ManageForeignRoutes` is off.
const MANAGERS: [Manager; 2] = [
    Manager {
        installed: "NetworkManager",
        process: "NetworkManager",
        reload_command: &["nmcli", "general", "reload", "conf"],
        files: &[(
            "NetworkManager/conf.d/mesos-overlay.conf",
            "[device-mesos-overlay]\n\
             match-device=interface-name:vtep*;interface-name:m-*;interface-name:d-*;\
             interface-name:mo-probe*\n\
             managed=0\n",
        )],
    },
    Manager {
        installed: "systemd/network",
        process: "systemd-network",
        reload_command: &["networkctl", "reload"],
        files: &[
            (
                "systemd/network/00-mesos-overlay.network",
                "[Match]\nName=vtep* m-* d-* mo-probe*\n\n[Link]\nUnmanaged=yes\n",
            ),
            ("systemd/networkd.conf.d/mesos-overlay.conf", "[Network]\nManageForeignRoutes=no\n"),
        ],
    },
];

/// The name sorts after all other files: the last file wins.
const SYSCTL_FOLDER: &str = "sysctl.d";
const SYSCTL: &str = "sysctl.d/99-zz-mesos-overlay.conf";

/// Writes missing and changed files, and returns descriptions of the changes. `accept_ra` are the
/// settings of the devices that accept router advertisements although the host forwards. A program
/// reloads its configuration if its files changed or if `must_reload` is set.
pub(super) fn apply(
    paths: &HostPaths,
    desired: &Desired,
    accept_ra: &[String],
    must_reload: bool,
) -> Result<Vec<String>, HostError> {
    let mut done = Vec::new();
    let mut failure = Ok(());
    for manager in &MANAGERS {
        if !paths.etc.join(manager.installed).is_dir() {
            continue;
        }
        let mut is_changed = must_reload;
        for (name, content) in manager.files {
            match write(&paths.etc.join(name), content) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    is_changed = true;
                    done.push(text);
                }
                Err(error) => failure = Err(error),
            }
        }
        if is_changed {
            match manager.reload(paths) {
                Ok(text) => done.extend(text),
                Err(error) => failure = Err(error),
            }
        }
    }
    if paths.etc.join(SYSCTL_FOLDER).is_dir() {
        match write(&paths.etc.join(SYSCTL), &settings(desired, accept_ra)) {
            Ok(text) => done.extend(text),
            Err(error) => failure = Err(error),
        }
    }
    failure.map(|()| done)
}

/// Removes our files, and the directories that were made for them.
pub(super) fn remove(paths: &HostPaths, result: &mut RestoreResult) {
    let owned: Vec<PathBuf> = owned_files(paths).collect();
    for path in &owned {
        let has_folder = fs::read_to_string(path).is_ok_and(|text| text.contains(FOLDER_MARK));
        let removed = fs::remove_file(path);
        let removed = removed.map_err(|error| HostError::file("remove", path, &error));
        let is_removed = result.record(format!("remove {}", path.display()), removed);
        if let Some(folder) = path.parent().filter(|_| is_removed && has_folder) {
            // This fails if the directory has other files by now.
            let _ = fs::remove_dir(folder);
        }
    }
    for manager in &MANAGERS {
        let files = manager.files.iter().map(|(name, _)| paths.etc.join(name));
        if files.filter(|path| owned.contains(path)).count() > 0 {
            match manager.reload(paths) {
                Ok(text) => result.done.extend(text),
                Err(error) => {
                    result.record(manager.reload_command.join(" "), Err(error));
                }
            }
        }
    }
}

/// Returns the existing files that carry our mark.
pub(super) fn owned_files(paths: &HostPaths) -> impl Iterator<Item = PathBuf> {
    let names = MANAGERS.iter().flat_map(|manager| manager.files).map(|(name, _)| *name);
    let paths = names.chain([SYSCTL]).map(|name| paths.etc.join(name));
    paths.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK)))
}

/// Returns the sysctl file. The order of the settings matters. The dash means that a missing device
/// is no error.
fn settings(desired: &Desired, accept_ra: &[String]) -> String {
    let rp_filter = |local: &VxlanDevice| format!("ipv4/conf/{}/rp_filter", local.device);
    let mut settings = vec![(FORWARD_V4.to_owned(), 1)];
    settings.extend(desired.vxlan_devices.iter().map(|local| (rp_filter(local), 2)));
    if has_ipv6(desired) {
        settings.extend(accept_ra.iter().map(|name| (name.clone(), 2)));
        settings.push((FORWARD_V6.to_owned(), 1));
    }
    settings.iter().map(|(name, value)| format!("-net/{name} = {value}\n")).collect()
}

/// Writes a managed file unless it has the desired content. Returns a description of the change.
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
    write_public(path, content.as_bytes())
        .map_err(|error| HostError::file("write", path, &error))?;
    Ok(Some(format!("write {}", path.display())))
}

impl Manager {
    /// Makes the program reload its configuration if it runs. Returns the command that was run.
    fn reload(&self, paths: &HostPaths) -> Result<Option<String>, HostError> {
        if !is_running(&paths.proc, self.process) {
            return Ok(None);
        }
        let command = self.reload_command.join(" ");
        match run(self.reload_command, RELOAD_TIMEOUT) {
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

/// Runs a command. Returns the reason of a failure.
fn run(words: &[&str], timeout: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let missing = || format!("program '{program}' not found");
    let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    let path = paths.find(|path| path.exists()).ok_or_else(missing)?;
    match run_blocking(&path, arguments.iter().map(OsStr::new), b"", timeout) {
        Ok(output) if output.success => Ok(()),
        Ok(output) => Err(output.error_line(&["Error: "])),
        Err(SubprocessError::NotFound) => Err(missing()),
        Err(SubprocessError::Start(error) | SubprocessError::Io(error)) => Err(error.to_string()),
        Err(SubprocessError::TimedOut) => {
            Err(format!("no answer within {}", humantime::format_duration(timeout)))
        }
        Err(SubprocessError::TooMuchOutput) => Err("it wrote too much output".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_or_hanging_program_is_reported() {
        let second = Duration::from_secs(1);
        assert_eq!(run(&["true"], second), Ok(()));
        let silent = run(&["false"], second).unwrap_err();
        assert_eq!(silent, "the program wrote no error and ended with exit status: 1");
        assert_eq!(run(&["no-such"], second), Err("program 'no-such' not found".to_owned()));
        let short = Duration::from_millis(10);
        assert_eq!(run(&["sleep", "1000"], short), Err("no answer within 10ms".to_owned()));
    }
}

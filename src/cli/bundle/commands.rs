//! The commands whose output a bundle contains. They only read.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_linux::subprocess::{SubprocessError, find_system_program, run_blocking};
use overlay_types::secret::show_path;

use super::archive::Item;

/// A command that takes longer hangs. The doctor needs some seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The commands about the network of the host, with their names in the archive.
const HOST: [(&str, &[&str]); 15] = [
    ("host/links.txt", &["ip", "-details", "-statistics", "link", "show"]),
    ("host/addresses.txt", &["ip", "-details", "address", "show"]),
    ("host/routes.txt", &["ip", "-details", "route", "show", "table", "all"]),
    ("host/routes-ipv6.txt", &["ip", "-6", "-details", "route", "show", "table", "all"]),
    ("host/rules.txt", &["ip", "rule", "show"]),
    ("host/rules-ipv6.txt", &["ip", "-6", "rule", "show"]),
    ("host/neighbors.txt", &["ip", "-details", "neighbor", "show"]),
    ("host/forwarding-database.txt", &["bridge", "-details", "fdb", "show"]),
    ("host/nft.txt", &["nft", "--handle", "list", "ruleset"]),
    ("host/iptables.txt", &["iptables-save", "-c"]),
    ("host/ip6tables.txt", &["ip6tables-save", "-c"]),
    ("host/ipset.txt", &["ipset", "list"]),
    ("host/conntrack.txt", &["conntrack", "--stats"]),
    ("host/sockets.txt", &["ss", "-tulpn"]),
    ("host/sysctl.txt", &["sysctl", "net.ipv4", "net.ipv6.conf.all", "net.bridge", "net.core"]),
];

/// The commands about Docker.
const DOCKER: [(&str, &[&str]); 2] = [
    ("docker/version.txt", &["version"]),
    ("docker/networks.txt", &["network", "ls", "--no-trunc"]),
];

/// Returns the outputs of the commands about the network of the host.
pub(super) fn host() -> impl Iterator<Item = Item> {
    HOST.into_iter().map(|(name, command)| {
        let arguments = command[1..].iter().map(OsString::from).collect();
        system_program(name, command[0], arguments)
    })
}

/// Returns the outputs of commands about Docker and its networks of these overlays.
pub(super) fn docker(program: &Path, overlays: &[String]) -> Vec<Item> {
    let listed = DOCKER.into_iter().map(|(name, arguments)| {
        run(name, program, arguments.iter().map(OsString::from).collect())
    });
    let mut items: Vec<Item> = listed.collect();
    if !overlays.is_empty() {
        let arguments = ["network", "inspect", "--"].into_iter().map(OsString::from);
        let arguments = arguments.chain(overlays.iter().map(OsString::from)).collect();
        items.push(run("docker/overlays.txt", program, arguments));
    }
    items
}

/// Returns the last lines of the journal of these units, and the units.
pub(super) fn journal(units: &[String], lines: u32) -> Vec<Item> {
    let units = || units.iter().map(|unit| format!("--unit={unit}").into());
    let mut journal = vec!["--no-pager".into(), "--output=short-iso".into()];
    journal.push(format!("--lines={lines}").into());
    journal.extend(units());
    let mut status: Vec<OsString> =
        ["status", "--no-pager", "--full", "--lines=0", "--"].map(OsString::from).into();
    let names = |unit: OsString| unit.to_string_lossy().trim_start_matches("--unit=").into();
    status.extend(units().map(names));
    vec![
        system_program("journal.txt", "journalctl", journal),
        system_program("units.txt", "systemctl", status),
    ]
}

/// Returns the output of another subcommand of this program.
pub(super) fn own(name: &str, arguments: Vec<OsString>) -> Item {
    match std::env::current_exe() {
        Ok(program) => run(name, &program, arguments),
        Err(error) => Item {
            name: name.to_owned(),
            source: describe(Path::new("mesos-overlay"), &arguments),
            content: Err(format!("find this program: {error}")),
        },
    }
}

fn system_program(name: &str, program: &str, arguments: Vec<OsString>) -> Item {
    // A program that is missing is reported by its name.
    let path = find_system_program(program).unwrap_or_else(|| PathBuf::from(program));
    run(name, &path, arguments)
}

/// Runs a command. Its error output and its exit status are a part of the text.
fn run(name: &str, program: &Path, arguments: Vec<OsString>) -> Item {
    let source = describe(program, &arguments);
    let output = run_blocking(program, arguments.iter().map(OsString::as_os_str), b"", TIMEOUT);
    let content = match output {
        Ok(output) => {
            let mut text = format!("$ {source}\n{}", String::from_utf8_lossy(&output.stdout));
            if !output.stderr.is_empty() {
                text.push_str("\n[stderr]\n");
                text.push_str(&String::from_utf8_lossy(&output.stderr));
            }
            if !output.success {
                text.push_str(&format!("\n[{}]\n", output.status));
            }
            Ok(text)
        }
        Err(SubprocessError::NotFound) => Err("the program is not installed".to_owned()),
        Err(SubprocessError::Start(error) | SubprocessError::Io(error)) => Err(error.to_string()),
        Err(SubprocessError::TimedOut) => Err(format!("no end within {} s", TIMEOUT.as_secs())),
        Err(SubprocessError::TooMuchOutput) => Err("its output is too long".to_owned()),
    };
    Item { name: name.to_owned(), source, content }
}

/// Returns the command as a line.
fn describe(program: &Path, arguments: &[OsString]) -> String {
    let name = program.file_name().map_or_else(|| show_path(program), show_name);
    arguments.iter().fold(name, |line, argument| line + " " + &argument.to_string_lossy())
}

fn show_name(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

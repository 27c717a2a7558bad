//! Runs `nft`, `iptables` and `ipset`. Each call does all that belongs together, so that a handful
//! of them is enough for any number of rules.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where they are on every distribution. Looked at first, since the agent's own path may lack them.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Most characters of a program's complaint that are shown.
const SAID_MAX: usize = 300;

/// Why the firewall is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// There is no such program.
    #[error(
        "firewall: program '{0}' not found: install nftables, or iptables and ipset, or set \
         firewall to none"
    )]
    ProgramNotFound(&'static str),
    /// The program could not be run.
    #[error("firewall: run '{command}': {reason}: see why this host cannot start programs")]
    Start {
        /// What was to be run.
        command: String,
        /// The system's answer.
        reason: String,
    },
    /// The program refused.
    #[error(
        "firewall: '{command}' failed: {said}: run it as root by hand, or set firewall to none"
    )]
    Refused {
        /// What was run.
        command: String,
        /// Its own words.
        said: String,
    },
}

fn place(program: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
}

/// Whether the program is there.
pub(super) fn has(program: &str) -> bool {
    place(program).is_some()
}

/// Output of a program, which must succeed.
pub(super) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, FirewallError> {
    let path = place(program).ok_or(FirewallError::ProgramNotFound(program))?;
    let command = format!("{program} {}", arguments.join(" "));
    let start = |error: io::Error| FirewallError::Start {
        command: command.clone(),
        reason: error.to_string(),
    };
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    // They read all of their input before they say anything.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let line = words.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    let said = line.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    Err(FirewallError::Refused { command, said: said.take(SAID_MAX).collect() })
}

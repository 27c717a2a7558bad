//! Runs `nft`, `iptables` and `ipset`. Each call does all that belongs together, so that a handful
//! of them is enough for any number of rules.

use std::ffi::OsStr;
use std::time::Duration;

use crate::program::{Failure, of_system, run_blocking};

/// How long one may take. iptables waits five seconds of it for others who are at work.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why the firewall is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// There is no such program.
    #[error(
        "firewall: program '{0}' not found: install nftables, or iptables and ipset, or set \
         firewall to none"
    )]
    ProgramNotFound(&'static str),
    /// The kernel cannot do it, and there is nothing else.
    #[error(
        "firewall: this kernel does not take our nftables rules ({said}), and iptables with ipset is \
         not installed: install them, or a kernel of 5.2 or later with nftables, or set firewall to \
         none"
    )]
    NoNftables {
        /// What `nft` said.
        said: String,
    },
    /// The program could not be run.
    #[error("firewall: run '{command}': {reason}: see why this host cannot start programs")]
    Start {
        /// What was to be run.
        command: String,
        /// The system's answer.
        reason: String,
    },
    /// The program was killed at the deadline.
    #[error(
        "firewall: '{command}' did not end within {timeout} and was killed: see what holds the \
         rules, or set firewall to none",
        timeout = humantime::format_duration(TIMEOUT)
    )]
    TimedOut {
        /// What was run.
        command: String,
    },
    /// The program was killed because it wrote without end.
    #[error("firewall: '{command}' wrote too much and was killed: this host has too many rules")]
    TooMuchOutput {
        /// What was run.
        command: String,
    },
    /// The program refused.
    #[error("firewall: '{command}' failed: {said}: {}", remedy(said))]
    Refused {
        /// What was run.
        command: String,
        /// Its own words.
        said: String,
    },
}

/// What to do about a program that said this.
fn remedy(said: &str) -> &'static str {
    let said = said.to_lowercase();
    if said.contains("not permitted") || said.contains("permission denied") {
        "run the agent as root, or give it CAP_NET_ADMIN"
    } else {
        "run it as root by hand, or set firewall to none"
    }
}

/// Whether the program is there.
pub(super) fn has(program: &str) -> bool {
    of_system(program).is_some()
}

/// Output of a program, which must succeed.
pub(super) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, FirewallError> {
    let path = of_system(program).ok_or(FirewallError::ProgramNotFound(program))?;
    let words = arguments.iter().map(OsStr::new);
    let command = || format!("{program} {}", arguments.join(" "));
    let finished =
        run_blocking(&path, words, input.as_bytes(), TIMEOUT).map_err(|failure| match failure {
            Failure::NotFound => FirewallError::ProgramNotFound(program),
            Failure::Start(error) | Failure::Lost(error) => {
                FirewallError::Start { command: command(), reason: error.to_string() }
            }
            Failure::TimedOut => FirewallError::TimedOut { command: command() },
            Failure::TooMuchOutput => FirewallError::TooMuchOutput { command: command() },
        })?;
    if finished.success {
        return Ok(String::from_utf8_lossy(&finished.stdout).into_owned());
    }
    Err(FirewallError::Refused { command: command(), said: finished.complaint(&["Error: "]) })
}

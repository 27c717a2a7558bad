//! Runs `nft`, `iptables` and `ipset`. Each call applies many changes, so a few calls are enough
//! for any number of rules.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::time::Duration;

use overlay_types::advice::Command;
use parking_lot::Mutex;

use super::generation;
use crate::subprocess::{ProcessOutput, SubprocessError, find_system_program, run_blocking};

/// Timeout of a program. It includes the 5 seconds that iptables waits for its lock.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why the firewall could not be programmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// The program does not exist.
    #[error(
        "firewall: {}: install nftables, or iptables and ipset, or set firewall to none",
        self.cause()
    )]
    ProgramNotFound(&'static str),
    /// The kernel does not support our nftables rules, and iptables is missing.
    #[error(
        "firewall: {}: install them, or a kernel of 5.2 or later with nftables, or set firewall to \
         none",
        self.cause()
    )]
    NoNftables {
        /// The error line of `nft`.
        message: String,
    },
    /// The program could not be run.
    #[error("firewall: {}: see why this host cannot start programs", self.cause())]
    Start {
        /// The command.
        command: String,
        /// The system's error.
        reason: String,
    },
    /// The program was killed at the deadline.
    #[error(
        "firewall: {}: see which program locks the rules, or set firewall to none",
        self.cause()
    )]
    TimedOut {
        /// The command.
        command: String,
    },
    /// The program was killed because its output was too long.
    #[error(
        "firewall: {}: this host has too many rules: remove rules that it does not need, or set \
         firewall to none",
        self.cause()
    )]
    TooMuchOutput {
        /// The command.
        command: String,
    },
    /// The program failed.
    #[error("firewall: {}: {}", self.cause(), remedy(message))]
    Refused {
        /// The command.
        command: String,
        /// Its error line.
        message: String,
    },
}

/// Returns the remedy for an error line.
fn remedy(message: &str) -> String {
    let message = message.to_lowercase();
    if message.contains("not permitted") || message.contains("permission denied") {
        "run the agent as root, or give it CAP_NET_ADMIN".to_owned()
    } else {
        format!(
            "see whether the program and the kernel support these rules with {}, or set firewall \
             to none and protect this host by rules of your own",
            Command::show_nft_version()
        )
    }
}

impl FirewallError {
    /// Describes what failed, without the remedies, which are those of the agent's own rules.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::ProgramNotFound(program) => format!("program '{program}' not found"),
            Self::NoNftables { message } => format!(
                "this kernel does not support our nftables rules ({message}), and iptables with \
                 ipset is not installed"
            ),
            Self::Start { command, reason } => format!("run '{command}': {reason}"),
            Self::TimedOut { command } => {
                let timeout = humantime::format_duration(TIMEOUT);
                format!("'{command}' did not end within {timeout} and was killed")
            }
            Self::TooMuchOutput { command } => {
                format!("'{command}' wrote too much and was killed")
            }
            Self::Refused { command, message } => format!("'{command}' failed: {message}"),
        }
    }

    /// Returns whether a program failed because the kernel does not support its rules. Then the
    /// host has no such rules. After every other failure the rules of the host are unknown.
    pub(super) fn is_unsupported(&self) -> bool {
        const UNSUPPORTED: [&str; 4] = [
            "not supported",
            "invalid argument",
            // iptables. Its text "can't initialize" has other reasons too, such as missing memory.
            "table does not exist",
            // ipset
            "cannot open session to kernel",
        ];
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_lowercase();
        let is_forbidden =
            message.contains("not permitted") || message.contains("permission denied");
        !is_forbidden && UNSUPPORTED.iter().any(|text| message.contains(text))
    }

    /// Returns whether a dry run of nft failed because nft or the kernel does not support a feature
    /// of our rules.
    pub(super) fn is_missing_feature(&self) -> bool {
        const MISSING: [&str; 4] = [
            "no such file or directory",
            "syntax error",
            // nft before 1.0.1, about a set with a part of a packet.
            "concat",
            "typeof",
        ];
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_lowercase();
        self.is_unsupported() || MISSING.iter().any(|text| message.contains(text))
    }

    /// Returns whether iptables failed because it or the kernel does not support a match of our
    /// rules.
    pub(super) fn is_missing_match(&self) -> bool {
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_lowercase();
        self.is_missing_feature() || message.contains("u32") || message.contains("target/match")
    }
}

/// Runs the programs of the firewall.
pub(super) trait Tools: fmt::Debug + Send {
    /// Returns whether the program exists.
    fn has(&self, program: &str) -> bool;

    /// Runs a program and returns its output. Any exit status other than 0 is an error.
    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, FirewallError>;

    /// Returns the processes that ran since the last call.
    fn take_processes(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Returns the generation of the nftables rules of this host: see [`generation::read`]. `None` if
    /// it is unknown.
    fn generation(&self) -> Option<u32> {
        None
    }

    /// Returns whether the rules of a program of iptables certainly are nftables rules, which have a
    /// generation.
    fn has_generation(&self, _program: &str) -> bool {
        false
    }
}

/// The program that all names of the iptables for nftables lead to (`xtables-nft(8)`).
const IPTABLES_NFT: &str = "xtables-nft-multi";

/// Maximum number of processes that are remembered. A job runs a few programs.
const PROCESSES_MAX: usize = 256;

/// The programs of this host.
#[derive(Debug, Default)]
pub(super) struct SystemTools {
    /// The processes of the programs that have run.
    processes: Mutex<Vec<u32>>,
}

impl Tools for SystemTools {
    fn has(&self, program: &str) -> bool {
        find_system_program(program).is_some()
    }

    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, FirewallError> {
        let path = find_system_program(program).ok_or(FirewallError::ProgramNotFound(program))?;
        let command = format!("{program} {}", arguments.join(" "));
        let arguments = arguments.iter().map(OsStr::new);
        let output = run_blocking(&path, arguments, input.as_bytes(), TIMEOUT);
        if let Ok(ProcessOutput { process: Some(process), .. }) = output {
            let mut processes = self.processes.lock();
            if processes.len() < PROCESSES_MAX {
                processes.push(process);
            }
        }
        match output {
            Ok(output) if output.success => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(output) => {
                Err(FirewallError::Refused { command, message: output.error_line(&["Error: "]) })
            }
            Err(SubprocessError::NotFound) => Err(FirewallError::ProgramNotFound(program)),
            Err(SubprocessError::Start(error) | SubprocessError::Io(error)) => {
                Err(FirewallError::Start { command, reason: error.to_string() })
            }
            Err(SubprocessError::TimedOut) => Err(FirewallError::TimedOut { command }),
            Err(SubprocessError::TooMuchOutput) => Err(FirewallError::TooMuchOutput { command }),
        }
    }

    fn take_processes(&self) -> Vec<u32> {
        std::mem::take(&mut *self.processes.lock())
    }

    fn generation(&self) -> Option<u32> {
        generation::read().ok()
    }

    fn has_generation(&self, program: &str) -> bool {
        let path = find_system_program(program).and_then(|path| fs::canonicalize(path).ok());
        path.is_some_and(|path| path.ends_with(IPTABLES_NFT))
    }
}

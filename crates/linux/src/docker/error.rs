//! Errors of Docker networks, and the meaning of Docker's error messages. The texts reach the
//! operator through the master's state: each text says on one line what to do.

use std::path::PathBuf;
use std::time::Duration;

use overlay_types::addr::{DeviceName, OverlayName, Subnet};
use overlay_types::advice::Command;

use super::network::{Difference, Overlap};
use crate::subprocess::ProcessOutput;

/// Maximum number of containers that a message names.
const NAMED_MAX: usize = 3;

/// A failure of an operation on a Docker network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("docker network {network}: {reason}")]
pub struct DockerError {
    /// The network.
    pub network: OverlayName,
    /// The failure.
    pub reason: DockerFailure,
}

/// Why an operation of Docker failed, or why a network is not in its desired state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerFailure {
    /// The `docker` program does not exist.
    #[error(
        "program '{program}' not found: install Docker on this agent, or set \
         network_config.docker_bridge to false in its agent_config",
        program = .program.display()
    )]
    ProgramNotFound {
        /// The program.
        program: PathBuf,
    },
    /// The program could not be started.
    #[error("start '{program}': {reason}", program = .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The program's output or exit status could not be read.
    #[error("wait for '{command}': {reason}")]
    Lost {
        /// The command.
        command: String,
        /// The system's error.
        reason: String,
    },
    /// The Docker daemon does not run.
    #[error(
        "{not_running}: {message}: start it, or set network_config.docker_bridge to false in the \
         agent_config",
        not_running = DockerFailure::NOT_RUNNING
    )]
    NotRunning {
        /// Docker's error message.
        message: String,
    },
    /// The process has no permission for the daemon's socket.
    #[error(
        "no permission to talk to the Docker daemon: {message}: run the agent as root or in the \
         group of the daemon's socket"
    )]
    PermissionDenied {
        /// Docker's error message.
        message: String,
    },
    /// The program was killed at the deadline.
    #[error(
        "docker did not answer within {timeout}, '{command}' was killed: look into the Docker \
         daemon's log, restart it if it hangs",
        timeout = humantime::format_duration(*timeout)
    )]
    TimedOut {
        /// The command that ran at the deadline.
        command: String,
        /// The timeout of all commands together.
        timeout: Duration,
    },
    /// The program was killed because its output was too long.
    #[error("'{command}' wrote too much output and was killed: run it by hand")]
    TooMuchOutput {
        /// The command.
        command: String,
    },
    /// The answer cannot be parsed.
    #[error("'{command}' gave an answer that cannot be parsed: {reason}: run it by hand")]
    Unreadable {
        /// The command.
        command: String,
        /// The parse error.
        reason: String,
    },
    /// A network of this name differs from the desired one.
    #[error(
        "exists, but {differences}: stop its containers and run {}, then the agent creates it again",
        Command::remove_docker_network(network),
        differences = .differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Differs {
        /// The network.
        network: OverlayName,
        /// The differences, at least one.
        differences: Vec<Difference>,
    },
    /// The network was made for an older engine, and containers prevent its replacement.
    #[error(
        "was made for an older engine: Docker {engine} drops packets of other agents to its \
         containers: stop them{named}, then the agent creates it again",
        named = list_containers(containers)
    )]
    UnfitGatewayMode {
        /// The engine's version.
        engine: String,
        /// The containers that run in the network.
        containers: Vec<String>,
    },
    /// Another program removed the bridge, and containers prevent the replacement of the network.
    #[error(
        "its bridge {bridge} was removed, and containers use the network{named}: run {command}, and \
         restart these containers, which have no connection until then: the agent configures the \
         bridge",
        command = Command::add_bridge(bridge),
        named = list_containers(running)
    )]
    BridgeMissing {
        /// The bridge.
        bridge: DeviceName,
        /// The containers that run in the network.
        running: Vec<String>,
    },
    /// Containers prevent the removal of the network.
    #[error(
        "has containers and cannot be removed: stop them{named}",
        named = list_containers(containers)
    )]
    StillAttached {
        /// The containers of the network.
        containers: Vec<String>,
    },
    /// The overlay is no longer assigned, and containers use its network.
    #[error(
        "is no longer assigned and has containers: remove them{named}, then the agent removes it",
        named = list_containers(containers)
    )]
    Unassigned {
        /// The containers of the network, running or stopped.
        containers: Vec<String>,
    },
    /// The network is foreign.
    #[error("is not managed by the agent, so it is left alone")]
    Foreign,
    /// Several networks have this name. Docker allowed this before API 1.44.
    #[error(
        "several networks have this name: find their IDs with {}, and remove all of them by ID",
        Command::show_docker_networks()
    )]
    AmbiguousName,
    /// Another Docker network overlaps the subnets.
    #[error(
        "subnet {subnets} overlaps {other}",
        subnets = .subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
        other = overlap_text(other.as_ref())
    )]
    PoolOverlaps {
        /// The subnets of the overlay's network.
        subnets: Vec<Subnet>,
        /// The other network, if it was found.
        other: Option<Overlap>,
    },
    /// Another Docker network owns the bridge.
    #[error(
        "bridge {bridge} belongs to the Docker network {other}: rename the overlay, or remove that \
         network if nothing uses it"
    )]
    BridgeInUse {
        /// The bridge.
        bridge: DeviceName,
        /// Name of the other network, or its ID.
        other: String,
    },
    /// The network was created, and does not exist afterwards.
    #[error(
        "was created and is gone again: find the program that removes Docker networks on this agent"
    )]
    Vanished,
    /// Any other failure of a command.
    #[error("'{command}' failed: {message}")]
    Refused {
        /// The command.
        command: String,
        /// Docker's error message.
        message: String,
    },
}

impl DockerFailure {
    /// The beginning of the text of [`Self::NotRunning`].
    pub const NOT_RUNNING: &str = "the Docker daemon is not running";
}

/// Describes the overlapping network, and the remedy.
fn overlap_text(other: Option<&Overlap>) -> String {
    match other {
        // Docker's default network cannot be removed.
        Some(Overlap { network, subnet }) if network == "bridge" => format!(
            "{subnet} of Docker's default network: set another 'bip' in Docker's daemon.json, or \
             give the overlay another subnet"
        ),
        Some(Overlap { network, subnet }) => format!(
            "{subnet} of the Docker network {network}: give the overlay another subnet, or remove \
             that network if nothing uses it"
        ),
        None => format!(
            "another Docker network: find it with {}, and give one of the two another subnet",
            Command::show_docker_networks()
        ),
    }
}

/// Lists the containers in parentheses, or returns an empty text if there are none.
fn list_containers(containers: &[String]) -> String {
    if containers.is_empty() {
        return String::new();
    }
    let names = containers[..containers.len().min(NAMED_MAX)].join(", ");
    match containers.len().saturating_sub(NAMED_MAX) {
        0 => format!(" ({names})"),
        more => format!(" ({names} and {more} more)"),
    }
}

/// The kind of an error message of Docker. Docker has no error codes, only texts. The texts of
/// 20.10 and 28.2 were observed, all other texts are known from reports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    NotFound,
    NameExists,
    AmbiguousName,
    PoolOverlaps,
    BridgeInUse { id: String },
    StillAttached,
    NotRunning,
    PermissionDenied,
    Other,
}

impl ErrorKind {
    /// Classifies the error message of a failed command.
    pub(super) fn of(output: &ProcessOutput) -> Self {
        let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let has = |words: &str| text.contains(words);
        if has("permission denied while trying to connect") {
            Self::PermissionDenied
        } else if ["is the docker daemon running", "failed to connect to the docker api"]
            .into_iter()
            .chain(["cannot connect to the docker daemon", "error during connect"])
            .any(has)
        {
            Self::NotRunning
        } else if text.lines().any(is_missing_network)
            // No network has this name, but the IDs of several networks begin with it.
            || has("based on id prefix")
        {
            Self::NotFound
        } else if has("is ambiguous") {
            Self::AmbiguousName
        } else if has("already exists") && has("network with name") {
            Self::NameExists
        } else if has("pool overlaps") {
            Self::PoolOverlaps
        } else if has("same bridge name") {
            let id = text.split_once("conflicts with network ").map_or("", |(_, rest)| rest);
            let id = id.chars().take_while(char::is_ascii_hexdigit).take(64).collect();
            Self::BridgeInUse { id }
        } else if has("active endpoints") {
            Self::StillAttached
        } else {
            Self::Other
        }
    }
}

/// Returns whether a line of lower-case letters says that a network does not exist: `no such
/// network: NAME` (20.10), or `network NAME not found`. Other messages have these words as well, for
/// example about a plugin of a network that is not found.
fn is_missing_network(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    line.contains("no such network")
        || words
            .windows(4)
            .any(|found| matches!(found, ["network", _, "not", last] if last.starts_with("found")))
}

/// Returns whether a command failed only because networks do not exist.
pub(super) fn is_missing_network_only(output: &ProcessOutput) -> bool {
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty()).peekable();
    lines.peek().is_some()
        && lines.all(|line| line.starts_with("warning") || is_missing_network(line))
        && text.lines().any(is_missing_network)
}

/// Removes Docker's question to the operator from the message about a daemon that does not run.
pub(super) fn without_question(message: &str) -> String {
    message
        .trim_end_matches("Is the docker daemon running?")
        .trim_end_matches([' ', '.'])
        .to_owned()
}

/// Returns Docker's error message without its prefixes.
pub(super) fn error_message(output: &ProcessOutput) -> String {
    output.error_line(&["docker: ", "Error response from daemon: ", "Error: "])
}

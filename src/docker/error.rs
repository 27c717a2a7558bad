//! Why a Docker network is not as it should be, and what Docker's complaints mean. The texts reach
//! the operator through the master's state: each says what to do, on one line.

use std::path::PathBuf;
use std::time::Duration;

use super::network::Difference;
use crate::addr::{DeviceName, OverlayName, Subnet};
use crate::program::Finished;

/// Most containers that are named.
const NAMED_MAX: usize = 3;

/// Why a Docker network is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("docker network {network}: {reason}")]
pub struct DockerError {
    /// The network.
    pub network: OverlayName,
    /// Why.
    pub reason: Reason,
}

/// Why a Docker network is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no such program.
    #[error(
        "program '{program}' not found: install Docker on this agent, or set \
         network_config.docker_bridge to false in its agent_config",
        program = .program.display()
    )]
    ProgramNotFound {
        /// What was to be run.
        program: PathBuf,
    },
    /// The program could not be started.
    #[error("start '{program}': {reason}", program = .program.display())]
    Start {
        /// What was to be run.
        program: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// The program was started, and its output or its end could not be read.
    #[error("wait for '{command}': {reason}")]
    Lost {
        /// What was run.
        command: String,
        /// The system's answer.
        reason: String,
    },
    /// No daemon behind the program.
    #[error(
        "{what}: {said}: start it, or set network_config.docker_bridge to false in the agent_config",
        what = Reason::NOT_RUNNING
    )]
    NotRunning {
        /// Docker's own words.
        said: String,
    },
    /// The daemon's socket belongs to others.
    #[error(
        "no permission to talk to the Docker daemon: {said}: run the agent as root or in the group \
         of the daemon's socket"
    )]
    PermissionDenied {
        /// Docker's own words.
        said: String,
    },
    /// The program was killed at the deadline.
    #[error(
        "docker did not answer within {timeout}, '{command}' was killed: look into the Docker \
         daemon's log, restart it if it hangs",
        timeout = humantime::format_duration(*timeout)
    )]
    TimedOut {
        /// What was running when the time was up.
        command: String,
        /// How long all commands together had.
        timeout: Duration,
    },
    /// The program was killed because it wrote without end.
    #[error("'{command}' wrote more than an answer can be long and was killed: run it by hand")]
    TooMuchOutput {
        /// What was run.
        command: String,
    },
    /// An answer that this version does not know.
    #[error("'{command}' gave an answer that is not understood: {reason}: run it by hand")]
    Unreadable {
        /// What was run.
        command: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A network of this name is not as it should be.
    #[error(
        "exists, but {differences}: end its containers and run 'docker network rm {network}', then \
         the agent makes it anew",
        differences = .differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Differs {
        /// Its name.
        network: OverlayName,
        /// In which respects, at least one.
        differences: Vec<Difference>,
    },
    /// The network was made for an older engine and has containers.
    #[error(
        "was made for an older engine: Docker {engine} drops what other agents send to its \
         containers: end them{named}, then the agent makes it anew",
        named = named(containers)
    )]
    UnfitGatewayMode {
        /// Version of the engine.
        engine: String,
        /// The containers that run in it.
        containers: Vec<String>,
    },
    /// The network cannot be removed.
    #[error("has containers and cannot be removed: end them{named}", named = named(containers))]
    StillAttached {
        /// The containers that were seen in it.
        containers: Vec<String>,
    },
    /// Its overlay is no longer assigned, and it is used.
    #[error(
        "is no longer assigned and has containers: remove them{named}, then the agent removes it",
        named = named(containers)
    )]
    Unassigned {
        /// The containers that belong to it, be they running or not.
        containers: Vec<String>,
    },
    /// Somebody else's network.
    #[error("is not the agent's: it is left alone")]
    Foreign,
    /// Several networks have this name, which Docker allowed before 1.44 of its API.
    #[error("several networks have this name: remove all of them by ID with 'docker network rm'")]
    AmbiguousName,
    /// Some other Docker network has addresses of ours.
    #[error(
        "subnet {subnets} overlaps {other}",
        subnets = .subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
        other = overlapped(other.as_ref())
    )]
    PoolOverlaps {
        /// Our subnets.
        subnets: Vec<Subnet>,
        /// The other network, if it could be found.
        other: Option<Overlap>,
    },
    /// Some other Docker network has our bridge.
    #[error(
        "bridge {bridge} belongs to the Docker network {other}: run 'docker network rm {other}' if \
         it is not in use, or rename the overlay"
    )]
    BridgeInUse {
        /// The bridge.
        bridge: DeviceName,
        /// Name of the other network, or its ID.
        other: String,
    },
    /// The network was made and is not there.
    #[error("was made and is gone again: see who else removes Docker networks on this agent")]
    Vanished,
    /// Everything else.
    #[error("'{command}' failed: {said}")]
    Refused {
        /// What was run.
        command: String,
        /// Docker's own words.
        said: String,
    },
}

impl Reason {
    /// How [`Self::NotRunning`] begins, wherever it is repeated.
    pub const NOT_RUNNING: &str = "the Docker daemon is not running";
}

/// A Docker network that has addresses of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Its name.
    pub network: String,
    /// Its subnet.
    pub subnet: Subnet,
}

fn overlapped(other: Option<&Overlap>) -> String {
    match other {
        // Docker's default network, which it does not let go.
        Some(Overlap { network, subnet }) if network == "bridge" => format!(
            "{subnet} of Docker's default network: set another 'bip' in Docker's daemon.json, or \
             give the overlay another subnet"
        ),
        Some(Overlap { network, subnet }) => format!(
            "{subnet} of the Docker network {network}: run 'docker network rm {network}' if it is \
             not in use, or give the overlay another subnet"
        ),
        None => {
            "another Docker network: find it with 'docker network inspect' and remove it, or give \
                 the overlay another subnet"
                .to_owned()
        }
    }
}

fn named(containers: &[String]) -> String {
    if containers.is_empty() {
        return String::new();
    }
    let names = containers[..containers.len().min(NAMED_MAX)].join(", ");
    match containers.len().saturating_sub(NAMED_MAX) {
        0 => format!(" ({names})"),
        more => format!(" ({names} and {more} more)"),
    }
}

/// What Docker complains about. There are no codes, only texts; those of 20.10 and 28.2 were
/// observed, the others are known from reports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
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

impl Complaint {
    pub(super) fn of(finished: &Finished) -> Self {
        let text = String::from_utf8_lossy(&finished.stderr).to_lowercase();
        let has = |words: &str| text.contains(words);
        if has("permission denied while trying to connect") {
            Self::PermissionDenied
        } else if ["is the docker daemon running", "failed to connect to the docker api"]
            .into_iter()
            .chain(["cannot connect to the docker daemon", "error during connect"])
            .any(has)
        {
            Self::NotRunning
        } else if has("no such network")
            || (has("network") && has("not found"))
            // The name is no network's name, but the IDs of several begin with it.
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

/// What is said of a daemon that is not there, without Docker's question to the operator.
pub(super) fn statement(said: &str) -> String {
    said.trim_end_matches("Is the docker daemon running?").trim_end_matches([' ', '.']).to_owned()
}

/// The line of a complaint that tells most, fit to be shown.
pub(super) fn first_line(finished: &Finished) -> String {
    finished.complaint(&["docker: ", "Error response from daemon: ", "Error: "])
}

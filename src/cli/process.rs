//! Shared code of the subcommands: reading files, and for master and agent the listening address,
//! signals and resource limits.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use libprocess::limits::Limits;
use libprocess::{Server, ServerOptions, TcpTransport};
use overlay_config::{AgentConfig, EnsembleSource, Problem, Problems, parse_agent};
use overlay_linux::source;
use overlay_types::addr::Ensemble;
use overlay_types::secret::show_path;
pub(super) use overlay_types::text::pluralize;
use overlay_types::warnings::Warnings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::output::print_error;
use crate::files::{open_without_waiting, read_up_to};

/// Longest text file. The parser of configurations has a stricter limit, with its own message.
pub(super) const FILE_MAX: u64 = 16 * 1024 * 1024;

/// Longest wait at the end of the process for a blocking operation, such as a read on a file
/// system that hangs.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of the libprocess transport of a master or an agent.
#[derive(Debug, Args)]
pub(super) struct TransportOptions {
    /// The address that is sent to peers, if it differs from the listening address
    #[arg(long, env = "MESOS_OVERLAY_ADVERTISE", value_name = "IP:PORT")]
    advertise: Option<SocketAddrV4>,
    /// Refuse messages whose sender names another address than that of the connection. Switch it
    /// off for peers behind NAT, or with several addresses
    #[arg(
        long,
        env = "MESOS_OVERLAY_REQUIRE_PEER_ADDRESS_IP_MATCH",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    require_peer_address_ip_match: bool,
}

impl TransportOptions {
    /// Returns whether the advertised address follows the host: it is neither configured nor the
    /// address of `listen`.
    pub(super) const fn follows_host(&self, listen: SocketAddrV4) -> bool {
        self.advertise.is_none() && listen.ip().is_unspecified()
    }

    /// Listens on `listen`, and determines the address to advertise. `peer` is the address of a
    /// peer, if one is known: the advertised address is that from which the peer is reached.
    pub(super) fn bind(
        &self,
        listen: SocketAddrV4,
        peer: Option<SocketAddrV4>,
        limits: Limits,
    ) -> Result<TcpTransport, Failure> {
        let server = Server::bind(listen).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::AddrInUse => {
                    "is another instance running? Mesos itself uses 5050 and 5051"
                }
                ErrorKind::AddrNotAvailable => "this host has no such address",
                ErrorKind::PermissionDenied => "ports below 1024 need root",
                _ => "it cannot be used",
            };
            let remedy = "--listen chooses another address";
            Failure::new(format!("listen on {listen}: {error}: {why}: {remedy}"))
        })?;
        let local = server.local_addr();
        let advertise = match self.advertise {
            Some(advertise) => advertise,
            None if local.ip().is_unspecified() => {
                SocketAddrV4::new(own_address(peer)?, local.port())
            }
            None => local,
        };
        let options = ServerOptions {
            require_peer_address_match: self.require_peer_address_ip_match,
            limits,
        };
        Ok(TcpTransport { server, options, advertise })
    }
}

/// Returns the address of this host from which `peer` is reached, or else that of the default
/// route.
fn own_address(peer: Option<SocketAddrV4>) -> Result<Ipv4Addr, Failure> {
    source::own_address(peer).map_err(|reason| {
        Failure::new(format!("find this host's address: {reason}: give it as --advertise IP:PORT"))
    })
}

/// Reads and checks a configuration file. Prints each problem in a line on stderr, and logs
/// warnings.
pub(super) fn read_config<T>(
    path: &Path,
    parse: impl Fn(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
) -> Result<T, Failure> {
    let file = display_name(path);
    let text = read_text(path)?;
    match parse(&file, &text) {
        Ok((config, warnings)) => {
            for warning in warnings {
                log::warn!("{warning}");
            }
            Ok(config)
        }
        Err(problems) => {
            print_error(&problems);
            Err(config_refused(&file, &problems))
        }
    }
}

/// Reads the agent_config at `path`; without a path, returns the default configuration.
pub(super) fn read_agent_config(path: Option<&Path>) -> Result<AgentConfig, Failure> {
    match path {
        Some(path) => read_config(path, parse_agent),
        None => Ok(AgentConfig::new(PathBuf::new())),
    }
}

/// Returns the address of the ensemble, and reads the file that contains it if there is one.
pub(super) fn read_ensemble(source: &EnsembleSource) -> Result<Ensemble, Failure> {
    match source {
        EnsembleSource::Address(ensemble) => Ok(ensemble.clone()),
        EnsembleSource::File(path) => {
            let failure = |error| Failure::new(format!("{}: {error}", path.display()));
            read_text(path)?.parse().map_err(failure)
        }
    }
}

/// Creates the failure for a configuration with these problems.
pub(super) fn config_refused(file: &str, problems: &Problems) -> Failure {
    let count = pluralize(problems.count() as u128, "problem");
    let object = if problems.count() == 1 { "it" } else { "them" };
    Failure::new(format!("{file}: {count}: fix {object} and try again"))
}

/// Returns the name of the file at `path` for messages.
pub(super) fn display_name(path: &Path) -> String {
    if is_stdin(path) { "stdin".to_owned() } else { show_path(path) }
}

/// Reads a text file of limited size; `-` is stdin.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    to_text(path, read_bytes(path, FILE_MAX)?)
}

fn to_text(path: &Path, bytes: Vec<u8>) -> Result<String, Failure> {
    // The error of the conversion would hold the text.
    String::from_utf8(bytes).map_err(|_| {
        let reason = "it is not UTF-8 text: save it as UTF-8";
        Failure::new(format!("read {}: {reason}", display_name(path)))
    })
}

/// Reads a text file again.
fn read_regular_file(path: &Path) -> Result<String, Failure> {
    let read = || {
        let mut file = open_without_waiting(path)?;
        if !file.metadata()?.is_file() {
            let reason = "it is no regular file, so it cannot be read again: restart the master, \
                          or give it a regular file";
            return Err(io::Error::other(reason));
        }
        read_up_to(&mut file, FILE_MAX)
    };
    read().map_err(|error| read_failure(path, &error)).and_then(|bytes| to_text(path, bytes))
}

/// Reads a file of at most `max` bytes; `-` is stdin.
pub(super) fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let bytes = if is_stdin(path) {
        read_up_to(&mut io::stdin().lock(), max)
    } else {
        File::open(path).and_then(|mut file| read_up_to(&mut file, max))
    };
    bytes.map_err(|error| read_failure(path, &error))
}

fn read_failure(path: &Path, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        ErrorKind::NotFound => format!("{error}: check the path"),
        _ => error.to_string(),
    };
    Failure::new(format!("read {}: {reason}", display_name(path)))
}

pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Raises the limit of descriptors to its maximum: the master needs one for each agent.
#[expect(clippy::disallowed_methods, reason = "this process is our own")]
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) =
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        log::warn!("raise the limit of open files to {:?}: {error}", limit.maximum);
    }
}

/// Reduces the limits to what the descriptors of this process allow, and sets a warning if that is
/// less than configured. Call this after [`raise_descriptor_limit`].
pub(super) fn fit_limits(limits: Limits, warnings: &Warnings) -> Limits {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let (limits, warning) = limits.fit_to_descriptors(descriptors);
    warnings.set("limits", warning);
    limits
}

/// Runs `main` on a new multi-threaded runtime. At the end, reads of files that hang are left to
/// the end of the process.
pub(super) fn run_to_end<T>(main: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let result = runtime.block_on(main);
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

/// Creates a multi-threaded tokio runtime.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))
}

/// Reads and checks a configuration file again, while the program runs. Returns each problem as a
/// sentence, and logs warnings.
pub(super) fn reread_config<T>(
    path: &Path,
    parse: impl Fn(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
) -> Result<T, Vec<String>> {
    if is_stdin(path) {
        let reason = "it came from stdin: restart the master, or give it a file";
        return Err(vec![format!("read the configuration again: {reason}")]);
    }
    let text = read_regular_file(path).map_err(|failure| vec![failure.to_string()])?;
    match parse(&display_name(path), &text) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            Ok(config)
        }
        Err(problems) => Err(problems.as_slice().iter().map(ToString::to_string).collect()),
    }
}

/// SIGHUP, the request to read the configuration again. After [`Self::watch`] the signal no longer
/// kills the process.
pub(super) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Starts to watch. Call this within a tokio runtime.
    #[expect(clippy::disallowed_methods, reason = "this process is our own")]
    pub(super) fn watch() -> Result<Self, Failure> {
        let signal = signal(SignalKind::hangup());
        signal.map(Self).map_err(|error| Failure::new(format!("listen for signals: {error}")))
    }

    /// Waits for the next SIGHUP.
    pub(super) async fn received(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        log::info!("reading the configuration again: SIGHUP");
    }
}

/// SIGTERM and SIGINT, the requests to stop. After [`Self::watch`] the signals no longer kill the
/// process.
pub(super) struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignals {
    /// Starts to watch. Call this within a tokio runtime.
    #[expect(clippy::disallowed_methods, reason = "this process is our own")]
    pub(super) fn watch() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::new(format!("listen for signals: {error}")))
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first signal.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => log::info!("stopping: SIGTERM"),
            _ = self.interrupt.recv() => log::info!("stopping: SIGINT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_beyond_limit_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(FILE_MAX).unwrap();
        assert_eq!(read_text(file.path()).unwrap().len() as u64, FILE_MAX);
        file.as_file().set_len(FILE_MAX + 1).unwrap();
        let path = file.path().display();
        assert_eq!(
            read_text(file.path()).unwrap_err().to_string(),
            format!("read {path}: it has more than 16 MiB: is it the right file?")
        );
    }
}

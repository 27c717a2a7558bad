//! What subcommands share: the configuration file, and for the two long-running ones addresses,
//! signals and limits.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::output::complain;
use crate::addr::Ensemble;
use crate::config::{EnsembleSource, Problem, Problems};
use crate::limits::Limits;
use crate::transport::libprocess::{Libprocess, Server, ServerOptions};
use crate::warnings::Warnings;
pub(super) use crate::words::counted;

/// More than any configuration; the parser has its own, stricter limit and words for it.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// Where a machine is reached.
#[derive(Debug, Args)]
pub(super) struct Addresses {
    /// The address that peers are told, where it is not the one listened on
    #[arg(long, env = "MESOS_OVERLAY_ADVERTISE", value_name = "IP:PORT")]
    advertise: Option<SocketAddrV4>,
    /// Refuse messages whose sender's address is not the one that they come from. Switch it off for
    /// peers behind NAT, or with several addresses
    #[arg(
        long,
        env = "MESOS_OVERLAY_REQUIRE_PEER_ADDRESS_IP_MATCH",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    require_peer_address_ip_match: bool,
}

impl Addresses {
    /// Listens on `listen`, and says under which address peers reach that. `towards` is where the
    /// peers are, if that is known.
    pub(super) fn bind(
        &self,
        listen: SocketAddrV4,
        towards: Option<SocketAddrV4>,
        limits: Limits,
    ) -> Result<Libprocess, Failure> {
        let server = Server::bind(listen).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::AddrInUse => "is another one running? Mesos itself has 5050 and 5051",
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
                SocketAddrV4::new(own_address(towards)?, local.port())
            }
            None => local,
        };
        let options = ServerOptions {
            require_peer_address_match: self.require_peer_address_ip_match,
            limits,
        };
        Ok(Libprocess { server, options, advertise })
    }
}

/// The address of this host from which `towards` is reached, or else anybody: the kernel's choice
/// of a source address. Nothing is sent.
pub(super) fn own_address(towards: Option<SocketAddrV4>) -> Result<Ipv4Addr, Failure> {
    // 192.0.2.1 is nobody (RFC 5737): the way there is the default route.
    let towards = towards.unwrap_or(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));
    match source_towards(None, towards.into()) {
        Ok(IpAddr::V4(own)) if !own.is_unspecified() => Ok(own),
        Ok(_) => Err(no_address("the kernel names none")),
        Err(error) => Err(no_address(&error.to_string())),
    }
}

/// The address that the kernel would send from, of its own choice unless `from` is given; an error
/// if it has no way there. Nothing is sent.
pub(super) fn source_towards(from: Option<IpAddr>, to: SocketAddr) -> io::Result<IpAddr> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.connect(to)?;
    socket.local_addr().map(|local| local.ip())
}

fn no_address(reason: &str) -> Failure {
    Failure::new(format!("find this host's address: {reason}: give it as --advertise IP:PORT"))
}

/// Reads and checks a configuration file. Its problems go to stderr, a line each; its warnings to
/// the log.
pub(super) fn read_config<T>(
    path: &Path,
    parse: impl Fn(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
) -> Result<T, Failure> {
    let file = name_of(path);
    let text = read_text(path)?;
    match parse(&file, &text) {
        Ok((config, warnings)) => {
            for warning in warnings {
                log::warn!("{warning}");
            }
            Ok(config)
        }
        Err(problems) => {
            complain(&problems);
            Err(refused(&file, &problems))
        }
    }
}

/// The address itself, which may be in a file.
pub(super) fn read_ensemble(source: &EnsembleSource) -> Result<Ensemble, Failure> {
    match source {
        EnsembleSource::Address(ensemble) => Ok(ensemble.clone()),
        EnsembleSource::File(path) => {
            let failure = |error| Failure::new(format!("{}: {error}", path.display()));
            read_text(path)?.parse().map_err(failure)
        }
    }
}

/// Why a configuration with these problems is not used.
pub(super) fn refused(file: &str, problems: &Problems) -> Failure {
    let count = counted(problems.count() as u128, "problem");
    let them = if problems.count() == 1 { "it" } else { "them" };
    Failure::new(format!("{file}: {count}: mend {them} and try again"))
}

/// What the file at `path` is called in messages.
pub(super) fn name_of(path: &Path) -> String {
    if is_stdin(path) { "stdin".to_owned() } else { path.display().to_string() }
}

/// Reads a text file of limited size; `-` is stdin.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read_bytes(path, FILE_MAX)?;
    String::from_utf8(bytes).map_err(|_| {
        let reason = "it is no text in UTF-8: save it as such";
        Failure::new(format!("read {}: {reason}", name_of(path)))
    })
}

/// Reads a file of at most `max` bytes; `-` is stdin.
pub(super) fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        let length = source.take(max + 1).read_to_end(&mut bytes)?;
        if u64::try_from(length).is_ok_and(|length| length > max) {
            let mebibytes = max / (1024 * 1024);
            return Err(io::Error::new(
                ErrorKind::FileTooLarge,
                format!("it has more than {mebibytes} MiB: is it the right file?"),
            ));
        }
        Ok(bytes)
    };
    let bytes = if is_stdin(path) {
        read(&mut io::stdin().lock())
    } else {
        File::open(path).and_then(|mut file| read(&mut file))
    };
    bytes.map_err(|error: io::Error| {
        let reason = match error.kind() {
            ErrorKind::NotFound => format!("{error}: check the path"),
            _ => error.to_string(),
        };
        Failure::new(format!("read {}: {reason}", name_of(path)))
    })
}

pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Lets the program have as many descriptors as it may: one for each agent and some more.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) =
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        log::warn!("raise the limit of open files to {:?}: {error}", limit.maximum);
    }
}

/// The limits as far as the descriptors of this process allow them. If that is not as far as they
/// are configured, `warnings` says so. To be called when the limit of descriptors has been raised.
pub(super) fn fitted(limits: Limits, warnings: &Warnings) -> Limits {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let (limits, warning) = limits.fit_to_descriptors(descriptors);
    warnings.set("limits", warning);
    limits
}

/// The tokio runtime of the program.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))
}

/// Reads and checks a configuration file once more, while the program runs: every problem is a
/// sentence, and warnings go to the log.
pub(super) fn reread_config<T>(
    path: &Path,
    parse: impl Fn(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
) -> Result<T, Vec<String>> {
    if is_stdin(path) {
        let reason = "it came from stdin: restart the master, or give it a file";
        return Err(vec![format!("read the configuration again: {reason}")]);
    }
    let text = read_text(path).map_err(|failure| vec![failure.to_string()])?;
    match parse(&name_of(path), &text) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            Ok(config)
        }
        Err(problems) => Err(problems.as_slice().iter().map(ToString::to_string).collect()),
    }
}

/// Somebody's wish that the program reads its configuration again: SIGHUP, which no longer kills it
/// from [`Self::watch`] on.
pub(super) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// To be called within a tokio runtime.
    pub(super) fn watch() -> Result<Self, Failure> {
        let signal = signal(SignalKind::hangup());
        signal.map(Self).map_err(|error| Failure::new(format!("listen for signals: {error}")))
    }

    /// Waits for it.
    pub(super) async fn received(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        log::info!("reading the configuration again: SIGHUP");
    }
}

/// Somebody's wish that the program ends: SIGTERM or SIGINT. From [`Self::watch`] on they no longer
/// kill it.
pub(super) struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// To be called within a tokio runtime.
    pub(super) fn watch() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::new(format!("listen for signals: {error}")))
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    /// Waits for it.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => log::info!("ending: SIGTERM"),
            _ = self.interrupt.recv() => log::info!("ending: SIGINT"),
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

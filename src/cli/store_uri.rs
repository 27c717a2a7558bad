//! Names of the stores that `export` and `import` use: the stores of a master, and the directory of
//! a replicated log of Mesos that no mesos-master has open.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use overlay_config::{EnsembleSource, MasterConfig, StoreKind, StoreKindError, parse_master};
use overlay_store::{Archive, FileStore, LogDirectory, ZooKeeperStore};
use overlay_types::addr::Ensemble;
use overlay_types::protocol::Network;
use overlay_types::state::StoreError;
use overlay_zookeeper::detector::list_candidates;
use overlay_zookeeper::session::SESSION_TIMEOUTS;

use super::Failure;
use super::process::{read_config, read_ensemble, runtime};

/// Prefix of the directory of a replicated log.
const LOG_PREFIX: &str = "log:";

/// Flags for opening a store.
#[derive(Debug, Args)]
pub(super) struct StoreOptions {
    /// The directory of the state, with the store 'file'. It is that of the master
    #[arg(
        long,
        env = "MESOS_OVERLAY_WORK_DIR",
        value_name = "DIR",
        default_value = MasterConfig::WORK_DIR_DEFAULT
    )]
    work_dir: PathBuf,
    /// The timeout of the session with ZooKeeper. After it, the command fails
    #[arg(
        long,
        env = "MESOS_OVERLAY_ZK_SESSION_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_session_timeout
    )]
    zk_session_timeout: Duration,
    /// The network file or master_config. The state of the C++ modules contains the
    /// network, so the file is required to write one
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The name of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreUri {
    /// A store of an overlay master.
    Store(StoreKind),
    /// The directory of a replicated log.
    ReplicatedLog(PathBuf),
}

/// Why a text names no store. The messages omit the text, which may contain a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreUriError {
    #[error(
        "is no store: write file, zk://HOST:PORT,…/PATH, file:///PATH of a file that holds such an \
         address, or log:DIR for a replicated log of Mesos"
    )]
    Unknown,
    #[error(
        "the state in memory ends with its master: a running master shows it at \
         /overlay-master/state"
    )]
    Memory,
    #[error("log: names no directory: append it, as in log:/var/lib/mesos/overlay_replicated_log")]
    NoDirectory,
    #[error(transparent)]
    Ensemble(StoreKindError),
}

impl StoreUri {
    /// Parses the value of `flag`.
    pub(super) fn from_flag(flag: &str, text: &str) -> Result<Self, Failure> {
        text.parse().map_err(|error| Failure::usage(format!("{flag}: {error}")))
    }
}

impl FromStr for StoreUri {
    type Err = StoreUriError;

    fn from_str(text: &str) -> Result<Self, StoreUriError> {
        match text.strip_prefix(LOG_PREFIX) {
            Some("") => return Err(StoreUriError::NoDirectory),
            Some(directory) => return Ok(Self::ReplicatedLog(directory.into())),
            None => {}
        }
        match text.parse() {
            Ok(StoreKind::Memory) => Err(StoreUriError::Memory),
            Ok(kind) => Ok(Self::Store(kind)),
            Err(StoreKindError::Unknown) => Err(StoreUriError::Unknown),
            Err(error) => Err(StoreUriError::Ensemble(error)),
        }
    }
}

/// An opened store. The store itself may not exist yet.
pub(super) struct OpenedArchive {
    pub(super) archive: Box<dyn Archive>,
    /// Name of the store in messages.
    pub(super) name: String,
    /// The ensemble in which the masters of the store are elected.
    ensemble: Option<Ensemble>,
}

impl StoreOptions {
    /// Returns the network of the file of `--config`, if it was given.
    pub(super) fn network(&self) -> Result<Option<Arc<Network>>, Failure> {
        let config = self.config.as_deref().map(|path| read_config(path, parse_master));
        Ok(config.transpose()?.map(|config| Arc::new(config.network)))
    }

    /// Opens the store. This creates and writes nothing.
    pub(super) fn open(
        &self,
        uri: &StoreUri,
        network: Option<Arc<Network>>,
    ) -> Result<OpenedArchive, Failure> {
        fn opened(archive: impl Archive + fmt::Display + 'static) -> OpenedArchive {
            OpenedArchive { name: archive.to_string(), archive: Box::new(archive), ensemble: None }
        }
        match uri {
            StoreUri::ReplicatedLog(directory) => {
                Ok(opened(LogDirectory::new(directory.clone(), network)))
            }
            StoreUri::Store(StoreKind::ZooKeeper(source)) => {
                let (store, ensemble) = open_zookeeper(source, self.zk_session_timeout)?;
                Ok(OpenedArchive { ensemble: Some(ensemble), ..opened(store) })
            }
            StoreUri::Store(_) => Ok(opened(FileStore::at(&self.work_dir))),
        }
    }

    /// Fails if masters take part in the election of a ZooKeeper store. The other stores are locked
    /// while a master runs.
    pub(super) fn refuse_running_masters(&self, store: &OpenedArchive) -> Result<(), Failure> {
        let Some(ensemble) = &store.ensemble else { return Ok(()) };
        let candidates = runtime()?.block_on(list_candidates(ensemble, self.zk_session_timeout));
        let candidates = candidates.map_err(|failure| {
            Failure::new(format!("{}: read the election: {failure}", store.name))
        })?;
        if candidates.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{}: masters are running ({}): stop them all first; a killed master disappears after \
             its session timeout",
            store.name,
            candidates.join(", ")
        )))
    }
}

/// Opens the ZooKeeper store at `source`, and returns it with its ensemble.
pub(super) fn open_zookeeper(
    source: &EnsembleSource,
    session_timeout: Duration,
) -> Result<(ZooKeeperStore, Ensemble), Failure> {
    let ensemble =
        read_ensemble(source).map_err(|failure| Failure::new(format!("store: {failure}")))?;
    let store = ZooKeeperStore::new(ensemble.clone(), session_timeout)
        .map_err(|error| Failure::new(format!("start a thread: {error}")))?;
    Ok((store, ensemble))
}

/// Parses the value of a `--zk-session-timeout`.
pub(super) fn parse_session_timeout(text: &str) -> Result<Duration, String> {
    let expected = "write a number and a unit, 1s to 1h, as in 10s";
    let timeout =
        humantime::parse_duration(text).map_err(|error| format!("{error}: {expected}"))?;
    if SESSION_TIMEOUTS.contains(&timeout) { Ok(timeout) } else { Err(expected.to_owned()) }
}

/// Creates the failure for a flag that requires `--config`.
pub(super) fn network_required(flag: &str) -> Failure {
    Failure::usage(format!("{flag}: the C++ modules need the network: give its file as --config"))
}

pub(super) fn store_failure(error: StoreError) -> Failure {
    Failure::new(error.to_string())
}

//! Where a state is that is moved: the stores of the master by the names that it has for them, and
//! besides the replicated log of Mesos as a directory, while no mesos-master has it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::host::{read_config, read_ensemble, runtime};
use super::master::parse_session_timeout;
use crate::addr::Ensemble;
use crate::config::{MasterConfig, StoreKind, StoreKindError, parse_master};
use crate::detector::candidates;
use crate::protocol::Network;
use crate::store::{Archive, FileStore, LogDirectory, StoreError, ZooKeeperStore};

/// What stands before the directory of a log.
const LOG: &str = "log:";

/// How a store is reached.
#[derive(Debug, Args)]
pub(super) struct StoreOptions {
    /// With the store 'file': the work directory of its master
    #[arg(
        long,
        env = "MESOS_OVERLAY_WORK_DIR",
        value_name = "DIR",
        default_value = MasterConfig::WORK_DIR_DEFAULT
    )]
    work_dir: PathBuf,
    /// With ZooKeeper: after how long without a word from it this is given up
    #[arg(
        long,
        env = "MESOS_OVERLAY_ZK_SESSION_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_session_timeout
    )]
    zk_session_timeout: Duration,
    /// The network file or master_config of the cluster, from which the C++ modules are told what
    /// agents have: needed to write for them
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The name of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One of those that a master has.
    Kept(StoreKind),
    /// A replicated log.
    Log(PathBuf),
}

/// Why a text names no store. The text is not repeated: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error(
        "is no store: write file, zk://HOST:PORT,…/PATH, file:///PATH of a file that holds such an \
         address, or log:DIR for a replicated log of Mesos"
    )]
    Unknown,
    #[error(
        "memory is gone with its master: a running one shows its state at /overlay-master/state"
    )]
    Memory,
    #[error(
        "log: names no directory: write it behind, as in log:/var/lib/mesos/overlay_replicated_log"
    )]
    NoDirectory,
    #[error(transparent)]
    Ensemble(StoreKindError),
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text.strip_prefix(LOG) {
            Some("") => return Err(PlaceError::NoDirectory),
            Some(directory) => return Ok(Self::Log(directory.into())),
            None => {}
        }
        match text.parse() {
            Ok(StoreKind::Memory) => Err(PlaceError::Memory),
            Ok(kind) => Ok(Self::Kept(kind)),
            Err(StoreKindError::Unknown) => Err(PlaceError::Unknown),
            Err(error) => Err(PlaceError::Ensemble(error)),
        }
    }
}

/// A store that is there or may be made.
pub(super) struct Opened {
    pub(super) archive: Box<dyn Archive>,
    /// As messages name it.
    pub(super) name: String,
    /// Where its masters are elected.
    ensemble: Option<Ensemble>,
}

impl StoreOptions {
    /// The network, if it was given.
    pub(super) fn network(&self) -> Result<Option<Arc<Network>>, Failure> {
        let config = self.config.as_deref().map(|path| read_config(path, parse_master));
        Ok(config.transpose()?.map(|config| Arc::new(config.network)))
    }

    /// Nothing is made or written by it.
    pub(super) fn open(
        &self,
        place: &Place,
        network: Option<Arc<Network>>,
    ) -> Result<Opened, Failure> {
        fn opened(archive: impl Archive + fmt::Display + 'static) -> Opened {
            Opened { name: archive.to_string(), archive: Box::new(archive), ensemble: None }
        }
        match place {
            Place::Log(directory) => Ok(opened(LogDirectory::new(directory.clone(), network))),
            Place::Kept(StoreKind::ZooKeeper(source)) => {
                let ensemble = read_ensemble(source)
                    .map_err(|failure| Failure::new(format!("store: {failure}")))?;
                let store = ZooKeeperStore::new(ensemble.clone(), self.zk_session_timeout)
                    .map_err(|error| Failure::new(format!("start a thread: {error}")))?;
                Ok(Opened { ensemble: Some(ensemble), ..opened(store) })
            }
            Place::Kept(_) => Ok(opened(FileStore::at(&self.work_dir))),
        }
    }

    /// Fails if masters stand for election. Those with other stores hold a lock while they run.
    pub(super) fn refuse_running_masters(&self, store: &Opened) -> Result<(), Failure> {
        let Some(ensemble) = &store.ensemble else { return Ok(()) };
        let candidates = runtime()?.block_on(candidates(ensemble, self.zk_session_timeout));
        let candidates = candidates.map_err(|failure| {
            Failure::new(format!("{}: read the election: {failure}", store.name))
        })?;
        if candidates.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{}: masters are running ({}): stop them all first; who was killed is gone after its \
             session timeout",
            store.name,
            candidates.join(", ")
        )))
    }
}

pub(super) fn failure(error: StoreError) -> Failure {
    Failure::new(error.to_string())
}

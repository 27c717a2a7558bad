//! A store in ZooKeeper, for several masters: one znode for each agent, and one atomic request for
//! each commit.
//!
//! The epoch decides which master can write, not the session (see `epoch`): an expired session is
//! replaced without effect on the state. An operation whose result is unknown, because the
//! connection was lost, counts as failed. The next load determines the result: it begins a new
//! epoch, after which no earlier request can write, and reads the state.
//!
//! The session runs on a separate runtime with one thread, so that the session stays alive while
//! the store thread is idle.

mod batch;
mod epoch;
mod layout;
mod snapshot;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use overlay_zookeeper::session::{Session, SessionError};
use tokio::runtime::{Builder, Runtime};

use self::epoch::{EpochError, EpochHandle, OnMissing};
use self::layout::{Head, Layout};
use crate::{
    Archive, Change, EpochPurpose, Loaded, Replacement, Snapshot, Store, replace_by_commit,
};

/// A store in ZooKeeper, below the path of an ensemble.
#[derive(Debug)]
pub struct ZooKeeperStore {
    ensemble: Ensemble,
    session_timeout: Duration,
    /// `None` only while the store is dropped.
    runtime: Option<Runtime>,
    /// `None` before the first load, and after an error until the next load.
    handle: Option<EpochHandle>,
    /// Whether the state existed at an earlier load. A state that vanished is an error, not an
    /// empty state.
    existed: bool,
    /// Number of replies of the servers.
    replies: Arc<AtomicU64>,
}

impl ZooKeeperStore {
    /// Creates a handle on the state in `ensemble`. The first load connects to the servers, and
    /// creates missing znodes.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn new(ensemble: Ensemble, session_timeout: Duration) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("overlay-zk")
            .enable_time()
            .build()?;
        let runtime = Some(runtime);
        let replies = Arc::default();
        Ok(Self { ensemble, session_timeout, runtime, handle: None, existed: false, replies })
    }

    fn block_on<T>(
        &self,
        work: impl Future<Output = Result<T, EpochError>>,
    ) -> Result<T, EpochError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(EpochError::Failed("the store is closed".to_owned())),
        }
    }

    async fn open_session(&self) -> Result<Session, SessionError> {
        let session = Session::open(&self.ensemble, self.session_timeout).await?;
        Ok(session.with_counter(&self.replies))
    }

    fn error(&self, action: &'static str, error: EpochError) -> StoreError {
        let store = self.to_string();
        match error {
            EpochError::Ended(epoch) => StoreError::EpochEnded { store, epoch },
            EpochError::Failed(reason) => StoreError::Failed { store, action, reason },
        }
    }
}

/// Decodes and encodes the path and the content of a znode, for fuzzing. Returns `None` if no state
/// has such a znode. `path` is relative to the root of the state.
#[doc(hidden)]
#[must_use]
pub fn roundtrip_znode(path: &str, content: &[u8]) -> Option<(String, Vec<u8>)> {
    let layout = Layout::under("");
    let (path, content) = if path == "head" {
        (layout.head(), Head::parse(content).ok()?.to_bytes())
    } else if let Some(part) = path.strip_prefix("pending/") {
        (layout.part(part.parse().ok()?), batch::encode(&batch::decode(content)?))
    } else {
        let (group, name) = path.strip_prefix("agents/")?.split_once('/')?;
        (layout.record(layout::record_key(group.parse().ok()?, name)?), content.to_vec())
    };
    let path = path.strip_prefix(layout.root())?.strip_prefix('/')?;
    Some((path.to_owned(), content))
}

impl ZooKeeperStore {
    fn begin_epoch(
        &mut self,
        on_missing: OnMissing,
        purpose: EpochPurpose,
    ) -> Result<Loaded, StoreError> {
        let former_session = self.handle.take().map(|handle| handle.session);
        let store_uri = self.to_string();
        let begin = async {
            let session = match former_session.filter(|session| !session.has_ended()) {
                Some(session) => session,
                None => self.open_session().await?,
            };
            let layout = Layout::under(self.ensemble.path());
            EpochHandle::begin(session, layout, on_missing, (purpose, &store_uri)).await
        };
        let begun = self.block_on(begin);
        let (handle, records) = begun.map_err(|error| self.error("load", error))?;
        if !records.unknown_paths.is_empty() {
            let count = records.unknown_paths.len();
            log::warn!("{self}: kept and not used: {count} znodes that are no records");
        }
        let loaded = Loaded {
            epoch: Epoch(handle.epoch),
            version: Version(handle.version),
            records: records.by_key.into_iter().collect(),
        };
        self.handle = Some(handle);
        self.existed = true;
        Ok(loaded)
    }

    /// Returns the paths of the znodes of the state, the root first, without the records.
    #[must_use]
    pub fn znodes(&self) -> Vec<String> {
        let layout = Layout::under(self.ensemble.path());
        let mut znodes = vec![layout.root().to_owned(), layout.epoch(), layout.head()];
        znodes.extend([layout.pending(), layout.agents()]);
        znodes.extend((0..=u8::MAX).map(|group| layout.group(group)));
        znodes
    }
}

impl Archive for ZooKeeperStore {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let read = async {
            let session = Session::open(&self.ensemble, self.session_timeout).await?;
            snapshot::read_snapshot(session, Layout::under(self.ensemble.path())).await
        };
        self.block_on(read).map_err(|error| self.error("read", error))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError> {
        let loaded =
            self.begin_epoch(OnMissing::CreateUnfinished, EpochPurpose::Replace(former))?;
        replace_by_commit(self, &loaded, records)
    }
}

impl Store for ZooKeeperStore {
    fn activity(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.replies))
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let on_missing = if self.existed { OnMissing::Fail } else { OnMissing::Create };
        self.begin_epoch(on_missing, EpochPurpose::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(mut handle) = self.handle.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(self.error("commit", EpochError::Failed(reason)));
        };
        if handle.epoch != epoch.0 {
            self.handle = Some(handle);
            return Err(self.error("commit", EpochError::Ended(epoch.0)));
        }
        let write = async {
            if handle.session.has_ended() {
                handle.set_session(self.open_session().await?);
            }
            handle.commit(changes).await
        };
        let result = self.block_on(write);
        if matches!(result, Ok(_) | Err(EpochError::Ended(_))) {
            self.handle = Some(handle);
        }
        result.map(Version).map_err(|error| self.error("commit", error))
    }
}

impl fmt::Display for ZooKeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ensemble)
    }
}

impl Drop for ZooKeeperStore {
    fn drop(&mut self) {
        self.handle = None;
        if let Some(runtime) = self.runtime.take() {
            // Does not wait for the runtime, which would panic inside another runtime. Nothing is
            // lost: the state has no ephemeral znodes.
            runtime.shutdown_background();
        }
    }
}

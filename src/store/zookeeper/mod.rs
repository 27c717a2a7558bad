//! A state in ZooKeeper, for several masters: one znode for each agent, and one request for each
//! commit, which the servers carry out as a whole or not at all.
//!
//! Who writes is decided by the epoch and not by the session (see `tenure`): a session that has
//! expired is replaced without anybody noticing. An operation whose end is not known, since the
//! connection was lost, has failed, and the next load finds out what became of it: it begins an
//! epoch, after which nothing earlier can be written any more, and reads.
//!
//! The session has a runtime of its own with one thread, so that it is kept alive while the thread
//! of the store waits for something to do.

mod batch;
mod layout;
mod look;
mod tenure;

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use self::layout::{Head, Layout};
use self::tenure::{Fault, Missing, Tenure};
use super::{
    Archive, Begin, Change, Counts, Epoch, Key, Loaded, Replaced, Snapshot, Store, StoreError,
    Version, replace_by_commit,
};
use crate::addr::Ensemble;
use crate::zookeeper::Session;

/// A state in ZooKeeper, below the path of an ensemble.
#[derive(Debug)]
pub struct ZooKeeperStore {
    ensemble: Ensemble,
    session_timeout: Duration,
    /// There is one until the end.
    runtime: Option<Runtime>,
    /// `None` before the first load, and after an error until the next one.
    tenure: Option<Tenure>,
    /// Whether there was a state: one that vanished is an error, and no empty state.
    was_there: bool,
}

impl ZooKeeperStore {
    /// A handle on the state in `ensemble`. Nothing is asked of the servers before the first load,
    /// which makes what is missing.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn new(ensemble: Ensemble, session_timeout: Duration) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("overlay-zk")
            .enable_time()
            .build()?;
        let runtime = Some(runtime);
        Ok(Self { ensemble, session_timeout, runtime, tenure: None, was_there: false })
    }

    fn block_on<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(Fault::Failed("it is closed".to_owned())),
        }
    }

    fn error(&self, action: &'static str, fault: Fault) -> StoreError {
        let store = self.to_string();
        match fault {
            Fault::Deposed(epoch) => StoreError::Deposed { store, epoch },
            Fault::Failed(reason) => StoreError::Failed { store, action, reason },
        }
    }
}

/// The path below the state and the content of a znode, read and written again: for fuzzing. `None`
/// if no state has such a znode.
#[doc(hidden)]
#[must_use]
pub fn reread_znode(path: &str, content: &[u8]) -> Option<(String, Vec<u8>)> {
    let layout = Layout::under("");
    let (path, content) = if path == "head" {
        (layout.head(), Head::parse(content).ok()?.to_bytes())
    } else if let Some(part) = path.strip_prefix("pending/") {
        (layout.part(part.parse().ok()?), batch::encode(&batch::decode(content)?))
    } else {
        let (group, name) = path.strip_prefix("agents/")?.split_once('/')?;
        (layout.record(layout::key_of(group.parse().ok()?, name)?), content.to_vec())
    };
    let path = path.strip_prefix(layout.root())?.strip_prefix('/')?;
    Some((path.to_owned(), content))
}

impl ZooKeeperStore {
    fn begin(&mut self, missing: Missing, begin: Begin) -> Result<Loaded, StoreError> {
        let earlier = self.tenure.take().map(|tenure| tenure.session);
        let place = self.to_string();
        let begin = async {
            let session = match earlier.filter(|session| !session.has_ended()) {
                Some(session) => session,
                None => Session::open(&self.ensemble, self.session_timeout).await?,
            };
            let layout = Layout::under(self.ensemble.path());
            Tenure::begin(session, layout, missing, (begin, &place)).await
        };
        let begun = self.block_on(begin);
        let (tenure, begun) = begun.map_err(|fault| self.error("load", fault))?;
        if !begun.unreadable.is_empty() {
            let count = begun.unreadable.len();
            log::warn!("{self}: kept and not used: {count} znodes that are no records");
        }
        let records = begun.records.into_iter();
        let loaded = Loaded {
            epoch: Epoch(tenure.epoch),
            version: Version(tenure.version),
            records: records.collect(),
        };
        self.tenure = Some(tenure);
        self.was_there = true;
        Ok(loaded)
    }
}

impl ZooKeeperStore {
    /// The znodes of a state, the root first, without its records.
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
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let look = async {
            let session = Session::open(&self.ensemble, self.session_timeout).await?;
            look::look(session, Layout::under(self.ensemble.path())).await
        };
        self.block_on(look).map_err(|fault| self.error("read", fault))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError> {
        let loaded = self.begin(Missing::MakeUnfinished, Begin::Replace(former))?;
        replace_by_commit(self, &loaded, records)
    }
}

impl Store for ZooKeeperStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let missing = if self.was_there { Missing::Refuse } else { Missing::Make };
        self.begin(missing, Begin::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(mut tenure) = self.tenure.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(self.error("commit", Fault::Failed(reason)));
        };
        if tenure.epoch != epoch.0 {
            self.tenure = Some(tenure);
            return Err(self.error("commit", Fault::Deposed(epoch.0)));
        }
        let write = async {
            if tenure.session.has_ended() {
                tenure.resume(Session::open(&self.ensemble, self.session_timeout).await?);
            }
            tenure.commit(changes).await
        };
        let result = self.block_on(write);
        if matches!(result, Ok(_) | Err(Fault::Deposed(_))) {
            self.tenure = Some(tenure);
        }
        result.map(Version).map_err(|fault| self.error("commit", fault))
    }
}

impl fmt::Display for ZooKeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ensemble)
    }
}

impl Drop for ZooKeeperStore {
    fn drop(&mut self) {
        self.tenure = None;
        if let Some(runtime) = self.runtime.take() {
            // Without waiting, which is not allowed everywhere. Nothing is lost: no znode of the
            // state goes with the session.
            runtime.shutdown_background();
        }
    }
}

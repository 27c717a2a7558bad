//! One epoch of the state in ZooKeeper: its start and its commits.
//!
//! Every write request checks the version of the znode `epoch`, and every new epoch increments that
//! version. So the servers refuse a request of an earlier epoch, however late it arrives. The
//! session that sent the request does not matter, and need not have ended.

use std::collections::{BTreeMap, HashSet};

use overlay_types::state::{Counts, Key};
use overlay_zookeeper::session::{Session, SessionError};
use zookeeper_client::{CreateMode, Error, MultiWriteError, MultiWriter};

use super::batch::{self, Write};
use super::layout::{Head, Layout, record_key};
use crate::{EpochPurpose, STATE_BYTES_MAX, with_counts_remedy};

/// Number of attempts to begin an epoch while other masters begin epochs.
const ATTEMPTS: usize = 20;

/// Number of records that are requested at a time. The window keeps the servers busy, and even slow
/// servers can reply before the timeout.
const WINDOW: usize = 1000;

/// Why an operation failed.
#[derive(Debug)]
pub(super) enum EpochError {
    /// The epoch with this number has ended, because a later epoch has begun. Nothing was written.
    Ended(u64),
    /// Any other reason. The write may or may not be durable.
    Failed(String),
}

impl From<SessionError> for EpochError {
    fn from(error: SessionError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The records of a state.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) by_key: BTreeMap<Key, Vec<u8>>,
    /// The paths of znodes that are no record of this version.
    pub(super) unknown_paths: Vec<String>,
}

/// The action at the start of an epoch if ZooKeeper has no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMissing {
    /// Creates an empty state.
    Create,
    /// Creates a state that no master loads before the first commit. Also accepts such a state from
    /// an interrupted import.
    CreateUnfinished,
    /// Fails: the state existed at an earlier load.
    Fail,
}

/// A handle on one epoch. A later epoch may have begun.
#[derive(Debug)]
pub(super) struct EpochHandle {
    pub(super) session: Session,
    pub(super) layout: Layout,
    /// The name of the store for `mesos-overlay export`.
    store_uri: String,
    pub(super) epoch: u64,
    /// The version of the znode `epoch`.
    fence: i32,
    pub(super) version: u64,
    /// The keys of all records that exist.
    existing: HashSet<Key>,
}

impl EpochHandle {
    /// Creates a handle without an epoch, which can only read.
    pub(super) fn read_only(session: Session, layout: Layout) -> Self {
        let (store_uri, existing) = (String::new(), HashSet::new());
        Self { session, layout, store_uri, epoch: 0, fence: 0, version: 0, existing }
    }

    /// Begins an epoch and reads all records. `store_uri` is the name of the store for
    /// `mesos-overlay export`.
    pub(super) async fn begin(
        session: Session,
        layout: Layout,
        on_missing: OnMissing,
        (purpose, store_uri): (EpochPurpose, &str),
    ) -> Result<(Self, Records), EpochError> {
        let mut handle = Self::read_only(session, layout);
        store_uri.clone_into(&mut handle.store_uri);
        handle.bump_epoch(on_missing, purpose).await?;
        // From here on, only a master that has begun a later epoch can write.
        let (head, _) = handle.read_head().await?;
        if head.is_unfinished() && on_missing != OnMissing::CreateUnfinished {
            return Err(handle.unfinished_import_error());
        }
        // The first commit writes this version.
        let counts = Counts { epoch: 0, version: head.version };
        let begun = purpose.next_counts(counts);
        let path = handle.layout.head();
        handle.version = begun.map_err(|reason| handle.counts_error(&path, &reason))?.version;
        let mut records = handle.read_records().await?;
        handle.existing = records.by_key.keys().copied().collect();
        handle.finish_pending(head, &mut records.by_key).await?;
        handle.check_fence().await?;
        Ok((handle, records))
    }

    /// Increments the epoch, which fences all earlier epochs.
    async fn bump_epoch(
        &mut self,
        on_missing: OnMissing,
        purpose: EpochPurpose,
    ) -> Result<(), EpochError> {
        let path = self.layout.epoch();
        let mut is_foreign = false;
        for _ in 0..ATTEMPTS {
            let client = self.session.client();
            let (bytes, stat) = match self.session.with_timeout(client.get_data(&path)).await {
                Ok(found) => found,
                Err(Error::NoNode) => {
                    // All znodes of a state are created at once.
                    if is_foreign {
                        return Err(self.foreign_root_error());
                    }
                    let head = match on_missing {
                        OnMissing::Create => Head::new(0, 0),
                        OnMissing::CreateUnfinished => Head::unfinished(),
                        OnMissing::Fail => return Err(self.missing_state_error()),
                    };
                    is_foreign = !self.create_state(head).await?;
                    continue;
                }
                Err(error) => return Err(self.session.error(&path, &error).into()),
            };
            let last = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<u64>().ok());
            let last = last.ok_or_else(|| self.damaged_error(&path, "it is no number"))?;
            let begun = purpose.next_counts(Counts { epoch: last, version: 0 });
            let epoch = begun.map_err(|reason| self.counts_error(&path, &reason))?.epoch;
            let text = epoch.to_string();
            let set = client.set_data(&path, text.as_bytes(), Some(stat.version));
            match self.session.with_timeout(set).await {
                Ok(stat) => {
                    self.epoch = epoch;
                    self.fence = stat.version;
                    return Ok(());
                }
                Err(Error::BadVersion) => {}
                Err(error) => return Err(self.session.error(&path, &error).into()),
            }
        }
        Err(EpochError::Failed(format!(
            "{path}: other masters begin epochs continuously: check which masters use this path"
        )))
    }

    /// Creates an empty state in one request. Returns false if its root exists, for example because
    /// another master created the state meanwhile.
    async fn create_state(&self, head: Head) -> Result<bool, EpochError> {
        self.session.create_path().await?;
        let root = self.layout.root();
        let mut multi = self.session.client().new_multi_writer();
        self.map_add_error(self.add_empty_state(&mut multi, head))?;
        match self.session.with_timeout(multi.commit()).await {
            Ok(_) => Ok(true),
            Err(Error::NodeExists) => Ok(false),
            Err(error) => Err(self.session.error(root, &error).into()),
        }
    }

    fn add_empty_state(&self, multi: &mut MultiWriter<'_>, head: Head) -> Result<(), Error> {
        let options = self.session.private(CreateMode::Persistent);
        multi.add_create(self.layout.root(), b"", &options)?;
        multi.add_create(&self.layout.epoch(), b"0", &options)?;
        multi.add_create(&self.layout.head(), &head.to_bytes(), &options)?;
        multi.add_create(&self.layout.pending(), b"", &options)?;
        multi.add_create(&self.layout.agents(), b"", &options)?;
        for group in 0..=u8::MAX {
            multi.add_create(&self.layout.group(group), b"", &options)?;
        }
        Ok(())
    }

    /// Reads the head, and the id of the transaction that wrote it.
    pub(super) async fn read_head(&self) -> Result<(Head, i64), EpochError> {
        let path = self.layout.head();
        match self.session.with_timeout(self.session.client().get_data(&path)).await {
            Ok((bytes, stat)) => {
                let head =
                    Head::parse(&bytes).map_err(|reason| self.damaged_error(&path, &reason))?;
                Ok((head, stat.mzxid))
            }
            Err(error) => Err(self.read_error(&path, &error)),
        }
    }

    pub(super) async fn read_records(&self) -> Result<Records, EpochError> {
        let client = self.session.client();
        // The client sends a request when it is made, so all requests of a window run concurrently.
        let lists: Vec<_> = (0..=u8::MAX)
            .map(|group| (group, client.list_children(&self.layout.group(group))))
            .collect();
        let mut unknown_paths = Vec::new();
        let mut keys = Vec::new();
        for (group, list) in lists {
            let names = match self.session.with_timeout(list).await {
                Ok(names) => names,
                Err(error) => return Err(self.read_error(&self.layout.group(group), &error)),
            };
            for name in names {
                match record_key(group, &name) {
                    Some(key) => keys.push(key),
                    None => unknown_paths.push(format!("{}/{name}", self.layout.group(group))),
                }
            }
        }
        let mut by_key = BTreeMap::new();
        let mut size = 0_usize;
        for window in keys.chunks(WINDOW) {
            let requests: Vec<_> = window
                .iter()
                .map(|key| (*key, client.get_data(&self.layout.record(*key))))
                .collect();
            for (key, request) in requests {
                match self.session.with_timeout(request).await {
                    Ok((bytes, _)) => {
                        size = size.saturating_add(bytes.len());
                        if size > STATE_BYTES_MAX {
                            return Err(self.too_large_error());
                        }
                        by_key.insert(key, bytes);
                    }
                    // Another master began a later epoch and deleted the record. The check of the
                    // fence detects the later epoch.
                    Err(Error::NoNode) => {}
                    Err(error) => {
                        return Err(self.session.error(&self.layout.record(key), &error).into());
                    }
                }
            }
        }
        Ok(Records { by_key, unknown_paths })
    }

    /// Applies the remaining parts of a commit, or removes its parts if the commit did not become
    /// durable.
    async fn finish_pending(
        &mut self,
        head: Head,
        records: &mut BTreeMap<Key, Vec<u8>>,
    ) -> Result<(), EpochError> {
        let numbers = self.pending_parts().await?;
        if head.pending == 0 {
            return self.remove_parts(&numbers).await;
        }
        for number in numbers {
            let path = self.layout.part(number);
            let (bytes, _) = self
                .session
                .with_timeout(self.session.client().get_data(&path))
                .await
                .map_err(|error| self.session.error(&path, &error))?;
            let damaged = || self.damaged_error(&path, "it is no part of a commit");
            let group = batch::decode(&bytes).ok_or_else(damaged)?;
            self.apply_part(number, &group).await?;
            apply_group(records, &group);
        }
        self.write_head(Head::new(self.version, 0), &[]).await
    }

    /// Lists the numbers of the pending parts, in ascending order.
    pub(super) async fn pending_parts(&self) -> Result<Vec<u32>, EpochError> {
        let pending = self.layout.pending();
        let names = self.session.with_timeout(self.session.client().list_children(&pending)).await;
        let names = names.map_err(|error| self.read_error(&pending, &error))?;
        // A foreign znode, such as "05", is not read as a part.
        let number =
            |name: &String| name.parse().ok().filter(|number: &u32| number.to_string() == *name);
        let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn remove_parts(&self, numbers: &[u32]) -> Result<(), EpochError> {
        for number in numbers {
            let mut multi = self.guarded_request()?;
            self.map_add_error(multi.add_delete(&self.layout.part(*number), None))?;
            self.send(multi, &[]).await?;
        }
        Ok(())
    }

    /// Checks that no later epoch has begun, so that all earlier reads are consistent.
    async fn check_fence(&self) -> Result<(), EpochError> {
        let path = self.layout.epoch();
        let found = self.session.with_timeout(self.session.client().check_stat(&path)).await;
        match found.map_err(|error| self.session.error(&path, &error))? {
            Some(stat) if stat.version == self.fence => Ok(()),
            Some(_) => Err(EpochError::Ended(self.epoch)),
            None => Err(self.missing_state_error()),
        }
    }

    /// Continues in another session. The right to write does not depend on the session.
    pub(super) fn set_session(&mut self, session: Session) {
        self.session = session;
    }

    /// Commits `changes` with a new version, all or nothing.
    pub(super) async fn commit(&mut self, changes: &[crate::Change]) -> Result<u64, EpochError> {
        let writes = batch::last_writes(changes, &self.existing);
        for write in &writes {
            if let Write::Put(key, bytes) = write
                && bytes.len() > batch::RECORD_MAX
            {
                return Err(EpochError::Failed(format!(
                    "the record of {key} has {} bytes, and the limit of ZooKeeper is {}: configure \
                     fewer overlays",
                    bytes.len(),
                    batch::RECORD_MAX
                )));
            }
        }
        let version = self.version.saturating_add(1);
        // A version that no master could load is not written.
        let counts = Counts { epoch: self.epoch, version };
        counts.check().map_err(|reason| self.counts_error(&self.layout.head(), &reason))?;
        let groups = batch::split_into_groups(writes);
        if let [] | [_] = &groups[..] {
            let writes = groups.first().map_or(&[][..], Vec::as_slice);
            self.write_head(Head::new(version, 0), writes).await?;
            self.update_existing(writes);
        } else {
            self.commit_parts(version, &groups).await?;
        }
        self.version = version;
        Ok(version)
    }

    async fn commit_parts(
        &mut self,
        version: u64,
        groups: &[Vec<Write<'_>>],
    ) -> Result<(), EpochError> {
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let options = self.session.private(CreateMode::Persistent);
        for (number, group) in (0..count).zip(groups) {
            let mut multi = self.guarded_request()?;
            let part = batch::encode(group);
            self.map_add_error(multi.add_create(&self.layout.part(number), &part, &options))?;
            self.send(multi, &[]).await?;
        }
        // This request makes the commit durable. If this master stops here, the next load applies
        // the parts.
        self.write_head(Head::new(version, count), &[]).await?;
        for (number, group) in (0..count).zip(groups) {
            self.apply_part(number, group).await?;
        }
        self.write_head(Head::new(version, 0), &[]).await
    }

    async fn apply_part(&mut self, number: u32, group: &[Write<'_>]) -> Result<(), EpochError> {
        let mut multi = self.guarded_request()?;
        self.map_add_error(multi.add_delete(&self.layout.part(number), None))?;
        self.add_writes(&mut multi, group)?;
        self.send(multi, group).await?;
        self.update_existing(group);
        Ok(())
    }

    async fn write_head(&self, head: Head, writes: &[Write<'_>]) -> Result<(), EpochError> {
        let mut multi = self.guarded_request()?;
        self.map_add_error(multi.add_set_data(&self.layout.head(), &head.to_bytes(), None))?;
        self.add_writes(&mut multi, writes)?;
        self.send(multi, writes).await
    }

    /// Begins a request that the servers refuse if a later epoch has begun.
    fn guarded_request(&self) -> Result<MultiWriter<'_>, EpochError> {
        let mut multi = self.session.client().new_multi_writer();
        self.map_add_error(multi.add_check_version(&self.layout.epoch(), self.fence))?;
        Ok(multi)
    }

    /// Converts the error of an operation that cannot be added to a request.
    fn map_add_error(&self, result: Result<(), Error>) -> Result<(), EpochError> {
        result.map_err(|error| self.session.error(self.layout.root(), &error).into())
    }

    fn add_writes(
        &self,
        multi: &mut MultiWriter<'_>,
        writes: &[Write<'_>],
    ) -> Result<(), EpochError> {
        let options = self.session.private(CreateMode::Persistent);
        for write in writes {
            let key = write.key();
            let path = self.layout.record(key);
            self.map_add_error(match (write, self.existing.contains(&key)) {
                (Write::Put(_, bytes), true) => multi.add_set_data(&path, bytes, None),
                (Write::Put(_, bytes), false) => multi.add_create(&path, bytes, &options),
                (Write::Delete(_), true) => multi.add_delete(&path, None),
                (Write::Delete(_), false) => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Sends a guarded request whose last operations are `writes`.
    async fn send(
        &self,
        mut multi: MultiWriter<'_>,
        writes: &[Write<'_>],
    ) -> Result<(), EpochError> {
        let reply = self.session.with_timeout(async { Ok::<_, Error>(multi.commit().await) }).await;
        let error = match reply {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(MultiWriteError::OperationFailed { index: 0, source })) => {
                return Err(match source {
                    Error::BadVersion => EpochError::Ended(self.epoch),
                    Error::NoNode => self.missing_state_error(),
                    error => self.session.error(&self.layout.epoch(), &error).into(),
                });
            }
            Ok(Err(error)) => error,
            Err(source) => MultiWriteError::RequestFailed { source },
        };
        let path = match &error {
            // The fence check and one more operation precede the writes.
            MultiWriteError::OperationFailed { index, .. } => {
                let write = index.checked_sub(2).and_then(|index| writes.get(index));
                write.map(|write| self.layout.record(write.key()))
            }
            MultiWriteError::RequestFailed { .. } => None,
        };
        let path = path.unwrap_or_else(|| self.layout.root().to_owned());
        match error.into() {
            Error::NodeExists | Error::NoNode => Err(EpochError::Failed(format!(
                "a foreign client created or removed {path}: make sure that only overlay masters \
                 write below {}",
                self.layout.root()
            ))),
            error => Err(self.session.error(&path, &error).into()),
        }
    }

    fn update_existing(&mut self, writes: &[Write<'_>]) {
        for write in writes {
            match write {
                Write::Put(key, _) => self.existing.insert(*key),
                Write::Delete(key) => self.existing.remove(key),
            };
        }
    }

    pub(super) fn unfinished_import_error(&self) -> EpochError {
        EpochError::Failed(format!(
            "the state at {root} is incomplete, because an import into it was interrupted: import \
             it again; or remove it (`deleteall {root}`): the masters then start with an empty \
             state",
            root = self.layout.root()
        ))
    }

    fn missing_state_error(&self) -> EpochError {
        EpochError::Failed(format!(
            "the state at {} is gone: restore a copy of it; or, if it was removed on purpose, \
             restart the masters: they then start with an empty state",
            self.layout.root()
        ))
    }

    /// Creates the error for a root without an epoch. No master creates such a root, and no restart
    /// helps.
    fn foreign_root_error(&self) -> EpochError {
        EpochError::Failed(format!(
            "{root} exists without its znode 'epoch', so it is no state of overlay masters: a \
             foreign client created it, or a removal was interrupted: restore a copy of it, or \
             remove it (`deleteall {root}`): the masters then start with an empty state; or use \
             another path",
            root = self.layout.root()
        ))
    }

    /// Explains why a part of an existing state cannot be read.
    fn read_error(&self, path: &str, error: &Error) -> EpochError {
        match error {
            Error::NoNode => self.damaged_error(path, "it is missing"),
            error => self.session.error(path, error).into(),
        }
    }

    fn counts_error(&self, path: &str, reason: &str) -> EpochError {
        EpochError::Failed(format!("{path}: {}", with_counts_remedy(reason, &self.store_uri)))
    }

    fn too_large_error(&self) -> EpochError {
        EpochError::Failed(format!(
            "the records at {root} have more than {} MiB, more than those of any cluster: a \
             foreign client wrote them: restore a copy of {root}, and use an address with user and \
             password",
            STATE_BYTES_MAX >> 20,
            root = self.layout.agents()
        ))
    }

    pub(super) fn damaged_error(&self, path: &str, reason: &str) -> EpochError {
        EpochError::Failed(format!(
            "{path} is damaged ({reason}): restore a copy of {root}, or remove it (`deleteall \
             {root}`): the masters then start with an empty state",
            root = self.layout.root()
        ))
    }
}

/// Applies the writes of one part of a commit to `records`.
pub(super) fn apply_group(records: &mut BTreeMap<Key, Vec<u8>>, group: &[Write<'_>]) {
    for write in group {
        match write {
            Write::Put(key, bytes) => records.insert(*key, bytes.to_vec()),
            Write::Delete(key) => records.remove(key),
        };
    }
}

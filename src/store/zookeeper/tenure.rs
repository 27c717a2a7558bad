//! One epoch of a state in ZooKeeper: how it begins, and what it may write.
//!
//! Every request that writes checks the version of the znode `epoch`, which whoever begins an epoch
//! moves on. So a request of an earlier epoch is refused by the servers, however late it comes: the
//! session in which it was sent needs not to be known, and needs not to have ended.

use std::collections::{BTreeMap, HashSet};

use zookeeper_client::{CreateMode, Error, MultiWriteError, MultiWriter};

use super::batch::{self, Write};
use super::layout::{Head, Layout, key_of};
use crate::store::{Begin, Counts, Key, STATE_BYTES_MAX, explain_counts};
use crate::zookeeper::{Failure, Session};

/// How often an epoch is tried to begin while others begin theirs.
const ATTEMPTS: usize = 20;

/// How many records are asked for at a time: enough that the servers are always busy, and few
/// enough that an answer comes in time even from slow ones.
const WINDOW: usize = 1000;

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// This epoch has ended, since a later one has begun.
    Deposed(u64),
    /// Anything else. What was to be written may or may not be.
    Failed(String),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.to_string())
    }
}

/// What was there when an epoch began.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) records: BTreeMap<Key, Vec<u8>>,
    /// The znodes that are no record which this version can read.
    pub(super) unreadable: Vec<String>,
}

/// What an epoch begins with where there is no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// An empty one is made.
    Make,
    /// One is made that no master takes before its first commit. So is one that was left like that.
    MakeUnfinished,
    /// Nothing: one that vanished is an error.
    Refuse,
}

/// An epoch that has begun, and may have ended.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) session: Session,
    pub(super) layout: Layout,
    /// How `export` names the store.
    place: String,
    pub(super) epoch: u64,
    /// The version of the znode `epoch`.
    fence: i32,
    pub(super) version: u64,
    /// Of whom there is a record.
    known: HashSet<Key>,
}

impl Tenure {
    /// No epoch: one that can only read.
    pub(super) fn none(session: Session, layout: Layout) -> Self {
        let (place, known) = (String::new(), HashSet::new());
        Self { session, layout, place, epoch: 0, fence: 0, version: 0, known }
    }

    /// Begins an epoch and reads everything. `place` is how `export` names the store.
    pub(super) async fn begin(
        session: Session,
        layout: Layout,
        missing: Missing,
        (begin, place): (Begin, &str),
    ) -> Result<(Self, Begun), Fault> {
        let mut tenure = Self::none(session, layout);
        place.clone_into(&mut tenure.place);
        tenure.take_over(missing, begin).await?;
        // From here on nobody else writes, unless he has begun a later epoch.
        let (head, _) = tenure.read_head().await?;
        if head.is_unfinished() && missing != Missing::MakeUnfinished {
            return Err(tenure.unfinished());
        }
        // It is written with the first commit.
        let counts = Counts { epoch: 0, version: head.version };
        let begun = counts.begun(begin);
        let path = tenure.layout.head();
        tenure.version = begun.map_err(|reason| tenure.refused_counts(&path, &reason))?.version;
        let mut begun = tenure.read_records().await?;
        tenure.known = begun.records.keys().copied().collect();
        tenure.finish_pending(head, &mut begun.records).await?;
        tenure.check_fence().await?;
        Ok((tenure, begun))
    }

    async fn take_over(&mut self, missing: Missing, begin: Begin) -> Result<(), Fault> {
        let path = self.layout.epoch();
        for _ in 0..ATTEMPTS {
            let client = self.session.client();
            let (bytes, stat) = match self.session.answer(client.get_data(&path)).await {
                Ok(found) => found,
                Err(Error::NoNode) => {
                    match missing {
                        Missing::Make => self.make(Head::new(0, 0)).await?,
                        Missing::MakeUnfinished => self.make(Head::unfinished()).await?,
                        Missing::Refuse => return Err(self.gone()),
                    }
                    continue;
                }
                Err(error) => return Err(self.session.failure(&path, &error).into()),
            };
            let last = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<u64>().ok());
            let last = last.ok_or_else(|| self.damaged(&path, "it is no number"))?;
            let begun = Counts { epoch: last, version: 0 }.begun(begin);
            let epoch = begun.map_err(|reason| self.refused_counts(&path, &reason))?.epoch;
            let text = epoch.to_string();
            let set = client.set_data(&path, text.as_bytes(), Some(stat.version));
            match self.session.answer(set).await {
                Ok(stat) => {
                    self.epoch = epoch;
                    self.fence = stat.version;
                    return Ok(());
                }
                Err(Error::BadVersion) => {}
                Err(error) => return Err(self.session.failure(&path, &error).into()),
            }
        }
        Err(Fault::Failed(format!("{path}: others begin one epoch after the other: who are they?")))
    }

    /// Makes an empty state, all of it or nothing. That another one makes it is as good.
    async fn make(&self, head: Head) -> Result<(), Fault> {
        self.session.make_path().await?;
        let options = self.session.private(CreateMode::Persistent);
        let mut multi = self.session.client().new_multi_writer();
        let mut add = |path: &str, data: &[u8]| multi.add_create(path, data, &options);
        let head = head.to_bytes();
        let mut fill = || {
            add(self.layout.root(), b"")?;
            add(&self.layout.epoch(), b"0")?;
            add(&self.layout.head(), &head)?;
            add(&self.layout.pending(), b"")?;
            add(&self.layout.agents(), b"")?;
            (0..=u8::MAX).try_for_each(|group| add(&self.layout.group(group), b""))
        };
        let root = self.layout.root();
        fill().map_err(|error| self.session.failure(root, &error))?;
        match self.session.answer(multi.commit()).await {
            Ok(_) | Err(Error::NodeExists) => Ok(()),
            Err(error) => Err(self.session.failure(root, &error).into()),
        }
    }

    /// With what tells one writing of it from another.
    pub(super) async fn read_head(&self) -> Result<(Head, i64), Fault> {
        let path = self.layout.head();
        match self.session.answer(self.session.client().get_data(&path)).await {
            Ok((bytes, stat)) => {
                let head = Head::parse(&bytes).map_err(|why| self.damaged(&path, &why))?;
                Ok((head, stat.mzxid))
            }
            Err(Error::NoNode) => Err(self.gone()),
            Err(error) => Err(self.session.failure(&path, &error).into()),
        }
    }

    pub(super) async fn read_records(&self) -> Result<Begun, Fault> {
        let client = self.session.client();
        // A request is sent when it is made, so all of a window are under way at once.
        let lists: Vec<_> = (0..=u8::MAX)
            .map(|group| (group, client.list_children(&self.layout.group(group))))
            .collect();
        let mut unreadable = Vec::new();
        let mut agents = Vec::new();
        for (group, list) in lists {
            let names = match self.session.answer(list).await {
                Ok(names) => names,
                Err(error) => {
                    return Err(self.session.failure(&self.layout.group(group), &error).into());
                }
            };
            for name in names {
                match key_of(group, &name) {
                    Some(ip) => agents.push(ip),
                    None => unreadable.push(format!("{}/{name}", self.layout.group(group))),
                }
            }
        }
        let mut records = BTreeMap::new();
        let mut size = 0_usize;
        for window in agents.chunks(WINDOW) {
            let requests: Vec<_> =
                window.iter().map(|ip| (*ip, client.get_data(&self.layout.record(*ip)))).collect();
            for (ip, request) in requests {
                match self.session.answer(request).await {
                    Ok((bytes, _)) => {
                        size = size.saturating_add(bytes.len());
                        if size > STATE_BYTES_MAX {
                            return Err(self.too_large());
                        }
                        records.insert(ip, bytes);
                    }
                    // Whoever deleted it meanwhile has begun a later epoch, which is seen below.
                    Err(Error::NoNode) => {}
                    Err(error) => {
                        return Err(self.session.failure(&self.layout.record(ip), &error).into());
                    }
                }
            }
        }
        Ok(Begun { records, unreadable })
    }

    /// Applies what is left of a commit that counts, or removes what is left of one that does not.
    async fn finish_pending(
        &mut self,
        head: Head,
        records: &mut BTreeMap<Key, Vec<u8>>,
    ) -> Result<(), Fault> {
        let numbers = self.pending_parts().await?;
        if head.pending == 0 {
            return self.remove_parts(&numbers).await;
        }
        for number in numbers {
            let path = self.layout.part(number);
            let (bytes, _) = self
                .session
                .answer(self.session.client().get_data(&path))
                .await
                .map_err(|error| self.session.failure(&path, &error))?;
            let damaged = || self.damaged(&path, "it is no part of a commit");
            let group = batch::decode(&bytes).ok_or_else(damaged)?;
            self.apply_part(number, &group).await?;
            for write in group {
                match write {
                    Write::Put(ip, bytes) => records.insert(ip, bytes.to_vec()),
                    Write::Delete(ip) => records.remove(&ip),
                };
            }
        }
        self.write_head(Head::new(self.version, 0), &[]).await
    }

    /// The numbers of the parts that are there, in their order.
    pub(super) async fn pending_parts(&self) -> Result<Vec<u32>, Fault> {
        let pending = self.layout.pending();
        let names = self.session.answer(self.session.client().list_children(&pending)).await;
        let names = names.map_err(|error| self.session.failure(&pending, &error))?;
        // What somebody else has put there, such as "05", is not read as a part.
        let number = |name: &String| name.parse().ok().filter(|it: &u32| it.to_string() == *name);
        let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn remove_parts(&self, numbers: &[u32]) -> Result<(), Fault> {
        for number in numbers {
            let mut multi = self.guarded()?;
            self.add(multi.add_delete(&self.layout.part(*number), None))?;
            self.write(multi, &[]).await?;
        }
        Ok(())
    }

    /// That no later epoch had begun before all that was read until now.
    async fn check_fence(&self) -> Result<(), Fault> {
        let path = self.layout.epoch();
        let found = self.session.answer(self.session.client().check_stat(&path)).await;
        match found.map_err(|error| self.session.failure(&path, &error))? {
            Some(stat) if stat.version == self.fence => Ok(()),
            Some(_) => Err(Fault::Deposed(self.epoch)),
            None => Err(self.gone()),
        }
    }

    /// Goes on in another session: what may be written does not depend on it.
    pub(super) fn resume(&mut self, session: Session) {
        self.session = session;
    }

    /// Writes `writes` and a new version, all or nothing.
    pub(super) async fn commit(&mut self, changes: &[crate::store::Change]) -> Result<u64, Fault> {
        let writes = batch::writes(changes, &self.known);
        for write in &writes {
            if let Write::Put(ip, bytes) = write
                && bytes.len() > batch::RECORD_MAX
            {
                return Err(Fault::Failed(format!(
                    "the record of {ip} has {} bytes, and ZooKeeper takes {}: configure \
                     fewer overlays",
                    bytes.len(),
                    batch::RECORD_MAX
                )));
            }
        }
        let version = self.version.saturating_add(1);
        // What could not be read again is not written.
        let counts = Counts { epoch: self.epoch, version };
        counts.check().map_err(|reason| self.refused_counts(&self.layout.head(), &reason))?;
        let groups = batch::grouped(writes);
        if let [] | [_] = &groups[..] {
            let writes = groups.first().map_or(&[][..], Vec::as_slice);
            self.write_head(Head::new(version, 0), writes).await?;
            self.learn(writes);
        } else {
            self.commit_parts(version, &groups).await?;
        }
        self.version = version;
        Ok(version)
    }

    async fn commit_parts(&mut self, version: u64, groups: &[Vec<Write<'_>>]) -> Result<(), Fault> {
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let options = self.session.private(CreateMode::Persistent);
        for (number, group) in (0..count).zip(groups) {
            let mut multi = self.guarded()?;
            let part = batch::encode(group);
            self.add(multi.add_create(&self.layout.part(number), &part, &options))?;
            self.write(multi, &[]).await?;
        }
        // This makes the commit: what follows, whoever loads the state does as well.
        self.write_head(Head::new(version, count), &[]).await?;
        for (number, group) in (0..count).zip(groups) {
            self.apply_part(number, group).await?;
        }
        self.write_head(Head::new(version, 0), &[]).await
    }

    async fn apply_part(&mut self, number: u32, group: &[Write<'_>]) -> Result<(), Fault> {
        let mut multi = self.guarded()?;
        self.add(multi.add_delete(&self.layout.part(number), None))?;
        self.add_writes(&mut multi, group)?;
        self.write(multi, group).await?;
        self.learn(group);
        Ok(())
    }

    async fn write_head(&self, head: Head, writes: &[Write<'_>]) -> Result<(), Fault> {
        let mut multi = self.guarded()?;
        self.add(multi.add_set_data(&self.layout.head(), &head.to_bytes(), None))?;
        self.add_writes(&mut multi, writes)?;
        self.write(multi, writes).await
    }

    /// A request that is refused when this epoch has ended.
    fn guarded(&self) -> Result<MultiWriter<'_>, Fault> {
        let mut multi = self.session.client().new_multi_writer();
        self.add(multi.add_check_version(&self.layout.epoch(), self.fence))?;
        Ok(multi)
    }

    /// An operation that cannot even be asked for.
    fn add(&self, added: Result<(), Error>) -> Result<(), Fault> {
        added.map_err(|error| self.session.failure(self.layout.root(), &error).into())
    }

    fn add_writes(&self, multi: &mut MultiWriter<'_>, writes: &[Write<'_>]) -> Result<(), Fault> {
        let options = self.session.private(CreateMode::Persistent);
        for write in writes {
            let ip = write.key();
            let path = self.layout.record(ip);
            self.add(match (write, self.known.contains(&ip)) {
                (Write::Put(_, bytes), true) => multi.add_set_data(&path, bytes, None),
                (Write::Put(_, bytes), false) => multi.add_create(&path, bytes, &options),
                (Write::Delete(_), true) => multi.add_delete(&path, None),
                (Write::Delete(_), false) => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Sends a guarded request; `writes` are its last operations.
    async fn write(&self, mut multi: MultiWriter<'_>, writes: &[Write<'_>]) -> Result<(), Fault> {
        let answer = self.session.answer(async { Ok::<_, Error>(multi.commit().await) }).await;
        let error = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(MultiWriteError::OperationFailed { index: 0, source })) => {
                return Err(match source {
                    Error::BadVersion => Fault::Deposed(self.epoch),
                    Error::NoNode => self.gone(),
                    error => self.session.failure(&self.layout.epoch(), &error).into(),
                });
            }
            Ok(Err(error)) => error,
            Err(source) => MultiWriteError::RequestFailed { source },
        };
        let path = match &error {
            // The check and one more operation come first.
            MultiWriteError::OperationFailed { index, .. } => {
                let write = index.checked_sub(2).and_then(|index| writes.get(index));
                write.map(|write| self.layout.record(write.key()))
            }
            MultiWriteError::RequestFailed { .. } => None,
        };
        let path = path.unwrap_or_else(|| self.layout.root().to_owned());
        match error.into() {
            Error::NodeExists | Error::NoNode => Err(Fault::Failed(format!(
                "{path} was made or removed by somebody else: see that nobody but overlay masters \
                 writes below {}",
                self.layout.root()
            ))),
            error => Err(self.session.failure(&path, &error).into()),
        }
    }

    fn learn(&mut self, writes: &[Write<'_>]) {
        for write in writes {
            match write {
                Write::Put(ip, _) => self.known.insert(*ip),
                Write::Delete(ip) => self.known.remove(ip),
            };
        }
    }

    pub(super) fn unfinished(&self) -> Fault {
        Fault::Failed(format!(
            "the state at {root} is not whole, since an import into it was interrupted: import it \
             again; or remove it (`deleteall {root}`), which begins with an empty plan that knows no \
             agent",
            root = self.layout.root()
        ))
    }

    fn gone(&self) -> Fault {
        Fault::Failed(format!(
            "the state at {} is gone: put a copy of it back; or, if it was removed on purpose, start \
             the masters again, which begins with an empty plan that knows no agent",
            self.layout.root()
        ))
    }

    fn refused_counts(&self, path: &str, reason: &str) -> Fault {
        Fault::Failed(format!("{path}: {}", explain_counts(reason, &self.place)))
    }

    fn too_large(&self) -> Fault {
        Fault::Failed(format!(
            "the records at {root} have more than {} MiB, more than those of any cluster: somebody \
             else has written there: put a copy of {root} back, and use an address with user and \
             password",
            STATE_BYTES_MAX >> 20,
            root = self.layout.agents()
        ))
    }

    pub(super) fn damaged(&self, path: &str, why: &str) -> Fault {
        Fault::Failed(format!(
            "{path} is damaged ({why}): put a copy of {root} back, or remove it (`deleteall \
             {root}`), which begins with an empty plan that knows no agent",
            root = self.layout.root()
        ))
    }
}

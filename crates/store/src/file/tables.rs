//! The tables of the state: the records, and three counters.

use overlay_types::state::{Counts, Epoch, Key, Version};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use crate::key::KeyBytes as _;
use crate::{Change, EpochPurpose, Loaded, Snapshot, hex_name};

/// Version of the format of the tables. A file with a later version is refused.
pub(super) const FORMAT: u64 = 1;

pub(super) const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

pub(super) const COUNTERS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("counters");
pub(super) const FORMAT_COUNTER: &[u8] = b"format";
pub(super) const EPOCH_COUNTER: &[u8] = b"epoch";
pub(super) const VERSION_COUNTER: &[u8] = b"version";

/// Reads the format of the tables. Returns `None` if the file has none.
pub(super) fn read_format(database: &redb::Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(COUNTERS) {
        Ok(counters) => Ok(counters.get(FORMAT_COUNTER)?.map(|format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) enum EpochOutcome {
    Begun {
        loaded: Loaded,
        /// Number of records whose key this version cannot read.
        unknown: usize,
    },
    /// No state can have reached the counts of the file, for this reason.
    InvalidCounts(String),
}

pub(super) enum CommitOutcome {
    Committed(Version),
    /// A later epoch has begun. Nothing was written.
    EpochEnded,
    /// The version cannot be incremented, for this reason. Nothing was written.
    InvalidCounts(String),
}

/// Reads the state of the last commit.
pub(super) fn read_snapshot(database: &redb::Database) -> Result<Snapshot, redb::Error> {
    let (counts, warning) = read_counts(database)?.corrected();
    let transaction = database.begin_read()?;
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    Ok(Snapshot { counts, records, unknown, warnings: warning.into_iter().collect() })
}

/// Reads the counts of the last commit.
pub(super) fn read_counts(database: &redb::Database) -> Result<Counts, redb::Error> {
    let counters = database.begin_read()?.open_table(COUNTERS)?;
    let epoch = counter(&counters, EPOCH_COUNTER)?;
    Ok(Counts { epoch, version: counter(&counters, VERSION_COUNTER)? })
}

/// The records of this version, and the records of a later version of this program.
type Records = (Vec<(Key, Vec<u8>)>, Vec<(String, Vec<u8>)>);

fn read_records(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Records, redb::Error> {
    let mut records = Vec::new();
    let mut unknown = Vec::new();
    for entry in table.iter()? {
        let (key, bytes) = entry?;
        let bytes = bytes.value().to_vec();
        match Key::from_bytes(key.value()) {
            Some(key) => records.push((key, bytes)),
            None => unknown.push((hex_name(key.value()), bytes)),
        }
    }
    Ok((records, unknown))
}

pub(super) fn begin_epoch(
    database: &redb::Database,
    purpose: EpochPurpose,
) -> Result<EpochOutcome, redb::Error> {
    let transaction = database.begin_write()?;
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    let (epoch, version) = {
        let mut counters = transaction.open_table(COUNTERS)?;
        let epoch = counter(&counters, EPOCH_COUNTER)?;
        let counts = Counts { epoch, version: counter(&counters, VERSION_COUNTER)? };
        let Counts { epoch, version } = match purpose.next_counts(counts) {
            Ok(begun) => begun,
            Err(reason) => return Ok(EpochOutcome::InvalidCounts(reason)),
        };
        counters.insert(EPOCH_COUNTER, epoch)?;
        counters.insert(VERSION_COUNTER, version)?;
        (Epoch(epoch), Version(version))
    };
    transaction.commit()?;
    let loaded = Loaded { epoch, version, records };
    Ok(EpochOutcome::Begun { loaded, unknown: unknown.len() })
}

pub(super) fn commit(
    database: &redb::Database,
    epoch: Epoch,
    changes: &[Change],
) -> Result<CommitOutcome, redb::Error> {
    let transaction = database.begin_write()?;
    let version = {
        let mut counters = transaction.open_table(COUNTERS)?;
        if counter(&counters, EPOCH_COUNTER)? != epoch.0 {
            return Ok(CommitOutcome::EpochEnded);
        }
        let version = Version(counter(&counters, VERSION_COUNTER)?).next();
        if let Err(reason) = (Counts { epoch: epoch.0, version: version.0 }).check() {
            return Ok(CommitOutcome::InvalidCounts(reason));
        }
        counters.insert(VERSION_COUNTER, version.0)?;
        let mut records = transaction.open_table(RECORDS)?;
        for change in changes {
            match change {
                Change::Put(key, bytes) => {
                    records.insert(&*key.to_bytes(), &**bytes)?;
                }
                Change::Delete(key) => {
                    records.remove(&*key.to_bytes())?;
                }
            }
        }
        version
    };
    transaction.commit()?;
    Ok(CommitOutcome::Committed(version))
}

fn counter(
    counters: &impl ReadableTable<&'static [u8], u64>,
    name: &[u8],
) -> Result<u64, redb::Error> {
    let missing = || redb::Error::Corrupted("a counter is missing".to_owned());
    counters.get(name)?.map(|value| value.value()).ok_or_else(missing)
}

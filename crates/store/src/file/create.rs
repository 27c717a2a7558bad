//! Creates the file of the state.

use std::io::ErrorKind;
use std::path::Path;

use overlay_types::state::{Counts, Key};
use redb::Database;
use redb::backends::FileBackend;

use super::open::sync_directory;
use super::tables::{COUNTERS, EPOCH_COUNTER, FORMAT, FORMAT_COUNTER, RECORDS, VERSION_COUNTER};
use super::{CACHE_BYTES, FileStore};
use crate::key::KeyBytes as _;

impl FileStore {
    /// Creates an empty state if it is missing.
    pub(super) fn create_missing(&self, dir: &Path) -> Result<(), redb::Error> {
        if !self.absolute.try_exists()? {
            self.create_file(dir, None, Counts::default())?;
            log::info!("created an empty state in {self}: no agent has addresses yet");
        }
        // Also for an existing file: the process that created it may have been killed before.
        Ok(sync_directory(dir)?)
    }

    /// Creates a state in a temporary file and renames it. A kill in between must not leave a
    /// partly written database, which would look damaged. The state is empty, or its first commit
    /// holds `records`.
    fn create_file(
        &self,
        dir: &Path,
        records: Option<&[(Key, Vec<u8>)]>,
        former: Counts,
    ) -> Result<(), redb::Error> {
        let file = tempfile::Builder::new().prefix(".overlay-master.").tempfile_in(dir)?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(FileBackend::new(file.reopen()?)?)?;
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (key, bytes) in records.unwrap_or_default() {
                table.insert(&*key.to_bytes(), &**bytes)?;
            }
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(FORMAT_COUNTER, FORMAT)?;
            counters.insert(EPOCH_COUNTER, former.epoch)?;
            counters.insert(VERSION_COUNTER, former.version + u64::from(records.is_some()))?;
        }
        transaction.commit()?;
        database.close()?;
        match file.persist_noclobber(&self.absolute) {
            // Another process created the file first. The lock decides which process opens it.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Creates a state that holds `records`, unless the file exists. Returns whether it was
    /// missing.
    pub(super) fn create_with_records(
        &self,
        dir: &Path,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<bool, redb::Error> {
        let is_missing = !self.absolute.try_exists()?;
        if is_missing {
            self.create_file(dir, Some(records), former)?;
        }
        sync_directory(dir)?;
        Ok(is_missing)
    }
}

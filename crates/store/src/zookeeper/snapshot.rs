//! Reads a consistent snapshot of the state in ZooKeeper without beginning an epoch.
//!
//! ZooKeeper has no snapshot of several znodes, but the reads of one session never go back in time,
//! and every commit writes `head`. So `head` is read first and again at the end: if it was not
//! written meanwhile, there was no commit. The pending parts of a commit are read before the
//! records. The master may apply them while the records are read, which does not change the result.

use std::time::Duration;

use overlay_types::state::Counts;
use overlay_zookeeper::session::Session;
use tokio::time::sleep;
use zookeeper_client::Error;

use super::batch;
use super::epoch::{EpochError, EpochHandle, apply_group};
use super::layout::Layout;
use crate::Snapshot;

/// Number of attempts while a master commits. One attempt takes a second at most, and masters
/// commit only when agents register or leave.
const ATTEMPTS: u32 = 30;
/// Interval after the first attempt. Each further interval is longer by the same amount.
const RETRY_STEP: Duration = Duration::from_millis(20);

/// One attempt to read a snapshot.
enum Attempt {
    Consistent(Snapshot),
    /// An import into the state is not finished.
    Unfinished,
    /// A master committed meanwhile.
    Interrupted,
}

/// Reads a consistent snapshot. Returns `None` if there is no state, or an unfinished import.
pub(super) async fn read_snapshot(
    session: Session,
    layout: Layout,
) -> Result<Option<Snapshot>, EpochError> {
    let reader = EpochHandle::read_only(session, layout);
    let root = reader.layout.root();
    // The server of this session may lag behind the server of the master.
    let client = reader.session.client();
    match reader.session.with_timeout(client.sync(root)).await {
        Ok(()) => {}
        Err(Error::NoNode) => return Ok(None),
        Err(error) => return Err(reader.session.error(root, &error).into()),
    }
    let found = reader.session.with_timeout(client.check_stat(&reader.layout.epoch())).await;
    if found.map_err(|error| reader.session.error(root, &error))?.is_none() {
        return Ok(None);
    }
    for attempt in 1..=ATTEMPTS {
        match try_read(&reader).await? {
            Attempt::Consistent(snapshot) => return Ok(Some(snapshot)),
            Attempt::Unfinished => return Ok(None),
            Attempt::Interrupted => {}
        }
        sleep(RETRY_STEP * attempt).await;
    }
    Err(EpochError::Failed(format!(
        "{root} changes continuously: try again when fewer agents register, or stop the masters"
    )))
}

async fn try_read(reader: &EpochHandle) -> Result<Attempt, EpochError> {
    let (head, written) = reader.read_head().await?;
    if head.is_unfinished() {
        return Ok(Attempt::Unfinished);
    }
    let mut parts = Vec::new();
    if head.pending > 0 {
        for number in reader.pending_parts().await? {
            match read(reader, &reader.layout.part(number)).await? {
                Some(part) => parts.push((number, part)),
                // The master applied the part meanwhile.
                None => return Ok(Attempt::Interrupted),
            }
        }
    }
    let mut records = reader.read_records().await?;
    let mut unknown = Vec::new();
    for path in records.unknown_paths {
        if let Some(bytes) = read(reader, &path).await? {
            let name = path.strip_prefix(reader.layout.root()).unwrap_or(&path);
            unknown.push((name.trim_start_matches('/').to_owned(), bytes));
        }
    }
    for (number, part) in &parts {
        let path = reader.layout.part(*number);
        let group = batch::decode(part);
        let group =
            group.ok_or_else(|| reader.damaged_error(&path, "it is no part of a commit"))?;
        apply_group(&mut records.by_key, &group);
    }
    let path = reader.layout.epoch();
    let epoch = read(reader, &path).await?.unwrap_or_default();
    let epoch = std::str::from_utf8(&epoch).ok().and_then(|text| text.parse().ok());
    let epoch = epoch.ok_or_else(|| reader.damaged_error(&path, "it is no number"))?;
    let (_, written_last) = reader.read_head().await?;
    let (counts, warning) = Counts { epoch, version: head.version }.corrected();
    let snapshot = Snapshot {
        counts,
        records: records.by_key.into_iter().collect(),
        unknown,
        warnings: warning.into_iter().collect(),
    };
    let is_consistent = written == written_last;
    Ok(if is_consistent { Attempt::Consistent(snapshot) } else { Attempt::Interrupted })
}

/// Reads the content of a znode. Returns `None` if it does not exist.
async fn read(reader: &EpochHandle, path: &str) -> Result<Option<Vec<u8>>, EpochError> {
    match reader.session.with_timeout(reader.session.client().get_data(path)).await {
        Ok((bytes, _)) => Ok(Some(bytes)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(reader.session.error(path, &error).into()),
    }
}

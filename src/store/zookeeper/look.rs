//! A look at a state in ZooKeeper that takes nothing from whoever leads.
//!
//! ZooKeeper shows no moment as a whole, but one session sees nothing earlier after something
//! later, and every commit writes `head`. So `head` is read first and once more at the end: if
//! nobody wrote it meanwhile, nobody committed. What a commit still has to apply is read before the
//! records: it may be applied while they are read, which changes nothing of the result.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use zookeeper_client::Error;

use super::batch::{self, Write};
use super::layout::Layout;
use super::tenure::{Fault, Tenure};
use crate::store::{Counts, Key, Snapshot};
use crate::zookeeper::Session;

/// How often it is tried while a master commits. Reading takes a second at most, and masters write
/// when agents come: not all the time.
const ATTEMPTS: u32 = 30;
/// Wait after the first attempt; each further one waits so much more.
const PAUSE: Duration = Duration::from_millis(20);

/// What is there, as it was at one moment; `None` where nothing is, or what an import has not
/// finished.
pub(super) async fn look(session: Session, layout: Layout) -> Result<Option<Snapshot>, Fault> {
    let reader = Tenure::none(session, layout);
    let root = reader.layout.root();
    // What another server was told must not be unknown to this one.
    let client = reader.session.client();
    match reader.session.answer(client.sync(root)).await {
        Ok(()) => {}
        Err(Error::NoNode) => return Ok(None),
        Err(error) => return Err(reader.session.failure(root, &error).into()),
    }
    let found = reader.session.answer(client.check_stat(&reader.layout.epoch())).await;
    if found.map_err(|error| reader.session.failure(root, &error))?.is_none() {
        return Ok(None);
    }
    for attempt in 1..=ATTEMPTS {
        if let Some(snapshot) = try_look(&reader).await? {
            return Ok(snapshot);
        }
        sleep(PAUSE * attempt).await;
    }
    Err(Fault::Failed(format!(
        "{root} changes all the time: try again when fewer agents register, or stop the masters"
    )))
}

/// `None` if a commit came in between.
async fn try_look(reader: &Tenure) -> Result<Option<Option<Snapshot>>, Fault> {
    let (head, written) = reader.read_head().await?;
    if head.is_unfinished() {
        return Ok(Some(None));
    }
    let mut parts = Vec::new();
    if head.pending > 0 {
        for number in reader.pending_parts().await? {
            match read(reader, &reader.layout.part(number)).await? {
                Some(part) => parts.push((number, part)),
                // It was applied just now.
                None => return Ok(None),
            }
        }
    }
    let begun = reader.read_records().await?;
    let mut unknown = Vec::new();
    for path in begun.unreadable {
        if let Some(bytes) = read(reader, &path).await? {
            let name = path.strip_prefix(reader.layout.root()).unwrap_or(&path);
            unknown.push((name.trim_start_matches('/').to_owned(), bytes));
        }
    }
    let mut records: BTreeMap<Key, Vec<u8>> = begun.records;
    for (number, part) in &parts {
        let path = reader.layout.part(*number);
        let group = batch::decode(part);
        for write in group.ok_or_else(|| reader.damaged(&path, "it is no part of a commit"))? {
            match write {
                Write::Put(key, bytes) => records.insert(key, bytes.to_vec()),
                Write::Delete(key) => records.remove(&key),
            };
        }
    }
    let path = reader.layout.epoch();
    let epoch = read(reader, &path).await?.unwrap_or_default();
    let epoch = std::str::from_utf8(&epoch).ok().and_then(|text| text.parse().ok());
    let epoch = epoch.ok_or_else(|| reader.damaged(&path, "it is no number"))?;
    let (_, written_last) = reader.read_head().await?;
    let (counts, doubt) = Counts { epoch, version: head.version }.corrected();
    let snapshot = Snapshot {
        counts,
        records: records.into_iter().collect(),
        unknown,
        doubts: doubt.into_iter().collect(),
    };
    Ok((written == written_last).then_some(Some(snapshot)))
}

/// The content of a znode, if it is there.
async fn read(reader: &Tenure, path: &str) -> Result<Option<Vec<u8>>, Fault> {
    match reader.session.answer(reader.session.client().get_data(path)).await {
        Ok((bytes, _)) => Ok(Some(bytes)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(reader.session.failure(path, &error).into()),
    }
}

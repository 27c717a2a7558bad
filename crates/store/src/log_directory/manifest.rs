//! Finds the tables of a LevelDB database that are in use. A killed process leaves partly written
//! tables that the manifest does not list. LevelDB removes them when it opens the database, and no
//! committed data is lost.
//!
//! Format: `doc/impl.md`, `doc/log_format.md` and `db/version_edit.cc` of LevelDB.

use std::collections::BTreeSet;

use super::checksum::{LOG_BLOCK, LOG_HEADER, varint};
use super::{CURRENT, Files};

/// The tags of the fields of a manifest record.
const COMPARATOR: usize = 1;
const LOG_NUMBER: usize = 2;
const NEXT_FILE: usize = 3;
const LAST_SEQUENCE: usize = 4;
const COMPACT_POINTER: usize = 5;
const DELETED_FILE: usize = 6;
const NEW_FILE: usize = 7;
const PREVIOUS_LOG_NUMBER: usize = 9;

/// The types of log records: a complete record, the first part and the last part of a record.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const LAST: u8 = 4;

/// Returns the files of a database that are in use.
///
/// # Errors
/// When the manifest cannot be read, or a table in use is missing.
pub(super) fn files_in_use(files: &Files) -> Result<Vec<(&str, &[u8])>, String> {
    let find = |file: &str| files.iter().find(|(name, _)| name == file);
    let current = find(CURRENT).map(|(_, bytes)| &**bytes).unwrap_or_default();
    let current = std::str::from_utf8(current).unwrap_or_default().trim_end();
    let (_, manifest) = find(current).ok_or_else(|| format!("{CURRENT} names no manifest"))?;
    let tables = tables(manifest).ok_or_else(|| format!("{current} is malformed"))?;
    let missing = tables
        .iter()
        .find(|number| !files.iter().any(|(name, _)| table_number(name) == Some(**number)));
    if let Some(number) = missing {
        return Err(format!("table {number:06}.ldb is missing"));
    }
    let is_in_use = |name: &str| match table_number(name) {
        Some(number) => tables.contains(&number),
        None => name == current || !name.starts_with("MANIFEST-"),
    };
    Ok(files
        .iter()
        .filter(|(name, _)| is_in_use(name))
        .map(|(name, bytes)| (&**name, &**bytes))
        .collect())
}

fn table_number(name: &str) -> Option<usize> {
    let number = name.strip_suffix(".ldb").or_else(|| name.strip_suffix(".sst"))?;
    number.parse().ok()
}

/// Returns the tables that a manifest lists after all its records. Returns `None` if a record is
/// malformed.
fn tables(manifest: &[u8]) -> Option<BTreeSet<usize>> {
    let mut tables = BTreeSet::new();
    let mut edit = Vec::new();
    for block in manifest.chunks(LOG_BLOCK) {
        let mut rest = block;
        while let Some((header, after)) = rest.split_first_chunk::<LOG_HEADER>() {
            let [.., low, high, kind] = *header;
            let length = usize::from(u16::from_le_bytes([low, high]));
            // This space was never written, or the process was killed while it wrote this record.
            let Some((part, after)) = after.split_at_checked(length).filter(|_| kind != 0) else {
                break;
            };
            if matches!(kind, FULL | FIRST) {
                edit.clear();
            }
            edit.extend_from_slice(part);
            if matches!(kind, FULL | LAST) {
                apply_edit(&edit, &mut tables)?;
            }
            rest = after;
        }
    }
    Some(tables)
}

/// Applies one record of a manifest to the set of tables.
fn apply_edit(mut edit: &[u8], tables: &mut BTreeSet<usize>) -> Option<()> {
    let rest = &mut edit;
    while !rest.is_empty() {
        match varint(rest)? {
            COMPARATOR => skip_text(rest)?,
            LOG_NUMBER | NEXT_FILE | LAST_SEQUENCE | PREVIOUS_LOG_NUMBER => drop(varint(rest)?),
            COMPACT_POINTER => {
                varint(rest)?;
                skip_text(rest)?;
            }
            DELETED_FILE => {
                varint(rest)?;
                tables.remove(&varint(rest)?);
            }
            NEW_FILE => {
                varint(rest)?;
                tables.insert(varint(rest)?);
                varint(rest)?;
                skip_text(rest)?;
                skip_text(rest)?;
            }
            _ => return None,
        }
    }
    Some(())
}

fn skip_text(rest: &mut &[u8]) -> Option<()> {
    let length = varint(rest)?;
    *rest = rest.get(length..)?;
    Some(())
}

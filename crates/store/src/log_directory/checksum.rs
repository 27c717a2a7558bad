//! Verifies the checksums in the files of a LevelDB database. LevelDB skips damaged records as if
//! they had never been written, so a damaged database would show an older value. This module finds
//! the damage first.

use std::ops::ControlFlow;

/// Length of a block of a log and of a manifest.
pub(super) const LOG_BLOCK: usize = 32 << 10;
/// Length of a record header: checksum, length and type.
pub(super) const LOG_HEADER: usize = 7;
/// Length of the footer of a table, and its last bytes.
const FOOTER: usize = 48;
const MAGIC: [u8; 8] = 0xdb47_7524_8b80_fb57_u64.to_le_bytes();
/// Length of the type and checksum after each block of a table.
const TRAILER: usize = 5;
const SNAPPY: u8 = 1;

/// Whether the file `name` of a database is undamaged. An incomplete record at the end of a log, as
/// a killed process leaves it, is no damage.
pub(super) fn is_intact(name: &str, bytes: &[u8]) -> bool {
    match name {
        _ if name.ends_with(".ldb") || name.ends_with(".sst") => check_table(bytes).is_some(),
        _ if name.ends_with(".log") => is_intact_log(bytes, true),
        _ if name.starts_with("MANIFEST-") => is_intact_log(bytes, false),
        _ => true,
    }
}

fn is_intact_log(bytes: &[u8], may_be_truncated: bool) -> bool {
    bytes.chunks(LOG_BLOCK).all(|block| {
        let is_last = block.len() < LOG_BLOCK;
        let mut rest = block;
        loop {
            match skip_record(rest, is_last && may_be_truncated) {
                ControlFlow::Continue(after) => rest = after,
                ControlFlow::Break(is_intact) => return is_intact,
            }
        }
    })
}

/// Checks the first record of `rest`. Continues with the bytes after the record. Breaks at the end
/// of the block, and at damage, with whether the block is intact.
fn skip_record(rest: &[u8], may_be_truncated: bool) -> ControlFlow<bool, &[u8]> {
    let Some((header, after)) = rest.split_first_chunk::<LOG_HEADER>() else {
        // The end of the block is too short for a header, or the file ends.
        return ControlFlow::Break(may_be_truncated || rest.iter().all(|byte| *byte == 0));
    };
    let [a, b, c, d, low, high, kind] = *header;
    let length = usize::from(u16::from_le_bytes([low, high]));
    if header.iter().all(|byte| *byte == 0) {
        // This space was reserved and never written.
        return ControlFlow::Break(rest.iter().all(|byte| *byte == 0));
    }
    let Some((record, after)) = after.split_at_checked(length) else {
        return ControlFlow::Break(may_be_truncated);
    };
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), record);
    if masked(sum) == u32::from_le_bytes([a, b, c, d]) {
        ControlFlow::Continue(after)
    } else {
        ControlFlow::Break(false)
    }
}

/// Returns the form in which LevelDB stores a checksum.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Checks all blocks of a table. Returns `None` if a block is damaged.
fn check_table(table: &[u8]) -> Option<()> {
    let footer = table.get(table.len().checked_sub(FOOTER)?..)?;
    if !footer.ends_with(&MAGIC) {
        return None;
    }
    let mut rest = footer;
    let meta = handle(&mut rest)?;
    let index = handle(&mut rest)?;
    block(table, meta)?;
    let index = block(table, index)?;
    for handle in block_handles(&index)? {
        block(table, handle)?;
    }
    Some(())
}

/// Returns the content of a block, or `None` if its checksum is wrong.
fn block(table: &[u8], (offset, length): (usize, usize)) -> Option<Vec<u8>> {
    let checked = table.get(offset..offset.checked_add(length)?.checked_add(TRAILER)?)?;
    let (content, sum) = checked.split_last_chunk::<4>()?;
    if masked(crc32c::crc32c(content)) != u32::from_le_bytes(*sum) {
        return None;
    }
    match content.split_last()? {
        (&SNAPPY, content) => snap::raw::Decoder::new().decompress_vec(content).ok(),
        (_, content) => Some(content.to_vec()),
    }
}

/// Returns the values of an index block, which are the offsets and lengths of data blocks.
fn block_handles(index: &[u8]) -> Option<Vec<(usize, usize)>> {
    let (entries, count) = index.split_last_chunk::<4>()?;
    let restarts = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(4)?;
    let mut rest = entries.get(..entries.len().checked_sub(restarts)?)?;
    let mut handles = Vec::new();
    while !rest.is_empty() {
        let _shared = varint(&mut rest)?;
        let (key, value) = (varint(&mut rest)?, varint(&mut rest)?);
        let (mut value, after) = rest.get(key..)?.split_at_checked(value)?;
        handles.push(handle(&mut value)?);
        rest = after;
    }
    Some(handles)
}

/// Reads the offset and length of a block.
fn handle(rest: &mut &[u8]) -> Option<(usize, usize)> {
    Some((varint(rest)?, varint(rest)?))
}

pub(super) fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0_usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

//! Reads files without waiting for another process, and up to a length.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a file without waiting: opening a pipe could wait forever, and so would a reload and the
/// end of the process. The caller checks the metadata of the opened file, since the path may name
/// another file by then.
pub(crate) fn open_without_waiting(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads everything, at most `max` bytes.
pub(crate) fn read_up_to(source: &mut dyn Read, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = source.take(max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length > max) {
        let mebibytes = max / (1024 * 1024);
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it has more than {mebibytes} MiB: is it the right file?"),
        ));
    }
    Ok(bytes)
}

//! Writes the result of a command into a file that an operator names.
//!
//! A regular file is replaced atomically. Anything else keeps its place: a rename would replace
//! `/dev/null` for the whole system, or a pipe under its reader.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use super::process::is_stdin;

/// Links to the stdout of this process.
const STDOUT_LINKS: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Where the content goes.
enum Target {
    Stdout,
    /// A regular file, or a path without a file. The content replaces it atomically.
    File,
    /// A character device or a pipe. The content is written into it.
    Stream,
}

/// Whether `path` is stdout.
pub(super) fn is_stdout(path: &Path) -> bool {
    is_stdin(path) || STDOUT_LINKS.iter().any(|link| path.as_os_str() == OsStr::new(link))
}

/// Writes `content` to the file at `path`, which is readable by its owner only.
///
/// # Errors
/// With the reason and a remedy, as a part of a sentence whose subject is the path.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    match target(path)? {
        Target::Stdout => write_to_stdout(content).map_err(|error| error.to_string()),
        Target::Stream => write_to_stream(path, content).map_err(|error| error.to_string()),
        Target::File => replace_file(path, content),
    }
}

fn target(path: &Path) -> Result<Target, String> {
    if is_stdout(path) {
        return Ok(Target::Stdout);
    }
    let Ok(link) = fs::symlink_metadata(path) else {
        // The error of the directory names the directory.
        return Ok(Target::File);
    };
    let is_link = link.is_symlink();
    let found = if is_link { fs::metadata(path).ok() } else { Some(link) };
    let Some(found) = found else {
        return Err("it is a symbolic link to nothing: remove it, or name a file".to_owned());
    };
    let kind = found.file_type();
    // A pipe of another user is a way to read the state.
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    if kind.is_char_device() || kind.is_fifo() && is_own {
        return Ok(Target::Stream);
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe of another user"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else if is_link {
        // In a directory of other users, a link would choose the file that is replaced.
        let target = fs::canonicalize(path).unwrap_or_default();
        return Err(format!("it is a symbolic link: name the file itself, {}", target.display()));
    } else {
        return Ok(Target::File);
    };
    Err(format!("it is {what}: name a regular file, or - for stdout"))
}

fn write_to_stdout(content: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(content).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn write_to_stream(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // A terminal must not become the controlling terminal of this process.
    options.write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed());
    options.open(path)?.write_all(content)
}

/// Replaces the file atomically: a failed export must not damage an older backup.
fn replace_file(path: &Path, content: &[u8]) -> Result<(), String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let file = tempfile::Builder::new().prefix(".mesos-overlay.").tempfile_in(&parent);
    let file = file.map_err(|error| {
        // The error itself would name the temporary file, which the operator does not know.
        let why = match error.kind() {
            ErrorKind::NotFound => "no such directory: make it".to_owned(),
            ErrorKind::NotADirectory => "it is no directory: name one".to_owned(),
            ErrorKind::PermissionDenied => {
                "permission denied: run it as its owner, or name another directory".to_owned()
            }
            kind => kind.to_string(),
        };
        format!("{}: {why}", parent.display())
    })?;
    fill_and_rename(file, path, content)
        .and_then(|()| File::open(&parent)?.sync_all())
        .map_err(|error| error.to_string())
}

/// Writes the content, syncs it, and renames the file to `path`.
fn fill_and_rename(mut file: NamedTempFile, path: &Path, content: &[u8]) -> io::Result<()> {
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.as_file_mut().write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

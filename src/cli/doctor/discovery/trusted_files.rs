//! Reads files that no other user can change or replace.
//!
//! The doctor runs the program `docker` that a configuration names. If root read the file of
//! another user, that user could run any program as root. So root accepts a file only if root owns
//! it and every directory above it, and nobody else can write to them. Without root the doctor can
//! do nothing that its user cannot do, and the files are not checked.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use overlay_types::secret::show_path;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};

use crate::cli::process::FILE_MAX;

/// Most symbolic links on the way to a file, as in the kernel.
const LINKS_MAX: usize = 40;
/// The bits of a mode that let the group and all users write. An ACL that lets a user write sets the
/// bit of the group.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a directory in which only owners can remove and rename entries.
const STICKY: u32 = 0o1000;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    NotRegular,
    /// Another user can change or replace the file.
    #[error("{0}")]
    Untrusted(String),
}

impl From<rustix::io::Errno> for FileError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The rules for files.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrustedFiles {
    /// The user of the doctor.
    user: u32,
    is_strict: bool,
}

/// A directory on the way to a file.
struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
    /// Whether other users can create entries in the directory, as in `/tmp`. The sticky bit
    /// protects the existing entries.
    is_shared: bool,
}

impl TrustedFiles {
    /// Returns the rules for the user of this process.
    pub(super) fn of_this_process() -> Self {
        let user = rustix::process::geteuid();
        Self { user: user.as_raw(), is_strict: user.is_root() }
    }

    /// Returns rules that check files of the user of this process and of root.
    #[cfg(test)]
    pub(super) fn strict() -> Self {
        Self { is_strict: true, ..Self::of_this_process() }
    }

    /// Returns the user of the doctor.
    pub(super) const fn user(self) -> u32 {
        self.user
    }

    /// Reads a text file of limited size.
    pub(super) fn read_text(self, path: &Path) -> Result<String, String> {
        let read = || {
            let mut text = String::new();
            self.open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        read().map_err(|error: FileError| failure("read", path, &error))
    }

    /// Returns the paths of the entries of a directory.
    pub(super) fn list(self, path: &Path) -> Result<Vec<PathBuf>, String> {
        let list = || {
            if self.is_strict {
                self.check_directory(path)?;
            }
            let entries = fs::read_dir(path)?;
            Ok(entries.flatten().map(|entry| path.join(entry.file_name())).collect())
        };
        list().map_err(|error: FileError| failure("list", path, &error))
    }

    /// Checks the program of a process: the file, and the directories above its path. Another user
    /// could make a link to any program in a shared directory, such as `/tmp`.
    pub(super) fn check_program(self, path: &Path, file: &Stat) -> Result<(), FileError> {
        if !self.is_strict {
            return Ok(());
        }
        self.check_file(file, path)?;
        self.check_directory(path.parent().unwrap_or(path))
    }

    fn open(self, path: &Path) -> Result<File, FileError> {
        if self.is_strict {
            return self.open_checked(path);
        }
        // A FIFO could block the doctor.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, path, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(FileError::NotRegular) }
    }

    /// Checks that other users can create no entries in a directory, nor replace it.
    fn check_directory(self, path: &Path) -> Result<(), FileError> {
        let (directory, rest) = self.walk(path)?;
        if rest.is_some() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory).into());
        }
        directory.check_unshared()
    }

    fn open_checked(self, path: &Path) -> Result<File, FileError> {
        let (directory, name) = self.walk(path)?;
        let name = name.ok_or(FileError::NotRegular)?;
        directory.check_unshared()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory.descriptor, &name, flags, Mode::empty())?;
        self.check_file(&fstat(&file)?, &directory.path.join(name))?;
        Ok(File::from(file))
    }

    /// Follows an absolute path and checks each directory before its entries are used. Returns the
    /// last directory, and the name in it if the path does not lead to a directory.
    fn walk(self, path: &Path) -> Result<(Directory, Option<OsString>), FileError> {
        let mut directory = self.root()?;
        let mut names = names_of(path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            let entry = open_entry(&directory.descriptor, &name)?;
            let found = fstat(&entry)?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Symlink => {
                    // Another user could have made the link.
                    directory.check_unshared()?;
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    let target = readlinkat(&directory.descriptor, &name, Vec::new())?;
                    let target = PathBuf::from(os_string(target.into_bytes()));
                    if target.is_absolute() {
                        directory = self.root()?;
                    }
                    names.extend(names_of(&target));
                }
                FileType::Directory => {
                    let path = match name == ".." {
                        true => directory.path.parent().unwrap_or(&directory.path).to_owned(),
                        false => directory.path.join(name),
                    };
                    directory = self.directory(entry, path)?;
                }
                _ if names.is_empty() => return Ok((directory, Some(name))),
                _ => return Err(io::Error::from(io::ErrorKind::NotADirectory).into()),
            }
        }
        Ok((directory, None))
    }

    fn root(self) -> Result<Directory, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.directory(openat(CWD, "/", flags, Mode::empty())?, PathBuf::from("/"))
    }

    fn directory(self, descriptor: OwnedFd, path: PathBuf) -> Result<Directory, FileError> {
        let found = fstat(&descriptor)?;
        self.check_owner(found.st_uid, &path)?;
        let is_shared = found.st_mode & OTHERS_WRITE != 0;
        if is_shared && found.st_mode & STICKY == 0 {
            return Err(writable(&path));
        }
        Ok(Directory { descriptor, path, is_shared })
    }

    fn check_file(self, file: &Stat, path: &Path) -> Result<(), FileError> {
        if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile {
            return Err(FileError::NotRegular);
        }
        self.check_owner(file.st_uid, path)?;
        if file.st_mode & OTHERS_WRITE == 0 { Ok(()) } else { Err(writable(path)) }
    }

    fn check_owner(self, owner: u32, path: &Path) -> Result<(), FileError> {
        if owner == 0 || owner == self.user {
            return Ok(());
        }
        Err(FileError::Untrusted(format!("user {owner} owns {}", show_path(path))))
    }
}

impl Directory {
    fn check_unshared(&self) -> Result<(), FileError> {
        if self.is_shared { Err(writable(&self.path)) } else { Ok(()) }
    }
}

fn writable(path: &Path) -> FileError {
    FileError::Untrusted(format!("other users can write to {}", show_path(path)))
}

fn failure(action: &str, path: &Path, error: &FileError) -> String {
    let path = show_path(path);
    match error {
        FileError::Untrusted(_) => {
            format!("{path} is not trusted: {error}: if it is right, name the file with --config")
        }
        FileError::Io(_) | FileError::NotRegular => format!("{action} {path}: {error}"),
    }
}

fn open_entry(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// Returns the names of a path, the last one first. `/` and `.` have none.
fn names_of(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

fn os_string(bytes: Vec<u8>) -> OsString {
    use std::os::unix::ffi::OsStringExt as _;

    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// Creates a directory with these entries: directories end with a slash.
    fn tree(entries: &[(&str, u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, _) in entries {
            let path = dir.path().join(name);
            match name.ends_with('/') {
                true => fs::create_dir(path).unwrap(),
                false => fs::write(path, "text").unwrap(),
            }
        }
        for (name, mode) in entries {
            let permissions = fs::Permissions::from_mode(*mode);
            fs::set_permissions(dir.path().join(name), permissions).unwrap();
        }
        dir
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> Result<String, String> {
        let text = TrustedFiles::strict().read_text(&dir.path().join(name));
        text.map_err(|error| error.replace(&dir.path().display().to_string(), "DIR"))
    }

    fn untrusted(file: &str, part: &str) -> Result<String, String> {
        Err(format!(
            "DIR/{file} is not trusted: other users can write to DIR/{part}: if it is right, name \
             the file with --config"
        ))
    }

    #[test]
    fn file_that_others_can_write_is_refused() {
        let dir = tree(&[("own/", 0o755), ("own/a", 0o644), ("own/b", 0o664), ("own/c", 0o646)]);
        assert_eq!(read(&dir, "own/a").as_deref(), Ok("text"));
        assert_eq!(read(&dir, "own/../own/./a").as_deref(), Ok("text"));
        assert_eq!(read(&dir, "own/b"), untrusted("own/b", "own/b"));
        assert_eq!(read(&dir, "own/c"), untrusted("own/c", "own/c"));
        assert_eq!(read(&dir, "own"), Err("read DIR/own: it is no regular file".to_owned()));
        let missing = read(&dir, "own/d").unwrap_err();
        assert!(missing.starts_with("read DIR/own/d: No such file"), "{missing}");
    }

    #[test]
    fn directory_that_others_can_write_is_refused() {
        let dir = tree(&[
            ("open/", 0o775),
            ("open/a", 0o600),
            ("open/own/", 0o700),
            ("open/own/a", 0o600),
            ("sticky/", 0o1777),
            ("sticky/a", 0o600),
            ("sticky/own/", 0o700),
            ("sticky/own/a", 0o600),
        ]);
        assert_eq!(read(&dir, "open/a"), untrusted("open/a", "open"));
        assert_eq!(read(&dir, "open/own/a"), untrusted("open/own/a", "open"));
        // Another user can create links in a shared directory, and cannot replace its directories.
        assert_eq!(read(&dir, "sticky/a"), untrusted("sticky/a", "sticky"));
        assert_eq!(read(&dir, "sticky/own/a").as_deref(), Ok("text"));
        let list = |name: &str| TrustedFiles::strict().list(&dir.path().join(name));
        assert_eq!(list("sticky/own"), Ok(vec![dir.path().join("sticky/own/a")]));
        assert!(list("sticky").unwrap_err().contains("other users can write to "));
        assert!(list("open").unwrap_err().contains("other users can write to "));
    }

    #[test]
    fn links_are_followed_and_their_targets_checked() {
        let dir = tree(&[
            ("own/", 0o755),
            ("own/a", 0o644),
            ("own/b", 0o666),
            ("sticky/", 0o1777),
            ("open/", 0o777),
            ("open/a", 0o644),
        ]);
        let link = |target: &str, name: &str| symlink(target, dir.path().join(name)).unwrap();
        let absolute = dir.path().join("own").display().to_string();
        for (target, name) in [
            ("a", "own/to-a"),
            ("../own/b", "own/to-b"),
            (&absolute, "own/to-own"),
            ("../open/a", "own/to-open"),
            ("../own/a", "sticky/to-a"),
            ("loop", "own/loop"),
        ] {
            link(target, name);
        }
        assert_eq!(read(&dir, "own/to-a").as_deref(), Ok("text"));
        assert_eq!(read(&dir, "own/to-own/to-a").as_deref(), Ok("text"));
        assert_eq!(read(&dir, "own/to-b"), untrusted("own/to-b", "own/b"));
        assert_eq!(read(&dir, "own/to-open"), untrusted("own/to-open", "open"));
        assert_eq!(read(&dir, "sticky/to-a"), untrusted("sticky/to-a", "sticky"));
        let endless = read(&dir, "own/loop").unwrap_err();
        assert!(endless.starts_with("read DIR/own/loop: Too many levels"), "{endless}");
    }

    #[test]
    fn file_of_another_user_is_refused() {
        let files = TrustedFiles { user: 1000, is_strict: true };
        let check =
            |owner| files.check_owner(owner, Path::new("/x/a")).map_err(|error| error.to_string());
        assert_eq!((check(0), check(1000)), (Ok(()), Ok(())));
        assert_eq!(check(1001), Err("user 1001 owns /x/a".to_owned()));
    }

    #[test]
    fn files_are_not_checked_without_root() {
        let dir = tree(&[("open/", 0o777), ("open/a", 0o666)]);
        let lax = TrustedFiles { is_strict: false, ..TrustedFiles::strict() };
        assert_eq!(lax.read_text(&dir.path().join("open/a")).as_deref(), Ok("text"));
        assert_eq!(lax.list(&dir.path().join("open")).unwrap().len(), 1);
    }
}

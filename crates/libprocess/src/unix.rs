//! HTTP on a Unix socket, which only processes with access to its file can use.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::connections::CloseHandle;
use super::http::{self, HttpClient};
use super::server_state::ServerState;
use crate::{Handler, RequestSource, UNIX_PEER};

/// A listening Unix socket with the mode 0600. Dropping this removes the file, unless another file
/// is in its place by then.
#[derive(Debug)]
pub struct UnixServer {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl UnixServer {
    /// Listens on a socket at `path`, and replaces a socket on which no process listens. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// If `path` exists and is another file or a used socket, or if it cannot be created.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // The socket is created at another path, and a client could not use a longer path.
        SocketAddr::from_pathname(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "it is no socket"));
            }
            Ok(_) => require_unused(path)?,
            Err(_) => {}
        }
        // Between `bind` and `set_permissions`, other users could connect. So the socket is created
        // in a directory that only this user can enter. The short name leaves the length of `path`
        // for its directory, and is random since an earlier process may have left its directory.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let name = format!(".s{:06x}", fastrand::u32(..1 << 24));
        let private = parent.unwrap_or_else(|| Path::new(".")).join(name);
        DirBuilder::new().mode(0o700).create(&private)?;
        let bound = bind_in(&private, path);
        let _ = fs::remove_dir_all(&private);
        let (listener, file) = bound?;
        Ok(Self { listener, path: path.to_owned(), file })
    }
}

/// Checks that no process listens on the socket at `path`: a process that was killed leaves its
/// socket. Does not wait for a process that does not accept.
fn require_unused(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(()),
        // `PROTOTYPE` is the error of a used socket of another type, such as that of syslog.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(io::Error::new(ErrorKind::AddrInUse, "a process listens on it"))
        }
        Err(error) => Err(error.into()),
    }
}

fn bind_in(private: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let created = private.join("s");
    let listener = UnixListener::bind(&created)?;
    fs::set_permissions(&created, Permissions::from_mode(0o600))?;
    let file = identity(&created)?;
    fs::rename(&created, path)?;
    Ok((listener, file))
}

/// Returns device and inode of a file, not of the target of a link.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Accepts a connection. Without a socket, the future never completes.
pub(super) async fn accept(server: Option<&UnixServer>) -> io::Result<UnixStream> {
    match server {
        Some(server) => server.listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Serves a connection in its own task. Closes another connection at a limit.
pub(super) fn serve<H: Handler>(
    server: &Arc<ServerState<H>>,
    tasks: &mut JoinSet<()>,
    stream: UnixStream,
) {
    server.evict_if_full(&server.connections, UNIX_PEER);
    let link = server.connections.guard();
    let source = RequestSource::Unix { user: stream.peer_cred().ok().map(|user| user.uid()) };
    let account = server.addresses.unix_account();
    let client = HttpClient { peer: UNIX_PEER, source, account, link: Arc::clone(&link) };
    let connection = http::serve(stream.into_split(), Bytes::new(), client, Arc::clone(server));
    let task = tasks.spawn(connection);
    server.connections.insert(UNIX_PEER, &link, CloseHandle::Task(task));
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    /// An empty directory of a test.
    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("libprocess-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn kind_of_failure(path: &Path) -> ErrorKind {
        UnixServer::bind(path).unwrap_err().kind()
    }

    #[tokio::test]
    async fn socket_is_private_and_replaces_only_unused_socket() {
        let dir = directory("unix");
        let path = dir.join("http.sock");
        let server = UnixServer::bind(&path).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(kind_of_failure(&path), ErrorKind::AddrInUse);
        drop(server);
        assert!(!path.exists());
        // A process that was killed leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        drop(UnixServer::bind(&path).unwrap());
        fs::write(&path, "").unwrap();
        assert_eq!(kind_of_failure(&path), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary directory stays");
        fs::remove_dir_all(&dir).unwrap();
    }
    #[tokio::test]
    async fn used_socket_of_any_kind_is_not_replaced() {
        let dir = directory("used");
        let _log = UnixDatagram::bind(dir.join("log")).unwrap();
        assert_eq!(kind_of_failure(&dir.join("log")), ErrorKind::AddrInUse);
        // A process that hangs does not accept, and its queue is full.
        let hung = UnixListener::bind(dir.join("hung")).unwrap();
        net::listen(&hung, 0).unwrap();
        let _queued = std::os::unix::net::UnixStream::connect(dir.join("hung")).unwrap();
        assert_eq!(kind_of_failure(&dir.join("hung")), ErrorKind::AddrInUse);
        let link = dir.join("link");
        std::os::unix::fs::symlink(dir.join("target"), &link).unwrap();
        assert_eq!(kind_of_failure(&link), ErrorKind::AlreadyExists);
        let long = dir.join("x".repeat(107));
        assert_eq!(kind_of_failure(&long), ErrorKind::InvalidInput);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn file_in_place_of_socket_stays_at_end() {
        let dir = directory("replaced");
        let path = dir.join("http.sock");
        let server = UnixServer::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let later = UnixServer::bind(&path).unwrap();
        drop(server);
        assert!(path.exists());
        drop(later);
        assert!(!path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn socket_fits_into_directory_with_long_path() {
        let dir = directory("long");
        let deep = dir.join("d".repeat(95 - dir.as_os_str().len()));
        fs::create_dir(&deep).unwrap();
        drop(UnixServer::bind(&deep.join("http.sock")).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}

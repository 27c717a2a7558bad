//! HTTP on a Unix socket, which only processes with access to its file can use.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::connections::CloseHandle;
use super::http::{self, HttpClient};
use super::server_state::ServerState;
use crate::{Handler, RequestSource};

/// The address that counts for the limits of a client.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A listening Unix socket with the mode 0600. Dropping this removes the file.
#[derive(Debug)]
pub struct UnixServer {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixServer {
    /// Listens on a socket at `path`, and replaces a socket on which no process listens. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// If `path` exists and is another file or a used socket, or if it cannot be created.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "it is no socket"));
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => {
                return Err(io::Error::new(ErrorKind::AddrInUse, "a process listens on it"));
            }
            Ok(_) | Err(_) => {}
        }
        // Between `bind` and `set_permissions`, other users could connect. So the socket is created
        // in a directory that only this user can enter.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let private = parent
            .unwrap_or_else(|| Path::new("."))
            .join(format!(".socket-{}-{count}", std::process::id()));
        fs::create_dir(&private)?;
        let bound = bind_in(&private, path);
        let _ = fs::remove_dir_all(&private);
        Ok(Self { listener: bound?, path: path.to_owned() })
    }
}

fn bind_in(private: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
    let created = private.join("s");
    let listener = UnixListener::bind(&created)?;
    fs::set_permissions(&created, fs::Permissions::from_mode(0o600))?;
    fs::rename(&created, path)?;
    Ok(listener)
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
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
    server.evict_if_full(&server.connections, PEER);
    let link = server.connections.guard();
    let source = RequestSource::Unix { user: stream.peer_cred().ok().map(|user| user.uid()) };
    let account = server.addresses.account(PEER.ip());
    let client = HttpClient { peer: PEER, source, account, link: Arc::clone(&link) };
    let connection = http::serve(stream.into_split(), Bytes::new(), client, Arc::clone(server));
    let task = tasks.spawn(connection);
    server.connections.insert(PEER, &link, CloseHandle::Task(task));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn socket_is_private_and_replaces_only_unused_socket() {
        let dir = std::env::temp_dir().join(format!("libprocess-unix-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("http.sock");
        let server = UnixServer::bind(&path).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(UnixServer::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(server);
        assert!(!path.exists());
        // A process that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(UnixServer::bind(&path).unwrap());
        fs::write(&path, "").unwrap();
        assert_eq!(UnixServer::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary directory stays");
        fs::remove_dir_all(&dir).unwrap();
    }
}

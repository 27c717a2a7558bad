//! Accepts connections and serves each connection in its own task.
//!
//! The tasks end with [`Server::run`]. A panic in a task is logged and ends only its connection.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use super::connection::Connection;
use super::connections::CloseHandle;
use super::server_state::{ServerOptions, ServerState};
use super::socket;
use super::unix::{self, UnixServer};
use crate::Handler;
use crate::limits::Limit;

/// Delay after the system had no descriptor or memory for a connection. An immediate retry would
/// fail again and waste CPU time.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Maximum number of evicted connections whose tasks have not ended yet.
const CLOSING_MAX: usize = 16;

/// A listening server for messages and HTTP requests.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local: SocketAddrV4,
    unix: Option<UnixServer>,
}

impl Server {
    /// Binds the address and starts to listen. Connections wait in the backlog until
    /// [`run`](Self::run) accepts them. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the address is not an address of this server, or is in use.
    pub fn bind(address: SocketAddrV4) -> io::Result<Self> {
        let listener = socket::listening(address)?;
        let SocketAddr::V4(local) = listener.local_addr()? else {
            return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        };
        Ok(Self { listener, local, unix: None })
    }

    /// Serves HTTP on a Unix socket as well.
    pub fn add_unix(&mut self, unix: UnixServer) {
        self.unix = Some(unix);
    }

    /// Serves until `shutdown` completes or the future is dropped. Then all connections are closed.
    pub async fn run<H: Handler>(
        self,
        handler: Arc<H>,
        options: ServerOptions,
        shutdown: impl Future<Output = ()>,
    ) {
        let most = options.limits.size(Limit::Connections);
        let server = Arc::new(ServerState::new(handler, options));
        let mut tasks = JoinSet::new();
        let mut is_exhausted = false;
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                accepted = unix::accept(self.unix.as_ref()) => {
                    match accepted {
                        Ok(stream) => unix::serve(&server, &mut tasks, stream),
                        Err(error) => {
                            delay_if_exhausted("a Unix socket", &error, &mut is_exhausted).await;
                        }
                    }
                    continue;
                }
                Some(ended) = tasks.join_next() => {
                    log_panic(ended);
                    continue;
                }
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    is_exhausted = false;
                    serve(&server, &mut tasks, stream, peer);
                    // An evicted connection holds its descriptor until its task has ended.
                    while tasks.len() > most + CLOSING_MAX
                        && let Some(ended) = tasks.join_next().await
                    {
                        log_panic(ended);
                    }
                }
                Err(error) => {
                    delay_if_exhausted(&self.local.to_string(), &error, &mut is_exhausted).await;
                }
            }
        }
    }

    /// Returns the listening address, with the port that the system chose for port 0.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV4 {
        self.local
    }
}

/// Delays the next accept if an immediate retry cannot succeed. Other errors affect only one
/// connection, which was aborted before it was accepted.
async fn delay_if_exhausted(local: &str, error: &io::Error, is_exhausted: &mut bool) {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    if !error.raw_os_error().is_some_and(|code| exhausted.iter().any(|e| e.raw_os_error() == code))
    {
        log::debug!("accept a connection on {local}: {error}");
        return;
    }
    if !std::mem::replace(is_exhausted, true) {
        log::error!(
            "accept connections on {local}: {error}: new peers wait until others disconnect; \
             raise the limit of open files"
        );
    }
    tokio::time::sleep(ACCEPT_DELAY).await;
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        log::error!("serve a connection: {error}: this is a defect; the connection was closed");
    }
}

/// Serves a connection in its own task. Closes another connection at a limit.
fn serve<H: Handler>(
    server: &Arc<ServerState<H>>,
    tasks: &mut JoinSet<()>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    server.evict_if_full(&server.connections, peer);
    let guard = server.connections.guard();
    let connection = Connection::new(stream, peer, Arc::clone(server), Arc::clone(&guard));
    let task = tasks.spawn(connection.run());
    server.connections.insert(peer, &guard, CloseHandle::Task(task));
}

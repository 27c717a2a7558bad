//! Accepts connections, each served by a task of its own, and holds what they share.
//!
//! The tasks belong to [`Server::run`]: when it ends they end. A panic in one of them is logged and
//! ends that connection alone.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use super::connection::Connection;
use super::head::{Encoding, Envelope};
use super::{connection, encode, framing, socket};
use crate::transport::{Handler, Incoming, Refusal};

/// How long no connection is accepted after the system had no descriptor or memory for one. Trying
/// at once would fail again, and spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond the limit that are being told so at a time. More are closed without a word.
const TURNED_AWAY_LIMIT: usize = 64;

/// What all unfinished bodies may hold together, in bytes. An honest body is complete in a moment.
const UNFINISHED_LIMIT: usize = 64 * 1024 * 1024;

/// What the operator may choose.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether the address in a sender's name must be the one that its connection comes from.
    pub require_peer_address_match: bool,
    /// Connections at a time. A further one is answered with 503 and closed.
    pub connections: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        // The links of 10,000 agents, as many that come and go in a failover, and some left for
        // people; and with the usual limit of 20,000 descriptors or more there are some left for
        // everything else.
        Self { require_peer_address_match: false, connections: 14_000 }
    }
}

/// Where messages and requests come in.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local: SocketAddrV4,
}

impl Server {
    /// Takes the address. Nothing is accepted before [`run`](Self::run), but whoever connects from
    /// now on is not turned away. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is not ours or is in use.
    pub fn bind(address: SocketAddrV4) -> io::Result<Self> {
        let listener = socket::listening(address)?;
        let SocketAddr::V4(local) = listener.local_addr()? else {
            return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        };
        Ok(Self { listener, local })
    }

    /// Serves until `shutdown` completes or the future is dropped. Then every connection is closed.
    pub async fn run<H: Handler>(
        self,
        handler: Arc<H>,
        options: ServerOptions,
        shutdown: impl Future<Output = ()>,
    ) {
        let limit = options.connections;
        let host = Arc::new(Host {
            handler,
            options,
            open: 0.into(),
            http: 0.into(),
            unfinished: 0.into(),
        });
        let mut tasks = JoinSet::new();
        let mut turned_away = JoinSet::new();
        let mut is_exhausted = false;
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(ended) = tasks.join_next() => {
                    log_panic(ended);
                    while let Some(ended) = tasks.try_join_next() {
                        log_panic(ended);
                    }
                    host.open.store(tasks.len(), Ordering::Relaxed);
                    continue;
                }
                Some(_) = turned_away.join_next() => continue,
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) if tasks.len() >= limit => {
                    host.handler.refused(peer, &Refusal::Busy);
                    if turned_away.len() < TURNED_AWAY_LIMIT {
                        turned_away.spawn(turn_away(stream));
                    }
                }
                Ok((stream, peer)) => {
                    is_exhausted = false;
                    tasks.spawn(Connection::new(stream, peer, Arc::clone(&host)).run());
                    host.open.store(tasks.len(), Ordering::Relaxed);
                }
                Err(error) => pause_if_exhausted(self.local, &error, &mut is_exhausted).await,
            }
        }
    }

    /// Where the server listens, with the port that the system chose if none was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV4 {
        self.local
    }
}

/// Waits if trying again at once cannot succeed. Other errors are about the one connection, which
/// was aborted before we saw it.
async fn pause_if_exhausted(local: SocketAddrV4, error: &io::Error, is_exhausted: &mut bool) {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    if !error.raw_os_error().is_some_and(|code| exhausted.iter().any(|e| e.raw_os_error() == code))
    {
        log::debug!("accept a connection on {local}: {error}");
        return;
    }
    if !std::mem::replace(is_exhausted, true) {
        log::error!(
            "accept connections on {local}: {error}: new peers wait until some leave; raise the limit of \
             open files"
        );
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        log::error!("serve a connection: {error}: this is a defect; the connection was closed");
    }
}

async fn turn_away(stream: TcpStream) {
    let mut output = Vec::new();
    encode::refused(&mut output, &Refusal::Busy, false);
    // A fresh socket has room for this.
    if stream.writable().await.is_ok() && stream.try_write(&output).is_ok() {
        connection::close_gently(stream).await;
    }
}

/// What the connections of a server share.
pub(super) struct Host<H> {
    pub(super) handler: Arc<H>,
    options: ServerOptions,
    /// Connections now.
    open: AtomicUsize,
    /// Of them, those with the HTTP server.
    pub(super) http: AtomicUsize,
    /// Bytes that unfinished bodies hold.
    unfinished: AtomicUsize,
}

impl<H> fmt::Debug for Host<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<H: Handler> Host<H> {
    /// Hands a message to its process, or says why not. What is refused has been counted then.
    pub(super) async fn receive(
        &self,
        peer: SocketAddr,
        envelope: Result<Envelope, Refusal>,
        encoding: Encoding,
        body: Bytes,
    ) -> Result<(), Refusal> {
        match self.examine(peer, envelope, encoding, body) {
            Ok(message) => {
                self.handler.deliver(message).await;
                Ok(())
            }
            Err(refusal) => {
                self.handler.refused(peer, &refusal);
                Err(refusal)
            }
        }
    }

    fn examine(
        &self,
        peer: SocketAddr,
        envelope: Result<Envelope, Refusal>,
        encoding: Encoding,
        body: Bytes,
    ) -> Result<Incoming, Refusal> {
        let Envelope { from, to, name } = envelope?;
        let claimed = *from.address.ip();
        if self.options.require_peer_address_match && peer.ip() != IpAddr::V4(claimed) {
            return Err(Refusal::AddressMismatch { claimed, actual: peer.ip() });
        }
        if !self.handler.has_process(&to) {
            return Err(Refusal::UnknownProcess(to));
        }
        let body = match encoding {
            Encoding::Identity => body,
            Encoding::Gzip => framing::inflate(&body)?,
            Encoding::Unknown => return Err(Refusal::Encoding),
        };
        Ok(Incoming { from, to, name, body })
    }

    /// Whether so many connections are open that those that never said anything have to go.
    pub(super) fn is_crowded(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.options.connections / 2
    }
}

/// A connection's part of the memory for unfinished bodies; given back when dropped.
pub(super) struct Unfinished<H> {
    host: Arc<Host<H>>,
    bytes: usize,
}

impl<H> Unfinished<H> {
    pub(super) const fn new(host: Arc<Host<H>>) -> Self {
        Self { host, bytes: 0 }
    }

    /// Notes that the body now holds so many bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        let all = self.host.unfinished.fetch_add(more, Ordering::Relaxed) + more;
        if all > UNFINISHED_LIMIT { Err(Refusal::Busy) } else { Ok(()) }
    }
}

impl<H> Drop for Unfinished<H> {
    fn drop(&mut self) {
        self.host.unfinished.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

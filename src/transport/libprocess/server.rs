//! Accepts connections, each served by a task of its own, and holds what they share.
//!
//! The tasks belong to [`Server::run`]: when it ends they end. A panic in one of them is logged and
//! ends that connection alone.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use super::connection::Connection;
use super::connections::{Closer, Connections};
use super::framing::{self, BodyLimits};
use super::head::{Encoding, Envelope, Framing, MessageHead};
use super::socket;
use crate::limits::{Limit, Limits};
use crate::transport::addresses::{Account, Addresses, Reservation, Resource};
use crate::transport::{Handler, Incoming, Refusal, UNKNOWN_BODY_MAX};

/// How long no connection is accepted after the system had no descriptor or memory for one. Trying
/// at once would fail again, and spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that were closed for others and still hold their descriptors, at most.
const CLOSING_MAX: usize = 16;

/// What the operator may choose.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether the address in a sender's name must be the one that its connection comes from.
    pub require_peer_address_match: bool,
    /// What peers can make the server hold and do.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { require_peer_address_match: false, limits: Limits::of_master() }
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
        let most = options.limits.size(Limit::Connections);
        let host = Arc::new(Host::new(handler, options));
        let mut tasks = JoinSet::new();
        let mut is_exhausted = false;
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(ended) = tasks.join_next() => {
                    log_panic(ended);
                    continue;
                }
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    is_exhausted = false;
                    host.serve(&mut tasks, stream, peer);
                    // A closed connection holds its descriptor until its task has ended.
                    while tasks.len() > most + CLOSING_MAX
                        && let Some(ended) = tasks.join_next().await
                    {
                        log_panic(ended);
                    }
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

/// What the connections of a server share.
pub(super) struct Host<H> {
    pub(super) handler: Arc<H>,
    pub(super) options: ServerOptions,
    pub(super) addresses: Arc<Addresses>,
    connections: Arc<Connections>,
    /// Of them, those with the HTTP server.
    pub(super) http: Arc<Connections>,
}

impl<H> fmt::Debug for Host<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What follows from the head of a message.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) limits: BodyLimits,
    encoding: Encoding,
    envelope: Result<Envelope, Refusal>,
    /// Whether a refusal has been counted already.
    is_counted: bool,
    /// Whether it makes the host remember a new peer.
    pub(super) is_registration: bool,
}

impl Judged {
    /// Refuses the message, which the caller counts. The rest of its body is read over, so that the
    /// connection can go on.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.envelope = Err(refusal);
        self.limits.is_kept = false;
        self.is_counted = true;
    }
}

impl<H: Handler> Host<H> {
    fn new(handler: Arc<H>, options: ServerOptions) -> Self {
        let limits = &options.limits;
        let connections =
            Connections::new(limits, Limit::Connections, Limit::ConnectionsPerAddress);
        let http =
            Connections::new(limits, Limit::HttpConnections, Limit::HttpConnectionsPerAddress);
        let addresses = Addresses::new(options.limits);
        Self { handler, options, addresses, connections, http }
    }

    /// Serves a connection in a task of its own. Another one is closed if there is no room.
    fn serve(self: &Arc<Self>, tasks: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
        self.evict_if_full(&self.connections, peer);
        let guard = self.connections.guard();
        let connection = Connection::new(stream, peer, Arc::clone(self), Arc::clone(&guard));
        let task = tasks.spawn(connection.run());
        self.connections.insert(peer, &guard, Closer::Task(task));
    }

    /// Makes room for a connection of `peer` among those of one kind.
    pub(super) fn evict_if_full(&self, connections: &Connections, peer: SocketAddr) {
        if let Some(evicted) = connections.evict_if_full(peer) {
            self.handler.refused(evicted.peer, &Refusal::Evicted(evicted.limit));
        }
    }

    /// Judges a message by its head: its size, its sender, and whether anybody takes it.
    ///
    /// # Errors
    /// When its body is too long for its name. The connection cannot go on then.
    pub(super) fn judge(
        &self,
        peer: SocketAddr,
        account: &Account,
        head: MessageHead,
    ) -> Result<Judged, Refusal> {
        let MessageHead { envelope, framing, encoding, .. } = head;
        let admission = match &envelope {
            Ok(Envelope { to, name, .. }) => self.handler.admit(to, name),
            Err(refusal) => Err(refusal.clone()),
        };
        let max = admission.as_ref().map_or(UNKNOWN_BODY_MAX, |admission| admission.body_max);
        if matches!(framing, Framing::Length(length) if length > max) {
            return Err(Refusal::BodyTooLarge(max));
        }
        let is_registration = admission.as_ref().is_ok_and(|it| it.is_registration);
        let is_within_rate = self.addresses.count_message(account, is_registration);
        let envelope = is_within_rate.and(envelope).and_then(|envelope| {
            self.check_sender(peer, &envelope)?;
            admission.clone().map(|_| envelope)
        });
        let is_kept = envelope.is_ok() && admission.is_ok_and(|admission| admission.is_read);
        let limits = BodyLimits { max, is_kept };
        Ok(Judged { limits, encoding, envelope, is_counted: false, is_registration })
    }

    fn check_sender(&self, peer: SocketAddr, envelope: &Envelope) -> Result<(), Refusal> {
        let claimed = *envelope.from.address.ip();
        if self.options.require_peer_address_match && peer.ip() != IpAddr::V4(claimed) {
            return Err(Refusal::AddressMismatch { claimed, actual: peer.ip() });
        }
        Ok(())
    }

    /// Hands a message to its process, or says why not. What is refused has been counted then.
    pub(super) async fn receive(
        &self,
        peer: SocketAddr,
        judged: Judged,
        body: Bytes,
        mut memory: Reservation,
    ) -> Result<(), Refusal> {
        let is_counted = judged.is_counted;
        match open(judged, body, &mut memory) {
            Ok(message) => {
                self.handler.deliver(message, memory).await;
                Ok(())
            }
            Err(refusal) => {
                if !is_counted {
                    self.handler.refused(peer, &refusal);
                }
                Err(refusal)
            }
        }
    }

    /// The memory of a body of which nothing has come.
    pub(super) fn body_memory(&self, account: &Arc<Account>) -> Reservation {
        self.addresses.empty_reservation(account, Resource::RequestBytes)
    }
}

/// The message, inflated if it came compressed.
fn open(judged: Judged, body: Bytes, memory: &mut Reservation) -> Result<Incoming, Refusal> {
    let Judged { limits, encoding, envelope, .. } = judged;
    let Envelope { from, to, name } = envelope?;
    let body = match encoding {
        _ if !limits.is_kept => Bytes::new(),
        Encoding::Identity => body,
        Encoding::Gzip => {
            let sent = body.len();
            framing::inflate(&body, limits.max, |inflated| memory.grow_to(sent + inflated))?
        }
        Encoding::Unknown => return Err(Refusal::Encoding),
    };
    Ok(Incoming { from, to, name, body })
}

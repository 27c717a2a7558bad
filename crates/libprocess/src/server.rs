//! Accepts connections and serves each connection in its own task.
//!
//! The tasks end with [`Server::run`]. A panic in a task is logged and ends only its connection.

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
use super::connections::{CloseHandle, Connections};
use super::framing::{self, BodyLimits};
use super::head::{Encoding, Envelope, Framing, MessageHead};
use super::socket;
use crate::addresses::{Account, Addresses, Reservation, Resource};
use crate::limits::{Limit, Limits};
use crate::{Handler, Incoming, Rejection, UNKNOWN_BODY_MAX};

/// Delay after the system had no descriptor or memory for a connection. An immediate retry would
/// fail again and waste CPU time.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Maximum number of evicted connections whose tasks have not ended yet.
const CLOSING_MAX: usize = 16;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether the address in the UPID of a sender must match the source address of the connection.
    pub require_peer_address_match: bool,
    /// Limits of memory, connections and rates.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { require_peer_address_match: false, limits: Limits::for_server() }
    }
}

/// A listening server for messages and HTTP requests.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local: SocketAddrV4,
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
        Ok(Self { listener, local })
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
                Some(ended) = tasks.join_next() => {
                    log_panic(ended);
                    continue;
                }
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    is_exhausted = false;
                    server.serve(&mut tasks, stream, peer);
                    // An evicted connection holds its descriptor until its task has ended.
                    while tasks.len() > most + CLOSING_MAX
                        && let Some(ended) = tasks.join_next().await
                    {
                        log_panic(ended);
                    }
                }
                Err(error) => delay_if_exhausted(self.local, &error, &mut is_exhausted).await,
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
async fn delay_if_exhausted(local: SocketAddrV4, error: &io::Error, is_exhausted: &mut bool) {
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

/// State shared by the connections of a server.
pub(super) struct ServerState<H> {
    pub(super) handler: Arc<H>,
    pub(super) options: ServerOptions,
    pub(super) addresses: Arc<Addresses>,
    connections: Arc<Connections>,
    /// The connections that hyper serves, which are also in `connections`.
    pub(super) http: Arc<Connections>,
}

impl<H> fmt::Debug for ServerState<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerState").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A message whose head was checked.
#[derive(Debug)]
pub(super) struct CheckedMessage {
    pub(super) limits: BodyLimits,
    encoding: Encoding,
    envelope: Result<Envelope, Rejection>,
    /// Whether the handler was already notified of the rejection.
    is_counted: bool,
    /// See [`Admission::is_registration`](crate::Admission::is_registration).
    pub(super) is_registration: bool,
}

impl CheckedMessage {
    /// Rejects the message. The caller notifies the handler. The rest of the body is discarded, so
    /// that the connection can continue.
    pub(super) fn reject(&mut self, rejection: Rejection) {
        self.envelope = Err(rejection);
        self.limits.is_kept = false;
        self.is_counted = true;
    }
}

impl<H: Handler> ServerState<H> {
    fn new(handler: Arc<H>, options: ServerOptions) -> Self {
        let limits = &options.limits;
        let connections =
            Connections::new(limits, Limit::Connections, Limit::ConnectionsPerAddress);
        let http =
            Connections::new(limits, Limit::HttpConnections, Limit::HttpConnectionsPerAddress);
        let addresses = Addresses::new(options.limits);
        Self { handler, options, addresses, connections, http }
    }

    /// Serves a connection in its own task. Closes another connection at a limit.
    fn serve(self: &Arc<Self>, tasks: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
        self.evict_if_full(&self.connections, peer);
        let guard = self.connections.guard();
        let connection = Connection::new(stream, peer, Arc::clone(self), Arc::clone(&guard));
        let task = tasks.spawn(connection.run());
        self.connections.insert(peer, &guard, CloseHandle::Task(task));
    }

    /// Closes another connection if a limit leaves no capacity for a connection of `peer`. Reports
    /// the closed connection to the handler.
    pub(super) fn evict_if_full(&self, connections: &Connections, peer: SocketAddr) {
        if let Some(evicted) = connections.evict_if_full(peer) {
            self.handler.rejected(evicted.peer, &Rejection::Evicted(evicted.limit));
        }
    }

    /// Checks the head of a message: size, rate, sender and receiver.
    ///
    /// # Errors
    /// If the body is too long. Then the connection cannot continue.
    pub(super) fn check_head(
        &self,
        peer: SocketAddr,
        account: &Account,
        head: MessageHead,
    ) -> Result<CheckedMessage, Rejection> {
        let MessageHead { envelope, framing, encoding, .. } = head;
        let admission = match &envelope {
            Ok(Envelope { to, name, .. }) => self.handler.admit(to, name),
            Err(rejection) => Err(rejection.clone()),
        };
        let max = admission.as_ref().map_or(UNKNOWN_BODY_MAX, |admission| admission.body_max);
        if matches!(framing, Framing::Length(length) if length > max) {
            return Err(Rejection::BodyTooLarge(max));
        }
        let is_registration = admission.as_ref().is_ok_and(|admission| admission.is_registration);
        let is_within_rate = self.addresses.count_message(account, is_registration);
        let envelope = is_within_rate.and(envelope).and_then(|envelope| {
            self.check_sender(peer, &envelope)?;
            admission.clone().map(|_| envelope)
        });
        let is_kept = envelope.is_ok() && admission.is_ok_and(|admission| admission.is_read);
        let limits = BodyLimits { max, is_kept };
        Ok(CheckedMessage { limits, encoding, envelope, is_counted: false, is_registration })
    }

    fn check_sender(&self, peer: SocketAddr, envelope: &Envelope) -> Result<(), Rejection> {
        let claimed = *envelope.from.address.ip();
        if self.options.require_peer_address_match && peer.ip() != IpAddr::V4(claimed) {
            return Err(Rejection::AddressMismatch { claimed, actual: peer.ip() });
        }
        Ok(())
    }

    /// Passes a message to the handler. The handler is notified of every rejection.
    ///
    /// # Errors
    /// If the message is rejected.
    pub(super) async fn receive(
        &self,
        peer: SocketAddr,
        checked: CheckedMessage,
        body: Bytes,
        mut memory: Reservation,
    ) -> Result<(), Rejection> {
        let is_counted = checked.is_counted;
        match assemble(checked, body, &mut memory) {
            Ok(message) => {
                self.handler.deliver(message, memory).await;
                Ok(())
            }
            Err(rejection) => {
                if !is_counted {
                    self.handler.rejected(peer, &rejection);
                }
                Err(rejection)
            }
        }
    }

    /// Creates the empty reservation of a body.
    pub(super) fn body_memory(&self, account: &Arc<Account>) -> Reservation {
        self.addresses.empty_reservation(account, Resource::RequestBytes)
    }
}

/// Assembles the message and decompresses its body.
fn assemble(
    checked: CheckedMessage,
    body: Bytes,
    memory: &mut Reservation,
) -> Result<Incoming, Rejection> {
    let CheckedMessage { limits, encoding, envelope, .. } = checked;
    let Envelope { from, to, name } = envelope?;
    let body = match encoding {
        _ if !limits.is_kept => Bytes::new(),
        Encoding::Identity => body,
        Encoding::Gzip => {
            let sent = body.len();
            framing::inflate(&body, limits.max, |inflated| memory.grow_to(sent + inflated))?
        }
        Encoding::Unknown => return Err(Rejection::Encoding),
    };
    Ok(Incoming { from, to, name, body })
}

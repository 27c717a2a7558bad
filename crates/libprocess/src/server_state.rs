//! The state that the connections of a server share, and the checks of a message before its body is
//! read.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::connections::Connections;
use super::framing::{self, BodyLimits};
use super::head::{Encoding, Envelope, Framing, MessageHead};
use crate::addresses::{Account, Addresses, Reservation, Resource};
use crate::limits::{Limit, Limits};
use crate::{Handler, Incoming, Rejection, UNKNOWN_BODY_MAX};

/// Delay before the next read after a message exceeded a rate limit, because rejected messages also
/// cost time.
pub(super) const RATE_LIMIT_DELAY: Duration = Duration::from_millis(100);

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

/// State shared by the connections of a server.
pub(super) struct ServerState<H> {
    pub(super) handler: Arc<H>,
    pub(super) options: ServerOptions,
    pub(super) addresses: Arc<Addresses>,
    pub(super) connections: Arc<Connections>,
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
    pub(super) fn new(handler: Arc<H>, options: ServerOptions) -> Self {
        let limits = &options.limits;
        let connections =
            Connections::new(limits, Limit::Connections, Limit::ConnectionsPerAddress);
        let http =
            Connections::new(limits, Limit::HttpConnections, Limit::HttpConnectionsPerAddress);
        let addresses = Addresses::new(options.limits);
        Self { handler, options, addresses, connections, http }
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

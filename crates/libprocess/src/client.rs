//! The sending side: a bounded queue and at most one connection for each destination address.
//!
//! [`Client::send`] encodes the message into the queue of its peer and returns. The queue is one
//! byte buffer, so one write sends all waiting messages. A slow, dead or hostile peer fills only
//! its own queue and then loses new messages. Senders must repeat important messages anyway,
//! because libprocess does not guarantee delivery.

use std::collections::hash_map;
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::outgoing::{ConnectAttempts, Entry, Peer, Queue, SendError, Shared};
use super::{peer, socket};
use crate::Upid;
use crate::addresses::{Account, Addresses, Resource};
use crate::limits::{Limit, Limits};
use crate::{Handler, Incoming, Receipt, Rejection};

/// Maximum number of destination addresses at a time. It bounds the memory that a host can use by
/// claiming many addresses.
const PEERS_LIMIT: usize = 32 * 1024;

/// Maximum number of waiting messages to processes of this program.
const OWN_QUEUE: usize = 1024;

/// Sends messages and keeps links. Dropping the client closes all its connections.
pub struct Client<H> {
    shared: Arc<Shared<H>>,
    own: mpsc::Sender<Incoming>,
}

impl<H> fmt::Debug for Client<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("own", &self.shared.own).finish_non_exhaustive()
    }
}

impl<H: Handler> Client<H> {
    /// Creates a client of the program with the advertised address `own`. Connections use this
    /// address as their source, if the host has it, because peers may require a matching address.
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn new(own: SocketAddrV4, handler: Arc<H>, limits: &Limits) -> Self {
        let (sender, messages) = mpsc::channel(OWN_QUEUE);
        tokio::spawn(deliver_own(own, Arc::clone(&handler), *limits, messages));
        let descriptors = socket::descriptor_limit();
        let shared = Shared {
            own,
            handler,
            runtime: Handle::current(),
            peers: Mutex::default(),
            connects: Semaphore::new(limits.size(Limit::Connects).min(Semaphore::MAX_PERMITS)),
            connect_attempts: ConnectAttempts::new(limits.size(Limit::ConnectsPerAddress)),
            write_timeout: limits.timeout(Limit::WriteTimeout),
            descriptors,
            // At most half of the descriptors. Accepted connections may use three quarters, so
            // `descriptor_eighths` shortens idle times before both limits are reached.
            peers_max: PEERS_LIMIT.min(descriptors / 2),
            unsent: Arc::default(),
            unsent_max: limits.size(Limit::UnsentBytes),
            unsent_max_per_address: limits.size(Limit::UnsentBytesPerAddress),
            lost: AtomicU64::new(0),
            error_replies: AtomicU64::new(0),
            is_source_unavailable: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), own: sender }
    }

    /// Queues a message. Delivery is not guaranteed and not reported. Messages to one address
    /// arrive in order. A message to a process of this program is delivered without a connection,
    /// as in libprocess, so the advertised address need not be reachable from this host.
    pub fn send(&self, from: &Upid, to: &Upid, name: &str, body: &[u8], receipt: Receipt) {
        if to.address == self.shared.own {
            let message = Incoming {
                from: from.clone(),
                to: to.id.clone(),
                name: name.to_owned(),
                body: Bytes::copy_from_slice(body),
            };
            if self.own.try_send(message).is_err() {
                self.shared.count_lost(1);
                log::warn!(
                    "send {name} to {to}: message lost: the queue of local messages is full"
                );
            }
            return;
        }
        let shared = &self.shared;
        let mut failure = None;
        let is_queued = shared.with_peer(to.address, |queue| {
            failure = shared.queue_message(queue, (from, to), (name, body), receipt).err();
            failure.is_none()
        });
        if is_queued {
            return;
        }
        shared.count_lost(1);
        self.report(to, name, &failure.unwrap_or(SendError::TooManyPeers));
    }

    /// Reports a message that was not queued. The caller must not hold the lock of the peers,
    /// because the log may be on a disk that hangs.
    fn report(&self, to: &Upid, name: &str, failure: &SendError) {
        match failure {
            SendError::Full { limit, waiting, rejected } => {
                self.shared.handler.rejected(to.address.into(), &Rejection::Limit(*limit));
                if rejected.is_power_of_two() {
                    log::warn!(
                        "send {name} to {to}: message lost: {waiting} messages wait for the peer, \
                         {rejected} lost so far (limits.{}): see whether the peer hangs",
                        limit.key()
                    );
                }
            }
            SendError::TooManyPeers => {
                log::warn!(
                    "send {name} to {to}: message lost: already sending to {} addresses, the \
                     maximum for {} open files: raise the limit of open files (LimitNOFILE=)",
                    self.shared.peers_max,
                    self.shared.descriptors
                );
            }
            SendError::Unprintable => {
                log::warn!(
                    "send {name} to {to}: message lost: a name in the message is not printable"
                );
            }
        }
    }

    /// Links to a peer: keeps a connection open and calls [`Handler::exited`] once when it ends. A
    /// link sends no data. A second link to the same peer, or a link to this program, has no
    /// effect.
    pub fn link(&self, to: SocketAddrV4) {
        if to == self.shared.own {
            return;
        }
        let is_linked = self.shared.with_peer(to, |queue| {
            queue.is_linked = true;
            true
        });
        if !is_linked {
            let handler = Arc::clone(&self.shared.handler);
            self.shared.runtime.spawn(async move { handler.exited(to).await });
        }
    }

    /// Returns the number of messages known to be lost: the queue was full, the peer was
    /// unreachable, or the connection ended before the acknowledgment of a message with
    /// [`Receipt::Always`].
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl<H> Drop for Client<H> {
    fn drop(&mut self) {
        for (_, entry) in self.shared.peers.lock().drain() {
            entry.task.abort();
        }
    }
}

/// Delivers messages to processes of this program in order.
async fn deliver_own<H: Handler>(
    own: SocketAddrV4,
    handler: Arc<H>,
    limits: Limits,
    mut messages: mpsc::Receiver<Incoming>,
) {
    // Local messages have no memory limit: the queue bounds their number.
    let addresses = Addresses::new(limits);
    let account = Arc::<Account>::default();
    while let Some(message) = messages.recv().await {
        match handler.admit(&message.to, &message.name) {
            Ok(_) => {
                let memory = addresses.empty_reservation(&account, Resource::RequestBytes);
                handler.deliver(message, memory).await;
            }
            Err(rejection) => handler.rejected(SocketAddr::V4(own), &rejection),
        }
    }
}

impl<H: Handler> Shared<H> {
    /// Changes the queue of a peer and starts the task of the peer if necessary. Returns false if
    /// there are too many peers, or if `change` returns false.
    fn with_peer(
        self: &Arc<Self>,
        address: SocketAddrV4,
        change: impl FnOnce(&mut Queue) -> bool,
    ) -> bool {
        let mut peers = self.peers.lock();
        let is_full = peers.len() >= self.peers_max;
        match peers.entry(address) {
            hash_map::Entry::Occupied(entry) => {
                let peer = &entry.get().peer;
                let is_changed = change(&mut peer.queue.lock());
                peer.changed.notify_one();
                is_changed
            }
            hash_map::Entry::Vacant(_) if is_full => false,
            hash_map::Entry::Vacant(entry) => {
                let mut queue = Queue::default();
                let is_changed = change(&mut queue);
                if queue.is_idle() {
                    return is_changed;
                }
                let peer =
                    Arc::new(Peer { address, queue: Mutex::new(queue), changed: Notify::new() });
                let task = peer::run(Arc::clone(self), Arc::clone(&peer));
                let task = self.runtime.spawn(task).abort_handle();
                entry.insert(Entry { peer, task });
                is_changed
            }
        }
    }
}

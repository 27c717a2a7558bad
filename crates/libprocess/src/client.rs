//! The sending side: a bounded queue and at most one connection for each destination address.
//!
//! [`Client::send`] encodes the message into the queue of its peer and returns. The queue is one
//! byte buffer, so one write sends all waiting messages. A slow, dead or hostile peer fills only
//! its own queue and then loses new messages. Senders must repeat important messages anyway,
//! because libprocess does not guarantee delivery.

use std::collections::HashMap;
use std::collections::hash_map;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::{encode, peer, socket};
use crate::Upid;
use crate::addresses::{Account, Addresses, Resource};
use crate::limits::{Limit, Limits};
use crate::{Handler, Incoming, Rejection};

/// Maximum number of messages that wait for one peer. A longer queue means that the peer hangs.
const QUEUE_MESSAGES: usize = 1024;

/// Maximum number of destination addresses at a time. It bounds the memory that a host can use by
/// claiming many addresses.
const PEERS_LIMIT: usize = 32 * 1024;

/// A message up to this length may use the reserved part of the unsent bytes.
const SHORT_MESSAGE: usize = 64 * 1024;

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
    pub fn send(&self, from: &Upid, to: &Upid, name: &str, body: &Bytes) {
        if to.address == self.shared.own {
            let message = Incoming {
                from: from.clone(),
                to: to.id.clone(),
                name: name.to_owned(),
                body: body.clone(),
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
            failure = shared.queue_message(queue, (from, to), name, body).err();
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
    /// unreachable, or the connection ended before the acknowledgment.
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

/// Why a message was not queued.
#[derive(Debug)]
enum SendError {
    /// A limit is reached. `waiting` and `rejected` count the waiting and the lost messages of the
    /// peer.
    Full { limit: Limit, waiting: usize, rejected: u64 },
    /// The maximum number of destination addresses is reached.
    TooManyPeers,
    /// A name in the message would corrupt the request line or a header.
    Unprintable,
}

/// State shared by the peers of a client.
pub(super) struct Shared<H> {
    pub(super) own: SocketAddrV4,
    pub(super) handler: Arc<H>,
    pub(super) connects: Semaphore,
    pub(super) connect_attempts: ConnectAttempts,
    /// Timeout of a write to a peer that does not read.
    pub(super) write_timeout: Duration,
    /// Limit of open descriptors of this process.
    descriptors: usize,
    /// Maximum number of destination addresses.
    peers_max: usize,
    /// Whether the host does not have the advertised address.
    pub(super) is_source_unavailable: AtomicBool,
    runtime: Handle,
    peers: Mutex<HashMap<SocketAddrV4, Entry>>,
    lost: AtomicU64,
    /// Number of messages that peers rejected.
    error_replies: AtomicU64,
    /// Bytes in the queues of all peers.
    unsent: Arc<AtomicUsize>,
    unsent_max: usize,
    /// Maximum bytes in the queue of one peer. A single message may be longer.
    unsent_max_per_address: usize,
}

struct Entry {
    peer: Arc<Peer>,
    task: AbortHandle,
}

/// A destination address.
pub(super) struct Peer {
    pub(super) address: SocketAddrV4,
    pub(super) queue: Mutex<Queue>,
    /// Notifies the task of the peer when the queue changes.
    pub(super) changed: Notify,
}

/// The queue of a peer.
#[derive(Default)]
pub(super) struct Queue {
    /// Encoded messages.
    pub(super) bytes: Vec<u8>,
    /// Counts `bytes` in the total of unsent bytes.
    pub(super) held: UnsentBytes,
    pub(super) messages: usize,
    pub(super) is_linked: bool,
    /// Number of messages that did not fit.
    rejected: u64,
}

/// Connection attempts in progress for each address.
#[derive(Debug)]
pub(super) struct ConnectAttempts {
    max: usize,
    by_address: Mutex<HashMap<Ipv4Addr, usize>>,
}

impl ConnectAttempts {
    fn new(max: usize) -> Self {
        Self { max, by_address: Mutex::default() }
    }

    /// Returns a permit for a connection attempt to `address`, or `None` at the limit. Because of
    /// the limit, an address that does not answer delays only the messages to this address.
    pub(super) fn begin(&self, address: Ipv4Addr) -> Option<ConnectPermit<'_>> {
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(ConnectPermit { connect_attempts: self, address })
    }
}

/// A permit for one connection attempt. Dropping the permit releases it.
#[derive(Debug)]
pub(super) struct ConnectPermit<'a> {
    connect_attempts: &'a ConnectAttempts,
    address: Ipv4Addr,
}

impl Drop for ConnectPermit<'_> {
    fn drop(&mut self) {
        let mut by_address = self.connect_attempts.by_address.lock();
        if let hash_map::Entry::Occupied(mut count) = by_address.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// A counted part of the total of unsent bytes. Dropping the part subtracts it from the total.
#[derive(Debug, Default)]
pub(super) struct UnsentBytes {
    total: Option<Arc<AtomicUsize>>,
    bytes: usize,
}

impl UnsentBytes {
    /// Counts at least `bytes` in `total`. The counted part never shrinks.
    fn grow_to(&mut self, total: &Arc<AtomicUsize>, bytes: usize) {
        let total = self.total.get_or_insert_with(|| Arc::clone(total));
        total.fetch_add(bytes.saturating_sub(self.bytes), Ordering::Relaxed);
        self.bytes = self.bytes.max(bytes);
    }
}

impl Drop for UnsentBytes {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Queue {
    /// Whether no message waits and no link exists.
    pub(super) const fn is_idle(&self) -> bool {
        self.messages == 0 && !self.is_linked
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

    /// Encodes a message into the queue of its peer.
    fn queue_message(
        &self,
        queue: &mut Queue,
        (from, to): (&Upid, &Upid),
        name: &str,
        body: &Bytes,
    ) -> Result<(), SendError> {
        if let Err(limit) = self.check_capacity(queue, body.len()) {
            queue.rejected += 1;
            let (waiting, rejected) = (queue.messages, queue.rejected);
            return Err(SendError::Full { limit, waiting, rejected });
        }
        if !encode::message(&mut queue.bytes, from, to, name, body) {
            return Err(SendError::Unprintable);
        }
        queue.held.grow_to(&self.unsent, queue.bytes.len());
        queue.messages += 1;
        Ok(())
    }

    /// Checks that a message of `length` bytes may be queued.
    ///
    /// # Errors
    /// Returns the limit that is reached.
    fn check_capacity(&self, queue: &Queue, length: usize) -> Result<(), Limit> {
        if queue.messages >= QUEUE_MESSAGES {
            return Err(Limit::UnsentBytesPerAddress);
        }
        let is_first = queue.messages == 0;
        if !is_first && queue.bytes.len() + length > self.unsent_max_per_address {
            return Err(Limit::UnsentBytesPerAddress);
        }
        // A quarter is reserved for short messages to peers with an empty queue.
        let most = if is_first && length <= SHORT_MESSAGE {
            self.unsent_max
        } else {
            self.unsent_max / 4 * 3
        };
        if self.unsent.load(Ordering::Relaxed) + length > most {
            return Err(Limit::UnsentBytes);
        }
        Ok(())
    }

    /// Removes a peer if it is idle. The lock prevents a concurrent send from queueing a message.
    pub(super) fn remove_if_idle(&self, peer: &Peer) -> bool {
        let mut peers = self.peers.lock();
        let is_idle = peer.queue.lock().is_idle();
        if is_idle {
            peers.remove(&peer.address);
        }
        is_idle
    }

    /// Removes a peer and returns its queue.
    pub(super) fn remove(&self, peer: &Peer) -> Queue {
        let mut peers = self.peers.lock();
        peers.remove(&peer.address);
        std::mem::take(&mut *peer.queue.lock())
    }

    /// Estimates how many eighths of the descriptors of this process are in use. The system assigns
    /// the lowest free number, so the number of `newest` approximates the count of all descriptors,
    /// including accepted connections and files.
    pub(super) fn descriptor_eighths(&self, newest: impl AsFd) -> usize {
        let number = usize::try_from(newest.as_fd().as_raw_fd()).unwrap_or_default();
        number / (self.descriptors / 8).max(1)
    }

    pub(super) fn count_lost(&self, messages: usize) {
        self.lost.fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Counts a message that a peer rejected, and returns the new count.
    pub(super) fn count_error_reply(&self) -> u64 {
        self.error_replies.fetch_add(1, Ordering::Relaxed) + 1
    }
}

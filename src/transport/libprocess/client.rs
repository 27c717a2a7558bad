//! What we send: a bounded queue and at most one connection for each address that we send to.
//!
//! [`Client::send`] encodes the message straight into the queue of its peer and returns. The queue
//! is one buffer of bytes, so however many messages wait, they go out in one write. A peer that is
//! slow, dead or hostile fills its own queue only, and then loses its newest messages: who sends
//! messages like these has to repeat them anyway.

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
use crate::addr::Upid;
use crate::limits::{Limit, Limits};
use crate::machine::is_worth_a_line;
use crate::transport::addresses::{Account, Addresses, Resource};
use crate::transport::{Handler, Incoming, Refusal};

/// Messages that wait for one peer. A peer is sent a handful in its life; this many means that it
/// hangs.
const QUEUE_MESSAGES: usize = 1024;

/// Addresses that we send to at a time. More than the agents of the largest cluster; it bounds what
/// a liar can make us hold by claiming to be many.
const PEERS_LIMIT: usize = 32 * 1024;

/// A message up to this length finds the share of unsent bytes that is kept: an assignment, and
/// what has changed of the peers, but not a large table of them.
const SHORT_MESSAGE: usize = 64 * 1024;

/// Messages to processes of this program that wait.
const OWN_QUEUE: usize = 1024;

/// Sends messages and keeps links. Dropped, it closes all its connections.
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
    /// A client of the program that others know as `own`. Its connections come from that address,
    /// which peers may demand, if the host has it. To be called within a tokio runtime.
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
            connecting: Connecting::new(limits.size(Limit::ConnectsPerAddress)),
            write_timeout: limits.timeout(Limit::WriteTimeout),
            descriptors,
            // At most half of the descriptors. Accepted connections may take three quarters, so
            // `crowd` shortens idle times before both are full.
            peers_max: PEERS_LIMIT.min(descriptors / 2),
            unsent: Arc::default(),
            unsent_max: limits.size(Limit::UnsentBytes),
            unsent_max_per_address: limits.size(Limit::UnsentBytesPerAddress),
            lost: AtomicU64::new(0),
            complaints: AtomicU64::new(0),
            is_source_foreign: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), own: sender }
    }

    /// Sends a message, if it can be: nothing tells whether it arrived. Messages to one address
    /// arrive in order. One to a process of this program does not leave it, as in libprocess, so
    /// that it arrives even where our advertised address cannot be reached from here.
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
                log::warn!("send {name} to {to}: its queue is full: the message is lost");
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

    /// Counts and logs a message that was not queued: not under the lock of the peers, since the
    /// log may be on a disk that hangs.
    fn report(&self, to: &Upid, name: &str, failure: &SendError) {
        match failure {
            SendError::Full { limit, waiting, refused } => {
                self.shared.handler.refused(to.address.into(), &Refusal::Limit(*limit));
                if is_worth_a_line(*refused) {
                    log::warn!(
                        "send {name} to {to}: message lost: {waiting} messages wait for the peer, \
                         {refused} lost so far (limits.{}): see whether the peer hangs",
                        limit.key()
                    );
                }
            }
            SendError::TooManyPeers => {
                log::warn!(
                    "send {name} to {to}: message lost: already sending to {} addresses, the most \
                     for {} open files: raise the limit of open files (LimitNOFILE=)",
                    self.shared.peers_max,
                    self.shared.descriptors
                );
            }
            SendError::Unprintable => {
                log::warn!(
                    "send {name} to {to}: a name in it is not printable: the message is lost"
                );
            }
        }
    }

    /// Keeps a connection to a peer until it ends, and then tells [`Handler::exited`] once. Nothing
    /// is sent by it. Linking twice is linking once; linking to ourselves does nothing.
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

    /// How many messages were lost so far, as far as we know: there was no room for them, or their
    /// peer could not be reached or left without a receipt.
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

/// Delivers messages within the program, in order.
async fn deliver_own<H: Handler>(
    own: SocketAddrV4,
    handler: Arc<H>,
    limits: Limits,
    mut messages: mpsc::Receiver<Incoming>,
) {
    // Messages of our own are not limited: their number is, by the queue.
    let addresses = Addresses::new(limits);
    let account = Arc::<Account>::default();
    while let Some(message) = messages.recv().await {
        match handler.admit(&message.to, &message.name) {
            Ok(_) => {
                let memory = addresses.empty_reservation(&account, Resource::RequestBytes);
                handler.deliver(message, memory).await;
            }
            Err(refusal) => handler.refused(SocketAddr::V4(own), &refusal),
        }
    }
}

/// Why a message was not queued.
#[derive(Debug)]
enum SendError {
    /// Too much waits: the limit that is reached, how many messages wait for the peer, and how many
    /// it has lost.
    Full { limit: Limit, waiting: usize, refused: u64 },
    /// Messages are being sent to as many others as can be.
    TooManyPeers,
    /// A name in the message would break the request line or a header.
    Unprintable,
}

/// What the peers of a client share.
pub(super) struct Shared<H> {
    pub(super) own: SocketAddrV4,
    pub(super) handler: Arc<H>,
    pub(super) connects: Semaphore,
    pub(super) connecting: Connecting,
    /// How long a write to a peer may wait for the peer to read.
    pub(super) write_timeout: Duration,
    /// How many descriptors this process may have.
    descriptors: usize,
    /// Addresses that we send to at a time.
    peers_max: usize,
    /// Whether our advertised address turned out not to be one of this host.
    pub(super) is_source_foreign: AtomicBool,
    runtime: Handle,
    peers: Mutex<HashMap<SocketAddrV4, Entry>>,
    lost: AtomicU64,
    /// Messages that peers have refused.
    complaints: AtomicU64,
    /// Bytes that wait for all peers.
    unsent: Arc<AtomicUsize>,
    unsent_max: usize,
    /// Bytes that may wait for one peer; one message may be longer.
    unsent_max_per_address: usize,
}

struct Entry {
    peer: Arc<Peer>,
    task: AbortHandle,
}

/// One address that we send to.
pub(super) struct Peer {
    pub(super) address: SocketAddrV4,
    pub(super) queue: Mutex<Queue>,
    /// Tells the peer's task that its queue has changed.
    pub(super) changed: Notify,
}

/// What waits for a peer.
#[derive(Default)]
pub(super) struct Queue {
    /// Whole messages, encoded.
    pub(super) bytes: Vec<u8>,
    /// What `bytes` holds of all that may wait.
    pub(super) held: Unsent,
    pub(super) messages: usize,
    pub(super) is_linked: bool,
    /// Messages that found no room.
    refused: u64,
}

/// How many connections to each address are being made.
#[derive(Debug)]
pub(super) struct Connecting {
    max: usize,
    by_address: Mutex<HashMap<Ipv4Addr, usize>>,
}

impl Connecting {
    fn new(max: usize) -> Self {
        Self { max, by_address: Mutex::default() }
    }

    /// A permit for one more connection attempt to `address`, or `None` at the limit. So an address
    /// whose ports do not answer delays the messages to that address only.
    pub(super) fn begin(&self, address: Ipv4Addr) -> Option<ConnectPermit<'_>> {
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(ConnectPermit { connecting: self, address })
    }
}

/// A connection that is being made; given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectPermit<'a> {
    connecting: &'a Connecting,
    address: Ipv4Addr,
}

impl Drop for ConnectPermit<'_> {
    fn drop(&mut self) {
        let mut by_address = self.connecting.by_address.lock();
        if let hash_map::Entry::Occupied(mut count) = by_address.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Bytes that count as unsent until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    total: Option<Arc<AtomicUsize>>,
    bytes: usize,
}

impl Unsent {
    /// Holds `bytes` of `total` from now on; never fewer than before.
    fn hold(&mut self, total: &Arc<AtomicUsize>, bytes: usize) {
        let total = self.total.get_or_insert_with(|| Arc::clone(total));
        total.fetch_add(bytes.saturating_sub(self.bytes), Ordering::Relaxed);
        self.bytes = self.bytes.max(bytes);
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Queue {
    /// Whether the peer is of no use now.
    pub(super) const fn is_idle(&self) -> bool {
        self.messages == 0 && !self.is_linked
    }
}

impl<H: Handler> Shared<H> {
    /// Changes the queue of a peer, which gets its task if it has none. False if there are too many
    /// peers, or `change` says so.
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

    /// Puts a message into the queue of its peer.
    fn queue_message(
        &self,
        queue: &mut Queue,
        (from, to): (&Upid, &Upid),
        name: &str,
        body: &Bytes,
    ) -> Result<(), SendError> {
        if let Err(limit) = self.check_capacity(queue, body.len()) {
            queue.refused += 1;
            let (waiting, refused) = (queue.messages, queue.refused);
            return Err(SendError::Full { limit, waiting, refused });
        }
        if !encode::message(&mut queue.bytes, from, to, name, body) {
            return Err(SendError::Unprintable);
        }
        queue.held.hold(&self.unsent, queue.bytes.len());
        queue.messages += 1;
        Ok(())
    }

    /// Checks that a message of `length` bytes may be queued.
    ///
    /// # Errors
    /// The limit that is reached.
    fn check_capacity(&self, queue: &Queue, length: usize) -> Result<(), Limit> {
        if queue.messages >= QUEUE_MESSAGES {
            return Err(Limit::UnsentBytesPerAddress);
        }
        let is_first = queue.messages == 0;
        if !is_first && queue.bytes.len() + length > self.unsent_max_per_address {
            return Err(Limit::UnsentBytesPerAddress);
        }
        // A quarter is kept for short messages to peers for which nothing waits.
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

    /// Ends a peer unless something is left to do for it. Nobody can queue anything meanwhile.
    pub(super) fn remove_if_idle(&self, peer: &Peer) -> bool {
        let mut peers = self.peers.lock();
        let is_idle = peer.queue.lock().is_idle();
        if is_idle {
            peers.remove(&peer.address);
        }
        is_idle
    }

    /// Ends a peer and gives what was still to be done for it.
    pub(super) fn remove(&self, peer: &Peer) -> Queue {
        let mut peers = self.peers.lock();
        peers.remove(&peer.address);
        std::mem::take(&mut *peer.queue.lock())
    }

    /// How many eighths of all descriptors of this process are in use, now that `newest` was made.
    /// The system gives the lowest free number: so the newest one tells without counting, and
    /// includes the connections that we accepted and everything else.
    pub(super) fn crowd(&self, newest: impl AsFd) -> usize {
        let number = usize::try_from(newest.as_fd().as_raw_fd()).unwrap_or_default();
        number / (self.descriptors / 8).max(1)
    }

    pub(super) fn count_lost(&self, messages: usize) {
        self.lost.fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Counts a message that a peer has refused, and says how many there were with it.
    pub(super) fn count_complaint(&self) -> u64 {
        self.complaints.fetch_add(1, Ordering::Relaxed) + 1
    }
}

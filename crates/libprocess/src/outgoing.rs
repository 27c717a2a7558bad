//! The state that a client and the tasks of its peers share: queues, counters, permits.

use std::collections::HashMap;
use std::collections::hash_map;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use super::encode;
use crate::limits::Limit;
use crate::{Handler, Receipt, Upid};

/// Maximum number of messages that wait for one peer. A longer queue means that the peer hangs.
const QUEUE_MESSAGES: usize = 1024;

/// A message up to this length may use the reserved part of the unsent bytes.
const SHORT_MESSAGE: usize = 64 * 1024;

/// Why a message was not queued.
#[derive(Debug)]
pub(super) enum SendError {
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
    pub(super) descriptors: usize,
    /// Maximum number of destination addresses.
    pub(super) peers_max: usize,
    /// Whether the host does not have the advertised address.
    pub(super) is_source_unavailable: AtomicBool,
    pub(super) runtime: Handle,
    pub(super) peers: Mutex<HashMap<SocketAddrV4, Entry>>,
    pub(super) lost: AtomicU64,
    /// Number of messages that peers rejected.
    pub(super) error_replies: AtomicU64,
    /// Bytes in the queues of all peers.
    pub(super) unsent: Arc<AtomicUsize>,
    pub(super) unsent_max: usize,
    /// Maximum bytes in the queue of one peer. A single message may be longer.
    pub(super) unsent_max_per_address: usize,
}

/// A destination address with the task that sends to it.
pub(super) struct Entry {
    pub(super) peer: Arc<Peer>,
    pub(super) task: AbortHandle,
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
    /// Number of these messages that the peer acknowledges.
    pub(super) receipts: usize,
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
    pub(super) fn new(max: usize) -> Self {
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
    /// Encodes a message into the queue of its peer.
    pub(super) fn queue_message(
        &self,
        queue: &mut Queue,
        (from, to): (&Upid, &Upid),
        (name, body): (&str, &[u8]),
        receipt: Receipt,
    ) -> Result<(), SendError> {
        if let Err(limit) = self.check_capacity(queue, body.len()) {
            queue.rejected += 1;
            let (waiting, rejected) = (queue.messages, queue.rejected);
            return Err(SendError::Full { limit, waiting, rejected });
        }
        if !encode::message(&mut queue.bytes, from, to, (name, body), receipt) {
            return Err(SendError::Unprintable);
        }
        queue.held.grow_to(&self.unsent, queue.bytes.len());
        queue.messages += 1;
        queue.receipts += usize::from(receipt == Receipt::Always);
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

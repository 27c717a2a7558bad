//! The task of a destination address: connects, writes the queue, reads the acknowledgments, and
//! closes an idle connection.
//!
//! The task reads while a write waits. Otherwise two programs that wait for each other to read
//! would deadlock.
//!
//! Messages written before a connection breaks are not sent again. Their delivery is unknown, and
//! libprocess delivers a message at most once.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::outgoing::{Peer, Shared, UnsentBytes};
use super::replies::Replies;
use super::socket;
use crate::limits::Limit;
use crate::{Handler, Rejection};

/// Timeout of a connection attempt.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// How long an unlinked connection stays open after its last use. A typical exchange of messages
/// fits into this time, and a new connection costs more than the exchange.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// The idle time if three quarters of the descriptors are in use. From seven eighths on, a
/// connection is closed as soon as its acknowledgments have arrived. A server with 10,000 peers
/// must not need 10,000 descriptors in addition to those of the peers' own links. With enough
/// descriptors connections stay open, because a second connection attempt for the next message is
/// expensive.
const SHORT_IDLE_TIME: Duration = Duration::from_millis(200);

/// Buffer size of one read of acknowledgments.
const READ_SIZE: usize = 2048;

/// How a connection ended.
enum EndReason {
    /// The idle connection was closed and the peer removed.
    Idle,
    /// The peer closed the connection while nothing was being sent.
    Closed,
    /// The connection attempt failed or the connection broke.
    Failed(&'static str, io::Error),
}

/// Serves a peer until it is idle or unreachable.
pub(super) async fn run<H: Handler>(shared: Arc<Shared<H>>, peer: Arc<Peer>) {
    loop {
        let (end, unconfirmed) = match connect(&shared, peer.address).await {
            Ok(stream) => {
                let mut connection = OutgoingConnection::new(stream, &shared, &peer);
                let end = connection.serve().await;
                let unconfirmed = connection.awaited;
                drop(connection);
                (end, unconfirmed)
            }
            Err(error) => (EndReason::Failed("connect to", error), 0),
        };
        if matches!(end, EndReason::Idle) {
            return;
        }
        let must_reconnect = matches!(end, EndReason::Closed) && {
            // The peer closed an idle connection while a message was being queued.
            let queue = peer.queue.lock();
            queue.messages > 0 && !queue.is_linked
        };
        if must_reconnect {
            continue;
        }
        // A later message or link starts a new task with a new connection.
        let queue = shared.remove(&peer);
        let lost = queue.messages + unconfirmed;
        shared.count_lost(lost);
        match end {
            EndReason::Failed(action, error) => log::warn!(
                "{action} {}: {error}: {} lost: see whether the peer runs and is reachable",
                peer.address,
                MessageCount(lost)
            ),
            _ if lost > 0 => log::warn!(
                "send to {}: the peer closed the connection: {} may be lost",
                peer.address,
                MessageCount(lost)
            ),
            _ => log::debug!("peer {} closed the connection", peer.address),
        }
        if queue.is_linked {
            shared.handler.exited(peer.address).await;
        }
        return;
    }
}

async fn connect<H: Handler>(shared: &Shared<H>, address: SocketAddrV4) -> io::Result<TcpStream> {
    let Some(_attempt) = shared.connect_attempts.begin(*address.ip()) else {
        let limit = Limit::ConnectsPerAddress;
        shared.handler.rejected(address.into(), &Rejection::Limit(limit));
        let reason = format!("too many connection attempts to this host (limits.{})", limit.key());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, reason));
    };
    let _permit = match shared.connects.try_acquire() {
        Ok(permit) => permit,
        Err(_) => {
            shared.handler.rejected(address.into(), &Rejection::Limit(Limit::Connects));
            // The semaphore is never closed.
            shared.connects.acquire().await.map_err(io::Error::other)?
        }
    };
    let socket = socket_from(shared)?;
    let stream = timeout(CONNECT_TIME, socket.connect(SocketAddr::V4(address)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))??;
    // TCP can connect to itself: an unused destination port may be chosen as the source port.
    if address.ip() == shared.own.ip() && stream.local_addr()? == SocketAddr::V4(address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Creates a socket with the advertised address as its source. If the host does not have this
/// address, for example behind a NAT, the system chooses the source.
fn socket_from<H: Handler>(shared: &Shared<H>) -> io::Result<TcpSocket> {
    let socket = socket::outgoing()?;
    if shared.is_source_unavailable.load(Ordering::Relaxed) || shared.own.ip().is_unspecified() {
        return Ok(socket);
    }
    match socket::bind_source(&socket, *shared.own.ip()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            if !shared.is_source_unavailable.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "send from {}: this host has no such address: the system chooses the source \
                     address; peers with require_peer_address_ip_match will reject messages",
                    shared.own.ip()
                );
            }
            Ok(socket)
        }
        bound => bound.map(|()| socket),
    }
}

/// An established connection.
struct OutgoingConnection<'a, H> {
    stream: TcpStream,
    shared: &'a Shared<H>,
    peer: &'a Peer,
    output: Vec<u8>,
    /// Counts `output` in the total of unsent bytes.
    held: UnsentBytes,
    written: usize,
    /// Number of expected acknowledgments.
    awaited: usize,
    replies: Replies,
    /// Time of the last write or read.
    used: Instant,
    /// How many eighths of the descriptors were in use when the connection was established.
    descriptor_eighths: usize,
    is_linked: bool,
}

impl<'a, H: Handler> OutgoingConnection<'a, H> {
    fn new(stream: TcpStream, shared: &'a Shared<H>, peer: &'a Peer) -> Self {
        let descriptor_eighths = shared.descriptor_eighths(&stream);
        Self {
            stream,
            shared,
            peer,
            output: Vec::new(),
            held: UnsentBytes::default(),
            written: 0,
            awaited: 0,
            replies: Replies::default(),
            used: Instant::now(),
            descriptor_eighths,
            is_linked: false,
        }
    }

    async fn serve(&mut self) -> EndReason {
        loop {
            self.take_queue();
            if let Err(error) = self.write() {
                return EndReason::Failed("send to", error);
            }
            let is_writing = !self.output.is_empty();
            let interest = if is_writing {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let deadline = self.deadline();
            let ready = tokio::select! {
                // Check for the end of the connection first, so that a new message is not written
                // to a closed connection.
                biased;
                ready = self.stream.ready(interest) => ready,
                () = self.peer.changed.notified() => continue,
                () = sleep_until(deadline.unwrap_or(self.used)), if deadline.is_some() => {
                    if is_writing {
                        return EndReason::Failed("send to", io::ErrorKind::TimedOut.into());
                    }
                    if self.shared.remove_if_idle(self.peer) {
                        return EndReason::Idle;
                    }
                    continue;
                }
            };
            let is_open = match ready {
                Ok(ready) if !ready.is_readable() && !ready.is_read_closed() => Ok(true),
                Ok(_) => self.read().await,
                Err(error) => Err(error),
            };
            match is_open {
                Ok(true) => {}
                Ok(false) if is_writing => {
                    return EndReason::Failed("send to", io::ErrorKind::ConnectionReset.into());
                }
                Err(error) if is_writing => return EndReason::Failed("send to", error),
                Ok(false) | Err(_) => return EndReason::Closed,
            }
        }
    }

    /// Takes the queue if all previous messages are written.
    fn take_queue(&mut self) {
        let mut queue = self.peer.queue.lock();
        if self.output.is_empty() && queue.messages > 0 {
            self.output = std::mem::take(&mut queue.bytes);
            self.held = std::mem::take(&mut queue.held);
            queue.messages = 0;
            self.awaited += std::mem::take(&mut queue.receipts);
            self.used = Instant::now();
        }
        let is_linked = queue.is_linked;
        drop(queue);
        if is_linked && !self.is_linked {
            self.is_linked = true;
            if let Err(error) = socket::detect_dead_peer(&self.stream) {
                log::warn!(
                    "enable keepalive for {}: {error}: a crash of the peer may stay undetected",
                    self.peer.address
                );
            }
        }
    }

    /// Writes as much as the socket accepts.
    fn write(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.try_write(&self.output[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.used = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        self.held = UnsentBytes::default();
        self.written = 0;
        Ok(())
    }

    /// Reads acknowledgments. Returns false at the end of the connection.
    async fn read(&mut self) -> io::Result<bool> {
        // Allocated only while there is something to read.
        let mut input = Vec::with_capacity(READ_SIZE);
        match socket::read_now(&mut self.stream, &mut input).await {
            None => return Ok(true),
            Some(Ok(0)) => return Ok(false),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
        let mut error_replies = Vec::new();
        let acknowledgments = self.replies.read(&input, &mut error_replies);
        self.awaited = self.awaited.saturating_sub(acknowledgments);
        for error_reply in error_replies {
            let count = self.shared.count_error_reply();
            // Every sender can cause error replies, so only a sample is logged.
            if count.is_power_of_two() {
                let error = error_reply.describe(self.shared.handler.unknown_process_hint());
                log::warn!(
                    "send to {}: the peer refused a message: {error} ({count} refused since the \
                     start)",
                    self.peer.address
                );
            }
        }
        Ok(true)
    }

    /// Returns the deadline for progress or for a new message.
    fn deadline(&self) -> Option<Instant> {
        if !self.output.is_empty() {
            return Some(self.used + self.shared.write_timeout);
        }
        if self.is_linked {
            return None;
        }
        let idle_time = match self.descriptor_eighths {
            ..6 => IDLE_TIME,
            6 => SHORT_IDLE_TIME,
            // A peer that sends no acknowledgments gets the same time.
            _ if self.awaited > 0 => SHORT_IDLE_TIME,
            _ => Duration::ZERO,
        };
        Some(self.used + idle_time)
    }
}

/// Formats a number of messages: `1 message`, `2 messages`.
struct MessageCount(usize);

impl std::fmt::Display for MessageCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} message{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

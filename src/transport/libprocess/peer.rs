//! One address that we send to: connects, writes what is queued, reads over the receipts, and
//! closes when there is nothing more to do.
//!
//! Reading goes on while writing waits. Otherwise two programs that both wait for the other to take
//! their bytes would wait for ever.
//!
//! What was written when a connection breaks is not written again: nobody knows whether it arrived,
//! and in libprocess a message arrives at most once.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Peer, Shared, Unsent};
use super::replies::Replies;
use super::socket;
use crate::limits::Limit;
use crate::machine::is_worth_a_line;
use crate::transport::{Handler, Refusal};
use crate::words::counted;

/// How long making a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// How long a connection that is not linked stays after its last use. An agent's messages and their
/// answers follow each other within this, and a connection costs more than all of them.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// The same where three quarters of all descriptors are in use; from seven eighths on, a connection
/// goes as soon as its receipts have come. A failover of 10,000 agents must not need 10,000
/// descriptors here beside those for the agents' own links. But as long as there are enough none is
/// saved: a connection that is closed between the two messages to an agent, and made again, is half
/// of the work for that agent once more.
const CROWDED_IDLE_TIME: Duration = Duration::from_millis(200);

/// Room for one read of receipts.
const READ_SIZE: usize = 2048;

/// How a connection ended.
enum End {
    /// We closed it: there was nothing more to do, and the peer is removed.
    Idle,
    /// The peer closed it when nothing was under way.
    Closed,
    /// It could not be made or broke.
    Failed(&'static str, io::Error),
}

/// Serves a peer until there is nothing to do for it, or it cannot be reached.
pub(super) async fn run<H: Handler>(shared: Arc<Shared<H>>, peer: Arc<Peer>) {
    loop {
        let (end, unconfirmed) = match connect(&shared, peer.address).await {
            Ok(stream) => {
                let mut connection = Connection::new(stream, &shared, &peer);
                let end = connection.serve().await;
                let unconfirmed = connection.awaited;
                drop(connection);
                (end, unconfirmed)
            }
            Err(error) => (End::Failed("connect to", error), 0),
        };
        if matches!(end, End::Idle) {
            return;
        }
        let is_again = matches!(end, End::Closed) && {
            // The peer closed an idle connection just when something was queued: that is not its
            // fault.
            let queue = peer.queue.lock();
            queue.messages > 0 && !queue.is_linked
        };
        if is_again {
            continue;
        }
        // Whoever queues or links from here on gets a new task, and with it a new connection.
        let queue = shared.remove(&peer);
        let lost = queue.messages + unconfirmed;
        shared.count_lost(lost);
        match end {
            End::Failed(what, error) => log::warn!(
                "{what} {}: {error}: {} lost: see whether it runs and can be reached",
                peer.address,
                counted(lost, "message")
            ),
            _ if lost > 0 => log::warn!(
                "send to {}: it closed the connection: {} may be lost",
                peer.address,
                counted(lost, "message")
            ),
            _ => log::debug!("the connection to {} was closed by it", peer.address),
        }
        if queue.is_linked {
            shared.handler.exited(peer.address).await;
        }
        return;
    }
}

async fn connect<H: Handler>(shared: &Shared<H>, address: SocketAddrV4) -> io::Result<TcpStream> {
    let Some(_place) = shared.connecting.begin(*address.ip()) else {
        let limit = Limit::ConnectsPerAddress;
        shared.handler.refused(address.into(), &Refusal::Limit(limit));
        let reason =
            format!("too many connections to this host are being made (limits.{})", limit.key());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, reason));
    };
    let _permit = match shared.connects.try_acquire() {
        Ok(permit) => permit,
        Err(_) => {
            shared.handler.refused(address.into(), &Refusal::Limit(Limit::Connects));
            // The semaphore is never closed.
            shared.connects.acquire().await.map_err(io::Error::other)?
        }
    };
    let socket = socket_from(shared)?;
    let stream = timeout(CONNECT_TIME, socket.connect(SocketAddr::V4(address)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))??;
    // A port that nobody listens on may become our own source port, and TCP then connects to
    // itself.
    if address.ip() == shared.own.ip() && stream.local_addr()? == SocketAddr::V4(address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// A socket that sends from our advertised address. Where that is not an address of this host, as
/// behind a NAT, the system chooses.
fn socket_from<H: Handler>(shared: &Shared<H>) -> io::Result<TcpSocket> {
    let socket = socket::outgoing()?;
    if shared.is_source_foreign.load(Ordering::Relaxed) || shared.own.ip().is_unspecified() {
        return Ok(socket);
    }
    match socket::bind_source(&socket, *shared.own.ip()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            if !shared.is_source_foreign.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "send from {}: this host has no such address: sending from whichever the system \
                     chooses; peers with require_peer_address_ip_match will refuse that",
                    shared.own.ip()
                );
            }
            Ok(socket)
        }
        bound => bound.map(|()| socket),
    }
}

/// A connection that was made.
struct Connection<'a, H> {
    stream: TcpStream,
    shared: &'a Shared<H>,
    peer: &'a Peer,
    output: Vec<u8>,
    /// What `output` holds of all that may be unsent.
    held: Unsent,
    written: usize,
    /// Receipts that are still to come.
    awaited: usize,
    replies: Replies,
    /// When something was last written or received.
    used: Instant,
    /// How many eighths of all descriptors were in use when it was made.
    crowd: usize,
    is_linked: bool,
}

impl<'a, H: Handler> Connection<'a, H> {
    fn new(stream: TcpStream, shared: &'a Shared<H>, peer: &'a Peer) -> Self {
        let crowd = shared.crowd(&stream);
        Self {
            stream,
            shared,
            peer,
            output: Vec::new(),
            held: Unsent::default(),
            written: 0,
            awaited: 0,
            replies: Replies::default(),
            used: Instant::now(),
            crowd,
            is_linked: false,
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            self.take_queue();
            if let Err(error) = self.write() {
                return End::Failed("send to", error);
            }
            let is_writing = !self.output.is_empty();
            let interest = if is_writing {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let deadline = self.deadline();
            let ready = tokio::select! {
                // The end of the connection counts before what has just been queued, which then is
                // not written to a peer that has gone.
                biased;
                ready = self.stream.ready(interest) => ready,
                () = self.peer.changed.notified() => continue,
                () = sleep_until(deadline.unwrap_or(self.used)), if deadline.is_some() => {
                    if is_writing {
                        return End::Failed("send to", io::ErrorKind::TimedOut.into());
                    }
                    if self.shared.remove_if_idle(self.peer) {
                        return End::Idle;
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
                    return End::Failed("send to", io::ErrorKind::ConnectionReset.into());
                }
                Err(error) if is_writing => return End::Failed("send to", error),
                Ok(false) | Err(_) => return End::Closed,
            }
        }
    }

    /// Takes over what was queued, once everything before is written.
    fn take_queue(&mut self) {
        let mut queue = self.peer.queue.lock();
        if self.output.is_empty() && queue.messages > 0 {
            self.output = std::mem::take(&mut queue.bytes);
            self.held = std::mem::take(&mut queue.held);
            self.awaited += std::mem::take(&mut queue.messages);
            self.used = Instant::now();
        }
        let is_linked = queue.is_linked;
        drop(queue);
        if is_linked && !self.is_linked {
            self.is_linked = true;
            if let Err(error) = socket::watch(&self.stream) {
                log::warn!(
                    "watch the link to {}: {error}: its death may go unnoticed",
                    self.peer.address
                );
            }
        }
    }

    /// Writes what the socket takes.
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
        self.held = Unsent::default();
        self.written = 0;
        Ok(())
    }

    /// Reads what has come. False at the end.
    async fn read(&mut self) -> io::Result<bool> {
        // On the heap only now that there is something to read, and for no longer.
        let mut input = Vec::with_capacity(READ_SIZE);
        match socket::read_now(&mut self.stream, &mut input).await {
            None => return Ok(true),
            Some(Ok(0)) => return Ok(false),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
        let mut complaints = Vec::new();
        let receipts = self.replies.read(&input, &mut complaints);
        self.awaited = self.awaited.saturating_sub(receipts);
        for complaint in complaints {
            let count = self.shared.count_complaint();
            if is_worth_a_line(count) {
                log::warn!(
                    "send to {}: it refused a message: {complaint} ({count} refused since the start)",
                    self.peer.address
                );
            }
        }
        Ok(true)
    }

    /// Until when there must be some progress, or something new to do.
    fn deadline(&self) -> Option<Instant> {
        if !self.output.is_empty() {
            return Some(self.used + self.shared.write_timeout);
        }
        if self.is_linked {
            return None;
        }
        let idle_time = match self.crowd {
            ..6 => IDLE_TIME,
            6 => CROWDED_IDLE_TIME,
            // A peer that sends no receipts gets no longer than any other.
            _ if self.awaited > 0 => CROWDED_IDLE_TIME,
            _ => Duration::ZERO,
        };
        Some(self.used + idle_time)
    }
}

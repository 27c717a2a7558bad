//! The accepted connections, and the choice of a connection to close at a limit.
//!
//! An idle libprocess link is never closed below the limits. A libprocess program links once, may
//! send nothing for hours, and treats the end of the link as the exit of its peer. So only the
//! number of links is bounded. At a limit, the address with the most connections loses the
//! connection that was idle for the longest time. Connections with a registration are closed last,
//! so that idle connections do not replace a link in use, and before them those with a request in
//! answer: until the response is written. A connection of the Unix socket is never closed for a
//! connection of another client.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::UNIX_PEER;
use crate::limits::{Limit, Limits};

/// The part of all connections that is reserved for new addresses is one divided by this number.
const RESERVED_DIVISOR: usize = 16;
/// Size of the random sample of connections, if several addresses have the most connections.
const SAMPLE: usize = 32;

/// The open connections of one kind.
#[derive(Debug)]
pub(super) struct Connections {
    limits: (Limit, Limit),
    most: usize,
    most_per_address: usize,
    start: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// All connections, unordered.
    open: Vec<OpenConnection>,
    /// Index of each connection in `open`.
    positions: HashMap<u64, usize>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    /// The addresses, ordered by their number of connections, without the Unix socket.
    by_count: BTreeSet<(usize, IpAddr)>,
    last_number: u64,
}

#[derive(Debug)]
struct OpenConnection {
    number: u64,
    peer: SocketAddr,
    usage: Arc<Usage>,
    close_handle: CloseHandle,
}

/// How a connection was used.
#[derive(Debug, Default)]
struct Usage {
    /// Time of the last input, in microseconds since the start.
    last_received: AtomicU64,
    /// Whether a registration was received.
    has_registered: AtomicBool,
    /// Number of complete requests whose response is not written yet.
    answers: AtomicUsize,
}

/// Whether a registration was received, whether a response is not written yet, and the time of the
/// last input.
type Rank = (bool, bool, u64);

impl Usage {
    /// Returns the rank of the connection. The lowest rank is closed first.
    fn rank(&self) -> Rank {
        let has_registered = self.has_registered.load(Ordering::Relaxed);
        let is_answering = self.answers.load(Ordering::Relaxed) > 0;
        (has_registered, is_answering, self.last_received.load(Ordering::Relaxed))
    }
}

/// A handle that closes a connection.
#[derive(Debug)]
pub(super) enum CloseHandle {
    /// Aborts the task of the connection.
    Task(AbortHandle),
    /// Completes the receiver of this channel.
    Signal(oneshot::Sender<()>),
}

impl CloseHandle {
    fn close(self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Signal(signal) => drop(signal),
        }
    }
}

/// A connection that was closed so that another one can be accepted.
#[derive(Debug)]
pub(super) struct Evicted {
    pub(super) peer: SocketAddr,
    pub(super) limit: Limit,
}

/// A complete request whose response is not written yet. Ends when dropped.
#[derive(Debug)]
pub(super) struct PendingAnswer(Arc<Usage>);

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removes a connection from the table when dropped.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    connections: Arc<Connections>,
    number: u64,
    usage: Arc<Usage>,
}

impl Connections {
    /// Creates a table with a limit for all connections and a limit for each address.
    pub(super) fn new(limits: &Limits, all: Limit, per_address: Limit) -> Arc<Self> {
        Arc::new(Self {
            limits: (all, per_address),
            most: limits.size(all),
            most_per_address: limits.size(per_address),
            start: Instant::now(),
            table: Mutex::default(),
        })
    }

    /// Returns the number of connections.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.table.lock().open.len()
    }

    /// Closes another connection if a limit leaves no capacity for a connection of `peer`.
    pub(super) fn evict_if_full(&self, peer: SocketAddr) -> Option<Evicted> {
        let mut random = fastrand::Rng::new();
        let mut table = self.table.lock();
        let own = table.count_of(peer.ip());
        let (all, per_address) = self.limits;
        let reserved = if own == 0 { 0 } else { self.most / RESERVED_DIVISOR };
        let (limit, victim) = if own >= self.most_per_address {
            (per_address, table.longest_idle_of(peer.ip()))
        } else if table.open.len() >= self.most - reserved {
            (all, table.longest_idle_of_busiest(&mut random))
        } else {
            return None;
        };
        let closed = table.remove(victim?)?;
        closed.close_handle.close();
        Some(Evicted { peer: closed.peer, limit })
    }

    /// Inserts a connection of `peer`. The task of the connection also holds `guard`. If the task
    /// has already ended, dropping the last guard removes the connection.
    pub(super) fn insert(
        &self,
        peer: SocketAddr,
        guard: &Arc<ConnectionGuard>,
        close_handle: CloseHandle,
    ) {
        guard.received();
        let usage = Arc::clone(&guard.usage);
        let connection = OpenConnection { number: guard.number, peer, usage, close_handle };
        self.table.lock().insert(connection);
    }

    /// Creates the guard of a connection that is not in the table yet.
    pub(super) fn guard(self: &Arc<Self>) -> Arc<ConnectionGuard> {
        let mut table = self.table.lock();
        table.last_number += 1;
        Arc::new(ConnectionGuard {
            connections: Arc::clone(self),
            number: table.last_number,
            usage: Arc::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl ConnectionGuard {
    /// Records the time of an input.
    pub(super) fn received(&self) {
        self.usage.last_received.store(self.connections.now(), Ordering::Relaxed);
    }

    /// Records a complete request. The returned value is dropped when the response is written.
    pub(super) fn begin_answer(&self) -> PendingAnswer {
        self.usage.answers.fetch_add(1, Ordering::Relaxed);
        PendingAnswer(Arc::clone(&self.usage))
    }

    /// Records a registration.
    pub(super) fn registered(&self) {
        self.usage.has_registered.store(true, Ordering::Relaxed);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.table.lock().remove(self.number);
    }
}

impl Table {
    fn count_of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).map_or(0, BTreeSet::len)
    }

    fn insert(&mut self, connection: OpenConnection) {
        let address = connection.peer.ip();
        let of_address = self.by_address.entry(address).or_default();
        self.by_count.remove(&(of_address.len(), address));
        of_address.insert(connection.number);
        if address != UNIX_PEER.ip() {
            self.by_count.insert((of_address.len(), address));
        }
        self.positions.insert(connection.number, self.open.len());
        self.open.push(connection);
    }

    fn remove(&mut self, number: u64) -> Option<OpenConnection> {
        let position = self.positions.remove(&number)?;
        let connection = self.open.swap_remove(position);
        if let Some(moved) = self.open.get(position) {
            self.positions.insert(moved.number, position);
        }
        let address = connection.peer.ip();
        if let MapEntry::Occupied(mut of_address) = self.by_address.entry(address) {
            self.by_count.remove(&(of_address.get().len(), address));
            of_address.get_mut().remove(&number);
            match of_address.get().len() {
                0 => drop(of_address.remove()),
                _ if address == UNIX_PEER.ip() => {}
                count => drop(self.by_count.insert((count, address))),
            }
        }
        Some(connection)
    }

    fn rank(&self, number: u64) -> Rank {
        let connection = self.positions.get(&number).and_then(|position| self.open.get(*position));
        connection.map_or((true, true, u64::MAX), |connection| connection.usage.rank())
    }

    fn longest_idle_of(&self, address: IpAddr) -> Option<u64> {
        let numbers = self.by_address.get(&address)?.iter().copied();
        numbers.min_by_key(|number| (self.rank(*number), *number))
    }

    /// Returns the longest idle connection of the address with the most connections. If several
    /// addresses have the most connections, a random sample decides, so that no address is always
    /// chosen.
    fn longest_idle_of_busiest(&self, random: &mut fastrand::Rng) -> Option<u64> {
        let (most, address) = *self.by_count.last()?;
        let second = self.by_count.iter().rev().nth(1);
        if second.is_none_or(|(count, _)| *count < most) {
            return self.longest_idle_of(address);
        }
        let sample = (0..SAMPLE).filter_map(|_| self.open.get(random.usize(..self.open.len())));
        let of_busiest = sample.filter(|connection| {
            let address = connection.peer.ip();
            address != UNIX_PEER.ip() && self.count_of(address) == most
        });
        let found = of_busiest.min_by_key(|connection| connection.usage.rank());
        found.map(|connection| connection.number).or_else(|| self.longest_idle_of(address))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Fixture {
        connections: Arc<Connections>,
        open: HashMap<String, Arc<ConnectionGuard>>,
    }

    impl Fixture {
        fn new(most: u64, per_address: u64) -> Self {
            let (all, own) = (Limit::Connections, Limit::ConnectionsPerAddress);
            let limits = Limits::for_server().with(all, most).with(own, per_address);
            Self { connections: Connections::new(&limits, all, own), open: HashMap::new() }
        }

        /// Adds a connection and returns the evicted connection.
        async fn connect(&mut self, peer: &str) -> Option<(String, Limit)> {
            tokio::time::advance(Duration::from_millis(1)).await;
            let address: SocketAddr = peer.parse().unwrap();
            let evicted = self.connections.evict_if_full(address);
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            let guard = self.connections.guard();
            self.connections.insert(address, &guard, CloseHandle::Task(task));
            self.open.insert(peer.to_owned(), guard);
            evicted.map(|Evicted { peer, limit }| (peer.to_string(), limit))
        }

        fn received(&self, peer: &str) {
            self.open[peer].received();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn address_limit_evicts_longest_idle_of_address() {
        let mut fixture = Fixture::new(100, 3);
        for port in 1..=3 {
            assert_eq!(fixture.connect(&format!("10.0.0.1:{port}")).await, None);
        }
        assert_eq!(fixture.connect("10.0.0.2:1").await, None);
        tokio::time::advance(Duration::from_millis(1)).await;
        fixture.received("10.0.0.1:1");
        let closed = Some(("10.0.0.1:2".to_owned(), Limit::ConnectionsPerAddress));
        assert_eq!(fixture.connect("10.0.0.1:4").await, closed);
        assert_eq!(fixture.connections.count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn total_limit_evicts_from_address_with_most_connections() {
        let mut fixture = Fixture::new(32, 30);
        fixture.connect("10.0.0.2:1").await;
        for port in 1..=29 {
            assert_eq!(fixture.connect(&format!("10.0.0.1:{port}")).await, None);
        }
        // A part is reserved for addresses without a connection.
        let closed = Some(("10.0.0.1:1".to_owned(), Limit::Connections));
        assert_eq!(fixture.connect("10.0.0.1:30").await, closed);
        assert_eq!(fixture.connect("10.0.0.3:1").await, None);
        assert_eq!(fixture.connect("10.0.0.4:1").await, None);
        assert_eq!(fixture.connections.count(), 32);
        let closed = Some(("10.0.0.1:2".to_owned(), Limit::Connections));
        assert_eq!(fixture.connect("10.0.0.5:1").await, closed);
        assert_eq!(fixture.connections.count(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn total_limit_admits_new_address_among_equals() {
        let mut fixture = Fixture::new(16, 4);
        for address in 1..=16 {
            fixture.connect(&format!("10.0.0.{address}:1")).await;
        }
        let mut closed = BTreeSet::new();
        for address in 1..=64 {
            closed.extend(fixture.connect(&format!("10.0.1.{address}:1")).await);
            assert_eq!(fixture.connections.count(), 16);
        }
        assert_eq!(closed.len(), 64, "every eviction closes another connection");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_registration_is_evicted_last() {
        let mut fixture = Fixture::new(32, 3);
        fixture.connect("10.0.0.1:1").await;
        fixture.open["10.0.0.1:1"].registered();
        for port in 2..=20 {
            let closed = fixture.connect(&format!("10.0.0.1:{port}")).await;
            assert!(closed.is_none_or(|(peer, _)| peer != "10.0.0.1:1"));
        }
        // Many addresses with one connection each do not evict it either.
        for address in 1..=200 {
            let closed = fixture.connect(&format!("10.0.1.{address}:1")).await;
            assert!(closed.is_none_or(|(peer, _)| peer != "10.0.0.1:1"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_request_in_answer_is_evicted_after_idle_ones() {
        let mut fixture = Fixture::new(32, 3);
        fixture.connect("10.0.0.1:1").await;
        let [first, second] = [(); 2].map(|()| fixture.open["10.0.0.1:1"].begin_answer());
        drop(first);
        for address in 1..=200 {
            let closed = fixture.connect(&format!("10.0.1.{address}:1")).await;
            assert!(closed.is_none_or(|(peer, _)| peer != "10.0.0.1:1"));
        }
        drop(second);
        let mut closed = Vec::new();
        for address in 1..=200 {
            closed.extend(fixture.connect(&format!("10.0.2.{address}:1")).await);
        }
        assert!(closed.iter().any(|(peer, _)| peer == "10.0.0.1:1"));
    }

    #[tokio::test(start_paused = true)]
    async fn unix_socket_is_evicted_by_its_own_limit_only() {
        let mut fixture = Fixture::new(16, 4);
        for port in 1..=4 {
            assert_eq!(fixture.connect(&format!("0.0.0.0:{port}")).await, None);
        }
        for address in 1..=100 {
            let closed = fixture.connect(&format!("127.0.0.{address}:1")).await;
            assert!(closed.is_none_or(|(peer, _)| peer.starts_with("127.")));
        }
        let closed = Some(("0.0.0.0:1".to_owned(), Limit::ConnectionsPerAddress));
        assert_eq!(fixture.connect("0.0.0.0:5").await, closed);
        fixture.open.retain(|peer, _| !peer.starts_with("0."));
        let table = fixture.connections.table.lock();
        assert!(!table.by_address.contains_key(&UNIX_PEER.ip()));
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_guard_removes_connection() {
        let mut fixture = Fixture::new(100, 1);
        fixture.connect("10.0.0.1:1").await;
        fixture.open.clear();
        assert_eq!(fixture.connections.count(), 0);
        assert_eq!(fixture.connect("10.0.0.1:2").await, None);
        let table = fixture.connections.table.lock();
        assert_eq!(
            (table.by_address.len(), table.by_count.len(), table.positions.len()),
            (1, 1, 1)
        );
    }
}

//! The accepted connections, and which of them is closed when there is no room for another one.
//!
//! Below the limits, a libprocess link is not closed because it is idle: an agent of the C++
//! modules links once, sends nothing for hours, and registers again when the link ends. So links
//! are bounded by their number. At a limit, the connection that was silent for the longest time is
//! closed, of the address with the most connections. Connections on which an agent registered are
//! closed last, so that silent connections do not replace a link in use.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::limits::{Limit, Limits};

/// This part of all connections is kept for addresses that have none.
const SHARE_KEPT: usize = 16;
/// Where many addresses have the same number of connections, the one to close is found among so
/// many of their connections, taken by chance.
const SAMPLE: usize = 32;

/// All connections of a kind.
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
    /// All connections, in no order.
    open: Vec<Connection>,
    /// Where each is in `open`.
    positions: HashMap<u64, usize>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    /// The addresses by how many connections they have.
    by_count: BTreeSet<(usize, IpAddr)>,
    last_number: u64,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    peer: SocketAddr,
    usage: Arc<Usage>,
    closer: Closer,
}

/// What a connection was used for.
#[derive(Debug, Default)]
struct Usage {
    /// When something came last, in microseconds since the start.
    last_received: AtomicU64,
    /// Whether a registration was taken from it.
    has_registered: AtomicBool,
}

impl Usage {
    /// Connections of a lower rank are closed first.
    fn rank(&self) -> (bool, u64) {
        let has_registered = self.has_registered.load(Ordering::Relaxed);
        (has_registered, self.last_received.load(Ordering::Relaxed))
    }
}

/// What closes a connection.
#[derive(Debug)]
pub(super) enum Closer {
    /// The task that serves it is aborted.
    Task(AbortHandle),
    /// The other end of this channel completes.
    Signal(oneshot::Sender<()>),
}

impl Closer {
    fn close(self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Signal(signal) => drop(signal),
        }
    }
}

/// A connection that was closed to make room.
#[derive(Debug)]
pub(super) struct Evicted {
    pub(super) peer: SocketAddr,
    pub(super) limit: Limit,
}

/// Removes its connection from the table when dropped.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    connections: Arc<Connections>,
    number: u64,
    usage: Arc<Usage>,
}

impl Connections {
    /// Connections bounded by a limit on all of them and one on those of an address.
    pub(super) fn new(limits: &Limits, all: Limit, per_address: Limit) -> Arc<Self> {
        Arc::new(Self {
            limits: (all, per_address),
            most: limits.size(all),
            most_per_address: limits.size(per_address),
            start: Instant::now(),
            table: Mutex::default(),
        })
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.table.lock().open.len()
    }

    /// Makes room for a connection of `peer`: closes another one if a limit is reached.
    pub(super) fn evict_if_full(&self, peer: SocketAddr) -> Option<Evicted> {
        let mut random = fastrand::Rng::new();
        let mut table = self.table.lock();
        let own = table.count_of(peer.ip());
        let (all, per_address) = self.limits;
        let kept = if own == 0 { 0 } else { self.most / SHARE_KEPT };
        let (limit, victim) = if own >= self.most_per_address {
            (per_address, table.longest_silent_of(peer.ip()))
        } else if table.open.len() >= self.most - kept {
            (all, table.longest_silent_of_the_most(&mut random))
        } else {
            return None;
        };
        let closed = table.remove(victim?)?;
        closed.closer.close();
        Some(Evicted { peer: closed.peer, limit })
    }

    /// Puts the connection of `peer` into the table. The task that serves it holds `guard` as
    /// well: if that task has ended already, dropping this guard removes the connection again.
    pub(super) fn insert(&self, peer: SocketAddr, guard: &Arc<ConnectionGuard>, closer: Closer) {
        guard.received();
        let usage = Arc::clone(&guard.usage);
        let connection = Connection { number: guard.number, peer, usage, closer };
        self.table.lock().insert(connection);
    }

    /// The guard of a connection that is not in the table yet.
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
    /// Notes that the peer has sent something.
    pub(super) fn received(&self) {
        self.usage.last_received.store(self.connections.now(), Ordering::Relaxed);
    }

    /// Notes that a registration was taken from the peer.
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

    fn insert(&mut self, connection: Connection) {
        let address = connection.peer.ip();
        let of_address = self.by_address.entry(address).or_default();
        self.by_count.remove(&(of_address.len(), address));
        of_address.insert(connection.number);
        self.by_count.insert((of_address.len(), address));
        self.positions.insert(connection.number, self.open.len());
        self.open.push(connection);
    }

    fn remove(&mut self, number: u64) -> Option<Connection> {
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
                count => drop(self.by_count.insert((count, address))),
            }
        }
        Some(connection)
    }

    fn rank(&self, number: u64) -> (bool, u64) {
        let connection = self.positions.get(&number).and_then(|position| self.open.get(*position));
        connection.map_or((true, u64::MAX), |it| it.usage.rank())
    }

    fn longest_silent_of(&self, address: IpAddr) -> Option<u64> {
        let numbers = self.by_address.get(&address)?.iter().copied();
        numbers.min_by_key(|number| (self.rank(*number), *number))
    }

    /// Of the address with the most connections; where several addresses have as many, the longest
    /// silent in a sample of them, so that no address is always the one.
    fn longest_silent_of_the_most(&self, random: &mut fastrand::Rng) -> Option<u64> {
        let (most, address) = *self.by_count.last()?;
        let others = self.by_count.iter().rev().nth(1);
        if others.is_none_or(|(count, _)| *count < most) {
            return self.longest_silent_of(address);
        }
        let sample = (0..SAMPLE).filter_map(|_| self.open.get(random.usize(..self.open.len())));
        let of_the_most = sample.filter(|it| self.count_of(it.peer.ip()) == most);
        let found = of_the_most.min_by_key(|it| it.usage.rank());
        found.map(|it| it.number).or_else(|| self.longest_silent_of(address))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct World {
        connections: Arc<Connections>,
        open: HashMap<String, Arc<ConnectionGuard>>,
    }

    impl World {
        fn new(most: u64, per_address: u64) -> Self {
            let (all, own) = (Limit::Connections, Limit::ConnectionsPerAddress);
            let limits = Limits::of_master().with(all, most).with(own, per_address);
            Self { connections: Connections::new(&limits, all, own), open: HashMap::new() }
        }

        /// Connects, and says what was closed for it.
        async fn connect(&mut self, peer: &str) -> Option<(String, Limit)> {
            tokio::time::advance(Duration::from_millis(1)).await;
            let address: SocketAddr = peer.parse().unwrap();
            let evicted = self.connections.evict_if_full(address);
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            let guard = self.connections.guard();
            self.connections.insert(address, &guard, Closer::Task(task));
            self.open.insert(peer.to_owned(), guard);
            evicted.map(|Evicted { peer, limit }| (peer.to_string(), limit))
        }

        fn received(&self, peer: &str) {
            self.open[peer].received();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn address_at_its_limit_loses_its_longest_silent_connection() {
        let mut world = World::new(100, 3);
        for port in 1..=3 {
            assert_eq!(world.connect(&format!("10.0.0.1:{port}")).await, None);
        }
        assert_eq!(world.connect("10.0.0.2:1").await, None);
        tokio::time::advance(Duration::from_millis(1)).await;
        world.received("10.0.0.1:1");
        let closed = Some(("10.0.0.1:2".to_owned(), Limit::ConnectionsPerAddress));
        assert_eq!(world.connect("10.0.0.1:4").await, closed);
        assert_eq!(world.connections.count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn full_table_closes_of_the_address_with_the_most() {
        let mut world = World::new(32, 30);
        world.connect("10.0.0.2:1").await;
        for port in 1..=29 {
            assert_eq!(world.connect(&format!("10.0.0.1:{port}")).await, None);
        }
        // A share is kept for addresses without a connection.
        let closed = Some(("10.0.0.1:1".to_owned(), Limit::Connections));
        assert_eq!(world.connect("10.0.0.1:30").await, closed);
        assert_eq!(world.connect("10.0.0.3:1").await, None);
        assert_eq!(world.connect("10.0.0.4:1").await, None);
        assert_eq!(world.connections.count(), 32);
        let closed = Some(("10.0.0.1:2".to_owned(), Limit::Connections));
        assert_eq!(world.connect("10.0.0.5:1").await, closed);
        assert_eq!(world.connections.count(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn new_address_is_admitted_among_many_with_one_connection_each() {
        let mut world = World::new(16, 4);
        for address in 1..=16 {
            world.connect(&format!("10.0.0.{address}:1")).await;
        }
        let mut closed = BTreeSet::new();
        for address in 1..=64 {
            closed.extend(world.connect(&format!("10.0.1.{address}:1")).await);
            assert_eq!(world.connections.count(), 16);
        }
        assert_eq!(closed.len(), 64, "each time another one");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_of_a_registered_agent_is_closed_last() {
        let mut world = World::new(32, 3);
        world.connect("10.0.0.1:1").await;
        world.open["10.0.0.1:1"].registered();
        for port in 2..=20 {
            let closed = world.connect(&format!("10.0.0.1:{port}")).await;
            assert!(closed.is_none_or(|(peer, _)| peer != "10.0.0.1:1"));
        }
        // Nor do many addresses with one connection each push it out.
        for address in 1..=200 {
            let closed = world.connect(&format!("10.0.1.{address}:1")).await;
            assert!(closed.is_none_or(|(peer, _)| peer != "10.0.0.1:1"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_place_is_free_again() {
        let mut world = World::new(100, 1);
        world.connect("10.0.0.1:1").await;
        world.open.clear();
        assert_eq!(world.connections.count(), 0);
        assert_eq!(world.connect("10.0.0.1:2").await, None);
        let table = world.connections.table.lock();
        assert_eq!(
            (table.by_address.len(), table.by_count.len(), table.positions.len()),
            (1, 1, 1)
        );
    }
}

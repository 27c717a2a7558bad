//! The network between the nodes. It loses, duplicates, delays and reorders messages, and has
//! partitions.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::chance::Chance;
use crate::counts::Counts;
use crate::scenario::Faults;

/// How long a message takes without faults.
const LATENCY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(2));

/// How long a byte occupies the uplink of its sender, of 1 Gbit/s.
const BYTE_NANOSECONDS: u64 = 8;
/// Bytes of a message besides its body: the head of the HTTP request, and headers of IP and TCP.
const HEAD_BYTES: u64 = 300;
/// A body of one packet of TCP, and the headers of each packet, with the Ethernet frame.
const PACKET_BYTES: (u64, u64) = (1448, 90);
/// The shortest time between two messages of a sender: what encoding, queueing and writing a short
/// message costs.
const MESSAGE_TIME: Duration = Duration::from_micros(20);

/// A partition into two sides.
struct Cut {
    id: u64,
    /// The only node of its side; without one every node is on a random side.
    alone: Option<Ipv4Addr>,
    salt: u64,
    /// Whether messages in the other direction arrive.
    is_one_way: bool,
}

impl Cut {
    /// Returns the side of a node.
    fn side(&self, node: Ipv4Addr) -> bool {
        match self.alone {
            Some(alone) => node == alone,
            None => {
                let mixed = (u64::from(node.to_bits()) ^ self.salt).wrapping_mul(0x9e37_79b9_7f4a);
                mixed >> 40 & 1 == 1
            }
        }
    }

    fn separates(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        self.side(from) != self.side(to) && (!self.is_one_way || self.side(from))
    }
}

/// The network.
#[derive(Default)]
pub(crate) struct Wires {
    cuts: Vec<Cut>,
    last_cut: u64,
    /// When the uplink of each node is free again.
    uplinks: HashMap<Ipv4Addr, Duration>,
}

impl Wires {
    /// Begins a partition, or isolates `alone`. Returns the number of the partition.
    pub(crate) fn cut(&mut self, alone: Option<Ipv4Addr>, chance: &mut Chance) -> u64 {
        self.last_cut += 1;
        let is_one_way = chance.is(0.3);
        self.cuts.push(Cut { id: self.last_cut, alone, salt: chance.seed(), is_one_way });
        self.last_cut
    }

    pub(crate) fn heal(&mut self, id: u64) {
        self.cuts.retain(|cut| cut.id != id);
    }

    pub(crate) fn heal_all(&mut self) {
        self.cuts.clear();
    }

    /// Returns whether a partition separates two nodes.
    pub(crate) fn is_cut(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        self.cuts.iter().any(|cut| cut.separates(from, to))
    }

    /// Puts a message of `from` on its uplink, after the messages before. Returns how long after
    /// `now` the last byte is sent. Downlinks are not limited: an agent receives one table while
    /// its master sends thousands.
    pub(crate) fn transmit(&mut self, now: Duration, from: Ipv4Addr, body: usize) -> Duration {
        let body = body as u64 + HEAD_BYTES;
        let bytes = body + body.div_ceil(PACKET_BYTES.0) * PACKET_BYTES.1;
        let time = Duration::from_nanos(bytes * BYTE_NANOSECONDS).max(MESSAGE_TIME);
        let free = self.uplinks.entry(from).or_default();
        *free = (*free).max(now) + time;
        *free - now
    }

    /// Returns the delays after which a message arrives: once, never, or twice.
    pub(crate) fn carry(
        &self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        faults: Option<&Faults>,
        (chance, counts): (&mut Chance, &mut Counts),
    ) -> [Option<Duration>; 2] {
        if self.is_cut(from, to) {
            counts.add("fault: message cut off", 1);
            return [None, None];
        }
        let usual = chance.time_between(LATENCY.0, LATENCY.1);
        let Some(faults) = faults else {
            return [Some(usual), None];
        };
        if chance.is(faults.loss) {
            counts.add("fault: message lost", 1);
            return [None, None];
        }
        let is_doubled = chance.is(faults.duplication);
        counts.add("fault: message doubled", u64::from(is_doubled));
        let mut arrival = || {
            let is_late = chance.is(faults.late);
            counts.add("fault: message late", u64::from(is_late));
            usual + if is_late { chance.time_up_to(faults.delay_max) } else { Duration::ZERO }
        };
        [Some(arrival()), is_doubled.then(arrival)]
    }
}

//! Finds broken offloads and lets the dataplane switch them off, if `repair_offloads` is set.
//!
//! One peer is tested at a time, with about a hundred packets. The repair needs two peers to which
//! the same test fails, or one peer to which it fails several times: a peer or a path of its own
//! could be the cause of a single result. A repair lasts until the agent ends. The test cannot tell
//! whether it is still needed, since nothing is left to the hardware then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::tunnel::{Desired, Offload, OffloadVerdict};

use super::command::Command;

/// Time from the first programmed peers to the first test: the peers learn of a new agent within
/// seconds.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// Interval between two tests.
const INTERVAL: Duration = Duration::from_mins(1);
/// Interval to the next test after one that found a broken offload.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a test without a result counts as lost.
const TEST_MAX: Duration = Duration::from_secs(30);
/// Number of peers that confirm a broken offload, and of tests with a single peer that do.
const CONFIRMING_PEERS: usize = 2;
const CONFIRMING_TESTS: u32 = 3;

/// The tests of the offloads.
#[derive(Debug)]
pub(super) struct Offloads {
    is_enabled: bool,
    due: Option<Duration>,
    running: Option<Test>,
    last_attempt: u64,
    /// The peers to which an offload is broken, with the consecutive tests that found it.
    broken: BTreeMap<IpAddr, (Offload, u32)>,
    /// The peers that the current round has tested.
    tested: BTreeSet<IpAddr>,
    /// What was switched off, and why.
    repair: Option<String>,
    /// Why the last test was not possible.
    obstacle: Option<String>,
}

#[derive(Debug)]
struct Test {
    attempt: u64,
    peer: IpAddr,
    since: Duration,
}

impl Offloads {
    pub(super) const fn new(is_enabled: bool) -> Self {
        Self {
            is_enabled,
            due: None,
            running: None,
            last_attempt: 0,
            broken: BTreeMap::new(),
            tested: BTreeSet::new(),
            repair: None,
            obstacle: None,
        }
    }

    /// Returns whether checksum offload has to be off.
    pub(super) const fn disables_checksum(&self) -> bool {
        self.repair.is_some()
    }

    /// Returns what the tests found, for the health.
    pub(super) fn note(&self) -> Option<&String> {
        self.repair.as_ref().or(self.obstacle.as_ref())
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        match &self.running {
            Some(test) => Some(test.since + TEST_MAX),
            None => self.due,
        }
    }

    /// Starts the next test if one is due. A peer with a broken offload is tested again after the
    /// others of the round, so that the second peer comes first.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        programmed: Option<&Arc<Desired>>,
        random: &mut fastrand::Rng,
    ) -> Option<Command> {
        if !self.is_enabled || self.repair.is_some() {
            self.due = None;
            return None;
        }
        let peers = programmed.and_then(|desired| desired.peers.as_ref());
        let (Some(desired), Some(peers)) = (programmed, peers.filter(|peers| !peers.is_empty()))
        else {
            (self.due, self.running) = (None, None);
            return None;
        };
        let due = *self.due.get_or_insert(now.elapsed + FIRST_DELAY);
        let is_lost = |test: &mut Test| test.since + TEST_MAX <= now.elapsed;
        self.running.take_if(is_lost);
        if self.running.is_some() || due > now.elapsed {
            return None;
        }
        self.broken.retain(|peer, _| peers.contains_key(peer));
        if peers.keys().all(|peer| self.tested.contains(peer)) {
            self.tested.clear();
        }
        let untested = peers.keys().filter(|peer| !self.tested.contains(*peer)).copied();
        let peer = random.choice(untested.collect::<Vec<_>>())?;
        self.tested.insert(peer);
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        self.running = Some(Test { attempt, peer, since: now.elapsed });
        self.due = Some(now.elapsed + INTERVAL);
        Some(Command::TestOffloads { attempt, desired: Arc::clone(desired), peer })
    }

    /// Handles the result of a test. Returns whether an offload has to be switched off now.
    pub(super) fn finish(
        &mut self,
        now: Now,
        attempt: u64,
        result: Result<OffloadVerdict, String>,
    ) -> bool {
        let Some(test) = self.running.take_if(|test| test.attempt == attempt) else { return false };
        match result {
            Ok(OffloadVerdict::Broken(offload)) => {
                let (known, tests) = self.broken.entry(test.peer).or_insert((offload, 0));
                *tests = if *known == offload { *tests + 1 } else { 1 };
                *known = offload;
                self.due = Some(now.elapsed + CONFIRM_INTERVAL);
                self.obstacle = None;
            }
            Ok(OffloadVerdict::Works) => {
                self.broken.remove(&test.peer);
                self.obstacle = None;
            }
            // Nothing was compared.
            Ok(OffloadVerdict::NoAnswer | OffloadVerdict::Lossy) => {}
            Err(reason) => {
                let obstacle = format!("offloads are not tested: {reason}");
                if self.obstacle.as_ref() != Some(&obstacle) {
                    log::warn!("{obstacle}");
                }
                self.obstacle = Some(obstacle);
            }
        }
        self.repair = self.confirmed();
        if let Some(repair) = &self.repair {
            log::warn!("{repair}");
        }
        self.repair.is_some()
    }

    /// Describes the repair of a confirmed offload.
    fn confirmed(&self) -> Option<String> {
        let (offload, peers) = [Offload::Checksum, Offload::Segmentation]
            .map(|offload| {
                let of = self.broken.iter().filter(move |(_, (found, _))| *found == offload);
                (offload, of.map(|(peer, (_, tests))| (*peer, *tests)).collect::<Vec<_>>())
            })
            .into_iter()
            .find(|(_, peers)| {
                peers.len() >= CONFIRMING_PEERS
                    || peers.iter().any(|(_, tests)| *tests >= CONFIRMING_TESTS)
            })?;
        let peers: Vec<String> = peers.iter().map(|(peer, _)| peer.to_string()).collect();
        Some(format!(
            "{offload} of the tunnels is broken to {}: checksums and segments of the VXLAN devices \
             are computed in software until the agent restarts: see the hardware or the \
             hypervisor of this host",
            peers.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use overlay_types::tunnel::Peer;

    use super::*;

    const BROKEN: OffloadVerdict = OffloadVerdict::Broken(Offload::Checksum);

    struct World {
        offloads: Offloads,
        desired: Arc<Desired>,
        random: fastrand::Rng,
        elapsed: Duration,
    }

    impl World {
        fn new(is_enabled: bool, peers: u8) -> Self {
            let peer = |number: u8| {
                let mac = "70:B3:D5:80:00:02".parse().unwrap();
                let peer = Peer { ip: None, ip6: None, mac, subnets: Vec::new(), direct: None };
                (IpAddr::from([10, 0, 0, number]), peer)
            };
            let peers = Some((2..2 + peers).map(peer).collect());
            Self {
                offloads: Offloads::new(is_enabled),
                desired: Arc::new(Desired { peers, ..Desired::default() }),
                random: fastrand::Rng::with_seed(7),
                elapsed: Duration::ZERO,
            }
        }

        fn now(&self) -> Now {
            Now { elapsed: self.elapsed, unix: 0 }
        }

        /// Lets time pass until the next test. Returns its number and its peer.
        fn test(&mut self) -> Option<(u64, IpAddr)> {
            for _ in 0..5 {
                let now = self.now();
                let command = self.offloads.take_due(now, Some(&self.desired), &mut self.random);
                if let Some(Command::TestOffloads { attempt, peer, .. }) = command {
                    return Some((attempt, peer));
                }
                self.elapsed = self.offloads.next_due()?;
            }
            None
        }

        fn run(&mut self, result: Result<OffloadVerdict, String>) -> bool {
            let (attempt, _) = self.test().expect("a test");
            self.offloads.finish(self.now(), attempt, result)
        }
    }

    #[test]
    fn two_peers_confirm_a_broken_offload() {
        let mut world = World::new(true, 5);
        assert!(!world.run(Ok(OffloadVerdict::Works)));
        assert!(!world.run(Ok(BROKEN)));
        let first = world.elapsed;
        assert!(world.run(Ok(BROKEN)));
        assert_eq!(world.elapsed, first + CONFIRM_INTERVAL);
        assert!(world.offloads.disables_checksum());
        let note = world.offloads.note().expect("a note");
        assert!(note.starts_with("checksum offload of the tunnels is broken to 10.0.0."), "{note}");
        assert_eq!(world.test(), None, "nothing is left to test");
    }

    #[test]
    fn single_peer_confirms_a_broken_offload_by_repetition() {
        let mut world = World::new(true, 1);
        assert!(!world.run(Ok(BROKEN)) && !world.run(Ok(BROKEN)));
        assert!(!world.run(Ok(OffloadVerdict::Works)), "which begins again");
        assert!(!world.run(Ok(BROKEN)) && !world.run(Ok(BROKEN)));
        assert!(!world.run(Ok(OffloadVerdict::Lossy)), "which shows nothing");
        assert!(world.run(Ok(BROKEN)));
    }

    #[test]
    fn different_faults_confirm_nothing_together() {
        let mut world = World::new(true, 2);
        assert!(!world.run(Ok(BROKEN)));
        assert!(!world.run(Ok(OffloadVerdict::Broken(Offload::Segmentation))));
    }

    #[test]
    fn loss_repairs_nothing() {
        let mut world = World::new(true, 3);
        for verdict in [OffloadVerdict::NoAnswer, OffloadVerdict::Lossy, OffloadVerdict::Works] {
            for _ in 0..10 {
                assert!(!world.run(Ok(verdict)));
            }
        }
        assert_eq!(world.offloads.note(), None);
        assert!(!world.run(Err("no packet sockets".to_owned())));
        let note = "offloads are not tested: no packet sockets";
        assert_eq!(world.offloads.note().map(String::as_str), Some(note));
    }

    #[test]
    fn tests_are_rare_and_end_if_they_are_lost() {
        let mut world = World::new(true, 2);
        let (lost, peer) = world.test().expect("a test");
        assert_eq!(world.elapsed, FIRST_DELAY);
        let (attempt, other) = world.test().expect("a test");
        assert_ne!(peer, other, "a round tests every peer");
        assert_eq!(world.elapsed, FIRST_DELAY + INTERVAL);
        assert!(!world.offloads.finish(world.now(), lost, Ok(BROKEN)), "a lost test");
        assert!(!world.offloads.finish(world.now(), attempt, Ok(BROKEN)));
    }

    #[test]
    fn test_without_peers_is_never_due() {
        let mut world = World::new(true, 2);
        assert!(world.test().is_some());
        world.desired = World::new(true, 0).desired;
        assert_eq!((world.test(), world.offloads.next_due()), (None, None));
    }

    #[test]
    fn disabled_tests_send_nothing() {
        assert_eq!(World::new(false, 2).test(), None);
        assert_eq!(World::new(true, 0).test(), None);
    }
}

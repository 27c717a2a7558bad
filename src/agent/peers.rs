//! What the agent knows of its peers, and when it asks the master for more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::clock::{Backoff, Now};
use crate::mutation::Mutation;
use crate::protocol::{PeerInfo, PeersHave, PeersUpdate, digest_of};
use crate::tunnel::Peer;

/// After how long an agent asks again although nothing is missing, and at the earliest after half
/// of it: an update that was lost with its connection shows then, and a master forgets who is
/// silent for five minutes.
const RENEWAL: Duration = Duration::from_secs(60);
/// Bounds of the wait for an answer.
const ANSWER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Questions without an answer from which on the master is taken for one that has none.
const SILENCE: u32 = 3;

/// The peers, as far as the master told.
#[derive(Debug)]
pub(super) struct Peers {
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    have: PeersHave,
    /// Whether the table is one that a master told. Until then it is empty.
    is_known: bool,
    /// Questions in a row that were not answered.
    unanswered: u32,
    backoff: Backoff,
    /// When to ask, since `Now::elapsed` 0.
    due: Option<Duration>,
}

/// What came of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The table is another one now.
    Changed,
    /// It is as it was.
    Unchanged,
    /// It was of no use, and was dropped.
    Dropped,
}

impl Peers {
    pub(super) const fn new() -> Self {
        Self {
            table: BTreeMap::new(),
            have: PeersHave { epoch: 0, version: 0, digest: 0 },
            is_known: false,
            unanswered: 0,
            backoff: Backoff::new(ANSWER.0, ANSWER.1),
            due: None,
        }
    }

    /// The master has assigned, and so knows this agent: it answers when it is asked now.
    pub(super) fn assigned(&mut self, now: Now) {
        self.backoff.reset();
        self.due = Some(now.elapsed);
    }

    /// Another master leads, or none: it does not know this agent yet.
    pub(super) const fn detached(&mut self) {
        self.due = None;
        self.unanswered = 0;
    }

    /// Whether to ask now, and with what.
    pub(super) fn take_due(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<PeersHave> {
        if self.due.is_none_or(|due| due > now.elapsed) {
            return None;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.due = Some(now.elapsed + self.backoff.next_wait(random));
        Some(self.have)
    }

    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The master has answered, or tells of a change: see [`PeersUpdate`] for the rules.
    pub(super) fn update(
        &mut self,
        now: Now,
        update: &PeersUpdate,
        random: &mut fastrand::Rng,
    ) -> Taken {
        let PeersHave { epoch, version, digest } = self.have;
        let is_older = (update.epoch, update.version) < (epoch, version) && self.is_known;
        // A master that says nothing else has begun to count anew, as on a lost store.
        if is_older && !self.is_unanswered() && !Mutation::BelieveOldPeers.is_on() {
            return Taken::Dropped;
        }
        let taken = if self.is_known && update.digest == digest {
            Taken::Unchanged
        } else if update.base.is_none_or(|base| base == digest) || Mutation::PassOverGaps.is_on() {
            self.apply(update);
            Taken::Changed
        } else {
            self.due = Some(now.elapsed);
            return Taken::Dropped;
        };
        if Mutation::PassOverGaps.is_on() {
            self.have.digest = update.digest;
        }
        if self.have.digest != update.digest {
            // What was programmed stays: it is wrong somewhere, and right mostly. Not at once, or a
            // master that cannot add would be asked as fast as it answers.
            let mut backoff = self.backoff.clone();
            let due = now.elapsed + backoff.next_wait(random);
            *self = Self { backoff, due: Some(due), ..Self::new() };
            return Taken::Dropped;
        }
        (self.have.epoch, self.have.version) = (update.epoch, update.version);
        self.is_known = true;
        self.unanswered = 0;
        self.backoff.reset();
        let half = RENEWAL / 2;
        let renewal = now.elapsed + half + half.mul_f64(random.f64());
        self.due = (!Mutation::AskForPeersOnce.is_on()).then_some(renewal);
        taken
    }

    fn apply(&mut self, update: &PeersUpdate) {
        if update.base.is_none() {
            self.table.clear();
            self.have.digest = 0;
        }
        let digest = &mut self.have.digest;
        for ip in &update.removed {
            if let Some(info) = self.table.remove(ip) {
                *digest = digest.wrapping_sub(digest_of(*ip, &info));
            }
        }
        for (ip, info) in &update.changed {
            *digest = digest.wrapping_add(digest_of(*ip, info));
            if let Some(old) = self.table.insert(*ip, info.clone()) {
                *digest = digest.wrapping_sub(digest_of(*ip, &old));
            }
        }
    }

    /// All agents but this one, as the tunnels need them. `None` as long as no master has told.
    pub(super) fn table(&self, own: Ipv4Addr) -> Option<BTreeMap<IpAddr, Peer>> {
        let others = self.table.iter().filter(|(ip, _)| **ip != own);
        (self.is_known || Mutation::BeginWithoutPeers.is_on()).then(|| {
            others.map(|(_, PeerInfo { underlay, peer })| (*underlay, peer.clone())).collect()
        })
    }

    /// How many there are, this agent among them; `None` as long as no master has told.
    pub(super) fn count(&self) -> Option<usize> {
        self.is_known.then_some(self.table.len())
    }

    /// Whether the master is asked and does not answer.
    pub(super) const fn is_unanswered(&self) -> bool {
        self.unanswered > SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(seconds: u64) -> Now {
        Now { elapsed: Duration::from_secs(seconds), unix: 0 }
    }

    fn info(number: u8) -> (Ipv4Addr, PeerInfo) {
        let peer = Peer {
            ip: Some([44, 128, 0, number].into()),
            ip6: None,
            mac: format!("70:b3:d5:80:00:{number:02x}").parse().unwrap(),
            subnets: vec![(
                "vxlan-1".parse().unwrap(),
                format!("192.168.{number}.0/24").parse().unwrap(),
            )],
        };
        let ip = Ipv4Addr::new(10, 0, 0, number);
        (ip, PeerInfo { underlay: ip.into(), peer })
    }

    fn digest(numbers: &[u8]) -> u64 {
        let each = numbers.iter().map(|number| info(*number));
        each.fold(0, |sum: u64, (ip, info)| sum.wrapping_add(digest_of(ip, &info)))
    }

    /// What leads from the agents `before`, or from nothing, to `after`.
    fn update(version: u64, before: Option<&[u8]>, after: &[u8]) -> PeersUpdate {
        let old = before.unwrap_or_default();
        let new = after.iter().filter(|number| !old.contains(number));
        let gone = old.iter().filter(|number| !after.contains(number));
        PeersUpdate {
            epoch: 1,
            version,
            digest: digest(after),
            base: before.map(digest),
            changed: new.map(|number| info(*number)).collect(),
            removed: gone.map(|number| info(*number).0).collect(),
        }
    }

    fn numbers(peers: &Peers) -> Option<Vec<u8>> {
        let table = peers.table(Ipv4Addr::new(10, 0, 0, 1))?;
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        Some(table.into_keys().map(number).collect())
    }

    struct World {
        peers: Peers,
        random: fastrand::Rng,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { peers: Peers::new(), random: fastrand::Rng::with_seed(1) };
            assert_eq!(numbers(&world.peers), None);
            world.peers.assigned(now(0));
            assert_eq!(world.ask(0), Some(PeersHave::default()));
            assert_eq!(world.take(0, &update(3, None, &[1, 2, 3])), Taken::Changed);
            assert_eq!(numbers(&world.peers), Some(vec![2, 3]), "all but itself");
            world
        }

        fn ask(&mut self, seconds: u64) -> Option<PeersHave> {
            self.peers.take_due(now(seconds), &mut self.random)
        }

        fn take(&mut self, seconds: u64, update: &PeersUpdate) -> Taken {
            self.peers.update(now(seconds), update, &mut self.random)
        }
    }

    #[test]
    fn changes_follow_a_whole_table() {
        let mut world = World::new();
        assert_eq!(world.take(1, &update(5, Some(&[1, 2, 3]), &[1, 3, 4])), Taken::Changed);
        assert_eq!(numbers(&world.peers), Some(vec![3, 4]));
        assert_eq!(world.ask(20), None);
        let have = PeersHave { epoch: 1, version: 5, digest: digest(&[1, 3, 4]) };
        assert_eq!(world.ask(61), Some(have), "at the latest after a minute");
        let empty = PeersUpdate { changed: BTreeMap::new(), ..update(5, None, &[1, 3, 4]) };
        let empty = PeersUpdate { base: Some(empty.digest), ..empty };
        assert_eq!(world.take(62, &empty), Taken::Unchanged);
        assert_eq!(numbers(&world.peers), Some(vec![3, 4]));
    }

    #[test]
    fn a_gap_is_noticed_and_asked_about_at_once() {
        let mut world = World::new();
        assert_eq!(world.take(1, &update(9, Some(&[1, 2, 3, 4]), &[1, 2])), Taken::Dropped);
        assert_eq!(numbers(&world.peers), Some(vec![2, 3]), "what there is stays");
        let have = PeersHave { epoch: 1, version: 3, digest: digest(&[1, 2, 3]) };
        assert_eq!(world.ask(1), Some(have));
        assert_eq!(world.ask(1), None, "once");
        assert_eq!(world.take(2, &update(9, None, &[1, 2])), Taken::Changed);
        assert_eq!(numbers(&world.peers), Some(vec![2]));
    }

    #[test]
    fn what_does_not_add_up_is_asked_for_whole() {
        let mut world = World::new();
        let wrong = PeersUpdate { digest: 7, ..update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4]) };
        assert_eq!(world.take(1, &wrong), Taken::Dropped);
        assert_eq!(world.ask(1), None, "not as fast as it answers");
        assert_eq!(world.ask(3), Some(PeersHave::default()));
        assert_eq!(world.take(4, &update(4, None, &[1, 2, 3, 4])), Taken::Changed);
        assert_eq!(numbers(&world.peers), Some(vec![2, 3, 4]));
    }

    #[test]
    fn changes_of_nothing_are_a_table() {
        let mut world = World::new();
        let wrong = PeersUpdate { digest: 7, ..update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4]) };
        assert_eq!(world.take(1, &wrong), Taken::Dropped);
        assert_eq!(world.take(2, &update(5, Some(&[]), &[1, 2])), Taken::Changed);
        assert_eq!(numbers(&world.peers), Some(vec![2]));
        let mut fresh = Peers::new();
        assert_eq!(
            fresh.update(now(0), &update(1, Some(&[]), &[]), &mut world.random),
            Taken::Changed
        );
        assert_eq!(numbers(&fresh), Some(vec![]));
    }

    #[test]
    fn what_is_older_is_passed_over() {
        let mut world = World::new();
        assert_eq!(world.take(1, &update(2, None, &[1])), Taken::Dropped);
        assert_eq!(numbers(&world.peers), Some(vec![2, 3]));
        assert_eq!(world.ask(1), None);
    }

    #[test]
    fn a_master_that_has_begun_anew_is_believed_after_some_questions() {
        let mut world = World::new();
        let ahead = PeersUpdate { epoch: u64::MAX, ..update(u64::MAX, None, &[1, 2]) };
        assert_eq!(world.take(1, &ahead), Taken::Changed);
        let answer = update(5, None, &[1, 2, 3, 4]);
        let mut seconds = 1;
        for _ in 0..4 {
            assert_eq!(world.take(seconds, &answer), Taken::Dropped);
            seconds = world.peers.due().unwrap().as_secs() + 1;
            assert!(world.ask(seconds).is_some());
        }
        assert!(seconds < 120, "{seconds}");
        assert_eq!(world.take(seconds, &answer), Taken::Changed);
        assert_eq!(numbers(&world.peers), Some(vec![2, 3, 4]));
        assert!(!world.peers.is_unanswered());
    }

    #[test]
    fn a_false_table_of_a_later_version_does_not_outlast_some_questions() {
        let mut world = World::new();
        assert_eq!(world.take(1, &update(1000, None, &[1, 9])), Taken::Changed);
        // What the master goes on to tell builds on another table, and looks older.
        assert_eq!(world.take(2, &update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4])), Taken::Dropped);
        let answer = update(4, None, &[1, 2, 3, 4]);
        let mut seconds = 2;
        let mut taken = Taken::Dropped;
        while taken == Taken::Dropped {
            seconds = world.peers.due().unwrap().as_secs() + 1;
            let have = world.ask(seconds).expect("it asks");
            assert_eq!((have.version, have.digest), (1000, digest(&[1, 9])));
            taken = world.take(seconds, &answer);
        }
        assert_eq!(taken, Taken::Changed);
        assert!(seconds < 120, "{seconds}");
        assert_eq!(numbers(&world.peers), Some(vec![2, 3, 4]));
        let next = update(5, Some(&[1, 2, 3, 4]), &[1, 2, 4]);
        assert_eq!(world.take(seconds, &next), Taken::Changed, "it counts as its master does");
    }

    #[test]
    fn the_next_master_takes_over_with_a_word() {
        let mut world = World::new();
        world.peers.detached();
        assert_eq!(world.ask(1000), None);
        world.peers.assigned(now(1000));
        assert!(world.ask(1000).is_some());
        let same = PeersUpdate {
            epoch: 2,
            version: 1,
            changed: BTreeMap::new(),
            ..update(1, Some(&[1, 2, 3]), &[1, 2, 3])
        };
        assert_eq!(world.take(1000, &same), Taken::Unchanged);
        let have = PeersHave { epoch: 2, version: 1, digest: digest(&[1, 2, 3]) };
        assert_eq!(world.ask(1060), Some(have));
    }

    #[test]
    fn a_master_that_never_answers_is_known_for_it() {
        let mut world = World::new();
        for _ in 0..5 {
            let due = world.peers.due().unwrap();
            let _ = world.peers.take_due(Now { elapsed: due, unix: 0 }, &mut world.random);
        }
        assert!(world.peers.is_unanswered());
        assert_eq!(numbers(&world.peers), Some(vec![2, 3]));
    }
}

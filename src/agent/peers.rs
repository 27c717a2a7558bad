//! What the agent knows of its peers, and when it asks the master for more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::clock::{Backoff, Now};
use crate::mutation::Mutation;
use crate::protocol::{PeerInfo, PeersHave, PeersUpdate, digest_of};
use crate::tunnel::{LeftOutPeer, Peer, PeerFault};

/// After how long an agent asks again although nothing is missing, and at the earliest after half
/// of it: an update that was lost with its connection shows then, and a master forgets who is
/// silent for five minutes.
const RENEWAL: Duration = Duration::from_secs(60);
/// Bounds of the wait for an answer.
const ANSWER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Questions without an answer from which on the master is taken for one that has none.
const SILENCE: u32 = 3;

/// The addresses of this agent's host that no peer can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnAddresses {
    /// The agent's identity.
    pub(super) ip: Ipv4Addr,
    /// Where its tunnels run, if over IPv6.
    pub(super) underlay: Option<Ipv6Addr>,
}

impl OwnAddresses {
    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => ip == self.ip,
            IpAddr::V6(ip) => Some(ip) == self.underlay,
        }
    }
}

/// The peers, as far as the master told.
#[derive(Debug)]
pub(super) struct Peers {
    own: OwnAddresses,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    /// Which peer has an address of the underlay: of several that claim it the one that had it
    /// before, else the one with the lowest identity. So it does not change hands because another
    /// peer claims it, nor when a table is asked for anew.
    owners: BTreeMap<IpAddr, Ipv4Addr>,
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
    pub(super) const fn new(own: OwnAddresses) -> Self {
        Self {
            own,
            table: BTreeMap::new(),
            owners: BTreeMap::new(),
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
        if is_older && !self.is_unanswered() && !Mutation::AcceptOldPeers.is_on() {
            return Taken::Dropped;
        }
        let taken = if self.is_known && update.digest == digest {
            Taken::Unchanged
        } else if update.base.is_none_or(|base| base == digest) || Mutation::IgnorePeerGaps.is_on()
        {
            self.apply(update);
            Taken::Changed
        } else {
            self.due = Some(now.elapsed);
            return Taken::Dropped;
        };
        if Mutation::IgnorePeerGaps.is_on() {
            self.have.digest = update.digest;
        }
        if self.have.digest != update.digest || self.table.len() > PeersUpdate::PEERS_MAX {
            // What was programmed stays: it is wrong somewhere, and right mostly. Not at once, or a
            // master that cannot add would be asked as fast as it answers.
            let mut backoff = self.backoff.clone();
            let due = now.elapsed + backoff.next_wait(random);
            let owners = std::mem::take(&mut self.owners);
            *self = Self { owners, backoff, due: Some(due), ..Self::new(self.own) };
            return Taken::Dropped;
        }
        if taken == Taken::Changed {
            self.find_owners();
        }
        (self.have.epoch, self.have.version) = (update.epoch, update.version);
        self.is_known = true;
        self.unanswered = 0;
        self.backoff.reset();
        let half = RENEWAL / 2;
        let renewal = now.elapsed + half + half.mul_f64(random.f64());
        self.due = (!Mutation::RequestPeersOnce.is_on()).then_some(renewal);
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

    /// Finds out which peer has which address of the underlay.
    fn find_owners(&mut self) {
        let before = std::mem::take(&mut self.owners);
        for (ip, PeerInfo { underlay, .. }) in &self.table {
            if *ip == self.own.ip || self.own.has(*underlay) {
                continue;
            }
            let owner = self.owners.entry(*underlay).or_insert(*ip);
            if before.get(underlay) == Some(ip) {
                *owner = *ip;
            }
        }
    }

    /// All agents but this one, as the tunnels need them: one for each address of the underlay.
    /// `None` as long as no master has told.
    pub(super) fn table(&self) -> Option<BTreeMap<IpAddr, Peer>> {
        let is_known = self.is_known || Mutation::RemovePeersAtStart.is_on();
        is_known.then(|| {
            let found = |(underlay, ip): (&IpAddr, &Ipv4Addr)| {
                Some((*underlay, self.table.get(ip)?.peer.clone()))
            };
            self.owners.iter().filter_map(found).collect()
        })
    }

    /// The agents that are not in [`Self::table`], since another one has their address.
    pub(super) fn left_out(&self) -> Vec<LeftOutPeer> {
        let others = self.table.iter().filter(|(ip, _)| **ip != self.own.ip);
        let left_out = others.filter_map(|(ip, PeerInfo { underlay, peer })| {
            let owner = if self.own.has(*underlay) {
                self.own.ip
            } else {
                *self.owners.get(underlay).filter(|owner| *owner != ip)?
            };
            Some(LeftOutPeer {
                agent: *ip,
                overlays: peer.subnets.iter().map(|(overlay, _)| overlay.clone()).collect(),
                fault: PeerFault::UnderlayTaken { underlay: *underlay, other: owner },
            })
        });
        left_out.collect()
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

    const OWN: OwnAddresses = OwnAddresses { ip: Ipv4Addr::new(10, 0, 0, 1), underlay: None };

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
        let table = peers.table()?;
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
            let mut world = Self { peers: Peers::new(OWN), random: fastrand::Rng::with_seed(1) };
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
        let mut fresh = Peers::new(OWN);
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

    /// A whole table of agents 10.0.0.N, each with its address of the underlay.
    fn underlays(version: u64, agents: &[(u8, &str)]) -> PeersUpdate {
        let info = |(number, underlay): &(u8, &str)| {
            let (ip, info) = info(*number);
            (ip, PeerInfo { underlay: underlay.parse().unwrap(), ..info })
        };
        let changed: BTreeMap<_, _> = agents.iter().map(info).collect();
        let digests = changed.iter().map(|(ip, info)| digest_of(*ip, info));
        let digest = digests.fold(0, u64::wrapping_add);
        PeersUpdate { version, digest, changed, ..update(version, None, &[]) }
    }

    /// Who has each address, by the last number of the VTEP; and what is said of the others.
    fn owners(peers: &Peers) -> (Vec<(String, u8)>, Vec<String>) {
        let table = peers.table().unwrap().into_iter();
        let table =
            table.map(|(address, peer)| (address.to_string(), peer.ip.unwrap().octets()[3]));
        let left_out = peers.left_out().into_iter();
        (table.collect(), left_out.map(|it| format!("{}: {}", it.agent, it.fault)).collect())
    }

    fn has(address: &str, number: u8) -> (String, u8) {
        (address.to_owned(), number)
    }

    #[test]
    fn duplicate_underlay_stays_with_its_owner_and_names_the_other() {
        let mut world = World::new();
        world.peers = Peers::new(OwnAddresses { underlay: "fd00::1".parse().ok(), ..OWN });
        let both = [(2, "fd00::9"), (3, "fd00::9"), (4, "fd00::4")];
        world.take(1, &underlays(1, &both));
        let said = |agent: u8, other: u8| {
            format!(
                "10.0.0.{agent}: its underlay address fd00::9 belongs to agent 10.0.0.{other}: set \
                 another underlay on one of the two agents, or delete one of them at the master"
            )
        };
        let expected = vec![has("fd00::4", 4), has("fd00::9", 2)];
        assert_eq!(owners(&world.peers), (expected, vec![said(3, 2)]), "the lowest has it");

        // Agent 3 has it alone, and keeps it when agent 2 claims it again.
        world.take(2, &underlays(2, &[(2, "fd00::2"), (3, "fd00::9")]));
        let expected = vec![has("fd00::2", 2), has("fd00::9", 3)];
        assert_eq!(owners(&world.peers), (expected, Vec::new()));
        world.take(3, &underlays(3, &both));
        let expected = vec![has("fd00::4", 4), has("fd00::9", 3)];
        assert_eq!(owners(&world.peers), (expected.clone(), vec![said(2, 3)]));

        // Also after a table that does not add up.
        world.take(4, &PeersUpdate { digest: 7, ..underlays(4, &both) });
        assert_eq!(world.peers.table(), None);
        world.take(5, &underlays(5, &both));
        assert_eq!(owners(&world.peers), (expected, vec![said(2, 3)]));
    }

    #[test]
    fn peer_at_the_agents_own_address_is_left_out() {
        let mut world = World::new();
        world.peers = Peers::new(OwnAddresses { underlay: "fd00::1".parse().ok(), ..OWN });
        let claims = [(1, "fd00::1"), (2, "fd00::1"), (3, "10.0.0.1"), (4, "fd00::4")];
        world.take(1, &underlays(1, &claims));
        let (table, left_out) = owners(&world.peers);
        assert_eq!(table, [has("fd00::4", 4)]);
        for (said, (agent, address)) in left_out.iter().zip([(2, "fd00::1"), (3, "10.0.0.1")]) {
            let expected = format!(
                "10.0.0.{agent}: its underlay address {address} belongs to agent 10.0.0.1: "
            );
            assert!(said.starts_with(&expected), "{said}");
        }
        assert_eq!(left_out.len(), 2);
    }

    #[test]
    fn table_beyond_the_limit_is_dropped_and_what_was_programmed_stays() {
        let mut world = World::new();
        let (_, one) = info(2);
        let first = u32::from(Ipv4Addr::new(11, 0, 0, 0));
        let most = u32::try_from(PeersUpdate::PEERS_MAX).unwrap();
        let agents = |from: u32, count: u32| {
            let ips = (0..count).map(|number| Ipv4Addr::from(from + number));
            ips.map(|ip| (ip, PeerInfo { underlay: ip.into(), ..one.clone() })).collect()
        };
        let sum = |agents: &BTreeMap<Ipv4Addr, PeerInfo>| {
            agents.iter().fold(0, |sum: u64, (ip, it)| sum.wrapping_add(digest_of(*ip, it)))
        };
        let changed: BTreeMap<_, _> = agents(first, most);
        let whole = sum(&changed);
        let update = PeersUpdate { version: 4, digest: whole, changed, ..update(4, None, &[]) };
        assert_eq!(world.take(1, &update), Taken::Changed);
        let changed: BTreeMap<_, _> = agents(first + most, 1);
        let digest = whole.wrapping_add(sum(&changed));
        let more = PeersUpdate { version: 5, digest, base: Some(whole), changed, ..update };
        assert_eq!(world.take(2, &more), Taken::Dropped);
        assert_eq!(world.peers.table(), None, "what there is stays");
    }
}

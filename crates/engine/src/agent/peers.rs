//! The table of peers, and when the agent requests it from the master.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use overlay_types::addr::Mac;
use overlay_types::clock::{Backoff, Now};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{PeerInfo, PeerTableVersion, PeersUpdate, peer_digest};
use overlay_types::tunnel::{ExcludedPeer, Peer, PeerFault};

/// Longest interval between two requests of an agent that misses nothing; the shortest is half of
/// it. The request reveals an update that was lost with its connection. It also renews the
/// subscription, which the master ends after five minutes without a request.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// Bounds of the timeout of an answer.
const ANSWER_TIMEOUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Consecutive unanswered requests after which the agent assumes that the master sends no peers.
const UNANSWERED_MAX: u32 = 3;

/// The addresses of this agent's host, which no peer can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnAddresses {
    /// The identity of the agent.
    pub(super) ip: Ipv4Addr,
    /// The underlay address, if the tunnels run over IPv6.
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

/// The peers that the master sent.
#[derive(Debug)]
pub(super) struct Peers {
    own: OwnAddresses,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    /// The peer that has each underlay address. If several peers claim an address, the previous owner
    /// keeps it; without a previous owner, the peer with the lowest identity gets it. So neither
    /// another claim nor a new snapshot changes the owner.
    owners: BTreeMap<IpAddr, Ipv4Addr>,
    have: PeerTableVersion,
    /// Whether the table is complete. Until then it is empty.
    has_table: bool,
    /// Consecutive requests that the master did not answer.
    unanswered: u32,
    backoff: Backoff,
    /// When the next request is due, since `Now::elapsed` 0.
    due: Option<Duration>,
}

/// The result of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApplyResult {
    /// The table has changed.
    Changed,
    /// The table is the same.
    Unchanged,
    /// The update does not fit the table and was dropped.
    Dropped,
}

impl Peers {
    pub(super) const fn new(own: OwnAddresses) -> Self {
        Self {
            own,
            table: BTreeMap::new(),
            owners: BTreeMap::new(),
            have: PeerTableVersion { epoch: 0, version: 0, digest: 0 },
            has_table: false,
            unanswered: 0,
            backoff: Backoff::new(ANSWER_TIMEOUT.0, ANSWER_TIMEOUT.1),
            due: None,
        }
    }

    /// Makes a request due now. The master has sent an assignment, so it answers requests of this
    /// agent.
    pub(super) fn request_now(&mut self, now: Now) {
        self.backoff.reset();
        self.due = Some(now.elapsed);
    }

    /// Makes the next request due now, unless the agent waits for an answer or for a master.
    pub(super) fn renew(&mut self, now: Now) {
        if self.unanswered == 0 && self.due.is_some() {
            self.due = Some(now.elapsed);
        }
    }

    /// Stops requests, because the master has changed. The new master answers only registered
    /// agents.
    pub(super) const fn stop_requests(&mut self) {
        self.due = None;
        self.unanswered = 0;
    }

    /// Returns the content of a request if a request is due.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        random: &mut fastrand::Rng,
    ) -> Option<PeerTableVersion> {
        if self.due.is_none_or(|due| due > now.elapsed) {
            return None;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.due = Some(now.elapsed + self.backoff.next_delay(random));
        Some(self.have)
    }

    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Applies an answer or a delta of the master. [`PeersUpdate`] has the rules.
    pub(super) fn update(
        &mut self,
        now: Now,
        update: &PeersUpdate,
        random: &mut fastrand::Rng,
    ) -> ApplyResult {
        let PeerTableVersion { epoch, version, digest } = self.have;
        let is_older = (update.epoch, update.version) < (epoch, version) && self.has_table;
        // A master that sends only older versions has lost its store and counts from the start.
        if is_older && !self.is_unanswered() && !Mutation::AcceptOldPeers.is_on() {
            return ApplyResult::Dropped;
        }
        let result = if self.has_table && update.digest == digest {
            ApplyResult::Unchanged
        } else if update.base.is_none_or(|base| base == digest) || Mutation::IgnorePeerGaps.is_on()
        {
            self.apply(update);
            ApplyResult::Changed
        } else {
            self.due = Some(now.elapsed);
            return ApplyResult::Dropped;
        };
        if Mutation::IgnorePeerGaps.is_on() {
            self.have.digest = update.digest;
        }
        if self.have.digest != update.digest || self.table.len() > PeersUpdate::PEERS_MAX {
            // The programmed peers stay: most of them are right. The request has a backoff, since a
            // master that computes a wrong digest would otherwise cause a loop without a delay.
            let mut backoff = self.backoff.clone();
            let due = now.elapsed + backoff.next_delay(random);
            let owners = std::mem::take(&mut self.owners);
            *self = Self { owners, backoff, due: Some(due), ..Self::new(self.own) };
            return ApplyResult::Dropped;
        }
        if result == ApplyResult::Changed {
            self.find_owners();
        }
        (self.have.epoch, self.have.version) = (update.epoch, update.version);
        self.has_table = true;
        self.unanswered = 0;
        self.backoff.reset();
        let half = RENEWAL_INTERVAL / 2;
        let renewal = now.elapsed + half + half.mul_f64(random.f64());
        self.due = (!Mutation::RequestPeersOnce.is_on()).then_some(renewal);
        result
    }

    fn apply(&mut self, update: &PeersUpdate) {
        if update.base.is_none() {
            self.table.clear();
            self.have.digest = 0;
        }
        let digest = &mut self.have.digest;
        for ip in &update.removed {
            if let Some(info) = self.table.remove(ip) {
                *digest = digest.wrapping_sub(peer_digest(*ip, &info));
            }
        }
        for (ip, info) in &update.changed {
            *digest = digest.wrapping_add(peer_digest(*ip, info));
            if let Some(old) = self.table.insert(*ip, info.clone()) {
                *digest = digest.wrapping_sub(peer_digest(*ip, &old));
            }
        }
    }

    /// Assigns an owner to each underlay address.
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

    /// Returns the other agents by underlay address, or `None` without a table.
    pub(super) fn by_underlay(&self) -> Option<BTreeMap<IpAddr, Peer>> {
        if !self.has_table && !Mutation::RemovePeersAtStart.is_on() {
            return None;
        }
        let mut peers = BTreeMap::new();
        for (underlay, ip) in &self.owners {
            if let Some(info) = self.table.get(ip) {
                peers.insert(*underlay, info.peer.clone());
            }
        }
        Some(peers)
    }

    /// Returns the agents that are not in [`Self::by_underlay`], since their underlay address belongs
    /// to another agent.
    pub(super) fn excluded_peers(&self) -> Vec<ExcludedPeer> {
        let mut excluded_peers = Vec::new();
        for (ip, PeerInfo { underlay, peer }) in &self.table {
            let owner = if self.own.has(*underlay) {
                Some(self.own.ip)
            } else {
                self.owners.get(underlay).copied()
            };
            let Some(other) = owner.filter(|owner| owner != ip && *ip != self.own.ip) else {
                continue;
            };
            excluded_peers.push(ExcludedPeer {
                agent: *ip,
                overlays: peer.subnets.iter().map(|(overlay, _)| overlay.clone()).collect(),
                fault: PeerFault::UnderlayTaken { underlay: *underlay, other },
            });
        }
        excluded_peers
    }

    /// Returns the identity of the agent with this underlay address.
    pub(super) fn owner(&self, underlay: IpAddr) -> Option<Ipv4Addr> {
        self.owners.get(&underlay).copied()
    }

    /// Returns the MAC for direct routing that the master announces for this agent.
    pub(super) fn announced_mac(&self) -> Option<Mac> {
        self.table.get(&self.own.ip)?.peer.direct.map(|direct| direct.mac)
    }

    /// Returns the identities of the other agents.
    pub(super) fn agents(&self) -> BTreeSet<Ipv4Addr> {
        self.table.keys().copied().filter(|ip| *ip != self.own.ip).collect()
    }

    /// Returns the number of agents, including this agent, or `None` without a table.
    pub(super) fn count(&self) -> Option<usize> {
        self.has_table.then_some(self.table.len())
    }

    /// Returns whether the master does not answer requests.
    pub(super) const fn is_unanswered(&self) -> bool {
        self.unanswered > UNANSWERED_MAX
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
            direct: None,
        };
        let ip = Ipv4Addr::new(10, 0, 0, number);
        (ip, PeerInfo { underlay: ip.into(), peer })
    }

    const OWN: OwnAddresses = OwnAddresses { ip: Ipv4Addr::new(10, 0, 0, 1), underlay: None };

    fn digest(numbers: &[u8]) -> u64 {
        let each = numbers.iter().map(|number| info(*number));
        each.fold(0, |sum: u64, (ip, info)| sum.wrapping_add(peer_digest(ip, &info)))
    }

    /// Returns the delta from the agents `before` to `after`, or the snapshot `after`.
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
        let table = peers.by_underlay()?;
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        Some(table.into_keys().map(number).collect())
    }

    struct Fixture {
        peers: Peers,
        random: fastrand::Rng,
    }

    impl Fixture {
        fn new() -> Self {
            let mut fixture = Self { peers: Peers::new(OWN), random: fastrand::Rng::with_seed(1) };
            assert_eq!(numbers(&fixture.peers), None);
            fixture.peers.request_now(now(0));
            assert_eq!(fixture.request(0), Some(PeerTableVersion::default()));
            assert_eq!(fixture.update(0, &update(3, None, &[1, 2, 3])), ApplyResult::Changed);
            assert_eq!(numbers(&fixture.peers), Some(vec![2, 3]), "all other agents");
            fixture
        }

        fn request(&mut self, seconds: u64) -> Option<PeerTableVersion> {
            self.peers.take_due(now(seconds), &mut self.random)
        }

        fn update(&mut self, seconds: u64, update: &PeersUpdate) -> ApplyResult {
            self.peers.update(now(seconds), update, &mut self.random)
        }
    }

    #[test]
    fn delta_after_snapshot_changes_table() {
        let mut fixture = Fixture::new();
        assert_eq!(
            fixture.update(1, &update(5, Some(&[1, 2, 3]), &[1, 3, 4])),
            ApplyResult::Changed
        );
        assert_eq!(numbers(&fixture.peers), Some(vec![3, 4]));
        assert_eq!(fixture.request(20), None);
        let have = PeerTableVersion { epoch: 1, version: 5, digest: digest(&[1, 3, 4]) };
        assert_eq!(fixture.request(61), Some(have), "the request is renewed within a minute");
        let empty = PeersUpdate { changed: BTreeMap::new(), ..update(5, None, &[1, 3, 4]) };
        let empty = PeersUpdate { base: Some(empty.digest), ..empty };
        assert_eq!(fixture.update(62, &empty), ApplyResult::Unchanged);
        assert_eq!(numbers(&fixture.peers), Some(vec![3, 4]));
    }

    #[test]
    fn delta_with_gap_is_dropped_and_requested_at_once() {
        let mut fixture = Fixture::new();
        assert_eq!(
            fixture.update(1, &update(9, Some(&[1, 2, 3, 4]), &[1, 2])),
            ApplyResult::Dropped
        );
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3]), "the table stays");
        let have = PeerTableVersion { epoch: 1, version: 3, digest: digest(&[1, 2, 3]) };
        assert_eq!(fixture.request(1), Some(have));
        assert_eq!(fixture.request(1), None, "one request");
        assert_eq!(fixture.update(2, &update(9, None, &[1, 2])), ApplyResult::Changed);
        assert_eq!(numbers(&fixture.peers), Some(vec![2]));
    }

    #[test]
    fn wrong_digest_requests_snapshot_with_backoff() {
        let mut fixture = Fixture::new();
        let wrong = PeersUpdate { digest: 7, ..update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4]) };
        assert_eq!(fixture.update(1, &wrong), ApplyResult::Dropped);
        assert_eq!(fixture.request(1), None, "the request has a backoff");
        assert_eq!(fixture.request(3), Some(PeerTableVersion::default()));
        assert_eq!(fixture.update(4, &update(4, None, &[1, 2, 3, 4])), ApplyResult::Changed);
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3, 4]));
    }

    #[test]
    fn delta_from_empty_table_is_applied() {
        let mut fixture = Fixture::new();
        let wrong = PeersUpdate { digest: 7, ..update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4]) };
        assert_eq!(fixture.update(1, &wrong), ApplyResult::Dropped);
        assert_eq!(fixture.update(2, &update(5, Some(&[]), &[1, 2])), ApplyResult::Changed);
        assert_eq!(numbers(&fixture.peers), Some(vec![2]));
        let mut fresh = Peers::new(OWN);
        assert_eq!(
            fresh.update(now(0), &update(1, Some(&[]), &[]), &mut fixture.random),
            ApplyResult::Changed
        );
        assert_eq!(numbers(&fresh), Some(vec![]));
    }

    #[test]
    fn older_update_is_dropped() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.update(1, &update(2, None, &[1])), ApplyResult::Dropped);
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3]));
        assert_eq!(fixture.request(1), None);
    }

    #[test]
    fn older_version_is_accepted_after_unanswered_requests() {
        let mut fixture = Fixture::new();
        let ahead = PeersUpdate { epoch: u64::MAX, ..update(u64::MAX, None, &[1, 2]) };
        assert_eq!(fixture.update(1, &ahead), ApplyResult::Changed);
        let answer = update(5, None, &[1, 2, 3, 4]);
        let mut seconds = 1;
        for _ in 0..4 {
            assert_eq!(fixture.update(seconds, &answer), ApplyResult::Dropped);
            seconds = fixture.peers.due().unwrap().as_secs() + 1;
            assert!(fixture.request(seconds).is_some());
        }
        assert!(seconds < 120, "{seconds}");
        assert_eq!(fixture.update(seconds, &answer), ApplyResult::Changed);
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3, 4]));
        assert!(!fixture.peers.is_unanswered());
    }

    #[test]
    fn wrong_table_of_later_version_is_replaced_after_requests() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.update(1, &update(1000, None, &[1, 9])), ApplyResult::Changed);
        // The next delta of the master is based on another table and has an older version.
        assert_eq!(
            fixture.update(2, &update(4, Some(&[1, 2, 3]), &[1, 2, 3, 4])),
            ApplyResult::Dropped
        );
        let answer = update(4, None, &[1, 2, 3, 4]);
        let mut seconds = 2;
        let mut result = ApplyResult::Dropped;
        while result == ApplyResult::Dropped {
            seconds = fixture.peers.due().unwrap().as_secs() + 1;
            let have = fixture.request(seconds).expect("the agent requests the table");
            assert_eq!((have.version, have.digest), (1000, digest(&[1, 9])));
            result = fixture.update(seconds, &answer);
        }
        assert_eq!(result, ApplyResult::Changed);
        assert!(seconds < 120, "{seconds}");
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3, 4]));
        let next = update(5, Some(&[1, 2, 3, 4]), &[1, 2, 4]);
        assert_eq!(
            fixture.update(seconds, &next),
            ApplyResult::Changed,
            "the agent follows the versions of the master"
        );
    }

    #[test]
    fn new_master_with_same_digest_keeps_table() {
        let mut fixture = Fixture::new();
        fixture.peers.stop_requests();
        assert_eq!(fixture.request(1000), None);
        fixture.peers.request_now(now(1000));
        assert!(fixture.request(1000).is_some());
        let same = PeersUpdate {
            epoch: 2,
            version: 1,
            changed: BTreeMap::new(),
            ..update(1, Some(&[1, 2, 3]), &[1, 2, 3])
        };
        assert_eq!(fixture.update(1000, &same), ApplyResult::Unchanged);
        let have = PeerTableVersion { epoch: 2, version: 1, digest: digest(&[1, 2, 3]) };
        assert_eq!(fixture.request(1060), Some(have));
    }

    #[test]
    fn master_without_answers_is_unanswered_and_table_stays() {
        let mut fixture = Fixture::new();
        for _ in 0..5 {
            let due = fixture.peers.due().unwrap();
            let _ = fixture.peers.take_due(Now { elapsed: due, unix: 0 }, &mut fixture.random);
        }
        assert!(fixture.peers.is_unanswered());
        assert_eq!(numbers(&fixture.peers), Some(vec![2, 3]));
    }

    /// Returns a snapshot of the agents 10.0.0.N with these underlay addresses.
    fn underlays(version: u64, agents: &[(u8, &str)]) -> PeersUpdate {
        let info = |(number, underlay): &(u8, &str)| {
            let (ip, info) = info(*number);
            (ip, PeerInfo { underlay: underlay.parse().unwrap(), ..info })
        };
        let changed: BTreeMap<_, _> = agents.iter().map(info).collect();
        let digests = changed.iter().map(|(ip, info)| peer_digest(*ip, info));
        let digest = digests.fold(0, u64::wrapping_add);
        PeersUpdate { version, digest, changed, ..update(version, None, &[]) }
    }

    /// Returns the last number of the VTEP of each address, and the faults of the other agents.
    fn owners(peers: &Peers) -> (Vec<(String, u8)>, Vec<String>) {
        let table = peers.by_underlay().unwrap().into_iter();
        let table =
            table.map(|(address, peer)| (address.to_string(), peer.ip.unwrap().octets()[3]));
        let excluded_peers = peers.excluded_peers().into_iter();
        (table.collect(), excluded_peers.map(|it| format!("{}: {}", it.agent, it.fault)).collect())
    }

    fn has(address: &str, number: u8) -> (String, u8) {
        (address.to_owned(), number)
    }

    #[test]
    fn duplicate_underlay_stays_with_owner_and_names_other() {
        let mut fixture = Fixture::new();
        fixture.peers = Peers::new(OwnAddresses { underlay: "fd00::1".parse().ok(), ..OWN });
        let both = [(2, "fd00::9"), (3, "fd00::9"), (4, "fd00::4")];
        fixture.update(1, &underlays(1, &both));
        let fault = |agent: u8, other: u8| {
            format!(
                "10.0.0.{agent}: its underlay address fd00::9 belongs to agent 10.0.0.{other}: set \
                 another underlay on one of the two agents, or delete one of them at the master"
            )
        };
        let expected = vec![has("fd00::4", 4), has("fd00::9", 2)];
        assert_eq!(
            owners(&fixture.peers),
            (expected, vec![fault(3, 2)]),
            "the lowest identity owns the address"
        );

        // Only agent 3 claims the address. It keeps the address when agent 2 claims it again.
        fixture.update(2, &underlays(2, &[(2, "fd00::2"), (3, "fd00::9")]));
        let expected = vec![has("fd00::2", 2), has("fd00::9", 3)];
        assert_eq!(owners(&fixture.peers), (expected, Vec::new()));
        fixture.update(3, &underlays(3, &both));
        let expected = vec![has("fd00::4", 4), has("fd00::9", 3)];
        assert_eq!(owners(&fixture.peers), (expected.clone(), vec![fault(2, 3)]));

        // The owner stays after a snapshot with a wrong digest, too.
        fixture.update(4, &PeersUpdate { digest: 7, ..underlays(4, &both) });
        assert_eq!(fixture.peers.by_underlay(), None);
        fixture.update(5, &underlays(5, &both));
        assert_eq!(owners(&fixture.peers), (expected, vec![fault(2, 3)]));
    }

    #[test]
    fn peer_at_own_address_is_left_out() {
        let mut fixture = Fixture::new();
        fixture.peers = Peers::new(OwnAddresses { underlay: "fd00::1".parse().ok(), ..OWN });
        let claims = [(1, "fd00::1"), (2, "fd00::1"), (3, "10.0.0.1"), (4, "fd00::4")];
        fixture.update(1, &underlays(1, &claims));
        let (table, excluded_peers) = owners(&fixture.peers);
        assert_eq!(table, [has("fd00::4", 4)]);
        for (fault, (agent, address)) in
            excluded_peers.iter().zip([(2, "fd00::1"), (3, "10.0.0.1")])
        {
            let expected = format!(
                "10.0.0.{agent}: its underlay address {address} belongs to agent 10.0.0.1: "
            );
            assert!(fault.starts_with(&expected), "{fault}");
        }
        assert_eq!(excluded_peers.len(), 2);
    }

    #[test]
    fn table_beyond_limit_is_dropped() {
        let mut fixture = Fixture::new();
        let (_, template) = info(2);
        let first = u32::from(Ipv4Addr::new(11, 0, 0, 0));
        let most = u32::try_from(PeersUpdate::PEERS_MAX).unwrap();
        let agents = |from: u32, count: u32| {
            let ips = (0..count).map(|number| Ipv4Addr::from(from + number));
            ips.map(|ip| (ip, PeerInfo { underlay: ip.into(), ..template.clone() })).collect()
        };
        let sum = |agents: &BTreeMap<Ipv4Addr, PeerInfo>| {
            agents.iter().fold(0, |sum: u64, (ip, it)| sum.wrapping_add(peer_digest(*ip, it)))
        };
        let changed: BTreeMap<_, _> = agents(first, most);
        let whole = sum(&changed);
        let update = PeersUpdate { version: 4, digest: whole, changed, ..update(4, None, &[]) };
        assert_eq!(fixture.update(1, &update), ApplyResult::Changed);
        let changed: BTreeMap<_, _> = agents(first + most, 1);
        let digest = whole.wrapping_add(sum(&changed));
        let more = PeersUpdate { version: 5, digest, base: Some(whole), changed, ..update };
        assert_eq!(fixture.update(2, &more), ApplyResult::Dropped);
        assert_eq!(fixture.peers.by_underlay(), None, "the programmed peers stay");
    }
}

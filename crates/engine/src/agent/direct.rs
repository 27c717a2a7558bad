//! Direct routing: which peers get the packets of containers without encapsulation.
//!
//! The host checks what the kernel knows of each peer that offers direct routing. Packets go there
//! directly if no check objects and the probes, which take the path of the containers, are answered.
//! So a bridge or a port of the peer has to have answered before: without one, probes show nothing of
//! the direct path, and no container is there.
//! If a direct path dies, the tunnel takes over, and the direct path is tried again later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use overlay_types::addr::Mac;
use overlay_types::clock::Now;
use overlay_types::text::count_and_list;
use overlay_types::tunnel::{Desired, DirectCheck, DirectLink, DirectReport, DirectRouting};

use super::view::{DirectHealth, VxlanPeerHealth};

/// Shortest and longest time in which packets take the tunnel after a direct path died. The time
/// doubles with each loss.
const HOLD: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));
/// Time without a loss after which the hold time is the shortest again.
const RESET: Duration = Duration::from_hours(2);
/// Time between the moment when this agent knows a pair of offers and its first packet without
/// encapsulation. The peer accepts such packets only when it knows the offer of this agent, which the
/// master sends to both at about the same time.
const SETTLE: Duration = Duration::from_secs(5);

/// The direct paths of this host.
#[derive(Debug)]
pub(super) struct Direct {
    is_enabled: bool,
    /// The device in the underlay, or why this host cannot route directly.
    link: Result<DirectLink, String>,
    /// What the kernel says about the peers.
    checks: BTreeMap<IpAddr, DirectCheck>,
    losses: BTreeMap<IpAddr, Loss>,
    /// The offers of the peers, and since when this agent knows each.
    offers: BTreeMap<IpAddr, (Mac, Duration)>,
    /// Since when the master has sent the offer of this agent to its peers.
    announced: Option<Duration>,
    /// When the next pair of offers has settled.
    settle_due: Option<Duration>,
    /// The peers that get packets directly, in the last desired state.
    used: BTreeSet<IpAddr>,
    /// The peers that would get them if a bridge or a port had answered.
    silent: BTreeSet<IpAddr>,
}

/// A direct path that died.
#[derive(Debug, Clone, Copy)]
struct Loss {
    /// Losses since the last reset.
    count: u32,
    /// When the path is tried again; after that, when the loss is forgotten.
    due: Duration,
    /// Whether packets take the tunnel because of it.
    is_held: bool,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DirectChange {
    /// Whether this agent announces something else.
    pub(super) has_new_offer: bool,
    /// Whether the desired state may be another one.
    pub(super) has_new_paths: bool,
}

impl Direct {
    /// `link` is the device that the agent found at its start.
    pub(super) fn new(is_enabled: bool, link: Option<DirectLink>) -> Self {
        Self {
            is_enabled,
            link: link.ok_or_else(|| "the device in the underlay is not known yet".to_owned()),
            checks: BTreeMap::new(),
            losses: BTreeMap::new(),
            offers: BTreeMap::new(),
            announced: None,
            settle_due: None,
            used: BTreeSet::new(),
            silent: BTreeSet::new(),
        }
    }

    /// Returns whether the desired state is another one, now that a bridge or a port of the peer has
    /// answered.
    pub(super) fn waits_for(&self, agent: IpAddr) -> bool {
        self.silent.contains(&agent)
    }

    /// Returns the device whose MAC this agent announces.
    pub(super) fn offer(&self) -> Option<&DirectLink> {
        self.link.as_ref().ok().filter(|_| self.is_enabled)
    }

    /// Sets what the kernel says.
    pub(super) fn set_report(&mut self, report: DirectReport) -> DirectChange {
        if !self.is_enabled {
            return DirectChange::default();
        }
        let DirectReport { link, peers } = report;
        let has_new_offer = link.as_ref().ok() != self.link.as_ref().ok();
        if let Err(reason) = &link
            && self.link.as_ref() != Err(reason)
        {
            log::warn!("no packets leave without encapsulation: {reason}");
        }
        let has_new_paths = has_new_offer || peers != self.checks;
        (self.link, self.checks) = (link, peers);
        DirectChange { has_new_offer, has_new_paths }
    }

    /// Puts the paths into the desired state. `announced` is the MAC of this agent in the table of
    /// peers. `is_audible` returns whether a bridge or a port of a peer has answered probes.
    pub(super) fn apply(
        &mut self,
        now: Now,
        announced: Option<Mac>,
        desired: &mut Desired,
        is_audible: impl Fn(IpAddr) -> bool,
    ) {
        let peers = desired.peers.iter_mut().flatten();
        if !self.is_enabled {
            peers.for_each(|(_, peer)| peer.direct = None);
            return;
        }
        let own = self.offer().map(|link| link.mac);
        self.announced = if own.is_some() && own == announced {
            self.announced.or(Some(now.elapsed))
        } else {
            None
        };
        let known = std::mem::take(&mut self.offers);
        let mut used = BTreeSet::new();
        self.settle_due = None;
        self.silent.clear();
        for (agent, peer) in peers {
            if let Some(offer) = &mut peer.direct {
                let before = known.get(agent).filter(|(mac, _)| *mac == offer.mac);
                let since = before.map_or(now.elapsed, |(_, since)| *since);
                self.offers.insert(*agent, (offer.mac, since));
                let check = self.checks.get(agent).filter(|check| check.mac == offer.mac);
                let is_possible = check.is_some_and(|check| check.obstacle.is_none());
                let settled = self.announced.map(|announced| announced.max(since) + SETTLE);
                let is_possible = is_possible && !self.is_held(*agent);
                if is_possible && !is_audible(*agent) {
                    self.silent.insert(*agent);
                    continue;
                }
                offer.is_used = is_possible && settled.is_some_and(|due| due <= now.elapsed);
                if let Some(due) = settled.filter(|due| *due > now.elapsed && is_possible) {
                    self.settle_due = Some(self.settle_due.map_or(due, |first| first.min(due)));
                }
                if offer.is_used {
                    used.insert(*agent);
                }
            }
        }
        desired.direct = Some(DirectRouting { link: self.offer().cloned() });
        self.log_changes(&used);
        self.used = used;
    }

    fn log_changes(&self, used: &BTreeSet<IpAddr>) {
        let gained: Vec<_> = used.difference(&self.used).collect();
        if !gained.is_empty() {
            log::info!(
                "packets leave without encapsulation to {}",
                count_and_list(&gained, "agent")
            );
        }
        let lost: Vec<_> = self.used.difference(used).collect();
        if !lost.is_empty() {
            log::warn!("packets take the tunnel again to {}", count_and_list(&lost, "agent"));
        }
    }

    fn is_held(&self, agent: IpAddr) -> bool {
        self.losses.get(&agent).is_some_and(|loss| loss.is_held)
    }

    /// Notes the peers whose probes fail. Returns whether the desired state is another one.
    pub(super) fn note_failing(&mut self, now: Now, failing: &[IpAddr]) -> bool {
        let mut lost = Vec::new();
        for agent in failing.iter().filter(|agent| self.used.contains(agent)) {
            if self.is_held(*agent) {
                continue;
            }
            let count = self.losses.get(agent).map_or(1, |loss| loss.count.saturating_add(1));
            let hold = HOLD.0.saturating_mul(1 << (count - 1).min(16)).min(HOLD.1);
            let loss = Loss { count, due: now.elapsed + hold, is_held: true };
            self.losses.insert(*agent, loss);
            lost.push(agent);
        }
        // A switch may lose the paths to all peers at once: they share one line.
        if !lost.is_empty() {
            log::warn!(
                "direct paths are lost to {}: probes are not answered: packets take the tunnel for \
                 at least {} s",
                count_and_list(&lost, "agent"),
                HOLD.0.as_secs()
            );
        }
        !lost.is_empty()
    }

    /// Returns when a direct path is tried, or tried again.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.losses.values().map(|loss| loss.due).chain(self.settle_due).min()
    }

    /// Tries the paths again whose hold time is over, unless the peer does not answer through the
    /// tunnel either. Returns whether the desired state is another one.
    pub(super) fn take_due(&mut self, now: Now, is_failing: impl Fn(IpAddr) -> bool) -> bool {
        let mut has_changed = self.settle_due.take_if(|due| *due <= now.elapsed).is_some();
        self.losses.retain(|agent, loss| {
            if loss.due > now.elapsed {
                return true;
            }
            if !loss.is_held {
                return false;
            }
            if is_failing(*agent) {
                loss.due = now.elapsed + HOLD.0;
            } else {
                (loss.is_held, loss.due) = (false, now.elapsed + RESET);
                has_changed = true;
            }
            true
        });
        has_changed
    }

    /// Returns the path of each peer of the programmed state, or `None` if direct routing is off.
    pub(super) fn health(&self, programmed: Option<&Desired>) -> Option<DirectHealth> {
        if !self.is_enabled {
            return None;
        }
        let mut health = DirectHealth {
            device: self.offer().map(|link| link.device.to_string()),
            mac: self.offer().map(|link| link.mac.to_string()),
            problem: self.link.as_ref().err().cloned(),
            direct: Vec::new(),
            vxlan: Vec::new(),
        };
        for (agent, peer) in programmed.iter().flat_map(|desired| &desired.peers).flatten() {
            match peer.direct {
                Some(offer) if offer.is_used => health.direct.push(agent.to_string()),
                offer => health.vxlan.push(VxlanPeerHealth {
                    agent: agent.to_string(),
                    reason: self.reason(*agent, offer.is_some()),
                }),
            }
        }
        Some(health)
    }

    /// Returns why packets to a peer take the tunnel.
    fn reason(&self, agent: IpAddr, has_offer: bool) -> String {
        if let Err(reason) = &self.link {
            return format!("this host: {reason}");
        }
        if !has_offer {
            return "the agent does not offer direct routing".to_owned();
        }
        if self.is_held(agent) {
            return "direct path lost: probes were not answered".to_owned();
        }
        if self.silent.contains(&agent) {
            return "no bridge of the agent has answered probes yet".to_owned();
        }
        let obstacle = self.checks.get(&agent).map(|check| check.obstacle.clone());
        match obstacle {
            Some(Some(obstacle)) => obstacle,
            Some(None) => "the agents have just announced direct routing".to_owned(),
            None => "the path is not checked yet".to_owned(),
        }
    }
}

/// Returns the number of peers that get packets directly, and the number of those through the
/// tunnel.
pub(super) fn tally(programmed: Option<&Desired>) -> (u64, u64) {
    let peers = programmed.iter().flat_map(|desired| &desired.peers).flatten();
    let (mut direct, mut vxlan) = (0, 0);
    for (_, peer) in peers {
        let is_direct = peer.direct.is_some_and(|offer| offer.is_used);
        *(if is_direct { &mut direct } else { &mut vxlan }) += 1;
    }
    (direct, vxlan)
}

#[cfg(test)]
mod tests {
    use overlay_types::tunnel::{DirectPeer, Peer};

    use super::*;

    const NONE: [u8; 0] = [];

    fn now(seconds: u64) -> Now {
        Now { elapsed: Duration::from_secs(seconds), unix: 0 }
    }

    fn agent(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn mac(number: u8) -> Mac {
        [2, 0, 0, 0, 0, number].into()
    }

    fn link() -> DirectLink {
        DirectLink { device: "eth0".parse().unwrap(), mac: mac(1) }
    }

    fn report(numbers: &[u8], obstacle: Option<&str>) -> DirectReport {
        let check = |number: &u8| {
            let check = DirectCheck { mac: mac(*number), obstacle: obstacle.map(str::to_owned) };
            (agent(*number), check)
        };
        DirectReport { link: Ok(link()), peers: numbers.iter().map(check).collect() }
    }

    /// Returns the peers that get packets directly when all offers have settled. All peers of
    /// `offers` offer direct routing, and agent 9 does not.
    fn used(direct: &mut Direct, offers: &[u8]) -> Vec<u8> {
        used_at(direct, 0, Some(mac(1)), offers);
        used_at(direct, SETTLE.as_secs(), Some(mac(1)), offers)
    }

    fn used_at(
        direct: &mut Direct,
        seconds: u64,
        announced: Option<Mac>,
        offers: &[u8],
    ) -> Vec<u8> {
        let peer = |direct| Peer { ip: None, ip6: None, mac: mac(0), subnets: Vec::new(), direct };
        let offer = |number: &u8| {
            let offer = DirectPeer { mac: mac(*number), is_used: false };
            (agent(*number), peer(Some(offer)))
        };
        let peers = offers.iter().map(offer).chain([(agent(9), peer(None))]);
        let mut desired = Desired { peers: Some(peers.collect()), ..Desired::default() };
        direct.apply(now(seconds), announced, &mut desired, |agent| agent != self::agent(8));
        let used = |number: &u8| {
            let peer = desired.peers.as_ref().and_then(|peers| peers.get(&agent(*number)));
            peer.and_then(|peer| peer.direct).is_some_and(|offer| offer.is_used)
        };
        (0..=9).filter(used).collect()
    }

    fn enabled() -> Direct {
        let mut direct = Direct::new(true, None);
        let change = direct.set_report(report(&[2, 3], None));
        assert_eq!(change, DirectChange { has_new_offer: true, has_new_paths: true });
        direct
    }

    #[test]
    fn checked_peer_with_offer_gets_packets_directly() {
        let mut direct = enabled();
        assert_eq!(used(&mut direct, &[2, 3, 4]), [2, 3], "agent 4 was not checked");
        assert_eq!(direct.set_report(report(&[2, 3], None)), DirectChange::default());
        direct.set_report(report(&[2], Some("its address has another MAC")));
        assert_eq!(used(&mut direct, &[2]), NONE);
        assert_eq!(direct.reason(agent(2), true), "its address has another MAC");
        assert_eq!(direct.reason(agent(9), false), "the agent does not offer direct routing");
    }

    #[test]
    fn new_pair_of_offers_takes_the_tunnel_until_the_peer_knows_it() {
        let mut direct = enabled();
        assert_eq!(used_at(&mut direct, 100, None, &[2]), NONE, "the master has not announced it");
        assert_eq!(direct.next_due(), None);
        assert_eq!(used_at(&mut direct, 200, Some(mac(7)), &[2]), NONE, "an earlier device");
        assert_eq!(used_at(&mut direct, 300, Some(mac(1)), &[2]), NONE);
        assert_eq!(direct.next_due(), Some(Duration::from_secs(305)));
        assert!(!direct.take_due(now(304), |_| false));
        assert!(direct.take_due(now(305), |_| false));
        assert_eq!(used_at(&mut direct, 305, Some(mac(1)), &[2, 3]), [2], "agent 3 is new");
        assert_eq!(direct.next_due(), Some(Duration::from_secs(310)));
        assert_eq!(used_at(&mut direct, 310, Some(mac(1)), &[2, 3]), [2, 3]);
    }

    #[test]
    fn offer_with_other_mac_than_checked_takes_the_tunnel() {
        let mut direct = enabled();
        direct.checks.get_mut(&agent(3)).unwrap().mac = mac(7);
        assert_eq!(used(&mut direct, &[2, 3]), [2]);
    }

    #[test]
    fn peer_whose_bridges_never_answered_takes_the_tunnel() {
        let mut direct = Direct::new(true, None);
        direct.set_report(report(&[2, 8], None));
        assert_eq!(used(&mut direct, &[2, 8]), [2], "probes would not notice a dead path to 8");
        assert_eq!((direct.waits_for(agent(8)), direct.waits_for(agent(2))), (true, false));
        assert_eq!(direct.reason(agent(8), true), "no bridge of the agent has answered probes yet");
    }

    #[test]
    fn switched_off_removes_offers_of_peers() {
        let mut direct = Direct::new(false, Some(link()));
        assert_eq!(direct.set_report(report(&[2], None)), DirectChange::default());
        assert_eq!(used(&mut direct, &[2]), NONE);
        assert_eq!((direct.offer(), direct.health(None)), (None, None));
    }

    #[test]
    fn unusable_link_ends_offer_and_paths() {
        let mut direct = enabled();
        let gone = DirectReport { link: Err("device eth0 is down".to_owned()), peers: [].into() };
        assert!(direct.set_report(gone).has_new_offer);
        assert_eq!(direct.offer(), None);
        assert_eq!(used(&mut direct, &[2]), NONE);
        assert_eq!(direct.reason(agent(2), true), "this host: device eth0 is down");
    }

    #[test]
    fn lost_path_is_held_and_tried_again_with_backoff() {
        let mut direct = enabled();
        assert_eq!(used(&mut direct, &[2, 3]), [2, 3]);
        assert!(!direct.note_failing(now(0), &[agent(4)]), "agent 4 gets no packets directly");
        assert!(direct.note_failing(now(0), &[agent(2)]));
        assert!(!direct.note_failing(now(1), &[agent(2)]), "the path is held already");
        assert_eq!(used(&mut direct, &[2, 3]), [3]);
        assert_eq!(direct.reason(agent(2), true), "direct path lost: probes were not answered");
        assert!(!direct.take_due(now(59), |_| false));
        assert_eq!(direct.next_due(), Some(Duration::from_mins(1)));
        assert!(!direct.take_due(now(60), |_| true), "it fails through the tunnel as well");
        assert!(direct.take_due(now(120), |_| false));
        assert_eq!(used(&mut direct, &[2, 3]), [2, 3]);
        assert!(direct.note_failing(now(130), &[agent(2)]));
        assert_eq!(direct.next_due(), Some(Duration::from_secs(250)), "the hold time doubles");
        assert!(direct.take_due(now(250), |_| false));
        assert_eq!(used(&mut direct, &[2, 3]), [2, 3]);
        assert!(!direct.take_due(now(250 + 7200), |_| false), "the loss is forgotten");
        assert_eq!(direct.next_due(), None);
    }

    #[test]
    fn hold_time_has_a_maximum() {
        let mut direct = enabled();
        let mut time = 0;
        for _ in 0..40 {
            assert_eq!(used(&mut direct, &[2]), [2]);
            assert!(direct.note_failing(now(time), &[agent(2)]));
            let due = direct.next_due().unwrap().as_secs();
            assert!(due - time <= 3600, "{}", due - time);
            time = due;
            assert!(direct.take_due(now(time), |_| false));
        }
    }
}

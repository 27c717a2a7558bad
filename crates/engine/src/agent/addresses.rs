//! Counts the addresses that containers use, at an interval and for requests over HTTP.
//!
//! A count reads the leases and the ports of the host in another thread. A request waits for a recent
//! count, but not longer than [`WAIT_MAX`], since a host may hang.

use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::address_usage::{FillLevel, HalfAddresses, OverlayCounts, UsedAddress};
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::RequestId;
use overlay_types::tunnel::Desired;
use serde::{Serialize, Serializer};

use super::Agent;
use super::command::{Command, Reply};
use super::event::AddressQuery;

/// Interval between two counts. A count of 125 leases takes about a millisecond.
const INTERVAL: Duration = Duration::from_secs(30);
/// Age up to which a count answers a request.
const RECENT_MAX: Duration = Duration::from_secs(5);
/// Longest time that a request waits for a count.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Time after which a count without a result is lost, and another one starts.
const COUNT_MAX: Duration = Duration::from_mins(2);
/// Age from which on a count says nothing any more.
const AGE_MAX: Duration = Duration::from_mins(5);
/// Most requests that wait. Each further one is answered with the last count.
const WAITING_MAX: usize = 64;

/// The addresses that the containers of this host use.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    halves: Vec<HalfAddresses>,
    /// When `halves` was requested, and whether it has the names of Docker.
    last: Option<Started>,
    due: Option<Duration>,
    running: Option<(u64, Started)>,
    last_attempt: u64,
    /// The levels that the master knows, and the earliest time of an extra message about others.
    reported: Vec<(OverlayName, NetworkKind, FillLevel)>,
    report_not_before: Duration,
    /// The requests that wait for a count, with their deadlines.
    waiting: Vec<(RequestId, AddressQuery, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Started {
    at: Duration,
    with_names: bool,
}

/// The addresses of containers: `/overlay-agent/addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressDetails {
    /// The age of the count. `None` before the first count.
    pub age_seconds: Option<u64>,
    /// The overlays that have a half with IPv4.
    pub overlays: Vec<OverlayDetails>,
}

/// The addresses of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverlayDetails {
    /// The name of the overlay.
    pub name: String,
    /// The halves that have IPv4.
    pub halves: Vec<HalfDetails>,
}

/// The addresses of one half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HalfDetails {
    /// `mesos` or `docker`.
    pub containerizer: &'static str,
    /// The addresses of the half.
    pub subnet: String,
    /// The number of addresses that containers have. `None` if it is unknown.
    pub used: Option<u32>,
    /// The number of addresses that the next containers can get. `None` if it is unknown.
    pub free: Option<u32>,
    /// Why the addresses could not be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The addresses in use, up to the limit of the request.
    pub addresses: Vec<AddressDetail>,
}

/// An address in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AddressDetail(#[serde(serialize_with = "serialize_address")] pub UsedAddress);

fn serialize_address<S: Serializer>(used: &UsedAddress, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        address: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        interface: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<&'a str>,
        source: &'static str,
    }
    let UsedAddress { address, holder, interface, port, source } = used;
    let (holder, interface, port) = (holder.as_deref(), interface.as_deref(), port.as_deref());
    let address = address.to_string();
    Fields { address, holder, interface, port, source: source.name() }.serialize(serializer)
}

impl Addresses {
    pub(super) fn next_due(&self) -> Option<Duration> {
        let count = match &self.running {
            Some((_, started)) => Some(started.at + COUNT_MAX),
            None => self.due,
        };
        let outdated = self.last.map(|last| last.at + AGE_MAX);
        let waiting = self.waiting.iter().map(|(_, _, deadline)| *deadline).min();
        [count, outdated, waiting].into_iter().flatten().min()
    }

    /// Starts a count if one is due, and forgets a count that is too old.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        programmed: Option<&Arc<Desired>>,
    ) -> Option<Command> {
        if self.last.is_some_and(|last| last.at + AGE_MAX <= now.elapsed) {
            log::warn!("the addresses of containers were not counted for {AGE_MAX:?}");
            (self.last, self.halves) = (None, Vec::new());
        }
        self.running.take_if(|(_, started)| started.at + COUNT_MAX <= now.elapsed);
        let Some(desired) = programmed else {
            (self.due, self.running) = (None, None);
            return None;
        };
        let due = *self.due.get_or_insert(now.elapsed);
        if self.running.is_some() || due > now.elapsed {
            return None;
        }
        self.last_attempt += 1;
        let (attempt, with_names) = (self.last_attempt, !self.waiting.is_empty());
        self.running = Some((attempt, Started { at: now.elapsed, with_names }));
        self.due = Some(now.elapsed + INTERVAL);
        let desired = Arc::clone(desired);
        Some(Command::CountAddresses { attempt, desired, with_names })
    }

    /// Notes the result of a count.
    pub(super) fn finish(&mut self, now: Now, attempt: u64, halves: Vec<HalfAddresses>) {
        let Some((_, started)) = self.running.take_if(|(running, _)| *running == attempt) else {
            return;
        };
        self.halves = halves;
        self.last = Some(started);
        if !self.waiting.is_empty() && !started.with_names {
            self.due = Some(now.elapsed);
        }
    }

    /// Adds a request that waits for a count. Returns the request if it is answered at once.
    fn wait(&mut self, now: Now, id: RequestId, query: AddressQuery) -> Option<AddressQuery> {
        let is_recent = |last: Started| last.with_names && now.elapsed < last.at + RECENT_MAX;
        // Without a due count, the agent has programmed nothing.
        let is_answered = self.last.is_some_and(is_recent) || self.due.is_none();
        if is_answered || self.waiting.len() >= WAITING_MAX {
            return Some(query);
        }
        self.waiting.push((id, query, now.elapsed + WAIT_MAX));
        self.due = Some(now.elapsed);
        None
    }

    /// Returns the replies to the requests that have a count, or that have waited long enough.
    pub(super) fn take_replies(&mut self, now: Now) -> Vec<Command> {
        let last = self.last;
        let is_done = |(_, _, deadline): &mut (RequestId, AddressQuery, Duration)| {
            let asked = deadline.saturating_sub(WAIT_MAX);
            let has_count = last.is_some_and(|last| last.with_names && last.at >= asked);
            has_count || *deadline <= now.elapsed
        };
        let done: Vec<_> = self.waiting.extract_if(.., is_done).collect();
        let reply = |(id, query, _): (RequestId, AddressQuery, Duration)| {
            let reply = Reply::Addresses(Box::new(self.details(now, &query)));
            Command::Reply { id, reply }
        };
        done.into_iter().map(reply).collect()
    }

    /// Returns the counts for the master, and notes that it gets them.
    pub(super) fn report(&mut self) -> OverlayCounts {
        self.reported = self.levels();
        self.counts()
    }

    /// Returns whether the master should get the counts before its next message: a half became full
    /// or nearly full, or is it no longer. At most once in an interval, so that a half at the limit
    /// costs one message more.
    pub(super) fn take_report_due(&mut self, now: Now) -> bool {
        let is_late = self.report_not_before <= now.elapsed;
        let is_due = is_late && self.levels() != self.reported;
        if is_due {
            self.report_not_before = now.elapsed + INTERVAL;
        }
        is_due
    }

    /// Returns the halves that are full or nearly full.
    fn levels(&self) -> Vec<(OverlayName, NetworkKind, FillLevel)> {
        let levels = self.halves.iter().filter_map(|half| {
            let level = half.count.as_ref().ok()?.level();
            Some((half.overlay.clone(), half.kind, level))
        });
        levels.filter(|(.., level)| *level != FillLevel::Ample).collect()
    }

    /// Returns the number of halves at this level.
    pub(super) fn count_at(&self, level: FillLevel) -> u64 {
        let counts = self.halves.iter().filter_map(|half| half.count.as_ref().ok());
        counts.filter(|count| count.level() == level).count() as u64
    }

    /// Returns the counts that are known.
    pub(super) fn counts(&self) -> OverlayCounts {
        let mut counts = OverlayCounts::new();
        for half in &self.halves {
            if let Ok(count) = half.count {
                *counts.entry(half.overlay.clone()).or_default().of_mut(half.kind) = Some(count);
            }
        }
        counts
    }

    fn details(&self, now: Now, query: &AddressQuery) -> AddressDetails {
        let mut overlays: Vec<OverlayDetails> = Vec::new();
        let mut left = query.limit;
        let is_asked =
            |half: &&HalfAddresses| query.overlay.as_ref().is_none_or(|name| *name == half.overlay);
        for half in self.halves.iter().filter(is_asked) {
            let name = half.overlay.to_string();
            let addresses: Vec<AddressDetail> =
                half.addresses.iter().take(left).cloned().map(AddressDetail).collect();
            left -= addresses.len();
            let count = half.count.as_ref().ok();
            let details = HalfDetails {
                containerizer: match half.kind {
                    NetworkKind::Cni => "mesos",
                    NetworkKind::Docker => "docker",
                },
                subnet: half.subnet.to_string(),
                used: count.map(|count| count.used),
                free: count.map(|count| count.free),
                error: half.count.as_ref().err().cloned(),
                addresses,
            };
            match overlays.last_mut().filter(|last| last.name == name) {
                Some(last) => last.halves.push(details),
                None => overlays.push(OverlayDetails { name, halves: vec![details] }),
            }
        }
        let age = self.last.map(|last| now.elapsed.saturating_sub(last.at));
        AddressDetails { age_seconds: age.map(|age| age.as_secs()), overlays }
    }
}

impl Agent {
    /// Notes the result of a count, and sends it to the master soon if that is due.
    pub(super) fn finish_count(&mut self, now: Now, attempt: u64, halves: Vec<HalfAddresses>) {
        self.addresses.finish(now, attempt, halves);
        if self.addresses.take_report_due(now) {
            self.peers.renew(now);
        }
    }

    /// Answers a request for the addresses of containers, now or after a count.
    pub(super) fn answer_addresses(&mut self, now: Now, id: RequestId, query: AddressQuery) {
        if let Some(query) = self.addresses.wait(now, id, query) {
            let reply = Reply::Addresses(Box::new(self.addresses.details(now, &query)));
            self.commands.push_back(Command::Reply { id, reply });
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_types::address_usage::{AddressCount, AddressSource};
    use overlay_types::protocol::AgentOptions;

    use super::super::tests::{SECOND, World, assignment};
    use super::super::{Event, Programmed, Request, TunnelSettings};
    use super::*;
    use crate::state_machine::StateMachine as _;

    fn half(kind: NetworkKind, count: Result<AddressCount, &str>) -> HalfAddresses {
        let used = |address: &str| UsedAddress {
            address: address.parse().unwrap(),
            holder: Some("container-1".to_owned()),
            interface: None,
            port: None,
            source: AddressSource::Lease,
        };
        HalfAddresses {
            overlay: "vxlan-1".parse().unwrap(),
            kind,
            subnet: "192.168.1.0/25".parse().unwrap(),
            count: count.map_err(str::to_owned),
            addresses: vec![used("192.168.1.2"), used("192.168.1.3")],
        }
    }

    fn counted(attempt: u64, used: u32) -> Event {
        let count = AddressCount { used, free: 125 - used };
        let halves =
            vec![half(NetworkKind::Cni, Ok(count)), half(NetworkKind::Docker, Err("no netlink"))];
        Event::AddressesCounted { attempt, halves }
    }

    /// An agent that has programmed an overlay.
    struct Counting(World);

    impl Counting {
        fn new() -> Self {
            let options = AgentOptions { docker_bridge: true, ..AgentOptions::default() };
            let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
            let mut world = World::with_tunnel(options, tunnel);
            world.detect();
            world.assign(vec![assignment("vxlan-1", 1)]);
            Self(world)
        }

        /// Handles an event. Returns the counts that start, and the replies.
        fn handle(&mut self, event: Event) -> (Vec<(u64, bool)>, Vec<AddressDetails>) {
            let world = &mut self.0;
            world.agent.handle(world.now, event);
            let (mut counts, mut replies) = (Vec::new(), Vec::new());
            while let Some(command) = world.agent.poll_command() {
                match command {
                    Command::CountAddresses { attempt, with_names, .. } => {
                        counts.push((attempt, with_names));
                    }
                    Command::Reply { reply: Reply::Addresses(details), .. } => {
                        replies.push(*details);
                    }
                    _ => {}
                }
            }
            (counts, replies)
        }

        fn programmed(&mut self) -> Vec<(u64, bool)> {
            let result = Programmed::default();
            self.handle(Event::Programmed { attempt: 1, result }).0
        }

        fn request(&mut self, limit: usize) -> (Vec<(u64, bool)>, Vec<AddressDetails>) {
            let query = AddressQuery { overlay: None, limit };
            self.handle(Event::Request(RequestId(9), Request::Addresses(query)))
        }

        fn pass(&mut self, duration: Duration) -> (Vec<(u64, bool)>, Vec<AddressDetails>) {
            self.0.now.elapsed += duration;
            self.handle(Event::Timeout)
        }

        fn shown(&self) -> Vec<(&'static str, u64)> {
            let families = self.0.agent.snapshot().configured.into_iter();
            families.map(|family| (family.name, family.series[0].value)).collect()
        }
    }

    #[test]
    fn addresses_are_counted_at_an_interval_and_shown_while_recent() {
        let mut agent = Counting::new();
        assert_eq!(agent.request(64).1.len(), 1, "nothing is programmed yet");
        assert_eq!(agent.programmed(), [(1, false)]);
        assert_eq!(agent.shown(), []);
        agent.handle(counted(7, 9));
        assert_eq!(agent.shown(), [], "the count of another attempt");
        agent.handle(counted(1, 3));
        let expected = [("container_addresses_used", 3), ("container_addresses_free", 122)];
        assert_eq!(agent.shown(), expected);
        assert_eq!(agent.pass(INTERVAL).0, [(2, false)]);
        assert_eq!(agent.pass(COUNT_MAX).0, [(3, false)], "the second one is lost");
        assert_eq!(agent.shown(), expected);
        agent.pass(AGE_MAX - COUNT_MAX - INTERVAL);
        assert_eq!(agent.shown(), [], "an old count is no count");
    }

    #[test]
    fn changed_level_is_due_for_a_report_once_in_an_interval() {
        let mut addresses = Addresses::default();
        let now = |seconds| Now { elapsed: SECOND * seconds, unix: 0 };
        let set = |addresses: &mut Addresses, used| {
            let count = AddressCount { used, free: 125 - used };
            addresses.halves = vec![half(NetworkKind::Cni, Ok(count))];
        };
        set(&mut addresses, 3);
        assert!(!addresses.take_report_due(now(0)), "regular messages carry other changes");
        set(&mut addresses, 113);
        assert!(addresses.take_report_due(now(1)));
        assert!(!addresses.take_report_due(now(2)), "the message is under way");
        let reported = addresses.report();
        assert_eq!(reported[&"vxlan-1".parse().unwrap()].mesos.unwrap().used, 113);
        set(&mut addresses, 125);
        assert!(!addresses.take_report_due(now(30)) && addresses.take_report_due(now(31)));
        addresses.report();
        assert!(!addresses.take_report_due(now(99)));
    }

    #[test]
    fn request_waits_for_a_count_with_names() {
        let mut agent = Counting::new();
        agent.programmed();
        // The running count has no names.
        assert_eq!(agent.request(64), (vec![], vec![]));
        assert_eq!(agent.handle(counted(1, 3)), (vec![(2, true)], vec![]));
        let (counts, replies) = agent.handle(counted(2, 4));
        assert_eq!((counts, replies.len()), (vec![], 1));
        let halves = &replies[0].overlays[0].halves;
        assert_eq!((halves[0].used, halves[0].free), (Some(4), Some(121)));
        assert_eq!((halves[1].used, halves[1].error.as_deref()), (None, Some("no netlink")));
        assert_eq!(halves[0].addresses.len() + halves[1].addresses.len(), 4);
        agent.pass(RECENT_MAX - SECOND);
        let (counts, replies) = agent.request(3);
        assert_eq!((counts, replies[0].age_seconds), (vec![], Some(4)));
        let halves = &replies[0].overlays[0].halves;
        assert_eq!((halves[0].addresses.len(), halves[1].addresses.len()), (2, 1));
        agent.pass(SECOND);
        assert_eq!(agent.request(64), (vec![(3, true)], vec![]));
    }

    #[test]
    fn request_is_answered_with_the_last_count_while_the_host_hangs() {
        let mut agent = Counting::new();
        agent.programmed();
        agent.handle(counted(1, 3));
        agent.pass(RECENT_MAX);
        for _ in 0..WAITING_MAX {
            assert_eq!(agent.request(64).1, []);
        }
        assert_eq!(agent.request(64).1.len(), 1, "further requests do not wait");
        let (counts, replies) = agent.pass(WAIT_MAX);
        assert_eq!((counts, replies.len()), (vec![], WAITING_MAX));
        assert_eq!(replies[0].overlays[0].halves[0].used, Some(3));
        let other = AddressQuery { overlay: Some("vxlan-2".parse().unwrap()), limit: 1 };
        agent.handle(counted(2, 3));
        let request = Event::Request(RequestId(9), Request::Addresses(other));
        let (_, replies) = agent.handle(request);
        assert_eq!(replies.iter().map(|it| it.overlays.len()).sum::<usize>(), 0);
    }
}

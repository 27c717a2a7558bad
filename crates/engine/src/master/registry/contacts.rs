//! When each agent was last seen, and which agents are stale.
//!
//! An agent that requests its peers sends a request at least once a minute, and is stale after three
//! missed requests. Other agents may be silent for as long as they run: agents with the C++ module,
//! and agents that leave the dataplane to another program. The master links to a silent agent. Such
//! an agent is stale if the link cannot be opened, or if the link has ended and the agent does not
//! return. It is stale as well if it has missed three registrations, where it is known to register
//! again by itself. An agent that is silent from the election on is stale as well, since every
//! running agent registers with a new leader. Only a leader that restarted after a defect, in a
//! Mesos process, does not know whether such an agent runs: agents do not notice that restart.
//!
//! Every agent has at most one deadline. The deadlines are ordered, so a message and a timeout cost
//! the same for any number of agents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::ProgramVersion;

use super::shared_addresses::SharedAddresses;

/// How long an agent may be silent: three intervals of the longest request interval, which is a
/// minute, and some seconds for the way of the message.
pub(in crate::master) const SILENCE_MAX: Duration = Duration::from_secs(3 * 60 + 15);
/// How long an agent is silent that has missed a request: the longest interval, and some seconds.
const REQUEST_MAX: Duration = Duration::from_secs(75);
/// How long an agent may be silent that registers again by itself: three of its longest intervals,
/// and a minute. A link to a host without power may stay open for ever.
const REGISTRATION_SILENCE_MAX: Duration = Duration::from_secs(3 * 15 * 60 + 60);
/// After this time, an attempt to open a link has failed or succeeded. Linux ends an attempt after
/// about two minutes. Success is not notified.
pub(super) const LINK_TIMEOUT: Duration = Duration::from_secs(150);

/// A master that handles a deadline so late was stopped, or its host was. Its agents could not reach
/// it meanwhile.
const LATE: Duration = Duration::from_secs(30);

/// The most deadlines of one timeout. Each may lead to a link.
pub(super) const SLICE: usize = 50;

/// The link of the master to a silent agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Closed,
    /// The link is being opened, and the agent has been silent since.
    Opening,
    /// The link is open, or the agent was seen after the attempt began.
    Open,
}

/// The last message of an agent.
#[derive(Debug, Clone)]
struct LastMessage {
    upid: Upid,
    /// Since `Now::elapsed` 0.
    elapsed: Duration,
    /// Seconds since 1970.
    unix: u64,
}

/// One agent.
#[derive(Debug, Clone)]
struct Contact {
    /// `None` if the agent sent no message since the election.
    last: Option<LastMessage>,
    /// Whether the agent has requested its peers since its registration.
    is_periodic: bool,
    /// Whether the agent registers again by itself. Agents with the C++ module do not.
    registers_again: bool,
    /// The version of the agent, from its last request for peers.
    version: Option<ProgramVersion>,
    link: Link,
    deadline: Option<Duration>,
}

/// The known agents by the time of their last message.
#[derive(Debug, Clone, Default)]
pub(in crate::master) struct Contacts {
    agents: BTreeMap<Ipv4Addr, Contact>,
    deadlines: BTreeSet<(Duration, Ipv4Addr)>,
    /// The agents that were seen since the election, the earliest first.
    by_last_seen: BTreeSet<(Duration, Ipv4Addr)>,
    stale: BTreeSet<Ipv4Addr>,
    /// The agents of which this master cannot know whether they run.
    unknown: BTreeSet<Ipv4Addr>,
    /// Whether this leader began without the notice of the agents.
    is_unnoticed: bool,
    pub(super) shared: SharedAddresses,
    /// The time of the latest event.
    now: Option<Now>,
}

/// What the deadlines of agents have led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::master) struct DueContacts {
    pub(in crate::master) stale: Vec<Ipv4Addr>,
    /// The agents that are not stale any more, since a link to them is open.
    pub(in crate::master) returned: Vec<Ipv4Addr>,
    /// The silent agents to which the master links.
    pub(in crate::master) links: Vec<Upid>,
}

impl Contacts {
    /// Gives an agent until `deadline` to send its first message to this master.
    pub(super) fn expect(&mut self, ip: Ipv4Addr, deadline: Duration) {
        if !self.agents.contains_key(&ip) {
            self.deadlines.insert((deadline, ip));
            let deadline = Some(deadline);
            let contact = Contact {
                last: None,
                is_periodic: false,
                registers_again: false,
                version: None,
                link: Link::Closed,
                deadline,
            };
            self.agents.insert(ip, contact);
        }
    }

    /// Notes a message of an agent. `is_request` tells whether it requests peers. Returns whether
    /// the agent was stale.
    pub(super) fn record(&mut self, upid: &Upid, now: Now, is_request: bool) -> bool {
        let ip = *upid.address.ip();
        let before = self.take(ip);
        let is_periodic = match &before {
            _ if is_request => true,
            Some(Contact { last: Some(last), is_periodic, .. }) if last.upid == *upid => {
                *is_periodic
            }
            _ => false,
        };
        self.unknown.remove(&ip);
        // The transport keeps a link that it has, and reports its end once.
        let link = match &before {
            Some(Contact { last: Some(last), link: Link::Opening | Link::Open, .. })
                if last.upid.address == upid.address =>
            {
                Link::Open
            }
            _ => Link::Closed,
        };
        let same = before
            .as_ref()
            .filter(|contact| contact.last.as_ref().is_some_and(|last| last.upid == *upid));
        let registers_again = same.is_some_and(|contact| contact.registers_again);
        let version = same.and_then(|contact| contact.version);
        if let Some(previous) = before.and_then(|contact| contact.last)
            && previous.upid.address != upid.address
        {
            self.shared.replace(&previous.upid, upid, now.elapsed);
        }
        let deadline = now.elapsed + SILENCE_MAX;
        self.deadlines.insert((deadline, ip));
        self.by_last_seen.insert((now.elapsed, ip));
        let last = LastMessage { upid: upid.clone(), elapsed: now.elapsed, unix: now.unix };
        let (last, deadline) = (Some(last), Some(deadline));
        let contact = Contact { last, is_periodic, registers_again, version, link, deadline };
        self.agents.insert(ip, contact);
        self.stale.remove(&ip)
    }

    /// Notes the version of an agent. Its next process, which registers, may have another.
    pub(super) fn record_version(&mut self, ip: Ipv4Addr, version: Option<ProgramVersion>) {
        if let Some(contact) = self.agents.get_mut(&ip) {
            contact.version = version;
        }
    }

    /// Returns the version of an agent, if the agent has sent it.
    pub(super) fn version(&self, ip: Ipv4Addr) -> Option<ProgramVersion> {
        self.agents.get(&ip).and_then(|contact| contact.version)
    }

    /// Notes that the agent has sent a message that only agents send that register again by
    /// themselves.
    pub(super) fn expect_registrations(&mut self, upid: &Upid) {
        if let Some(contact) = self.agents.get_mut(upid.address.ip())
            && contact.last.as_ref().is_some_and(|last| last.upid == *upid)
        {
            contact.registers_again = true;
        }
    }

    /// Notes that the agent registered. It may request no peers from now on, for example because it
    /// was started with other options, or register no more by itself, as a C++ module in its place.
    pub(super) fn end_requests(&mut self, ip: Ipv4Addr) {
        if let Some(contact) = self.agents.get_mut(&ip) {
            contact.is_periodic = false;
            contact.registers_again = false;
            contact.version = None;
        }
    }

    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.take(ip);
        self.stale.remove(&ip);
        self.unknown.remove(&ip);
        self.shared.remove(ip);
    }

    /// Removes an agent, except from the stale and the unknown agents.
    fn take(&mut self, ip: Ipv4Addr) -> Option<Contact> {
        let contact = self.agents.remove(&ip)?;
        if let Some(deadline) = contact.deadline {
            self.deadlines.remove(&(deadline, ip));
        }
        if let Some(last) = &contact.last {
            self.by_last_seen.remove(&(last.elapsed, ip));
        }
        Some(contact)
    }

    /// Handles the end of a link, or of the attempt to open it. Returns the agent if it is stale
    /// from now on.
    pub(super) fn exited(&mut self, address: SocketAddrV4, elapsed: Duration) -> Option<Ipv4Addr> {
        self.shared.exited(address);
        let ip = *address.ip();
        let contact = self.agents.get_mut(&ip)?;
        let is_its_own = contact.last.as_ref().is_some_and(|last| last.upid.address == address);
        if !is_its_own || contact.link == Link::Closed {
            return None;
        }
        let is_stale = contact.link == Link::Opening;
        contact.link = Link::Closed;
        if contact.is_periodic {
            return None;
        }
        // A broken link gives the agent time to return. Afterwards, and also of a stale agent, the
        // master tries again.
        self.set_deadline(ip, Some(elapsed + SILENCE_MAX));
        (is_stale && self.stale.insert(ip)).then_some(ip)
    }

    fn set_deadline(&mut self, ip: Ipv4Addr, deadline: Option<Duration>) {
        let Some(contact) = self.agents.get_mut(&ip) else { return };
        if let Some(before) = contact.deadline {
            self.deadlines.remove(&(before, ip));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, ip)));
        contact.deadline = deadline;
    }

    /// Gives every agent the time to send its next message: the master received none for a while.
    pub(super) fn restart(&mut self, elapsed: Duration) {
        let deadline = elapsed + SILENCE_MAX;
        self.shared.restart(elapsed);
        self.deadlines.clear();
        for (ip, contact) in &mut self.agents {
            contact.deadline = Some(deadline);
            self.deadlines.insert((deadline, *ip));
        }
    }

    /// Handles deadlines until now. If more are left, the next timeout is due at once.
    pub(super) fn take_due(&mut self, elapsed: Duration) -> DueContacts {
        let first = self.deadlines.first().map(|(deadline, _)| *deadline);
        if first.is_some_and(|deadline| deadline + LATE < elapsed) {
            log::warn!(
                "this master did not run for a while: every agent has {} to send a message",
                humantime::format_duration(SILENCE_MAX)
            );
            self.restart(elapsed);
        }
        let mut due = DueContacts { links: self.shared.take_links(), ..DueContacts::default() };
        self.shared.take_due(elapsed);
        for _ in 0..SLICE {
            let Some(&(_, ip)) = self.deadlines.first().filter(|(due, _)| *due <= elapsed) else {
                break;
            };
            let Some(contact) = self.agents.get_mut(&ip) else {
                self.deadlines.pop_first();
                continue;
            };
            let next = match (&contact.last, contact.link) {
                (Some(last), Link::Closed)
                    if !contact.is_periodic && !Mutation::CallSilentAgentsStale.is_on() =>
                {
                    contact.link = Link::Opening;
                    due.links.push(last.upid.clone());
                    Some(elapsed + LINK_TIMEOUT)
                }
                (Some(last), Link::Opening | Link::Open)
                    if !contact.is_periodic
                        && (!contact.registers_again
                            || elapsed < last.elapsed + REGISTRATION_SILENCE_MAX) =>
                {
                    contact.link = Link::Open;
                    due.returned.extend(self.stale.take(&ip));
                    let next = last.elapsed + REGISTRATION_SILENCE_MAX;
                    contact.registers_again.then_some(next)
                }
                (None, _) if self.is_unnoticed => {
                    self.unknown.insert(ip);
                    None
                }
                _ => {
                    due.stale.extend(self.stale.insert(ip).then_some(ip));
                    None
                }
            };
            self.set_deadline(ip, next);
        }
        due
    }

    /// Returns when [`Self::take_due`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        deadline.into_iter().chain(self.shared.next_timeout()).min()
    }

    pub(super) fn upid(&self, ip: Ipv4Addr) -> Option<&Upid> {
        self.last_message(ip).map(|last| &last.upid)
    }

    pub(super) fn last_seen(&self, ip: Ipv4Addr) -> Option<Duration> {
        self.last_message(ip).map(|last| last.elapsed)
    }

    /// Returns whether the agent has missed a periodic request. It is not stale yet.
    pub(super) fn is_late(&self, ip: Ipv4Addr) -> bool {
        let contact = self.agents.get(&ip).filter(|contact| contact.is_periodic);
        let last = contact.and_then(|contact| contact.last.as_ref());
        let times = last.zip(self.now);
        times.is_some_and(|(last, now)| now.elapsed > last.elapsed + REQUEST_MAX)
    }

    /// Returns when the agent was last seen, in seconds since 1970. The time is never after the
    /// present, also if the wall clock of the host was set back.
    pub(super) fn last_seen_unix(&self, ip: Ipv4Addr) -> Option<u64> {
        let last = self.last_message(ip)?;
        let by_interval = self
            .now
            .map(|now| now.unix.saturating_sub(now.elapsed.saturating_sub(last.elapsed).as_secs()));
        Some(by_interval.map_or(last.unix, |time| time.min(last.unix)))
    }

    /// Sets the time of the latest event.
    pub(super) const fn set_now(&mut self, now: Now) {
        self.now = Some(now);
    }

    /// Notes that agents do not notice the begin of this leader.
    pub(super) const fn begin_unnoticed(&mut self) {
        self.is_unnoticed = true;
    }

    /// Returns whether an agent that was not seen may run for any time.
    pub(super) fn may_run_unseen(&self, ip: Ipv4Addr) -> bool {
        self.is_unnoticed && self.last_message(ip).is_none()
    }

    /// Returns the agents of which this master cannot know whether they run.
    pub(super) const fn unknown(&self) -> &BTreeSet<Ipv4Addr> {
        &self.unknown
    }

    fn last_message(&self, ip: Ipv4Addr) -> Option<&LastMessage> {
        self.agents.get(&ip)?.last.as_ref()
    }

    /// Returns the time of the earliest last message, in seconds since 1970.
    pub(super) fn oldest_unix(&self) -> Option<u64> {
        self.by_last_seen.first().and_then(|(_, ip)| self.last_seen_unix(*ip))
    }

    /// Counts the agents that are silent for longer than each of the ascending `silences`, and the
    /// agents that were not seen since the election. Only silent agents are visited.
    pub(super) fn count_silent<const N: usize>(&self, silences: &[Duration; N]) -> ([u64; N], u64) {
        let unseen = self.agents.len().saturating_sub(self.by_last_seen.len()) as u64;
        let mut counts = [0; N];
        let Some(now) = self.now else { return (counts, unseen) };
        for (last, _) in &self.by_last_seen {
            let silence = now.elapsed.saturating_sub(*last);
            let longer = silences.partition_point(|longest| *longest < silence);
            if longer == 0 {
                break;
            }
            counts.iter_mut().take(longer).for_each(|count| *count += 1);
        }
        (counts, unseen)
    }

    pub(super) const fn stale(&self) -> &BTreeSet<Ipv4Addr> {
        &self.stale
    }

    /// Keeps the agents of which `is_kept` returns true.
    pub(super) fn retain(&mut self, is_kept: impl Fn(Ipv4Addr) -> bool) {
        let gone: Vec<Ipv4Addr> = self.agents.keys().copied().filter(|ip| !is_kept(*ip)).collect();
        gone.into_iter().for_each(|ip| self.remove(ip));
    }
}

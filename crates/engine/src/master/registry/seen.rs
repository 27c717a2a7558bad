//! The messages of agents: which process an agent is, when it was last seen, and whether it is stale.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, UNIX_EPOCH};

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{AgentContact, ProgramVersion};
use overlay_types::text::{pluralize, truncate_list};

use super::Registry;
use super::contacts::{Contacts, SILENCE_MAX};

/// What the metrics show of an agent that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::master) struct RequestedAgent {
    pub(in crate::master) ip: Ipv4Addr,
    /// Whether the agent has addresses.
    pub(in crate::master) is_known: bool,
    pub(in crate::master) is_stale: bool,
    /// When the agent was last seen, if it was seen since the election.
    pub(in crate::master) last_seen_unix: Option<u64>,
}

impl Registry {
    /// Counts the agents that are silent for longer than each of the ascending `silences`, and the
    /// agents that were not seen since the election.
    pub(in crate::master) fn count_silent<const N: usize>(
        &self,
        silences: &[Duration; N],
    ) -> ([u64; N], u64) {
        self.contacts.count_silent(silences)
    }

    /// Returns what the metrics show of these agents.
    pub(in crate::master) fn requested_agents(&self, agents: &[Ipv4Addr]) -> Vec<RequestedAgent> {
        let requested = |ip: &Ipv4Addr| RequestedAgent {
            ip: *ip,
            is_known: self.agents.is_known(*ip),
            is_stale: self.contacts.stale().contains(ip),
            last_seen_unix: self.contacts.last_seen_unix(*ip),
        };
        agents.iter().map(requested).collect()
    }

    /// Notes a message of the agent at `upid`. `is_request` tells whether it requests peers.
    pub(in crate::master) fn record_contact(&mut self, upid: &Upid, now: Now, is_request: bool) {
        let ip = *upid.address.ip();
        if self.agents.is_known(ip) && self.contacts.record(upid, now, is_request) {
            self.agents.set_stale(ip, false);
            log::info!("agent {ip} is seen again: it is not stale any more");
        }
    }

    /// Notes the version of an agent that was seen.
    pub(in crate::master) fn record_version(
        &mut self,
        ip: Ipv4Addr,
        version: Option<ProgramVersion>,
    ) {
        self.contacts.record_version(ip, version);
    }

    /// Notes that an agent registered. See [`Contacts::end_requests`].
    pub(in crate::master) fn end_requests(&mut self, ip: Ipv4Addr) {
        self.contacts.end_requests(ip);
    }

    /// Notes that the agent registers again by itself. See [`Contacts::expect_registrations`].
    pub(in crate::master) fn expect_registrations(&mut self, upid: &Upid) {
        self.contacts.expect_registrations(upid);
    }

    /// Notes a message of a process that is not the process of its agent.
    pub(in crate::master) fn record_other_process(&mut self, from: &Upid) {
        self.contacts.shared.record(from);
    }

    /// Sets the time of the latest event.
    pub(in crate::master) const fn set_now(&mut self, now: Now) {
        self.contacts.set_now(now);
    }

    /// Returns whether a process other than `upid` is the process of a known agent that is not
    /// stale.
    pub(in crate::master) fn has_other_process(&self, upid: &Upid) -> bool {
        let ip = *upid.address.ip();
        self.contacts.upid(ip).is_some_and(|known| known != upid)
            && !self.contacts.stale().contains(&ip)
    }

    /// Returns whether an agent that was not seen may run for any time. See [`Contacts`].
    pub(in crate::master) fn may_run_unseen(&self, ip: Ipv4Addr) -> bool {
        self.contacts.may_run_unseen(ip)
    }

    /// Returns whether `upid` is a registered agent. If the agent sent a message since the
    /// election, the UPID has to be the UPID of its last message.
    pub(in crate::master) fn is_contact(&self, upid: &Upid) -> bool {
        let ip = *upid.address.ip();
        self.agents.is_active(ip)
            && self.contacts.upid(ip).is_none_or(|registered| registered == upid)
    }

    /// Returns where the agent can be reached, if it was seen since the election.
    pub(in crate::master) fn contact(&self, ip: Ipv4Addr) -> Option<&Upid> {
        self.contacts.upid(ip)
    }

    /// Returns when the agent was last seen, if it was seen since the election.
    pub(in crate::master) fn last_seen(&self, ip: Ipv4Addr) -> Option<Duration> {
        self.contacts.last_seen(ip)
    }

    /// Returns the contacts, for the next recovery of this master.
    pub(super) fn take_contacts(&mut self) -> Contacts {
        std::mem::take(&mut self.contacts)
    }

    /// Restores the contacts with the agents of this registry.
    pub(super) fn restore_contacts(&mut self, mut contacts: Contacts) {
        contacts.retain(|ip| self.agents.is_known(ip));
        for ip in contacts.stale() {
            self.agents.set_stale(*ip, true);
        }
        self.contacts = contacts;
    }

    /// Gives each agent that was not seen yet the same time to send its first message.
    pub(super) fn expect_agents(&mut self, now: Now) {
        self.set_now(now);
        let deadline = now.elapsed + SILENCE_MAX;
        let known: Vec<Ipv4Addr> =
            self.agents.iter().map(|(ip, _)| ip).filter(|ip| self.agents.is_known(*ip)).collect();
        known.into_iter().for_each(|ip| self.contacts.expect(ip, deadline));
    }

    /// Handles the deadlines of silent agents. Returns the processes to which the master links.
    pub(in crate::master) fn take_silent(&mut self, elapsed: Duration) -> Vec<Upid> {
        let due = self.contacts.take_due(elapsed);
        if Mutation::IgnoreSilence.is_on() {
            return due.links;
        }
        for ip in &due.stale {
            self.agents.set_stale(*ip, true);
            self.forget_address_counts(*ip);
        }
        for ip in &due.returned {
            self.agents.set_stale(*ip, false);
        }
        if !due.stale.is_empty() {
            log::warn!("{}", stale_sentence(&due.stale, due.stale.len(), |ip| self.seen_at(ip)));
        }
        due.links
    }

    /// Handles the end of a link to an agent.
    pub(in crate::master) fn link_ended(&mut self, address: SocketAddrV4, elapsed: Duration) {
        let stale = self.contacts.exited(address, elapsed);
        if let Some(ip) = stale.filter(|_| !Mutation::IgnoreSilence.is_on()) {
            self.agents.set_stale(ip, true);
            self.forget_address_counts(ip);
            log::warn!("{}", stale_sentence(&[ip], 1, |ip| self.seen_at(ip)));
        }
    }

    /// Returns when [`Self::take_silent`] has something to do.
    pub(in crate::master) fn next_silence(&self) -> Option<Duration> {
        self.contacts.next_timeout()
    }

    /// Returns the time of the earliest last message of an agent, in seconds since 1970.
    pub(in crate::master) fn oldest_contact(&self) -> Option<u64> {
        self.contacts.oldest_unix()
    }

    /// Returns when each known agent was last seen, and whether it is stale.
    pub(super) fn contact_times(&self) -> BTreeMap<Ipv4Addr, AgentContact> {
        let known = self.agents.iter().map(|(ip, _)| ip);
        let contact = |ip: Ipv4Addr| AgentContact {
            last_seen: self.contacts.last_seen_unix(ip),
            is_stale: self.contacts.stale().contains(&ip) && !Mutation::IgnoreSilence.is_on(),
            version: self.contacts.version(ip),
        };
        let all = known.filter(|ip| self.agents.is_known(*ip)).map(|ip| (ip, contact(ip)));
        all.filter(|(_, contact)| *contact != AgentContact::default()).collect()
    }

    pub(super) fn has_silent_agents(&self) -> bool {
        !self.contacts.stale().is_empty()
            || !self.contacts.unknown().is_empty()
            || self.contacts.shared.has_any()
    }

    /// Returns a sentence about the stale agents, one about the agents that may be running, and one
    /// for each two agents with one IP.
    pub(super) fn silent_agents(&self) -> impl Iterator<Item = String> {
        let stale = self.contacts.stale();
        let first: Vec<Ipv4Addr> = stale.iter().copied().take(NAMED_MAX).collect();
        let sentence =
            (!first.is_empty()).then(|| stale_sentence(&first, stale.len(), |ip| self.seen_at(ip)));
        let unknown = self.contacts.unknown();
        let first: Vec<Ipv4Addr> = unknown.iter().copied().take(NAMED_MAX).collect();
        let unknown = (!first.is_empty()).then(|| unknown_sentence(&first, unknown.len()));
        sentence.into_iter().chain(unknown).chain(self.contacts.shared.sentences())
    }

    fn seen_at(&self, ip: Ipv4Addr) -> Option<u64> {
        self.contacts.last_seen_unix(ip)
    }
}

/// The most agents of a sentence: as many as [`truncate_list`] returns.
const NAMED_MAX: usize = 10;

/// Describes `count` stale agents. `agents` has the first of them.
fn stale_sentence(
    agents: &[Ipv4Addr],
    count: usize,
    seen_at: impl Fn(Ipv4Addr) -> Option<u64>,
) -> String {
    let name = |ip: &Ipv4Addr| match seen_at(*ip) {
        Some(unix) => {
            let time = UNIX_EPOCH + Duration::from_secs(unix.min(super::RELEASED_AT_MAX));
            format!("{ip} (last seen {})", humantime::format_rfc3339_seconds(time))
        }
        None => format!("{ip} (not seen since the election)"),
    };
    let first = truncate_list(agents).0;
    let names: Vec<String> = first.iter().map(name).collect();
    let rest = match count.saturating_sub(first.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} stale: {}{rest}: start it again, or release its addresses with `mesos-overlay forget`",
        pluralize_agents(count),
        names.join(", ")
    )
}

/// Describes `count` agents that were not seen after a restart that agents do not notice. `agents`
/// has the first of them.
fn unknown_sentence(agents: &[Ipv4Addr], count: usize) -> String {
    let names: Vec<String> = agents.iter().map(ToString::to_string).collect();
    let rest = match count.saturating_sub(agents.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "it is not known whether {} {}: {}{rest}: no message was received since this master \
         restarted after a defect: restart mesos-master, and every running agent registers again",
        pluralize(count, "agent"),
        if count == 1 { "runs" } else { "run" },
        names.join(", ")
    )
}

fn pluralize_agents(count: usize) -> String {
    format!("{} {}", pluralize(count, "agent"), if count == 1 { "is" } else { "are" })
}

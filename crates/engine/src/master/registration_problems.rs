//! The problems of each agent's last registration. The master logs a cause once for each agent,
//! with a count from then on, and sends the causes to agents that ask for them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::protocol::RegistrationProblems;
use overlay_types::state::Version;

use crate::state_machine::should_log_sample;

/// The most agents that are kept. Every host can send a registration that is refused.
const AGENTS_MAX: usize = 10_000;

/// The most ended problems that are kept for each agent. An agent can send any number of options,
/// each of which causes another problem.
const ENDED_CAUSES_MAX: usize = 8;

/// The agents whose registration has problems, or had problems before.
#[derive(Debug, Default)]
pub(super) struct ProblematicAgents {
    agents: BTreeMap<Ipv4Addr, ProblematicAgent>,
    /// Registrations with problems of agents beyond [`AGENTS_MAX`].
    beyond: u64,
}

#[derive(Debug)]
struct ProblematicAgent {
    /// The sender of the last registration.
    upid: Upid,
    is_refused: bool,
    causes: Vec<Cause>,
    /// The version that the last answer waits for.
    answered: Version,
}

/// One problem, also if it has ended: an agent whose options alternate must not fill the log.
#[derive(Debug)]
struct Cause {
    reason: String,
    /// The registrations with this problem.
    count: u64,
    is_current: bool,
}

impl ProblematicAgents {
    /// Replaces the problems of an agent by those of its latest registration. Returns the reasons
    /// to log, each with the number of registrations that had it.
    pub(super) fn replace(
        &mut self,
        upid: &Upid,
        is_refused: bool,
        reasons: Vec<String>,
    ) -> Vec<(String, u64)> {
        let ip = *upid.address.ip();
        let is_known = self.agents.contains_key(&ip);
        if reasons.is_empty() && !is_known {
            return Vec::new();
        }
        if !is_known && self.agents.len() >= AGENTS_MAX {
            self.beyond += 1;
            let is_logged = should_log_sample(self.beyond);
            return reasons.into_iter().map(|reason| (reason, 1)).filter(|_| is_logged).collect();
        }
        let agent = self.agents.entry(ip).or_insert_with(|| ProblematicAgent {
            upid: upid.clone(),
            is_refused,
            causes: Vec::new(),
            answered: Version(0),
        });
        agent.upid.clone_from(upid);
        agent.is_refused = is_refused;
        agent.causes.iter_mut().for_each(|cause| cause.is_current = false);
        let counted = reasons.into_iter().map(|reason| {
            let count = agent.count(&reason);
            (reason, count)
        });
        counted.filter(|(_, count)| should_log_sample(*count)).collect()
    }

    /// Removes a released agent.
    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.agents.remove(&ip);
    }

    /// Returns whether the last registration of this process has problems.
    pub(super) fn has(&self, upid: &Upid) -> bool {
        self.get(upid).is_some()
    }

    /// Returns the problems of the last registration of this process, without addresses.
    pub(super) fn get(&self, upid: &Upid) -> Option<RegistrationProblems> {
        let agent = self.agents.get(upid.address.ip()).filter(|agent| agent.upid == *upid)?;
        let current = agent.causes.iter().filter(|cause| cause.is_current);
        let reasons: Vec<String> = current.map(|cause| cause.reason.clone()).collect();
        let is_refused = agent.is_refused;
        (!reasons.is_empty()).then(|| RegistrationProblems {
            is_refused,
            reasons,
            reassigned: Vec::new(),
            registration: 0,
        })
    }

    /// Notes that an answer waits for `valid_from`. Returns whether to send it: while a disk hangs,
    /// agents repeat their registration, and one answer is enough.
    pub(super) fn add_answer(
        &mut self,
        ip: Ipv4Addr,
        valid_from: Version,
        durable: Version,
    ) -> bool {
        let Some(agent) = self.agents.get_mut(&ip) else { return false };
        let is_first = std::mem::replace(&mut agent.answered, valid_from) != valid_from;
        is_first || valid_from <= durable
    }
}

#[cfg(test)]
impl ProblematicAgents {
    /// Returns the number of causes that are kept for an agent.
    pub(super) fn cause_count(&self, ip: Ipv4Addr) -> usize {
        self.agents[&ip].causes.len()
    }
}

impl ProblematicAgent {
    /// Counts a problem, and returns its count.
    fn count(&mut self, reason: &str) -> u64 {
        if let Some(cause) = self.causes.iter_mut().find(|cause| cause.reason == reason) {
            cause.is_current = true;
            cause.count += 1;
            return cause.count;
        }
        let ended = self.causes.iter().filter(|cause| !cause.is_current).count();
        if ended > ENDED_CAUSES_MAX
            && let Some(oldest) = self.causes.iter().position(|cause| !cause.is_current)
        {
            self.causes.remove(oldest);
        }
        self.causes.push(Cause { reason: reason.to_owned(), count: 1, is_current: true });
        1
    }
}

/// Returns the end of a log line: empty for the first registration with a problem.
pub(super) fn repetition(count: u64) -> String {
    if count > 1 { format!(" ({count} times until now)") } else { String::new() }
}

//! What is asked of the master over HTTP, and what it shows of itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::command::{Command, Reply};
use super::event::{Forget, Request};
use super::leadership::{Leading, Phase, Progress, Recovering, Standby};
use super::metrics::{self, Metrics};
use super::registry::Agent;
use super::reload::log_refused;
use super::view::{Condition, Fate, Health, Verdict};
use super::{Master, NOT_LEADING, Settings};
use crate::clock::Now;
use crate::machine::Machine as _;
use crate::metrics::{HostCounters, Snapshot};
use crate::mutation::Mutation;
use crate::protocol::{HistoryEvent, Refused, RequestId};
use crate::store::{StoreError, Version};
use crate::words::named;

/// An agent that was heard within this time is running: agents register again within a quarter of
/// an hour, and one of these messages may get lost. Those of the C++ modules do not; of them only a
/// short while is known.
const RUNNING: Duration = Duration::from_secs(30 * 60);
/// Problems that health lists.
const PROBLEMS_MAX: usize = 100;
/// How long after it began to lead a master may not have heard of an agent that is running: longer
/// than the longest wait between two registrations.
const SETTLING: Duration = Duration::from_secs(2 * 60);

impl Master {
    pub(super) fn request(&mut self, now: Now, id: RequestId, request: Request) {
        let (reply, when) = match (&mut self.phase, request) {
            (_, Request::Health) => (Reply::Health(Box::new(self.health())), Version(0)),
            (_, Request::Metrics) => (Reply::Metrics(Box::new(self.snapshot())), Version(0)),
            (_, Request::Reload) => {
                self.commands.push_back(Command::Reread(id));
                return;
            }
            (_, Request::Preview(network)) => {
                self.preview(now, id, *network);
                return;
            }
            (Phase::Standby(_), _) => (Reply::Unavailable(NOT_LEADING.to_owned()), Version(0)),
            (Phase::Recovering(recovering), _) => {
                let reason = match &recovering.progress {
                    Progress::Failed(error, _) => error.to_string(),
                    Progress::Queued | Progress::Reading => "the state is being read".to_owned(),
                };
                (Reply::Unavailable(reason), Version(0))
            }
            (Phase::Leading(leading), request) => {
                let answer = leading.answer(now, request);
                self.commands.extend(leading.take_withdrawal());
                answer
            }
        };
        self.commands.push_back(Command::Reply { id, reply, when });
    }

    /// The configuration was read again, because the request of this id wants it.
    pub(super) fn reread(
        &mut self,
        now: Now,
        id: RequestId,
        settings: Result<Settings, Vec<String>>,
    ) {
        let reply = match settings {
            Ok(settings) => Reply::Effect(Box::new(self.reload(now, settings))),
            Err(problems) => {
                log_refused(&problems);
                Reply::Misconfigured(problems)
            }
        };
        let when = match &self.phase {
            Phase::Leading(leading) => leading.latest_version(),
            Phase::Standby(_) | Phase::Recovering(_) => Version(0),
        };
        self.commands.push_back(Command::Reply { id, reply, when });
    }

    pub(super) fn condition(&self) -> Condition {
        match &self.phase {
            Phase::Standby(_) => Condition::Standby,
            Phase::Recovering(Recovering { progress: Progress::Failed(..), .. }) => {
                Condition::Failed
            }
            Phase::Recovering(_) => Condition::Recovering,
            Phase::Leading(leading)
                if leading.registry.has_problems() || leading.peers.problem().is_some() =>
            {
                Condition::Degraded
            }
            Phase::Leading(_) => Condition::Ok,
        }
    }

    fn snapshot(&self) -> Snapshot<Metrics> {
        let configured = match &self.phase {
            Phase::Standby(_) | Phase::Recovering(_) => Vec::new(),
            Phase::Leading(leading) => metrics::pools(&leading.registry.usage()),
        };
        Snapshot { machine: self.metrics(), host: HostCounters::default(), configured }
    }

    fn health(&self) -> Health {
        let Metrics { status, epoch, version, agents, peers, counters } = self.metrics();
        let (problems, pools) = match &self.phase {
            Phase::Standby(Standby { deposed, .. }) => {
                let sentence = |(error, _): &(StoreError, Duration)| {
                    format!("{error}: soon it is read again, unless another master is elected")
                };
                (deposed.iter().map(sentence).collect(), Vec::new())
            }
            Phase::Recovering(Recovering { progress: Progress::Failed(error, _), .. }) => {
                (vec![error.to_string()], Vec::new())
            }
            Phase::Recovering(_) => (Vec::new(), Vec::new()),
            Phase::Leading(leading) => {
                let mut problems = leading.registry.problems();
                problems.extend(leading.peers.problem());
                (problems, leading.registry.usage())
            }
        };
        let problems = first_problems(problems);
        let refused = Refused::default();
        Health { status, problems, epoch, version, agents, peers, pools, counters, refused }
    }
}

/// The first problems, and how many more there are: strangers can cause many, and health is asked
/// often.
fn first_problems(mut problems: Vec<String>) -> Vec<String> {
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        problems.truncate(PROBLEMS_MAX);
        problems.push(format!("… and {more} more problems: mend those above first"));
    }
    problems
}

impl Leading {
    /// Answers what only a master with its state can.
    fn answer(&mut self, now: Now, request: Request) -> (Reply, Version) {
        let reply = match request {
            Request::DeleteAgents(ips) => {
                let is_deleted = |ip: &Ipv4Addr| self.delete(now, *ip, "it was deleted over HTTP");
                let (deleted, unknown): (Vec<_>, Vec<_>) = ips.into_iter().partition(is_deleted);
                log_deleted(&deleted);
                if !unknown.is_empty() {
                    log::info!("nothing to delete of {}", named(&unknown, "unknown agent"));
                }
                self.settle_doubts(now);
                Reply::State(self.registry.state())
            }
            Request::Forget(forget) => Reply::Fates(self.forget(now, &forget)),
            Request::History(agent) => Reply::History(self.history.view(agent)),
            // The others are answered whatever the phase.
            Request::State
            | Request::Health
            | Request::Metrics
            | Request::Reload
            | Request::Preview(_) => Reply::State(self.registry.state()),
        };
        (reply, self.latest_version())
    }

    fn delete(&mut self, now: Now, ip: Ipv4Addr, why: &str) -> bool {
        let is_told = |agent: &Agent| agent.version > self.durable;
        if self.registry.agents.get(&ip).is_some_and(is_told) {
            self.withdrawn.insert(ip);
        }
        let Some((change, addresses)) = self.registry.release(ip, now.unix) else {
            return false;
        };
        if !Mutation::ReleaseIsNotStored.is_on() {
            self.change([change]);
        }
        self.note(now, Some(ip), HistoryEvent::Released, addresses, why);
        true
    }

    /// Deletes agents that are not running, or all of them if that is what is wanted.
    fn forget(&mut self, now: Now, forget: &Forget) -> Vec<Fate> {
        let (mut fates, mut deleted) = (Vec::new(), Vec::new());
        for &ip in &forget.agents {
            let Some(mut fate) = self.registry.fate(ip) else {
                if !forget.dry_run {
                    self.registry.forget_refusal(ip);
                }
                fates.push(Fate::unknown(ip));
                continue;
            };
            let heard = self.registry.contacts.get(&ip).map(|contact| contact.heard);
            let silence = heard.map(|heard| now.elapsed.saturating_sub(heard));
            fate.heard_seconds_ago = silence.map(|silence| silence.as_secs());
            let is_running = silence.is_some_and(|silence| silence < RUNNING);
            let is_settling = now.elapsed.saturating_sub(self.since) < SETTLING;
            fate.result = if is_running && !forget.force {
                Verdict::Running
            } else if silence.is_none() && is_settling && !forget.force {
                Verdict::MayBeRunning
            } else if forget.dry_run {
                Verdict::WouldBeDeleted
            } else {
                // Whether it runs is not known: one that was stopped a moment ago looks the same.
                let why = match silence {
                    Some(silence) if is_running => {
                        let seconds = silence.as_secs();
                        format!("it was forgotten by force, {seconds} s after it was last heard")
                    }
                    None if is_settling => {
                        "it was forgotten by force, before this master had heard it".to_owned()
                    }
                    _ => "it was forgotten".to_owned(),
                };
                self.delete(now, ip, &why);
                deleted.push(ip);
                Verdict::Deleted
            };
            fates.push(fate);
        }
        log_deleted(&deleted);
        self.settle_doubts(now);
        fates
    }
}

/// One line for a request, which may delete a hundred thousand agents.
fn log_deleted(agents: &[Ipv4Addr]) {
    if !agents.is_empty() {
        log::info!("released the addresses of {}", named(agents, "deleted agent"));
    }
}

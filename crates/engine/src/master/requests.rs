//! Requests over HTTP, and the health and metrics of the master.

use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::protocol::{Author, Leader, RejectedMessages, RequestId};
use overlay_types::state::StoreError;

use super::command::{Command, Reply};
use super::effect::log_refused;
use super::event::Request;
use super::metrics::Metrics;
use super::phase::{Phase, Progress};
use super::view::{Condition, Health};
use super::{Master, Settings};
use crate::metrics::{HostCounters, LogTally, Snapshot};
use crate::state_machine::StateMachine as _;

/// The most problems that the health lists.
const PROBLEMS_MAX: usize = 100;

impl Master {
    pub(super) fn request(&mut self, now: Now, id: RequestId, request: Request) {
        let (author, request) = request.split_author();
        let command = match (&mut self.phase, request) {
            (_, Request::Health) => {
                Command::immediate_reply(id, Reply::Health(Box::new(self.health())))
            }
            (_, Request::Metrics(agents)) => {
                Command::immediate_reply(id, Reply::Metrics(Box::new(self.snapshot(&agents))))
            }
            (_, Request::Reload) => {
                return self.queue_reload(now, id, author);
            }
            (_, Request::Preview(network)) => return self.preview(now, id, *network),
            (Phase::Standby(_) | Phase::Recovering(_), _) => {
                Command::immediate_reply(id, Reply::Unavailable(self.unavailable_reason()))
            }
            (Phase::Leading(leading), request) => {
                leading.set_author(author);
                let answer = leading.answer(now, request, &mut self.outbox);
                leading.set_author(Author::default());
                answer.into_command(id)
            }
        };
        self.outbox.push(command);
    }

    /// Returns why a master without a loaded state does not answer.
    pub(super) fn unavailable_reason(&self) -> String {
        match &self.phase {
            Phase::Standby(_) => self.not_leading_reason(),
            Phase::Recovering(recovering) => match recovering.progress() {
                Progress::Failed(error, _) => error.to_string(),
                Progress::Queued | Progress::Reading => "the state is being read".to_owned(),
            },
            Phase::Leading(_) => String::new(),
        }
    }

    /// Returns the answer of a master that does not lead, which names the leader.
    pub(super) fn not_leading_reason(&self) -> String {
        match &self.leader {
            Some(Leader { address, .. }) => {
                format!("this is not the leading master: ask http://{address}, which leads")
            }
            None => "this is not the leading master, and it knows no master that leads".to_owned(),
        }
    }

    /// Applies the configuration that was read for a request, and answers the request.
    pub(super) fn finish_reload(
        &mut self,
        now: Now,
        id: RequestId,
        settings: Result<Settings, Vec<String>>,
    ) {
        let Some(author) = self.end_reading(now, id) else { return };
        if let Phase::Leading(leading) = &mut self.phase {
            leading.set_author(author);
        }
        let reply = match settings {
            Ok(settings) => Reply::Effect(Box::new(self.reload(now, settings))),
            Err(problems) => {
                log_refused(&problems);
                Reply::Misconfigured(problems)
            }
        };
        if let Phase::Leading(leading) = &mut self.phase {
            leading.set_author(Author::default());
        }
        let command = match &self.phase {
            Phase::Leading(leading) => leading.gate_reply(reply).into_command(id),
            Phase::Standby(_) | Phase::Recovering(_) => Command::immediate_reply(id, reply),
        };
        self.outbox.push(command);
    }

    pub(super) fn condition(&self) -> Condition {
        match &self.phase {
            Phase::Standby(_) => Condition::Standby,
            Phase::Recovering(recovering) => match recovering.progress() {
                Progress::Failed(..) => Condition::Failed,
                Progress::Queued | Progress::Reading => Condition::Recovering,
            },
            Phase::Leading(leading) if leading.has_problems() => Condition::Degraded,
            Phase::Leading(_) => Condition::Ok,
        }
    }

    fn snapshot(&self, agents: &[Ipv4Addr]) -> Snapshot<Metrics> {
        let configured = match &self.phase {
            Phase::Standby(_) | Phase::Recovering(_) => Vec::new(),
            Phase::Leading(leading) => leading.configured_metrics(agents),
        };
        Snapshot {
            metrics: self.metrics(),
            host: HostCounters::default(),
            configured,
            histograms: Vec::new(),
        }
    }

    fn health(&self) -> Health {
        let Metrics { status, epoch, version, agents, peers, counters, .. } = self.metrics();
        let (problems, pools) = match &self.phase {
            Phase::Standby(standby) => {
                let sentence = |(error, _): &(StoreError, Duration)| {
                    format!(
                        "{error}: the state is read again soon, unless another master is elected"
                    )
                };
                (standby.demoted_by_store().into_iter().map(sentence).collect(), Vec::new())
            }
            Phase::Recovering(recovering) => match recovering.progress() {
                Progress::Failed(error, _) => (vec![error.to_string()], Vec::new()),
                Progress::Queued | Progress::Reading => (Vec::new(), Vec::new()),
            },
            Phase::Leading(leading) => (leading.problems(), leading.usage()),
        };
        let is_standby = matches!(self.phase, Phase::Standby(_));
        let authentication = match &self.phase {
            Phase::Leading(leading) => leading.authentication_view(),
            Phase::Standby(_) | Phase::Recovering(_) => None,
        };
        Health {
            status,
            problems: first_problems(problems),
            leader: self.leader.clone().filter(|_| is_standby),
            epoch,
            version,
            agents,
            peers,
            pools,
            authentication,
            counters,
            refused: RejectedMessages::default(),
            log: LogTally::default(),
        }
    }
}

/// Returns the first problems, and the number of the others: foreign senders can cause many
/// problems, and the health is requested often.
fn first_problems(mut problems: Vec<String>) -> Vec<String> {
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        problems.truncate(PROBLEMS_MAX);
        problems.push(format!("… and {more} more problems: fix those above first"));
    }
    problems
}

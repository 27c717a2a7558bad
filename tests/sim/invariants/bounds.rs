//! Messages and commands are bounded: an agent sends messages at intervals or after an event, and a
//! master only after a message or a change of its configuration.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{BOUNDED, Fact, Invariant};
use crate::ledger::Ledger;

/// Messages that an agent may send in a minute without an event: registrations with a backoff that
/// begins with 1 s and doubles, for two starts, each with the held addresses, and the same number
/// of requests for peers.
const UNPROVOKED_MAX: u64 = 54;
/// Commands of an agent after one event: an attempt at each of its networks, and a few messages.
const AGENT_COMMANDS_MAX: usize = 24;
/// Commands of a master after one event, besides answers to all waiting agents.
const MASTER_COMMANDS_MAX: usize = 8;

#[derive(Default)]
struct Traffic {
    minute: u64,
    sent: u64,
    provoked: u64,
    provoked_before: u64,
    /// Since the start.
    received: u64,
    answered: u64,
}

impl Traffic {
    fn advance_to(&mut self, minute: u64) {
        if self.minute != minute {
            let is_next = self.minute + 1 == minute;
            self.provoked_before = if is_next { self.provoked } else { 0 };
            (self.minute, self.sent, self.provoked) = (minute, 0, 0);
        }
    }
}

pub(crate) struct Bounds {
    agents: usize,
    /// How often a master has read its configuration again.
    rereads: u64,
    traffic: HashMap<Ipv4Addr, Traffic>,
}

impl Bounds {
    pub(crate) fn new(agents: usize) -> Self {
        Self { agents, rereads: 0, traffic: HashMap::new() }
    }

    fn of(&mut self, now: Duration, agent: Ipv4Addr) -> &mut Traffic {
        let traffic = self.traffic.entry(agent).or_default();
        traffic.advance_to(now.as_secs() / 60);
        traffic
    }
}

impl Invariant for Bounds {
    fn name(&self) -> &'static str {
        BOUNDED
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AgentTriggered { agent } | Fact::AgentStarted { agent, .. } => {
                self.of(now, *agent).provoked += 1;
            }
            Fact::ConfigRead => self.rereads += 1,
            Fact::MessageReceived { agent } => self.of(now, *agent).received += 1,
            Fact::MessageSent { agent, is_by_agent: true } => {
                let traffic = self.of(now, *agent);
                traffic.sent += 1;
                let Traffic { sent, provoked, provoked_before, .. } = traffic;
                if *sent > UNPROVOKED_MAX + 3 * (*provoked + *provoked_before) {
                    return Err(format!(
                        "{agent} has sent {sent} messages within a minute with {provoked} events, \
                         after a minute with {provoked_before} events"
                    ));
                }
            }
            Fact::MessageSent { agent, is_by_agent: false } => {
                // An assignment, and the problems that remain.
                let rereads = self.rereads;
                let traffic = self.of(now, *agent);
                traffic.answered += 1;
                let Traffic { received, answered, .. } = traffic;
                if *answered > *received + 2 * rereads {
                    return Err(format!(
                        "{agent} sent {received} messages and got {answered} answers"
                    ));
                }
            }
            Fact::CommandsIssued { node, count, events, is_master } => {
                let most = if *is_master {
                    MASTER_COMMANDS_MAX * events + 2 * self.agents
                } else {
                    AGENT_COMMANDS_MAX * events
                };
                if *count > most {
                    return Err(format!("{node} issues {count} commands after {events} events"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

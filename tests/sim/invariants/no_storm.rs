//! Nobody is flooded: an agent speaks now and then, or because something happened to it; a master
//! speaks only when it is spoken to or its configuration changes; and what a machine wants done at
//! a time has a bound.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{BOUNDED, Fact, Invariant};
use crate::ledger::Ledger;

/// Messages that an agent may send in a minute without any reason from outside: it asks again after
/// 1 s at the earliest, then waits twice as long each time, and may be started twice; with its
/// questions for peers it is the same.
const UNPROVOKED_MAX: u64 = 36;
/// Commands of an agent at one event: an attempt at each of its networks, and a few messages.
const AGENT_COMMANDS_MAX: usize = 24;
/// Commands of a master at one event, besides answers to all who waited.
const MASTER_COMMANDS_MAX: usize = 8;

#[derive(Default)]
struct Traffic {
    minute: u64,
    sent: u64,
    provoked: u64,
    provoked_before: u64,
    /// Since the beginning.
    asked: u64,
    answered: u64,
}

impl Traffic {
    fn turn_to(&mut self, minute: u64) {
        if self.minute != minute {
            let is_next = self.minute + 1 == minute;
            self.provoked_before = if is_next { self.provoked } else { 0 };
            (self.minute, self.sent, self.provoked) = (minute, 0, 0);
        }
    }
}

pub(crate) struct NoStorm {
    agents: usize,
    /// How often a master has read its configuration again.
    rereads: u64,
    traffic: HashMap<Ipv4Addr, Traffic>,
}

impl NoStorm {
    pub(crate) fn new(agents: usize) -> Self {
        Self { agents, rereads: 0, traffic: HashMap::new() }
    }

    fn of(&mut self, now: Duration, agent: Ipv4Addr) -> &mut Traffic {
        let traffic = self.traffic.entry(agent).or_default();
        traffic.turn_to(now.as_secs() / 60);
        traffic
    }
}

impl Invariant for NoStorm {
    fn name(&self) -> &'static str {
        BOUNDED
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Provoked { agent } | Fact::Began { agent, .. } => {
                self.of(now, *agent).provoked += 1;
            }
            Fact::Reread => self.rereads += 1,
            Fact::Asked { agent } => self.of(now, *agent).asked += 1,
            Fact::Sent { agent, is_by_agent: true } => {
                let traffic = self.of(now, *agent);
                traffic.sent += 1;
                let Traffic { sent, provoked, provoked_before, .. } = traffic;
                if *sent > UNPROVOKED_MAX + 2 * (*provoked + *provoked_before) {
                    return Err(format!(
                        "{agent} has sent {sent} messages within a minute in which {provoked} \
                         things happened to it, and {provoked_before} in the minute before"
                    ));
                }
            }
            Fact::Sent { agent, is_by_agent: false } => {
                let rereads = self.rereads;
                let traffic = self.of(now, *agent);
                traffic.answered += 1;
                let Traffic { asked, answered, .. } = traffic;
                if *answered > *asked + rereads {
                    return Err(format!("{agent} has asked {asked} times; answers: {answered}"));
                }
            }
            Fact::Commanded { who, count, events, is_master } => {
                let most = if *is_master {
                    MASTER_COMMANDS_MAX * events + 2 * self.agents
                } else {
                    AGENT_COMMANDS_MAX * events
                };
                if *count > most {
                    return Err(format!("{who} wants {count} things done at {events} events"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

//! A storm of registrations costs each agent a few messages about peers: besides the answer to each
//! request a master sends an agent at most two deltas a second. Agents without a request get none.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// The interval between two deltas of a master, less the error of its clock.
const PACE: Duration = Duration::from_millis(490);
/// How many may be sent together: those that waited for the store, and the next one.
const TOGETHER_MAX: u32 = 3;
/// The time after a burst of requests in which each of them may be answered, as when an agent is
/// assigned repeatedly and the network duplicates its requests. Later as many as may be sent
/// together.
const BURST: Duration = Duration::from_secs(1);

/// The messages that a process of a master may still send to an agent.
struct Allowance {
    /// Deltas.
    changes: u32,
    /// When the last delta was added.
    since: Duration,
    /// Unanswered requests, and the time of the last one.
    questions: u32,
    asked: Duration,
}

impl Allowance {
    const fn new(now: Duration) -> Self {
        Self { changes: TOGETHER_MAX, since: now, questions: 0, asked: now }
    }

    fn turn_to(&mut self, now: Duration) {
        while self.changes < TOGETHER_MAX && now >= self.since + PACE {
            self.changes += 1;
            self.since += PACE;
        }
        if self.changes == TOGETHER_MAX {
            self.since = now;
        }
        if now > self.asked + BURST {
            self.questions = self.questions.min(TOGETHER_MAX);
        }
    }
}

#[derive(Default)]
pub(crate) struct PeersArePaced {
    allowances: HashMap<(usize, u64, Ipv4Addr), Allowance>,
}

impl Invariant for PeersArePaced {
    fn name(&self) -> &'static str {
        "peer updates are paced"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::PeersRequestReceived { of: (master, run), agent } => {
                let allowance = self.allowances.entry((*master, *run, *agent));
                let allowance = allowance.or_insert_with(|| Allowance::new(now));
                allowance.turn_to(now);
                allowance.questions += 1;
                allowance.asked = now;
                Ok(())
            }
            Fact::PeersSent { by: (master, run), to } => {
                let Some(allowance) = self.allowances.get_mut(&(*master, *run, *to)) else {
                    return Err(format!("master {master} tells {to}, which has not asked"));
                };
                allowance.turn_to(now);
                if allowance.changes > 0 {
                    allowance.changes -= 1;
                } else if allowance.questions > 0 {
                    allowance.questions -= 1;
                } else {
                    return Err(format!("master {master} tells {to} too often of changes"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

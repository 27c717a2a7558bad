//! A storm of registrations costs each agent a handful of messages about peers: besides the answer
//! to each of its questions a master tells it of changes twice in a second at the most, however
//! many there are; and it tells nobody who has not asked.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// How far apart a master's messages about changes are, less what its clock may go wrong.
const PACE: Duration = Duration::from_millis(490);
/// How many may come together: what waited for the store, and what came of it.
const TOGETHER_MAX: u32 = 3;
/// How long after a burst of questions each of them may be answered, as when an agent is assigned
/// again and again and the network doubles what it asks; later it is as many as may come together.
const BURST: Duration = Duration::from_secs(1);

/// What a life of a master may still say to an agent.
struct Allowance {
    /// Of changes.
    changes: u32,
    /// When another one was added.
    since: Duration,
    /// Questions that were not answered, and when the last one was asked.
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
        "a storm is told in a handful of messages"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::PeersWanted { of: (master, run), agent } => {
                let allowance = self.allowances.entry((*master, *run, *agent));
                let allowance = allowance.or_insert_with(|| Allowance::new(now));
                allowance.turn_to(now);
                allowance.questions += 1;
                allowance.asked = now;
                Ok(())
            }
            Fact::PeersTold { by: (master, run), to } => {
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

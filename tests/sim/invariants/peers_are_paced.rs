//! A storm of registrations costs each agent a few messages about peers. Besides the answer to each
//! request, a master sends an agent at most two deltas a second. Agents without a request get none.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// The interval between two deltas of a master, less the error of its clock.
const PACE: Duration = Duration::from_millis(490);
/// The most messages that may be sent together: those that waited for the store, and the next one.
const TOGETHER_MAX: u32 = 3;
/// The time after a burst of requests in which each of them may be answered, as when an agent is
/// assigned repeatedly and the network duplicates its requests. Later, at most `TOGETHER_MAX` of
/// them may still be answered.
const BURST: Duration = Duration::from_secs(1);

/// The messages that a process of a master may still send to an agent.
struct Allowance {
    /// Deltas.
    deltas: u32,
    /// When the last delta was added.
    since: Duration,
    /// Unanswered requests, and the time of the last one.
    requests: u32,
    last_request: Duration,
}

impl Allowance {
    const fn new(now: Duration) -> Self {
        Self { deltas: TOGETHER_MAX, since: now, requests: 0, last_request: now }
    }

    fn advance_to(&mut self, now: Duration) {
        while self.deltas < TOGETHER_MAX && now >= self.since + PACE {
            self.deltas += 1;
            self.since += PACE;
        }
        if self.deltas == TOGETHER_MAX {
            self.since = now;
        }
        if now > self.last_request + BURST {
            self.requests = self.requests.min(TOGETHER_MAX);
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
                allowance.advance_to(now);
                allowance.requests += 1;
                allowance.last_request = now;
                Ok(())
            }
            Fact::PeersSent { by: (master, run), to, .. } => {
                let Some(allowance) = self.allowances.get_mut(&(*master, *run, *to)) else {
                    return Err(format!("master {master} sends peers to {to} without a request"));
                };
                allowance.advance_to(now);
                if allowance.deltas > 0 {
                    allowance.deltas -= 1;
                } else if allowance.requests > 0 {
                    allowance.requests -= 1;
                } else {
                    return Err(format!("master {master} sends peers to {to} too often"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

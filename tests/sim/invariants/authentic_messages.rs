//! Where agents and masters require authentication, a node accepts no message of an attacker, and no
//! message twice. The messages that begin a session may come from everybody.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

#[derive(Default)]
pub(crate) struct AuthenticMessages {
    /// The messages that each process has accepted.
    accepted: HashSet<((Ipv4Addr, u64), u64)>,
}

impl Invariant for AuthenticMessages {
    fn name(&self) -> &'static str {
        "only authentic messages count, once"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        let Fact::Accepted { by, packet, kind, is_forged, counts_once } = fact else {
            return Ok(());
        };
        if !counts_once {
            return Ok(());
        }
        let (node, _) = by;
        if *is_forged {
            return Err(format!("{node} accepts a forged {kind}"));
        }
        if !self.accepted.insert((*by, *packet)) {
            return Err(format!("{node} accepts a {kind} twice"));
        }
        Ok(())
    }
}

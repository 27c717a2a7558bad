//! Which senders are trusted, and the agents that are refused since they do not authenticate.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::protocol::{AuthenticationMode, AuthenticityFault, MessageKind, Principal};

use super::super::view::{AuthenticationTally, AuthenticationView};
use super::Leading;

/// The most refused agents that are kept. Every host can send a message that is refused.
const REFUSED_MAX: usize = 1000;

/// The agents whose last message was refused since it was not authentic.
#[derive(Debug, Default)]
pub(super) struct RefusedAgents(BTreeMap<Ipv4Addr, Cause>);

/// Why the messages of an agent are refused.
#[derive(Debug)]
enum Cause {
    /// The agent does not authenticate.
    NotAuthenticated,
    /// The master does not have the credential of the agent.
    WrongCredential(Principal),
}

impl RefusedAgents {
    fn note(&mut self, ip: Ipv4Addr, cause: Cause) {
        if self.0.len() < REFUSED_MAX || self.0.contains_key(&ip) {
            self.0.insert(ip, cause);
        }
    }

    /// Removes an agent that authenticated, or was released.
    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.0.remove(&ip);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Leading {
    /// Returns whether a message of this kind is accepted from the sender. An agent that has
    /// authenticated once is never accepted unauthenticated again, with and without credentials of
    /// this master. An agent that never authenticated may ask why it is refused.
    pub(in crate::master) fn trusts(
        &self,
        from: &Upid,
        kind: MessageKind,
        is_authenticated: bool,
    ) -> bool {
        if is_authenticated || kind == MessageKind::AuthenticateAgent {
            return true;
        }
        if self.registry.principal(*from.address.ip()).is_some() {
            return false;
        }
        let is_required = self.authentication == Some(AuthenticationMode::Required);
        !is_required || kind == MessageKind::HeldAddresses && self.problems.has(from)
    }

    /// Notes a refused message. A process that sends in the name of an agent that authenticates does
    /// not make that agent a problem, nor does it get an answer.
    pub(in crate::master) fn note_unauthentic(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        fault: &AuthenticityFault,
    ) {
        let ip = *from.address.ip();
        let has_authenticated = self.registry.principal(ip).is_some();
        if has_authenticated && self.registry.contact(ip).is_some() {
            return;
        }
        let cause = match fault {
            AuthenticityFault::NotSealed => Cause::NotAuthenticated,
            AuthenticityFault::WrongCredential(request) => {
                Cause::WrongCredential(request.principal.clone())
            }
            // The agent begins another session soon.
            AuthenticityFault::MalformedSeal
            | AuthenticityFault::UnknownSession
            | AuthenticityFault::WrongCode
            | AuthenticityFault::Replayed => return,
        };
        if kind == MessageKind::RegisterAgent && !has_authenticated {
            let reason = self.refusal_reason(ip, &cause);
            for (reason, _) in self.problems.replace(from, true, vec![reason]) {
                log::warn!("cannot register {from}: {reason}");
            }
        }
        self.refused.note(ip, cause);
    }

    /// Notes an authenticated message.
    pub(in crate::master) fn note_authenticated(&mut self, from: &Upid) {
        self.refused.remove(*from.address.ip());
    }

    fn refusal_reason(&self, ip: Ipv4Addr, cause: &Cause) -> String {
        match cause {
            Cause::WrongCredential(principal) => format!(
                "this master has no principal '{principal}' with the secret of the agent: compare \
                 the agent's file of 'credential' with the master's file of 'credentials'"
            ),
            Cause::NotAuthenticated if self.registry.principal(ip).is_none() => {
                "it is not authenticated: set 'credential' of the agent, or 'authentication' of the \
                 master to permitted"
                    .to_owned()
            }
            Cause::NotAuthenticated if self.authentication.is_none() => {
                "it has authenticated before, and this master has no credentials: set \
                 'credentials' of the master, or release the agent"
                    .to_owned()
            }
            Cause::NotAuthenticated => {
                "it has authenticated before, and does not now: set 'credential' of the agent, or \
                 release it"
                    .to_owned()
            }
        }
    }

    /// Returns a sentence for each refused agent.
    pub(super) fn authentication_problems(&self) -> impl Iterator<Item = String> {
        self.refused.0.iter().map(|(ip, cause)| {
            let reason = self.refusal_reason(*ip, cause);
            format!("refused agent {ip}: {reason}")
        })
    }

    /// Counts the agents by their authentication.
    pub(in crate::master) fn authentication_tally(&self) -> AuthenticationTally {
        let agents = self.registry.tally();
        AuthenticationTally {
            authenticated: agents.authenticated,
            unauthenticated: agents.total - agents.authenticated,
            refused: self.refused.0.len(),
        }
    }

    /// Returns the authentication of the agents, for the health. `None` without credentials, if no
    /// agent has authenticated.
    pub(in crate::master) fn authentication_view(&self) -> Option<AuthenticationView> {
        let tally = self.authentication_tally();
        let is_shown = self.authentication.is_some() || tally.authenticated > 0;
        is_shown.then(|| AuthenticationView {
            mode: self.authentication,
            tally,
            unauthenticated_agents: self
                .registry
                .unauthenticated_agents()
                .take(AuthenticationView::AGENTS_MAX)
                .collect(),
        })
    }
}

//! The sessions of agents with masters, and their secrets, which are replaced now and then.

use std::sync::Arc;

use overlay_engine::agent::AuthenticationSettings;
use overlay_engine::authentication::{AgentSession, MasterSessions};
use overlay_engine::master;
use overlay_engine::{agent::Event as AgentEvent, master::Event as MasterEvent};
use overlay_types::addr::Upid;
use overlay_types::protocol::{
    AgentCredential, AuthenticationMode, AuthenticityFault, MessageKind, Principal, SharedSecret,
    SharedSecrets,
};
use overlay_wire as wire;

use super::{Packet, World};
use crate::chance::Chance;
use crate::invariants::{Fact, InvariantResult};
use crate::scenario::Authentication;

/// The secrets of a cluster. An agent begins to use a new secret when all masters accept it, and the
/// masters accept the former secret until all agents have the new one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rotation(u8);

impl Rotation {
    fn principal() -> Principal {
        "agents".parse().expect("it is a principal")
    }

    fn secret(number: u8) -> SharedSecret {
        SharedSecret::from_digest([number; 32])
    }

    const fn next(self) -> Self {
        // The last secret of a long world stays.
        Self(if self.0 < 200 { self.0 + 1 } else { self.0 })
    }

    const fn changes_agents(self) -> bool {
        self.0 % 3 == 2
    }

    fn of_agents(self) -> AgentCredential {
        let number = self.0 / 3 + u8::from(self.changes_agents());
        AgentCredential { principal: Self::principal(), secret: Self::secret(number) }
    }

    fn of_masters(self) -> SharedSecrets {
        let first = self.0 / 3;
        let last = first + u8::from(!self.0.is_multiple_of(3));
        let mut secrets = SharedSecrets::default();
        for number in first..=last {
            secrets.insert(Self::principal(), Self::secret(number));
        }
        secrets
    }
}

/// Returns a random number for a process.
pub(super) fn random_seed(chance: &mut Chance) -> [u8; 32] {
    let bytes = chance.bytes(32);
    bytes.try_into().expect("there are 32 bytes")
}

impl World {
    /// Returns how a master that starts now authenticates agents.
    pub(super) fn master_authentication(&self) -> Option<master::Authentication> {
        let mode = match self.scenario.authentication? {
            Authentication::Required => AuthenticationMode::Required,
            Authentication::Permitted => AuthenticationMode::Permitted,
        };
        let secrets = Arc::new(self.rotation.of_masters());
        Some(master::Authentication { mode, secrets })
    }

    /// Returns how an agent that starts now authenticates its master.
    pub(super) fn agent_authentication(&self, agent: usize) -> Option<AuthenticationSettings> {
        let node = &self.agents[agent];
        let mode = node.authentication?;
        let was_authenticated = node.has_authenticated_master;
        Some(AuthenticationSettings {
            credential: self.rotation.of_agents(),
            mode,
            was_authenticated,
        })
    }

    /// Takes the next step of a replacement of the secret.
    pub(super) fn rotate_secrets(&mut self) -> InvariantResult {
        self.rotation = self.rotation.next();
        if self.rotation.changes_agents() {
            for agent in 0..self.agents.len() {
                let (run, credential) = (self.agents[agent].run, self.rotation.of_agents());
                if self.agents[agent].authentication.is_some() {
                    let event = AgentEvent::CredentialChanged(credential);
                    self.deliver_to_agent(agent, run, event)?;
                }
            }
            return Ok(());
        }
        for master in 0..self.masters.len() {
            let run = self.masters[master].run;
            let event = MasterEvent::SecretsChanged(self.rotation.of_masters());
            self.deliver_to_master(master, run, event)?;
        }
        Ok(())
    }

    /// Reports a message that a node accepts.
    pub(super) fn report_accepted(
        &mut self,
        run: u64,
        packet: &Packet,
        kind: MessageKind,
    ) -> InvariantResult {
        let is_handshake =
            matches!(kind, MessageKind::AuthenticateAgent | MessageKind::AuthenticationChallenge);
        let fact = Fact::Accepted {
            by: (*packet.to.address.ip(), run),
            packet: packet.id,
            kind,
            is_forged: packet.is_forged,
            // A challenge and its request have no seals.
            counts_once: self.scenario.authentication == Some(Authentication::Required)
                && !is_handshake,
        };
        self.monitor.observe(self.now, &fact)
    }
}

/// Returns the content of a message to a master, and the principal of its sender.
pub(super) fn open_at_master<'a>(
    sessions: &mut MasterSessions,
    (from, kind): (&Upid, MessageKind),
    body: &'a [u8],
) -> Result<(&'a [u8], Option<Principal>), AuthenticityFault> {
    if !sessions.is_on() {
        return Ok((body, None));
    }
    let (content, seal) = wire::split_seal(body)?;
    let principal = seal.map(|seal| sessions.authenticate(from, kind, content, &seal));
    Ok((content, principal.transpose()?))
}

/// Returns the length of the content of a message to an agent.
pub(super) fn open_at_agent(
    session: &mut AgentSession,
    (from, kind): (&Upid, MessageKind),
    body: &[u8],
) -> Result<usize, AuthenticityFault> {
    if !session.is_on() {
        return Ok(body.len());
    }
    let (content, seal) = wire::split_seal(body)?;
    session.authenticate(from, kind, content, seal.as_ref())?;
    Ok(content.len())
}

//! Attacks of a process that shares the addresses of agents and masters, as a container does behind
//! masquerade, and that reads and repeats their messages.

use std::rc::Rc;
use std::sync::Arc;

use overlay_types::addr::{Upid, agent_upid, master_upid};
use overlay_types::protocol::{
    AgentOptions, AuthenticateAgent, AuthenticationChallenge, AuthenticationRefusal, MasterKind,
    MasterNonce, Message, Nonce, PeersRequest,
};
use overlay_wire as wire;

use super::faults::{false_peers, false_refusal};
use super::{Packet, SimEvent, World};

/// Messages that the attacker has read last.
const READ_MAX: usize = 200;
/// Requests for sessions of a flood.
const FLOOD: u64 = 20;

impl World {
    /// Lets the attacker read a message. Its own messages are left out: a reflected message that is
    /// reflected again is the original one, and counts if that was lost.
    pub(super) fn note_read(&mut self, packet: &Rc<Packet>) {
        if self.scenario.faults.attacks.is_none() || packet.is_forged {
            return;
        }
        if self.read_by_attacker.len() == READ_MAX {
            self.read_by_attacker.pop_front();
        }
        self.read_by_attacker.push_back(Rc::clone(packet));
    }

    /// Attacks an agent, or the leader in its name.
    pub(super) fn attack(&mut self, agent: usize) {
        let Some(leader) = self.election.leader else {
            return;
        };
        let agent = agent_upid(self.agents[agent].address());
        let leader = master_upid(self.masters[leader].address);
        match self.chance.number(0..5) {
            0 => self.forge(&agent, &leader),
            1 => self.forge_handshake(&agent, &leader),
            2 => self.repeat(),
            3 => self.reflect(),
            _ => self.change(),
        }
    }

    fn send_forged(&mut self, from: &Upid, to: &Upid, message: &Message) {
        let (name, body) = wire::encode_message(message);
        let mut packet = Packet::new(from.clone(), to.clone(), name, body.into());
        packet.is_forged = true;
        self.send(packet);
    }

    fn forge(&mut self, agent: &Upid, leader: &Upid) {
        let options = AgentOptions {
            underlay: "fd66::66".parse().ok(),
            allocate_subnet: self.chance.is(0.5),
            ..AgentOptions::default()
        };
        let update =
            |overlays| Message::UpdateAgentOverlays { overlays, master: MasterKind::Other };
        let (is_to_master, message) = match self.chance.number(0..7) {
            0 => (true, Message::RegisterAgent(options)),
            1 => (true, Message::AgentRegistered(vec![self.stolen_overlay()])),
            2 => (true, Message::RequestPeers(PeersRequest::default())),
            3 => (false, update(vec![self.stolen_overlay()])),
            4 => (false, update(Vec::new())),
            5 => (false, Message::UpdatePeers(Arc::new(false_peers(&mut self.chance)))),
            _ => (false, Message::RegistrationProblems(false_refusal())),
        };
        let (from, to) = if is_to_master { (agent, leader) } else { (leader, agent) };
        self.send_forged(from, to, &message);
    }

    fn nonce(&mut self) -> Nonce {
        self.chance.bytes(16).try_into().expect("there are 16 bytes")
    }

    /// Sends requests for sessions in the name of the agent, and a challenge or refusal to it.
    fn forge_handshake(&mut self, agent: &Upid, leader: &Upid) {
        for _ in 0..FLOOD {
            let principal = "agents".parse().expect("it is a principal");
            let request = AuthenticateAgent { principal, nonce: self.nonce() };
            self.send_forged(agent, leader, &Message::AuthenticateAgent(request));
        }
        let answer = if self.chance.is(0.5) {
            Ok(MasterNonce { session: self.chance.seed(), cookie: self.nonce() })
        } else {
            Err(AuthenticationRefusal::WrongCredential)
        };
        let challenge = AuthenticationChallenge { agent_nonce: self.nonce(), answer };
        self.send_forged(leader, agent, &Message::AuthenticationChallenge(challenge));
    }

    fn some_read(&mut self) -> Option<Rc<Packet>> {
        let count = self.read_by_attacker.len();
        let index = if count > 0 { self.chance.index(count) } else { 0 };
        self.read_by_attacker.get(index).cloned()
    }

    /// Delivers some messages again.
    fn repeat(&mut self) {
        for _ in 0..5 {
            let Some(packet) = self.some_read() else { return };
            let wait = self.chance.time_up_to(self.scenario.faults.delay_max);
            self.plan_in(wait, SimEvent::Arrives(packet));
        }
    }

    /// Sends a message back to its sender.
    fn reflect(&mut self) {
        let Some(packet) = self.some_read() else { return };
        let Packet { from, to, name, body, .. } = &*packet;
        let mut reflected = Packet::new(to.clone(), from.clone(), name, body.clone());
        reflected.is_forged = true;
        self.send(reflected);
    }

    /// Sends a message again that is cut, extended, or changed in one bit.
    fn change(&mut self) {
        let Some(packet) = self.some_read() else { return };
        let mut body = packet.body.to_vec();
        match self.chance.number(0..3) {
            0 => body.truncate(self.chance.index(body.len() + 1)),
            1 => {
                let length = 1 + self.chance.index(60);
                body.extend(self.chance.bytes(length));
            }
            _ if body.is_empty() => {}
            _ => {
                let index = self.chance.index(body.len());
                body[index] ^= 1 << self.chance.index(8);
            }
        }
        if body == packet.body {
            return;
        }
        let Packet { from, to, name, .. } = &*packet;
        let mut changed = Packet::new(from.clone(), to.clone(), name, body.into());
        changed.is_forged = true;
        self.send(changed);
    }
}

//! The faults, and the actions of operators in between.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesos_network_overlay::http::route_master;
use overlay_engine::master::Request;
use overlay_types::addr::{Mac, OverlayName, Subnet, agent_upid, master_upid};
use overlay_types::protocol::{
    Assignment, MasterKind, Message, PeerInfo, PeersUpdate, Reassigned, RegistrationProblems,
    peer_digest,
};
use overlay_types::tunnel::Peer;
use overlay_wire as wire;

use super::{FIRST_AGENT, Packet, SimEvent, World, jump};
use crate::chance::Chance;
use crate::host::Host;
use crate::invariants::{Fact, InvariantResult};
use crate::kernel::Kernel;
use crate::scenario::Faults;

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FaultKind {
    Cut,
    BrokenLink,
    MasterKill,
    AgentKill,
    FullDisk,
    ClockJump,
    Deletion,
    Change,
    Replacement,
    LostSession,
    ForeignWriter,
    ForeignMessage,
    FalsePeers,
    Attack,
    Rotation,
    Drift,
    Obstacle,
    Containers,
}

const ALL: [FaultKind; 18] = [
    FaultKind::Cut,
    FaultKind::BrokenLink,
    FaultKind::MasterKill,
    FaultKind::AgentKill,
    FaultKind::FullDisk,
    FaultKind::ClockJump,
    FaultKind::Deletion,
    FaultKind::Change,
    FaultKind::Replacement,
    FaultKind::LostSession,
    FaultKind::ForeignWriter,
    FaultKind::ForeignMessage,
    FaultKind::FalsePeers,
    FaultKind::Attack,
    FaultKind::Rotation,
    FaultKind::Drift,
    FaultKind::Obstacle,
    FaultKind::Containers,
];

impl FaultKind {
    /// Returns the mean time between two faults of the kind.
    fn every(self, faults: &Faults, agents: usize) -> Option<Duration> {
        // Faults of single agents are more frequent where there are more agents.
        let of_agents = |every: Option<Duration>| {
            every.map(|every| every * 10 / u32::try_from(agents.max(10)).unwrap_or(10))
        };
        match self {
            Self::Cut => faults.cuts,
            Self::BrokenLink => of_agents(faults.broken_links),
            Self::MasterKill => faults.master_kills,
            Self::AgentKill => of_agents(faults.agent_kills),
            Self::FullDisk => faults.full_disks,
            Self::ClockJump => faults.clock_jumps,
            Self::Deletion => of_agents(faults.deletions),
            Self::Change => faults.changes,
            Self::Replacement => of_agents(faults.replacements),
            Self::LostSession => faults.lost_sessions,
            Self::ForeignWriter => faults.foreign_writers,
            Self::ForeignMessage => of_agents(faults.foreign_messages),
            Self::FalsePeers => of_agents(faults.false_peers_rate),
            Self::Attack => of_agents(faults.attacks),
            Self::Rotation => faults.rotations,
            Self::Drift => of_agents(faults.drifts),
            Self::Obstacle => of_agents(faults.obstacles),
            Self::Containers => Some(Duration::from_secs(60)),
        }
    }
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        for fault in ALL {
            self.plan_next(fault);
        }
    }

    fn plan_next(&mut self, fault: FaultKind) {
        let every = fault.every(&self.scenario.faults, self.agents.len());
        if let Some(every) = every {
            let wait = self.chance.time_until(every);
            self.plan_in(wait, SimEvent::FaultKind(fault));
        }
    }

    pub(super) fn inject_fault(&mut self, fault: FaultKind) -> InvariantResult {
        if !self.has_faults {
            return Ok(());
        }
        self.plan_next(fault);
        self.note(|| format!("fault: {fault:?}"));
        self.counts.add(&format!("fault: {fault:?}"), 1);
        let agent = self.chance.index(self.agents.len());
        let master = self.chance.index(self.masters.len());
        match fault {
            FaultKind::Cut => self.cut(agent, master),
            FaultKind::BrokenLink => self.break_link(agent),
            FaultKind::MasterKill => self.kill_master(master),
            FaultKind::AgentKill => self.kill_and_reconfigure(agent),
            FaultKind::FullDisk => {
                self.storage.is_full = true;
                let wait = self.chance.time_up_to(Duration::from_secs(120));
                self.plan_in(wait, SimEvent::DiskFreed);
            }
            FaultKind::ClockJump => self.jump_clock(agent, master),
            FaultKind::Deletion => return self.delete_agents(),
            FaultKind::Change => return self.change_configuration(),
            FaultKind::Replacement => self.replace_host(agent),
            FaultKind::LostSession => self.lose_session(),
            FaultKind::ForeignWriter => return self.write_as_foreigner(),
            FaultKind::ForeignMessage => self.send_foreign_message(agent, master),
            FaultKind::FalsePeers => return self.send_false_peers(agent),
            FaultKind::Attack => self.attack(agent),
            FaultKind::Rotation => return self.rotate_secrets(),
            FaultKind::Drift => self.drift(agent, false),
            FaultKind::Obstacle => self.obstruct(agent),
            FaultKind::Containers => {
                let overlay = self.some_overlay();
                self.agents[agent].host.use_docker_network(&overlay, &mut self.chance);
            }
        }
        Ok(())
    }

    fn cut(&mut self, agent: usize, master: usize) {
        let alone = match self.chance.number(0..3) {
            0 => None,
            1 => Some(self.agents[agent].ip),
            _ => Some(*self.masters[master].address.ip()),
        };
        let id = self.wires.cut(alone, &mut self.chance);
        let wait = self.chance.time_up_to(Duration::from_secs(180));
        self.plan_in(wait, SimEvent::PartitionHealed(id));
    }

    fn kill_and_reconfigure(&mut self, agent: usize) {
        self.kill_agent(agent);
        if self.agents[agent].process.is_none() && self.chance.is(0.2) {
            self.agents[agent].configure(&mut self.chance);
        }
        if self.chance.is(0.1) {
            self.agents[agent].kernel.reboot();
        }
    }

    fn obstruct(&mut self, agent: usize) {
        self.agents[agent].kernel.obstruct(&mut self.chance);
        let wait = self.chance.time_up_to(Duration::from_secs(300));
        self.plan_in(wait, SimEvent::ObstacleRemoved { agent });
    }

    fn jump_clock(&mut self, agent: usize, master: usize) {
        let ahead = jump(&mut self.chance);
        if self.chance.is(0.7) {
            if let Some(process) = &mut self.masters[master].process {
                process.clock.jump(ahead);
            }
        } else if let Some(process) = &mut self.agents[agent].process {
            process.clock.jump(ahead);
        }
    }

    /// Requests the leader to delete some agents, most of which still run.
    fn delete_agents(&mut self) -> InvariantResult {
        let Some(leader) = self.election.leader else {
            return Ok(());
        };
        let mut ips = Vec::new();
        for _ in 0..=self.chance.index(3) {
            let agent = self.agents[self.chance.index(self.agents.len())].ip;
            self.monitor.observe(self.now, &Fact::ReleaseRequested { agent })?;
            ips.push(agent.to_string());
        }
        // As the C++ module does; only agents that are gone; all agents.
        let force = ["", ",\"force\":false", ",\"force\":true"][self.chance.index(3)];
        let body = format!("{{\"agents\":[\"{}\"]{force}}}", ips.join("\",\""));
        let request = http::Request::post("/overlay-master/agents/delete").body(Bytes::from(body));
        let request = request.expect("the request is well-formed");
        let (question, _) = route_master(&request).expect("the request is understood");
        self.ask_master(leader, question).map(|_| ())
    }

    /// Changes the configuration, and restarts or reloads some masters.
    fn change_configuration(&mut self) -> InvariantResult {
        let what = self.plan.change(&mut self.chance);
        self.note(|| format!("the configuration is changed: {what}"));
        for master in 0..self.masters.len() {
            match self.chance.number(0..4) {
                0 => {}
                1 => drop(self.ask_master(master, Request::Reload)?),
                _ => self.kill_master(master),
            }
        }
        Ok(())
    }

    /// Replaces the host of an agent with another host.
    fn replace_host(&mut self, agent: usize) {
        self.kill_agent(agent);
        let node = &mut self.agents[agent];
        (node.host, node.kernel) = (Host::default(), Kernel::default());
        node.has_authenticated_master = false;
        node.port = if node.port == 5051 { 5061 } else { 5051 };
        node.configure(&mut self.chance);
    }

    /// Begins an epoch without an election, as the C++ module does whenever an agent registers.
    pub(super) fn write_as_foreigner(&mut self) -> InvariantResult {
        self.note(|| "a foreign process becomes the writer".to_owned());
        self.storage.begin_foreign_epoch();
        self.monitor.begin_epoch(self.now)
    }

    fn some_overlay(&mut self) -> OverlayName {
        format!("net-{}", self.chance.number(0..3)).parse().expect("it is a name")
    }

    /// Sends a foreign message to an agent or a master.
    fn send_foreign_message(&mut self, agent: usize, master: usize) {
        let from = master_upid("10.66.6.6:5050".parse().expect("it is an address"));
        let agent = agent_upid(self.agents[agent].address());
        let master = master_upid(self.masters[master].address);
        let (to, message) = match self.chance.number(0..6) {
            0 => (agent, Message::AgentRegisteredAcknowledgement),
            1 => (
                agent,
                Message::UpdateAgentOverlays {
                    overlays: vec![self.stolen_overlay()],
                    master: MasterKind::Other,
                },
            ),
            2 => (
                agent,
                Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Other },
            ),
            3 => (agent, Message::UpdatePeers(Arc::new(false_peers(&mut self.chance)))),
            4 => (agent, Message::RegistrationProblems(false_refusal())),
            _ => (master, Message::AgentRegistered(vec![self.stolen_overlay()])),
        };
        let (name, mut body) = wire::encode_message(&message);
        if self.chance.is(0.3) {
            let length = self.chance.index(60);
            body = self.chance.bytes(length);
        }
        self.send(Packet::new(from, to, name, body.into()));
    }

    /// Sends false peers to an agent in the name of the leader, as another process on its host or a
    /// defective master may do.
    fn send_false_peers(&mut self, agent: usize) -> InvariantResult {
        let Some(leader) = self.election.leader else {
            return Ok(());
        };
        let update = false_peers(&mut self.chance);
        let (name, body) = wire::encode_message(&Message::UpdatePeers(Arc::new(update)));
        let from = master_upid(self.masters[leader].address);
        let to = agent_upid(self.agents[agent].address());
        self.monitor.observe(self.now, &Fact::FalsePeersSent { agent: self.agents[agent].ip })?;
        let mut packet = Packet::new(from, to, name, body.into());
        packet.is_forged = true;
        self.send(packet);
        Ok(())
    }

    /// Returns an assignment that this cluster has not made: one of the recorded cluster.
    pub(super) fn stolen_overlay(&mut self) -> Assignment {
        const AGENT: &[u8] = include_bytes!("../../golden/overlay-agent-overlay.pb");
        let agent = wire::decode(AGENT).expect("the recording is well-formed");
        let mut agent = wire::decode_agent(&agent).expect("the recording can be read");
        let index = self.chance.index(agent.overlays.len());
        agent.overlays.swap_remove(index)
    }
}

/// Returns a refusal in which another agent has most subnets of the cluster.
pub(super) fn false_refusal() -> RegistrationProblems {
    let subnets = (0..=255)
        .filter_map(|third| Subnet::containing(Ipv4Addr::new(192, 168, third, 0).into(), 25));
    let agent = Ipv4Addr::from(FIRST_AGENT);
    RegistrationProblems {
        is_refused: true,
        reasons: vec!["false".to_owned()],
        reassigned: subnets.map(|subnet| Reassigned { subnet, agent }).collect(),
        registration: 0,
    }
}

/// Returns a false table of peers, in which several agents have one address.
pub(super) fn false_peers(chance: &mut Chance) -> PeersUpdate {
    let mut update = PeersUpdate::default();
    for _ in 0..=chance.index(3) {
        let ip = Ipv4Addr::from(FIRST_AGENT + u32::try_from(chance.number(0..6)).unwrap_or(0));
        let vtep = Ipv4Addr::new(44, 128, 0, u8::try_from(chance.number(0..6)).unwrap_or(0));
        let [.., number] = vtep.octets();
        let subnet = |chance: &mut Chance| {
            let (place, length) = (chance.number(0..3), 24 + chance.number(0..5));
            let text = format!("10.100.{place}.0/{length}");
            ("net-0".parse().expect("it is a name"), text.parse().expect("it is a subnet"))
        };
        let subnets = (0..chance.index(3)).map(|_| subnet(chance)).collect();
        let mac = Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, number]);
        let peer = Peer { ip: Some(vtep), ip6: None, mac, subnets, direct: None };
        update.changed.insert(ip, PeerInfo { underlay: ip.into(), peer });
    }
    let digests = update.changed.iter().map(|(ip, info)| peer_digest(*ip, info));
    update.digest = digests.fold(0, u64::wrapping_add);
    if chance.is(0.2) {
        update.digest = chance.seed();
    }
    update.base = chance.is(0.2).then(|| chance.seed());
    let mut number = || [0, 1, chance.number(0..100), u64::MAX][chance.index(4)];
    (update.epoch, update.version) = (number(), number());
    update
}

//! The end of all trouble, and whether the cluster is well some time later.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesos_network_overlay::agent::{Reply as AgentReply, Request as AgentRequest};
use mesos_network_overlay::http::{render_master, route_master};
use mesos_network_overlay::master::{Health, Reply, Request};
use mesos_network_overlay::protocol::{AgentInfo, State};
use mesos_network_overlay::wire;

use super::{Happening, World};
use crate::invariants::{Broken, Fact, HEALS, Healed, HealedAgent, Verdict};

/// How long a deleted agent or one that heard nothing may take to register again, by the design.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// One to find out, by the commit for an agent that returns, that a job that hung has ended the
/// epoch of the leader; and one more until all have told it their statuses again, which are not
/// stored.
const REFRESHES: u32 = 2;
/// How long everything else may take: the longest waits for an answer and for the store, and what
/// still hangs.
const SLACK: Duration = Duration::from_secs(6 * 60);
/// When the last intruder has made himself the writer.
const LAST_INTRUSION: Duration = Duration::from_secs(60);
/// How long the last news may take: that somebody came to all, and the longest pause that an agent
/// makes which repairs again and again.
const NEWS: Duration = Duration::from_secs(60);
/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(10);

fn broken(how: String) -> Broken {
    Broken { rule: HEALS, how }
}

impl World {
    /// Faults end: cuts are mended, disks are free, and all masters and agents run; the masters
    /// with the same configuration.
    pub(super) fn end_trouble(&mut self) -> Verdict {
        self.note(|| "all trouble ends".to_owned());
        self.is_troubled = false;
        self.wires.mend_all();
        self.storage.is_full = false;
        for master in 0..self.masters.len() {
            self.kill_master(master);
            self.start_master(master)?;
        }
        for agent in 0..self.settled() {
            // Of the routes that are in the way some stay.
            if self.chance.is(0.7) {
                self.agents[agent].kernel.obstacles.clear();
            }
            self.start_agent(agent)?;
        }
        if self.scenario.faults.intruders.is_some() {
            // The last of them is not known to those who begin to lead now.
            let wait = self.chance.time_up_to(LAST_INTRUSION);
            self.plan_in(wait, Happening::Intrusion);
        }
        Ok(())
    }

    /// How long the cluster may take to heal.
    pub(super) fn patience(&self) -> Duration {
        REFRESH * REFRESHES + self.scenario.verify_interval + SLACK
    }

    /// When all are well, one more agent comes or none, and somebody changes something in a kernel:
    /// the others have to hear of the one, and the agent has to repair the other.
    pub(super) fn make_news(&mut self) -> Verdict {
        for latecomer in self.settled()..self.agents.len() {
            self.start_agent(latecomer)?;
        }
        for _ in 0..2 {
            let agent = self.chance.index(self.settled());
            self.drift(agent, true);
        }
        self.run_until(self.now + NEWS)
    }

    /// Whether the cluster is well.
    pub(super) fn examine(&mut self) -> Verdict {
        let leader = self.election.leader.ok_or_else(|| broken("nobody leads".to_owned()))?;
        let state = self.state_of(leader)?;
        let health = self.health_of(leader)?;
        let mut agents = Vec::new();
        for agent in 0..self.agents.len() {
            let info = self.ask_agent(agent, AgentRequest::Overlay);
            let health = self.ask_agent(agent, AgentRequest::Health);
            let node = &self.agents[agent];
            let (Some(AgentReply::Overlay(info)), Some(AgentReply::Health(health))) =
                (info, health)
            else {
                return Err(broken(format!("agent {} does not answer", node.ip)));
            };
            let info = AgentInfo { configuration_attempts: None, ..info };
            agents.push(HealedAgent {
                info,
                health: *health,
                options: node.options,
                made: node.host.networks().cloned().collect(),
                kernel: node.programs.then(|| node.kernel.state().clone()),
            });
        }
        let is_mute = self.is_mute(leader);
        let healed = Healed { state, health: *health, agents, is_mute };
        self.monitor.observe(self.now, &Fact::Healed(&healed))
    }

    /// What the endpoint of a master shows, through the real bytes of an answer.
    fn state_of(&mut self, master: usize) -> Result<State, Broken> {
        let request = http::Request::get("/overlay-master/state")
            .header("accept", "application/x-protobuf")
            .body(Bytes::new())
            .expect("the request is well-formed");
        let (question, format) = route_master(&request).expect("the request is understood");
        let reply = self.answer(master, question)?;
        let response = render_master(&reply, &format);
        if response.status() != StatusCode::OK {
            return Err(broken(format!("the leader answers {}: {reply:?}", response.status())));
        }
        let state = wire::decode(response.body()).map_err(|error| broken(error.to_string()))?;
        wire::decode_state(&state).map_err(|error| broken(error.to_string()))
    }

    fn health_of(&mut self, master: usize) -> Result<Box<Health>, Broken> {
        match self.answer(master, Request::Health)? {
            Reply::Health(health) => Ok(health),
            other => Err(broken(format!("the leader answers a question of health with {other:?}"))),
        }
    }

    fn answer(&mut self, master: usize, request: Request) -> Result<Reply, Broken> {
        let id = self.ask_master(master, request)?;
        self.run_until(self.now + ANSWER)?;
        let process = self.masters[master].process.as_mut();
        let reply = process.and_then(|process| process.replies.remove(&id));
        reply.ok_or_else(|| broken("the leader does not answer".to_owned()))
    }
}

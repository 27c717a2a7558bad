//! The end of all faults, and the examination of the cluster some time later.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesos_network_overlay::http::{render_master, route_master};
use overlay_engine::agent::{Reply as AgentReply, Request as AgentRequest};
use overlay_engine::master::{Health, Reply, Request};
use overlay_types::protocol::{AgentInfo, State};
use overlay_wire as wire;

use super::{SimEvent, World};
use crate::invariants::{Fact, HEALS, Healed, HealedAgent, InvariantResult, Violation};

/// The interval after which agents register again by themselves.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// The number of these intervals until all statuses are correct. After the first interval, the
/// commit for a returning agent has failed if a hanging load ended the epoch of the leader. After
/// the second interval, all agents have reported their statuses again, since statuses are not
/// stored.
const REFRESHES: u32 = 2;
/// The time for everything else: the longest backoffs, and jobs that still hang.
const SLACK: Duration = Duration::from_secs(6 * 60);
/// The latest time of the last foreign writer.
const LAST_INTRUSION: Duration = Duration::from_secs(60);
/// The time for the last changes: until all peers have a latecomer, and the longest backoff of an
/// agent that repairs repeatedly.
const LATE_CHANGES: Duration = Duration::from_secs(60);
/// The time within which a dead agent is stale: the end of its link, its time to return, and one more
/// attempt to reach it, or its last message and the first attempt.
const STALE_WITHIN: Duration = Duration::from_secs(2 + 195 + 10 + 3);
/// The timeout of a request.
const ANSWER: Duration = Duration::from_secs(10);

fn violation(detail: String) -> Violation {
    Violation { invariant: HEALS, detail }
}

impl World {
    /// Ends all faults: partitions heal, disks are free, and all masters and agents run. All
    /// masters have the same configuration.
    pub(super) fn end_faults(&mut self) -> InvariantResult {
        self.note(|| "all faults end".to_owned());
        self.has_faults = false;
        self.wires.heal_all();
        self.storage.is_full = false;
        for master in 0..self.masters.len() {
            self.kill_master(master);
            self.start_master(master)?;
        }
        for agent in 0..self.initial_agents() {
            // Some of the foreign routes stay.
            if self.chance.is(0.7) {
                self.agents[agent].kernel.obstacles.clear();
            }
            self.start_agent(agent)?;
        }
        if self.scenario.faults.foreign_writers.is_some() {
            // The foreign writer may come after the election of the next leader.
            let wait = self.chance.time_up_to(LAST_INTRUSION);
            self.plan_in(wait, SimEvent::ForeignWrite);
        }
        Ok(())
    }

    /// Returns how long the cluster may take to heal.
    pub(super) fn healing_time(&self) -> Duration {
        REFRESH * REFRESHES + self.scenario.verify_interval + SLACK
    }

    /// Starts the latecomers, and makes foreign changes in a kernel: the other agents have to
    /// program the latecomer, and the agent has to repair its kernel.
    pub(super) fn make_late_changes(&mut self) -> InvariantResult {
        for latecomer in self.initial_agents()..self.agents.len() {
            self.start_agent(latecomer)?;
        }
        for _ in 0..2 {
            let agent = self.chance.index(self.initial_agents());
            self.drift(agent, true);
        }
        self.run_until(self.now + LATE_CHANGES)
    }

    /// Kills an agent for ever, and checks which agents are stale.
    pub(super) fn examine_silence(&mut self) -> InvariantResult {
        let leader = self.election.leader.ok_or_else(|| violation("no master leads".to_owned()))?;
        let dead = self.chance.index(self.agents.len());
        self.agents[dead].process = None;
        let address = self.agents[dead].address();
        self.note(|| format!("agent {address} is killed for ever"));
        self.links_to_agent_end(address);
        self.run_until(self.now + STALE_WITHIN)?;
        let state = self.state_of(leader)?;
        let fact = Fact::StayedAway { dead: *address.ip(), state: &state };
        self.monitor.observe(self.now, &fact)
    }

    /// Examines whether the cluster is healthy.
    pub(super) fn examine(&mut self) -> InvariantResult {
        let leader = self.election.leader.ok_or_else(|| violation("no master leads".to_owned()))?;
        let state = self.state_of(leader)?;
        let health = self.health_of(leader)?;
        let mut agents = Vec::new();
        for agent in 0..self.agents.len() {
            let info = self.ask_agent(agent, AgentRequest::Overlay);
            let health = self.ask_agent(agent, AgentRequest::Health);
            let node = &self.agents[agent];
            let (Some(AgentReply::Overlay(info, _)), Some(AgentReply::Health(health))) =
                (info, health)
            else {
                return Err(violation(format!("agent {} does not answer", node.ip)));
            };
            let info = AgentInfo { configuration_attempts: None, ..info };
            agents.push(HealedAgent {
                info,
                health: *health,
                options: node.options,
                networks: node.host.networks().cloned().collect(),
                kernel: node.programs.then(|| node.kernel.state().clone()),
            });
        }
        let sends_no_peers = self.sends_no_peers(leader);
        let healed = Healed { state, health: *health, agents, sends_no_peers };
        self.monitor.observe(self.now, &Fact::Healed(&healed))
    }

    /// Returns the state of a master, through the real bytes of a response.
    fn state_of(&mut self, master: usize) -> Result<State, Violation> {
        let request = http::Request::get("/overlay-master/state")
            .header("accept", "application/x-protobuf")
            .body(Bytes::new())
            .expect("the request is well-formed");
        let (question, format) = route_master(&request).expect("the request is understood");
        let reply = self.answer(master, question)?;
        let response = render_master(&reply, &format);
        if response.status() != StatusCode::OK {
            return Err(violation(format!("the leader answers {}: {reply:?}", response.status())));
        }
        let state = wire::decode(response.body()).map_err(|error| violation(error.to_string()))?;
        wire::decode_state(&state).map_err(|error| violation(error.to_string()))
    }

    fn health_of(&mut self, master: usize) -> Result<Box<Health>, Violation> {
        match self.answer(master, Request::Health)? {
            Reply::Health(health) => Ok(health),
            other => Err(violation(format!(
                "the leader answers a request for its health with {other:?}"
            ))),
        }
    }

    fn answer(&mut self, master: usize, request: Request) -> Result<Reply, Violation> {
        let id = self.ask_master(master, request)?;
        self.run_until(self.now + ANSWER)?;
        let process = self.masters[master].process.as_mut();
        let reply = process.and_then(|process| process.replies.remove(&id));
        reply.ok_or_else(|| violation("the leader does not answer".to_owned()))
    }
}

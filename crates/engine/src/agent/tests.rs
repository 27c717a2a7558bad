//! Tests of the whole agent: events, and the exact commands that follow.

use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::protocol::{
    AddressRange, AgentInfo, AgentOptions, Assignment, Bridge, MasterKind, Overlay, RequestId,
    Status, Vtep,
};

use super::*;
use crate::metrics::HostCounters;

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) now: Now,
    /// The number of the last registration.
    pub(super) registration: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(AgentOptions { docker_bridge: false, ..AgentOptions::default() })
    }

    pub(super) fn with(options: AgentOptions) -> Self {
        Self::with_tunnel(options, TunnelSettings::NONE)
    }

    pub(super) fn with_tunnel(options: AgentOptions, tunnel: TunnelSettings) -> Self {
        let settings = Settings {
            options,
            max_configuration_attempts: 4,
            verify_interval: Duration::from_secs(60),
            removes_docker_networks: true,
            tunnel,
            probe_rate: 0,
            repair_offloads: false,
            authentication: None,
            direct_routing: false,
            direct_link: None,
        };
        let agent = Agent::new(Ipv4Addr::new(10, 0, 0, 5), settings, 7);
        let now = Now { elapsed: Duration::ZERO, unix: 1_700_000_000 };
        Self { agent, now, registration: 0 }
    }

    /// Handles an event. Returns the commands, one line each.
    pub(super) fn handle(&mut self, event: Event) -> Vec<String> {
        self.agent.handle(self.now, event);
        let mut commands = Vec::new();
        while let Some(command) = self.agent.poll_command() {
            if let Command::Send { message: Message::HeldAddresses(held), .. } = &command {
                self.registration = held.registration();
            }
            // The tests of the module `addresses` show when addresses are counted.
            if !matches!(command, Command::CountAddresses { .. }) {
                commands.push(command.to_string());
            }
        }
        commands
    }

    /// Advances the clock to the next timeout that is no count of addresses, and handles it.
    pub(super) fn advance(&mut self) -> Vec<String> {
        loop {
            let due = self.agent.next_timeout().expect("the agent has a timeout");
            let is_count = self.agent.addresses.next_due() == Some(due);
            self.now.elapsed = due;
            let commands = self.handle(Event::Timeout);
            if !is_count || !commands.is_empty() {
                return commands;
            }
        }
    }

    pub(super) fn message(&mut self, from: &str, message: Message) -> Vec<String> {
        self.handle(Event::Message { from: from.parse().unwrap(), message })
    }

    pub(super) fn assign(&mut self, assignments: Vec<Assignment>) -> Vec<String> {
        self.message(
            MASTER,
            Message::UpdateAgentOverlays { overlays: assignments, master: MasterKind::Other },
        )
    }

    pub(super) fn acknowledge(&mut self) -> Vec<String> {
        self.message(MASTER, Message::AgentRegisteredAcknowledgement)
    }

    pub(super) fn finish_attempt(
        &mut self,
        attempt: u64,
        kind: NetworkKind,
        result: Result<(), &str>,
    ) -> Vec<String> {
        self.finish_attempt_at("vxlan-1", attempt, kind, result)
    }

    pub(super) fn finish_attempt_at(
        &mut self,
        overlay: &str,
        attempt: u64,
        kind: NetworkKind,
        result: Result<(), &str>,
    ) -> Vec<String> {
        let result = result.map_err(str::to_owned);
        self.handle(Event::Applied {
            attempt,
            overlay: overlay.parse().unwrap(),
            kind,
            details: NetworkDetails::default(),
            result,
        })
    }

    pub(super) fn detect(&mut self) {
        let address = MASTER.parse::<Upid>().unwrap().address;
        assert_eq!(self.handle(Event::Detected(Some(address))), NOTHING);
        let mut commands = self.advance();
        let held = commands.pop().unwrap();
        assert!(held.starts_with("send HeldAddressesMessage with "), "{held}");
        assert_eq!(
            commands,
            [format!("link {MASTER}"), format!("send RegisterAgentMessage to {MASTER}")]
        );
    }

    /// Registers the agent, with one overlay that has a CNI network.
    pub(super) fn register(&mut self) {
        self.detect();
        assert_eq!(
            self.assign(vec![assignment("vxlan-1", 1)]),
            ["retain 1 cni configurations", "attempt 1: cni network of vxlan-1"]
        );
        assert_eq!(self.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
        assert_eq!(self.acknowledge(), NOTHING);
        assert_eq!(self.health().status, Condition::Ok);
    }

    pub(super) fn health(&mut self) -> Health {
        self.agent.handle(self.now, Event::Request(RequestId(1), Request::Health));
        match self.agent.poll_command() {
            Some(Command::Reply { reply: Reply::Health(health), .. }) => *health,
            other => panic!("{other:?} instead of the health"),
        }
    }

    /// Returns the values of these metrics.
    pub(super) fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let (metrics, host) = (self.agent.metrics(), HostCounters::default());
        let all = Agent::CATALOGUE.metrics;
        let find = |name: &str| all.iter().find(|metric| metric.name == name).unwrap();
        names.map(|name| find(name).read(&metrics, &host))
    }

    pub(super) fn info(&mut self) -> AgentInfo {
        self.agent.handle(self.now, Event::Request(RequestId(1), Request::Overlay));
        match self.agent.poll_command() {
            Some(Command::Reply { reply: Reply::Overlay(info, _), .. }) => info,
            other => panic!("{other:?} instead of the assignments"),
        }
    }
}

pub(super) const MASTER: &str = "overlay-master@10.0.0.1:5050";
pub(super) const REPORT: &str =
    "send AgentRegisteredMessage of 1 overlays to overlay-master@10.0.0.1:5050";
pub(super) const NOTHING: [&str; 0] = [];

/// Returns an assignment. The agent's subnet is the /24 with this third octet in the overlay's /16.
pub(super) fn assignment(name: &str, third: u8) -> Assignment {
    let prefix = match name.as_bytes().last() {
        Some(b'1') => "192.168".to_owned(),
        other => format!("172.{}", other.map_or(16, |letter| letter & 15 | 16)),
    };
    let name: OverlayName = name.parse().unwrap();
    let subnet = |text: String| Some(text.parse().unwrap());
    let bridge = |name, half: u8| Bridge {
        name,
        subnet: subnet(format!("{prefix}.{third}.{half}/25")),
        subnet6: None,
    };
    Assignment {
        mesos_bridge: Some(bridge(name.mesos_bridge(), 0)),
        docker_bridge: Some(bridge(name.docker_bridge(), 128)),
        subnet: subnet(format!("{prefix}.{third}.0/24")),
        subnet6: None,
        overlay: Overlay {
            name,
            range: subnet(format!("{prefix}.0.0/16"))
                .map(|subnet| AddressRange { subnet, prefix: 24 }),
            range6: None,
            vni: None,
            enabled: true,
        },
        vtep: Vtep {
            vni: overlay_types::addr::Vni::DEFAULT,
            device: "vtep1024".parse().unwrap(),
            port: overlay_types::tunnel::PORT_DEFAULT,
            ip: "44.128.0.1/16".parse().unwrap(),
            ip6: None,
            mac: "70:b3:d5:80:00:01".parse().unwrap(),
            mtu: None,
        },
        status: None,
    }
}

#[test]
fn agent_registers_configures_and_reports() {
    let mut world = World::new();
    assert_eq!(world.health().status, Condition::Detached);
    world.register();
    assert_eq!(world.info().overlays[0].status, Some(Status::Ok));
    assert_eq!(world.info().configuration_attempts, Some(1));
}

#[test]
fn unanswered_registration_repeats_with_backoff() {
    let mut world = World::new();
    world.detect();
    let mut last = world.now.elapsed;
    for bound in [2, 4, 8, 16, 32, 60, 60] {
        let commands = world.advance();
        assert_eq!(commands.len(), 3, "{commands:?}");
        let delay = world.now.elapsed - last;
        let bound = Duration::from_secs(bound);
        assert!(delay >= bound / 2 && delay <= bound, "{delay:?} instead of up to {bound:?}");
        last = world.now.elapsed;
    }
    assert_eq!(
        world.health().problems,
        ["master overlay-master@10.0.0.1:5050 has not answered 3 registrations: see whether it \
          runs, and the problems that http://10.0.0.1:5050/overlay-master/health names"]
    );
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn refused_connection_does_not_shorten_backoff() {
    let mut world = World::new();
    world.detect();
    let due = world.agent.next_timeout();
    for _ in 0..100 {
        assert_eq!(
            world.handle(Event::Exited("10.0.0.1:5050".parse().unwrap())),
            ["detect the master"]
        );
    }
    assert_eq!(world.agent.next_timeout(), due);
}

#[test]
fn connection_end_reregisters_without_network_attempts() {
    let mut world = World::new();
    world.register();
    world.handle(Event::Exited("10.0.0.1:5050".parse().unwrap()));
    assert_eq!(world.health().status, Condition::Registering);
    assert_eq!(world.advance().len(), 3, "the agent links and registers");
    assert!(world.now.elapsed < SECOND, "the agent registers within a second");
    // The same assignment again: the agent configures nothing and reports at once.
    assert_eq!(world.assign(vec![assignment("vxlan-1", 1)]), [REPORT]);
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn end_of_foreign_connection_is_ignored() {
    let mut world = World::new();
    world.register();
    assert_eq!(world.handle(Event::Exited("10.0.0.9:5050".parse().unwrap())), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn message_from_other_process_is_ignored() {
    let mut world = World::new();
    world.register();
    for from in ["overlay-master@10.0.0.9:5050", "overlay-master@10.0.0.1:5051", "x@10.0.0.1:5050"]
    {
        let update = Message::UpdateAgentOverlays {
            overlays: vec![assignment("evil", 9)],
            master: MasterKind::Other,
        };
        assert_eq!(world.message(from, update), NOTHING);
        assert_eq!(world.message(from, Message::AgentRegisteredAcknowledgement), NOTHING);
    }
    assert_eq!(world.health().counters.unexpected_messages, 6);
    assert_eq!(world.info().overlays.len(), 1);
}

#[test]
fn failed_network_is_reported_and_retried_alone() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.finish_attempt(2, NetworkKind::Docker, Err("docker is down")), [REPORT]);
    world.acknowledge();
    let failed = Some(Status::Failed("docker is down".to_owned()));
    assert_eq!(world.info().overlays[0].status, failed);
    assert_eq!(world.health().status, Condition::Degraded);
    assert_eq!(world.health().problems, ["vxlan-1: docker is down"]);

    let mut delays = Vec::new();
    for attempt in 3..=5 {
        let before = world.now.elapsed;
        assert_eq!(world.advance(), [format!("attempt {attempt}: docker network of vxlan-1")]);
        delays.push((world.now.elapsed - before).as_secs_f64());
        assert_eq!(
            world.finish_attempt(attempt, NetworkKind::Docker, Err("docker is down")),
            NOTHING
        );
    }
    assert!(delays[0] <= 1.0 && delays[1] <= 2.0 && delays[2] <= 4.0, "{delays:?}");
    assert_eq!(
        world.health().networks[1].next_attempt_seconds,
        Some(60),
        "the quick attempts are used up"
    );
}

#[test]
fn recovered_network_is_reported() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.finish_attempt(2, NetworkKind::Docker, Err("docker is down"));
    world.acknowledge();
    world.advance();
    assert_eq!(world.finish_attempt(3, NetworkKind::Docker, Ok(())), [REPORT]);
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
    assert_eq!(world.info().configuration_attempts, Some(2));
}

#[test]
fn ready_network_is_verified_and_failure_is_reported() {
    let mut world = World::new();
    world.register();
    let registered_at = world.now.elapsed;
    assert_eq!(world.advance(), ["attempt 2: cni network of vxlan-1"]);
    assert_eq!(world.now.elapsed - registered_at, Duration::from_secs(60));
    assert_eq!(world.finish_attempt(2, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(
        world.info().configuration_attempts,
        Some(1),
        "a verification does not count as an attempt"
    );
    world.advance();
    assert_eq!(world.finish_attempt(3, NetworkKind::Cni, Err("disk full")), [REPORT]);
}

#[test]
fn status_change_during_report_is_reported_afterwards() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.finish_attempt(2, NetworkKind::Docker, Err("docker is down")), [REPORT]);
    // The retry succeeds before the master has acknowledged the failure.
    assert_eq!(world.advance(), ["attempt 3: docker network of vxlan-1"]);
    assert_eq!(world.finish_attempt(3, NetworkKind::Docker, Ok(())), NOTHING);
    assert_eq!(world.acknowledge(), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn assignment_during_report_is_reported_when_configured() {
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
    // The master assigns another overlay before it acknowledges.
    world.assign(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 7)]);
    assert_eq!(world.acknowledge(), NOTHING, "the acknowledgement belongs to the first report");
    let report = world.finish_attempt_at("vxlan-2", 2, NetworkKind::Cni, Ok(()));
    assert!(report[0].starts_with("send AgentRegisteredMessage of 2 overlays"), "{report:?}");
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn registered_agent_registers_again_at_interval() {
    let mut world = World::new();
    world.register();
    let registered_at = world.now.elapsed;
    let mut attempt = 1;
    let commands = loop {
        let commands = world.advance();
        if commands[0].starts_with("link") {
            break commands;
        }
        attempt += 1;
        world.finish_attempt(attempt, NetworkKind::Cni, Ok(()));
    };
    assert_eq!(commands[1], format!("send RegisterAgentMessage to {MASTER}"));
    let waited = world.now.elapsed - registered_at;
    assert!(waited > Duration::from_secs(450) && waited <= Duration::from_secs(900), "{waited:?}");
    assert_eq!(world.health().status, Condition::Ok, "the agent stays registered");
    assert_eq!(world.assign(vec![assignment("vxlan-1", 1)]), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);

    // A master that hangs with an open connection does not answer two registrations.
    let mut unanswered = 0;
    while unanswered < 2 {
        let commands = world.advance();
        if commands[0].starts_with("link") {
            unanswered += 1;
        } else {
            attempt += 1;
            world.finish_attempt(attempt, NetworkKind::Cni, Ok(()));
        }
    }
    assert_eq!(world.health().status, Condition::Registering);
}

#[test]
fn unanswered_report_leads_to_registration() {
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.advance()[1], format!("send RegisterAgentMessage to {MASTER}"));
}

#[test]
fn changed_assignment_waits_for_running_attempt() {
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    // The agent was deleted at the master and got another subnet while the file was being written.
    assert_eq!(world.assign(vec![assignment("vxlan-1", 2)]), ["retain 1 cni configurations"]);
    assert_eq!(
        world.finish_attempt(1, NetworkKind::Cni, Ok(())),
        ["attempt 2: cni network of vxlan-1"],
        "the old subnet is not reported"
    );
    assert_eq!(
        world.finish_attempt(1, NetworkKind::Cni, Ok(())),
        NOTHING,
        "the attempt ended before"
    );
    assert_eq!(world.finish_attempt(2, NetworkKind::Cni, Ok(())), [REPORT]);
    assert_eq!(world.info().overlays[0].subnet.unwrap().to_string(), "192.168.2.0/24");
}

#[test]
fn unassigned_overlay_is_dropped() {
    let mut world = World::new();
    world.register();
    let commands = world.assign(Vec::new());
    assert_eq!(commands[0], "retain 0 cni configurations");
    assert!(commands[1].starts_with("send AgentRegisteredMessage of 0 overlays"), "{commands:?}");
    assert_eq!(world.info().overlays, []);
}

#[test]
fn returning_overlay_waits_for_orphaned_attempt() {
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    // Attempt 1 hangs. The overlay is removed and assigned again, twice.
    assert_eq!(world.assign(Vec::new())[0], "retain 0 cni configurations");
    assert_eq!(world.assign(vec![assignment("vxlan-1", 2)]), ["retain 1 cni configurations"]);
    world.assign(Vec::new());
    assert_eq!(world.assign(vec![assignment("vxlan-1", 3)]), ["retain 1 cni configurations"]);
    assert_eq!(
        world.finish_attempt(1, NetworkKind::Cni, Err("too late")),
        ["attempt 2: cni network of vxlan-1"]
    );
    assert_eq!(world.finish_attempt(2, NetworkKind::Cni, Ok(())), [REPORT]);
    // The attempt at a network that stays unassigned is forgotten.
    world.assign(vec![assignment("vxlan-1", 4)]);
    world.assign(Vec::new());
    assert_eq!(world.finish_attempt(3, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(
        world.assign(vec![assignment("vxlan-1", 5)]),
        ["retain 1 cni configurations", "attempt 4: cni network of vxlan-1"]
    );
}

#[test]
fn new_overlay_leaves_other_overlays_untouched() {
    let mut world = World::new();
    world.register();
    assert_eq!(
        world.assign(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 7)]),
        ["retain 2 cni configurations", "attempt 2: cni network of vxlan-2"]
    );
    let report = world.finish_attempt_at("vxlan-2", 2, NetworkKind::Cni, Ok(()));
    assert!(report[0].starts_with("send AgentRegisteredMessage of 2 overlays"), "{report:?}");
}

#[test]
fn update_with_duplicate_overlay_is_dropped() {
    let mut world = World::new();
    world.register();
    let twice = vec![assignment("vxlan-1", 1), assignment("vxlan-1", 2)];
    assert_eq!(world.assign(twice), NOTHING);
    assert_eq!(world.health().counters.update_agent_overlays_messages_dropped, 1);
    assert_eq!(world.info().overlays[0].subnet.unwrap().to_string(), "192.168.1.0/24");
}

#[test]
fn contradictory_assignment_fails_with_reason() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    let without = Assignment { docker_bridge: None, ..assignment("vxlan-1", 1) };
    let mut outside = assignment("vxlan-2", 2);
    outside.subnet = Some("192.168.3.0/24".parse().unwrap());
    world.assign(vec![without, outside]);
    let status = |info: &AgentInfo, index: usize| info.overlays[index].status.clone().unwrap();
    let info = world.info();
    assert_eq!(
        status(&info, 0).to_string(),
        "failed: the master assigned no docker_bridge, which this agent's configuration requires: \
         set network_config.docker_bridge to false, or delete this agent at the master and restart \
         it, so that it registers again"
    );
    assert_eq!(
        status(&info, 1).to_string(),
        "failed: the master's assignment is beyond the limits of a network: '192.168.3.0/24' of \
         this agent is outside of the overlay's space, '172.18.0.0/16': correct the master's \
         network configuration"
    );
}

#[test]
fn disabled_network_is_not_configured() {
    let gateway = AgentOptions { mesos_bridge: false, docker_bridge: false, ..Default::default() };
    let mut world = World::with(gateway);
    world.detect();
    assert_eq!(
        world.assign(vec![assignment("vxlan-1", 1)]),
        ["retain 0 cni configurations", REPORT]
    );
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn docker_network_has_ipv6_only_if_enabled() {
    let mut dual = assignment("vxlan-1", 1);
    dual.subnet6 = Some("fd01:b::/80".parse().unwrap());
    dual.docker_bridge.as_mut().unwrap().subnet6 = Some("fd01:b::8000:0:0/81".parse().unwrap());
    let networks =
        |options: &AgentOptions| ContainerNetwork::from_assignment(&dual, options, None).unwrap();
    let docker = |options: &AgentOptions| match &networks(options)[..] {
        [ContainerNetwork::Cni(cni), ContainerNetwork::Docker(docker)] => {
            assert_eq!(cni.subnet.to_string(), "192.168.1.0/25");
            assert_eq!(cni.mtu, Mtu::OVERLAY_DEFAULT);
            docker.clone()
        }
        other => panic!("{other:?}"),
    };
    assert!(docker(&AgentOptions::default()).subnet6.is_some());
    assert!(docker(&AgentOptions { enable_ipv6: false, ..Default::default() }).subnet6.is_none());
}

#[test]
fn new_master_replaces_old_master() {
    let mut world = World::new();
    world.register();
    assert_eq!(world.handle(Event::Detected(Some("10.0.0.2:5050".parse().unwrap()))), NOTHING);
    assert_eq!(world.advance()[0], "link overlay-master@10.0.0.2:5050");
    assert_eq!(world.assign(vec![assignment("vxlan-1", 9)]), NOTHING, "from the old master");
    assert_eq!(world.handle(Event::Detected(None)), NOTHING);
    assert_eq!(world.health().status, Condition::Detached);
    assert_eq!(world.info().overlays.len(), 1, "the configured overlay stays");
}

#[test]
fn malformed_and_misdirected_messages_are_counted() {
    let mut world = World::new();
    world.register();
    let from: Upid = MASTER.parse().unwrap();
    let malformed =
        Event::Malformed { from, name: "x\ny".to_owned(), reason: "unknown".to_owned() };
    assert_eq!(world.handle(malformed), NOTHING);
    assert_eq!(world.message(MASTER, Message::AgentRegistered(Vec::new())), NOTHING);
    let counters = world.health().counters;
    assert_eq!((counters.malformed_messages, counters.unexpected_messages), (1, 1));
}

#[test]
fn metrics_follow_registration() {
    const STATE: [&str; 4] = ["registering", "status/detached", "status/registering", "status/ok"];
    let mut world = World::new();
    assert_eq!(world.metrics(STATE), [1, 1, 0, 0]);
    world.detect();
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0]);
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.metrics(["overlays/configuring", "overlays/ok"]), [1, 0]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0], "the report is not acknowledged yet");
    world.acknowledge();
    assert_eq!(world.metrics(STATE), [0, 0, 0, 1]);
    assert_eq!(world.metrics(["overlays/configuring", "overlays/ok"]), [0, 1]);
    world.handle(Event::Exited(MASTER.parse::<Upid>().unwrap().address));
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0]);
    let request = Event::Request(RequestId(1), Request::Metrics);
    world.agent.handle(world.now, request);
    let reply = std::iter::from_fn(|| world.agent.poll_command()).find_map(|command| {
        let Command::Reply { reply: Reply::Metrics(snapshot), .. } = command else { return None };
        Some(snapshot.metrics)
    });
    assert_eq!(reply, Some(world.agent.metrics()));
}

#[test]
fn metrics_show_failure_after_quick_attempts() {
    const FAILED: [&str; 3] =
        ["overlay_config_failed", "overlay_config_failures", "overlays/failed"];
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    for attempt in 1..4 {
        world.finish_attempt(attempt, NetworkKind::Cni, Err("read-only"));
        world.acknowledge();
        assert_eq!(world.metrics(FAILED), [0, attempt, 1]);
        world.advance();
    }
    world.finish_attempt(4, NetworkKind::Cni, Err("read-only"));
    assert_eq!(world.metrics(FAILED), [1, 4, 1]);
    world.advance();
    world.finish_attempt(5, NetworkKind::Cni, Ok(()));
    assert_eq!(world.metrics(FAILED), [0, 4, 0], "the overlay is repaired");

    // An overlay that cannot be configured at all fails at once.
    let unfit = Assignment { mesos_bridge: None, ..assignment("vxlan-2", 2) };
    let range6 = AddressRange { subnet: "fd01:b::/64".parse().unwrap(), prefix: 80 };
    let ipv6 = Overlay { range: None, range6: Some(range6), ..assignment("vxlan-3", 3).overlay };
    let ipv6 = Assignment {
        overlay: ipv6,
        subnet: None,
        mesos_bridge: None,
        docker_bridge: None,
        ..assignment("vxlan-3", 3)
    };
    assert_eq!(world.metrics(["overlays_without_subnets"]), [0]);
    world.assign(vec![unfit, ipv6]);
    assert_eq!(world.metrics(FAILED), [1, 4, 1]);
    assert_eq!(world.metrics(["overlays_without_subnets"]), [1]);
}

#[test]
fn report_without_assignment_is_counted_as_dropped() {
    const DROPPED: [&str; 1] = ["internal/agent_registered_messages_dropped"];
    let mut world = World::new();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.handle(Event::Detected(None));
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.metrics(DROPPED), [1]);
    world.detect();
    assert_eq!(world.assign(vec![assignment("vxlan-1", 1)]), [REPORT]);
    assert_eq!(world.metrics(DROPPED), [1]);
}

/// Returns a registered agent with two configured Docker networks.
fn with_two_docker_networks() -> World {
    let mut world = World::with(AgentOptions { mesos_bridge: false, ..AgentOptions::default() });
    world.detect();
    assert_eq!(
        world.assign(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]),
        [
            "retain 0 cni configurations",
            "retain 2 docker networks",
            "attempt 1: docker network of vxlan-1",
            "attempt 2: docker network of vxlan-2"
        ]
    );
    world.finish_attempt_at("vxlan-1", 1, NetworkKind::Docker, Ok(()));
    world.finish_attempt_at("vxlan-2", 2, NetworkKind::Docker, Ok(()));
    world.acknowledge();
    assert_eq!(world.handle(Event::Removed(Ok(Vec::new()))), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
    world
}

#[test]
fn unassigned_docker_network_is_removed_when_unused() {
    let mut world = with_two_docker_networks();
    let commands = world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(commands, ["retain 0 cni configurations", REPORT, "retain 1 docker networks"]);
    world.acknowledge();
    let kept = "docker network vxlan-2: is no longer assigned and has containers: remove them \
                (web), then the agent removes it";
    assert_eq!(world.handle(Event::Removed(Ok(vec![kept.to_owned()]))), NOTHING);
    let health = world.health();
    assert_eq!((health.status, health.problems), (Condition::Degraded, vec![kept.to_owned()]));
    world.now.elapsed += Duration::from_secs(60);
    let commands = world.handle(Event::Timeout);
    assert_eq!(commands, ["retain 1 docker networks", "attempt 3: docker network of vxlan-1"]);
    // Docker is down. The last known problem stays.
    world.handle(Event::Removed(Err("the Docker daemon is not running".to_owned())));
    let down = "cannot remove docker networks that are no longer assigned: the Docker daemon is \
                not running";
    assert_eq!(world.health().problems, [kept, down]);
    // It starts.
    world.now.elapsed += SECOND;
    let commands = world.handle(Event::DockerStarted);
    assert_eq!(commands, ["retain 1 docker networks"]);
    world.handle(Event::Removed(Err("the Docker daemon is not running".to_owned())));
    world.now.elapsed += Duration::from_secs(60);
    assert!(world.handle(Event::Timeout).contains(&"retain 1 docker networks".to_owned()));
    world.handle(Event::Removed(Ok(Vec::new())));
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn network_assigned_during_removal_is_created_afterwards() {
    let mut world = with_two_docker_networks();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.acknowledge();
    // The removal under way would delete the network that is assigned again.
    let commands = world.assign(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]);
    assert_eq!(commands, ["retain 0 cni configurations"]);
    assert!(
        world.agent.next_timeout() > Some(world.now.elapsed),
        "the network waits for the end of the removal"
    );
    assert_eq!(
        world.handle(Event::Removed(Ok(Vec::new()))),
        ["retain 2 docker networks", "attempt 3: docker network of vxlan-2"]
    );
}

#[test]
fn network_dropped_during_attempt_is_removed_afterwards() {
    let mut world = World::with(AgentOptions { mesos_bridge: false, ..AgentOptions::default() });
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]);
    world.handle(Event::Removed(Ok(Vec::new())));
    let commands = world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(commands, ["retain 0 cni configurations"]);
    assert_eq!(
        world.finish_attempt_at("vxlan-2", 2, NetworkKind::Docker, Ok(())),
        ["retain 1 docker networks"]
    );
}

#[test]
fn agent_without_docker_networks_removes_none() {
    for options in [
        AgentOptions { docker_bridge: false, ..AgentOptions::default() },
        AgentOptions { allocate_subnet: false, ..AgentOptions::default() },
    ] {
        let mut world = World::with(options);
        world.detect();
        let commands = world.assign(Vec::new());
        assert_eq!(commands[0], "retain 0 cni configurations");
        assert!(!commands.iter().any(|line| line.contains("docker networks")), "{commands:?}");
    }
}

#[test]
fn started_docker_daemon_gets_its_networks_at_once() {
    let mut world = World::with(AgentOptions { mesos_bridge: false, ..AgentOptions::default() });
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    for attempt in 1..=5 {
        let down = Err("the Docker daemon is not running");
        world.finish_attempt(attempt, NetworkKind::Docker, down);
        world.handle(Event::Removed(Ok(Vec::new())));
        world.now.elapsed += Duration::from_secs(60);
        world.handle(Event::Timeout);
    }
    world.finish_attempt(6, NetworkKind::Docker, Err("the Docker daemon is not running"));
    world.now.elapsed += SECOND;
    let commands = world.handle(Event::DockerStarted);
    assert_eq!(commands, ["attempt 7: docker network of vxlan-1"]);
    // It is under way already.
    assert_eq!(world.handle(Event::DockerStarted), NOTHING);
}

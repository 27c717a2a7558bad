//! The agent as a whole: what happens, and exactly what it wants done.

use super::*;
use crate::addr::Mtu;
use crate::protocol::{AddressRange, Bridge, Overlay, RequestId, Status, Vtep};

const SECOND: Duration = Duration::from_secs(1);

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) now: Now,
}

impl World {
    fn new() -> Self {
        Self::with(AgentOptions { docker_bridge: false, ..AgentOptions::default() })
    }

    fn with(options: AgentOptions) -> Self {
        Self::with_tunnel(options, TunnelSettings::NONE)
    }

    pub(super) fn with_tunnel(options: AgentOptions, tunnel: TunnelSettings) -> Self {
        let settings = Settings {
            options,
            max_configuration_attempts: 4,
            verify_interval: Duration::from_secs(60),
            removes_docker_networks: true,
            tunnel,
        };
        let agent = Agent::new(Ipv4Addr::new(10, 0, 0, 5), settings, 7);
        Self { agent, now: Now { elapsed: Duration::ZERO, unix: 1_700_000_000 } }
    }

    /// Lets `event` happen and tells what is to be done, a line each.
    pub(super) fn after(&mut self, event: Event) -> Vec<String> {
        self.agent.handle(self.now, event);
        std::iter::from_fn(|| self.agent.poll_command()).map(|it| it.to_string()).collect()
    }

    /// Lets time pass until the next timeout.
    pub(super) fn sleep(&mut self) -> Vec<String> {
        self.now.elapsed = self.agent.next_timeout().expect("something is due some time");
        self.after(Event::Timeout)
    }

    pub(super) fn message(&mut self, from: &str, message: Message) -> Vec<String> {
        self.after(Event::Message { from: from.parse().unwrap(), message })
    }

    pub(super) fn update(&mut self, assignments: Vec<Assignment>) -> Vec<String> {
        self.message(MASTER, Message::UpdateAgentOverlays(assignments))
    }

    pub(super) fn acknowledge(&mut self) -> Vec<String> {
        self.message(MASTER, Message::AgentRegisteredAcknowledgement)
    }

    pub(super) fn applied(
        &mut self,
        attempt: u64,
        kind: NetworkKind,
        result: Result<(), &str>,
    ) -> Vec<String> {
        self.applied_to("vxlan-1", attempt, kind, result)
    }

    fn applied_to(
        &mut self,
        overlay: &str,
        attempt: u64,
        kind: NetworkKind,
        result: Result<(), &str>,
    ) -> Vec<String> {
        let result = result.map_err(str::to_owned);
        self.after(Event::Applied { attempt, overlay: overlay.parse().unwrap(), kind, result })
    }

    pub(super) fn detect(&mut self) {
        let address = MASTER.parse::<Upid>().unwrap().address;
        assert_eq!(self.after(Event::Detected(Some(address))), NOTHING);
        assert_eq!(
            self.sleep(),
            [format!("link {MASTER}"), format!("send RegisterAgentMessage to {MASTER}")]
        );
    }

    /// Registered, with one overlay that has a CNI network.
    fn registered(&mut self) {
        self.detect();
        assert_eq!(
            self.update(vec![assignment("vxlan-1", 1)]),
            ["retain 1 cni configurations", "attempt 1: cni network of vxlan-1"]
        );
        assert_eq!(self.applied(1, NetworkKind::Cni, Ok(())), [REPORT]);
        assert_eq!(self.acknowledge(), NOTHING);
        assert_eq!(self.health().status, Condition::Ok);
    }

    pub(super) fn health(&mut self) -> Health {
        self.agent.handle(self.now, Event::Request(RequestId(1), Request::Health));
        match self.agent.poll_command() {
            Some(Command::Reply { reply: Reply::Health(health), .. }) => *health,
            other => panic!("no health but {other:?}"),
        }
    }

    /// The numbers of these names.
    pub(super) fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let (metrics, host) = (self.agent.metrics(), HostCounters::default());
        let all = Agent::CATALOGUE.metrics;
        let find = |name: &str| all.iter().find(|metric| metric.name == name).unwrap();
        names.map(|name| find(name).read(&metrics, &host))
    }

    pub(super) fn info(&mut self) -> AgentInfo {
        self.agent.handle(self.now, Event::Request(RequestId(1), Request::Overlay));
        match self.agent.poll_command() {
            Some(Command::Reply { reply: Reply::Overlay(info), .. }) => info,
            other => panic!("no info but {other:?}"),
        }
    }
}

pub(super) const MASTER: &str = "overlay-master@10.0.0.1:5050";
pub(super) const REPORT: &str =
    "send AgentRegisteredMessage of 1 overlays to overlay-master@10.0.0.1:5050";
pub(super) const NOTHING: [&str; 0] = [];

/// The overlay's subnet is the /24 of `third` in its /16.
pub(super) fn assignment(name: &str, third: u8) -> Assignment {
    let space = match name.as_bytes().last() {
        Some(b'1') => "192.168".to_owned(),
        other => format!("172.{}", other.map_or(16, |letter| letter & 15 | 16)),
    };
    let name: OverlayName = name.parse().unwrap();
    let subnet = |text: String| Some(text.parse().unwrap());
    let bridge = |name, half: u8| Bridge {
        name,
        subnet: subnet(format!("{space}.{third}.{half}/25")),
        subnet6: None,
    };
    Assignment {
        mesos_bridge: Some(bridge(name.mesos_bridge(), 0)),
        docker_bridge: Some(bridge(name.docker_bridge(), 128)),
        subnet: subnet(format!("{space}.{third}.0/24")),
        subnet6: None,
        overlay: Overlay {
            name,
            range: subnet(format!("{space}.0.0/16"))
                .map(|subnet| AddressRange { subnet, prefix: 24 }),
            range6: None,
            vni: None,
            enabled: true,
        },
        vtep: Vtep {
            vni: crate::addr::Vni::DEFAULT,
            device: "vtep1024".parse().unwrap(),
            port: crate::tunnel::PORT_DEFAULT,
            ip: "44.128.0.1/16".parse().unwrap(),
            ip6: None,
            mac: "70:b3:d5:80:00:01".parse().unwrap(),
            mtu: None,
        },
        status: None,
    }
}

#[test]
fn an_agent_registers_applies_reports_and_is_acknowledged() {
    let mut world = World::new();
    assert_eq!(world.health().status, Condition::Detached);
    world.registered();
    assert_eq!(world.info().overlays[0].status, Some(Status::Ok));
    assert_eq!(world.info().configuration_attempts, Some(1));
}

#[test]
fn registration_is_repeated_with_growing_waits_until_the_master_answers() {
    let mut world = World::new();
    world.detect();
    let mut last = world.now.elapsed;
    for bound in [2, 4, 8, 16, 32, 60, 60] {
        let commands = world.sleep();
        assert_eq!(commands.len(), 2, "{commands:?}");
        let wait = world.now.elapsed - last;
        let bound = Duration::from_secs(bound);
        assert!(wait >= bound / 2 && wait <= bound, "waited {wait:?} instead of up to {bound:?}");
        last = world.now.elapsed;
    }
    assert_eq!(
        world.health().problems,
        ["master overlay-master@10.0.0.1:5050 has not answered 3 registrations: see whether it \
          runs, and the problems that http://10.0.0.1:5050/overlay-master/health names"]
    );
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn a_connection_that_is_refused_at_once_does_not_hurry_the_agent() {
    let mut world = World::new();
    world.detect();
    let due = world.agent.next_timeout();
    for _ in 0..100 {
        assert_eq!(
            world.after(Event::Exited("10.0.0.1:5050".parse().unwrap())),
            ["detect the master"]
        );
    }
    assert_eq!(world.agent.next_timeout(), due);
}

#[test]
fn the_end_of_the_connection_makes_it_register_again_and_touches_no_network() {
    let mut world = World::new();
    world.registered();
    world.after(Event::Exited("10.0.0.1:5050".parse().unwrap()));
    assert_eq!(world.health().status, Condition::Registering);
    assert_eq!(world.sleep().len(), 2, "it links and registers");
    assert!(world.now.elapsed < SECOND, "it came back within a second");
    // The same assignment again: nothing is applied, the report goes out at once.
    assert_eq!(world.update(vec![assignment("vxlan-1", 1)]), [REPORT]);
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn a_foreign_connection_that_ends_means_nothing() {
    let mut world = World::new();
    world.registered();
    assert_eq!(world.after(Event::Exited("10.0.0.9:5050".parse().unwrap())), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn only_the_master_is_believed() {
    let mut world = World::new();
    world.registered();
    for from in ["overlay-master@10.0.0.9:5050", "overlay-master@10.0.0.1:5051", "x@10.0.0.1:5050"]
    {
        let update = Message::UpdateAgentOverlays(vec![assignment("evil", 9)]);
        assert_eq!(world.message(from, update), NOTHING);
        assert_eq!(world.message(from, Message::AgentRegisteredAcknowledgement), NOTHING);
    }
    assert_eq!(world.health().counters.unexpected_messages, 6);
    assert_eq!(world.info().overlays.len(), 1);
}

#[test]
fn a_failure_is_reported_and_tried_again_without_bothering_what_works() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.applied(2, NetworkKind::Docker, Err("docker is down")), [REPORT]);
    world.acknowledge();
    let failed = Some(Status::Failed("docker is down".to_owned()));
    assert_eq!(world.info().overlays[0].status, failed);
    assert_eq!(world.health().status, Condition::Degraded);
    assert_eq!(world.health().problems, ["vxlan-1: docker is down"]);

    let mut waits = Vec::new();
    for attempt in 3..=5 {
        let before = world.now.elapsed;
        assert_eq!(world.sleep(), [format!("attempt {attempt}: docker network of vxlan-1")]);
        waits.push((world.now.elapsed - before).as_secs_f64());
        assert_eq!(world.applied(attempt, NetworkKind::Docker, Err("docker is down")), NOTHING);
    }
    assert!(waits[0] <= 1.0 && waits[1] <= 2.0 && waits[2] <= 4.0, "{waits:?}");
    assert_eq!(
        world.health().networks[1].next_attempt_seconds,
        Some(60),
        "after four attempts it hurries no more"
    );
}

#[test]
fn a_network_that_recovers_is_reported() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    world.applied(1, NetworkKind::Cni, Ok(()));
    world.applied(2, NetworkKind::Docker, Err("docker is down"));
    world.acknowledge();
    world.sleep();
    assert_eq!(world.applied(3, NetworkKind::Docker, Ok(())), [REPORT]);
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
    assert_eq!(world.info().configuration_attempts, Some(2));
}

#[test]
fn a_success_is_verified_and_its_loss_reported() {
    let mut world = World::new();
    world.registered();
    let registered_at = world.now.elapsed;
    assert_eq!(world.sleep(), ["attempt 2: cni network of vxlan-1"]);
    assert_eq!(world.now.elapsed - registered_at, Duration::from_secs(60));
    assert_eq!(world.applied(2, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.info().configuration_attempts, Some(1), "a verification is no attempt");
    world.sleep();
    assert_eq!(world.applied(3, NetworkKind::Cni, Err("disk full")), [REPORT]);
}

#[test]
fn a_status_that_changes_during_a_report_is_reported_after_it() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    world.applied(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.applied(2, NetworkKind::Docker, Err("docker is down")), [REPORT]);
    // The retry succeeds before the master has acknowledged the failure.
    assert_eq!(world.sleep(), ["attempt 3: docker network of vxlan-1"]);
    assert_eq!(world.applied(3, NetworkKind::Docker, Ok(())), NOTHING);
    assert_eq!(world.acknowledge(), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn an_assignment_that_comes_during_a_report_is_reported_when_it_is_made() {
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), [REPORT]);
    // Before the acknowledgement: the master has an overlay more now.
    world.update(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 7)]);
    assert_eq!(world.acknowledge(), NOTHING, "that was for the first report");
    let report = world.applied_to("vxlan-2", 2, NetworkKind::Cni, Ok(()));
    assert!(report[0].starts_with("send AgentRegisteredMessage of 2 overlays"), "{report:?}");
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn a_registered_agent_registers_again_from_time_to_time() {
    let mut world = World::new();
    world.registered();
    let registered_at = world.now.elapsed;
    let mut attempt = 1;
    let commands = loop {
        let commands = world.sleep();
        if commands[0].starts_with("link") {
            break commands;
        }
        attempt += 1;
        world.applied(attempt, NetworkKind::Cni, Ok(()));
    };
    assert_eq!(commands[1], format!("send RegisterAgentMessage to {MASTER}"));
    let waited = world.now.elapsed - registered_at;
    assert!(waited > Duration::from_secs(450) && waited <= Duration::from_secs(900), "{waited:?}");
    assert_eq!(world.health().status, Condition::Ok, "it is registered all the while");
    assert_eq!(world.update(vec![assignment("vxlan-1", 1)]), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);

    // A master that hangs with its connection open answers neither this time nor the next.
    let mut unanswered = 0;
    while unanswered < 2 {
        let commands = world.sleep();
        if commands[0].starts_with("link") {
            unanswered += 1;
        } else {
            attempt += 1;
            world.applied(attempt, NetworkKind::Cni, Ok(()));
        }
    }
    assert_eq!(world.health().status, Condition::Registering);
}

#[test]
fn an_unanswered_report_makes_it_register_again() {
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    world.applied(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.sleep()[1], format!("send RegisterAgentMessage to {MASTER}"));
}

#[test]
fn another_assignment_waits_for_the_attempt_that_is_under_way() {
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    // The agent was deleted at the master and got another subnet while the file was being written.
    assert_eq!(world.update(vec![assignment("vxlan-1", 2)]), ["retain 1 cni configurations"]);
    assert_eq!(
        world.applied(1, NetworkKind::Cni, Ok(())),
        ["attempt 2: cni network of vxlan-1"],
        "nothing is reported of the subnet that is gone"
    );
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), NOTHING, "that attempt has ended");
    assert_eq!(world.applied(2, NetworkKind::Cni, Ok(())), [REPORT]);
    assert_eq!(world.info().overlays[0].subnet.unwrap().to_string(), "192.168.2.0/24");
}

#[test]
fn an_overlay_that_is_no_longer_assigned_is_dropped() {
    let mut world = World::new();
    world.registered();
    let none = world.update(Vec::new());
    assert_eq!(none[0], "retain 0 cni configurations");
    assert!(none[1].starts_with("send AgentRegisteredMessage of 0 overlays"), "{none:?}");
    assert_eq!(world.info().overlays, []);
}

#[test]
fn an_overlay_that_comes_back_waits_for_the_attempt_of_the_one_that_was_dropped() {
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    // Attempt 1 hangs. The overlay goes and comes back, twice.
    assert_eq!(world.update(Vec::new())[0], "retain 0 cni configurations");
    assert_eq!(world.update(vec![assignment("vxlan-1", 2)]), ["retain 1 cni configurations"]);
    world.update(Vec::new());
    assert_eq!(world.update(vec![assignment("vxlan-1", 3)]), ["retain 1 cni configurations"]);
    assert_eq!(
        world.applied(1, NetworkKind::Cni, Err("too late")),
        ["attempt 2: cni network of vxlan-1"]
    );
    assert_eq!(world.applied(2, NetworkKind::Cni, Ok(())), [REPORT]);
    // One whose network stays away is forgotten.
    world.update(vec![assignment("vxlan-1", 4)]);
    world.update(Vec::new());
    assert_eq!(world.applied(3, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 5)]),
        ["retain 1 cni configurations", "attempt 4: cni network of vxlan-1"]
    );
}

#[test]
fn a_new_overlay_is_added_beside_the_others() {
    let mut world = World::new();
    world.registered();
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 7)]),
        ["retain 2 cni configurations", "attempt 2: cni network of vxlan-2"]
    );
    let report = world.applied_to("vxlan-2", 2, NetworkKind::Cni, Ok(()));
    assert!(report[0].starts_with("send AgentRegisteredMessage of 2 overlays"), "{report:?}");
}

#[test]
fn an_update_that_names_an_overlay_twice_is_dropped() {
    let mut world = World::new();
    world.registered();
    let twice = vec![assignment("vxlan-1", 1), assignment("vxlan-1", 2)];
    assert_eq!(world.update(twice), NOTHING);
    assert_eq!(world.health().counters.update_agent_overlays_messages_dropped, 1);
    assert_eq!(world.info().overlays[0].subnet.unwrap().to_string(), "192.168.1.0/24");
}

#[test]
fn an_assignment_that_contradicts_the_options_or_itself_fails_with_the_reason() {
    let mut world = World::with(AgentOptions::default());
    world.detect();
    let without = Assignment { docker_bridge: None, ..assignment("vxlan-1", 1) };
    let mut outside = assignment("vxlan-2", 2);
    outside.subnet = Some("192.168.3.0/24".parse().unwrap());
    world.update(vec![without, outside]);
    let status = |info: &AgentInfo, index: usize| info.overlays[index].status.clone().unwrap();
    let info = world.info();
    assert_eq!(
        status(&info, 0).to_string(),
        "failed: the master assigned no docker_bridge, which this agent's configuration asks for: \
         set network_config.docker_bridge to false, or delete this agent at the master and restart \
         it, so that it registers anew"
    );
    assert_eq!(
        status(&info, 1).to_string(),
        "failed: the master's assignment is beyond the limits of a network: '192.168.3.0/24' of \
         this agent is outside of the overlay's space, '172.18.0.0/16': correct the master's \
         network configuration"
    );
}

#[test]
fn what_the_operator_switched_off_is_not_made() {
    let gateway = AgentOptions { mesos_bridge: false, docker_bridge: false, ..Default::default() };
    let mut world = World::with(gateway);
    world.detect();
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 1)]),
        ["retain 0 cni configurations", REPORT]
    );
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn ipv6_reaches_docker_only_where_it_is_enabled() {
    let mut dual = assignment("vxlan-1", 1);
    dual.subnet6 = Some("fd01:b::/80".parse().unwrap());
    dual.docker_bridge.as_mut().unwrap().subnet6 = Some("fd01:b::8000:0:0/81".parse().unwrap());
    let networks = |options: &AgentOptions| ContainerNetwork::all_of(&dual, options).unwrap();
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
fn another_master_is_registered_with_and_the_old_one_forgotten() {
    let mut world = World::new();
    world.registered();
    assert_eq!(world.after(Event::Detected(Some("10.0.0.2:5050".parse().unwrap()))), NOTHING);
    assert_eq!(world.sleep()[0], "link overlay-master@10.0.0.2:5050");
    assert_eq!(world.update(vec![assignment("vxlan-1", 9)]), NOTHING, "from the old master");
    assert_eq!(world.after(Event::Detected(None)), NOTHING);
    assert_eq!(world.health().status, Condition::Detached);
    assert_eq!(world.info().overlays.len(), 1, "what runs stays");
}

#[test]
fn malformed_and_misdirected_messages_are_counted() {
    let mut world = World::new();
    world.registered();
    let from: Upid = MASTER.parse().unwrap();
    let malformed =
        Event::Malformed { from, name: "x\ny".to_owned(), reason: "unknown".to_owned() };
    assert_eq!(world.after(malformed), NOTHING);
    assert_eq!(world.message(MASTER, Message::AgentRegistered(Vec::new())), NOTHING);
    let counters = world.health().counters;
    assert_eq!((counters.malformed_messages, counters.unexpected_messages), (1, 1));
}

#[test]
fn the_numbers_follow_the_registration() {
    const STATE: [&str; 4] = ["registering", "status/detached", "status/registering", "status/ok"];
    let mut world = World::new();
    assert_eq!(world.metrics(STATE), [1, 1, 0, 0]);
    world.detect();
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0]);
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.metrics(["overlays/configuring", "overlays/ok"]), [1, 0]);
    world.applied(1, NetworkKind::Cni, Ok(()));
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0], "it has reported, and hopes for an answer");
    world.acknowledge();
    assert_eq!(world.metrics(STATE), [0, 0, 0, 1]);
    assert_eq!(world.metrics(["overlays/configuring", "overlays/ok"]), [0, 1]);
    world.after(Event::Exited(MASTER.parse::<Upid>().unwrap().address));
    assert_eq!(world.metrics(STATE), [1, 0, 1, 0]);
    let reply = Event::Request(RequestId(1), Request::Metrics);
    world.agent.handle(world.now, reply);
    let reply = std::iter::from_fn(|| world.agent.poll_command()).find_map(|command| {
        let Command::Reply { reply: Reply::Metrics(snapshot), .. } = command else { return None };
        Some(snapshot.machine)
    });
    assert_eq!(reply, Some(world.agent.metrics()));
}

#[test]
fn an_overlay_has_failed_for_the_numbers_when_its_quick_attempts_are_used_up() {
    const FAILED: [&str; 3] =
        ["overlay_config_failed", "overlay_config_failures", "overlays/failed"];
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    for attempt in 1..4 {
        world.applied(attempt, NetworkKind::Cni, Err("read-only"));
        world.acknowledge();
        assert_eq!(world.metrics(FAILED), [0, attempt, 1]);
        world.sleep();
    }
    world.applied(4, NetworkKind::Cni, Err("read-only"));
    assert_eq!(world.metrics(FAILED), [1, 4, 1]);
    world.sleep();
    world.applied(5, NetworkKind::Cni, Ok(()));
    assert_eq!(world.metrics(FAILED), [0, 4, 0], "it is mended");

    // What cannot be tried at all has failed at once.
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
    world.update(vec![unfit, ipv6]);
    assert_eq!(world.metrics(FAILED), [1, 4, 1]);
    assert_eq!(world.metrics(["overlays_without_subnets"]), [1]);
}

#[test]
fn a_report_that_nobody_waits_for_is_counted_as_dropped() {
    const DROPPED: [&str; 1] = ["internal/agent_registered_messages_dropped"];
    let mut world = World::new();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    world.after(Event::Detected(None));
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.metrics(DROPPED), [1]);
    world.detect();
    assert_eq!(world.update(vec![assignment("vxlan-1", 1)]), [REPORT]);
    assert_eq!(world.metrics(DROPPED), [1]);
}

/// Registered, with the Docker networks of two overlays, nothing of which is under way.
fn with_two_docker_networks() -> World {
    let mut world = World::with(AgentOptions { mesos_bridge: false, ..AgentOptions::default() });
    world.detect();
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]),
        [
            "retain 0 cni configurations",
            "retain 2 docker networks",
            "attempt 1: docker network of vxlan-1",
            "attempt 2: docker network of vxlan-2"
        ]
    );
    world.applied_to("vxlan-1", 1, NetworkKind::Docker, Ok(()));
    world.applied_to("vxlan-2", 2, NetworkKind::Docker, Ok(()));
    world.acknowledge();
    assert_eq!(world.after(Event::Removed(Ok(Vec::new()))), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
    world
}

#[test]
fn a_docker_network_that_is_no_longer_assigned_is_removed_as_soon_as_nobody_uses_it() {
    let mut world = with_two_docker_networks();
    let said = world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(said, ["retain 0 cni configurations", REPORT, "retain 1 docker networks"]);
    world.acknowledge();
    let kept = "docker network vxlan-2: is no longer assigned and has containers: remove them \
                (web), then the agent removes it";
    assert_eq!(world.after(Event::Removed(Ok(vec![kept.to_owned()]))), NOTHING);
    let health = world.health();
    assert_eq!((health.status, health.problems), (Condition::Degraded, vec![kept.to_owned()]));
    world.now.elapsed += Duration::from_secs(60);
    let said = world.after(Event::Timeout);
    assert_eq!(said, ["retain 1 docker networks", "attempt 3: docker network of vxlan-1"]);
    // Docker may be down then: what was known is still the best that is known.
    world.after(Event::Removed(Err("the Docker daemon is not running".to_owned())));
    assert_eq!(world.health().problems, [kept]);
    world.now.elapsed += Duration::from_secs(60);
    assert!(world.after(Event::Timeout).contains(&"retain 1 docker networks".to_owned()));
    world.after(Event::Removed(Ok(Vec::new())));
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn what_is_assigned_while_others_are_removed_is_made_after_that() {
    let mut world = with_two_docker_networks();
    world.update(vec![assignment("vxlan-1", 1)]);
    world.acknowledge();
    // The removal does not know that it is wanted again.
    let said = world.update(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]);
    assert_eq!(said, ["retain 0 cni configurations"]);
    assert!(world.agent.next_timeout() > Some(world.now.elapsed), "it waits for the end of that");
    assert_eq!(
        world.after(Event::Removed(Ok(Vec::new()))),
        ["retain 2 docker networks", "attempt 3: docker network of vxlan-2"]
    );
}

#[test]
fn what_is_dropped_while_it_is_made_is_removed_after_that() {
    let mut world = World::with(AgentOptions { mesos_bridge: false, ..AgentOptions::default() });
    world.detect();
    world.update(vec![assignment("vxlan-1", 1), assignment("vxlan-2", 2)]);
    world.after(Event::Removed(Ok(Vec::new())));
    let said = world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(said, ["retain 0 cni configurations"]);
    assert_eq!(
        world.applied_to("vxlan-2", 2, NetworkKind::Docker, Ok(())),
        ["retain 1 docker networks"]
    );
}

#[test]
fn an_agent_without_docker_networks_of_its_own_removes_none() {
    for options in [
        AgentOptions { docker_bridge: false, ..AgentOptions::default() },
        AgentOptions { allocate_subnet: false, ..AgentOptions::default() },
    ] {
        let mut world = World::with(options);
        world.detect();
        let said = world.update(Vec::new());
        assert_eq!(said[0], "retain 0 cni configurations");
        assert!(!said.iter().any(|line| line.contains("docker networks")), "{said:?}");
    }
}

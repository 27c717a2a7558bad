//! The engine against the recordings of the C++ modules in `tests/golden`.

use std::sync::Arc;
use std::time::Duration;

use overlay_config::AgentConfig;
use overlay_engine::agent::{self, Agent};
use overlay_engine::master::{self, Master};
use overlay_engine::state_machine::StateMachine as _;
use overlay_types::addr::{agent_upid, master_upid};
use overlay_types::clock::Now;
use overlay_types::protocol::{AgentOptions, MasterKind, Message, RequestId};
use overlay_types::state::{Epoch, LoadedState, Version};
use overlay_wire::{decode_state, encode_message, encode_peers_update, parse_json};

const NOW: Now = Now { elapsed: Duration::ZERO, unix: 1_700_000_000 };
/// The network of the recording.
const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
    "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
    "overlays": [
        { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
          "subnet6": "fd01:b::/64", "prefix6": 80 }
    ]
}"#;

#[test]
fn first_allocation_matches_recorded_master() {
    let golden = include_bytes!("golden/UpdateAgentOverlaysMessage.http");
    let (config, _) = overlay_config::parse_master("network.json", NETWORK).unwrap();
    let settings = master::Settings {
        network: Arc::new(config.network),
        reuse_after: Duration::ZERO,
        // The masters of this project append fields of their own.
        kind: MasterKind::Other,
        authentication: None,
    };
    let mut master = Master::new(settings, encode_peers_update, 1);
    let (epoch, version) = (Epoch(1), Version(0));
    let state = LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() };
    master.handle(NOW, master::Event::Loaded(Ok(state)));
    let from = agent_upid("10.0.0.1:5051".parse().unwrap());
    let message = Message::RegisterAgent(AgentOptions::default());
    master.handle(NOW, master::Event::Message { from, message });
    let update = std::iter::from_fn(|| master.poll_command()).find_map(|command| match command {
        master::Command::Send { message, .. } => Some(message),
        _ => None,
    });
    let (_, bytes) = encode_message(&update.expect("the master answers"));
    let is_there = golden.windows(bytes.len()).any(|window| window == bytes);
    assert!(is_there, "the update differs from the recorded one");
}

#[test]
fn recorded_assignments_are_within_agent_limits() {
    let recorded = include_bytes!("golden/overlay-master-state.json");
    let state = decode_state(&parse_json(recorded).unwrap()).unwrap();
    assert!(!state.agents.is_empty(), "nothing is recorded");
    for recorded in &state.agents {
        let settings = agent::Settings::from(&AgentConfig::new("/cni".into()));
        let mut agent = Agent::new(recorded.ip, settings, 1);
        let master = master_upid("10.0.0.1:5050".parse().unwrap());
        agent.handle(NOW, agent::Event::Detected(Some(master.address)));
        let message = Message::UpdateAgentOverlays {
            overlays: recorded.overlays.clone(),
            master: MasterKind::Other,
        };
        agent.handle(NOW, agent::Event::Message { from: master, message });
        agent.handle(NOW, agent::Event::Request(RequestId(1), agent::Request::Health));
        let health =
            std::iter::from_fn(|| agent.poll_command()).find_map(|command| match command {
                agent::Command::Reply { reply: agent::Reply::Health(health), .. } => Some(health),
                _ => None,
            });
        assert_eq!(health.expect("the agent answers").problems, [""; 0]);
    }
}

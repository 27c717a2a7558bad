//! Modules with credentials: the attacks of a container on the host of an agent or a master. It
//! reaches the port of the Mesos process there, and sends with the address of its host.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use overlay_config::{parse_agent_credential, parse_shared_secrets};
use overlay_engine::authentication::{AgentSession, ContentDigest, MasterSessions};
use overlay_types::addr::Upid;
use overlay_types::protocol::{
    AgentOptions, AuthenticationMode, MasterKind, Message, PeersRequest,
};
use overlay_wire as wire;
use tempfile::TempDir;

use super::tests::{NETWORK, Sent, TIMEOUT, get, inputs, no_log, serialize, start};
use super::{Kind, Module};

const CREDENTIAL: &str = "agents correct-horse-battery-staple";
const AGENT: &str = "overlay-agent@10.0.0.7:5051";
const MASTER: &str = "overlay-master@10.0.0.1:5050";

fn write_secret(path: &Path) -> &str {
    std::fs::write(path, CREDENTIAL).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap()
}

/// Returns the next message of a module, and its body.
fn next(sent: &Receiver<Sent>) -> (&'static str, Vec<u8>) {
    loop {
        match sent.recv_timeout(TIMEOUT).unwrap() {
            Sent::Message(_, name, body) => return (name, body),
            Sent::Link(_) => {}
        }
    }
}

fn decode(name: &str, body: &[u8]) -> Message {
    wire::decode_message(name, body).unwrap()
}

fn refused(module: &Module, path: &str) -> u64 {
    let health = get(module, path);
    let health: serde_json::Value = serde_json::from_slice(health.body()).unwrap();
    health["counters"]["unauthentic_messages_refused"].as_u64().unwrap_or_default()
}

#[test]
fn master_module_refuses_container_in_name_of_agent() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let credentials = directory.path().join("credentials");
    let parameters = [
        ("overlays", NETWORK),
        ("work_dir", directory.path().to_str().unwrap()),
        ("credentials", write_secret(&credentials)),
    ];
    let module = Module::create(Kind::Master, &inputs(&parameters), no_log).unwrap();
    let sent = start(&module);
    let master: Upid = MASTER.parse().unwrap();
    let credential = parse_agent_credential(CREDENTIAL).unwrap();
    let mode = AuthenticationMode::Required;
    let mut session = AgentSession::new(Some(credential), mode, false, &[7; 32]);
    let seal = |session: &mut AgentSession, message: &Message| {
        let (name, mut body) = wire::encode_message(message);
        if let Some(seal) = session.seal(message.kind(), || ContentDigest::of(&body)) {
            wire::append_seal(&mut body, &seal);
        }
        (name, body)
    };
    for message in session.send(&master, Message::RegisterAgent(AgentOptions::default())) {
        let (name, body) = seal(&mut session, &message);
        module.message(AGENT, name, &body);
    }
    let (name, body) = next(&sent);
    let Message::AuthenticationChallenge(challenge) = decode(name, &body) else {
        panic!("{name}");
    };
    let held = session.receive_challenge(&master, &challenge).unwrap();
    let (register, sealed) = seal(&mut session, &held[0]);
    module.message(AGENT, register, &sealed);
    let (name, body) = next(&sent);
    let (content, seal) = wire::split_seal(&body).unwrap();
    let update = decode(name, content);
    assert!(matches!(update, Message::UpdateAgentOverlays { .. }), "{update}");
    let checked = session.authenticate(&master, update.kind(), content, seal.as_ref());
    assert_eq!(checked, Ok(()));

    let state = get(&module, "/overlay-master/state");
    let options = AgentOptions { underlay: "fd66::66".parse().ok(), ..AgentOptions::default() };
    for message in [
        Message::RegisterAgent(options),
        Message::AgentRegistered(Vec::new()),
        Message::RequestPeers(PeersRequest::default()),
    ] {
        let (name, body) = wire::encode_message(&message);
        module.message(AGENT, name, &body);
    }
    module.message(AGENT, register, &sealed);
    assert_eq!(refused(&module, "/overlay-master/health"), 4);
    let unchanged = get(&module, "/overlay-master/state");
    assert_eq!(unchanged.body(), state.body());
    assert!(sent.try_iter().next().is_none(), "the container gets no answer");
    module.stop();
}

#[test]
fn agent_module_refuses_container_in_name_of_master() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let credential = directory.path().join("credential");
    let (cni, state) = (path("cni"), path("state"));
    let parameters = [
        ("master", "10.0.0.1:5050"),
        ("cni_dir", cni.as_str()),
        ("state_dir", state.as_str()),
        ("dataplane", "external"),
        ("docker_bridge", "false"),
        ("credential", write_secret(&credential)),
    ];
    let module = Module::create(Kind::Agent, &inputs(&parameters), no_log).unwrap();
    let sent = start(&module);
    let (agent, master): (Upid, Upid) =
        ("overlay-agent@10.0.0.1:5050".parse().unwrap(), MASTER.parse().unwrap());
    let secrets = Arc::new(parse_shared_secrets(CREDENTIAL).unwrap());
    let mut sessions = MasterSessions::new(Some(secrets), &[8; 32]);
    let (name, body) = next(&sent);
    let Message::AuthenticateAgent(request) = decode(name, &body) else { panic!("{name}") };
    let challenge = sessions.challenge(&agent, &request);
    let (name, body) = wire::encode_message(&Message::AuthenticationChallenge(challenge));
    module.message(MASTER, name, &body);
    let (name, body) = next(&sent);
    let (content, seal) = wire::split_seal(&body).unwrap();
    let register = decode(name, content);
    let seal = seal.expect("the registration is sealed");
    let principal = sessions.authenticate(&agent, register.kind(), content, &seal);
    assert!(principal.is_ok() && matches!(register, Message::RegisterAgent(_)), "{register}");

    // The container sends an empty assignment, which removes every overlay.
    let update = Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Program };
    let (name, mut body) = wire::encode_message(&update);
    module.message(MASTER, name, &body);
    assert_eq!(refused(&module, "/overlay-agent/health"), 1);
    let digest = ContentDigest::of(&body);
    let seal = sessions.seal(&master, update.kind(), || digest);
    assert_eq!(seal, None, "the session is the agent's");
    let seal = sessions.seal(&agent, update.kind(), || digest).unwrap();
    wire::append_seal(&mut body, &seal);
    module.message(MASTER, name, &body);
    let is_report = |(name, _): (&str, Vec<u8>)| name.ends_with(".AgentRegisteredMessage");
    assert!(std::iter::repeat_with(|| next(&sent)).take(3).any(is_report));
    module.message(MASTER, name, &body);
    assert_eq!(refused(&module, "/overlay-agent/health"), 2, "a repeated message");
    module.stop();
}

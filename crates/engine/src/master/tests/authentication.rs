//! Agents that authenticate, agents that do not, and processes that send in their names.

use overlay_types::protocol::{HeldAddresses, RegistrationProblems, SharedSecret};

use super::*;

const REGISTER: MessageKind = MessageKind::RegisterAgent;

fn principal() -> Principal {
    "agents".parse().unwrap()
}

fn authentication(mode: AuthenticationMode) -> Option<Authentication> {
    let mut secrets = SharedSecrets::default();
    secrets.insert(principal(), SharedSecret::from_digest([1; 32]));
    Some(Authentication { mode, secrets: Arc::new(secrets) })
}

fn settings(authentication: Option<Authentication>) -> Settings {
    Settings {
        network: Arc::new(network()),
        reuse_after: Duration::from_secs(3600),
        kind: MasterKind::Program,
        authentication,
    }
}

impl World {
    fn authenticating(mode: AuthenticationMode) -> Self {
        let settings = settings(authentication(mode));
        let mut world = Self::with_settings(settings, BTreeMap::new(), Version(0));
        world.load();
        world
    }

    /// Restarts the master on the same store with other credentials.
    fn restart_with(self, authentication: Option<Authentication>) -> Self {
        let mut world = Self::with_settings(settings(authentication), self.records, self.version);
        world.load();
        world
    }

    fn authenticated(&mut self, agent: u8, message: Message) {
        let (from, principal) = (upid(agent), principal());
        self.handle(Event::Authenticated { from, principal, message });
    }

    fn register_authenticated(&mut self, agent: u8, options: AgentOptions) -> bool {
        let before = self.sent.len();
        self.authenticated(agent, Message::RegisterAgent(options));
        self.sent.len() > before
    }

    fn is_registered_by(&mut self, agent: u8, options: AgentOptions) -> bool {
        let before = self.sent.len();
        self.message(agent, Message::RegisterAgent(options));
        self.sent.len() > before
    }

    /// Returns how many messages were accepted without authentication, and how many were refused.
    fn counts(&self) -> [u64; 2] {
        self.metrics(["unauthenticated_messages_accepted", "unauthentic_messages_refused"])
    }
}

fn at(underlay: &str) -> AgentOptions {
    AgentOptions { underlay: underlay.parse().ok(), ..AgentOptions::default() }
}

#[test]
fn permitted_takes_both_and_counts_unauthenticated() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    assert!(world.register(1).is_some());
    assert!(world.register_authenticated(2, AgentOptions::default()));
    assert_eq!(world.counts(), [1, 0]);
    world.store();
    let health = world.health();
    assert_eq!(health.problems, [""; 0]);
    let view = health.authentication.unwrap();
    assert_eq!(view.mode, Some(AuthenticationMode::Permitted));
    assert_eq!(
        view.tally,
        AuthenticationTally { authenticated: 1, unauthenticated: 1, refused: 0 }
    );
    assert_eq!(view.unauthenticated_agents, [ip(1)]);
    assert_eq!(world.state().principals, BTreeMap::from([(ip(2), principal())]));
}

#[test]
fn required_refuses_unauthenticated_and_tells_why() {
    let mut world = World::authenticating(AuthenticationMode::Required);
    assert!(!world.is_registered_by(1, AgentOptions::default()));
    let held = HeldAddresses::default().with_registration(7);
    assert!(world.master.trusts(&upid(1), MessageKind::HeldAddresses, false));
    world.message(1, Message::HeldAddresses(held));
    let reason = "it is not authenticated: set 'credential' of the agent, or 'authentication' of \
                  the master to permitted";
    let problems = RegistrationProblems {
        is_refused: true,
        reasons: vec![reason.to_owned()],
        reassigned: Vec::new(),
        registration: 7,
    };
    let answer = (upid(1), Message::RegistrationProblems(problems), Version(0));
    assert_eq!(world.sent, [answer]);
    assert_eq!(world.health().problems, [format!("refused agent 10.0.0.1: {reason}")]);
    assert_eq!(world.metrics(["agents_refused_unauthentic"]), [1]);
    assert!(world.register_authenticated(1, AgentOptions::default()));
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(world.agents().len(), 0, "the record waits for the store");
}

#[test]
fn authenticated_agent_is_refused_unauthenticated_until_release() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    assert!(world.register_authenticated(1, at("fd00::1")));
    world.store();
    let assigned = world.state();
    let sent = world.sent.len();
    // A container on the host of the agent.
    for message in [
        Message::RegisterAgent(at("fd00::bad")),
        report(&[], &Status::Ok),
        Message::RequestPeers(PeersRequest::default()),
        Message::HeldAddresses(HeldAddresses::default()),
    ] {
        assert!(!world.master.trusts(&upid(1), message.kind(), false));
        world.message(1, message);
    }
    assert_eq!((world.sent.len(), world.peer_updates.len()), (sent, 0), "nobody is answered");
    assert_eq!(world.state(), assigned);
    assert_eq!(world.counts(), [0, 4]);
    assert_eq!(world.health().problems, [""; 0], "the agent itself has no problem");
    // The master restarts, also without credentials.
    for authentication in [authentication(AuthenticationMode::Permitted), None] {
        world = world.restart_with(authentication);
        assert!(!world.is_registered_by(1, at("fd00::bad")));
        assert_eq!(world.health().problems.len(), 1, "the agent may have lost its credential");
    }
    let problem = "refused agent 10.0.0.1: it has authenticated before, and this master has no \
                   credentials: set 'credentials' of the master, or release the agent";
    assert_eq!(world.health().problems, [problem]);
    world.delete(1);
    assert_eq!(world.health().problems, [""; 0]);
    assert!(world.is_registered_by(1, at("fd00::2")));
}

#[test]
fn underlay_is_changed_only_with_authentication() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    assert!(world.is_registered_by(1, at("fd00::1")));
    world.store();
    for options in [at("fd00::2"), AgentOptions::default()] {
        assert!(!world.is_registered_by(1, options));
    }
    assert!(world.is_registered_by(1, at("fd00::1")));
    assert!(world.register_authenticated(1, at("fd00::2")));
    assert_eq!(world.master.peer_of(ip(1)).underlay.to_string(), "fd00::2");
    // Without credentials, nothing has changed.
    let mut world = World::new(network());
    assert!(world.is_registered_by(1, at("fd00::1")));
    world.store();
    assert!(world.is_registered_by(1, at("fd00::2")));
    assert_eq!(world.health().authentication, None);
    assert_eq!(world.counts(), [0, 0]);
}

#[test]
fn principal_is_stored_and_replaced() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    let former = world.register(1).unwrap();
    world.store();
    assert!(world.register_authenticated(1, AgentOptions::default()));
    let (_, message, when) = world.sent.last().unwrap();
    let Message::UpdateAgentOverlays { overlays, .. } = message else { panic!("{message}") };
    assert_eq!((overlays, *when), (&former, Version(2)), "the record is durable first");
    world.store();
    let StoredRecord::Agent(Ok(Record::Agent(record))) = &world.records[&Key::Agent(ip(1))] else {
        panic!("no record");
    };
    assert_eq!(record.authenticated, Some(principal()));
    let other: Principal = "other".parse().unwrap();
    let message = Message::RegisterAgent(AgentOptions::default());
    world.handle(Event::Authenticated { from: upid(1), principal: other.clone(), message });
    assert_eq!(world.state().principals[&ip(1)], other);
    assert_eq!(world.metrics(["agents_authenticated", "agents_unauthenticated"]), [1, 0]);
}

#[test]
fn request_for_session_is_answered_unless_on_standby() {
    let request = AuthenticateAgent { principal: principal(), nonce: [1; 16] };
    let mut world = World::authenticating(AuthenticationMode::Required);
    world.message(1, Message::AuthenticateAgent(request.clone()));
    assert_eq!(world.challenged, [(upid(1), request.clone())]);
    assert!(world.master.accepts(&upid(1), MessageKind::AuthenticateAgent));
    world.master = Master::standing_by(settings(None), encode_update, 1);
    assert!(!world.master.accepts(&upid(1), MessageKind::AuthenticateAgent));
    world.message(1, Message::AuthenticateAgent(request));
    assert_eq!(world.challenged.len(), 1);
}

#[test]
fn wrong_credential_is_answered_and_named() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    let request = AuthenticateAgent { principal: "x\u{1b}".parse().unwrap(), nonce: [1; 16] };
    let fault = AuthenticityFault::WrongCredential(request);
    world.handle(Event::Unauthentic { from: upid(1), kind: REGISTER, fault });
    let answer = Err(AuthenticationRefusal::WrongCredential);
    let challenge = AuthenticationChallenge { agent_nonce: [1; 16], answer };
    let refused = (upid(1), Message::AuthenticationChallenge(challenge), Version(0));
    assert_eq!(world.sent, [refused]);
    let problem = "refused agent 10.0.0.1: this master has no principal 'x\\u{1b}' with the \
                   secret of the agent: compare the agent's file of 'credential' with the master's \
                   file of 'credentials'";
    assert_eq!(world.health().problems, [problem]);
    for fault in [AuthenticityFault::Replayed, AuthenticityFault::WrongCode] {
        world.handle(Event::Unauthentic { from: upid(2), kind: REGISTER, fault });
    }
    assert_eq!(world.sent.len(), 1, "nobody else is answered");
    assert_eq!((world.health().problems.len(), world.counts()), (1, [0, 3]));
}

#[test]
fn refused_senders_are_kept_up_to_limit() {
    let mut world = World::authenticating(AuthenticationMode::Required);
    for number in 0..1500 {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + number);
        let from = agent_upid(std::net::SocketAddrV4::new(ip, 5051));
        let message = Message::RegisterAgent(AgentOptions::default());
        world.handle(Event::Message { from, message });
    }
    assert_eq!(world.metrics(["agents_refused_unauthentic"]), [1000]);
    assert_eq!(world.health().problems.len(), 101);
}

#[test]
fn unauthenticated_registration_keeps_waiting_authenticated_one() {
    let settings = settings(authentication(AuthenticationMode::Permitted));
    let mut world = World::with_settings(settings, BTreeMap::new(), Version(0));
    world.authenticated(1, Message::RegisterAgent(at("fd00::1")));
    world.message(1, Message::RegisterAgent(at("fd00::bad")));
    world.load();
    assert_eq!(world.master.peer_of(ip(1)).underlay.to_string(), "fd00::1");
    assert_eq!(world.state().principals.len(), 1);
}

#[test]
fn reload_changes_mode_and_file_changes_secrets() {
    let mut world = World::authenticating(AuthenticationMode::Permitted);
    assert!(world.register(1).is_some());
    world.store();
    let mut reload = |mode| {
        world.handle(Event::Request(RequestId(2), Request::Reload));
        let mut settings = settings(authentication(mode));
        if let Some(authentication) = &mut settings.authentication {
            authentication.secrets = Arc::default();
        }
        world.handle(Event::ConfigRead(RequestId(2), Ok(settings)));
        std::mem::take(&mut world.secrets)
    };
    assert_eq!(reload(AuthenticationMode::Permitted), [], "nothing has changed");
    let current = authentication(AuthenticationMode::Required).map(|it| it.secrets);
    assert_eq!(reload(AuthenticationMode::Required), [current]);
    assert!(!world.is_registered_by(1, AgentOptions::default()));
    world.handle(Event::SecretsChanged(SharedSecrets::default()));
    assert_eq!(world.secrets, [Some(Arc::default())]);
    let mut world = World::new(network());
    world.handle(Event::SecretsChanged(SharedSecrets::default()));
    assert_eq!(world.secrets, [], "agents do not authenticate");
}

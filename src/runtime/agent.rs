//! Runs the agent.

use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::inbox::{Inbox, Inputs, Stopped};
use super::networks::Networks;
use super::running::Running;
use super::tunnels::{Job, TunnelOptions, Tunnels};
use super::{Executor, Hosted, Metrics};
use crate::addr::Upid;
use crate::agent::{Agent, Command, Event, Reply, Request, Settings, TunnelSettings};
use crate::cni::CniDirectory;
use crate::detector::{Detector, FixedMaster};
use crate::docker::Docker;
use crate::http::{
    Format, Request as HttpRequest, Response, classify_agent, render_agent, route_agent,
};
use crate::machine::Machine as _;
use crate::metrics::HostCounters;
use crate::protocol::{Message, MessageKind, Refused, RequestId};
use crate::transport::{RequestClass, Sender, Transport};
use crate::warnings::Warnings;
use crate::wire;

/// How long to wait before a name that could not be resolved is tried again.
const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// Least time between two looks at the master's name: a master that refuses connections would
/// otherwise have the resolver asked at every attempt.
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);

impl Hosted for Agent {
    type Question = Request;
    type Reply = Reply;

    const PROCESS: &'static str = Upid::AGENT;

    fn takes(kind: MessageKind) -> bool {
        matches!(
            kind,
            MessageKind::UpdateAgentOverlays
                | MessageKind::AgentRegisteredAcknowledgement
                | MessageKind::UpdatePeers
        )
    }

    fn accepts(&self, from: &Upid, _: MessageKind) -> bool {
        self.has_master(from)
    }

    fn ignored(from: Upid, kind: MessageKind) -> Event {
        Event::Ignored { from, kind }
    }

    fn message(from: Upid, message: Message) -> Event {
        Event::Message { from, message }
    }

    fn malformed(from: Upid, name: String, reason: String) -> Event {
        Event::Malformed { from, name, reason }
    }

    fn exited(address: SocketAddrV4) -> Option<Event> {
        Some(Event::Exited(address))
    }

    fn request(id: RequestId, question: Request) -> Event {
        Event::Request(id, question)
    }

    fn complete(reply: &mut Reply, refused: Refused, host: HostCounters, warnings: &Warnings) {
        match reply {
            Reply::Health(health) => {
                health.refused = refused.sanitized();
                if !warnings.is_empty() {
                    health.status = health.status.degraded();
                    health.problems.extend(warnings.texts());
                }
            }
            Reply::Metrics(snapshot) => {
                snapshot.host = host;
                if !warnings.is_empty() {
                    Self::degrade(&mut snapshot.machine);
                }
            }
            Reply::Overlay(_) => {}
        }
    }

    fn classify(method: &Method, path: &str) -> RequestClass {
        classify_agent(method, path)
    }

    fn route(request: &HttpRequest) -> Result<(Request, Format), Box<Response>> {
        route_agent(request)
    }

    fn render(reply: &Reply, format: &Format) -> Response {
        render_agent(reply, format)
    }
}

/// What an agent needs to run.
#[derive(Debug)]
pub struct AgentOptions {
    /// How it behaves.
    pub settings: Settings,
    /// Whom it registers with.
    pub master: Detector,
    /// Where it writes CNI configurations.
    pub cni: CniDirectory,
    /// The Docker engine of its host.
    pub docker: Docker,
    /// How it programs the network of its host, if its settings say that it does.
    pub tunnels: TunnelOptions,
    /// What its waits are drawn from: must differ between agents.
    pub seed: u64,
    /// Where its numbers are shown.
    pub metrics: Metrics<Agent>,
}

/// A running agent. Dropped, it stops; the container networks stay.
pub struct AgentHost(Running<Agent>);

impl fmt::Debug for AgentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentHost")
    }
}

impl AgentHost {
    /// Starts an agent that is reached over `transport`, whose address is the agent's identity. To
    /// be called within a tokio runtime, from a thread in the host's network namespace.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(options: AgentOptions, transport: impl Transport) -> io::Result<Self> {
        let AgentOptions { settings, master, cni, docker, tunnels, seed, metrics } = options;
        let own = Upid::agent(transport.address());
        let (inbox, receiver) = Inbox::new(metrics);
        let detect = Arc::new(Notify::new());
        let mut detector = JoinSet::new();
        detector.spawn(detect_master(master, inbox.clone(), Arc::clone(&detect)));
        if !settings.tunnel.programs {
            tunnels.tell_of_former();
        }
        let has_tunnels = settings.tunnel != TunnelSettings::NONE;
        let start = || Tunnels::start(tunnels, settings.tunnel.programs, inbox.clone());
        let tunnels = has_tunnels.then(start).transpose()?;
        let machine = Agent::new(*own.address.ip(), settings, seed);
        let (sender, transport) = transport.open(Arc::new(inbox.clone()));
        let executor = AgentExecutor {
            own,
            sender,
            networks: Networks::new(cni, docker, inbox.clone()),
            tunnels,
            detect,
            _detector: detector,
        };
        Ok(Self(Running::start(machine, executor, (inbox, receiver), transport)))
    }

    /// Asks the agent, as a request over HTTP would.
    ///
    /// # Errors
    /// When it has stopped.
    pub async fn ask(&self, question: Request) -> Result<Reply, Stopped> {
        self.0.ask(question).await
    }

    /// Its numbers, which outlive it.
    #[must_use]
    pub fn metrics(&self) -> Metrics<Agent> {
        self.0.metrics()
    }

    /// Waits until the agent has stopped by itself, which it never should.
    pub async fn stopped(&mut self) {
        self.0.stopped().await;
    }

    /// Stops it, and returns when it has. A `docker` that is running is killed.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

/// Tells the agent where its master is, at the start and whenever it wants to know again.
async fn detect_master(master: Detector, inbox: Inbox<Agent>, detect: Arc<Notify>) {
    match master {
        Detector::Fixed(master) => resolve_master(master, inbox, detect).await,
        Detector::Watched(leader) => follow_leader(leader, inbox, detect).await,
    }
}

/// Tells of every new leader at once, and of the present one when the agent asks. A leader that is
/// named again has led no more in between, and knows nothing of the agent.
async fn follow_leader(
    mut leader: watch::Receiver<Option<SocketAddrV4>>,
    inbox: Inbox<Agent>,
    detect: Arc<Notify>,
) {
    let mut told = None;
    let mut is_news = false;
    loop {
        let address = *leader.borrow_and_update();
        if is_news && told.is_some() && told == address {
            inbox.tell(Event::Detected(None)).await;
        }
        inbox.tell(Event::Detected(address)).await;
        told = address;
        is_news = tokio::select! {
            changed = leader.changed() => {
                if changed.is_err() {
                    // Whoever watched has stopped: the leader it named last is as good as any.
                    detect.notified().await;
                }
                changed.is_ok()
            }
            () = detect.notified() => false,
        };
    }
}

async fn resolve_master(master: FixedMaster, inbox: Inbox<Agent>, detect: Arc<Notify>) {
    let mut was_resolved = false;
    loop {
        match master.resolve().await {
            Ok(address) => {
                was_resolved = true;
                inbox.tell(Event::Detected(Some(address))).await;
                tokio::time::sleep(RESOLVE_PAUSE).await;
                detect.notified().await;
            }
            Err(reason) => {
                log::error!("{reason}; trying again in {RESOLVE_RETRY:?}");
                // A resolver that fails says nothing about the master that was found before.
                if !was_resolved {
                    inbox.tell(Event::Detected(None)).await;
                }
                tokio::time::sleep(RESOLVE_RETRY).await;
            }
        }
    }
}

struct AgentExecutor {
    own: Upid,
    sender: Box<dyn Sender>,
    networks: Networks,
    /// `None` where the machine asks nothing of it.
    tunnels: Option<Tunnels>,
    detect: Arc<Notify>,
    /// The task that looks for the master; ends with the agent.
    _detector: JoinSet<()>,
}

impl AgentExecutor {
    fn queue(&self, job: Job) {
        if let Some(tunnels) = &self.tunnels {
            tunnels.queue(job);
        }
    }
}

impl Executor<Agent> for AgentExecutor {
    fn before(&mut self, _: &Event) {
        self.networks.reap();
    }

    fn run(&mut self, command: Command, inputs: &mut Inputs<Agent>) {
        match command {
            Command::Detect => self.detect.notify_one(),
            Command::Link(to) => self.sender.link(&to),
            Command::Send { to, message } => {
                let (name, body) = wire::encode_message(&message);
                self.sender.send(&self.own, &to, name, &Bytes::from(body));
            }
            Command::Apply { attempt, network } => self.networks.apply(attempt, network),
            Command::Inspect { attempt, claims } => {
                self.queue(Job::Inspect { attempt, claims });
            }
            Command::Program { attempt, desired, scope } => {
                self.queue(Job::Program { attempt, desired, scope });
            }
            Command::RetainCni(wanted) => self.networks.retain_cni(wanted),
            Command::RetainDocker(wanted) => self.networks.retain_docker(wanted),
            Command::Reply { id, reply } => inputs.reply(id, reply),
        }
    }

    fn settled(&mut self, _: &mut Inputs<Agent>) {}
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Input;
    use super::*;

    #[tokio::test]
    async fn a_leader_that_is_elected_again_is_registered_with_again() {
        let (inbox, mut events) = Inbox::new(Metrics::new());
        let (election, leader) = watch::channel(None);
        let detect = Arc::new(Notify::new());
        let follower = tokio::spawn(follow_leader(leader, inbox, Arc::clone(&detect)));
        let mut next = async || match events.recv().await {
            Some(Input::Event(Event::Detected(address))) => address.map(|one| one.port()),
            _ => Some(0),
        };
        let at = |port| Some(SocketAddrV4::new([10, 0, 0, 1].into(), port));
        assert_eq!(next().await, None);
        election.send_replace(at(1));
        assert_eq!(next().await, Some(1));
        detect.notify_one();
        assert_eq!(next().await, Some(1), "the agent asked");
        election.send_replace(at(2));
        assert_eq!(next().await, Some(2));
        election.send_replace(at(2));
        assert_eq!((next().await, next().await), (None, Some(2)), "elected again");
        follower.abort();
    }

    #[test]
    fn standing_warning_degrades_ok_and_never_hides_a_worse_status() {
        use crate::agent::{Condition, Counters, Health};
        let warnings = Warnings::new();
        let after = |status, warnings: &Warnings| {
            let health = Health {
                status,
                problems: vec!["first".to_owned()],
                master: None,
                networks: Vec::new(),
                dataplane: None,
                counters: Counters::default(),
                refused: Refused::default(),
            };
            let mut reply = Reply::Health(Box::new(health));
            Agent::complete(&mut reply, Refused::default(), HostCounters::default(), warnings);
            match reply {
                Reply::Health(health) => (health.status, health.problems),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after(Condition::Ok, &warnings), (Condition::Ok, vec!["first".to_owned()]));
        warnings.set("acl", Some("second".to_owned()));
        let problems = vec!["first".to_owned(), "second".to_owned()];
        for (status, expected) in [
            (Condition::Ok, Condition::Degraded),
            (Condition::Degraded, Condition::Degraded),
            (Condition::Registering, Condition::Registering),
            (Condition::Detached, Condition::Detached),
        ] {
            assert_eq!(after(status, &warnings), (expected, problems.clone()));
        }
    }
}

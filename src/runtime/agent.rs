//! Runs the agent.

use std::fmt;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::inbox::{Inbox, Inputs, Stopped};
use super::networks::Networks;
use super::running::Running;
use super::{Executor, Hosted};
use crate::addr::Upid;
use crate::agent::{Agent, Command, Event, Reply, Request, Settings};
use crate::cni::CniDirectory;
use crate::detector::FixedMaster;
use crate::docker::Docker;
use crate::http::{Format, Request as HttpRequest, Response, render_agent, route_agent};
use crate::protocol::{Message, Refused, RequestId};
use crate::transport::libprocess::{Client, Server, ServerOptions};
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

    fn complete(reply: &mut Reply, refused: Refused) {
        if let Reply::Health(health) = reply {
            health.refused = refused;
        }
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
    pub master: FixedMaster,
    /// Where it writes CNI configurations.
    pub cni: CniDirectory,
    /// The Docker engine of its host.
    pub docker: Docker,
    /// What it listens on, already bound.
    pub server: Server,
    /// How it treats connections.
    pub server_options: ServerOptions,
    /// The address that the master is told, and which is the identity of the agent.
    pub advertise: SocketAddrV4,
    /// What its waits are drawn from: must differ between agents.
    pub seed: u64,
}

/// A running agent. Dropped, it stops; the container networks stay.
pub struct AgentHost(Running<Agent>);

impl fmt::Debug for AgentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentHost")
    }
}

impl AgentHost {
    /// Starts an agent. To be called within a tokio runtime.
    #[must_use]
    pub fn start(options: AgentOptions) -> Self {
        let AgentOptions { settings, master, cni, docker, advertise, seed, .. } = options;
        let (inbox, receiver) = Inbox::new();
        let detect = Arc::new(Notify::new());
        let mut detector = JoinSet::new();
        detector.spawn(detect_master(master, inbox.clone(), Arc::clone(&detect)));
        let executor = AgentExecutor {
            own: Upid::agent(advertise),
            client: Client::new(advertise, Arc::new(inbox.clone())),
            networks: Networks::new(cni, docker, inbox.clone()),
            detect,
            _detector: detector,
        };
        let machine = Agent::new(*advertise.ip(), settings, seed);
        let inbox = (inbox, receiver);
        Self(Running::start(machine, executor, inbox, options.server, options.server_options))
    }

    /// Asks the agent, as a request over HTTP would.
    ///
    /// # Errors
    /// When it has stopped.
    pub async fn ask(&self, question: Request) -> Result<Reply, Stopped> {
        self.0.ask(question).await
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
async fn detect_master(master: FixedMaster, inbox: Inbox<Agent>, detect: Arc<Notify>) {
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
    client: Client<Inbox<Agent>>,
    networks: Networks,
    detect: Arc<Notify>,
    /// The task that looks for the master; ends with the agent.
    _detector: JoinSet<()>,
}

impl Executor<Agent> for AgentExecutor {
    fn before(&mut self, _: &Event) {
        self.networks.reap();
    }

    fn run(&mut self, command: Command, inputs: &mut Inputs<Agent>) {
        match command {
            Command::Detect => self.detect.notify_one(),
            Command::Link(to) => self.client.link(to.address),
            Command::Send { to, message } => {
                let (name, body) = wire::encode_message(&message);
                self.client.send(&self.own, &to, name, &Bytes::from(body));
            }
            Command::Apply { attempt, network } => self.networks.apply(attempt, network),
            Command::RetainCni(wanted) => self.networks.retain_cni(wanted),
            Command::Reply { id, reply } => inputs.reply(id, reply),
        }
    }

    fn settled(&mut self, _: &mut Inputs<Agent>) {}
}

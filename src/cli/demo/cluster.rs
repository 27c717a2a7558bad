//! A master and agents, each as the other subcommands run them, in one process. Every agent has a
//! thread and a runtime of its own: what it opens and starts is then in the network namespace of
//! its host, where it has one.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::progress::Progress;
use super::stage::Namespace;
use crate::agent;
use crate::cli::Failure;
use crate::cni::CniDirectory;
use crate::config::{AgentConfig, DataplaneKind, FirewallKind, MasterConfig};
use crate::detector::Detector;
use crate::docker::Docker;
use crate::master::{Reply, Request, Settings};
use crate::protocol::{State, Status};
use crate::runtime::{AgentHost, AgentOptions, MasterHost, MasterOptions, Metrics, TunnelOptions};
use crate::store::FileStore;
use crate::transport::libprocess::{Libprocess, Server, ServerOptions};

/// Longest time that the cluster may take, and each agent of it. Most of it is for machines that
/// are busy.
const DEADLINE: Duration = Duration::from_mins(1);
const DEADLINE_OF_AGENT: Duration = Duration::from_secs(2);
/// How often the master and the agents are asked how far they are.
const POLL: Duration = Duration::from_millis(20);

/// The CNI configurations of each agent, by the names of their files.
pub(super) type CniFiles = BTreeMap<Ipv4Addr, BTreeMap<String, String>>;

/// Where an agent is.
pub(super) struct Seat {
    pub(super) address: SocketAddrV4,
    /// Its host, whose network it programs; without one it programs nothing.
    pub(super) host: Option<Namespace>,
}

/// An agent that runs.
pub(super) struct Member {
    pub(super) ip: Ipv4Addr,
    pub(super) folder: PathBuf,
    /// What is spawned here runs on its host.
    pub(super) handle: Handle,
    agent: AgentHost,
    has_tunnels: bool,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// The master and the agents.
pub(super) struct Cluster {
    master: MasterHost,
    pub(super) address: SocketAddrV4,
    pub(super) members: Vec<Member>,
    folder: PathBuf,
    firewall: FirewallKind,
}

impl Cluster {
    /// A master at `listen`, with its files and those of the agents to come in `folder`.
    pub(super) fn start(
        config: MasterConfig,
        listen: SocketAddrV4,
        folder: &Path,
        firewall: FirewallKind,
    ) -> Result<Self, Failure> {
        let transport = bind(listen).map_err(Failure::new)?;
        let address = transport.advertise;
        let store = FileStore::open(&folder.join("master"))
            .map_err(|error| Failure::new(error.to_string()))?;
        let options = MasterOptions {
            settings: Settings {
                network: Arc::new(config.network),
                reuse_after: config.reuse_after,
            },
            store: Box::new(store),
            leading: None,
            reread: None,
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
        };
        let master = MasterHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start the thread of the store: {error}")))?;
        Ok(Self { master, address, members: Vec::new(), folder: folder.to_owned(), firewall })
    }

    /// Starts an agent.
    pub(super) async fn add(&mut self, seat: Seat) -> Result<(), Failure> {
        let ip = *seat.address.ip();
        let folder = self.folder.join(format!("agent-{ip}"));
        let has_tunnels = seat.host.is_some();
        let options = self.options(&folder, has_tunnels).map_err(Failure::new)?;
        let (started, start) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let work = move || run(seat, options, started, ended);
        let thread = Builder::new()
            .name("overlay-host".to_owned())
            .spawn(work)
            .map_err(|error| Failure::new(format!("start the thread of an agent: {error}")))?;
        let (agent, handle) = match start.await {
            Ok(started) => started.map_err(Failure::new)?,
            Err(_) => return Err(Failure::new(format!("agent {ip}: its thread has ended"))),
        };
        self.members.push(Member { ip, folder, handle, agent, has_tunnels, end, thread });
        Ok(())
    }

    fn options(&self, folder: &Path, has_tunnels: bool) -> Result<AgentOptions, String> {
        let mut config = AgentConfig::new(folder.join("cni"));
        // An engine of this machine is on no host of the demo.
        config.options.docker_bridge = false;
        if has_tunnels {
            config.port_mapper = false;
            config.cni_data_dir = Some(folder.join("leases"));
            config.dataplane.firewall = self.firewall;
            config.dataplane.state_dir = folder.join("state");
        } else {
            config.dataplane.kind = DataplaneKind::External;
            config.dataplane.refuse_collisions = false;
        }
        let mut settings = agent::Settings::from(&config);
        settings.removes_docker_networks = false;
        let docker = Docker::new(config.docker, settings.options.command_timeout);
        let data_dir = config.cni_data_dir;
        let cni = CniDirectory::new(config.cni_dir, data_dir, Vec::new(), config.port_mapper);
        cni.prepare().map_err(|error| error.to_string())?;
        let master = self.address.to_string().parse();
        Ok(AgentOptions {
            settings,
            tunnels: TunnelOptions::new(&config.dataplane),
            master: Detector::Fixed(master.map_err(|error| format!("master: {error}"))?),
            cni,
            docker,
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
        })
    }

    /// The state that the master shows when every agent has told it what became of every overlay,
    /// and has programmed the way to all others.
    pub(super) async fn settle(&self, progress: &Progress) -> Result<State, Failure> {
        let wait = async {
            let state = self.wait_until_reported(progress).await?;
            for member in &self.members {
                while !member.is_settled(self.members.len()).await? {
                    tokio::time::sleep(POLL).await;
                }
            }
            Ok(state)
        };
        let count = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        let deadline = DEADLINE + DEADLINE_OF_AGENT.saturating_mul(count);
        match tokio::time::timeout(deadline, wait).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(format!(
                "the agents were not ready within {deadline:?}: run it with --log debug"
            ))),
        }
    }

    async fn wait_until_reported(&self, progress: &Progress) -> Result<State, Failure> {
        let mut told = BTreeMap::new();
        loop {
            let state = match self.master.ask(Request::State).await {
                Ok(Reply::State(state)) => state,
                Ok(_) => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                Err(stopped) => return Err(Failure::new(format!("master: {stopped}"))),
            };
            tell_news(&state, &mut told, progress);
            let is_settled =
                |status: &Option<Status>| matches!(status, Some(Status::Ok | Status::Failed(_)));
            let mut overlays = state.agents.iter().flat_map(|agent| &agent.overlays);
            if state.agents.len() == self.members.len()
                && overlays.all(|overlay| is_settled(&overlay.status))
            {
                return Ok(state);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What each agent has written.
    pub(super) fn cni_files(&self) -> CniFiles {
        self.members.iter().map(|member| (member.ip, member.cni_files())).collect()
    }

    pub(super) async fn stop(self) {
        for Member { agent, end, thread, .. } in self.members {
            agent.stop().await;
            // It fails only if the thread has ended.
            let _ = end.send(());
            let _ = thread.join();
        }
        self.master.stop().await;
    }
}

impl Member {
    /// Whether it has nothing to do any more, in a cluster of `count`.
    async fn is_settled(&self, count: usize) -> Result<bool, Failure> {
        if !self.has_tunnels {
            return Ok(true);
        }
        match self.agent.ask(agent::Request::Health).await {
            Ok(agent::Reply::Health(health)) => Ok(health.dataplane.is_some_and(|tunnel| {
                tunnel.peers == Some(count) && tunnel.status != "configuring"
            })),
            Ok(_) => Ok(false),
            Err(stopped) => Err(Failure::new(format!("agent {}: {stopped}", self.ip))),
        }
    }

    /// The CNI configurations that it has written, by the names of their files.
    pub(super) fn cni_files(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.folder.join("cni")).into_iter().flatten().flatten();
        let read = |entry: std::fs::DirEntry| {
            let content = std::fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), content))
        };
        entries.filter_map(read).collect()
    }
}

type Started = Result<(AgentHost, Handle), String>;

/// The thread of an agent, until it is told to end.
fn run(
    seat: Seat,
    options: AgentOptions,
    started: oneshot::Sender<Started>,
    ended: oneshot::Receiver<()>,
) {
    let ip = *seat.address.ip();
    let enter = || -> io::Result<_> {
        seat.host.as_ref().map_or(Ok(()), Namespace::enter)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let runtime = match enter() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(format!("agent {ip}: start its runtime: {error}")));
            return;
        }
    };
    runtime.block_on(async {
        let start = || {
            let agent = AgentHost::start(options, bind(seat.address)?);
            agent.map_err(|error| format!("agent {ip}: start its thread: {error}"))
        };
        let agent = start();
        if started.send(agent.map(|agent| (agent, Handle::current()))).is_ok() {
            // Also when it is dropped.
            let _ = ended.await;
        }
    });
}

fn bind(address: SocketAddrV4) -> Result<Libprocess, String> {
    let server =
        Server::bind(address).map_err(|error| format!("listen on {}: {error}", address.ip()))?;
    let options = ServerOptions { require_peer_address_match: true, ..ServerOptions::default() };
    Ok(Libprocess { advertise: server.local_addr(), server, options })
}

/// Tells what changed since the last look, a line for each agent.
fn tell_news(state: &State, told: &mut BTreeMap<Ipv4Addr, String>, progress: &Progress) {
    for agent in &state.agents {
        let statuses: Vec<&str> = agent
            .overlays
            .iter()
            .map(|overlay| match &overlay.status {
                None => "assigned",
                Some(Status::Configuring) => "configuring",
                Some(Status::Ok) => "ok",
                Some(Status::Failed(_)) => "failed",
            })
            .collect();
        let line = format!("agent {} registered: {}", agent.ip, statuses.join(", "));
        if told.get(&agent.ip) != Some(&line) {
            progress.step(&line);
            told.insert(agent.ip, line);
        }
    }
}

//! A master and agents in one process. Every agent has its own thread and runtime, so that all
//! sockets and subprocesses of the agent are in the network namespace of its host.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use libprocess::{Server, ServerOptions, TcpTransport};
use overlay_config::{AgentConfig, DataplaneKind, FirewallKind, MasterConfig};
use overlay_engine::agent;
use overlay_engine::master::{Reply, Request, Settings};
use overlay_linux::cni::CniDirectory;
use overlay_linux::docker::Docker;
use overlay_store::FileStore;
use overlay_types::protocol::{MasterKind, State, Status};
use overlay_zookeeper::detector::Detector;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::namespace::Namespace;
use super::progress::Progress;
use crate::cli::Failure;
use crate::runtime::{
    AccessControl, AddressRemedy, AgentHost, AgentOptions, DataplaneOptions, MasterHost,
    MasterOptions, Metrics, ProgressOptions,
};

/// Timeout of the cluster to become ready, and the addition for each agent. Most of it is for busy
/// machines.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
const READY_TIMEOUT_PER_AGENT: Duration = Duration::from_secs(2);
/// Interval between two queries of the state of the master and the agents.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The CNI configurations of each agent, by the names of their files.
pub(super) type CniFiles = BTreeMap<Ipv4Addr, BTreeMap<String, String>>;

/// The address and the host of an agent.
pub(super) struct AgentLocation {
    pub(super) address: SocketAddrV4,
    /// The host that the agent programs. Without a host, the agent programs nothing.
    pub(super) host: Option<Namespace>,
}

/// A running agent.
pub(super) struct RunningAgent {
    pub(super) ip: Ipv4Addr,
    pub(super) folder: PathBuf,
    /// Tasks that are spawned here run on the agent's host.
    pub(super) handle: Handle,
    agent: AgentHost,
    has_host: bool,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// The running master and agents.
pub(super) struct Cluster {
    master: MasterHost,
    pub(super) address: SocketAddrV4,
    pub(super) agents: Vec<RunningAgent>,
    folder: PathBuf,
    firewall: FirewallKind,
}

impl Cluster {
    /// Starts a master at `listen`. The files of the master and of all agents are in `folder`.
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
            credentials: None,
            settings: Settings {
                network: Arc::new(config.network),
                reuse_after: config.reuse_after,
                kind: MasterKind::Program,
                authentication: None,
            },
            store: Box::new(store),
            leading: None,
            leader: None,
            lease: None,
            progress: ProgressOptions::default(),
            read_config: None,
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
            access: AccessControl::default(),
        };
        let master = MasterHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start the thread of the store: {error}")))?;
        Ok(Self { master, address, agents: Vec::new(), folder: folder.to_owned(), firewall })
    }

    /// Starts an agent.
    pub(super) async fn add_agent(&mut self, location: AgentLocation) -> Result<(), Failure> {
        let ip = *location.address.ip();
        let folder = self.folder.join(format!("agent-{ip}"));
        let has_host = location.host.is_some();
        let options =
            self.options(&folder, location.address.port(), has_host).map_err(Failure::new)?;
        let (started, start) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let work = move || run_agent(location, options, started, ended);
        let thread = Builder::new()
            .name("overlay-host".to_owned())
            .spawn(work)
            .map_err(|error| Failure::new(format!("start the thread of an agent: {error}")))?;
        let (agent, handle) = match start.await {
            Ok(started) => started.map_err(Failure::new)?,
            Err(_) => return Err(Failure::new(format!("agent {ip}: its thread has ended"))),
        };
        self.agents.push(RunningAgent { ip, folder, handle, agent, has_host, end, thread });
        Ok(())
    }

    fn options(&self, folder: &Path, port: u16, has_host: bool) -> Result<AgentOptions, String> {
        let mut config = AgentConfig::new(folder.join("cni"));
        // The Docker engine of this machine runs on no host of the demo.
        config.options.docker_bridge = false;
        if has_host {
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
            credential: None,
            settings,
            dataplane: DataplaneOptions::new(
                &config.dataplane,
                [port].into(),
                config.verify_interval,
            ),
            master: Detector::Fixed(master.map_err(|error| format!("master: {error}"))?),
            cni,
            docker,
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
            access: AccessControl::default(),
            address_remedy: AddressRemedy::Flag,
        })
    }

    /// Waits until every agent has reported the status of every overlay, and has programmed the
    /// tunnels to all other agents. Returns the state of the master.
    pub(super) async fn wait_until_ready(&self, progress: &Progress) -> Result<State, Failure> {
        let ready = async {
            let state = self.wait_until_reported(progress).await?;
            for agent in &self.agents {
                while !agent.is_ready(self.agents.len()).await? {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
            Ok(state)
        };
        let count = u32::try_from(self.agents.len()).unwrap_or(u32::MAX);
        let deadline = READY_TIMEOUT + READY_TIMEOUT_PER_AGENT.saturating_mul(count);
        match tokio::time::timeout(deadline, ready).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(format!(
                "the agents were not ready within {deadline:?}: run it with --log debug"
            ))),
        }
    }

    async fn wait_until_reported(&self, progress: &Progress) -> Result<State, Failure> {
        let mut reported = BTreeMap::new();
        loop {
            let state = match self.master.request(Request::State).await {
                Ok(Reply::State(state)) => state,
                Ok(_) => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    continue;
                }
                Err(stopped) => return Err(Failure::new(format!("master: {stopped}"))),
            };
            report_changes(&state, &mut reported, progress);
            let is_final =
                |status: &Option<Status>| matches!(status, Some(Status::Ok | Status::Failed(_)));
            let mut overlays = state.agents.iter().flat_map(|agent| &agent.overlays);
            if state.agents.len() == self.agents.len()
                && overlays.all(|overlay| is_final(&overlay.status))
            {
                return Ok(state);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns the CNI configurations of all agents.
    pub(super) fn cni_files(&self) -> CniFiles {
        self.agents.iter().map(|agent| (agent.ip, agent.cni_files())).collect()
    }

    pub(super) async fn stop(self) {
        for RunningAgent { agent, end, thread, .. } in self.agents {
            agent.stop().await;
            // Sending fails only if the thread has ended.
            let _ = end.send(());
            let _ = thread.join();
        }
        self.master.stop().await;
    }
}

impl RunningAgent {
    /// Returns whether the agent has programmed the tunnels in a cluster of `count` agents.
    async fn is_ready(&self, count: usize) -> Result<bool, Failure> {
        if !self.has_host {
            return Ok(true);
        }
        match self.agent.request(agent::Request::Health).await {
            Ok(agent::Reply::Health(health)) => Ok(health.dataplane.is_some_and(|dataplane| {
                dataplane.peers == Some(count) && dataplane.status != "configuring"
            })),
            Ok(_) => Ok(false),
            Err(stopped) => Err(Failure::new(format!("agent {}: {stopped}", self.ip))),
        }
    }

    /// Returns the CNI configurations that the agent has written, by the names of their files.
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

/// Runs an agent on the calling thread, until `ended` is sent or dropped.
fn run_agent(
    location: AgentLocation,
    options: AgentOptions,
    started: oneshot::Sender<Started>,
    ended: oneshot::Receiver<()>,
) {
    let ip = *location.address.ip();
    let enter = || -> io::Result<_> {
        location.host.as_ref().map_or(Ok(()), Namespace::enter)?;
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
            let agent = AgentHost::start(options, bind(location.address)?);
            agent.map_err(|error| format!("agent {ip}: start its thread: {error}"))
        };
        let agent = start();
        if started.send(agent.map(|agent| (agent, Handle::current()))).is_ok() {
            // An error means that the sender was dropped, which ends the agent too.
            let _ = ended.await;
        }
    });
}

fn bind(address: SocketAddrV4) -> Result<TcpTransport, String> {
    let server =
        Server::bind(address).map_err(|error| format!("listen on {}: {error}", address.ip()))?;
    let options = ServerOptions { require_peer_address_match: true, ..ServerOptions::default() };
    Ok(TcpTransport { advertise: server.local_addr(), server, options })
}

/// Reports the agents whose status differs from the last reported one.
fn report_changes(state: &State, reported: &mut BTreeMap<Ipv4Addr, String>, progress: &Progress) {
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
        if reported.get(&agent.ip) != Some(&line) {
            progress.step(&line);
            reported.insert(agent.ip, line);
        }
    }
}

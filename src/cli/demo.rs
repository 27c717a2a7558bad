//! `mesos-overlay demo`: a whole cluster in one process, over real connections, and nothing of it
//! left afterwards.
//!
//! It runs what the other subcommands run: the file store, the libprocess transport, the CNI writer
//! and `docker`. Only the first agent uses Docker, since one engine is one host.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Failure;
use super::host::{EndSignals, raise_descriptor_limit, runtime};
use super::output::{Form, Output};
use super::state::print_agents;
use crate::addr::OverlayName;
use crate::agent;
use crate::cni::CniDirectory;
use crate::config::{AgentConfig, MasterConfig, parse_master};
use crate::detector::Detector;
use crate::docker::Docker;
use crate::master::{Reply, Request, Settings};
use crate::protocol::{AgentOptions, State, Status};
use crate::runtime::{AgentHost, MasterHost, MasterOptions, Metrics, TunnelOptions};
use crate::store::FileStore;
use crate::transport::libprocess::{Libprocess, Server, ServerOptions};
use crate::{runtime as hosts, wire};

/// The documented example.
const NETWORK_FILE: &str = "docs/network.json";
const NETWORK: &str = include_str!("../../docs/network.json");
/// Longest time that the cluster may take. An engine that hangs takes the whole time of a command.
const DEADLINE: Duration = Duration::from_secs(40);
/// How often the master is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// See it work: a master and some agents on this machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay demo
  mesos-overlay demo --agents 10 --json

Everything runs in one process on loopback addresses, with its files in a temporary directory. The
first agent makes Docker networks if a Docker engine answers; they are removed again.")]
pub(super) struct DemoCommand {
    /// How many agents
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENTS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=250)
    )]
    agents: u16,
    #[command(flatten)]
    form: Form,
}

/// What the demo came to, for programs.
#[derive(Serialize)]
struct Shown<'a> {
    /// As the master shows it.
    state: Box<RawValue>,
    /// The CNI configurations of each agent, by the names of their files.
    cni: &'a CniFiles,
}

impl DemoCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let (config, _) =
            parse_master(NETWORK_FILE, NETWORK).map_err(|error| Failure::new(error.to_string()))?;
        let directory = tempfile::Builder::new()
            .prefix("mesos-overlay-demo.")
            .tempdir()
            .map_err(|error| Failure::new(format!("make a temporary directory: {error}")))?;
        let result = runtime()?.block_on(self.show(config, directory.path()));
        directory
            .close()
            .map_err(|error| Failure::new(format!("remove the temporary directory: {error}")))?;
        result
    }

    async fn show(&self, config: MasterConfig, directory: &Path) -> Result<(), Failure> {
        let mut signals = EndSignals::watch()?;
        let progress = Progress::start(&self.form);
        let overlays: Vec<OverlayName> =
            config.network.overlays.iter().map(|overlay| overlay.name.clone()).collect();
        let docker =
            Docker::new(AgentConfig::DOCKER_DEFAULT, AgentOptions::COMMAND_TIMEOUT_DEFAULT);
        let networks = DockerNetworks::look(docker.clone(), &overlays).await;
        let mut cluster = Cluster::start(config, directory)?;
        let result = tokio::select! {
            result = cluster.run(self.agents, docker, &progress) => result,
            () = signals.received() => Err(Failure::new("ended before it was done")),
        };
        progress.end();
        let cni = cluster.cni_files();
        cluster.stop().await;
        networks.remove_ours().await;
        let state = result?;
        let mut output = Output::new();
        if self.form.json {
            let state = wire::print_json(&wire::encode_state(&state));
            let state = RawValue::from_string(state)
                .map_err(|error| Failure::new(format!("print the state: {error}")))?;
            output.json(&Shown { state, cni: &cni })?;
        } else {
            report(&mut output, &state, &cni)?;
        }
        output.finish()
    }
}

/// The master and the agents.
struct Cluster {
    master: MasterHost,
    address: SocketAddrV4,
    agents: Vec<(Ipv4Addr, PathBuf, AgentHost)>,
    directory: PathBuf,
}

impl Cluster {
    fn start(config: MasterConfig, directory: &Path) -> Result<Self, Failure> {
        let transport = listen(Ipv4Addr::LOCALHOST)?;
        let address = transport.advertise;
        let store = FileStore::open(&directory.join("master"))
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
        Ok(Self { master, address, agents: Vec::new(), directory: directory.to_owned() })
    }

    /// Adds the agents, the first with Docker, and waits until all is reported.
    async fn run(
        &mut self,
        agents: u16,
        docker: Docker,
        progress: &Progress,
    ) -> Result<State, Failure> {
        progress.step(&format!("master at {}, its state in a file", self.address));
        for number in 0..agents {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + u32::from(number));
            self.add_agent(ip, number == 0, docker.clone())?;
        }
        self.wait_until_reported(progress).await
    }

    fn add_agent(&mut self, ip: Ipv4Addr, has_docker: bool, docker: Docker) -> Result<(), Failure> {
        let transport = listen(ip)?;
        let cni_dir = self.directory.join(format!("agent-{ip}")).join("cni");
        let config = AgentConfig::new(cni_dir.clone());
        let cni = CniDirectory::new(cni_dir.clone(), None, Vec::new(), config.port_mapper);
        cni.prepare().map_err(|error| Failure::new(error.to_string()))?;
        let master = self
            .address
            .to_string()
            .parse()
            .map_err(|error| Failure::new(format!("master: {error}")))?;
        let options = hosts::AgentOptions {
            settings: agent::Settings {
                options: AgentOptions { docker_bridge: has_docker, ..config.options },
                max_configuration_attempts: config.max_configuration_attempts,
                verify_interval: config.verify_interval,
                removes_docker_networks: false,
                tunnel: agent::TunnelSettings::NONE,
            },
            tunnels: TunnelOptions::new(&config.dataplane),
            master: Detector::Fixed(master),
            cni,
            docker,
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
        };
        let host = AgentHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start an agent: {error}")))?;
        self.agents.push((ip, cni_dir, host));
        Ok(())
    }

    /// The state that the master shows when every agent has told it what became of every overlay.
    async fn wait_until_reported(&self, progress: &Progress) -> Result<State, Failure> {
        let wait = async {
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
                let is_settled = |status: &Option<Status>| {
                    matches!(status, Some(Status::Ok | Status::Failed(_)))
                };
                let mut overlays = state.agents.iter().flat_map(|agent| &agent.overlays);
                if state.agents.len() == self.agents.len()
                    && overlays.all(|overlay| is_settled(&overlay.status))
                {
                    return Ok(state);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(format!(
                "the agents did not report within {DEADLINE:?}: run it with --log debug"
            ))),
        }
    }

    /// The CNI configurations of each agent, by the names of their files.
    fn cni_files(&self) -> BTreeMap<Ipv4Addr, BTreeMap<String, String>> {
        let files = |directory: &Path| {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let read = |entry: std::fs::DirEntry| {
                let content = std::fs::read_to_string(entry.path()).ok()?;
                Some((entry.file_name().to_string_lossy().into_owned(), content))
            };
            entries.filter_map(read).collect()
        };
        self.agents.iter().map(|(ip, directory, _)| (*ip, files(directory))).collect()
    }

    async fn stop(self) {
        for (_, _, agent) in self.agents {
            agent.stop().await;
        }
        self.master.stop().await;
    }
}

fn listen(ip: Ipv4Addr) -> Result<Libprocess, Failure> {
    let any_port = SocketAddrV4::new(ip, 0);
    let server =
        Server::bind(any_port).map_err(|error| Failure::new(format!("listen on {ip}: {error}")))?;
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

/// The Docker networks that were not there before the demo.
struct DockerNetworks {
    docker: Docker,
    ours: Vec<OverlayName>,
}

impl DockerNetworks {
    async fn look(docker: Docker, overlays: &[OverlayName]) -> Self {
        let mut ours = Vec::new();
        for name in overlays {
            // Where no engine answers, there is nothing to remove afterwards either.
            if matches!(docker.exists(name).await, Ok(false)) {
                ours.push(name.clone());
            }
        }
        Self { docker, ours }
    }

    async fn remove_ours(self) {
        for name in &self.ours {
            if let Err(error) = self.docker.remove(name).await {
                let _ = writeln!(io::stderr(), "mesos-overlay: {error}");
            }
        }
    }
}

/// What is going on, on stderr: a spinner on a terminal, plain lines elsewhere, nothing for
/// programs.
enum Progress {
    Spinner(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    fn start(form: &Form) -> Self {
        if form.json {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message("starting a master and its agents");
        Self::Spinner(bar)
    }

    fn step(&self, line: &str) {
        match self {
            Self::Spinner(bar) => bar.println(format!("  {line}")),
            Self::Lines => drop(writeln!(io::stderr(), "  {line}")),
            Self::Silent => {}
        }
    }

    fn end(&self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}

type CniFiles = BTreeMap<Ipv4Addr, BTreeMap<String, String>>;

fn report(output: &mut Output, state: &State, cni: &CniFiles) -> Result<(), Failure> {
    print_agents(output, state, false, None)?;
    output.line("")?;
    for (ip, files) in cni {
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        output
            .line(format_args!("agent {ip} wrote the CNI configurations {}", names.join(", ")))?;
    }
    if let Some((name, content)) = cni.values().flatten().next() {
        output.line(format_args!("\n{name} of the first agent:\n{content}"))?;
    }
    output.line(FOR_REAL)
}

const FOR_REAL: &str = "
All of it is gone again. To run it for real:
  mesos-overlay master --config docs/network.json              on a master
  mesos-overlay agent --master 10.0.0.1:5050 \\
                      --cni-dir /var/lib/mesos/cni             on every agent
  mesos-overlay state --master 10.0.0.1:5050                   to see who has what";

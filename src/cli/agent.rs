//! `mesos-overlay agent`.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use super::host::{
    Addresses, EndSignals, fitted, raise_descriptor_limit, read_config, read_text, runtime,
};
use crate::addr::{Ensemble, EnsembleError};
use crate::agent::Settings;
use crate::cni::CniDirectory;
use crate::config::{AgentConfig, DataplaneKind, parse_agent};
use crate::detector::{Detector, FixedMaster, follow};
use crate::docker::Docker;
use crate::limits::Limits;
use crate::runtime::{AgentHost, AgentOptions, Metrics, TunnelOptions};
use crate::warnings::Warnings;
use crate::zookeeper::SESSION_TIMEOUT_DEFAULT;

/// How long the start waits to learn who leads, for the sake of choosing an address of its own.
const DETECTION: Duration = Duration::from_secs(3);

/// Run an agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay agent --master 10.0.0.1:5050 --cni-dir /var/lib/mesos/cni
  mesos-overlay agent --master zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay --cni-dir /var/lib/mesos/cni
  mesos-overlay agent --config agent.json

Flags win over the configuration file. It ends cleanly at SIGTERM; the container networks stay.")]
pub(super) struct AgentCommand {
    /// The agent_config
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The master to register with; or, where several elect one,
    /// zk://[USER:PASSWORD@]HOST:PORT,…/PATH of the election, of our masters or of Mesos; or
    /// file:///PATH of a file that holds one of these
    // It may hold a password, which the help is not to show.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    /// Where to write CNI configurations: the Mesos agent's --network_cni_config_dir
    #[arg(
        long,
        env = "MESOS_OVERLAY_CNI_DIR",
        value_name = "DIR",
        required_unless_present = "config"
    )]
    cni_dir: Option<PathBuf>,
    /// Who makes the tunnels to other agents: vxlan, this one; or external, somebody else, such as
    /// dcos-net [default: vxlan]
    #[arg(long, env = "MESOS_OVERLAY_DATAPLANE", value_name = "WHO", value_enum)]
    dataplane: Option<Dataplane>,
    /// Where to accept the master and HTTP requests
    #[arg(
        long,
        env = "MESOS_OVERLAY_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:5051"
    )]
    listen: SocketAddrV4,
    #[command(flatten)]
    addresses: Addresses,
}

/// Who makes the tunnels.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dataplane {
    Vxlan,
    External,
}

impl AgentCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let config = self.configuration()?;
        let settings = Settings::from(&config);
        let tunnels = TunnelOptions::new(&config.dataplane);
        let cni = CniDirectory::new(
            config.cni_dir,
            config.cni_data_dir,
            config.cni_plugins_dir,
            config.port_mapper,
        );
        let master = config
            .master
            .ok_or_else(|| Failure::new("no master: give --master IP:PORT or the key 'master'"))?;
        let master =
            Master::read(&master).map_err(|failure| Failure::new(format!("master: {failure}")))?;
        cni.prepare().map_err(|error| Failure::new(error.to_string()))?;
        let docker = Docker::new(config.docker, settings.options.command_timeout);
        let metrics = Metrics::new();
        let warnings = metrics.warnings().clone();
        let limits = fitted(config.limits, &warnings);
        let options = move |master| AgentOptions {
            settings,
            master,
            cni,
            docker,
            tunnels,
            seed: fastrand::u64(..),
            metrics,
        };
        let transport = (self.listen, &self.addresses, limits);
        runtime()?.block_on(serve(transport, (master, warnings), options))
    }

    fn configuration(&self) -> Result<AgentConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => read_config(path, parse_agent)?,
            None => AgentConfig::new(PathBuf::new()),
        };
        if let Some(master) = &self.master {
            config.master = Some(master.clone());
        }
        if let Some(dataplane) = self.dataplane {
            config.dataplane.kind = match dataplane {
                Dataplane::Vxlan => DataplaneKind::Vxlan,
                Dataplane::External => DataplaneKind::External,
            };
        }
        if let Some(cni_dir) = &self.cni_dir {
            config
                .set_cni_dir(cni_dir)
                .map_err(|reason| Failure::usage(format!("--cni-dir: {reason}")))?;
        }
        Ok(config)
    }
}

/// How the master is found.
enum Master {
    Fixed(FixedMaster),
    Elected(Ensemble),
}

impl Master {
    fn read(text: &str) -> Result<Self, Failure> {
        let Some(path) = text.strip_prefix("file://") else { return Self::parse(text) };
        let content = read_text(Path::new(path))?;
        Self::parse(content.trim()).map_err(|failure| Failure::new(format!("{path}: {failure}")))
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with("file://") {
            let message = "it names a file again: write zk://… or IP:PORT into it";
            return Err(Failure::new(message));
        }
        if text.starts_with("zk://") {
            let ensemble = text.parse().map_err(|error: EnsembleError| error.to_string());
            return ensemble.map(Self::Elected).map_err(Failure::new);
        }
        text.parse().map(Self::Fixed).map_err(|error| Failure::new(format!("{error}")))
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(master) => master.fmt(f),
            Self::Elected(ensemble) => ensemble.fmt(f),
        }
    }
}

/// Finds the master, for as long as the second of the result is polled. Third, where it is now, if
/// that is known soon.
async fn detect(
    master: Master,
    warnings: Warnings,
) -> (Detector, Pin<Box<dyn Future<Output = Infallible>>>, Option<SocketAddrV4>) {
    match master {
        Master::Fixed(master) => {
            let now = master.resolve().await.ok();
            (Detector::Fixed(master), Box::pin(std::future::pending()), now)
        }
        Master::Elected(ensemble) => {
            let (leader, work) = follow(ensemble, SESSION_TIMEOUT_DEFAULT, warnings);
            let mut work = Box::pin(work);
            let mut found = leader.clone();
            let now = tokio::select! {
                now = found.wait_for(Option::is_some) => now.ok().and_then(|now| *now),
                never = &mut work => match never {},
                () = tokio::time::sleep(DETECTION) => None,
            };
            (Detector::Watched(leader), work, now)
        }
    }
}

async fn serve(
    (listen, addresses, limits): (SocketAddrV4, &Addresses, Limits),
    (master, warnings): (Master, Warnings),
    options: impl FnOnce(Detector) -> AgentOptions,
) -> Result<(), Failure> {
    let mut signals = EndSignals::watch()?;
    let name = master.to_string();
    // Of several addresses the one from which the master is reached; it need not be there yet.
    let (master, detecting, towards) = detect(master, warnings).await;
    let transport = addresses.bind(listen, towards, limits)?;
    let advertise = transport.advertise;
    log::info!(
        "overlay agent at {advertise}, master {name}: see http://{advertise}/overlay-agent/overlay"
    );
    let mut host = AgentHost::start(options(master), transport)
        .map_err(|error| Failure::new(format!("start the thread of the dataplane: {error}")))?;
    tokio::select! {
        () = signals.received() => {
            host.stop().await;
            Ok(())
        }
        () = host.stopped() => Err(Failure::new("the agent stopped by itself: this is a bug")),
        never = detecting => match never {},
    }
}

//! `mesos-overlay agent`.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::host::{Addresses, EndSignals, raise_descriptor_limit, read_config, runtime};
use crate::agent::Settings;
use crate::cni::CniDirectory;
use crate::config::{AgentConfig, parse_agent};
use crate::detector::{Detector, FixedMaster};
use crate::docker::Docker;
use crate::runtime::{AgentHost, AgentOptions, Metrics};

/// Run an agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay agent --master 10.0.0.1:5050 --cni-dir /var/lib/mesos/cni
  mesos-overlay agent --config agent.json

Flags win over the configuration file. It ends cleanly at SIGTERM; the container networks stay.")]
pub(super) struct AgentCommand {
    /// The agent_config
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The master to register with
    // It may hold a password, which the help is not to show.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "IP:PORT")]
    master: Option<String>,
    /// Where to write CNI configurations: the Mesos agent's --network_cni_config_dir
    #[arg(
        long,
        env = "MESOS_OVERLAY_CNI_DIR",
        value_name = "DIR",
        required_unless_present = "config"
    )]
    cni_dir: Option<PathBuf>,
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

impl AgentCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let config = self.configuration()?;
        let cni = CniDirectory::new(
            config.cni_dir,
            config.cni_data_dir,
            config.cni_plugins_dir,
            config.port_mapper,
        );
        cni.prepare().map_err(|error| Failure::new(error.to_string()))?;
        let master: FixedMaster = config
            .master
            .ok_or_else(|| Failure::new("no master: give --master IP:PORT or the key 'master'"))?
            .parse()
            .map_err(|error| Failure::new(format!("master: {error}")))?;
        let settings = Settings {
            options: config.options,
            max_configuration_attempts: config.max_configuration_attempts,
            verify_interval: config.verify_interval,
            removes_docker_networks: true,
        };
        let docker = Docker::new(config.docker, settings.options.command_timeout);
        runtime()?.block_on(serve(self.listen, &self.addresses, settings, master, cni, docker))
    }

    fn configuration(&self) -> Result<AgentConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => read_config(path, parse_agent)?,
            None => AgentConfig::new(PathBuf::new()),
        };
        if let Some(master) = &self.master {
            config.master = Some(master.clone());
        }
        if let Some(cni_dir) = &self.cni_dir {
            config.cni_dir = std::path::absolute(cni_dir)
                .map_err(|error| Failure::new(format!("--cni-dir: {error}")))?;
        }
        Ok(config)
    }
}

async fn serve(
    listen: SocketAddrV4,
    addresses: &Addresses,
    settings: Settings,
    master: FixedMaster,
    cni: CniDirectory,
    docker: Docker,
) -> Result<(), Failure> {
    let mut signals = EndSignals::watch()?;
    // Of several addresses the one from which the master is reached; it need not be there yet.
    let towards = master.resolve().await.ok();
    let transport = addresses.bind(listen, towards)?;
    let advertise = transport.advertise;
    log::info!(
        "overlay agent at {advertise}, master {master}: see http://{advertise}/overlay-agent/overlay"
    );
    let master = Detector::Fixed(master);
    let (seed, metrics) = (fastrand::u64(..), Metrics::new());
    let options = AgentOptions { settings, master, cni, docker, seed, metrics };
    let mut host = AgentHost::start(options, transport);
    tokio::select! {
        () = signals.received() => {
            host.stop().await;
            Ok(())
        }
        () = host.stopped() => Err(Failure::new("the agent stopped by itself: this is a bug")),
    }
}

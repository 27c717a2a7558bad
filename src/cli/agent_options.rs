//! Flags of the configuration of an agent. They have precedence over its file, and mean the same in
//! every subcommand that reads it.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use overlay_config::AgentConfig;

use super::Failure;
use super::master_address::AgentAddress;
use super::process::read_agent_config;

/// The file of an agent's configuration, and the flag that can replace it.
#[derive(Debug, Args)]
pub(super) struct AgentConfigFile {
    /// The agent_config
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The directory for CNI configurations: the Mesos agent's --network_cni_config_dir; otherwise
    /// the key cni_dir
    #[arg(
        long,
        env = "MESOS_OVERLAY_CNI_DIR",
        value_name = "DIR",
        required_unless_present = "config"
    )]
    pub(super) cni_dir: Option<PathBuf>,
}

impl AgentConfigFile {
    /// Reads the file, or returns the default configuration without a directory.
    pub(super) fn read(&self) -> Result<AgentConfig, Failure> {
        read_agent_config(self.config.as_deref())
    }
}

/// The agent of this host, for subcommands that examine it.
#[derive(Debug, Args)]
pub(super) struct LocalAgentOptions {
    /// The agent_config; otherwise that of the running agent or of a default path, as for `doctor`
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address of the local agent; otherwise that of the running agent, or 127.0.0.1:5051
    #[arg(long, env = "MESOS_OVERLAY_AGENT_ADDRESS", value_name = "IP:PORT")]
    pub(super) agent: Option<AgentAddress>,
}

/// What an agent uses on its host besides the CNI plugins.
#[derive(Debug, Default, Args)]
pub(super) struct AgentHostOptions {
    /// The directory of the agent's lock, firewall rules and former host settings; otherwise the
    /// key state_dir, or /var/lib/mesos-overlay
    #[arg(long, env = "MESOS_OVERLAY_STATE_DIR", value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) docker: DockerOptions,
}

/// Whether and how an agent uses Docker.
#[derive(Debug, Default, Args)]
pub(super) struct DockerOptions {
    /// The docker program of the agent; otherwise the key docker, or the program in PATH
    #[arg(long, env = "MESOS_OVERLAY_DOCKER", value_name = "PROGRAM")]
    pub(super) docker: Option<PathBuf>,
    /// The agent needs no Docker networks, as with the key network_config.docker_bridge set to
    /// false
    #[arg(
        long,
        env = "MESOS_OVERLAY_NO_DOCKER",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(super) no_docker: bool,
}

impl AgentHostOptions {
    /// Replaces the values in `config` for which there are flags.
    pub(super) fn apply(&self, config: &mut AgentConfig) -> Result<(), Failure> {
        let here = |path: &Path| std::path::absolute(path);
        self.apply_with(config, here)
            .map_err(|(flag, error)| Failure::usage(format!("{flag}: {error}")))
    }

    /// As [`Self::apply`], with a function that makes paths absolute. It gets no name of a program
    /// that is looked up in PATH.
    pub(super) fn apply_with<E>(
        &self,
        config: &mut AgentConfig,
        absolute: impl Fn(&Path) -> Result<PathBuf, E>,
    ) -> Result<(), (&'static str, E)> {
        if let Some(state_dir) = &self.state_dir {
            let state_dir = absolute(state_dir).map_err(|error| ("--state-dir", error))?;
            config.dataplane.state_dir = state_dir;
        }
        self.docker.apply_with(config, absolute)
    }
}

impl DockerOptions {
    /// As [`AgentHostOptions::apply`].
    pub(super) fn apply(&self, config: &mut AgentConfig) -> Result<(), Failure> {
        self.apply_with(config, |path| std::path::absolute(path))
            .map_err(|(flag, error)| Failure::usage(format!("{flag}: {error}")))
    }

    fn apply_with<E>(
        &self,
        config: &mut AgentConfig,
        absolute: impl Fn(&Path) -> Result<PathBuf, E>,
    ) -> Result<(), (&'static str, E)> {
        if let Some(docker) = &self.docker {
            let is_name = docker.components().count() == 1 && !docker.has_root();
            let path = if is_name { Ok(docker.clone()) } else { absolute(docker) };
            config.docker = path.map_err(|error| ("--docker", error))?;
        }
        if self.no_docker {
            config.options.docker_bridge = false;
        }
        Ok(())
    }
}

/// Makes the path of a flag absolute.
pub(super) fn absolute(flag: &str, path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error: io::Error| Failure::new(format!("{flag}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_replace_keys_of_file() {
        let mut config = AgentConfig::new("/cni".into());
        let unchanged = format!("{config:?}");
        AgentHostOptions::default().apply(&mut config).unwrap();
        assert_eq!(format!("{config:?}"), unchanged);
        let options = AgentHostOptions {
            state_dir: Some("state".into()),
            docker: DockerOptions { docker: Some("podman".into()), no_docker: true },
        };
        options.apply(&mut config).unwrap();
        assert_eq!(config.dataplane.state_dir, std::path::absolute("state").unwrap());
        assert_eq!(config.docker, Path::new("podman"));
        assert!(!config.options.docker_bridge);
        let options = DockerOptions { docker: Some("./podman".into()), ..Default::default() };
        options.apply(&mut config).unwrap();
        assert_eq!(config.docker, std::path::absolute("podman").unwrap());
    }
}

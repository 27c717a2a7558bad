//! The agent module.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::Kind;
use super::parameters::{Inputs, read_text};
use super::part::Configured;
use super::realm::Access;
use crate::agent::Settings;
use crate::cni::CniDirectory;
use crate::config::{agent_file, agent_from_parameters};
use crate::detector::{Detector, FixedMaster};
use crate::docker::Docker;
use crate::runtime::{AgentHost, AgentOptions, Metrics, TunnelOptions, judge_for_agent, supervise};
use crate::transport::mesos::Gateway;

/// Path, what a request may do, and what `/help` says.
pub(super) const ROUTES: [(&str, Access, &str); 3] = [
    (
        "/overlay",
        Access::Read,
        "### TL;DR; ###\nWhat this agent has of the overlay networks.\n\n\
         ### DESCRIPTION ###\nJSON, or protobuf where `Accept` says `application/x-protobuf`.\n\n\
         Query parameters:\n\n>        jsonp=VALUE   Wraps the JSON in a call of this function.\n",
    ),
    (
        "/health",
        Access::Read,
        "### TL;DR; ###\nWhether the overlay agent is well, and what needs an operator.\n",
    ),
    ("/metrics", Access::Read, "### TL;DR; ###\nWhat the overlay agent counts, for Prometheus.\n"),
];

/// Reads the configuration; what it says can then be started.
pub(super) fn configure(
    inputs: &Inputs,
    leader: watch::Receiver<Option<SocketAddrV4>>,
) -> Result<Configured, String> {
    let config = inputs.read(Kind::Agent, agent_file, agent_from_parameters)?;
    let master = config.master.as_deref().unwrap_or_default();
    let master =
        Master::read(master).map_err(|reason| format!("{}: master: {reason}", Kind::Agent))?;
    let settings = Settings::from(&config);
    let tunnels = TunnelOptions::new(&config.dataplane);
    let directory = move || {
        CniDirectory::new(
            config.cni_dir.clone(),
            config.cni_data_dir.clone(),
            config.cni_plugins_dir.clone(),
            config.port_mapper,
        )
    };
    // Now, since the containerizer reads it right after the modules are made.
    directory().prepare().map_err(|reason| format!("{}: {reason}", Kind::Agent))?;
    let docker = Docker::new(config.docker, settings.options.command_timeout);
    let metrics = Metrics::new();
    let gauges = Arc::new(metrics.clone());
    let gateway = Gateway::new(config.limits, judge_for_agent());
    let transports = Arc::clone(&gateway);
    let election = master.election();
    let start = Box::new(move |address, ended| {
        let counted = metrics.clone();
        let start = move || {
            let options = AgentOptions {
                settings: settings.clone(),
                master: master.detector(&leader),
                cni: directory(),
                docker: docker.clone(),
                tunnels: tunnels.clone(),
                metrics: metrics.clone(),
                seed: fastrand::u64(..),
            };
            AgentHost::start(options, transports.transport(address))
        };
        let restarted = move || counted.count_restart();
        Box::pin(supervise("overlay agent", start, restarted, ended)) as super::part::Task
    });
    Ok(Configured { gateway, start, election, gauges })
}

/// How the master is found.
#[derive(Debug, PartialEq, Eq)]
enum Master {
    /// It is where the configuration says.
    Fixed(FixedMaster),
    /// Mesos' own detector follows the election at this `zk://` URL.
    Elected(String),
}

impl Master {
    /// Reads `HOST:PORT`, `zk://…`, or the `file://` of a file that holds one of these.
    fn read(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            let content = read_text(Path::new(path))?;
            let content = Some(content.trim()).filter(|content| !content.starts_with("file://"));
            // The content is not repeated: it may hold a password.
            return content.and_then(|content| Self::read(content).ok()).ok_or_else(|| {
                format!(
                    "{path}: it holds no address of a master: write zk://… or HOST:PORT into it"
                )
            });
        }
        if text.starts_with("zk://") {
            return Ok(Self::Elected(text.to_owned()));
        }
        text.parse().map(Self::Fixed).map_err(|reason| format!("{reason}"))
    }

    fn election(&self) -> Option<String> {
        match self {
            Self::Fixed(_) => None,
            Self::Elected(url) => Some(url.clone()),
        }
    }

    fn detector(&self, leader: &watch::Receiver<Option<SocketAddrV4>>) -> Detector {
        match self {
            Self::Fixed(master) => Detector::Fixed(master.clone()),
            Self::Elected(_) => Detector::Watched(leader.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_holds_what_could_stand_in_its_place() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "zk://10.0.0.1:2181/mesos").unwrap();
        let url = format!("file://{}", file.path().display());
        let elected = Master::Elected("zk://10.0.0.1:2181/mesos".to_owned());
        assert_eq!(Master::read(&url), Ok(elected));
        let missing = Master::read("file:///nowhere/at/all").unwrap_err();
        assert!(missing.starts_with("read /nowhere/at/all: No such file"), "{missing}");
        let secret = "ZK=zk://user:secret@10.0.0.1:2181/mesos";
        for content in [url.as_str(), secret, ""] {
            std::fs::write(file.path(), content).unwrap();
            let refused = Master::read(&url).unwrap_err();
            let expected = "it holds no address of a master: write zk://… or HOST:PORT into it";
            assert_eq!(refused, format!("{}: {expected}", file.path().display()));
        }
    }
}

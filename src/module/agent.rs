//! The agent module.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;

use overlay_config::{CniPlugin, agent_file, agent_from_parameters};
use overlay_engine::agent::Settings;
use overlay_linux::cni::CniDirectory;
use overlay_linux::docker::Docker;
use overlay_types::addr::Ensemble;
use overlay_zookeeper::detector::{Detector, Election, FixedMaster};
use tokio::sync::watch;

use super::configured::{Configured, Task};
use super::kind::Kind;
use super::parameters::{Inputs, read_text};
use super::realm::Access;
use crate::runtime::gateway::Gateway;
use crate::runtime::{
    AddressRemedy, AgentHost, AgentOptions, CredentialFile, DataplaneOptions, Metrics,
    agent_admission, read_credential, supervise,
};

/// Path, access, and text of `/help` of each route.
pub(super) const ROUTES: [(&str, Access, &str); 4] = [
    (
        "/overlay",
        Access::Read,
        "### TL;DR; ###\nThe overlay networks of this agent.\n\n\
         ### DESCRIPTION ###\nJSON, or protobuf where `Accept` says `application/x-protobuf`.\n\n\
         Query parameters:\n\n>        jsonp=VALUE   Wraps the JSON in a call of this function.\n",
    ),
    (
        "/health",
        Access::Read,
        "### TL;DR; ###\nCondition of the overlay agent, and problems for an operator.\n",
    ),
    (
        "/probes",
        Access::Read,
        "### TL;DR; ###\nThe probes of all peers.\n\n\
         Query parameters:\n\n>        limit=N   Names at most so many peers that fail.\n",
    ),
    ("/metrics", Access::Read, "### TL;DR; ###\nMetrics of the overlay agent, for Prometheus.\n"),
];

/// Reads the configuration of the agent module.
pub(super) fn configure(
    inputs: &Inputs,
    leader: watch::Receiver<Option<SocketAddrV4>>,
) -> Result<Configured, String> {
    let config = inputs.read(Kind::Agent, agent_file, agent_from_parameters)?;
    let master = config.master.as_deref().unwrap_or_default();
    let master =
        Master::read(master).map_err(|reason| format!("{}: master: {reason}", Kind::Agent))?;
    let mut settings = Settings::from(&config);
    let dataplane =
        DataplaneOptions::new(&config.dataplane, BTreeSet::new(), config.verify_interval);
    let directory = move || {
        CniDirectory::new(
            config.cni_dir.clone(),
            config.cni_data_dir.clone(),
            config.cni_plugins_dir.clone(),
            config.port_mapper,
        )
        .with_overlay_plugin(config.cni_plugin == CniPlugin::Overlay)
    };
    // The containerizer reads the directory right after the creation of the modules.
    directory().prepare().map_err(|reason| format!("{}: {reason}", Kind::Agent))?;
    let docker = Docker::new(config.docker, settings.options.command_timeout);
    let metrics = Metrics::new();
    let authentication = config.authentication.as_ref();
    let credential = authentication.map(|it| CredentialFile::of_agent(&it.file));
    settings.authentication = read_credential(authentication, metrics.warnings())
        .map_err(|reason| format!("{}: {reason}", Kind::Agent))?;
    let gauges = Arc::new(metrics.clone());
    let gateway = Gateway::new(config.limits, agent_admission());
    let transports = Arc::clone(&gateway);
    let election = master.election();
    let access = inputs.access(config.http.clone(), &[]);
    let start = Box::new(move |address, ended| {
        let counted = metrics.clone();
        let start = move || {
            let options = AgentOptions {
                settings: settings.clone(),
                master: master.detector(&leader),
                cni: directory(),
                docker: docker.clone(),
                dataplane: dataplane.clone(),
                credential: credential.clone(),
                metrics: metrics.clone(),
                access: access.clone(),
                seed: fastrand::u64(..),
                address_remedy: AddressRemedy::Mesos,
            };
            AgentHost::start(options, transports.transport(address))
        };
        let restarted = move || counted.count_restart();
        Box::pin(supervise("overlay agent", start, restarted, ended)) as Task
    });
    Ok(Configured { gateway, start, election, gauges })
}

/// How the agent finds the master.
#[derive(Debug, PartialEq, Eq)]
enum Master {
    /// The configured address.
    Fixed(FixedMaster),
    /// The detector of Mesos follows the election at this `zk://` URL.
    Elected(String),
}

impl Master {
    /// Parses `HOST:PORT`, `zk://…`, or the `file://` URL of a file with one of these.
    fn read(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            let content = read_text(Path::new(path))?;
            let content = Some(content.trim()).filter(|content| !content.starts_with("file://"));
            // The message omits the content, which may contain a password.
            return content.and_then(|content| Self::read(content).ok()).ok_or_else(|| {
                format!("{path}: no address of a master: write zk://… or HOST:PORT into it")
            });
        }
        if text.starts_with("zk://") {
            // Mesos would repeat an address that it cannot parse, with the password.
            text.parse::<Ensemble>().map_err(|error| error.to_string())?;
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
            // Mesos reports only the leading master.
            Self::Elected(_) => Detector::Elected(Election::of_leader(leader.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn file_url_is_replaced_by_content() {
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
            let expected = "no address of a master: write zk://… or HOST:PORT into it";
            assert_eq!(refused, format!("{}: {expected}", file.path().display()));
        }
    }
}

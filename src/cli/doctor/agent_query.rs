//! Queries of the local agent, of the agents of its peers, of the master and of Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use http::StatusCode;
use overlay_config::AgentConfig;
use overlay_doctor::observation::{
    AgentObservation, AgentQueryError, AgentReport, MasterObservation, ReportedProblem,
};
use overlay_linux::docker::{Docker, DockerFailure, EngineReport};
use overlay_types::protocol::AgentInfo;
use overlay_wire::{decode_agent, parse_json};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::cli::http_client::{MasterClient, block_on};
use crate::cli::http_exchange::{Endpoint, get_from_agent};
use crate::cli::master_address::{AgentAddress, Authorization, MasterSource};
use crate::cli::output::sanitize;
use crate::cli::response::displayed_problems;

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";
/// A Docker daemon that takes longer hangs.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of an agent's health that the doctor reads.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    problems: Vec<String>,
    /// What the first problems are about. Former agents do not have the key.
    #[serde(default)]
    sources: Vec<Source>,
    master: Option<String>,
    dataplane: Option<TunnelHealth>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Source {
    parts: Vec<String>,
    overlay: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TunnelHealth {
    status: String,
}

/// Returns the assignment of an agent, the local one or that of a peer.
async fn agent_info(
    endpoint: &Endpoint,
    authorization: Option<&Authorization>,
) -> Result<AgentInfo, AgentQueryError> {
    let (status, body) = get_from_agent(endpoint, OVERLAY, authorization)
        .await
        .map_err(AgentQueryError::NoResponse)?;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(AgentQueryError::NoPermission(status.to_string()));
        }
        status if !status.is_success() => {
            return Err(AgentQueryError::NotAnAgent(status.to_string()));
        }
        _ => {}
    }
    let no_agent =
        |error: &dyn fmt::Display| AgentQueryError::NotAnAgent(sanitize(&error.to_string()));
    let parsed = parse_json(&body).map_err(|error| no_agent(&error))?;
    decode_agent(&parsed).map_err(|error| no_agent(&error))
}

pub(super) async fn local_agent(
    address: &AgentAddress,
    authorization: Option<&Authorization>,
) -> AgentObservation {
    let endpoint = address.endpoint();
    let answer = async {
        let info = agent_info(&endpoint, authorization).await?;
        let (_, body) = get_from_agent(&endpoint, HEALTH, authorization)
            .await
            .map_err(AgentQueryError::NoResponse)?;
        let health: Option<Health> = serde_json::from_slice(&body).ok();
        let is_external = health.as_ref().is_none_or(|health| {
            health.dataplane.as_ref().is_none_or(|dataplane| dataplane.status == "external")
        });
        // The master is shown as NAME@IP:PORT.
        let master = health.as_ref().and_then(|health| {
            let (_, address) = health.master.as_deref()?.rsplit_once('@')?;
            Some(address.parse::<SocketAddrV4>().ok()?.to_string())
        });
        let health = health.map(|health| {
            let mut sources = health.sources.into_iter();
            let problem = |text| {
                let Source { parts, overlay } = sources.next().unwrap_or_default();
                ReportedProblem { text, parts, overlay }
            };
            let problems = displayed_problems(&health.problems).into_iter().map(problem);
            (sanitize(&health.status), problems.collect())
        });
        Ok(AgentReport { info, health, is_external, master })
    };
    AgentObservation { address: endpoint.to_string(), answer: answer.await }
}

/// Queries the state of the master at `source`. A failure to find it is a finding of the doctor.
pub(super) async fn master(
    source: &MasterSource,
    authorization: Option<&Authorization>,
) -> MasterObservation {
    let client = match MasterClient::find(source, authorization).await {
        Ok(client) => client,
        Err(failure) => {
            let answer = Err(failure.to_string());
            return MasterObservation { address: source.to_string(), answer };
        }
    };
    let state = async {
        let body = client.state().await?;
        client.read_state(&body)
    };
    let answer = state.await.map_err(|failure| failure.to_string());
    MasterObservation { address: client.to_string(), answer }
}

pub(super) async fn docker(config: &AgentConfig) -> Option<Result<EngineReport, DockerFailure>> {
    let options = &config.options;
    if !options.allocate_subnet || !options.docker_bridge {
        return None;
    }
    let docker = Docker::new(config.docker.clone(), DOCKER_TIMEOUT);
    Some(docker.examine().await)
}

/// Queries the agents at these addresses concurrently. Returns those that respond.
pub(super) fn agents(ips: &BTreeSet<Ipv4Addr>, port: u16) -> BTreeMap<Ipv4Addr, AgentInfo> {
    let answers = block_on(async {
        let mut queries = JoinSet::new();
        for &ip in ips {
            // A peer is another host, which must not learn the operator's credential.
            let endpoint = Endpoint::Tcp(SocketAddrV4::new(ip, port));
            queries.spawn(async move { (ip, agent_info(&endpoint, None).await) });
        }
        Ok(queries.join_all().await)
    });
    let answers = answers.unwrap_or_default().into_iter();
    answers.filter_map(|(ip, answer)| Some((ip, answer.ok()?))).collect()
}

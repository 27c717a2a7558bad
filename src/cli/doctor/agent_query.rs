//! Queries of the local agent, of the agents of its peers, of the master and of Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_config::AgentConfig;
use overlay_doctor::observation::{
    AgentObservation, AgentQueryError, AgentReport, MasterObservation,
};
use overlay_linux::docker::{Docker, DockerFailure, EngineReport};
use overlay_types::protocol::AgentInfo;
use overlay_wire::{decode_agent, parse_json};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::cli::http_client::{MasterClient, block_on, get_from_agent};
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
    dataplane: Option<TunnelHealth>,
}

#[derive(Debug, Deserialize)]
struct TunnelHealth {
    status: String,
}

/// Returns the assignment of an agent, the local one or that of a peer.
pub(super) async fn agent_info(address: SocketAddrV4) -> Result<AgentInfo, AgentQueryError> {
    let (status, body) =
        get_from_agent(address, OVERLAY).await.map_err(AgentQueryError::NoResponse)?;
    if !status.is_success() {
        return Err(AgentQueryError::NotAnAgent(status.to_string()));
    }
    let no_agent =
        |error: &dyn fmt::Display| AgentQueryError::NotAnAgent(sanitize(&error.to_string()));
    let parsed = parse_json(&body).map_err(|error| no_agent(&error))?;
    decode_agent(&parsed).map_err(|error| no_agent(&error))
}

pub(super) async fn local_agent(address: SocketAddrV4) -> AgentObservation {
    let answer = async {
        let info = agent_info(address).await?;
        let (_, body) =
            get_from_agent(address, HEALTH).await.map_err(AgentQueryError::NoResponse)?;
        let health: Option<Health> = serde_json::from_slice(&body).ok();
        let is_external = health.as_ref().is_none_or(|health| {
            health.dataplane.as_ref().is_none_or(|dataplane| dataplane.status == "external")
        });
        let health = health.map(|Health { status, problems, .. }| {
            (sanitize(&status), displayed_problems(&problems))
        });
        Ok(AgentReport { info, health, is_external })
    };
    AgentObservation { address: address.to_string(), answer: answer.await }
}

pub(super) async fn master(client: &MasterClient) -> MasterObservation {
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
            queries.spawn(async move { (ip, agent_info(SocketAddrV4::new(ip, port)).await) });
        }
        Ok(queries.join_all().await)
    });
    let answers = answers.unwrap_or_default().into_iter();
    answers.filter_map(|(ip, answer)| Some((ip, answer.ok()?))).collect()
}

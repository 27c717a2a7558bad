//! Queries of the local agent, of the agents of its peers, of the master and of Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use http::StatusCode;
use overlay_config::AgentConfig;
use overlay_doctor::observation::{
    AgentObservation, AgentQueryError, AgentReport, MasterObservation, PeerPaths,
    ReportedAuthentication, ReportedProblem,
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
    #[serde(default)]
    authentication: Option<AuthenticationHealth>,
}

#[derive(Debug, Deserialize)]
struct AuthenticationHealth {
    principal: String,
    master_authenticated: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Source {
    parts: Vec<String>,
    overlay: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TunnelHealth {
    status: String,
    /// Missing without direct routing, and from former agents.
    direct_routing: Option<DirectHealth>,
}

#[derive(Debug, Deserialize)]
struct DirectHealth {
    problem: Option<String>,
    direct: Vec<String>,
    vxlan: Vec<VxlanPeer>,
}

#[derive(Debug, Deserialize)]
struct VxlanPeer {
    agent: String,
    reason: String,
}

impl From<&DirectHealth> for PeerPaths {
    fn from(health: &DirectHealth) -> Self {
        let vxlan = health.vxlan.iter();
        Self {
            problem: health.problem.as_deref().map(sanitize),
            direct: health.direct.iter().map(|agent| sanitize(agent)).collect(),
            vxlan: vxlan.map(|peer| (sanitize(&peer.agent), sanitize(&peer.reason))).collect(),
        }
    }
}

/// Returns the assignment of an agent, the local one or that of a peer.
pub(in crate::cli) async fn agent_info(
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

/// Queries the agent of this host. Without `is_known`, any user may serve the address, and the
/// server does not get the credential.
pub(super) async fn local_agent(
    address: &AgentAddress,
    is_known: bool,
    credential: Option<&Authorization>,
) -> AgentObservation {
    let endpoint = address.endpoint();
    let authorization = credential.filter(|_| is_known);
    let is_withheld = credential.is_some() && !is_known;
    let answer = async {
        let info = agent_info(&endpoint, authorization).await.map_err(|error| match error {
            AgentQueryError::NoPermission(status) if is_withheld => {
                AgentQueryError::CredentialWithheld(status)
            }
            error => error,
        })?;
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
        let authentication = health.as_ref().and_then(|health| health.authentication.as_ref());
        let authentication = authentication.map(|found| ReportedAuthentication {
            principal: sanitize(&found.principal),
            is_master_authenticated: found.master_authenticated,
        });
        let paths = health.as_ref().and_then(|health| {
            let direct = health.dataplane.as_ref()?.direct_routing.as_ref()?;
            Some(PeerPaths::from(direct))
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
        Ok(AgentReport { info, health, is_external, master, authentication, paths })
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use http::HeaderValue;

    use super::*;

    /// Queries a server that requires a credential. Returns its requests and the error.
    fn query(is_known: bool) -> (String, AgentQueryError) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let serve = move || {
            let mut requests = String::new();
            for _ in 0..=u8::from(is_known) {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                requests.push_str(std::str::from_utf8(&request[..length]).unwrap());
                let response = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(response.as_bytes()).unwrap();
            }
            requests
        };
        let server = thread::Builder::new().spawn(serve).unwrap();
        let header = HeaderValue::from_static("Basic c2VjcmV0");
        let credential = Authorization { header, file: "credential".to_owned() };
        let observed = block_on(async {
            Ok(local_agent(&AgentAddress::Tcp(address), is_known, Some(&credential)).await)
        });
        (server.join().unwrap(), observed.unwrap().answer.unwrap_err())
    }

    #[test]
    fn credential_is_sent_to_known_agent_only() {
        let status = || "401 Unauthorized".to_owned();
        let (requests, error) = query(true);
        assert!(requests.contains("Basic c2VjcmV0"), "{requests}");
        assert_eq!(error, AgentQueryError::NoPermission(status()));
        let (requests, error) = query(false);
        assert!(!requests.to_lowercase().contains("authorization"), "{requests}");
        assert_eq!(error, AgentQueryError::CredentialWithheld(status()));
    }
}

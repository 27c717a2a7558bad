//! Asks all agents for the probes of their peers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use http::StatusCode;
use overlay_types::protocol::{PeerFailureCause, State};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::cli::http_exchange::{Endpoint, get_bounded_from_agent};
use crate::cli::master_address::Authorization;
use crate::cli::output::sanitize;

const PATH: &str = "/overlay-agent/probes";
/// Most peers that one agent names, as many as an agent allows, and least. An agent that fails to
/// reach more is broken itself.
const NAMED_MAX: usize = 1024;
const NAMED_MIN: usize = 64;
/// Most peers that all agents name, in clusters in which each may name more than the least number.
/// They take 100 MB.
const NAMED_TOTAL_MAX: usize = 1_000_000;
/// Number of agents that are asked at the same time. A host that drops packets delays its place for
/// three seconds: 1,000 such hosts take 47 seconds.
const CONCURRENT_MAX: usize = 64;
/// Longest answer of an agent, in bytes. 1,024 named peers take 70 KiB.
const ANSWER_MAX: usize = 128 * 1024;
/// Longest time for all agents. A longer one may not be a time of the clock.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// Most peers of an agent.
const PEERS_MAX: u64 = 1_000_000;
/// Number of the visits of a peer that an agent remembers.
const VISITS: u32 = 8;
/// Longest reason and cause of an agent that is kept, in characters.
const TEXT_MAX: usize = 200;

/// How the agents are asked.
pub(super) struct QueryOptions {
    pub(super) port: u16,
    pub(super) credential: Option<Authorization>,
    pub(super) timeout: Duration,
}

/// The probes of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct AgentQuery {
    pub(super) status: String,
    #[serde(default)]
    pub(super) note: Option<String>,
    pub(super) peers: u64,
    pub(super) ok: u64,
    pub(super) lossy: u64,
    pub(super) failing: u64,
    pub(super) round_trip_microseconds: Option<RoundTrips>,
    pub(super) named: Vec<NamedPeer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct RoundTrips {
    pub(super) min: u64,
    pub(super) median: u64,
    pub(super) max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct NamedPeer {
    pub(super) agent: IpAddr,
    #[serde(default)]
    pub(super) cause: Option<Cause>,
    pub(super) lost: u32,
}

/// The name of a cause, which takes no memory for each peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cause(pub(super) &'static str);

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        let known = PeerFailureCause::from_name(&name);
        Ok(Self(known.map_or("unknown cause", PeerFailureCause::name)))
    }
}

/// The answers by agent, or why there is none.
pub(super) type Answers = BTreeMap<Ipv4Addr, Result<AgentQuery, String>>;

/// Returns the agents that the master knows, without those that have no overlay: they have no peers.
pub(super) fn agents(state: &State) -> Vec<Ipv4Addr> {
    let agents = state.agents.iter().filter(|agent| !agent.overlays.is_empty());
    let mut agents: Vec<Ipv4Addr> = agents.map(|agent| agent.ip).collect();
    agents.sort_unstable();
    agents.dedup();
    agents
}

impl QueryOptions {
    /// Asks the agents. An agent without an answer has the reason.
    pub(super) async fn ask_all(&self, agents: &[Ipv4Addr]) -> Answers {
        let deadline = Instant::now() + self.timeout.min(TIMEOUT_MAX);
        let limit = (NAMED_TOTAL_MAX / agents.len().max(1)).clamp(NAMED_MIN, NAMED_MAX);
        let mut answers = Answers::new();
        let mut queries: JoinSet<(Ipv4Addr, Result<AgentQuery, String>)> = JoinSet::new();
        for &agent in agents {
            if queries.len() >= CONCURRENT_MAX
                && let Some(Ok((answered, answer))) = queries.join_next().await
            {
                answers.insert(answered, answer);
            }
            let endpoint = Endpoint::Tcp(SocketAddrV4::new(agent, self.port));
            let credential = self.credential.clone();
            let late = self.late();
            queries.spawn(async move {
                let answer = ask(&endpoint, limit, credential.as_ref());
                let answer = timeout_at(deadline, answer).await;
                (agent, answer.unwrap_or(Err(late)))
            });
        }
        while let Some(answer) = queries.join_next().await {
            if let Ok((agent, answer)) = answer {
                answers.insert(agent, answer);
            }
        }
        answers
    }

    fn late(&self) -> String {
        format!("no answer in {} for all agents", humantime::format_duration(self.timeout))
    }
}

async fn ask(
    endpoint: &Endpoint,
    limit: usize,
    credential: Option<&Authorization>,
) -> Result<AgentQuery, String> {
    let path = format!("{PATH}?limit={limit}");
    let (status, body) = get_bounded_from_agent(endpoint, &path, credential, ANSWER_MAX).await?;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(format!("{status}: it requires a credential: see --agent-credential"));
        }
        StatusCode::NOT_FOUND => {
            return Err("it shows no probes: it is a former version, or no agent".to_owned());
        }
        status if !status.is_success() => return Err(status.to_string()),
        _ => {}
    }
    let answer: AgentQuery = serde_json::from_slice(&body)
        .map_err(|error| format!("it is no agent: {}", bounded(&error.to_string())))?;
    match answer.status.as_str() {
        "off" => {
            let note = answer.note.as_deref().map(bounded).unwrap_or_default();
            Err(format!("its probes are off: {note}"))
        }
        "none" => Err("it has no peers yet, or its probe_rate is 0".to_owned()),
        _ => Ok(answer.sanitized()),
    }
}

impl AgentQuery {
    /// Bounds the texts and numbers of the agent, so that sums of all agents fit.
    fn sanitized(mut self) -> Self {
        for peer in &mut self.named {
            peer.lost = peer.lost.min(VISITS);
        }
        for count in [&mut self.peers, &mut self.ok, &mut self.lossy, &mut self.failing] {
            *count = (*count).min(PEERS_MAX);
        }
        Self { status: bounded(&self.status), note: None, ..self }
    }
}

fn bounded(text: &str) -> String {
    sanitize(&text.chars().take(TEXT_MAX).collect::<String>())
}

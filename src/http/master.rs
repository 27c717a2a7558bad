//! The endpoints of the master.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use http::{Method, StatusCode};
use libprocess::limits::RequestClass;
use overlay_config::parse_master;
use overlay_engine::master::{
    self, Condition, Effect, Forget, Master, ReleaseOutcome, ReleaseResult, Reply,
};
use overlay_engine::state_machine::StateMachine as _;
use overlay_types::protocol::Network;
use overlay_types::text::count_and_list;
use overlay_wire as wire;

use super::keys::{check_members, require_no_body};
use super::{
    Access, Format, JSONP, Request, Response, bad_request, history, metrics, not_found, path,
    require_post, require_read, unavailable,
};

const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";
const HEALTH: &str = "/overlay-master/health";
const METRICS: &str = "/overlay-master/metrics";
const HISTORY: &str = "/overlay-master/history";
const PREVIEW: &str = "/overlay-master/preview";
const RELOAD: &str = "/overlay-master/reload";

/// The parameter of the history and of the metrics that selects an agent.
const AGENT: &str = "agent";

/// Maximum number of agents in a request for metrics. Each has a few series in every scrape.
const METRICS_AGENTS_MAX: usize = 100;

/// Maximum number of agents in one request. No cluster is larger.
const DELETE_MAX: usize = 100_000;

/// Maximum length of a list of agents in bytes. An address takes at most 18 with its quotes and
/// comma.
const DELETE_BYTES_MAX: usize = DELETE_MAX * 18 + 1024;
/// Maximum length of a previewed network file in bytes. The maximum number of overlays needs much
/// less.
const NETWORK_BYTES_MAX: usize = 128 * 1024;
/// Maximum length of any other request's body in bytes. Other endpoints take none.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// Returns the limits of a request to the master.
#[must_use]
pub fn classify_master(_: &Method, path: &str) -> RequestClass {
    let body_max = match path.trim_end_matches('/') {
        DELETE => DELETE_BYTES_MAX,
        PREVIEW => NETWORK_BYTES_MAX,
        _ => BODY_BYTES_MAX,
    };
    let is_heavy =
        matches!(path.trim_end_matches('/'), STATE | DELETE | HISTORY | PREVIEW | RELOAD);
    RequestClass { body_max, is_heavy }
}

/// Returns the access that a request to the master needs. The endpoints are in the same realms in
/// Mesos.
#[must_use]
pub fn access_to_master(path: &str) -> Access {
    match path.trim_end_matches('/') {
        DELETE | RELOAD => Access::Write,
        _ => Access::Read,
    }
}

/// Describes the change that a request makes, for the log; `None` if it only reads.
#[must_use]
pub fn describe_change(request: &master::Request) -> Option<String> {
    match request {
        master::Request::DeleteAgents(agents) => {
            Some(format!("delete {}", count_and_list(agents, "agent")))
        }
        master::Request::Forget(Forget { dry_run: true, .. }) => None,
        master::Request::Forget(Forget { agents, force, .. }) => {
            let how = if *force { ", running or not" } else { "" };
            Some(format!("delete {}{how}", count_and_list(agents, "agent")))
        }
        master::Request::Reload => Some("read the configuration again".to_owned()),
        master::Request::By(_, request) => describe_change(request),
        master::Request::State
        | master::Request::Health
        | master::Request::Metrics(_)
        | master::Request::History(_)
        | master::Request::Preview(_) => None,
    }
}

/// Returns the request to the master's state machine, and the format of the response.
///
/// # Errors
/// The response to an invalid request.
pub fn route_master(request: &Request) -> Result<(master::Request, Format), Box<Response>> {
    let master_request = match path(request) {
        STATE => {
            require_read(request, &[JSONP])?;
            master::Request::State
        }
        HEALTH => {
            require_read(request, &[JSONP])?;
            master::Request::Health
        }
        METRICS => {
            require_read(request, &[AGENT])?;
            let agents = agents_of_metrics(request)?;
            return Ok((master::Request::Metrics(agents), metrics::negotiate(request)));
        }
        DELETE => {
            require_post(request, &[JSONP])?;
            agents_to_delete(request)?
        }
        HISTORY => {
            require_read(request, &[AGENT, JSONP])?;
            master::Request::History(agent_of_history(request)?)
        }
        PREVIEW => {
            require_post(request, &[JSONP])?;
            master::Request::Preview(Box::new(network_to_preview(request)?))
        }
        RELOAD => {
            require_post(request, &[JSONP])?;
            require_no_body(request)?;
            master::Request::Reload
        }
        _ => {
            let endpoints = [STATE, DELETE, HEALTH, METRICS, HISTORY, PREVIEW, RELOAD];
            return Err(not_found(request, &endpoints));
        }
    };
    Ok((master_request, Format::negotiated(request)?))
}

/// Parses `{"agents":["10.0.0.1"]}` as the C++ module does: one invalid address refuses the whole
/// request. The extensions `force` and `dry_run`, which the C++ module ignores, select another
/// request. Unlike the C++ module, this master refuses unknown keys: a misspelled `dry_run` must
/// not delete agents.
fn agents_to_delete(request: &Request) -> Result<master::Request, Box<Response>> {
    #[derive(serde::Deserialize)]
    struct Body {
        agents: Vec<Ipv4Addr>,
        force: Option<bool>,
        dry_run: Option<bool>,
    }
    let refuse = |reason: &str| {
        Box::new(bad_request(&format!("{reason}: write {{\"agents\":[\"10.0.0.1\"]}}")))
    };
    check_members(request.body(), &["agents", "force", "dry_run"])
        .map_err(|reason| refuse(&reason))?;
    let body: Body =
        serde_json::from_slice(request.body()).map_err(|error| refuse(&error.to_string()))?;
    if body.agents.len() > DELETE_MAX {
        return Err(refuse("too many agents in one request"));
    }
    let Body { agents, force, dry_run } = body;
    if force.is_none() && dry_run.is_none() {
        return Ok(master::Request::DeleteAgents(agents));
    }
    let (force, dry_run) = (force.unwrap_or_default(), dry_run.unwrap_or_default());
    Ok(master::Request::Forget(Forget { agents, force, dry_run }))
}

/// Returns the agent of the query `?agent=10.0.0.1`, if present.
fn agent_of_history(request: &Request) -> Result<Option<Ipv4Addr>, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let parameter = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == AGENT);
    let parsed = parameter.map(|(_, ip)| ip.parse()).transpose();
    parsed.map_err(|error| Box::new(bad_request(&format!("agent: {error}: write ?agent=10.0.0.1"))))
}

/// Returns the agents of the query `?agent=10.0.0.1,10.0.0.2`. An agent that the query names twice
/// is returned once.
fn agents_of_metrics(request: &Request) -> Result<Vec<Ipv4Addr>, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let parameter = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == AGENT);
    let Some((_, list)) = parameter else { return Ok(Vec::new()) };
    let parsed: Result<BTreeSet<Ipv4Addr>, _> = list.split(',').map(str::parse).collect();
    let agents = parsed.map_err(|error| {
        Box::new(bad_request(&format!("agent: {error}: write ?agent=10.0.0.1,10.0.0.2")))
    })?;
    if agents.len() > METRICS_AGENTS_MAX {
        let message = format!(
            "agent: {} agents are more than {METRICS_AGENTS_MAX}: name fewer agents",
            agents.len()
        );
        return Err(Box::new(bad_request(&message)));
    }
    Ok(agents.into_iter().collect())
}

/// Parses the network file or `master_config` in the body.
fn network_to_preview(request: &Request) -> Result<Network, Box<Response>> {
    let text = std::str::from_utf8(request.body());
    let text = text.map_err(|error| Box::new(bad_request(&error.to_string())))?;
    match parse_master("request", text) {
        Ok((config, _)) => Ok(config.network),
        Err(problems) => Err(Box::new(bad_request(&problems.to_string()))),
    }
}

/// The results of a release, for each agent.
#[derive(serde::Serialize)]
struct DeleteResults<'a> {
    agents: &'a [ReleaseResult],
}

/// Returns the response with the master's reply.
#[must_use]
pub fn render_master(reply: &Reply, format: &Format) -> Response {
    match reply {
        Reply::State(state) => format.message(&wire::encode_state(state)),
        Reply::Health(health) => {
            let status = match health.status {
                // A standby master is healthy and must not trigger an alert.
                Condition::Ok | Condition::Degraded | Condition::Standby => StatusCode::OK,
                Condition::Recovering | Condition::Failed => StatusCode::SERVICE_UNAVAILABLE,
            };
            format.json_value(status, health)
        }
        Reply::ReleaseResults(results) => {
            let is_refused = results.iter().any(|agent| {
                matches!(agent.result, ReleaseOutcome::Running | ReleaseOutcome::MayBeRunning)
            });
            let status = if is_refused { StatusCode::CONFLICT } else { StatusCode::OK };
            format.json_value(status, &DeleteResults { agents: results })
        }
        Reply::History(history) => history::render(history, format),
        Reply::Effect(effect) => {
            let status = if effect.accepted { StatusCode::OK } else { StatusCode::CONFLICT };
            format.json_value(status, effect)
        }
        Reply::Misconfigured(problems) => {
            let effect = Effect { problems: problems.clone(), ..Effect::default() };
            format.json_value(StatusCode::UNPROCESSABLE_ENTITY, &effect)
        }
        Reply::Metrics(snapshot) => metrics::render(Master::CATALOGUE, snapshot, format),
        Reply::Unavailable(reason) => unavailable(reason),
    }
}

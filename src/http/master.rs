//! The endpoints of the master.

use std::net::Ipv4Addr;

use http::{Method, StatusCode};

use super::{
    Format, Request, Response, error, history, insist_on_method, insist_on_same_origin, metrics,
    not_found, path, unavailable,
};
use crate::config::parse_master;
use crate::limits::RequestClass;
use crate::machine::Machine as _;
use crate::master::{
    Condition, Effect, Forget, Master, ReleaseOutcome, ReleaseResult, Reply, Request as Question,
};
use crate::protocol::Network;
use crate::wire;

const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";
const HEALTH: &str = "/overlay-master/health";
const METRICS: &str = "/overlay-master/metrics";
const HISTORY: &str = "/overlay-master/history";
const PREVIEW: &str = "/overlay-master/preview";
const RELOAD: &str = "/overlay-master/reload";

/// Most agents that one request can delete: more than any cluster has.
const DELETE_MAX: usize = 100_000;

/// Longest list of agents to delete, in bytes: each address has at most 18 with its quotes and
/// comma.
const DELETE_BYTES_MAX: usize = DELETE_MAX * 18 + 1024;
/// Longest network file that is previewed, in bytes: several times what the most overlays need.
const NETWORK_BYTES_MAX: usize = 128 * 1024;
/// Longest body of any other request in bytes: none is looked at.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// What a request to the master may cost.
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

/// What `request` asks of the master, and in which form it wants the answer.
///
/// # Errors
/// The response, where the master need not be asked.
pub fn route_master(request: &Request) -> Result<(Question, Format), Box<Response>> {
    let question = match path(request) {
        STATE => {
            insist_on_method(request, &[Method::GET, Method::HEAD])?;
            Question::State
        }
        HEALTH => {
            insist_on_method(request, &[Method::GET, Method::HEAD])?;
            Question::Health
        }
        METRICS => {
            insist_on_method(request, &[Method::GET, Method::HEAD])?;
            return Ok((Question::Metrics, Format::of_one_form(request)));
        }
        DELETE => {
            insist_on_method(request, &[Method::POST])?;
            insist_on_same_origin(request)?;
            agents_to_delete(request)?
        }
        HISTORY => {
            insist_on_method(request, &[Method::GET, Method::HEAD])?;
            Question::History(agent_of_history(request)?)
        }
        PREVIEW => {
            insist_on_method(request, &[Method::POST])?;
            insist_on_same_origin(request)?;
            Question::Preview(Box::new(network_to_preview(request)?))
        }
        RELOAD => {
            insist_on_method(request, &[Method::POST])?;
            insist_on_same_origin(request)?;
            Question::Reload
        }
        _ => {
            let known = [STATE, DELETE, HEALTH, METRICS, HISTORY, PREVIEW, RELOAD];
            return Err(not_found(request, &known));
        }
    };
    Ok((question, Format::of(request)?))
}

/// `{"agents":["10.0.0.1"]}`, as the C++ module has it: one bad address refuses all. With `force`
/// or `dry_run` it is a question of ours, of which the C++ module knows nothing.
fn agents_to_delete(request: &Request) -> Result<Question, Box<Response>> {
    #[derive(serde::Deserialize)]
    struct Body {
        agents: Vec<Ipv4Addr>,
        force: Option<bool>,
        dry_run: Option<bool>,
    }
    let refuse = |reason: &str| {
        let message = format!("{reason}: write {{\"agents\":[\"10.0.0.1\"]}}");
        Box::new(error(StatusCode::BAD_REQUEST, &message))
    };
    let body: Body =
        serde_json::from_slice(request.body()).map_err(|error| refuse(&error.to_string()))?;
    if body.agents.len() > DELETE_MAX {
        return Err(refuse("too many agents in one request"));
    }
    let Body { agents, force, dry_run } = body;
    if force.is_none() && dry_run.is_none() {
        return Ok(Question::DeleteAgents(agents));
    }
    let (force, dry_run) = (force.unwrap_or_default(), dry_run.unwrap_or_default());
    Ok(Question::Forget(Forget { agents, force, dry_run }))
}

/// The agent of `?agent=10.0.0.1`, if there is one.
fn agent_of_history(request: &Request) -> Result<Option<Ipv4Addr>, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let given = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == "agent");
    let parsed = given.map(|(_, ip)| ip.parse()).transpose();
    parsed.map_err(|error| {
        let message = format!("agent: {error}: write ?agent=10.0.0.1");
        Box::new(error_response(&message))
    })
}

fn error_response(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, message)
}

/// The network of the network file or `master_config` in the body.
fn network_to_preview(request: &Request) -> Result<Network, Box<Response>> {
    let text = std::str::from_utf8(request.body());
    let text = text.map_err(|error| Box::new(error_response(&error.to_string())))?;
    match parse_master("request", text) {
        Ok((config, _)) => Ok(config.network),
        Err(problems) => Err(Box::new(error_response(&problems.to_string()))),
    }
}

/// What became of agents that were to be forgotten.
#[derive(serde::Serialize)]
struct Fates<'a> {
    agents: &'a [ReleaseResult],
}

/// The response with the master's reply.
#[must_use]
pub fn render_master(reply: &Reply, format: &Format) -> Response {
    match reply {
        Reply::State(state) => format.message(&wire::encode_state(state)),
        Reply::Health(health) => {
            let status = match health.status {
                // Nothing is wrong with one that waits: nobody should be woken by it.
                Condition::Ok | Condition::Degraded | Condition::Standby => StatusCode::OK,
                Condition::Recovering | Condition::Failed => StatusCode::SERVICE_UNAVAILABLE,
            };
            format.value(status, health)
        }
        Reply::ReleaseResults(fates) => {
            let is_refused = |fate: &ReleaseResult| {
                matches!(fate.result, ReleaseOutcome::Running | ReleaseOutcome::MayBeRunning)
            };
            let is_refused = fates.iter().any(is_refused);
            let status = if is_refused { StatusCode::CONFLICT } else { StatusCode::OK };
            format.value(status, &Fates { agents: fates })
        }
        Reply::History(history) => history::render(history, format),
        Reply::Effect(effect) => {
            let status = if effect.accepted { StatusCode::OK } else { StatusCode::CONFLICT };
            format.value(status, effect)
        }
        Reply::Misconfigured(problems) => {
            let effect = Effect { problems: problems.clone(), ..Effect::default() };
            format.value(StatusCode::UNPROCESSABLE_ENTITY, &effect)
        }
        Reply::Metrics(snapshot) => metrics::render(Master::CATALOGUE, snapshot, format),
        Reply::Unavailable(reason) => unavailable(reason),
    }
}

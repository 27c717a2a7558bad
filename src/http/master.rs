//! The endpoints of the master.

use std::net::Ipv4Addr;

use http::{Method, StatusCode};

use super::{
    Format, Request, Response, error, insist_on_method, insist_on_same_origin, metrics, not_found,
    path, unavailable,
};
use crate::machine::Machine as _;
use crate::master::{Condition, Master, Reply, Request as Question};
use crate::wire;

const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";
const HEALTH: &str = "/overlay-master/health";
const METRICS: &str = "/overlay-master/metrics";

/// Most agents that one request can delete: more than any cluster has.
const DELETE_MAX: usize = 100_000;

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
            Question::DeleteAgents(agents_to_delete(request)?)
        }
        _ => return Err(not_found(request, &[STATE, DELETE, HEALTH, METRICS])),
    };
    Ok((question, Format::of(request)?))
}

/// `{"agents":["10.0.0.1"]}`, as the C++ module has it: one bad address refuses all.
fn agents_to_delete(request: &Request) -> Result<Vec<Ipv4Addr>, Box<Response>> {
    #[derive(serde::Deserialize)]
    struct Body {
        agents: Vec<Ipv4Addr>,
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
    Ok(body.agents)
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
        Reply::Metrics(snapshot) => metrics::render(Master::CATALOGUE, snapshot, format),
        Reply::Unavailable(reason) => unavailable(reason),
    }
}

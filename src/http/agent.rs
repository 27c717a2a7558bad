//! The endpoints of the agent.

use http::{Method, StatusCode};

use super::{Format, Request, Response, insist_on_method, metrics, not_found, path};
use crate::agent::{Agent, Condition, Reply, Request as Question};
use crate::limits::RequestClass;
use crate::machine::Machine as _;
use crate::wire;

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";
const METRICS: &str = "/overlay-agent/metrics";

/// Longest body of a request in bytes: none is looked at.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// What a request to the agent may cost: its answers have the size of its own share.
#[must_use]
pub const fn classify_agent(_: &Method, _: &str) -> RequestClass {
    RequestClass { body_max: BODY_BYTES_MAX, is_heavy: false }
}

/// What `request` asks of the agent, and in which form it wants the answer.
///
/// # Errors
/// The response, where the agent need not be asked.
pub fn route_agent(request: &Request) -> Result<(Question, Format), Box<Response>> {
    let question = match path(request) {
        OVERLAY => Question::Overlay,
        HEALTH => Question::Health,
        METRICS => Question::Metrics,
        _ => return Err(not_found(request, &[OVERLAY, HEALTH, METRICS])),
    };
    insist_on_method(request, &[Method::GET, Method::HEAD])?;
    let format = match question {
        Question::Metrics => Format::of_one_form(request),
        Question::Overlay | Question::Health => Format::of(request)?,
    };
    Ok((question, format))
}

/// The response with the agent's reply.
#[must_use]
pub fn render_agent(reply: &Reply, format: &Format) -> Response {
    match reply {
        Reply::Overlay(info) => format.message(&wire::encode_agent(info)),
        Reply::Health(health) => {
            let status = match health.status {
                Condition::Ok | Condition::Degraded => StatusCode::OK,
                Condition::Registering | Condition::Detached => StatusCode::SERVICE_UNAVAILABLE,
            };
            format.value(status, health)
        }
        Reply::Metrics(snapshot) => metrics::render(Agent::CATALOGUE, snapshot, format),
    }
}

//! The endpoints of the agent.

use http::{Method, StatusCode};

use super::{Format, Request, Response, insist_on_method, not_found, path};
use crate::agent::{Condition, Reply, Request as Question};
use crate::wire;

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";

/// What `request` asks of the agent, and in which form it wants the answer.
///
/// # Errors
/// The response, where the agent need not be asked.
pub fn route_agent(request: &Request) -> Result<(Question, Format), Box<Response>> {
    let question = match path(request) {
        OVERLAY => Question::Overlay,
        HEALTH => Question::Health,
        _ => return Err(not_found(request, &[OVERLAY, HEALTH])),
    };
    insist_on_method(request, &[Method::GET, Method::HEAD])?;
    Ok((question, Format::of(request)?))
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
    }
}

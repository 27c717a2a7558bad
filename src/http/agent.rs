//! The endpoints of the agent.

use http::{Method, StatusCode};
use libprocess::limits::RequestClass;
use overlay_engine::agent::{self, Agent, Condition, Reply};
use overlay_engine::state_machine::StateMachine as _;
use overlay_wire as wire;

use super::{
    Format, JSONP, Request, Response, bad_request, metrics, not_found, path, require_read,
};

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";
const PROBES: &str = "/overlay-agent/probes";
const METRICS: &str = "/overlay-agent/metrics";

/// Maximum length of a request's body in bytes. Every body is refused.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// The parameter of [`PROBES`] with the number of peers to name.
const LIMIT: &str = "limit";
/// Default and maximum of this number. A peer takes 70 bytes.
const LIMIT_DEFAULT: usize = 64;
const LIMIT_MAX: usize = 1024;

/// Returns the limits of a request to the agent. No response is large: the agent knows only its own
/// assignments, and the probes of 1,024 peers take 70 KiB.
#[must_use]
pub const fn classify_agent(_: &Method, _: &str) -> RequestClass {
    RequestClass { body_max: BODY_BYTES_MAX, is_heavy: false }
}

/// Returns the request to the agent's state machine, and the format of the response.
///
/// # Errors
/// The response to an invalid request.
pub fn route_agent(request: &Request) -> Result<(agent::Request, Format), Box<Response>> {
    let agent_request = match path(request) {
        OVERLAY => agent::Request::Overlay,
        HEALTH => agent::Request::Health,
        PROBES => agent::Request::Probes(limit(request)?),
        METRICS => agent::Request::Metrics,
        _ => return Err(not_found(request, &[OVERLAY, HEALTH, PROBES, METRICS])),
    };
    let format = match agent_request {
        agent::Request::Metrics => {
            require_read(request, &[])?;
            metrics::negotiate(request)
        }
        agent::Request::Probes(_) => {
            require_read(request, &[LIMIT, JSONP])?;
            Format::negotiated(request)?
        }
        agent::Request::Overlay | agent::Request::Health => {
            require_read(request, &[JSONP])?;
            Format::negotiated(request)?
        }
    };
    Ok((agent_request, format))
}

/// Returns the number of the query `?limit=100`.
fn limit(request: &Request) -> Result<usize, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let parameter = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == LIMIT);
    let Some((_, text)) = parameter else { return Ok(LIMIT_DEFAULT) };
    text.parse().ok().filter(|limit| *limit <= LIMIT_MAX).ok_or_else(|| {
        let message = format!("limit: it is no number from 0 to {LIMIT_MAX}: write ?limit=100");
        Box::new(bad_request(&message))
    })
}

/// Returns the response with the agent's reply.
#[must_use]
pub fn render_agent(reply: &Reply, format: &Format) -> Response {
    match reply {
        Reply::Overlay(info) => format.message(&wire::encode_agent(info)),
        Reply::Health(health) => {
            let status = match health.status {
                Condition::Ok | Condition::Degraded => StatusCode::OK,
                Condition::Registering | Condition::Detached | Condition::Failed => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            format.json_value(status, health)
        }
        Reply::Probes(details) => format.json_value(StatusCode::OK, details),
        Reply::Metrics(snapshot) => metrics::render(Agent::CATALOGUE, snapshot, format),
    }
}

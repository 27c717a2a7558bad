//! The endpoints of the agent.

use std::borrow::Cow;

use http::{Method, StatusCode};
use libprocess::limits::RequestClass;
use overlay_engine::agent::{self, AddressQuery, Agent, Condition, Reply};
use overlay_engine::state_machine::StateMachine as _;
use overlay_types::addr::OverlayName;
use overlay_wire as wire;

use super::{
    Format, JSONP, Request, Response, bad_request, metrics, not_found, path, require_read,
};

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";
const PROBES: &str = "/overlay-agent/probes";
const ADDRESSES: &str = "/overlay-agent/addresses";
const METRICS: &str = "/overlay-agent/metrics";

/// Maximum length of a request's body in bytes. Every body is refused.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// The parameter of [`ADDRESSES`] with the name of an overlay.
const OF_OVERLAY: &str = "overlay";
/// The parameter of [`PROBES`] with the number of peers to name, and of [`ADDRESSES`] with the number
/// of addresses to list.
const LIMIT: &str = "limit";
/// Default and maximum of this number. A peer takes 70 bytes, and an address about 150 bytes.
const LIMIT_DEFAULT: usize = 64;
const LIMIT_MAX: usize = 1024;

/// Returns the limits of a request to the agent. No response is large: the agent knows only its own
/// assignments, and 1,024 peers or addresses take 150 KiB.
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
        ADDRESSES => agent::Request::Addresses(AddressQuery {
            overlay: overlay(request)?,
            limit: limit(request)?,
        }),
        METRICS => agent::Request::Metrics,
        _ => return Err(not_found(request, &[OVERLAY, HEALTH, PROBES, ADDRESSES, METRICS])),
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
        agent::Request::Addresses(_) => {
            require_read(request, &[OF_OVERLAY, LIMIT, JSONP])?;
            Format::negotiated(request)?
        }
        agent::Request::Overlay | agent::Request::Health => {
            require_read(request, &[JSONP])?;
            Format::negotiated(request)?
        }
    };
    Ok((agent_request, format))
}

fn parameter<'a>(request: &'a Request, name: &str) -> Option<Cow<'a, str>> {
    let query = request.uri().query().unwrap_or_default();
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    parameters.find(|(key, _)| key.as_ref() == name).map(|(_, value)| value)
}

/// Returns the name of the query `?overlay=vxlan-1`.
fn overlay(request: &Request) -> Result<Option<OverlayName>, Box<Response>> {
    let name = parameter(request, OF_OVERLAY).map(|text| text.parse()).transpose();
    name.map_err(|error| Box::new(bad_request(&format!("overlay: {error}"))))
}

/// Returns the number of the query `?limit=100`.
fn limit(request: &Request) -> Result<usize, Box<Response>> {
    let Some(text) = parameter(request, LIMIT) else { return Ok(LIMIT_DEFAULT) };
    text.parse().ok().filter(|limit| *limit <= LIMIT_MAX).ok_or_else(|| {
        let message = format!("limit: it is no number from 0 to {LIMIT_MAX}: write ?limit=100");
        Box::new(bad_request(&message))
    })
}

/// Returns the response with the agent's reply.
#[must_use]
pub fn render_agent(reply: &Reply, format: &Format) -> Response {
    match reply {
        Reply::Overlay(info, counts) => {
            format.message(&wire::encode_counted_agent(info, Some(counts)))
        }
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
        Reply::Addresses(details) => format.json_value(StatusCode::OK, details),
        Reply::Metrics(snapshot) => metrics::render(Agent::CATALOGUE, snapshot, format),
    }
}

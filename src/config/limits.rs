//! `limits` of `master_config` and of `agent_config`: what peers can make the program hold and do.

use std::time::Duration;

use super::document::{Document, Object};
use super::keys::LIMITS;
use crate::limits::{Limit, Limits, Unit};

/// Whose limits they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    Agent,
}

/// Reads `limits`, where it is there; a limit that is not written has its default.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>, side: Side) -> Limits {
    let mut limits = match side {
        Side::Master => Limits::of_master(),
        Side::Agent => Limits::of_agent(),
    };
    let Some(object) = document.inner(object, "limits", &LIMITS) else {
        return limits;
    };
    for limit in Limit::all() {
        let Some(node) = object.value(limit.key()) else { continue };
        if side == Side::Agent && !limit.is_of_agents() {
            document.refuse(&node, "is a limit of masters: nobody registers with an agent");
            continue;
        }
        let (least, most) = limit.range().into_inner();
        let value = match limit.unit() {
            Unit::Count | Unit::Bytes | Unit::PerSecond => document.count(&node, limit.range()),
            Unit::Seconds => {
                let range = Duration::from_secs(least)..=Duration::from_secs(most);
                document.duration(&node, range, "30s").map(|duration| duration.as_secs())
            }
        };
        if let Some(value) = value {
            limits.set(limit, value);
        }
    }
    clamp_to_totals(document, &object, &mut limits);
    limits
}

/// Refuses a limit that is written higher than the one it is a part of. A default that is higher
/// follows what was written.
fn clamp_to_totals<'a>(document: &mut Document<'a>, object: &Object<'a>, limits: &mut Limits) {
    for part in Limit::all() {
        let Some(total) = part.total() else { continue };
        let (value, most) = (limits.get(part), limits.get(total));
        if value <= most {
            continue;
        }
        if let Some(node) = object.value(part.key()) {
            let key = total.key();
            document
                .refuse(&node, format_args!("{value} is more than '{key}', {most}: write less"));
        }
        limits.set(part, most);
    }
}

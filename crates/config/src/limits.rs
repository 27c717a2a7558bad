//! `limits` of `master_config` and of `agent_config`: how many resources peers can make the program
//! use.

use std::time::Duration;

use libprocess::limits::{Limit, Limits, Unit};

use super::document::{Document, Object};
use super::keys::LIMITS;

/// The program that the limits apply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    Agent,
}

/// Reads `limits`, if given. A limit that is not given has its default.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>, side: Side) -> Limits {
    let mut limits = match side {
        Side::Master => Limits::for_server(),
        Side::Agent => Limits::for_client(),
    };
    let Some(object) = document.nested_object(object, "limits", &LIMITS) else {
        return limits;
    };
    for limit in Limit::all() {
        let Some(node) = object.value(limit.key()) else { continue };
        if side == Side::Agent && !limit.applies_to_clients() {
            document.refuse(&node, "is a limit of masters: an agent receives no registrations");
            continue;
        }
        let (least, most) = limit.range().into_inner();
        let value = match limit.unit() {
            Unit::Count | Unit::Bytes | Unit::PerSecond => {
                document.read_count(&node, limit.range())
            }
            Unit::Seconds => {
                let range = Duration::from_secs(least)..=Duration::from_secs(most);
                document.read_duration(&node, range, "30s").map(|duration| duration.as_secs())
            }
        };
        if let Some(value) = value {
            limits.set(limit, value);
        }
    }
    clamp_to_totals(document, &object, &mut limits);
    limits
}

/// Refuses a given limit that exceeds its total. A default that exceeds its total is lowered to the
/// total.
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

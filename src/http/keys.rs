//! Refuses keys that an endpoint does not know, in queries and in JSON bodies. A misspelled
//! `dry_run` that is ignored would delete agents.

use std::collections::BTreeSet;
use std::fmt;

use overlay_config::nearest_key;
use overlay_types::escape::bounded_line;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Request, Response, bad_request};

/// Parameters that every endpoint ignores: jQuery and the user interface of DC/OS add them, so that
/// no cache answers.
const CACHE_BUSTERS: [&str; 2] = ["_", "_timestamp"];
/// Maximum length of a key that a message repeats, in characters.
const KEY_SHOWN: usize = 64;

/// Refuses parameters of the query that are not in `known`, and parameters that are given twice.
pub(super) fn require_query(request: &Request, known: &[&str]) -> Result<(), Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        if CACHE_BUSTERS.contains(&name.as_ref()) {
            continue;
        }
        if let Some(fault) = fault_of(&name, "parameter", known) {
            return Err(Box::new(bad_request(&format!("query: {fault}"))));
        }
        if !seen.insert(name.clone()) {
            return Err(Box::new(bad_request(&format!("query: {}", given_twice(&name)))));
        }
    }
    Ok(())
}

/// Refuses a body, which the endpoint would ignore. An empty JSON object is no content.
pub(super) fn require_no_body(request: &Request) -> Result<(), Box<Response>> {
    let body = request.body().trim_ascii();
    let is_empty_object = body
        .strip_prefix(b"{")
        .and_then(|rest| rest.strip_suffix(b"}"))
        .is_some_and(|members| members.trim_ascii().is_empty());
    if body.is_empty() || is_empty_object {
        return Ok(());
    }
    Err(Box::new(bad_request("this endpoint takes no body: send the request without one")))
}

/// Checks that `body` is a JSON object that has only keys of `known`, each at most once.
///
/// # Errors
/// The reason.
pub(super) fn check_members(body: &[u8], known: &[&str]) -> Result<(), String> {
    let Keys(names) = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut seen = BTreeSet::new();
    for name in &names {
        if let Some(fault) = fault_of(name, "key", known) {
            return Err(fault);
        }
        if !seen.insert(name) {
            return Err(given_twice(name));
        }
    }
    Ok(())
}

/// Describes a name that is not in `known`.
fn fault_of(name: &str, noun: &str, known: &[&str]) -> Option<String> {
    if known.contains(&name) {
        return None;
    }
    let shown = bounded_line(name, KEY_SHOWN);
    let remedy = match nearest_key(name, known.iter().copied()) {
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None if known.is_empty() => format!("this endpoint takes no {noun}s"),
        None => format!("the {noun}s here are {}", known.join(", ")),
    };
    Some(format!("'{shown}' is no {noun}: {remedy}"))
}

fn given_twice(name: &str) -> String {
    let shown = bounded_line(name, KEY_SHOWN);
    format!("'{shown}' is given more than once: keep one of them")
}

/// The keys of a JSON object, in the order of the text.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object in { }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = map.next_key()? {
                    names.push(name);
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(Keys(names))
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

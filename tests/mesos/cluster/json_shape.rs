//! The shape of JSON values: keys and types without values.

use std::collections::BTreeSet;

use serde_json::Value;

/// Reads a JSON file that was recorded from the C++ modules on a real Mesos.
macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<serde_json::Value>(include_str!(concat!("../../golden/", $name)))
            .expect("recordings are JSON")
    };
}
pub(crate) use golden;

/// Returns the shape of `value` as text. The shape of a list is the set of the shapes of its
/// elements.
pub(crate) fn json_shape(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(elements) => {
            let shapes: BTreeSet<String> = elements.iter().map(json_shape).collect();
            format!("[{}]", shapes.into_iter().collect::<Vec<_>>().join(" "))
        }
        Value::Object(members) => {
            let mut shapes: Vec<String> =
                members.iter().map(|(key, value)| format!("{key}:{}", json_shape(value))).collect();
            shapes.sort();
            format!("{{{}}}", shapes.join(" "))
        }
    }
}

//! The form of JSON: its keys and types without its values.

use std::collections::BTreeSet;

use serde_json::Value;

/// What was recorded from the C++ modules on a real Mesos.
macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<serde_json::Value>(include_str!(concat!("../../golden/", $name)))
            .expect("recordings are JSON")
    };
}
pub(crate) use golden;

/// The form of `value`, as text. That of a list is the set of the forms in it.
pub(crate) fn form(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(elements) => {
            let forms: BTreeSet<String> = elements.iter().map(form).collect();
            format!("[{}]", forms.into_iter().collect::<Vec<_>>().join(" "))
        }
        Value::Object(members) => {
            let mut forms: Vec<String> =
                members.iter().map(|(key, value)| format!("{key}:{}", form(value))).collect();
            forms.sort();
            format!("{{{}}}", forms.join(" "))
        }
    }
}

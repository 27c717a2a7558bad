//! `credential` of `agent_config`, `credentials` of `master_config`, and `authentication`: how agents
//! and masters authenticate each other.

use std::path::PathBuf;

use overlay_types::protocol::AuthenticationMode;

use super::credential::credential_path;
use super::dataplane::read_choice;
use super::document::{Document, Node, Object};
use super::value::check_absolute;

const MODES: [(&str, AuthenticationMode); 2] =
    [("permitted", AuthenticationMode::Permitted), ("required", AuthenticationMode::Required)];

/// How agents and masters authenticate each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticationConfig {
    /// The file with the credential of an agent, or with those that a master accepts.
    pub file: PathBuf,
    /// What happens to messages that are not authenticated.
    pub mode: AuthenticationMode,
}

/// Reads the path at `key`, and `authentication`. Without a path, nothing is authenticated.
pub(super) fn read<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    key: &'static str,
    default: AuthenticationMode,
) -> Option<AuthenticationConfig> {
    let mode = object.value("authentication");
    let file = object.value(key);
    if let Some(node) = mode.as_ref().filter(|_| file.is_none()) {
        document
            .refuse(node, format_args!("has no effect without '{key}': write the path of a file"));
    }
    let file = file.and_then(|node| read_path(document, &node, key));
    let mode = mode.map_or(Some(default), |node| read_choice(document, &node, &MODES));
    Some(AuthenticationConfig { file: file?, mode: mode? })
}

fn read_path<'a>(document: &mut Document<'a>, node: &Node<'a>, key: &str) -> Option<PathBuf> {
    let example = match key {
        "credential" => "/etc/mesos-overlay/credential",
        _ => "/etc/mesos-overlay/credentials",
    };
    let path = document.read_path(node, example)?;
    // Mesos also accepts a `file://` URL.
    let path = credential_path(&path).to_owned();
    check_absolute(&path, example).map_err(|error| document.refuse(node, error)).ok()?;
    Some(path)
}

//! The forms in which a state is in a file: our own, which is text; that of the C++ modules, which
//! is the value of their replicated log; and what a master shows of itself, of either kind.

use std::sync::Arc;

use super::log_directory::replaced_value;
use super::replicated_log::{records, take_over};
use super::{Counts, Key, StoreError, unknown_name};
use crate::protocol::Network;
use crate::wire::{LoggedState, StateFile, doubts, is_state_file};
use crate::words::counted;

/// A state that was in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// All records, in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// How far the state has counted; nothing where the form does not say.
    pub counts: Counts,
    /// What an operator has to know of it, a sentence each.
    pub doubts: Vec<String>,
}

/// Reads the content of a file, whichever form it has.
///
/// # Errors
/// With every problem of it, a line each.
pub fn read_form(bytes: &[u8]) -> Result<Content, Vec<String>> {
    let mut content = match std::str::from_utf8(bytes) {
        _ if bytes.trim_ascii().is_empty() => return Err(vec!["it is empty".to_owned()]),
        Ok(text) if is_state_file(text) => own_form(text)?,
        // No protobuf of a state begins with it.
        Ok(text) if text.trim_start().starts_with('{') => {
            let neither = "it is neither an exported state nor what a master shows";
            let state = LoggedState::from_json(bytes)
                .map_err(|error| vec![format!("{neither}: {error}")])?;
            value(state, neither)?
        }
        _ => {
            let none = "it is neither an exported state, nor JSON of a master, nor the state of the \
                        C++ modules";
            let state =
                LoggedState::decode(bytes).map_err(|error| vec![format!("{none}: {error}")])?;
            value(state, none)?
        }
    };
    content.doubts.extend(doubts(&content.records));
    Ok(content)
}

fn own_form(text: &str) -> Result<Content, Vec<String>> {
    let StateFile { records, counts, unknown, .. } = StateFile::parse(text)?;
    if !unknown.is_empty() {
        return Err(vec![format!(
            "unknown: {}: import it with that version, or empty the list to go without",
            of_later_version(unknown.len())
        )]);
    }
    Ok(Content { records, counts, doubts: Vec::new() })
}

fn of_later_version(count: usize) -> String {
    format!(
        "a later version of mesos-overlay has written {} that this one does not know",
        counted(count, "record")
    )
}

/// The value of a replicated log; `none` is what is said if it is none.
fn value(mut state: LoggedState, none: &str) -> Result<Content, Vec<String>> {
    if !state.has_network() {
        return Err(vec![none.to_owned()]);
    }
    let mut doubts = state.losses();
    take_over(&mut state);
    let unknown: Vec<String> = state
        .entries()
        .filter(|(key, _)| Key::from_bytes(key).is_none())
        .map(|(key, _)| unknown_name(key))
        .collect();
    if !unknown.is_empty() {
        return Err(vec![format!(
            "{}: import it with that version",
            of_later_version(unknown.len())
        )]);
    }
    let (counts, doubt) = state.counts().corrected();
    doubts.extend(doubt);
    Ok(Content { records: records(&state).collect(), counts, doubts })
}

/// The state in the form of the C++ modules, which are shown what agents have of `network`. What
/// only we know is beside, where they do not look.
///
/// # Errors
/// When there are more versions than there can be.
pub fn write_cpp_form(
    records: &[(Key, Vec<u8>)],
    former: Counts,
    network: Arc<Network>,
) -> Result<Vec<u8>, StoreError> {
    replaced_value(Vec::new(), (records, former), network).map(|(value, _)| value)
}

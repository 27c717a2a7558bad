//! The file formats of a state: the text of `mesos-overlay export`; the value of the replicated log
//! of the C++ modules; and the JSON state that a master of either kind serves.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::protocol::{AgentRecord, Network, Principal, Record};
use overlay_types::state::{Counts, Key, StoreError};
use overlay_types::text::pluralize;
use overlay_wire::{
    LoggedState, StateFile, decode_record, encode_record, find_conflicts, is_state_file,
};

use crate::hex_name;
use crate::key::KeyBytes as _;
use crate::replicated_log::{import_foreign, records, replace_records};

/// A state that was read from a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportedState {
    /// All records, in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// Epoch and version of the state; 0 where the format has none.
    pub counts: Counts,
    /// Warnings for the operator, one sentence each.
    pub warnings: Vec<String>,
}

/// Parses the content of a file in any of the formats.
///
/// # Errors
/// With every problem of the file, one line each.
pub fn parse_state(bytes: &[u8]) -> Result<ImportedState, Vec<String>> {
    let mut state = match std::str::from_utf8(bytes) {
        _ if bytes.trim_ascii().is_empty() => return Err(vec!["it is empty".to_owned()]),
        Ok(text) if is_state_file(text) => parse_state_file(text)?,
        // The protobuf encoding of a state never begins with a brace.
        Ok(text) if text.trim_start().starts_with('{') => {
            let not_a_state = "it is neither an exported state nor the JSON state of a master";
            let (state, principals) = LoggedState::from_json(bytes)
                .map_err(|error| vec![format!("{not_a_state}: {error}")])?;
            let mut state = import_logged_state(state, not_a_state)?;
            restore_principals(&mut state.records, &principals);
            state
        }
        _ => {
            let not_a_state = "it is neither an exported state, nor the JSON state of a master, \
                               nor the state of the C++ modules";
            let state = LoggedState::decode(bytes)
                .map_err(|error| vec![format!("{not_a_state}: {error}")])?;
            import_logged_state(state, not_a_state)?
        }
    };
    state.warnings.extend(find_conflicts(&state.records));
    Ok(state)
}

fn parse_state_file(text: &str) -> Result<ImportedState, Vec<String>> {
    let StateFile { records, counts, unknown, .. } = StateFile::parse(text)?;
    if !unknown.is_empty() {
        return Err(vec![format!(
            "unknown: {}: import the file with the later version, or empty the list to omit them",
            unknown_records(unknown.len())
        )]);
    }
    Ok(ImportedState { records, counts, warnings: Vec::new() })
}

fn unknown_records(count: usize) -> String {
    format!(
        "a later version of mesos-overlay has written {} that this version does not know",
        pluralize(count, "record")
    )
}

/// Imports the value of a replicated log. `not_a_state` is the error for a value without a network.
fn import_logged_state(
    mut state: LoggedState,
    not_a_state: &str,
) -> Result<ImportedState, Vec<String>> {
    if !state.has_network() {
        return Err(vec![not_a_state.to_owned()]);
    }
    let mut warnings = state.losses();
    import_foreign(&mut state);
    let unknown: Vec<String> = state
        .entries()
        .filter(|(key, _)| Key::from_bytes(key).is_none())
        .map(|(key, _)| hex_name(key))
        .collect();
    if !unknown.is_empty() {
        return Err(vec![format!(
            "{}: import the file with the later version",
            unknown_records(unknown.len())
        )]);
    }
    let (counts, warning) = state.counts().corrected();
    warnings.extend(warning);
    Ok(ImportedState { records: records(&state).collect(), counts, warnings })
}

/// Notes in the records which agents have authenticated: an agent that has is not accepted
/// unauthenticated after the import either.
fn restore_principals(records: &mut [(Key, Vec<u8>)], principals: &BTreeMap<Ipv4Addr, Principal>) {
    for (key, bytes) in records {
        if let Key::Agent(ip) = key
            && let Some(principal) = principals.get(ip)
            && let Ok(Record::Agent(record)) = decode_record(bytes)
        {
            let authenticated = Some(principal.clone());
            *bytes = encode_record(&Record::Agent(AgentRecord { authenticated, ..record }));
        }
    }
}

/// Encodes the state in the format of the C++ modules, with the allocations of each agent in
/// `network`. Fields that the C++ modules do not know are stored in a part that they ignore.
///
/// # Errors
/// When the version of `former` is too high for another commit.
pub fn encode_cpp_state(
    records: &[(Key, Vec<u8>)],
    former: Counts,
    network: Arc<Network>,
) -> Result<Vec<u8>, StoreError> {
    replace_records(Vec::new(), (records, former), network).map(|(value, _)| value)
}

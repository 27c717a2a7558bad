//! Reads HTTP responses of masters and agents with bounded memory.
//!
//! A generic JSON value takes up to 90 times the memory of its text. So lists are read element by
//! element, and each element has its own limit. The server is not trusted: another program may use
//! the address, or the master may be broken.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use overlay_types::protocol::{AgentContact, State};
use overlay_types::text::pluralize;
use overlay_wire as wire;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::output::sanitize;

/// Longest JSON text of one agent or of the network. 128 overlays take 128 KiB.
const ELEMENT_MAX: usize = 256 * 1024;

/// Limits of the problems that are shown of a server's health: their number, and the characters of
/// each. A hostile server can send more than a terminal should show.
const PROBLEMS_SHOWN: usize = 100;
const PROBLEM_MAX: usize = 1000;

const MIB: usize = 1024 * 1024;

/// Reads the body of a response. Fails if it has more than `max` bytes.
///
/// The bytes are copied out of the frames. Otherwise each chunk of one byte would keep a frame of
/// 32 bytes and the whole receive buffer alive.
pub(super) async fn read_body(mut body: Incoming, max: usize) -> Result<Bytes, BodyError> {
    let too_long = || BodyError::TooLong { max };
    if body.size_hint().lower() > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(BodyError::Http)?.into_data() {
            if data.len() > max - bytes.len() {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
}

/// Why the body of a response cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body has more than {}", size(*max))]
    TooLong { max: usize },
    #[error(transparent)]
    Http(hyper::Error),
}

/// Writes a limit: all of them are whole numbers of KiB.
fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} KiB", bytes / 1024)
    }
}

/// Decodes the JSON of `/overlay-master/state`.
pub(super) fn read_state(body: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        network: Option<&'a RawValue>,
        #[serde(borrow)]
        agents: Option<&'a RawValue>,
    }
    let parts: Parts<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let network = parts.network.map_or("null", RawValue::get);
    within_limit("network", network)?;
    let without_agents = format!("{{\"network\":{network}}}");
    let without_agents =
        wire::parse_json(without_agents.as_bytes()).map_err(|error| error.to_string())?;
    let mut state = wire::decode_state(&without_agents).map_err(|error| error.to_string())?;
    if let Some(agents) = parts.agents {
        for_each_element("agents", agents, |agent| {
            let agent = wire::parse_json(agent.as_bytes()).map_err(|error| error.to_string())?;
            let contact = wire::decode_contact(&agent);
            let failures = wire::decode_peer_failures(&agent);
            let counts = wire::decode_counts(&agent);
            let agent = wire::decode_agent(&agent).map_err(|error| error.to_string())?;
            if contact != AgentContact::default() {
                state.contacts.insert(agent.ip, contact);
            }
            if let Some(failures) = failures {
                state.peer_failures.insert(agent.ip, failures);
            }
            if !counts.is_empty() {
                state.address_counts.insert(agent.ip, counts);
            }
            state.agents.push(Arc::new(agent));
            Ok(())
        })?;
    }
    Ok(state)
}

/// Returns the problems of a server's health for display: the first hundred, and the number of the
/// remaining ones.
pub(super) fn displayed_problems(problems: &[String]) -> Vec<String> {
    let beginning = |problem: &String| {
        let start = problem.char_indices().nth(PROBLEM_MAX).map_or(problem.len(), |(end, _)| end);
        sanitize(&problem[..start])
    };
    let mut shown: Vec<String> = problems.iter().take(PROBLEMS_SHOWN).map(beginning).collect();
    let omitted = problems.len() - shown.len();
    if omitted > 0 {
        shown.push(format!("… and {}: see its health", pluralize(omitted as u128, "more problem")));
    }
    shown
}

/// Calls `read` with the text of each element of the JSON list `list`. Errors name the list `name`.
pub(super) fn for_each_element(
    name: &str,
    list: &RawValue,
    read: impl FnMut(&str) -> Result<(), String>,
) -> Result<(), String> {
    let mut element_error = None;
    let elements = Elements { name, read, element_error: &mut element_error };
    let result = elements.deserialize(&mut serde_json::Deserializer::from_str(list.get()));
    match (element_error, result) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(format!("{name}: {error}")),
        (None, Ok(())) => Ok(()),
    }
}

struct Elements<'a, F> {
    name: &'a str,
    read: F,
    /// The first error of `read`. The deserializer's error would add a line and a column that count
    /// from the start of the list.
    element_error: &'a mut Option<String>,
}

impl<'de, F: FnMut(&str) -> Result<(), String>> DeserializeSeed<'de> for Elements<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(&str) -> Result<(), String>> Visitor<'de> for Elements<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    /// Accepts null as an empty list, as Mesos does.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while let Some(element) = list.next_element::<&RawValue>()? {
            let label = format!("{}[{index}]", self.name);
            let element = within_limit(&label, element.get())
                .and_then(|()| (self.read)(element.get()).map_err(|why| format!("{label}: {why}")));
            if let Err(error) = element {
                *self.element_error = Some(error);
                return Err(A::Error::custom("an element cannot be used"));
            }
            index += 1;
        }
        Ok(())
    }
}

/// Returns whether the generic values of this JSON take at most `max` bytes of memory. The estimate
/// allocates nothing, and ignores text after a syntax error, which is never parsed.
pub(super) fn is_json_within(text: &[u8], max: usize) -> bool {
    let remaining = Cell::new(Some(max));
    // The later parser reports syntax errors.
    let _ = MemoryBudget(&remaining).deserialize(&mut serde_json::Deserializer::from_slice(text));
    remaining.get().is_some()
}

/// Subtracts the memory of a JSON value from the remaining budget, which becomes `None` if it is
/// exceeded.
#[derive(Clone, Copy)]
struct MemoryBudget<'a>(&'a Cell<Option<usize>>);

impl MemoryBudget<'_> {
    /// Bytes of a value in a list or a map.
    const VALUE: usize = 32;
    /// Bytes of a node of a map. A node has slots for 11 members and is half full at worst.
    const NODE: usize = 700;
    const NODE_MEMBERS: usize = 6;
    /// Overhead of the allocator for each text.
    const TEXT: usize = 32;

    fn take<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let remaining = self.0.get().and_then(|remaining| remaining.checked_sub(bytes));
        self.0.set(remaining);
        remaining.map(|_| ()).ok_or_else(|| E::custom("it takes too much memory"))
    }
}

impl<'de> DeserializeSeed<'de> for MemoryBudget<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MemoryBudget<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.take(Self::VALUE)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.take(Self::VALUE)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.take(Self::VALUE)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.take(Self::VALUE)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.take(Self::VALUE)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.take(Self::VALUE + Self::TEXT + text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.take(Self::VALUE)?;
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.take(Self::VALUE)?;
        let mut count = 0_usize;
        while map.next_key_seed(self)?.is_some() {
            if count.is_multiple_of(Self::NODE_MEMBERS) {
                self.take(Self::NODE)?;
            }
            map.next_value_seed(self)?;
            count += 1;
        }
        Ok(())
    }
}

fn within_limit(label: &str, text: &str) -> Result<(), String> {
    if text.len() > ELEMENT_MAX {
        return Err(format!("{label}: has {} bytes, limit {ELEMENT_MAX}", text.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &[u8] = include_bytes!("../../tests/golden/overlay-master-state.json");
    const MEBIBYTE: u64 = 1024 * 1024;

    /// Reads a state with this JSON as its agents. Returns the result and the peak memory.
    fn read(agents: &str) -> (Result<State, String>, u64) {
        let network = r#"{"vtep_subnet":"44.128.0.0/16","vtep_mac_oui":"70:B3:D5:00:00:00"}"#;
        let text = format!(r#"{{"other":{agents},"agents":{agents},"network":{network}}}"#);
        let mut state = None;
        let taken = allocation_counter::measure(|| state = Some(read_state(text.as_bytes())));
        (state.unwrap(), taken.bytes_max)
    }

    #[test]
    fn state_read_by_elements_equals_whole_state() {
        let state = read_state(STATE).unwrap();
        let whole = wire::parse_json(STATE).unwrap();
        assert_eq!(state, wire::decode_state(&whole).unwrap());
        assert!(!state.agents.is_empty());
        assert_eq!(read("null").0.unwrap().agents, []);
        assert_eq!(read("[]").0.unwrap().agents, []);
    }

    #[test]
    fn invalid_state_is_refused_with_element_index() {
        let error_of = |agents| read(agents).0.unwrap_err();
        assert_eq!(
            error_of(r#"[{"ip":"10.0.0.7"},{"ip":"10.0.0"}]"#),
            "agents[1]: ip: invalid IPv4 address syntax"
        );
        assert_eq!(error_of("[7]"), "agents[0]: expected an object");
        assert_eq!(
            error_of("7"),
            "agents: invalid type: integer `7`, expected a list at line 1 column 1"
        );
    }

    #[test]
    fn state_of_empty_objects_takes_little_memory() {
        // A generic value takes 700 bytes for every 7 bytes of this text.
        let objects = vec![r#"{"":0}"#; 1 << 20].join(",");
        let (state, taken) = read(&format!("[{objects}]"));
        assert!(state.is_err());
        assert!(taken < MEBIBYTE, "{taken} bytes");
        let (state, taken) = read(&format!(r#"[{{"ip":"10.0.0.7","overlays":[{objects}]}}]"#));
        let length = "{\"ip\":\"10.0.0.7\",\"overlays\":[]}".len() + objects.len();
        assert_eq!(state.unwrap_err(), format!("agents[0]: has {length} bytes, limit 262144"));
        assert!(taken < MEBIBYTE, "{taken} bytes");
    }

    #[test]
    fn state_of_many_agents_is_read_one_agent_at_a_time() {
        let agents = vec![r#"{"ip":"10.0.0.7","unknown":[{"":{"":0}}]}"#; 100_000].join(",");
        let length = agents.len() as u64;
        let (state, taken) = read(&format!("[{agents}]"));
        assert_eq!(state.unwrap().agents.len(), 100_000);
        assert!(taken < 3 * length, "{taken} bytes for {length}");
    }

    #[test]
    fn memory_estimate_is_near_allocated_memory() {
        let texts = [
            String::from_utf8(STATE.to_vec()).unwrap(),
            format!("[{}0]", "0,".repeat(10_000)),
            format!("[{}0]", r#"{"":0},"#.repeat(10_000)),
            format!("[{}0]", r#""text","#.repeat(10_000)),
            format!(
                "{{{}}}",
                (0..10_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",")
            ),
        ];
        for text in texts {
            let mut value = None;
            let taken = allocation_counter::measure(|| {
                value = serde_json::from_str::<serde_json::Value>(&text).ok();
            });
            assert!(value.is_some());
            let taken = usize::try_from(taken.bytes_max).unwrap();
            let start = &text[..text.len().min(20)];
            assert!(!is_json_within(text.as_bytes(), taken / 3), "{start}: {taken}");
            assert!(is_json_within(text.as_bytes(), taken * 3), "{start}: {taken}");
        }
        let hostile = format!("[{}", r#"{"":0},"#.repeat(1 << 16));
        let taken = allocation_counter::measure(|| {
            assert!(!is_json_within(hostile.as_bytes(), 1 << 20));
            assert!(is_json_within(b"[[[", 1 << 20));
        });
        assert!(taken.bytes_max < 4096, "{} bytes", taken.bytes_max);
    }

    #[test]
    fn problems_of_hostile_health_are_limited() {
        let few = displayed_problems(&["one\u{1b}[31m".to_owned(), "two".to_owned()]);
        assert_eq!(few, ["one\\u{1b}[31m", "two"]);
        let many = displayed_problems(&vec!["ä".repeat(5000); 5000]);
        assert_eq!(many.len(), 101);
        assert_eq!(many[0], "ä".repeat(1000));
        assert_eq!(many[100], "… and 4900 more problems: see its health");
    }
}

//! A state as a text file, for backups and for moving a state between stores. The format is JSON
//! that an operator can read, with one line for each agent and for each entry of the history.
//!
//! The file preserves the bytes of every record. If decoding and encoding a record does not
//! reproduce its bytes, because this version cannot read it or does not know all of its fields, the
//! file holds the record as bytes. The checksum covers the records and not the text, so the text
//! may be reformatted.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_types::addr::Family;
use overlay_types::escape;
use overlay_types::protocol::{
    Addresses, AgentRecord, Author, HistoryEntry, HistoryEvent, OverlayRecord, Principal,
    PrincipalError, Record, ReleasedRecord,
};
use overlay_types::state::{Counts, Key};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::field::{parse_subnet, to_text};
use crate::record::{decode_history, decode_record, encode_history, encode_record};

/// The value of the first key of a state file.
const FORM: &str = "mesos-overlay state";
/// Version of the file format. A file with a later version is refused.
const FORM_VERSION: u32 = 1;
/// Maximum number of reported problems. A file with more problems is probably the wrong file.
const PROBLEMS_MAX: usize = 100;

/// The content of a state file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateFile {
    /// The store from which the state was exported.
    pub from: String,
    /// Epoch and version of the state in that store.
    pub counts: Counts,
    /// All records, in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// Entries of a later version of this program: the key in the store, and the bytes.
    pub unknown: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentItem {
    ip: Ipv4Addr,
    #[serde(flatten)]
    addresses: AddressItems,
    allocate_subnet: bool,
    mesos_bridge: bool,
    docker_bridge: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    underlay: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authenticated: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleasedItem {
    ip: Ipv4Addr,
    at: u64,
    #[serde(flatten)]
    addresses: AddressItems,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryItem {
    part: u64,
    at: u64,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Ipv4Addr>,
    event: String,
    #[serde(flatten)]
    addresses: AddressItems,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AddressItems {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vtep_ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vtep_ip6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overlays: Vec<OverlayItem>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverlayItem {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subnet: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subnet6: Option<String>,
}

/// A record as bytes: the record of an agent, or a segment of the history.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BytesItem {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<u64>,
    /// The reason why the record is kept as bytes, for the operator.
    #[serde(default)]
    why: String,
    bytes: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnknownItem {
    key: String,
    bytes: String,
}

/// The file with unparsed items, so that each item can have its own problem.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStateFile<'a> {
    #[serde(rename = "form")]
    _form: String,
    #[serde(rename = "form_version")]
    _form_version: u32,
    #[serde(default)]
    from: String,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    version: u64,
    checksum: Option<String>,
    #[serde(borrow)]
    agents: Vec<&'a RawValue>,
    #[serde(borrow)]
    released: Vec<&'a RawValue>,
    #[serde(borrow)]
    history: Vec<&'a RawValue>,
    #[serde(borrow)]
    bytes: Vec<&'a RawValue>,
    #[serde(borrow)]
    unknown: Vec<&'a RawValue>,
}

/// The keys that identify the file format.
#[derive(Debug, Deserialize)]
struct Header {
    form: Option<String>,
    form_version: Option<u32>,
}

/// Whether `text` is a state file of any version, judged by its header.
#[must_use]
pub fn is_state_file(text: &str) -> bool {
    serde_json::from_str::<Header>(text).is_ok_and(|header| header.form.is_some())
}

impl StateFile {
    /// Formats the file.
    #[must_use]
    pub fn print(&self) -> String {
        let (mut agents, mut released) = (Vec::new(), Vec::new());
        let (mut history, mut bytes) = (Vec::new(), Vec::new());
        for (key, record) in &self.records {
            match to_items(*key, record) {
                Ok(Items::Agent(item)) => agents.push(json_line(&item)),
                Ok(Items::Released(item)) => released.push(json_line(&item)),
                Ok(Items::History(items)) => history.extend(items.iter().map(json_line)),
                Err(reason) => bytes.push(json_line(&bytes_item(*key, record, reason))),
            }
        }
        let unknown = self
            .unknown
            .iter()
            .map(|(key, bytes)| json_line(&UnknownItem { key: key.clone(), bytes: to_hex(bytes) }));
        let lists = [
            ("agents", agents),
            ("released", released),
            ("history", history),
            ("bytes", bytes),
            ("unknown", unknown.collect()),
        ];
        let mut text = format!(
            "{{\n  \"form\": \"{FORM}\",\n  \"form_version\": {FORM_VERSION},\n  \"from\": {},\n  \
             \"epoch\": {},\n  \"version\": {},\n  \"checksum\": \"{}\"",
            json_line(&self.from),
            self.counts.epoch,
            self.counts.version,
            checksum(&self.records)
        );
        for (name, items) in lists {
            write!(text, ",\n  \"{name}\": [").expect("writing to a String never fails");
            for (index, item) in items.iter().enumerate() {
                text += if index == 0 { "\n    " } else { ",\n    " };
                text += item;
            }
            text += if items.is_empty() { "]" } else { "\n  ]" };
        }
        text + "\n}\n"
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Returns every problem of the file, one line each.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        check_form(text).map_err(|problem| vec![problem])?;
        let raw: RawStateFile<'_> =
            serde_json::from_str(text).map_err(|error| vec![quotable(&error.to_string())])?;
        let mut reader = RecordReader::default();
        reader.read_records("agents", &raw.agents, |item: AgentItem| {
            let Addresses { vtep_ip, vtep_ip6, overlays } = item.addresses.into_addresses()?;
            let record = Record::Agent(AgentRecord {
                vtep_ip: vtep_ip.ok_or("vtep_ip: missing")?,
                vtep_ip6,
                overlays,
                allocate_subnet: item.allocate_subnet,
                mesos_bridge: item.mesos_bridge,
                docker_bridge: item.docker_bridge,
                underlay: item.underlay,
                direct_mac: None,
                authenticated: item.authenticated.as_deref().map(parse_principal).transpose()?,
            });
            Ok((Key::Agent(item.ip), encode_record(&record)))
        });
        reader.read_records("released", &raw.released, |item: ReleasedItem| {
            let Addresses { vtep_ip, vtep_ip6, overlays } = item.addresses.into_addresses()?;
            let record = ReleasedRecord { at: item.at, vtep_ip, vtep_ip6, overlays };
            Ok((Key::Agent(item.ip), encode_record(&Record::Released(record))))
        });
        reader.read_history(&raw.history);
        reader.read_records("bytes", &raw.bytes, |item: BytesItem| {
            let key = match (item.agent, item.part) {
                (Some(ip), None) => Key::Agent(ip),
                (None, Some(number)) => Key::History(number),
                _ => return Err("write either agent or part".to_owned()),
            };
            Ok((key, from_hex(&item.bytes)?))
        });
        let unknown = reader.read_items("unknown", &raw.unknown, |item: UnknownItem| {
            Ok((item.key, from_hex(&item.bytes)?))
        });
        let counts = Counts { epoch: raw.epoch, version: raw.version };
        reader.problems.extend(counts.check_imported().err());
        let records = reader.finish(raw.checksum.as_deref())?;
        let unknown = unknown.into_iter().map(|(_, item)| item).collect();
        Ok(Self { from: raw.from, counts, records, unknown })
    }
}

fn check_form(text: &str) -> Result<(), String> {
    let header: Header =
        serde_json::from_str(text).map_err(|error| quotable(&error.to_string()))?;
    match (header.form.as_deref(), header.form_version) {
        (Some(FORM), Some(FORM_VERSION)) => Ok(()),
        (Some(FORM), Some(version)) if version > FORM_VERSION => Err(format!(
            "form_version: the file was written by a later version of mesos-overlay (form \
             {version}, this version knows {FORM_VERSION}): run that version"
        )),
        (Some(FORM), version) => Err(format!(
            "form_version: is {}: this version of mesos-overlay knows {FORM_VERSION}",
            version.map_or_else(|| "missing".to_owned(), |version| version.to_string())
        )),
        (form, _) => Err(format!(
            "form: is '{}': a file of `mesos-overlay export` has '{FORM}'",
            quotable(form.unwrap_or_default())
        )),
    }
}

/// The records and problems found so far.
#[derive(Debug, Default)]
struct RecordReader {
    /// Each record with its path in the file.
    records: Vec<(Key, Vec<u8>, String)>,
    problems: Vec<String>,
}

impl RecordReader {
    /// Reads each of `items` separately. Returns each result with the index of its item.
    fn read_items<'a, T: Deserialize<'a>, R>(
        &mut self,
        list: &str,
        items: &[&'a RawValue],
        read: impl Fn(T) -> Result<R, String>,
    ) -> Vec<(usize, R)> {
        let mut results = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let item = serde_json::from_str(item.get()).map_err(|error| error.to_string());
            match item.and_then(&read) {
                Ok(result) => results.push((index, result)),
                Err(reason) => {
                    // The position in the error is relative to the item, so it is removed.
                    let reason = reason.split(" at line ").next().unwrap_or_default();
                    self.problems.push(format!("{list}[{index}]: {}", quotable(reason)));
                }
            }
        }
        results
    }

    /// Reads each of `items` as one record.
    fn read_records<'a, T: Deserialize<'a>>(
        &mut self,
        list: &str,
        items: &[&'a RawValue],
        read: impl Fn(T) -> Result<(Key, Vec<u8>), String>,
    ) {
        for (index, (key, bytes)) in self.read_items(list, items, read) {
            self.records.push((key, bytes, format!("{list}[{index}]")));
        }
    }

    /// Reads the history. Consecutive entries of one segment form one record.
    fn read_history(&mut self, items: &[&RawValue]) {
        let entries = self.read_items("history", items, |item: HistoryItem| {
            let event = HistoryEvent::ALL.into_iter().chain([HistoryEvent::Other]);
            let event = event.into_iter().find(|event| event.to_string() == item.event);
            let entry = HistoryEntry {
                at: item.at,
                version: item.version,
                agent: item.agent,
                event: event.ok_or_else(|| format!("event: '{}' is not an event", item.event))?,
                addresses: item.addresses.into_addresses()?,
                reason: item.reason,
                author: Author { principal: item.principal, client: item.client },
            };
            Ok((item.part, encode_history(&entry)))
        });
        let mut last = None;
        for (index, (part, bytes)) in entries {
            match self.records.last_mut() {
                Some((_, record, _)) if last == Some(part) => record.extend(bytes),
                _ => self.records.push((Key::History(part), bytes, format!("history[{index}]"))),
            }
            last = Some(part);
        }
    }

    /// Sorts the records by key. Refuses duplicate keys and a wrong checksum.
    fn finish(mut self, sum: Option<&str>) -> Result<Vec<(Key, Vec<u8>)>, Vec<String>> {
        self.records.sort_by_key(|(key, ..)| *key);
        for pair in self.records.windows(2) {
            if pair[0].0 == pair[1].0 {
                let [(key, _, first), (_, _, second)] = pair else { continue };
                self.problems.push(format!("{second}: {key} is also {first}: remove one of them"));
            }
        }
        let records = self.records.into_iter().map(|(key, bytes, _)| (key, bytes));
        let records: Vec<(Key, Vec<u8>)> = records.collect();
        if self.problems.is_empty()
            && let Some(sum) = sum
            && sum != checksum(&records)
        {
            self.problems.push(format!(
                "checksum: is '{}', but the records have '{}': the file was damaged or edited; if \
                 the records are correct, remove the line with the checksum",
                quotable(sum),
                checksum(&records)
            ));
        }
        let more = self.problems.len().saturating_sub(PROBLEMS_MAX);
        if more > 0 {
            self.problems.truncate(PROBLEMS_MAX);
            self.problems.push(format!("and {more} more problems"));
        }
        if self.problems.is_empty() { Ok(records) } else { Err(self.problems) }
    }
}

/// The items of one record that the file preserves exactly.
enum Items {
    Agent(AgentItem),
    Released(ReleasedItem),
    History(Vec<HistoryItem>),
}

fn parse_principal(text: &str) -> Result<Principal, String> {
    text.parse().map_err(|error: PrincipalError| format!("authenticated: {error}"))
}

/// Converts a record into items. The error is the reason to keep the record as bytes.
fn to_items(key: Key, bytes: &[u8]) -> Result<Items, String> {
    const UNKNOWN_FIELDS: &str = "it has fields that this version does not know";
    let reencoded = match key {
        Key::Agent(_) => decode_record(bytes).map(|record| encode_record(&record)),
        Key::History(_) => {
            decode_history(bytes).map(|entries| entries.iter().flat_map(encode_history).collect())
        }
    };
    if reencoded.map_err(|error| error.to_string())? != bytes {
        return Err(UNKNOWN_FIELDS.to_owned());
    }
    match key {
        Key::Agent(ip) => match decode_record(bytes).map_err(|error| error.to_string())? {
            Record::Agent(record) => Ok(Items::Agent(AgentItem {
                ip,
                addresses: AddressItems {
                    vtep_ip: Some(record.vtep_ip),
                    vtep_ip6: record.vtep_ip6,
                    overlays: record.overlays.iter().map(OverlayItem::from).collect(),
                },
                allocate_subnet: record.allocate_subnet,
                mesos_bridge: record.mesos_bridge,
                docker_bridge: record.docker_bridge,
                underlay: record.underlay,
                authenticated: record.authenticated.map(|name| name.as_str().to_owned()),
            })),
            Record::Released(record) => {
                let at = record.at;
                let addresses = Addresses::from(record);
                Ok(Items::Released(ReleasedItem { ip, at, addresses: (&addresses).into() }))
            }
        },
        Key::History(part) => {
            let entries = decode_history(bytes).map_err(|error| error.to_string())?;
            if entries.is_empty() {
                return Err("it is empty".to_owned());
            }
            Ok(Items::History(entries.iter().map(|entry| history_item(part, entry)).collect()))
        }
    }
}

fn history_item(part: u64, entry: &HistoryEntry) -> HistoryItem {
    HistoryItem {
        part,
        at: entry.at,
        version: entry.version,
        agent: entry.agent,
        event: entry.event.to_string(),
        addresses: (&entry.addresses).into(),
        reason: entry.reason.clone(),
        principal: entry.author.principal.clone(),
        client: entry.author.client.clone(),
    }
}

fn bytes_item(key: Key, bytes: &[u8], reason: String) -> BytesItem {
    let (agent, part) = match key {
        Key::Agent(ip) => (Some(ip), None),
        Key::History(number) => (None, Some(number)),
    };
    BytesItem { agent, part, why: reason, bytes: to_hex(bytes) }
}

impl AddressItems {
    fn into_addresses(self) -> Result<Addresses, String> {
        let mut overlays: Vec<OverlayRecord> = Vec::with_capacity(self.overlays.len());
        for (index, overlay) in self.overlays.iter().enumerate() {
            let overlay =
                overlay.to_record().map_err(|error| format!("overlays[{index}].{error}"))?;
            if overlays.iter().any(|other| other.name == overlay.name) {
                return Err(format!("overlays[{index}].name: {} appears twice", overlay.name));
            }
            overlays.push(overlay);
        }
        Ok(Addresses { vtep_ip: self.vtep_ip, vtep_ip6: self.vtep_ip6, overlays })
    }
}

impl From<&Addresses> for AddressItems {
    fn from(addresses: &Addresses) -> Self {
        let Addresses { vtep_ip, vtep_ip6, overlays } = addresses;
        let overlays = overlays.iter().map(OverlayItem::from).collect();
        Self { vtep_ip: *vtep_ip, vtep_ip6: *vtep_ip6, overlays }
    }
}

impl OverlayItem {
    fn to_record(&self) -> Result<OverlayRecord, String> {
        let subnet = parse_subnet("subnet", self.subnet.as_deref(), Family::V4);
        let subnet6 = parse_subnet("subnet6", self.subnet6.as_deref(), Family::V6);
        Ok(OverlayRecord {
            name: self.name.parse().map_err(|error| format!("name: {error}"))?,
            subnet: subnet.map_err(|error| error.to_string())?,
            subnet6: subnet6.map_err(|error| error.to_string())?,
        })
    }
}

impl From<&OverlayRecord> for OverlayItem {
    fn from(overlay: &OverlayRecord) -> Self {
        Self {
            name: overlay.name.to_string(),
            subnet: overlay.subnet.map(to_text),
            subnet6: overlay.subnet6.map(to_text),
        }
    }
}

/// Formats `value` as one line of JSON that is harmless to a terminal.
fn json_line(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("all keys are strings and there are no floats");
    escape::json(&text).into_owned()
}

/// Escapes and truncates untrusted text for a message.
fn quotable(text: &str) -> String {
    const LETTERS_MAX: usize = 300;
    escape::bounded_line(text, LETTERS_MAX)
}

fn checksum(records: &[(Key, Vec<u8>)]) -> String {
    let mut sum = flate2::Crc::new();
    for (key, bytes) in records {
        match key {
            Key::Agent(ip) => sum.update(&ip.octets()),
            Key::History(number) => sum.update(&number.to_be_bytes()),
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        sum.update(&length.to_be_bytes());
        sum.update(bytes);
    }
    format!("crc32:{:08x}", sum.sum())
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String never fails");
    }
    text
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes().chunks(2).map(byte_from_hex).collect::<Option<_>>();
    bytes.ok_or_else(|| "bytes: two hexadecimal digits for each byte are expected".to_owned())
}

fn byte_from_hex(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 2)?;
    // `from_str_radix` also accepts a sign.
    u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
}

#[cfg(test)]
mod tests;

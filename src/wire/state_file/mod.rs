//! A state in a text file, for backups and for the way from one store to another: JSON that an
//! operator can read, a line for each agent and for each entry of the history.
//!
//! Nothing gets lost on the way: what is read from the file are the same bytes that were written
//! into it. So a record that this version would not write just as it is, since it cannot read it or
//! does not know all of it, stands there as bytes. The checksum is over the records and not over
//! the text, which may be laid out anew.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::{decode_history, decode_record, encode_history, encode_record};
use crate::addr::Family;
use crate::escape;
use crate::protocol::{
    Addresses, AgentRecord, HistoryEntry, HistoryEvent, OverlayRecord, Record, ReleasedRecord,
};
use crate::store::{Counts, Key};

/// What the first key of such a file says.
const FORM: &str = "mesos-overlay state";
/// Version of the form. A file with a later one is refused.
const FORM_VERSION: u32 = 1;
/// Problems that are told: whoever has more has another file than he thinks.
const PROBLEMS_MAX: usize = 100;

/// A state as it is in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateFile {
    /// The store that it was read from.
    pub from: String,
    /// How far it has counted there.
    pub counts: Counts,
    /// All records, in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// What a later version of this program keeps: the name that its store has for it, and bytes.
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

/// A record as bytes: of an agent, or a part of the history.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BytesItem {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<u64>,
    /// For whoever reads the file.
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

/// The whole file, its items not taken apart: so each of them has a problem of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole<'a> {
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

/// What says which file this is.
#[derive(Debug, Deserialize)]
struct Beginning {
    form: Option<String>,
    form_version: Option<u32>,
}

/// Whether `text` says of itself that it is a state of this form, of whatever version.
#[must_use]
pub fn is_state_file(text: &str) -> bool {
    serde_json::from_str::<Beginning>(text).is_ok_and(|beginning| beginning.form.is_some())
}

impl StateFile {
    /// The text of the file.
    #[must_use]
    pub fn print(&self) -> String {
        let (mut agents, mut released) = (Vec::new(), Vec::new());
        let (mut history, mut bytes) = (Vec::new(), Vec::new());
        for (key, record) in &self.records {
            match readable(*key, record) {
                Ok(Readable::Agent(item)) => agents.push(line(&item)),
                Ok(Readable::Released(item)) => released.push(line(&item)),
                Ok(Readable::History(items)) => history.extend(items.iter().map(line)),
                Err(why) => bytes.push(line(&bytes_item(*key, record, why))),
            }
        }
        let unknown = self
            .unknown
            .iter()
            .map(|(key, bytes)| line(&UnknownItem { key: key.clone(), bytes: to_hex(bytes) }));
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
            line(&self.from),
            self.counts.epoch,
            self.counts.version,
            checksum(&self.records)
        );
        for (name, items) in lists {
            write!(text, ",\n  \"{name}\": [").expect("a String takes all text");
            for (index, item) in items.iter().enumerate() {
                text += if index == 0 { "\n    " } else { ",\n    " };
                text += item;
            }
            text += if items.is_empty() { "]" } else { "\n  ]" };
        }
        text + "\n}\n"
    }

    /// The state in the text of a file.
    ///
    /// # Errors
    /// With every problem of the file, a line each.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        check_form(text).map_err(|problem| vec![problem])?;
        let whole: Whole<'_> =
            serde_json::from_str(text).map_err(|error| vec![shown(&error.to_string())])?;
        let mut reader = Reader::default();
        reader.each("agents", &whole.agents, |item: AgentItem| {
            let Addresses { vtep_ip, vtep_ip6, overlays } = item.addresses.read()?;
            let record = Record::Agent(AgentRecord {
                vtep_ip: vtep_ip.ok_or("vtep_ip: missing")?,
                vtep_ip6,
                overlays,
                allocate_subnet: item.allocate_subnet,
                mesos_bridge: item.mesos_bridge,
                docker_bridge: item.docker_bridge,
                underlay: item.underlay,
            });
            Ok((Key::Agent(item.ip), encode_record(&record)))
        });
        reader.each("released", &whole.released, |item: ReleasedItem| {
            let Addresses { vtep_ip, vtep_ip6, overlays } = item.addresses.read()?;
            let record = ReleasedRecord { at: item.at, vtep_ip, vtep_ip6, overlays };
            Ok((Key::Agent(item.ip), encode_record(&Record::Released(record))))
        });
        reader.history(&whole.history);
        reader.each("bytes", &whole.bytes, |item: BytesItem| {
            let key = match (item.agent, item.part) {
                (Some(ip), None) => Key::Agent(ip),
                (None, Some(number)) => Key::History(number),
                _ => return Err("write either agent or part".to_owned()),
            };
            Ok((key, from_hex(&item.bytes)?))
        });
        let unknown = reader.items("unknown", &whole.unknown, |item: UnknownItem| {
            Ok((item.key, from_hex(&item.bytes)?))
        });
        let counts = Counts { epoch: whole.epoch, version: whole.version };
        reader.problems.extend(counts.check_imported().err());
        let records = reader.finish(whole.checksum.as_deref())?;
        let unknown = unknown.into_iter().map(|(_, item)| item).collect();
        Ok(Self { from: whole.from, counts, records, unknown })
    }
}

fn check_form(text: &str) -> Result<(), String> {
    let beginning: Beginning =
        serde_json::from_str(text).map_err(|error| shown(&error.to_string()))?;
    match (beginning.form.as_deref(), beginning.form_version) {
        (Some(FORM), Some(FORM_VERSION)) => Ok(()),
        (Some(FORM), Some(version)) if version > FORM_VERSION => Err(format!(
            "form_version: it was written by a later version of mesos-overlay (form {version}, this \
             one knows {FORM_VERSION}): run that version"
        )),
        (Some(FORM), version) => Err(format!(
            "form_version: is {}: this version of mesos-overlay knows {FORM_VERSION}",
            version.map_or_else(|| "missing".to_owned(), |version| version.to_string())
        )),
        (form, _) => Err(format!(
            "form: is '{}': a file of `mesos-overlay export` says '{FORM}'",
            shown(form.unwrap_or_default())
        )),
    }
}

/// What was found so far, and what is wrong with it.
#[derive(Debug, Default)]
struct Reader {
    /// With the place in the file.
    records: Vec<(Key, Vec<u8>, String)>,
    problems: Vec<String>,
}

impl Reader {
    /// Reads each of `items` by itself. What comes of them has their index beside it.
    fn items<'a, T: Deserialize<'a>, R>(
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
                    // The line would be that within the item.
                    let reason = reason.split(" at line ").next().unwrap_or_default();
                    self.problems.push(format!("{list}[{index}]: {}", shown(reason)));
                }
            }
        }
        results
    }

    fn each<'a, T: Deserialize<'a>>(
        &mut self,
        list: &str,
        items: &[&'a RawValue],
        read: impl Fn(T) -> Result<(Key, Vec<u8>), String>,
    ) {
        for (index, (key, bytes)) in self.items(list, items, read) {
            self.records.push((key, bytes, format!("{list}[{index}]")));
        }
    }

    /// The entries of one part stand behind each other.
    fn history(&mut self, items: &[&RawValue]) {
        let entries = self.items("history", items, |item: HistoryItem| {
            let event = HistoryEvent::ALL.into_iter().chain([HistoryEvent::Other]);
            let event = event.into_iter().find(|event| event.to_string() == item.event);
            let entry = HistoryEntry {
                at: item.at,
                version: item.version,
                agent: item.agent,
                event: event.ok_or_else(|| format!("event: '{}' is none", item.event))?,
                addresses: item.addresses.read()?,
                reason: item.reason,
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
                "checksum: is '{}', and that of the records is '{}': the file was damaged or edited; \
                 if it is as it should be, remove the line with the checksum",
                shown(sum),
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

/// What this version writes just as it is.
enum Readable {
    Agent(AgentItem),
    Released(ReleasedItem),
    History(Vec<HistoryItem>),
}

/// Otherwise the reason for which `bytes` are kept as they are.
fn readable(key: Key, bytes: &[u8]) -> Result<Readable, String> {
    const NOT_ALL: &str = "it holds more than this version knows";
    let reread = match key {
        Key::Agent(_) => decode_record(bytes).map(|record| encode_record(&record)),
        Key::History(_) => {
            decode_history(bytes).map(|entries| entries.iter().flat_map(encode_history).collect())
        }
    };
    if reread.map_err(|error| error.to_string())? != bytes {
        return Err(NOT_ALL.to_owned());
    }
    match key {
        Key::Agent(ip) => match decode_record(bytes).map_err(|error| error.to_string())? {
            Record::Agent(record) => Ok(Readable::Agent(AgentItem {
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
            })),
            Record::Released(record) => {
                let at = record.at;
                let addresses = Addresses::from(record);
                Ok(Readable::Released(ReleasedItem { ip, at, addresses: (&addresses).into() }))
            }
        },
        Key::History(part) => {
            let entries = decode_history(bytes).map_err(|error| error.to_string())?;
            if entries.is_empty() {
                return Err("it is empty".to_owned());
            }
            Ok(Readable::History(entries.iter().map(|entry| history_item(part, entry)).collect()))
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
    }
}

fn bytes_item(key: Key, bytes: &[u8], why: String) -> BytesItem {
    let (agent, part) = match key {
        Key::Agent(ip) => (Some(ip), None),
        Key::History(number) => (None, Some(number)),
    };
    BytesItem { agent, part, why, bytes: to_hex(bytes) }
}

impl AddressItems {
    fn read(self) -> Result<Addresses, String> {
        let mut overlays: Vec<OverlayRecord> = Vec::with_capacity(self.overlays.len());
        for (index, overlay) in self.overlays.iter().enumerate() {
            let overlay = overlay.read().map_err(|why| format!("overlays[{index}].{why}"))?;
            if overlays.iter().any(|other| other.name == overlay.name) {
                return Err(format!("overlays[{index}].name: {} is there twice", overlay.name));
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
    fn read(&self) -> Result<OverlayRecord, String> {
        let subnet = |field: &str, text: &Option<String>, family: Family| {
            super::convert::subnet(field, text.as_deref(), family)
                .map_err(|error| error.to_string())
        };
        Ok(OverlayRecord {
            name: self.name.parse().map_err(|error| format!("name: {error}"))?,
            subnet: subnet("subnet", &self.subnet, Family::V4)?,
            subnet6: subnet("subnet6", &self.subnet6, Family::V6)?,
        })
    }
}

impl From<&OverlayRecord> for OverlayItem {
    fn from(overlay: &OverlayRecord) -> Self {
        let text = |subnet: Option<crate::addr::Subnet>| subnet.map(|subnet| subnet.to_string());
        let name = overlay.name.to_string();
        Self { name, subnet: text(overlay.subnet), subnet6: text(overlay.subnet6) }
    }
}

fn line(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("it has no keys but texts, and no floats");
    // An export may be written to a terminal.
    escape::json(&text).into_owned()
}

/// A text that somebody else wrote, as it stands in a sentence.
fn shown(text: &str) -> String {
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
        write!(text, "{byte:02x}").expect("a String takes all text");
    }
    text
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok().filter(|_| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))
    };
    let bytes = text.as_bytes().chunks(2).map(digits).collect::<Option<_>>();
    bytes.ok_or_else(|| "bytes: two hexadecimal digits for each byte are expected".to_owned())
}

#[cfg(test)]
mod tests;

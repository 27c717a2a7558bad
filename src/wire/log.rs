//! The value of the replicated log, read and written in place: it is written whole at each commit,
//! so nothing of it is made twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use prost::Message as _;

use super::convert::{ConvertError, encode_agent, encode_network};
use super::mesos::modules::overlay::State;
use super::mesos::modules::overlay::log as pb;
use super::record::{decode_record, encode_record};
use crate::addr::Subnet;
use crate::protocol::{AgentInfo, AgentRecord, Assignment, Network, OverlayRecord, Record};
use crate::store::Counts;

/// No protobuf begins with it: field 31 of a wire type that there is not.
const UNREADABLE: u8 = 0xff;

/// The state that a log holds.
#[derive(Debug, Clone, Default)]
pub struct LoggedState {
    own: pb::Own,
    network: Option<Vec<u8>>,
    /// What the C++ module knows of agents, by their addresses.
    agents: BTreeMap<Ipv4Addr, Vec<u8>>,
    /// Agents of the C++ module without an address, which nothing can be done with.
    nameless: usize,
}

/// What the C++ module did with an agent after we wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// It has what this record says. The record is unreadable where the C++ module's is.
    Has(Vec<u8>),
    /// It was forgotten, or nothing was promised to it.
    Forgotten,
}

impl LoggedState {
    /// Reads the value of a log. The empty one, of a log that was never written, is an empty state.
    ///
    /// # Errors
    /// When it is no state.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConvertError> {
        let state = pb::LoggedState::decode(bytes)
            .map_err(|error| ConvertError::field("network-state", error))?;
        let mut agents = BTreeMap::new();
        let mut nameless = 0;
        for bytes in state.agents {
            let agent = pb::Agent::decode(bytes.as_slice());
            match agent.ok().and_then(|agent| read::<Ipv4Addr>(agent.ip.as_deref()?)) {
                Some(ip) => drop(agents.insert(ip, bytes)),
                None => nameless += 1,
            }
        }
        if nameless > 0 {
            log::error!("dropped {nameless} agents of the c++ module: they have no address");
        }
        let own = orderly(state.own.unwrap_or_default())?;
        Ok(Self { own, network: state.network, agents, nameless })
    }

    /// What a master shows of itself as JSON, as if it stood in a log.
    ///
    /// # Errors
    /// When it is no state.
    pub fn from_json(text: &[u8]) -> Result<Self, ConvertError> {
        let state: State =
            super::parse_json(text).map_err(|error| ConvertError::field("json", error))?;
        Self::decode(&state.encode_to_vec())
    }

    /// Whether it says which network it is the state of, as every one that was written does.
    #[must_use]
    pub const fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// What was in the value and is lost, a sentence each.
    #[must_use]
    pub fn losses(&self) -> Vec<String> {
        let count = self.nameless;
        let is_any = count > 0;
        let sentence = || format!("agents of the c++ module without an address: {count}, dropped");
        is_any.then(sentence).into_iter().collect()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.own.encoded_len() + 1024 * self.agents.len());
        for (tag, bytes) in self
            .network
            .iter()
            .map(|bytes| (1, bytes))
            .chain(self.agents.values().map(|it| (2, it)))
        {
            prost::encoding::bytes::encode(tag, bytes, &mut value);
        }
        prost::encoding::message::encode(1000, &self.own, &mut value);
        value
    }

    /// Epoch and version as they stand there; zero where only the C++ module has written.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { epoch: self.own.epoch(), version: self.own.version() }
    }

    /// Changes epoch and version.
    pub fn set_counts(&mut self, counts: Counts) {
        (self.own.epoch, self.own.version) = (Some(counts.epoch), Some(counts.version));
    }

    /// Says to the C++ module which network this is the state of.
    pub fn set_network(&mut self, network: &Network) {
        self.network = Some(encode_network(network).encode_to_vec());
    }

    /// Keys and records of ours, in the order of the keys.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.own.entries.iter().map(|entry| (entry.key(), entry.record()))
    }

    /// Keeps `record` under `key`, instead of what was there.
    pub fn put(&mut self, key: &[u8], record: Vec<u8>) {
        let entries = &mut self.own.entries;
        let record = Some(record);
        match entries.binary_search_by(|entry| entry.key().cmp(key)) {
            Ok(at) => entries[at].record = record,
            Err(at) => entries.insert(at, pb::Entry { key: Some(key.to_owned()), record }),
        }
    }

    /// Forgets the key.
    pub fn delete(&mut self, key: &[u8]) {
        let entries = &mut self.own.entries;
        if let Ok(at) = entries.binary_search_by(|entry| entry.key().cmp(key)) {
            entries.remove(at);
        }
    }

    /// What the C++ module is to know of the agent `ip`: its assignments, or nothing.
    pub fn show_agent(&mut self, ip: Ipv4Addr, overlays: Option<Vec<Assignment>>) {
        match overlays {
            Some(overlays) => {
                let info = AgentInfo { ip, overlays, configuration_attempts: None };
                self.agents.insert(ip, encode_agent(&info).encode_to_vec());
            }
            None => drop(self.agents.remove(&ip)),
        }
    }

    /// What the C++ module has changed since we wrote. `ip_of` reads the key of an agent.
    pub fn foreign(&self, ip_of: impl Fn(&[u8]) -> Option<Ipv4Addr>) -> Vec<(Ipv4Addr, Foreign)> {
        let own: BTreeMap<Ipv4Addr, &[u8]> =
            self.entries().filter_map(|(key, record)| Some((ip_of(key)?, record))).collect();
        let mut changes = Vec::new();
        let mut seen = BTreeSet::new();
        for (&ip, agent) in &self.agents {
            let had = own.get(&ip).copied();
            if let Some(record) = taken_over(ip, agent, had) {
                seen.insert(ip);
                if had != Some(record.as_slice()) {
                    changes.push((ip, Foreign::Has(record)));
                }
            }
        }
        let is_live = |record: &[u8]| matches!(decode_record(record), Ok(Record::Agent(_)));
        let gone = own.iter().filter(|(ip, record)| !seen.contains(ip) && is_live(record));
        changes.extend(gone.map(|(&ip, _)| (ip, Foreign::Forgotten)));
        changes
    }

    /// The field that the C++ module does not know.
    #[cfg(test)]
    pub(crate) fn encode_own(&self) -> Vec<u8> {
        let own = Some(self.own.clone());
        pb::LoggedState { own, ..pb::LoggedState::default() }.encode_to_vec()
    }
}

/// Our part as we write it: its keys in their order, each once. What is out of order was damaged;
/// of two records under one key the last one counts, as it does for a field of a message.
fn orderly(mut own: pb::Own) -> Result<pb::Own, ConvertError> {
    own.entries.sort_by(|one, other| one.key().cmp(other.key()));
    own.entries.dedup_by(|later, earlier| {
        let is_same = later.key == earlier.key;
        if is_same {
            std::mem::swap(later, earlier);
        }
        is_same
    });
    Ok(own)
}

/// The record of an agent of the C++ module, of which we had the record `own`; `None` if it was
/// promised nothing.
fn taken_over(ip: Ipv4Addr, agent: &[u8], own: Option<&[u8]>) -> Option<Vec<u8>> {
    let own_record = match own.map(decode_record) {
        Some(Ok(Record::Agent(record))) => Some(record),
        _ => None,
    };
    let merged = pb::Agent::decode(agent)
        .map_err(|error| error.to_string())
        .and_then(|agent| merged(&agent, own_record.as_ref()));
    match merged {
        Ok(None) => None,
        Ok(merged) if merged == own_record => own.map(<[u8]>::to_vec),
        Ok(Some(merged)) => Some(encode_record(&Record::Agent(merged))),
        Err(reason) => {
            log::error!("agent {ip} as the c++ module wrote it: {reason}");
            // Unreadable to us too: the agent is set aside.
            Some([vec![UNREADABLE], agent.to_vec()].concat())
        }
    }
}

/// What `agent` says of an agent, and what we alone know of it.
fn merged(agent: &pb::Agent, own: Option<&AgentRecord>) -> Result<Option<AgentRecord>, String> {
    let mut record = match own {
        Some(own) => own.clone(),
        None if agent.overlays.is_empty() => return Ok(None),
        None => blank(agent),
    };
    if let Some(vxlan) = agent.overlays.iter().find_map(|one| one.backend.as_ref()?.vxlan.as_ref())
    {
        let ip = vxlan.vtep_ip.as_deref().and_then(address);
        let Some(IpAddr::V4(ip)) = ip else { return Err("its VTEP address is none".to_owned()) };
        record.vtep_ip = ip;
        if let Some(IpAddr::V6(ip6)) = vxlan.vtep_ip6.as_deref().and_then(address) {
            record.vtep_ip6 = Some(ip6);
        }
    } else if own.is_none() {
        return Err("it has no VTEP address".to_owned());
    }
    for overlay in &agent.overlays {
        let name = overlay.info.as_ref().and_then(|info| info.name.as_deref());
        let name = name.and_then(read).ok_or("an overlay of it has no name that we can use")?;
        let piece = |bytes: &Option<Vec<u8>>| match bytes.as_deref() {
            None => Ok(None),
            Some(bytes) => subnet(bytes).map(Some).ok_or("a subnet of it is none"),
        };
        let (subnet, subnet6) = (piece(&overlay.subnet)?, piece(&overlay.subnet6)?);
        match record.overlays.iter_mut().find(|had| had.name == name) {
            // A family that the network does not have at present is not shown.
            Some(had) => {
                had.subnet = subnet.or(had.subnet);
                had.subnet6 = subnet6.or(had.subnet6);
            }
            None if subnet.is_none() && subnet6.is_none() => {}
            None => record.overlays.push(OverlayRecord { name, subnet, subnet6 }),
        }
    }
    Ok(Some(record))
}

/// What an agent asked for, as far as it shows in what it has; its addresses follow.
fn blank(agent: &pb::Agent) -> AgentRecord {
    let any = |wanted: fn(&pb::AgentOverlay) -> bool| agent.overlays.iter().any(wanted);
    AgentRecord {
        vtep_ip: Ipv4Addr::UNSPECIFIED,
        vtep_ip6: None,
        overlays: Vec::new(),
        allocate_subnet: any(|one| one.subnet.is_some() || one.subnet6.is_some()),
        mesos_bridge: any(|one| one.mesos_bridge.is_some()),
        docker_bridge: any(|one| one.docker_bridge.is_some()),
        underlay: None,
    }
}

fn read<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The address of `address/length`.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    read(bytes.split(|&byte| byte == b'/').next()?)
}

/// The C++ module writes a subnet as its configuration had it, host bits and all.
fn subnet(bytes: &[u8]) -> Option<Subnet> {
    let (_, length) = std::str::from_utf8(bytes).ok()?.split_once('/')?;
    Subnet::containing(address(bytes)?, length.parse().ok()?)
}

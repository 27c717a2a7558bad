//! The value of the replicated log, read and written in place: it is written whole at each commit,
//! so nothing of it is made twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use prost::Message as _;

use super::convert::{ConvertError, decode_agent, encode_agent, encode_network};
use super::mesos::modules::overlay::{self, log as pb};
use super::record::{decode_record, encode_record};
use crate::protocol::{AgentInfo, AgentRecord, Assignment, Network, OverlayRecord, Record};

/// No protobuf begins with it: field 31 of a wire type that there is not.
const UNREADABLE: u8 = 0xff;

/// The state that a log holds.
#[derive(Debug, Clone, Default)]
pub struct LoggedState(pb::LoggedState);

/// What the C++ module did with an agent after we wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// It has what this record says. The record is unreadable where the C++ module's is.
    Has(Vec<u8>),
    /// It was forgotten.
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
        Ok(Self(state))
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    /// Epoch and version; zero where only the C++ module has written.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        self.0.own.as_ref().map_or((0, 0), |own| (own.epoch(), own.version()))
    }

    /// Changes epoch and version.
    pub fn set_counters(&mut self, epoch: u64, version: u64) {
        let own = self.0.own.get_or_insert_default();
        (own.epoch, own.version) = (Some(epoch), Some(version));
    }

    /// Says to the C++ module which network this is the state of.
    pub fn set_network(&mut self, network: &Network) {
        self.0.network = Some(encode_network(network));
    }

    /// Keys and records of ours, in the order of the keys.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let entries = self.0.own.iter().flat_map(|own| &own.entries);
        entries.map(|entry| (entry.key(), entry.record()))
    }

    /// Keeps `record` under `key`, instead of what was there.
    pub fn put(&mut self, key: &[u8], record: Vec<u8>) {
        let entries = &mut self.0.own.get_or_insert_default().entries;
        let record = Some(record);
        match entries.binary_search_by(|entry| entry.key().cmp(key)) {
            Ok(at) => entries[at].record = record,
            Err(at) => entries.insert(at, pb::Entry { key: Some(key.to_owned()), record }),
        }
    }

    /// Forgets the key.
    pub fn delete(&mut self, key: &[u8]) {
        let entries = &mut self.0.own.get_or_insert_default().entries;
        if let Ok(at) = entries.binary_search_by(|entry| entry.key().cmp(key)) {
            entries.remove(at);
        }
    }

    /// What the C++ module is to know of the agent `ip`: its assignments, or nothing.
    pub fn show_agent(&mut self, ip: Ipv4Addr, overlays: Option<Vec<Assignment>>) {
        let text = ip.to_string();
        // The order is that of the texts: any will do, and the C++ module has none.
        let at = self.0.agents.binary_search_by(|agent| agent.ip().cmp(&text));
        let info = overlays.map(|overlays| {
            encode_agent(&AgentInfo { ip, overlays, configuration_attempts: None })
        });
        match (at, info) {
            (Ok(at), Some(info)) => self.0.agents[at] = info,
            (Err(at), Some(info)) => self.0.agents.insert(at, info),
            (Ok(at), None) => drop(self.0.agents.remove(at)),
            (Err(_), None) => {}
        }
    }

    /// What the C++ module has changed since we wrote. `ip_of` reads the key of an agent.
    pub fn foreign(
        &mut self,
        ip_of: impl Fn(&[u8]) -> Option<Ipv4Addr>,
    ) -> Vec<(Ipv4Addr, Foreign)> {
        self.0.agents.sort_by(|one, other| one.ip().cmp(other.ip()));
        let own: BTreeMap<Ipv4Addr, &[u8]> =
            self.entries().filter_map(|(key, record)| Some((ip_of(key)?, record))).collect();
        let mut changes = Vec::new();
        let mut seen = BTreeSet::new();
        for agent in &self.0.agents {
            let Ok(ip) = agent.ip().parse() else {
                let ip = agent.ip().escape_debug();
                log::error!("an agent of the c++ module has no address: '{ip}'");
                continue;
            };
            let had = own.get(&ip).copied();
            let record = taken_over(agent, had);
            if had != Some(record.as_slice()) {
                changes.push((ip, Foreign::Has(record)));
            }
            seen.insert(ip);
        }
        let is_live = |record: &[u8]| matches!(decode_record(record), Ok(Record::Agent(_)));
        let gone = own.iter().filter(|(ip, record)| !seen.contains(ip) && is_live(record));
        changes.extend(gone.map(|(&ip, _)| (ip, Foreign::Forgotten)));
        changes
    }

    /// The field that the C++ module does not know.
    #[cfg(test)]
    pub(crate) fn encode_own(&self) -> Vec<u8> {
        pb::LoggedState { own: self.0.own.clone(), ..pb::LoggedState::default() }.encode_to_vec()
    }
}

/// The record of an agent of the C++ module, of which we had the record `own`.
fn taken_over(agent: &overlay::AgentInfo, own: Option<&[u8]>) -> Vec<u8> {
    let own_record = match own.map(decode_record) {
        Some(Ok(Record::Agent(record))) => Some(record),
        _ => None,
    };
    let merged = decode_agent(agent).and_then(|info| merged(&info, own_record.as_ref()));
    match merged {
        Ok(merged) if own_record.as_ref() == Some(&merged) => own.unwrap_or_default().to_vec(),
        Ok(merged) => encode_record(&Record::Agent(merged)),
        Err(reason) => {
            log::error!("agent {} as the c++ module wrote it: {reason}", agent.ip());
            // No field has this tag: it is unreadable to us too, and the agent is set aside.
            [vec![UNREADABLE], agent.encode_to_vec()].concat()
        }
    }
}

/// What `info` says of an agent, and what we alone know of it.
fn merged(info: &AgentInfo, own: Option<&AgentRecord>) -> Result<AgentRecord, ConvertError> {
    let vtep = info.overlays.first().map(|overlay| &overlay.vtep);
    let vtep_ip = match vtep.map(|vtep| vtep.ip.address()) {
        Some(IpAddr::V4(ip)) => ip,
        Some(IpAddr::V6(_)) | None => match own {
            Some(own) => own.vtep_ip,
            // An agent without overlays has nothing that could be kept.
            None => return Err(ConvertError::field("overlays", "is empty: no address to keep")),
        },
    };
    let vtep_ip6 = vtep.and_then(|vtep| match vtep.ip6.map(|ip6| ip6.address()) {
        Some(IpAddr::V6(ip6)) => Some(ip6),
        _ => None,
    });
    let mut overlays: Vec<OverlayRecord> = own.map_or_else(Vec::new, |own| own.overlays.clone());
    for overlay in &info.overlays {
        let (name, subnet, subnet6) = (overlay.name().clone(), overlay.subnet, overlay.subnet6);
        let said = OverlayRecord { name, subnet, subnet6 };
        match overlays.iter_mut().find(|had| had.name == said.name) {
            // A family that the network does not have at present is not shown.
            Some(had) => {
                had.subnet = said.subnet.or(had.subnet);
                had.subnet6 = said.subnet6.or(had.subnet6);
            }
            None if !said.is_empty() => overlays.push(said),
            None => {}
        }
    }
    let any = |wanted: fn(&Assignment) -> bool| info.overlays.iter().any(wanted);
    Ok(AgentRecord {
        vtep_ip,
        vtep_ip6: vtep_ip6.or_else(|| own.and_then(|own| own.vtep_ip6)),
        overlays,
        allocate_subnet: own.map_or_else(
            || any(|one| one.subnet.is_some() || one.subnet6.is_some()),
            |own| own.allocate_subnet,
        ),
        mesos_bridge: own
            .map_or_else(|| any(|one| one.mesos_bridge.is_some()), |own| own.mesos_bridge),
        docker_bridge: own
            .map_or_else(|| any(|one| one.docker_bridge.is_some()), |own| own.docker_bridge),
    })
}

//! The value of the replicated log.
//!
//! Each commit writes the entire value, so this module edits the decoded value in place and never
//! re-encodes the parts that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::Subnet;
use overlay_types::protocol::{
    AgentInfo, AgentRecord, Assignment, Network, OverlayRecord, Principal, Record,
};
use overlay_types::state::Counts;
use prost::Message as _;

use super::convert::{encode_agent, encode_network};
use super::error::ConvertError;
use super::json;
use super::mesos::modules::overlay::log as pb;
use super::mesos::modules::overlay::{AuthenticatedAgent, State};
use super::record::{decode_record, encode_record};

/// A byte that no protobuf message begins with, because its wire type does not exist.
const UNREADABLE: u8 = 0xff;

/// The state that a log holds.
#[derive(Debug, Clone, Default)]
pub struct LoggedState {
    own: pb::Own,
    network: Option<Vec<u8>>,
    /// The agents in the format of the C++ module, by agent IP.
    agents: BTreeMap<Ipv4Addr, Vec<u8>>,
    /// The number of dropped agents of the C++ module that have no address.
    without_address: usize,
}

/// A change that the C++ module made to an agent after the last write of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignChange {
    /// The agent has the addresses of this record. The record is unreadable if the agent of the C++
    /// module is unreadable.
    Put(Vec<u8>),
    /// The C++ module deleted the agent, or the agent has no addresses.
    Deleted,
}

impl LoggedState {
    /// Decodes the value of a log. The empty value of an unused log is an empty state.
    ///
    /// # Errors
    /// If the value is not a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConvertError> {
        let state = pb::LoggedState::decode(bytes)
            .map_err(|error| ConvertError::field("network-state", error))?;
        let mut agents = BTreeMap::new();
        let mut without_address = 0;
        for bytes in state.agents {
            let agent = pb::Agent::decode(bytes.as_slice());
            match agent.ok().and_then(|agent| parse_bytes::<Ipv4Addr>(agent.ip.as_deref()?)) {
                Some(ip) => drop(agents.insert(ip, bytes)),
                None => without_address += 1,
            }
        }
        if without_address > 0 {
            log::error!("dropped {without_address} agents of the c++ module: they have no address");
        }
        let mut own = state.own.unwrap_or_default();
        sort_entries(&mut own);
        Ok(Self { own, network: state.network, agents, without_address })
    }

    /// Converts the JSON of a master's state endpoint into the state that a log would hold, and the
    /// principals of the agents that have authenticated, which only our own records in a log have.
    ///
    /// # Errors
    /// If the text is not a state.
    pub fn from_json(text: &[u8]) -> Result<(Self, BTreeMap<Ipv4Addr, Principal>), ConvertError> {
        let state: State = json::parse(text).map_err(|error| ConvertError::field("json", error))?;
        let principals = state.authenticated.iter().map(principal_from_pb);
        let principals = principals.collect::<Result<_, _>>()?;
        Ok((Self::decode(&state.encode_to_vec())?, principals))
    }

    /// Whether the state names its network. Every written state does.
    #[must_use]
    pub const fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// Describes the dropped parts of the value, one message each.
    #[must_use]
    pub fn losses(&self) -> Vec<String> {
        let count = self.without_address;
        if count == 0 {
            return Vec::new();
        }
        vec![format!("agents of the c++ module without an address: {count}, dropped")]
    }

    /// Encodes the value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.own.encoded_len() + 1024 * self.agents.len());
        if let Some(network) = &self.network {
            prost::encoding::bytes::encode(1, network, &mut value);
        }
        for agent in self.agents.values() {
            prost::encoding::bytes::encode(2, agent, &mut value);
        }
        prost::encoding::message::encode(1000, &self.own, &mut value);
        value
    }

    /// Returns epoch and version. Both are zero if only the C++ module has written the state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { epoch: self.own.epoch(), version: self.own.version() }
    }

    /// Sets epoch and version.
    pub fn set_counts(&mut self, counts: Counts) {
        (self.own.epoch, self.own.version) = (Some(counts.epoch), Some(counts.version));
    }

    /// Sets the network, for the C++ module.
    pub fn set_network(&mut self, network: &Network) {
        self.network = Some(encode_network(network).encode_to_vec());
    }

    /// Returns the keys and records of this program, in the order of the keys.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.own.entries.iter().map(|entry| (entry.key(), entry.record()))
    }

    /// Inserts or replaces the record of `key`.
    pub fn put(&mut self, key: &[u8], record: Vec<u8>) {
        let entries = &mut self.own.entries;
        let record = Some(record);
        match entries.binary_search_by(|entry| entry.key().cmp(key)) {
            Ok(at) => entries[at].record = record,
            Err(at) => entries.insert(at, pb::Entry { key: Some(key.to_owned()), record }),
        }
    }

    /// Deletes the record of `key`.
    pub fn delete(&mut self, key: &[u8]) {
        let entries = &mut self.own.entries;
        if let Ok(at) = entries.binary_search_by(|entry| entry.key().cmp(key)) {
            entries.remove(at);
        }
    }

    /// Sets the assignments of the agent `ip`, for the C++ module. `None` removes the agent.
    pub fn set_agent(&mut self, ip: Ipv4Addr, overlays: Option<Vec<Assignment>>) {
        match overlays {
            Some(overlays) => {
                let info = AgentInfo { ip, overlays, configuration_attempts: None };
                self.agents.insert(ip, encode_agent(&info).encode_to_vec());
            }
            None => drop(self.agents.remove(&ip)),
        }
    }

    /// Returns the changes that the C++ module made since the last write of this program. `ip_of`
    /// parses the key of an agent.
    pub fn foreign_changes(
        &self,
        ip_of: impl Fn(&[u8]) -> Option<Ipv4Addr>,
    ) -> Vec<(Ipv4Addr, ForeignChange)> {
        let own: BTreeMap<Ipv4Addr, &[u8]> =
            self.entries().filter_map(|(key, record)| Some((ip_of(key)?, record))).collect();
        let mut changes = Vec::new();
        let mut seen = BTreeSet::new();
        for (&ip, agent) in &self.agents {
            let own_record = own.get(&ip).copied();
            if let Some(record) = import_agent(ip, agent, own_record) {
                seen.insert(ip);
                if own_record != Some(record.as_slice()) {
                    changes.push((ip, ForeignChange::Put(record)));
                }
            }
        }
        let is_active = |record: &[u8]| matches!(decode_record(record), Ok(Record::Agent(_)));
        let deleted = own.iter().filter(|(ip, record)| !seen.contains(ip) && is_active(record));
        changes.extend(deleted.map(|(&ip, _)| (ip, ForeignChange::Deleted)));
        changes
    }

    /// Encodes only the field that the C++ module does not know, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn encode_own(&self) -> Vec<u8> {
        let own = Some(self.own.clone());
        pb::LoggedState { own, ..pb::LoggedState::default() }.encode_to_vec()
    }
}

/// Restores the invariant of written entries: sorted by key, and each key once.
///
/// Other entries were damaged. Of two records with one key the last one counts, as for duplicate
/// fields of a protobuf message.
fn sort_entries(own: &mut pb::Own) {
    own.entries.sort_by(|left, right| left.key().cmp(right.key()));
    own.entries.dedup_by(|later, earlier| {
        let is_duplicate = later.key == earlier.key;
        if is_duplicate {
            std::mem::swap(later, earlier);
        }
        is_duplicate
    });
}

/// Why an agent of the C++ module cannot be converted into a record.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    #[error("no VTEP address")]
    NoVtep,
    #[error("the VTEP address is not an IPv4 address")]
    BadVtep,
    #[error("the name of an overlay is unusable")]
    BadOverlayName,
    #[error("a subnet is invalid")]
    BadSubnet,
}

/// Converts an agent of the C++ module into a record. `own` is the existing record of this program.
/// Returns `None` if the agent has no addresses.
fn import_agent(ip: Ipv4Addr, agent: &[u8], own: Option<&[u8]>) -> Option<Vec<u8>> {
    let own_record = match own.map(decode_record) {
        Some(Ok(Record::Agent(record))) => Some(record),
        _ => None,
    };
    let merged = pb::Agent::decode(agent).map_err(ImportError::from);
    match merged.and_then(|agent| merge_agent(&agent, own_record.as_ref())) {
        Ok(None) => None,
        Ok(merged) if merged == own_record => own.map(<[u8]>::to_vec),
        Ok(Some(merged)) => Some(encode_record(&Record::Agent(merged))),
        Err(reason) => {
            log::error!("cannot import agent {ip} of the c++ module: {reason}");
            // The record is unreadable for this program too, so the master quarantines the agent.
            Some([vec![UNREADABLE], agent.to_vec()].concat())
        }
    }
}

/// Merges `agent` of the C++ module with the values that only the existing record `own` has.
fn merge_agent(
    agent: &pb::Agent,
    own: Option<&AgentRecord>,
) -> Result<Option<AgentRecord>, ImportError> {
    let mut record = match own {
        Some(own) => own.clone(),
        None if agent.overlays.is_empty() => return Ok(None),
        None => infer_options(agent),
    };
    let vxlan = agent.overlays.iter().find_map(|overlay| overlay.backend.as_ref()?.vxlan.as_ref());
    if let Some(vxlan) = vxlan {
        let ip = vxlan.vtep_ip.as_deref().and_then(parse_address);
        let Some(IpAddr::V4(ip)) = ip else { return Err(ImportError::BadVtep) };
        record.vtep_ip = ip;
        if let Some(IpAddr::V6(ip6)) = vxlan.vtep_ip6.as_deref().and_then(parse_address) {
            record.vtep_ip6 = Some(ip6);
        }
    } else if own.is_none() {
        return Err(ImportError::NoVtep);
    }
    for overlay in &agent.overlays {
        let name = overlay.info.as_ref().and_then(|info| info.name.as_deref());
        let name = name.and_then(parse_bytes).ok_or(ImportError::BadOverlayName)?;
        let subnet = parse_optional_subnet(overlay.subnet.as_deref())?;
        let subnet6 = parse_optional_subnet(overlay.subnet6.as_deref())?;
        match record.overlays.iter_mut().find(|existing| existing.name == name) {
            // The C++ module omits a family that the network currently does not have.
            Some(existing) => {
                existing.subnet = subnet.or(existing.subnet);
                existing.subnet6 = subnet6.or(existing.subnet6);
            }
            None if subnet.is_none() && subnet6.is_none() => {}
            None => record.overlays.push(OverlayRecord { name, subnet, subnet6 }),
        }
    }
    Ok(Some(record))
}

/// Creates a record without addresses. The options of the agent are inferred from its assignments.
fn infer_options(agent: &pb::Agent) -> AgentRecord {
    let any = |condition: fn(&pb::AgentOverlay) -> bool| agent.overlays.iter().any(condition);
    AgentRecord {
        vtep_ip: Ipv4Addr::UNSPECIFIED,
        vtep_ip6: None,
        overlays: Vec::new(),
        allocate_subnet: any(|overlay| overlay.subnet.is_some() || overlay.subnet6.is_some()),
        mesos_bridge: any(|overlay| overlay.mesos_bridge.is_some()),
        docker_bridge: any(|overlay| overlay.docker_bridge.is_some()),
        underlay: None,
        direct_mac: None,
        authenticated: None,
    }
}

fn principal_from_pb(agent: &AuthenticatedAgent) -> Result<(Ipv4Addr, Principal), ConvertError> {
    let ip = agent.ip().parse().map_err(|error| ConvertError::field("authenticated.ip", error))?;
    let principal = agent.principal().parse();
    let principal =
        principal.map_err(|error| ConvertError::field("authenticated.principal", error))?;
    Ok((ip, principal))
}

fn parse_bytes<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Parses the address of `address/length`.
fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    parse_bytes(bytes.split(|&byte| byte == b'/').next()?)
}

fn parse_optional_subnet(bytes: Option<&[u8]>) -> Result<Option<Subnet>, ImportError> {
    bytes.map(|bytes| parse_subnet(bytes).ok_or(ImportError::BadSubnet)).transpose()
}

/// Parses a subnet. The C++ module keeps the host bits of the configured subnet.
fn parse_subnet(bytes: &[u8]) -> Option<Subnet> {
    let (_, length) = std::str::from_utf8(bytes).ok()?.split_once('/')?;
    Subnet::containing(parse_address(bytes)?, length.parse().ok()?)
}

//! Peer tables: what agents need to program their tunnels to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::ProgramVersion;
use crate::address_usage::OverlayCounts;
use crate::tunnel::Peer;

/// Identifies the peer table of an agent. The default means that the agent has no table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerTableVersion {
    /// Epoch of the master that sent the last update; 0 without an update.
    pub epoch: u64,
    /// Version of the table in this epoch.
    pub version: u64,
    /// Digest of the table, computed by the agent.
    pub digest: u64,
}

/// The request of an agent for its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeersRequest {
    /// The table that the agent has.
    pub have: PeerTableVersion,
    /// The form in which the agent wants its updates. Agents of former versions, which know the
    /// plain form only, leave the field unset.
    pub form: UpdateForm,
    /// The version of the agent. Agents of former versions leave it unset.
    pub version: Option<ProgramVersion>,
    /// The numbers of addresses of containers, as far as they are known. The request is the message
    /// that an agent sends at an interval, so they need no message of their own. Agents of former
    /// versions leave them unset.
    pub address_counts: OverlayCounts,
}

impl PeersRequest {
    /// Maximum number of overlays with numbers of addresses, so that masters of former versions
    /// accept the length of the message. The fullest overlays are sent.
    pub const COUNTS_MAX: usize = 64;
}

/// The form of an update on the wire. Both forms have the same content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpdateForm {
    /// Every field as it is. Every agent that requests peers accepts this form.
    #[default]
    Plain,
    /// Differences between successive peers, compressed. The body has a twentieth of the length.
    Compact,
}

/// The entry of one agent in a peer table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Underlay address: the destination of tunnel packets to the agent.
    pub underlay: IpAddr,
    /// VTEP and subnets of the agent.
    pub peer: Peer,
}

/// A snapshot of the peer table, or a delta.
///
/// The digest identifies a table independently of the master, so an agent can keep its table when
/// the leader changes. Epoch and version only order updates. An agent that receives an update
///
/// 1. ignores an update that is older than its table: an earlier epoch, or a lower version in one
///    epoch. Exception: the agent accepts an older update if several requests brought no newer one.
///    Then the master restarted its counters, or the agent has a wrong epoch or version;
/// 2. changes only its epoch and version if its table already has this `digest`;
/// 3. otherwise applies a delta whose `base` is the digest of its table, or replaces its table with
///    a snapshot;
/// 4. drops an update with another `base`, or whose result does not have this `digest`. The agent
///    then sends [`super::Message::RequestPeers`] immediately: with its [`PeerTableVersion`], or
///    after a wrong result with [`PeerTableVersion::default`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeersUpdate {
    /// Epoch of the master. Versions of different epochs are not comparable.
    pub epoch: u64,
    /// Version of the table after the update.
    pub version: u64,
    /// Digest of the table at `version`: the wrapping sum of [`peer_digest`] of all agents.
    pub digest: u64,
    /// Digest of the table to which the delta applies; `None` for a snapshot.
    pub base: Option<u64>,
    /// New and changed agents by their identity. The receiver can be among them.
    pub changed: BTreeMap<Ipv4Addr, PeerInfo>,
    /// Removed agents.
    pub removed: BTreeSet<Ipv4Addr>,
}

impl PeersUpdate {
    /// Maximum number of agents in an update. No cluster is that large, and a hostile master cannot
    /// exhaust the memory of its agents.
    pub const PEERS_MAX: usize = 200_000;
    /// Maximum length of an encoded update: the longest body that the transports accept. The length
    /// of an update in the compact form is also limited to this value after decompression.
    pub const BYTES_MAX: usize = 16 * 1024 * 1024;
}

/// Returns the contribution of one agent to the digest of a peer table. The value is the same on
/// every machine and in every version of this program.
///
/// The input of 64-bit FNV-1a is the identity, `underlay`, both addresses of the VTEP, the MAC, and
/// the subnets. Subnets are ordered by overlay name, family (IPv4 first), address and prefix
/// length. A length byte precedes each address and each name; 0 means that the address is absent. A
/// subnet is its name, its address, and its prefix length in one byte. The MAC for direct routing
/// follows only if there is one, so that tables without one have the digests of former versions.
/// The finalizer of MurmurHash3 mixes the result, because FNV gives similar agents similar values,
/// and the digest is a sum.
#[must_use]
pub fn peer_digest(ip: Ipv4Addr, info: &PeerInfo) -> u64 {
    let PeerInfo { underlay, peer: Peer { ip: vtep, ip6: vtep6, mac, subnets, direct } } = info;
    let mut hash = Fnv::new();
    hash.add(&ip.octets());
    hash.add_address(*underlay);
    hash.add_field(vtep.map(|vtep| vtep.octets()).as_ref().map_or(&[], |octets| octets.as_slice()));
    hash.add_field(
        vtep6.map(|vtep| vtep.octets()).as_ref().map_or(&[], |octets| octets.as_slice()),
    );
    hash.add(&mac.octets());
    let mut subnets: Vec<_> = subnets.iter().collect();
    subnets.sort();
    for (overlay, subnet) in subnets {
        hash.add_field(overlay.as_str().as_bytes());
        hash.add_address(subnet.first());
        hash.add(&[subnet.prefix()]);
    }
    if let Some(direct) = direct {
        hash.add_field(&direct.mac.octets());
    }
    hash.mixed()
}

/// FNV-1a with 64 bits.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Adds at most 255 bytes with their length, so that adjacent fields cannot be confused.
    fn add_field(&mut self, bytes: &[u8]) {
        self.add(&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)]);
        self.add(bytes);
    }

    fn add_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add_field(&address.octets()),
            IpAddr::V6(address) => self.add_field(&address.octets()),
        }
    }

    const fn mixed(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::DirectPeer;

    fn info() -> PeerInfo {
        PeerInfo {
            underlay: "10.0.0.1".parse().unwrap(),
            peer: Peer {
                ip: Some("44.128.0.1".parse().unwrap()),
                ip6: Some("fd01:a::1".parse().unwrap()),
                mac: "70:b3:d5:80:00:01".parse().unwrap(),
                subnets: vec![
                    ("vxlan-1".parse().unwrap(), "192.168.0.0/24".parse().unwrap()),
                    ("vxlan-2".parse().unwrap(), "fd01:b::/80".parse().unwrap()),
                ],
                direct: None,
            },
        }
    }

    fn offer(mac: [u8; 6]) -> DirectPeer {
        DirectPeer { mac: mac.into(), is_used: false }
    }

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn peer_digest_is_stable() {
        // Agents and masters of all versions must compute the same digest.
        assert_eq!(peer_digest(IP, &info()), 0x2d00_6404_bd1b_78f2);
        let mut bare = info();
        (bare.peer.ip6, bare.peer.subnets) = (None, Vec::new());
        assert_eq!(peer_digest(IP, &bare), 0x8f3b_3297_87b4_80b4);
    }

    #[test]
    fn peer_digest_depends_on_fields_but_not_on_subnet_order() {
        let mut same = info();
        same.peer.subnets.reverse();
        assert_eq!(peer_digest(IP, &same), peer_digest(IP, &info()));
        let changes: [fn(&mut PeerInfo); 8] = [
            |info| info.underlay = "10.0.0.2".parse().unwrap(),
            |info| info.peer.ip = None,
            |info| info.peer.ip6 = None,
            |info| info.peer.mac = "70:b3:d5:80:00:02".parse().unwrap(),
            |info| info.peer.subnets[0].0 = "vxlan-3".parse().unwrap(),
            |info| info.peer.subnets[0].1 = "192.168.0.0/25".parse().unwrap(),
            |info| info.peer.direct = Some(offer([2, 0, 0, 0, 0, 1])),
            |info| info.peer.direct = Some(offer([2, 0, 0, 0, 0, 2])),
        ];
        let mut digests = BTreeSet::from([peer_digest(IP, &info())]);
        for change in changes {
            let mut changed = info();
            change(&mut changed);
            assert!(digests.insert(peer_digest(IP, &changed)), "{changed:?}");
        }
        assert!(digests.insert(peer_digest("10.0.0.2".parse().unwrap(), &info())));
    }
}

//! What the master tells agents about each other, so that they can program their tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::tunnel::Peer;

/// How far an agent knows the table of its peers. The default is that of one which knows nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeersHave {
    /// The tenure of the master that told it last; 0: none did.
    pub epoch: u64,
    /// The version of its table, of that epoch.
    pub version: u64,
    /// The digest of its table, as it counted it itself.
    pub digest: u64,
}

/// One agent as its peers need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where packets in the tunnel to it are sent.
    pub underlay: IpAddr,
    /// Its VTEP and its subnets.
    pub peer: Peer,
}

/// A table of all agents, or what has changed in it.
///
/// A table is known by its digest, whoever made it: so what an agent learned from one master is of
/// use with the next one. Epoch and version only tell which of two updates is the later one. An
/// agent that gets an update
///
/// 1. ignores it if it is older than what it has: of an earlier epoch, or of a lower version of the
///    same epoch; unless it has got nothing else since it asked several times: then the master has
///    begun to count anew, or what the agent has is false;
/// 2. if it has a table of this `digest` already, only takes over epoch and version;
/// 3. otherwise makes the changes if `base` is the digest of its table, or begins anew if there is
///    no base;
/// 4. and if `base` is another one, or the result has not this `digest`, drops the update and sends
///    [`super::Message::RequestPeers`] at once: with what it has, or after a result that is wrong
///    with [`PeersHave::default`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeersUpdate {
    /// The tenure of the master: versions of different epochs are not comparable.
    pub epoch: u64,
    /// The version of the table with these changes.
    pub version: u64,
    /// The digest of the whole table at `version`: the sum of [`digest_of`] all agents in it,
    /// wrapping.
    pub digest: u64,
    /// The digest of the table that the changes are to be made to; `None`: this is a whole table.
    pub base: Option<u64>,
    /// The agents that are new or different, the receiver itself among them, by their identity.
    pub changed: BTreeMap<Ipv4Addr, PeerInfo>,
    /// The agents that are gone.
    pub removed: BTreeSet<Ipv4Addr>,
}

impl PeersUpdate {
    /// The most agents that an update may have: more than any cluster, and few enough that a
    /// hostile master does not fill the memory of its agents.
    pub const PEERS_MAX: usize = 200_000;
    /// The longest that an update may be on the wire: the bodies that our transports take.
    pub const BYTES_MAX: usize = 16 * 1024 * 1024;
}

/// The part that one agent has in the digest of a table, the same on every machine and in every
/// version of this program.
///
/// It is FNV-1a with 64 bits over the bytes of its identity, of `underlay`, of both addresses of
/// its VTEP, of the MAC, and of its subnets, ordered by overlay name, family (IPv4 first), address
/// and prefix: each address and each name with its length in one byte before it (0: there is none),
/// each subnet as name, address and length of the prefix in one byte. The result is mixed as the
/// finalizer of MurmurHash3 does: FNV leaves similar agents with similar values, and these are
/// added up.
#[must_use]
pub fn digest_of(ip: Ipv4Addr, info: &PeerInfo) -> u64 {
    let PeerInfo { underlay, peer: Peer { ip: vtep, ip6: vtep6, mac, subnets } } = info;
    let mut hash = Fnv::new();
    hash.add(&ip.octets());
    hash.add_address(*underlay);
    hash.add_part(vtep.map(|vtep| vtep.octets()).as_ref().map_or(&[], |octets| octets.as_slice()));
    hash.add_part(vtep6.map(|vtep| vtep.octets()).as_ref().map_or(&[], |octets| octets.as_slice()));
    hash.add(&mac.octets());
    let mut subnets: Vec<_> = subnets.iter().collect();
    subnets.sort();
    for (overlay, subnet) in subnets {
        hash.add_part(overlay.as_str().as_bytes());
        hash.add_address(subnet.first());
        hash.add(&[subnet.prefix()]);
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

    /// Something of at most 255 bytes, so that one part cannot pass for two others.
    fn add_part(&mut self, bytes: &[u8]) {
        self.add(&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)]);
        self.add(bytes);
    }

    fn add_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add_part(&address.octets()),
            IpAddr::V6(address) => self.add_part(&address.octets()),
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
            },
        }
    }

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn a_digest_never_changes() {
        // Agents and masters of all versions must agree: these numbers were counted once.
        assert_eq!(digest_of(IP, &info()), 0x2d00_6404_bd1b_78f2);
        let mut bare = info();
        (bare.peer.ip6, bare.peer.subnets) = (None, Vec::new());
        assert_eq!(digest_of(IP, &bare), 0x8f3b_3297_87b4_80b4);
    }

    #[test]
    fn everything_is_in_the_digest_and_the_order_of_subnets_is_not() {
        let mut same = info();
        same.peer.subnets.reverse();
        assert_eq!(digest_of(IP, &same), digest_of(IP, &info()));
        let others: [fn(&mut PeerInfo); 6] = [
            |info| info.underlay = "10.0.0.2".parse().unwrap(),
            |info| info.peer.ip = None,
            |info| info.peer.ip6 = None,
            |info| info.peer.mac = "70:b3:d5:80:00:02".parse().unwrap(),
            |info| info.peer.subnets[0].0 = "vxlan-3".parse().unwrap(),
            |info| info.peer.subnets[0].1 = "192.168.0.0/25".parse().unwrap(),
        ];
        let mut digests = BTreeSet::from([digest_of(IP, &info())]);
        for change in others {
            let mut other = info();
            change(&mut other);
            assert!(digests.insert(digest_of(IP, &other)), "{other:?}");
        }
        assert!(digests.insert(digest_of("10.0.0.2".parse().unwrap(), &info())));
    }
}

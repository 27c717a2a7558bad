//! Encodes and decodes the messages in which a master sends peer tables to agents.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use overlay_types::addr::{Mac, OverlayName, Subnet};
use overlay_types::address_usage::{AddressCount, HalfCounts, OverlayCounts};
use overlay_types::protocol::{
    MessageKind, PeerInfo, PeerTableVersion, PeersRequest, PeersUpdate, UpdateForm,
};
use overlay_types::state::Counts;
use overlay_types::tunnel::{DirectPeer, Peer};
use prost::Message as _;

use super::compact_peers;
use super::convert::check_direct_mac;
use super::error::ConvertError;
use super::field::{convert_list, parse_field};
use super::mesos::modules::overlay::internal as pb;
use super::message::DecodeError;

/// Name of the request on the wire.
const REQUEST: &str = MessageKind::RequestPeers.name();
/// Name of the update on the wire.
const UPDATE: &str = MessageKind::UpdatePeers.name();

/// An update of fewer agents is not compressed, since it would hardly get shorter.
const COMPACT_MIN: usize = 8;

pub(super) fn encode_request(request: &PeersRequest) -> Vec<u8> {
    let PeerTableVersion { epoch, version, digest } = request.have;
    let (epoch, version, digest) = (Some(epoch), Some(version), Some(digest));
    let compact = (request.form == UpdateForm::Compact).then_some(true);
    let program_version = request.version.map(|version| version.to_string());
    let addresses = counts_to_pb(&request.address_counts);
    pb::RequestPeersMessage { epoch, version, digest, compact, program_version, addresses }
        .encode_to_vec()
}

/// Converts the numbers of addresses of the fullest overlays.
fn counts_to_pb(counts: &OverlayCounts) -> Vec<pb::OverlayAddresses> {
    let fill = |halves: &HalfCounts| halves.known().map(|(_, count)| count.percent()).max();
    let mut fullest: Vec<_> = counts.iter().collect();
    fullest.sort_by_key(|(_, halves)| Reverse(fill(halves)));
    let to_pb = |(name, halves): (&OverlayName, &HalfCounts)| pb::OverlayAddresses {
        overlay: Some(name.to_string()),
        mesos_used: halves.mesos.map(|count| count.used),
        mesos_free: halves.mesos.map(|count| count.free),
        docker_used: halves.docker.map(|count| count.used),
        docker_free: halves.docker.map(|count| count.free),
    };
    fullest.into_iter().take(PeersRequest::COUNTS_MAX).map(to_pb).collect()
}

/// Converts the numbers of addresses. They are for operators only, so an unusable entry is left out
/// and does not make the request unusable.
fn counts_from_pb(list: &[pb::OverlayAddresses]) -> OverlayCounts {
    let count = |used: Option<u32>, free: Option<u32>| {
        used.zip(free).map(|(used, free)| AddressCount { used, free })
    };
    let entry = |pb: &pb::OverlayAddresses| {
        let mesos = count(pb.mesos_used, pb.mesos_free);
        let docker = count(pb.docker_used, pb.docker_free);
        Some((pb.overlay().parse().ok()?, HalfCounts { mesos, docker }))
    };
    list.iter().filter_map(entry).collect()
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<PeersRequest, ConvertError> {
    let pb = pb::RequestPeersMessage::decode(bytes).map_err(|error| malformed(REQUEST, &error))?;
    let have = PeerTableVersion { epoch: pb.epoch(), version: pb.version(), digest: pb.digest() };
    let form = if pb.compact() { UpdateForm::Compact } else { UpdateForm::Plain };
    // The version is for operators only, so one of another form does not make the request unusable.
    let version = pb.program_version().parse().ok();
    let address_counts = counts_from_pb(&pb.addresses);
    Ok(PeersRequest { have, form, version, address_counts })
}

/// Encodes the body of an `UpdatePeersMessage`. The body has the form `form`, or is plain if that
/// form has no advantage. A body that is longer than [`PeersUpdate::BYTES_MAX`] is refused by every
/// agent.
#[must_use]
pub fn encode_update(update: &PeersUpdate, form: UpdateForm) -> Arc<[u8]> {
    let mut message = update_to_pb(update);
    if form == UpdateForm::Compact && update.changed.len() + update.removed.len() >= COMPACT_MIN {
        compact_peers::compress(&mut message);
    }
    message.encode_to_vec().into()
}

/// Encodes an update in the plain form.
pub(super) fn encode_plain(update: &PeersUpdate) -> Vec<u8> {
    update_to_pb(update).encode_to_vec()
}

fn update_to_pb(update: &PeersUpdate) -> pb::UpdatePeersMessage {
    let mut names = OverlayNames::default();
    let peers = update.changed.iter().map(|(ip, info)| peer_to_pb(*ip, info, &mut names)).collect();
    pb::UpdatePeersMessage {
        epoch: Some(update.epoch),
        version: Some(update.version),
        digest: Some(update.digest),
        base: update.base,
        overlays: names.in_order.iter().map(ToString::to_string).collect(),
        peers,
        removed: update.removed.iter().map(|ip| ip.octets().to_vec()).collect(),
        compact: None,
    }
}

pub(super) fn decode_update(
    bytes: &[u8],
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Arc<PeersUpdate>, ConvertError> {
    let mut pb =
        pb::UpdatePeersMessage::decode(bytes).map_err(|error| malformed(UPDATE, &error))?;
    compact_peers::expand(&mut pb, reserve)?;
    let names: Vec<OverlayName> =
        convert_list("overlays", &pb.overlays, |name| parse_field("name", name))?;
    let peers = convert_list("peers", &pb.peers, |peer| peer_from_pb(peer, &names))?;
    let removed = convert_list("removed", &pb.removed, |ip| {
        parse_octets("address", Some(ip.as_slice()))?
            .map(Ipv4Addr::from)
            .ok_or_else(|| ConvertError::missing("address"))
    })?;
    let count = peers.len();
    let changed: BTreeMap<Ipv4Addr, PeerInfo> = peers.into_iter().collect();
    if changed.len() < count {
        return Err(ConvertError::field("peers", "an agent appears twice"));
    }
    let removed: BTreeSet<Ipv4Addr> = removed.into_iter().collect();
    if let Some(ip) = removed.iter().find(|ip| changed.contains_key(ip)) {
        return Err(ConvertError::field("removed", format!("agent {ip} is in peers as well")));
    }
    let (epoch, version, digest, base) = (pb.epoch(), pb.version(), pb.digest(), pb.base);
    // With such counts, an agent would ignore the updates of every real master until the agent has
    // sent several requests.
    Counts { epoch, version }.check().map_err(|reason| ConvertError::field("update", reason))?;
    Ok(Arc::new(PeersUpdate { epoch, version, digest, base, changed, removed }))
}

/// The names of overlays, each with its index in the message.
#[derive(Default)]
struct OverlayNames<'a> {
    indexes: BTreeMap<&'a OverlayName, u32>,
    in_order: Vec<&'a OverlayName>,
}

impl<'a> OverlayNames<'a> {
    /// Returns the index of `name`. Adds a new name.
    fn index(&mut self, name: &'a OverlayName) -> u32 {
        *self.indexes.entry(name).or_insert_with(|| {
            self.in_order.push(name);
            u32::try_from(self.in_order.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

fn peer_to_pb<'a>(ip: Ipv4Addr, info: &'a PeerInfo, names: &mut OverlayNames<'a>) -> pb::Peer {
    let PeerInfo { underlay, peer } = info;
    let subnets = peer.subnets.iter().map(|(name, subnet)| pb::PeerSubnet {
        overlay: Some(names.index(name)),
        address: Some(first_octets(subnet)),
        prefix: Some(subnet.prefix().into()),
    });
    pb::Peer {
        ip: Some(ip.octets().to_vec()),
        underlay: match underlay {
            // An IPv4 underlay address always equals the address of the agent.
            IpAddr::V4(_) => None,
            IpAddr::V6(underlay) => Some(underlay.octets().to_vec()),
        },
        vtep_ip: peer.ip.map(|ip| ip.octets().to_vec()),
        vtep_ip6: peer.ip6.map(|ip6| ip6.octets().to_vec()),
        vtep_mac: Some(peer.mac.octets().to_vec()),
        subnets: subnets.collect(),
        direct_mac: peer.direct.map(|direct| direct.mac.octets().to_vec()),
    }
}

fn peer_from_pb(
    pb: &pb::Peer,
    names: &[OverlayName],
) -> Result<(Ipv4Addr, PeerInfo), ConvertError> {
    let ip = parse_octets("ip", pb.ip.as_deref())?
        .map(Ipv4Addr::from)
        .ok_or_else(|| ConvertError::missing("ip"))?;
    let underlay = parse_octets("underlay", pb.underlay.as_deref())?.map(Ipv6Addr::from);
    let mac = parse_octets::<6>("vtep_mac", pb.vtep_mac.as_deref())?;
    let direct_mac = parse_octets("direct_mac", pb.direct_mac.as_deref())?.map(Mac::from);
    let peer = Peer {
        ip: parse_octets("vtep_ip", pb.vtep_ip.as_deref())?.map(Ipv4Addr::from),
        ip6: parse_octets("vtep_ip6", pb.vtep_ip6.as_deref())?.map(Ipv6Addr::from),
        mac: Mac::from(mac.ok_or_else(|| ConvertError::missing("vtep_mac"))?),
        subnets: convert_list("subnets", &pb.subnets, |subnet| subnet_from_pb(subnet, names))?,
        direct: check_direct_mac(direct_mac)?.map(|mac| DirectPeer { mac, is_used: false }),
    };
    Ok((ip, PeerInfo { underlay: underlay.map_or(IpAddr::V4(ip), IpAddr::V6), peer }))
}

fn subnet_from_pb(
    pb: &pb::PeerSubnet,
    names: &[OverlayName],
) -> Result<(OverlayName, Subnet), ConvertError> {
    let name = usize::try_from(pb.overlay()).ok().and_then(|index| names.get(index));
    let name = name.ok_or_else(|| {
        ConvertError::field("overlay", format!("{} is no index of an overlay", pb.overlay()))
    })?;
    Ok((name.clone(), parse_subnet(pb.address(), pb.prefix())?))
}

/// Returns the bytes of the first address of a subnet.
pub(super) fn first_octets(subnet: &Subnet) -> Vec<u8> {
    match subnet.first() {
        IpAddr::V4(first) => first.octets().to_vec(),
        IpAddr::V6(first) => first.octets().to_vec(),
    }
}

/// Converts the first address and the prefix of a subnet.
pub(super) fn parse_subnet(address: &[u8], prefix: u32) -> Result<Subnet, ConvertError> {
    let first = match address.len() {
        4 => parse_octets("address", Some(address))?.map(|octets: [u8; 4]| IpAddr::from(octets)),
        _ => parse_octets("address", Some(address))?.map(|octets: [u8; 16]| IpAddr::from(octets)),
    };
    let first = first.ok_or_else(|| ConvertError::missing("address"))?;
    let subnet = u8::try_from(prefix).ok().and_then(|prefix| Subnet::containing(first, prefix));
    subnet
        .filter(|subnet| subnet.first() == first)
        .ok_or_else(|| ConvertError::field("prefix", format!("{first}/{prefix} is no subnet")))
}

/// Checks that the optional bytes of `field` have the length `N`.
pub(super) fn parse_octets<const N: usize>(
    field: &str,
    bytes: Option<&[u8]>,
) -> Result<Option<[u8; N]>, ConvertError> {
    let octets = bytes.map(|bytes| {
        bytes.try_into().map_err(|_| {
            ConvertError::field(field, format!("has {} bytes instead of {N}", bytes.len()))
        })
    });
    octets.transpose()
}

pub(super) fn malformed(name: &'static str, error: &prost::DecodeError) -> ConvertError {
    DecodeError::Malformed { name, reason: error.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use overlay_types::protocol::Message;

    use super::super::protocol::{decode_message, encode_message};
    use super::*;

    fn agent(number: u8) -> (Ipv4Addr, PeerInfo) {
        let ip = Ipv4Addr::new(10, 0, 0, number);
        let subnet = |name: &str, text: String| (name.parse().unwrap(), text.parse().unwrap());
        let peer = Peer {
            ip: Some(Ipv4Addr::new(44, 128, 0, number)),
            ip6: None,
            mac: Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, number]),
            subnets: vec![
                subnet("vxlan-1", format!("192.168.{number}.0/24")),
                subnet("vxlan-2", format!("192.169.{number}.0/24")),
            ],
            direct: None,
        };
        (ip, PeerInfo { underlay: ip.into(), peer })
    }

    fn update() -> PeersUpdate {
        let mut other = agent(2);
        other.1.underlay = "fd00::2".parse().unwrap();
        other.1.peer.ip6 = Some("fd01:a::2".parse().unwrap());
        let subnet6 = ("vxlan-2".parse().unwrap(), "fd01:b::/80".parse().unwrap());
        other.1.peer.subnets.push(subnet6);
        other.1.peer.direct = Some(DirectPeer { mac: [2, 0, 0, 0, 0, 2].into(), is_used: false });
        PeersUpdate {
            epoch: 3,
            version: 7,
            digest: u64::MAX,
            base: Some(0),
            changed: [agent(1), other].into(),
            removed: ["10.0.0.9".parse().unwrap()].into(),
        }
    }

    #[test]
    fn peer_messages_round_trip() {
        let have = PeerTableVersion { epoch: 1, version: 2, digest: 3 };
        let version = "1.20.3".parse().ok();
        let count = |used| Some(AddressCount { used, free: 125 - used });
        let halves = HalfCounts { mesos: count(3), docker: count(125) };
        let address_counts = [("vxlan-1".parse().unwrap(), halves)].into();
        let compact = PeersRequest { have, form: UpdateForm::Compact, version, address_counts };
        let snapshot = PeersUpdate { base: None, ..update() };
        for message in [
            Message::RequestPeers(compact),
            Message::RequestPeers(PeersRequest { have, ..PeersRequest::default() }),
            Message::RequestPeers(PeersRequest::default()),
            Message::UpdatePeers(Arc::new(update())),
            Message::UpdatePeers(Arc::new(snapshot)),
            Message::UpdatePeers(Arc::default()),
        ] {
            let (name, bytes) = encode_message(&message);
            assert_eq!(decode_message(name, &bytes).unwrap(), message);
        }
    }

    #[test]
    fn request_with_most_counts_is_accepted_by_former_masters() {
        let count = |used| Some(AddressCount { used, free: u32::MAX });
        let halves = |number: u32| {
            let name = format!("overlay-{number:05}").parse().unwrap();
            (name, HalfCounts { mesos: count(number), docker: count(u32::MAX - number) })
        };
        let address_counts = (0..128).map(halves).collect();
        let version = "1.20.300".parse().ok();
        let have = PeerTableVersion { epoch: u64::MAX, version: u64::MAX, digest: u64::MAX };
        let form = UpdateForm::Compact;
        let request = PeersRequest { have, form, version, address_counts };
        let (name, body) = encode_message(&Message::RequestPeers(request));
        // The limit of all versions.
        assert!(body.len() <= 4 * 1024, "{} bytes", body.len());
        let Ok(Message::RequestPeers(decoded)) = decode_message(name, &body) else {
            panic!("not decoded")
        };
        assert_eq!(decoded.address_counts.len(), PeersRequest::COUNTS_MAX);
        // A master of a former version has no field 6, and skips it as every unknown field.
        let former = {
            let mut pb = pb::RequestPeersMessage::decode(&*body).unwrap();
            pb.addresses.clear();
            pb.encode_to_vec()
        };
        assert!(body.starts_with(&former), "the former fields are unchanged");
        assert!(matches!(decode_message(name, &former), Ok(Message::RequestPeers(_))));
    }

    #[test]
    fn unusable_counts_are_left_out() {
        let entry = |overlay: &str| pb::OverlayAddresses {
            overlay: Some(overlay.to_owned()),
            mesos_used: Some(3),
            docker_used: Some(3),
            docker_free: Some(122),
            ..Default::default()
        };
        let addresses = vec![entry("no overlay"), entry("vxlan-1")];
        let pb = pb::RequestPeersMessage { addresses, ..Default::default() };
        let request = decode_request(&pb.encode_to_vec()).unwrap();
        let halves = HalfCounts { mesos: None, docker: Some(AddressCount { used: 3, free: 122 }) };
        assert_eq!(request.address_counts, [("vxlan-1".parse().unwrap(), halves)].into());
        let pb = pb::RequestPeersMessage { addresses: vec![entry("a"); 65], ..Default::default() };
        let error = decode_message(REQUEST, &pb.encode_to_vec()).unwrap_err().to_string();
        assert_eq!(error, "addresses: has more than 64 entries");
    }

    #[test]
    fn encode_peer_in_two_overlays_takes_under_50_bytes() {
        let bytes = |agents: u8| {
            let changed = (1..=agents).map(agent).collect();
            encode_plain(&PeersUpdate { changed, ..PeersUpdate::default() }).len()
        };
        assert!(bytes(101) - bytes(1) < 100 * 50, "{}", bytes(101) - bytes(1));
    }

    #[test]
    fn decode_invalid_update_names_field() {
        let error = |change: fn(&mut pb::UpdatePeersMessage)| {
            let mut message = pb::UpdatePeersMessage::decode(&*encode_plain(&update())).unwrap();
            change(&mut message);
            decode_message(UPDATE, &message.encode_to_vec()).unwrap_err().to_string()
        };
        type Change = fn(&mut pb::UpdatePeersMessage);
        let cases: [(Change, &str); 16] = [
            (|update| update.peers[1].ip = None, "peers[1].ip: is missing"),
            (|update| update.peers[0].ip = Some(vec![1]), "peers[0].ip: has 1 bytes instead of 4"),
            (
                |update| update.peers[0].underlay = Some(Vec::new()),
                "peers[0].underlay: has 0 bytes instead of 16",
            ),
            (|update| update.peers[0].vtep_mac = None, "peers[0].vtep_mac: is missing"),
            (
                |update| update.peers[0].direct_mac = Some(vec![2; 5]),
                "peers[0].direct_mac: has 5 bytes instead of 6",
            ),
            (
                |update| update.peers[0].direct_mac = Some(vec![1; 6]),
                "peers[0].direct_mac: 01:01:01:01:01:01 is not unicast",
            ),
            (
                |update| update.peers[0].vtep_ip = Some(vec![0; 5]),
                "peers[0].vtep_ip: has 5 bytes instead of 4",
            ),
            (
                |update| update.peers[0].subnets[1].overlay = Some(2),
                "peers[0].subnets[1].overlay: 2 is no index of an overlay",
            ),
            (
                |update| update.peers[0].subnets[0].prefix = Some(8),
                "peers[0].subnets[0].prefix: 192.168.1.0/8 is no subnet",
            ),
            (
                |update| update.peers[0].subnets[0].prefix = Some(300),
                "peers[0].subnets[0].prefix: 192.168.1.0/300 is no subnet",
            ),
            (
                |update| update.peers[0].subnets[0].address = None,
                "peers[0].subnets[0].address: has 0 bytes instead of 16",
            ),
            (
                |update| update.removed[0] = update.peers[0].ip.clone().unwrap(),
                "removed: agent 10.0.0.1 is in peers as well",
            ),
            (|update| update.peers[1] = update.peers[0].clone(), "peers: an agent appears twice"),
            (
                |update| update.removed = vec![Vec::new(); PeersUpdate::PEERS_MAX + 1],
                "removed: has more than 200000 entries",
            ),
            (
                |update| update.epoch = Some(Counts::MAX + 1),
                "update: impossible epoch 281474976710657",
            ),
            (
                |update| update.version = Some(u64::MAX),
                "update: impossible version 18446744073709551615",
            ),
        ];
        for (change, text) in cases {
            assert_eq!(error(change), text);
        }
        let text = error(|update| update.overlays[0] = "../x".to_owned());
        assert!(text.starts_with("overlays[0].name: '../x' contains '.'"), "{text}");
        let text = decode_update(&[0xff], &mut |_| true).unwrap_err().to_string();
        assert!(text.starts_with(&format!("malformed {UPDATE}: ")), "{text}");
        assert!(decode_request(&[0xff]).is_err());
    }
}

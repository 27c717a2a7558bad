//! The compact form of a peer update: differences between successive peers, compressed.
//!
//! The master allocates addresses in order. So if the peers are ordered by their VTEP, the
//! differences between successive peers are nearly all equal, and zlib encodes them in a few bits.
//! Only the identities of the agents and the MACs for direct routing have no order, and zlib
//! compresses mixed records badly, so each of them is a list of its own. The update of 10,000 agents
//! with two overlays has 25 kB instead of 460 kB; zlib alone reaches 107 to 157 kB. The MACs add 6
//! bytes per agent. The fastest level is used: the best level saves one percent more.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;

use flate2::Compression;
use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;
use overlay_types::protocol::PeersUpdate;
use prost::Message as _;

use super::bounds;
use super::error::ConvertError;
use super::mesos::modules::overlay::internal as pb;

/// Name of the field on the wire.
const FIELD: &str = "compact";
/// Maximum length of the decompressed bytes. The master never sends more.
const EXPANDED_MAX: usize = PeersUpdate::BYTES_MAX;
/// First allocation for decompressed bytes.
const INFLATE_STEP: usize = 32 * 1024;
/// Length of a MAC.
const MAC_LENGTH: usize = 6;

/// Moves the lists of `message` to its field `compact`. Returns false, with the message unchanged,
/// if the agent would refuse the length of the decompressed bytes.
pub(super) fn compress(message: &mut pb::UpdatePeersMessage) -> bool {
    // Fields only get shorter, except the list of MACs, which has entries for all peers. So this
    // length is an upper bound.
    let longest = message.encoded_len() + message.peers.len() * MAC_LENGTH;
    if longest > EXPANDED_MAX {
        return false;
    }
    let mut peers = std::mem::take(&mut message.peers);
    peers.sort_by(|one, other| (&one.vtep_ip, &one.ip).cmp(&(&other.vtep_ip, &other.ip)));
    let mut differences = Differences { is_encoding: true, ..Differences::default() };
    let ips = peers.iter_mut().map(|peer| {
        let ip = peer.ip.take().and_then(|ip| ip.try_into().ok()).map_or(0, u32::from_be_bytes);
        differences.replace_addresses(peer);
        differences.replace_ip(ip).cast_signed()
    });
    let ips = ips.collect();
    let direct_macs = take_direct_macs(&mut peers);
    let overlays = std::mem::take(&mut message.overlays);
    let removed = std::mem::take(&mut message.removed);
    let compact = pb::CompactPeers { overlays, ips, peers, removed, direct_macs };
    let compact = compact.encode_to_vec();
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(&compact);
    message.compact = encoder.finish().ok();
    true
}

/// Moves the content of the field `compact` to the lists of `message`. Before every allocation for
/// decompressed bytes, `reserve` gets the new size.
///
/// # Errors
/// If the field is malformed, or longer than [`EXPANDED_MAX`] after decompression, or if `reserve`
/// returns false.
pub(super) fn expand(
    message: &mut pb::UpdatePeersMessage,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<(), ConvertError> {
    let Some(compact) = message.compact.take() else { return Ok(()) };
    if !(message.overlays.is_empty() && message.peers.is_empty() && message.removed.is_empty()) {
        return Err(ConvertError::field(FIELD, "the update has plain lists as well"));
    }
    let expanded = inflate(&compact, reserve)?;
    bounds::check_compact_peers(&expanded)?;
    let compact =
        pb::CompactPeers::decode(&*expanded).map_err(|error| ConvertError::field(FIELD, error))?;
    let pb::CompactPeers { overlays, ips, mut peers, removed, direct_macs } = compact;
    if ips.len() != peers.len() {
        let reason = format!("has {} identities of {} peers", ips.len(), peers.len());
        return Err(ConvertError::field(FIELD, reason));
    }
    put_direct_macs(direct_macs, &mut peers)?;
    let mut differences = Differences::default();
    for (ip, peer) in ips.into_iter().zip(&mut peers) {
        let ip = Ipv4Addr::from(differences.replace_ip(ip.cast_unsigned()));
        peer.ip = Some(ip.octets().to_vec());
        differences.replace_addresses(peer);
    }
    (message.overlays, message.peers, message.removed) = (overlays, peers, removed);
    Ok(())
}

/// Moves the MACs for direct routing to a list of their own. A MAC of another length is no MAC.
fn take_direct_macs(peers: &mut [pb::Peer]) -> Option<Vec<u8>> {
    if peers.iter().all(|peer| peer.direct_mac.is_none()) {
        return None;
    }
    let macs = peers.iter_mut().flat_map(|peer| {
        let mac = peer.direct_mac.take().and_then(|mac| <[u8; MAC_LENGTH]>::try_from(mac).ok());
        mac.unwrap_or_default()
    });
    Some(macs.collect())
}

/// Moves the MACs for direct routing back to the peers.
fn put_direct_macs(macs: Option<Vec<u8>>, peers: &mut [pb::Peer]) -> Result<(), ConvertError> {
    let Some(macs) = macs else { return Ok(()) };
    let expected = peers.len() * MAC_LENGTH;
    if macs.len() != expected {
        let reason = format!("has {} bytes instead of {expected}", macs.len());
        return Err(ConvertError::field("direct_macs", reason).within(FIELD));
    }
    for (mac, peer) in macs.chunks_exact(MAC_LENGTH).zip(peers) {
        peer.direct_mac = Some(mac.to_vec()).filter(|mac| *mac != [0; MAC_LENGTH]);
    }
    Ok(())
}

/// Decompresses at most [`EXPANDED_MAX`] bytes.
fn inflate(bytes: &[u8], reserve: &mut dyn FnMut(usize) -> bool) -> Result<Vec<u8>, ConvertError> {
    let error = |reason: &dyn Display| ConvertError::field(FIELD, reason);
    let mut decoder = ZlibDecoder::new(bytes);
    let mut expanded = Vec::new();
    loop {
        if expanded.len() == expanded.capacity() {
            let capacity = (expanded.capacity() * 2).clamp(INFLATE_STEP, EXPANDED_MAX + 1);
            if !reserve(capacity) {
                return Err(error(&format!("no memory is left to decompress {capacity} bytes")));
            }
            expanded.reserve_exact(capacity - expanded.len());
        }
        let rest = (expanded.capacity() - expanded.len()) as u64;
        let count = decoder.by_ref().take(rest).read_to_end(&mut expanded);
        let count = count.map_err(|reason| error(&reason))?;
        if expanded.len() > EXPANDED_MAX {
            let reason = format!("has more than {EXPANDED_MAX} bytes after decompression");
            return Err(error(&reason));
        }
        if count == 0 {
            break;
        }
    }
    if !decoder.into_inner().is_empty() {
        return Err(error(&"there is data after the compressed bytes"));
    }
    Ok(expanded)
}

/// The last value of each field, as the reader of the message knows it.
#[derive(Default)]
struct Differences {
    /// Whether values are replaced by differences, or differences by values.
    is_encoding: bool,
    ip: u32,
    underlay: u128,
    vtep_ip: u128,
    vtep_ip6: u128,
    vtep_mac: u128,
    /// The first addresses of the last subnets, by overlay, length of the address, and prefix.
    subnets: BTreeMap<(u32, usize, u32), u128>,
}

impl Differences {
    const fn replace_ip(&mut self, ip: u32) -> u32 {
        let (result, value) = if self.is_encoding {
            (ip.wrapping_sub(self.ip), ip)
        } else {
            let value = self.ip.wrapping_add(ip);
            (value, value)
        };
        self.ip = value;
        result
    }

    fn replace_addresses(&mut self, peer: &mut pb::Peer) {
        let fields = [
            (&mut peer.underlay, &mut self.underlay),
            (&mut peer.vtep_ip, &mut self.vtep_ip),
            (&mut peer.vtep_ip6, &mut self.vtep_ip6),
            (&mut peer.vtep_mac, &mut self.vtep_mac),
        ];
        for (field, last) in fields {
            if let Some(bytes) = field {
                replace(self.is_encoding, bytes, last);
            }
        }
        for subnet in &mut peer.subnets {
            let (overlay, prefix) = (subnet.overlay(), subnet.prefix());
            if let Some(bytes) = &mut subnet.address {
                let last = self.subnets.entry((overlay, bytes.len(), prefix)).or_default();
                replace(self.is_encoding, bytes, last);
            }
        }
    }
}

/// Replaces the number `bytes`, in network order, by its difference to `last`, or the difference by
/// the number. The length stays. Numbers of impossible length stay, too: they are refused later.
fn replace(is_encoding: bool, bytes: &mut [u8], last: &mut u128) {
    let mut wide = [0; 16];
    let Some(start) = wide.len().checked_sub(bytes.len()) else { return };
    wide[start..].copy_from_slice(bytes);
    let number = u128::from_be_bytes(wide);
    let (result, value) = if is_encoding {
        (number.wrapping_sub(*last), number)
    } else {
        let value = last.wrapping_add(number);
        (value, value)
    };
    // The upper bytes of a short number are lost here, as in the next difference.
    bytes.copy_from_slice(&result.to_be_bytes()[start..]);
    *last = value;
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher as _};

    use overlay_types::addr::Mac;
    use overlay_types::protocol::{Message, MessageKind, PeerInfo, UpdateForm};
    use overlay_types::tunnel::{DirectPeer, Peer};

    use super::super::peers::{encode_plain, encode_update};
    use super::super::protocol::{decode_message, decode_message_reserving};
    use super::*;

    /// Returns the snapshot of `agents` agents that registered in another order than that of their
    /// addresses.
    fn snapshot(agents: u32) -> PeersUpdate {
        let mut order: Vec<u32> = (0..agents).collect();
        order.sort_by_cached_key(|number| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u32(*number);
            hasher.finish()
        });
        let agent = |(number, place): (u32, u32)| {
            let ip = Ipv4Addr::from_bits(0x0a00_0001 + number);
            let [_, high, middle, low] = (0x0080_0001 + place).to_be_bytes();
            let subnet = |name: &str, first: u32| {
                let first = Ipv4Addr::from_bits(first + 256 * place);
                (name.parse().unwrap(), format!("{first}/24").parse().unwrap())
            };
            let peer = Peer {
                ip: Some(Ipv4Addr::from_bits(0x2c80_0001 + place)),
                ip6: None,
                mac: Mac::from([0x70, 0xb3, 0xd5, high, middle, low]),
                subnets: vec![subnet("vxlan-1", 0x0b00_0000), subnet("vxlan-2", 0x0c00_0000)],
                direct: None,
            };
            (ip, PeerInfo { underlay: ip.into(), peer })
        };
        let changed = (0..agents).zip(order).map(agent).collect();
        PeersUpdate { epoch: 1, version: 2, digest: 3, changed, ..PeersUpdate::default() }
    }

    fn decode(bytes: &[u8]) -> Result<PeersUpdate, String> {
        match decode_message(MessageKind::UpdatePeers.name(), bytes) {
            Ok(Message::UpdatePeers(update)) => Ok((*update).clone()),
            Ok(other) => panic!("{other}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Encodes the compact form of a snapshot after `change` of its lists.
    fn changed(change: fn(&mut pb::CompactPeers)) -> Vec<u8> {
        let body = encode_update(&snapshot(20), UpdateForm::Compact);
        let mut message = pb::UpdatePeersMessage::decode(&*body).unwrap();
        let expanded = inflate(&message.compact.unwrap(), &mut |_| true).unwrap();
        let mut compact = pb::CompactPeers::decode(&*expanded).unwrap();
        change(&mut compact);
        message.compact = Some(deflate(&compact.encode_to_vec()));
        message.encode_to_vec()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compact_update_round_trips() {
        let mut update = snapshot(500);
        update.base = Some(7);
        update.removed = [Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::new(254, 0, 0, 1)].into();
        let mut numbers = 0_u8..;
        for info in update.changed.values_mut().step_by(3) {
            let number = numbers.next().unwrap();
            info.peer.ip = None;
            info.underlay = format!("fd00::{number:x}").parse().unwrap();
            info.peer.ip6 = format!("fd01:ffff::{number:x}").parse().ok();
            let subnet = format!("fd02:{number:x}::/80").parse().unwrap();
            info.peer.subnets.insert(usize::from(number % 3), ("six".parse().unwrap(), subnet));
            let mac = Mac::from([2, 0, 0x5e, 0, 0, number]);
            info.peer.direct = Some(DirectPeer { mac, is_used: false });
        }
        let compact = encode_update(&update, UpdateForm::Compact);
        assert_eq!(decode(&compact), Ok(update.clone()));
        assert_eq!(decode(&encode_update(&update, UpdateForm::Plain)), Ok(update));
    }

    #[test]
    fn compact_update_of_10_000_agents_is_short() {
        let update = snapshot(10_000);
        let (plain, compact) =
            (encode_plain(&update).len(), encode_update(&update, UpdateForm::Compact).len());
        println!("10,000 agents: {plain} bytes plain, {compact} bytes compact");
        assert!(compact * 15 < plain, "{compact} of {plain} bytes");
    }

    #[test]
    fn small_update_is_plain() {
        let update = snapshot(3);
        assert_eq!(*encode_update(&update, UpdateForm::Compact), *encode_plain(&update));
    }

    #[test]
    fn update_beyond_limit_is_not_compressed() {
        let mut message = pb::UpdatePeersMessage {
            overlays: vec!["x".repeat(EXPANDED_MAX)],
            ..pb::UpdatePeersMessage::default()
        };
        let before = message.clone();
        assert!(!compress(&mut message), "agents refuse its length, and so the master reports it");
        assert_eq!(message, before);
    }

    #[test]
    fn invalid_compact_update_names_field() {
        let with = |compact: Vec<u8>| {
            let message = pb::UpdatePeersMessage { compact: Some(compact), ..Default::default() };
            decode(&message.encode_to_vec()).unwrap_err()
        };
        let bomb = deflate(&vec![0; EXPANDED_MAX + 1]);
        assert!(bomb.len() < 128 * 1024, "the bomb has {} bytes", bomb.len());
        let text = "compact: has more than 16777216 bytes after decompression";
        assert_eq!(with(bomb), text);
        let mut longer = deflate(b"");
        longer.push(0);
        assert_eq!(with(longer), "compact: there is data after the compressed bytes");
        assert!(with(b"x".to_vec()).starts_with("compact: "));
        assert!(with(deflate(b"\xff")).starts_with("compact: "));
        let text = "compact.peers: entry 0 has 0 bytes, at least 8";
        assert_eq!(with(deflate(&b"\x1a\x00".repeat(1_000_000))), text);
        // Four million packed numbers of a byte each.
        let ips = [&b"\x12\x80\x92\xf4\x01"[..], &vec![0; 4_000_000]].concat();
        assert_eq!(with(deflate(&ips)), "compact.ips: has more than 200000 entries");
        let both = pb::UpdatePeersMessage {
            overlays: vec!["vxlan-1".to_owned()],
            compact: Some(deflate(b"")),
            ..Default::default()
        };
        let text = "compact: the update has plain lists as well";
        assert_eq!(decode(&both.encode_to_vec()).unwrap_err(), text);
    }

    #[test]
    fn decompression_reserves_memory_before_it_allocates() {
        let body = encode_update(&snapshot(10_000), UpdateForm::Compact);
        let decode_within = |most: usize| {
            let mut reserved = 0;
            let mut reserve = |bytes: usize| {
                reserved = bytes;
                bytes <= most
            };
            let name = MessageKind::UpdatePeers.name();
            let result = decode_message_reserving(name, &body, &mut reserve);
            (result.map(drop).map_err(|error| error.to_string()), reserved)
        };
        assert_eq!(decode_within(512 * 1024), (Ok(()), 512 * 1024));
        let text = "compact: no memory is left to decompress 131072 bytes";
        assert_eq!(decode_within(100_000), (Err(text.to_owned()), 131_072));
    }

    #[test]
    fn invalid_peer_of_compact_update_is_named() {
        let error = |change| decode(&changed(change)).unwrap_err();
        assert_eq!(
            error(|compact| compact.ips.truncate(19)),
            "compact: has 19 identities of 20 peers"
        );
        assert_eq!(
            error(|compact| compact.peers[3].vtep_ip = Some(vec![0; 17])),
            "peers[3].vtep_ip: has 17 bytes instead of 4"
        );
        assert_eq!(error(|compact| compact.ips[1] = 0), "peers: an agent appears twice");
        assert_eq!(
            error(|compact| compact.direct_macs = Some(vec![2; 119])),
            "compact.direct_macs: has 119 bytes instead of 120"
        );
        assert_eq!(
            error(|compact| compact.direct_macs = Some(vec![1; 120])),
            "peers[0].direct_mac: 01:01:01:01:01:01 is not unicast"
        );
    }
}

//! Encodes and decodes the message about the peers that an agent does not reach.

use std::net::Ipv4Addr;

use overlay_types::protocol::{MessageKind, PeerFailure, PeerFailureCause, PeerFailures};
use prost::Message as _;

use super::error::ConvertError;
use super::field::convert_list;
use super::mesos::modules::overlay::internal as pb;
use super::peers::{malformed, parse_octets};

pub(super) fn encode(failures: &PeerFailures) -> Vec<u8> {
    let peers = failures.peers.iter().take(PeerFailures::MAX).map(|failure| pb::PeerFailure {
        agent: Some(failure.agent.octets().to_vec()),
        cause: number_of(failure.cause),
        since: Some(failure.since),
        lost: Some(failure.lost),
        round_trip_microseconds: failure.round_trip,
    });
    pb::PeerFailuresMessage { peers: peers.collect(), total: Some(failures.total) }.encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<PeerFailures, ConvertError> {
    let pb = pb::PeerFailuresMessage::decode(bytes)
        .map_err(|error| malformed(MessageKind::PeerFailures.name(), &error))?;
    let peers = convert_list("peers", &pb.peers, |peer| {
        let agent = parse_octets("agent", peer.agent.as_deref())?.map(Ipv4Addr::from);
        Ok(PeerFailure {
            agent: agent.ok_or_else(|| ConvertError::missing("agent"))?,
            cause: cause_of(peer.cause()),
            since: peer.since(),
            lost: peer.lost(),
            round_trip: peer.round_trip_microseconds,
        })
    })?;
    Ok(PeerFailures { peers, total: pb.total() })
}

fn number_of(cause: PeerFailureCause) -> Option<u32> {
    let index = PeerFailureCause::ALL.iter().position(|other| *other == cause);
    index.and_then(|index| u32::try_from(index).ok())
}

/// Returns the cause with this number. A later version may have further causes.
fn cause_of(number: u32) -> PeerFailureCause {
    let index = usize::try_from(number).unwrap_or(usize::MAX);
    PeerFailureCause::ALL.get(index).copied().unwrap_or(PeerFailureCause::NoAnswer)
}

#[cfg(test)]
mod tests {
    use overlay_types::protocol::Message;

    use super::super::protocol::{decode_message, encode_message};
    use super::*;

    fn failures(count: u8) -> PeerFailures {
        let peers = (0..count).map(|number| PeerFailure {
            agent: Ipv4Addr::new(10, 0, 0, number),
            cause: PeerFailureCause::ALL[usize::from(number) % PeerFailureCause::ALL.len()],
            since: u64::MAX,
            lost: u32::MAX,
            round_trip: Some(u64::MAX),
        });
        PeerFailures { peers: peers.collect(), total: u32::MAX }
    }

    #[test]
    fn messages_round_trip_up_to_the_largest() {
        for count in [0, 5, 64] {
            let message = Message::PeerFailures(failures(count));
            let (name, body) = encode_message(&message);
            assert_eq!(decode_message(name, &body), Ok(message));
        }
        let (_, body) = encode_message(&Message::PeerFailures(failures(200)));
        let (_, largest) = encode_message(&Message::PeerFailures(failures(64)));
        assert_eq!(body, largest, "further peers are only counted");
    }

    #[test]
    fn hostile_messages_are_refused_or_bounded() {
        let name = MessageKind::PeerFailures.name();
        let refused = |bytes: &[u8]| decode_message(name, bytes).unwrap_err().to_string();
        assert_eq!(refused(b"\x0a\x00"), "peers: entry 0 has 0 bytes, at least 6");
        let peer = b"\x0a\x06\x0a\x04\x0a\x00\x00\x01";
        assert_eq!(refused(&peer.repeat(65)), "peers: has more than 64 entries");
        assert!(refused(b"\x0a\x07\x0a\x03\x0a\x00\x00\x10\x00").starts_with("peers[0].agent: "));
        let unknown = b"\x0a\x08\x0a\x04\x0a\x00\x00\x01\x10\x63";
        let Ok(Message::PeerFailures(decoded)) = decode_message(name, unknown) else {
            panic!("not decoded")
        };
        assert_eq!(decoded.peers[0].cause, PeerFailureCause::NoAnswer);
    }
}

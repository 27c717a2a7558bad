//! Encodes and decodes the messages about registrations with problems.

use std::net::Ipv4Addr;

use overlay_types::addr::Subnet;
use overlay_types::escape::bounded_line;
use overlay_types::protocol::{HeldAddresses, MessageKind, Reassigned, RegistrationProblems};
use prost::Message as _;

use super::error::ConvertError;
use super::field::convert_list;
use super::mesos::modules::overlay::internal as pb;
use super::peers::{first_octets, malformed, parse_octets, parse_subnet};

/// Longest reason, in bytes of a sent message and in characters of a received message.
const REASON_MAX: usize = RegistrationProblems::REASON_BYTES_MAX;

pub(super) fn encode_held(held: &HeldAddresses) -> Vec<u8> {
    let subnets = held.subnets().iter().map(subnet_to_pb).collect();
    let registration = Some(held.registration());
    pb::HeldAddressesMessage { subnets, registration }.encode_to_vec()
}

pub(super) fn decode_held(bytes: &[u8]) -> Result<HeldAddresses, ConvertError> {
    let pb = pb::HeldAddressesMessage::decode(bytes)
        .map_err(|error| malformed(MessageKind::HeldAddresses.name(), &error))?;
    let held = convert_list("subnets", &pb.subnets, subnet_from_pb).map(HeldAddresses::new)?;
    Ok(held.with_registration(pb.registration()))
}

pub(super) fn encode_problems(problems: &RegistrationProblems) -> Vec<u8> {
    let RegistrationProblems { is_refused, reasons, reassigned, registration } = problems;
    let reassigned = reassigned.iter().map(|Reassigned { subnet, agent }| pb::ReassignedSubnet {
        subnet: Some(subnet_to_pb(subnet)),
        agent: Some(agent.octets().to_vec()),
    });
    let reasons =
        reasons.iter().map(|reason| reason[..reason.floor_char_boundary(REASON_MAX)].to_owned());
    let message = pb::RegistrationProblemsMessage {
        refused: Some(*is_refused),
        reasons: reasons.take(RegistrationProblems::REASONS_MAX).collect(),
        reassigned: reassigned.collect(),
        registration: Some(*registration),
    };
    message.encode_to_vec()
}

/// Decodes the problems. Reasons become single lines of limited length, since the agent logs them.
pub(super) fn decode_problems(bytes: &[u8]) -> Result<RegistrationProblems, ConvertError> {
    let pb = pb::RegistrationProblemsMessage::decode(bytes)
        .map_err(|error| malformed(MessageKind::RegistrationProblems.name(), &error))?;
    let reassigned = convert_list("reassigned", &pb.reassigned, |reassigned| {
        let subnet = reassigned.subnet.as_ref().ok_or_else(|| ConvertError::missing("subnet"))?;
        let agent = parse_octets("agent", reassigned.agent.as_deref())?.map(Ipv4Addr::from);
        let agent = agent.ok_or_else(|| ConvertError::missing("agent"))?;
        Ok(Reassigned { subnet: subnet_from_pb(subnet)?, agent })
    })?;
    Ok(RegistrationProblems {
        is_refused: pb.refused(),
        reasons: pb.reasons.iter().map(|reason| bounded_line(reason, REASON_MAX)).collect(),
        reassigned,
        registration: pb.registration(),
    })
}

fn subnet_to_pb(subnet: &Subnet) -> pb::HeldSubnet {
    pb::HeldSubnet { address: Some(first_octets(subnet)), prefix: Some(subnet.prefix().into()) }
}

fn subnet_from_pb(pb: &pb::HeldSubnet) -> Result<Subnet, ConvertError> {
    parse_subnet(pb.address(), pb.prefix())
}

#[cfg(test)]
mod tests {
    use overlay_types::protocol::Message;

    use super::super::protocol::{decode_message, encode_message};
    use super::*;

    fn held() -> HeldAddresses {
        HeldAddresses::new(
            ["44.128.0.3/32", "192.168.3.0/25", "fd01:b::/80"].map(|text| text.parse().unwrap()),
        )
        .with_registration(u64::MAX)
    }

    fn problems() -> RegistrationProblems {
        let subnet = "192.168.3.0/25".parse().unwrap();
        RegistrationProblems {
            is_refused: true,
            reasons: vec!["no VTEP address is left in 44.128.0.0/29".to_owned()],
            reassigned: vec![Reassigned { subnet, agent: Ipv4Addr::new(10, 0, 0, 9) }],
            registration: u64::MAX,
        }
    }

    #[test]
    fn messages_round_trip() {
        let accepted =
            RegistrationProblems { is_refused: false, ..RegistrationProblems::default() };
        for message in [
            Message::HeldAddresses(held()),
            Message::HeldAddresses(HeldAddresses::default()),
            Message::RegistrationProblems(problems()),
            Message::RegistrationProblems(accepted),
        ] {
            let (name, body) = encode_message(&message);
            assert_eq!(decode_message(name, &body).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn largest_messages_fit_their_limits() {
        let subnet = |index: usize| {
            let first = u128::try_from(index).unwrap() << 16;
            Subnet::containing(std::net::Ipv6Addr::from(first).into(), 112).unwrap()
        };
        let held = HeldAddresses::new((0..=HeldAddresses::MAX).map(subnet));
        assert_eq!(held.subnets().len(), HeldAddresses::MAX);
        let agent = Ipv4Addr::new(10, 0, 0, 9);
        let reassigned = held.subnets().iter().map(|subnet| Reassigned { subnet: *subnet, agent });
        let problems = RegistrationProblems {
            is_refused: true,
            reasons: vec!["€".repeat(REASON_MAX / 3); RegistrationProblems::REASONS_MAX],
            reassigned: reassigned.collect(),
            registration: u64::MAX,
        };
        for message in [Message::HeldAddresses(held), Message::RegistrationProblems(problems)] {
            let (name, body) = encode_message(&message);
            assert_eq!(decode_message(name, &body), Ok(message));
        }
    }

    #[test]
    fn reason_keeps_its_remedy_and_is_cut_between_characters() {
        let sentence = "x".repeat(400) + ": fix the configuration or delete the agent";
        let reasons = vec![sentence.clone(), "€".repeat(REASON_MAX)];
        let sent = RegistrationProblems { reasons, ..problems() };
        let (name, body) = encode_message(&Message::RegistrationProblems(sent));
        let Ok(Message::RegistrationProblems(decoded)) = decode_message(name, &body) else {
            panic!("not decoded")
        };
        assert_eq!(decoded.reasons, [sentence, "€".repeat(REASON_MAX / 3)]);
    }

    #[test]
    fn hostile_messages_are_refused_or_bounded() {
        let name = MessageKind::HeldAddresses.name();
        let empty = b"\x0a\x00".repeat(4);
        assert_eq!(
            decode_message(name, &empty).unwrap_err().to_string(),
            "subnets: entry 0 has 0 bytes, at least 8"
        );
        let name = MessageKind::RegistrationProblems.name();
        let text = format!("a\nb\u{202e}{}", "x".repeat(4000));
        let message = pb::RegistrationProblemsMessage {
            refused: Some(true),
            reasons: vec![text],
            reassigned: Vec::new(),
            registration: None,
        };
        let Ok(Message::RegistrationProblems(decoded)) =
            decode_message(name, &message.encode_to_vec())
        else {
            panic!("not decoded")
        };
        let reason = &decoded.reasons[0];
        assert!(reason.chars().count() <= REASON_MAX && !reason.contains(['\n', '\u{202e}']));
        let reassigned = vec![pb::ReassignedSubnet {
            subnet: Some(pb::HeldSubnet { address: Some(vec![10, 0, 0, 1]), prefix: Some(24) }),
            agent: Some(vec![10, 0, 0, 9]),
        }];
        let message =
            pb::RegistrationProblemsMessage { refused: None, reassigned, ..Default::default() };
        assert_eq!(
            decode_message(name, &message.encode_to_vec()).unwrap_err().to_string(),
            "reassigned[0].prefix: 10.0.0.1/24 is no subnet"
        );
    }
}

//! Encodes and decodes the messages between agents and master.

use overlay_types::protocol::{Assignment, MasterKind, Message, MessageKind};

use super::bounds::{self, BoundError};
use super::convert::{assignment_to_pb, assignments_from_pb, options_from_pb, options_to_pb};
use super::error::ConvertError;
use super::mesos::modules::overlay::{AgentOverlayInfo, internal};
use super::message::{self, DecodeError, decode};
use super::{authentication, peers, probes, problems};

/// The names of all messages that [`decode_message`] knows.
pub const MESSAGE_NAMES: [&str; 11] = [
    MessageKind::RegisterAgent.name(),
    MessageKind::UpdateAgentOverlays.name(),
    MessageKind::AgentRegistered.name(),
    MessageKind::AgentRegisteredAcknowledgement.name(),
    MessageKind::RequestPeers.name(),
    MessageKind::UpdatePeers.name(),
    MessageKind::HeldAddresses.name(),
    MessageKind::RegistrationProblems.name(),
    MessageKind::PeerFailures.name(),
    MessageKind::AuthenticateAgent.name(),
    MessageKind::AuthenticationChallenge.name(),
];

/// Returns the kind of the message called `name`, if it is a message of the overlay modules.
#[must_use]
pub fn kind_of(name: &str) -> Option<MessageKind> {
    MessageKind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// Returns the name under which libprocess sends `message`, and the encoded body.
#[must_use]
pub fn encode_message(message: &Message) -> (&'static str, Vec<u8>) {
    match message {
        Message::RegisterAgent(options) => encode_named(&internal::RegisterAgentMessage {
            network_config: Some(options_to_pb(options)),
        }),
        Message::UpdateAgentOverlays { overlays, master } => {
            let overlays = assignments_to_pb(overlays);
            let program = (*master == MasterKind::Program).then_some(true);
            let peers = master.sends_peers().then_some(true);
            encode_named(&internal::UpdateAgentOverlaysMessage { overlays, program, peers })
        }
        Message::AgentRegistered(overlays) => {
            let overlays = assignments_to_pb(overlays);
            encode_named(&internal::AgentRegisteredMessage { overlays })
        }
        Message::AgentRegisteredAcknowledgement => {
            encode_named(&internal::AgentRegisteredAcknowledgement {})
        }
        Message::RequestPeers(have) => (message.kind().name(), peers::encode_request(have)),
        Message::UpdatePeers(update) => (message.kind().name(), peers::encode_plain(update)),
        Message::HeldAddresses(held) => (message.kind().name(), problems::encode_held(held)),
        Message::RegistrationProblems(found) => {
            (message.kind().name(), problems::encode_problems(found))
        }
        Message::PeerFailures(failures) => (message.kind().name(), probes::encode(failures)),
        Message::AuthenticateAgent(request) => {
            (message.kind().name(), authentication::encode_request(request))
        }
        Message::AuthenticationChallenge(challenge) => {
            (message.kind().name(), authentication::encode_challenge(challenge))
        }
    }
}

fn encode_named<M: message::Message>(message: &M) -> (&'static str, Vec<u8>) {
    (M::NAME, message.encode_to_vec())
}

fn assignments_to_pb(assignments: &[Assignment]) -> Vec<AgentOverlayInfo> {
    assignments.iter().map(assignment_to_pb).collect()
}

/// Decodes the body `bytes` of the message called `name`. Allocates at most a small multiple of the
/// length of `bytes`, or for a compact peer update of 16 MiB.
///
/// # Errors
/// If the name is unknown, the body is too long, the bytes are malformed, a repeated field has too
/// many entries, a required field is missing or a field is unusable.
pub fn decode_message(name: &str, bytes: &[u8]) -> Result<Message, ConvertError> {
    decode_message_reserving(name, bytes, &mut |_| true)
}

/// Decodes a message as [`decode_message`] does. Before memory for decompressed bytes is allocated,
/// `reserve` gets the new number of these bytes, and returns whether they may be allocated.
///
/// # Errors
/// As [`decode_message`], and if `reserve` returns false.
pub fn decode_message_reserving(
    name: &str,
    bytes: &[u8],
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Message, ConvertError> {
    const UNKNOWN_NAME_MAX: usize = 80;
    let Some(kind) = kind_of(name) else {
        return Err(ConvertError::UnknownMessage(name.chars().take(UNKNOWN_NAME_MAX).collect()));
    };
    let (name, most) = (kind.name(), kind.body_max());
    if bytes.len() > most {
        return Err(ConvertError::TooLong { name, length: bytes.len(), most });
    }
    bounds::check(kind, bytes).map_err(|error| match error {
        BoundError::Malformed(error) => {
            DecodeError::Malformed { name, reason: error.to_string() }.into()
        }
        BoundError::Field(error) => error,
    })?;
    match kind {
        MessageKind::RegisterAgent => {
            let message: internal::RegisterAgentMessage = decode(bytes)?;
            let options = message.network_config.unwrap_or_default();
            let options = options_from_pb(&options);
            options.map(Message::RegisterAgent).map_err(|error| error.within("network_config"))
        }
        MessageKind::UpdateAgentOverlays => {
            let message: internal::UpdateAgentOverlaysMessage = decode(bytes)?;
            let master = match (message.program(), message.peers()) {
                (true, _) => MasterKind::Program,
                (false, true) => MasterKind::Module,
                (false, false) => MasterKind::Other,
            };
            let overlays = assignments_from_pb(&message.overlays)?;
            Ok(Message::UpdateAgentOverlays { overlays, master })
        }
        MessageKind::AgentRegistered => {
            let message: internal::AgentRegisteredMessage = decode(bytes)?;
            assignments_from_pb(&message.overlays).map(Message::AgentRegistered)
        }
        MessageKind::AgentRegisteredAcknowledgement => {
            decode::<internal::AgentRegisteredAcknowledgement>(bytes)?;
            Ok(Message::AgentRegisteredAcknowledgement)
        }
        MessageKind::RequestPeers => peers::decode_request(bytes).map(Message::RequestPeers),
        MessageKind::UpdatePeers => peers::decode_update(bytes, reserve).map(Message::UpdatePeers),
        MessageKind::HeldAddresses => problems::decode_held(bytes).map(Message::HeldAddresses),
        MessageKind::RegistrationProblems => {
            problems::decode_problems(bytes).map(Message::RegistrationProblems)
        }
        MessageKind::PeerFailures => probes::decode(bytes).map(Message::PeerFailures),
        MessageKind::AuthenticateAgent => {
            authentication::decode_request(bytes).map(Message::AuthenticateAgent)
        }
        MessageKind::AuthenticationChallenge => {
            authentication::decode_challenge(bytes).map(Message::AuthenticationChallenge)
        }
    }
}

//! Encodes and decodes the messages that begin a session.

use overlay_types::protocol::{
    AuthenticateAgent, AuthenticationChallenge, AuthenticationRefusal, MasterNonce, Nonce,
};
use prost::Message as _;

use super::error::ConvertError;
use super::mesos::modules::overlay::internal as pb;
use super::message::DecodeError;

/// The numbers of refusals. A later version may send others.
const NO_CREDENTIALS: u32 = 1;
const WRONG_CREDENTIAL: u32 = 2;
const OTHER: u32 = 3;

pub(super) fn encode_request(request: &AuthenticateAgent) -> Vec<u8> {
    let message = pb::AuthenticateAgentMessage {
        principal: Some(request.principal.as_str().to_owned()),
        nonce: Some(request.nonce.to_vec()),
    };
    message.encode_to_vec()
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<AuthenticateAgent, ConvertError> {
    let message: pb::AuthenticateAgentMessage = decode("AuthenticateAgentMessage", bytes)?;
    let principal = message.principal().parse();
    Ok(AuthenticateAgent {
        principal: principal.map_err(|error| ConvertError::field("principal", error))?,
        nonce: nonce("nonce", message.nonce())?,
    })
}

pub(super) fn encode_challenge(challenge: &AuthenticationChallenge) -> Vec<u8> {
    let mut message = pb::AuthenticationChallengeMessage {
        agent_nonce: Some(challenge.agent_nonce.to_vec()),
        ..pb::AuthenticationChallengeMessage::default()
    };
    match challenge.answer {
        Ok(MasterNonce { session, cookie }) => {
            (message.session, message.cookie) = (Some(session), Some(cookie.to_vec()));
        }
        Err(AuthenticationRefusal::NoCredentials) => message.refusal = Some(NO_CREDENTIALS),
        Err(AuthenticationRefusal::WrongCredential) => message.refusal = Some(WRONG_CREDENTIAL),
        Err(AuthenticationRefusal::Other) => message.refusal = Some(OTHER),
    }
    message.encode_to_vec()
}

pub(super) fn decode_challenge(bytes: &[u8]) -> Result<AuthenticationChallenge, ConvertError> {
    let message: pb::AuthenticationChallengeMessage =
        decode("AuthenticationChallengeMessage", bytes)?;
    let answer = match message.refusal {
        None => Ok(MasterNonce {
            session: message.session(),
            cookie: nonce("cookie", message.cookie())?,
        }),
        Some(NO_CREDENTIALS) => Err(AuthenticationRefusal::NoCredentials),
        Some(WRONG_CREDENTIAL) => Err(AuthenticationRefusal::WrongCredential),
        Some(_) => Err(AuthenticationRefusal::Other),
    };
    Ok(AuthenticationChallenge {
        agent_nonce: nonce("agent_nonce", message.agent_nonce())?,
        answer,
    })
}

fn nonce(field: &'static str, bytes: &[u8]) -> Result<Nonce, ConvertError> {
    let reason = || format!("has {} bytes, not 16", bytes.len());
    bytes.try_into().map_err(|_| ConvertError::field(field, reason()))
}

fn decode<M: prost::Message + Default>(
    name: &'static str,
    bytes: &[u8],
) -> Result<M, ConvertError> {
    let malformed =
        |error: prost::DecodeError| DecodeError::Malformed { name, reason: error.to_string() };
    Ok(M::decode(bytes).map_err(malformed)?)
}

#[cfg(test)]
mod tests {
    use overlay_types::protocol::Message;

    use super::super::protocol::{decode_message, encode_message};
    use super::*;

    const NONCE: Nonce = [7; 16];

    #[test]
    fn request_and_challenge_survive_encoding() {
        let principal = "agents".parse().unwrap();
        let request = AuthenticateAgent { principal, nonce: NONCE };
        let challenge = |answer| {
            Message::AuthenticationChallenge(AuthenticationChallenge { agent_nonce: NONCE, answer })
        };
        let session = MasterNonce { session: u64::MAX, cookie: [9; 16] };
        for message in [
            Message::AuthenticateAgent(request),
            challenge(Ok(session)),
            challenge(Err(AuthenticationRefusal::NoCredentials)),
            challenge(Err(AuthenticationRefusal::WrongCredential)),
            challenge(Err(AuthenticationRefusal::Other)),
        ] {
            let (name, body) = encode_message(&message);
            assert_eq!(decode_message(name, &body), Ok(message));
        }
    }

    #[test]
    fn unusable_request_is_refused_with_field() {
        let reason = |principal: &str, nonce: &[u8]| {
            let message = pb::AuthenticateAgentMessage {
                principal: Some(principal.to_owned()),
                nonce: Some(nonce.to_vec()),
            };
            decode_request(&message.encode_to_vec()).unwrap_err().to_string()
        };
        assert_eq!(reason("", &NONCE), "principal: the principal is empty: write a name");
        let long = "principal: the principal has more than 255 bytes: choose a shorter one";
        assert_eq!(reason(&"x".repeat(256), &NONCE), long);
        assert_eq!(reason("agents", &[1; 15]), "nonce: has 15 bytes, not 16");
    }
}

//! The authentication of agents and masters: principals, secrets, and what messages carry of it.
//!
//! An agent begins a session with [`AuthenticateAgent`], which the master answers with an
//! [`AuthenticationChallenge`]. Every later message of the session ends with a [`Seal`]. The crate
//! `overlay-engine` creates and checks seals, and `overlay-wire` encodes them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::escape::bounded_line;

/// A number that is used once. Its sender chooses it at random.
pub type Nonce = [u8; 16];

/// The name of a credential.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Arc<str>);

/// Why a text is not a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// The text is empty.
    #[error("the principal is empty: write a name")]
    Empty,
    /// The text is too long for a message.
    #[error("the principal has more than {} bytes: choose a shorter one", Principal::BYTES_MAX)]
    TooLong,
}

impl Principal {
    /// Maximum length in bytes. A principal fits in a short message.
    pub const BYTES_MAX: usize = 255;
    /// Number of characters that are shown.
    const SHOWN_MAX: usize = 64;

    /// Returns the name as it is in the file of credentials.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        match text.len() {
            0 => Err(PrincipalError::Empty),
            1..=Self::BYTES_MAX => Ok(Self(text.into())),
            _ => Err(PrincipalError::TooLong),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bounded_line(&self.0, Self::SHOWN_MAX))
    }
}

/// A secret that an agent and its masters share: the SHA-256 of the secret in a file of credentials.
/// The digest is as good as the secret for an attacker, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret([u8; 32]);

impl SharedSecret {
    /// Returns the secret with this SHA-256.
    #[must_use]
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Returns the key for an HMAC.
    #[must_use]
    pub const fn as_key(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

/// The credential of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCredential {
    /// The name.
    pub principal: Principal,
    /// The secret, which the masters have too.
    pub secret: SharedSecret,
}

/// The secrets of the agents, by principal. A principal has two while its secret is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedSecrets(BTreeMap<Principal, Vec<SharedSecret>>);

impl SharedSecrets {
    /// Maximum number of secrets of a principal: a former and a new one.
    pub const OF_PRINCIPAL_MAX: usize = 2;

    /// Adds a secret of a principal. Returns false, and adds nothing, if the principal has the
    /// maximum number.
    pub fn insert(&mut self, principal: Principal, secret: SharedSecret) -> bool {
        let secrets = self.0.entry(principal).or_default();
        let has_room = secrets.len() < Self::OF_PRINCIPAL_MAX;
        if has_room {
            secrets.push(secret);
        }
        has_room
    }

    /// Returns the secrets of a principal.
    #[must_use]
    pub fn of(&self, principal: &Principal) -> &[SharedSecret] {
        self.0.get(principal).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the principals, in their order.
    pub fn principals(&self) -> impl Iterator<Item = &Principal> {
        self.0.keys()
    }
}

/// How unauthenticated messages are handled if a credential is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthenticationMode {
    /// They are accepted, and counted, until the peer has authenticated once.
    Permitted,
    /// They are refused.
    Required,
}

impl fmt::Display for AuthenticationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permitted => "permitted",
            Self::Required => "required",
        })
    }
}

/// Requests a session with the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticateAgent {
    /// The principal of the agent's credential.
    pub principal: Principal,
    /// The nonce of the agent. Each request has another one.
    pub nonce: Nonce,
}

/// The answer of the master to [`AuthenticateAgent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthenticationChallenge {
    /// The nonce of the agent, from the request. Only a process that sees the messages of the agent
    /// can send it, so the agent ignores all other answers.
    pub agent_nonce: Nonce,
    /// The session, or why there is none.
    pub answer: Result<MasterNonce, AuthenticationRefusal>,
}

/// The nonce of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasterNonce {
    /// The number of the session. A master never uses a number twice.
    pub session: u64,
    /// Authenticates the challenge to the master, which keeps no state for it.
    pub cookie: Nonce,
}

/// Why the master does not authenticate an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthenticationRefusal {
    /// The master has no credentials.
    NoCredentials,
    /// The master has no such principal, or another secret.
    WrongCredential,
    /// A reason of a later version of this program.
    Other,
}

/// The last field of an authenticated message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The number of the session.
    pub session: u64,
    /// Counts the messages of the sender in the session, from 1. Lost messages leave gaps.
    pub counter: u64,
    /// The HMAC-SHA-256.
    pub code: [u8; 32],
    /// The nonces of the session, in its first message. The master learns them from that message.
    pub opening: Option<SessionOpening>,
}

/// The nonces of a new session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpening {
    /// The principal and the nonce of the agent, as in its request.
    pub request: AuthenticateAgent,
    /// The cookie of the master, as in its challenge.
    pub cookie: Nonce,
}

/// Why a message is not authentic. It is refused and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticityFault {
    /// The message has no seal, and only authenticated messages are accepted from the sender.
    #[error("it is not authenticated")]
    NotSealed,
    /// The message goes on after its seal, or its seal is cut or malformed.
    #[error("its seal is malformed, or not its last field")]
    MalformedSeal,
    /// The seal belongs to no session with the sender.
    #[error("its session has ended, or belongs to another process")]
    UnknownSession,
    /// The code does not match the message.
    #[error("its code is wrong: it was changed on the way, or is forged")]
    WrongCode,
    /// A message with this or a later number was received before.
    #[error("it was received before, or too late")]
    Replayed,
    /// The message opens a session with a credential that this master does not have.
    #[error("this master has no principal '{}' with the secret of the agent", .0.principal)]
    WrongCredential(AuthenticateAgent),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principal_is_bounded_and_shown_in_one_line() {
        assert_eq!("".parse::<Principal>(), Err(PrincipalError::Empty));
        assert_eq!("x".repeat(256).parse::<Principal>(), Err(PrincipalError::TooLong));
        let long: Principal = "é".repeat(127).parse().unwrap();
        assert_eq!(long.to_string().chars().count(), 64);
        let hostile: Principal = "a\n\u{202e}b".parse().unwrap();
        assert_eq!(hostile.to_string(), r"a\n\u{202e}b");
    }

    #[test]
    fn secret_is_not_shown() {
        let secret = SharedSecret::from_digest([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "SharedSecret(…)");
    }
}

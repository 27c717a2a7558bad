//! The keys of a session, and the codes of its messages.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    AuthenticateAgent, AuthenticityFault, MasterNonce, MessageKind, Seal, SessionOpening,
    SharedSecret,
};
use sha2::{Digest as _, Sha256};

type HmacSha256 = Hmac<Sha256>;

/// Separates these keys from other uses of the secret, and from other versions of the protocol.
const SESSION_LABEL: &[u8] = b"mesos-overlay session 1";
const TO_MASTER_LABEL: &[u8] = b"to master";
const TO_AGENT_LABEL: &[u8] = b"to agent";

/// The SHA-256 of the content of a message. It is computed once for a message to many agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// Computes the digest.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}

/// A key for HMAC-SHA-256. It contains the state of the hash after the key, which saves half of the
/// work for short messages.
#[derive(Clone)]
pub(super) struct Key(HmacSha256);

impl Key {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// Returns the HMAC of the parts. Each part has a fixed length, or its length in front.
    pub(super) fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.update(parts).finalize().into_bytes().into()
    }

    /// Compares the first bytes of the HMAC of the parts with `code`, in constant time.
    pub(super) fn is_code(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.update(parts).verify_truncated_left(code).is_ok()
    }

    fn update(&self, parts: &[&[u8]]) -> HmacSha256 {
        let mut hmac = self.0.clone();
        for part in parts {
            hmac.update(part);
        }
        hmac
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// The two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Agent,
    Master,
}

/// One end of a session: seals the messages that it sends, and checks those that it receives.
#[derive(Debug)]
pub(super) struct Channel {
    session: u64,
    sending: Key,
    receiving: Key,
    /// The counter of the last sent message.
    sent: u64,
    /// The counter of the last accepted message.
    received: u64,
}

impl Channel {
    /// Derives the keys of the session, for one end of it.
    pub(super) fn new(
        end: End,
        secret: &SharedSecret,
        request: &AuthenticateAgent,
        nonce: &MasterNonce,
    ) -> Self {
        let principal = request.principal.as_str().as_bytes();
        let session = Key::new(&Key::new(secret.as_key()).code(&[
            SESSION_LABEL,
            &request.nonce,
            &nonce.session.to_be_bytes(),
            &nonce.cookie,
            principal,
        ]));
        let to_master = Key::new(&session.code(&[TO_MASTER_LABEL]));
        let to_agent = Key::new(&session.code(&[TO_AGENT_LABEL]));
        let (sending, receiving) = match end {
            End::Agent => (to_master, to_agent),
            End::Master => (to_agent, to_master),
        };
        Self { session: nonce.session, sending, receiving, sent: 0, received: 0 }
    }

    pub(super) const fn session(&self) -> u64 {
        self.session
    }

    /// Seals the next message. To be called in the order in which the messages are sent.
    pub(super) fn seal(
        &mut self,
        kind: MessageKind,
        digest: ContentDigest,
        opening: Option<SessionOpening>,
    ) -> Seal {
        self.sent += 1;
        let (session, counter) = (self.session, self.sent);
        let code = self.sending.code(&covered(
            kind,
            &session.to_be_bytes(),
            &counter.to_be_bytes(),
            &digest,
        ));
        Seal { session, counter, code, opening }
    }

    /// Checks the code of a message, which is the work of an attacker to forge, and then its counter.
    pub(super) fn accept(
        &mut self,
        kind: MessageKind,
        digest: ContentDigest,
        seal: &Seal,
    ) -> Result<(), AuthenticityFault> {
        if seal.session != self.session {
            return Err(AuthenticityFault::UnknownSession);
        }
        let (session, counter) = (seal.session.to_be_bytes(), seal.counter.to_be_bytes());
        if !self.receiving.is_code(&covered(kind, &session, &counter, &digest), &seal.code) {
            return Err(AuthenticityFault::WrongCode);
        }
        if seal.counter <= self.received && !Mutation::AcceptRepeatedMessages.is_on() {
            return Err(AuthenticityFault::Replayed);
        }
        self.received = seal.counter;
        Ok(())
    }
}

/// Returns what the code of a message covers. The direction is in the key. The name has no length in
/// front, since everything after it has a fixed length.
fn covered<'a>(
    kind: MessageKind,
    session: &'a [u8; 8],
    counter: &'a [u8; 8],
    digest: &'a ContentDigest,
) -> [&'a [u8]; 4] {
    [kind.name().as_bytes(), session, counter, &digest.0]
}

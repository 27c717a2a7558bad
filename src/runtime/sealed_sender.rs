//! Sends messages with the seals of their sessions.

use libprocess::{Receipt, Sender};
use overlay_engine::authentication::{AgentSession, ContentDigest, MasterSessions};
use overlay_engine::master::EncodedUpdate;
use overlay_types::addr::Upid;
use overlay_types::protocol::{AuthenticityFault, Message, MessageKind, Principal, Seal};
use overlay_wire as wire;

use super::Authenticator;

impl Authenticator for MasterSessions {
    fn is_on(&self) -> bool {
        self.is_on()
    }

    fn authenticate(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        content: &[u8],
        seal: Option<&Seal>,
    ) -> Result<Option<Principal>, AuthenticityFault> {
        seal.map(|seal| self.authenticate(from, kind, content, seal)).transpose()
    }
}

impl Authenticator for AgentSession {
    fn is_on(&self) -> bool {
        self.is_on()
    }

    fn authenticate(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        content: &[u8],
        seal: Option<&Seal>,
    ) -> Result<Option<Principal>, AuthenticityFault> {
        self.authenticate(from, kind, content, seal).map(|()| None)
    }
}

/// Sends the messages of one process. The order of the calls is the order of the counters.
pub(super) struct SealedSender {
    own: Upid,
    sender: Box<dyn Sender>,
}

impl SealedSender {
    pub(super) fn new(own: Upid, sender: Box<dyn Sender>) -> Self {
        Self { own, sender }
    }

    pub(super) fn link(&self, to: &Upid) {
        self.sender.link(to);
    }

    /// Sends a message. `seal` seals its content, if there is a session with the receiver.
    pub(super) fn send(
        &self,
        to: &Upid,
        message: &Message,
        seal: impl FnOnce(MessageKind, &[u8]) -> Option<Seal>,
    ) {
        let (name, mut body) = wire::encode_message(message);
        let mut receipt = receipt_outside_session(message.kind());
        if let Some(seal) = seal(message.kind(), &body) {
            wire::append_seal(&mut body, &seal);
            receipt = Receipt::ErrorsOnly;
        }
        self.sender.send(&self.own, to, name, &body, receipt);
    }

    /// Sends an update to these agents. They share the content and its digest, and each has its own
    /// seal.
    pub(super) fn send_peers(
        &self,
        to: &[Upid],
        update: &EncodedUpdate,
        sessions: &mut MasterSessions,
    ) {
        let (kind, content) = (MessageKind::UpdatePeers, update.body());
        // Copied for the first receiver with a session only.
        let mut sealed = Vec::new();
        for to in to {
            let seal = sessions.seal(to, kind, || update.digest());
            let (body, receipt) = match seal {
                None => (content.as_ref(), Receipt::Always),
                Some(seal) => {
                    if sealed.is_empty() {
                        sealed.reserve_exact(content.len() + wire::SEAL_BYTES_MAX);
                        sealed.extend_from_slice(content);
                    }
                    sealed.truncate(content.len());
                    wire::append_seal(&mut sealed, &seal);
                    (sealed.as_slice(), Receipt::ErrorsOnly)
                }
            };
            self.sender.send(&self.own, to, kind.name(), body, receipt);
        }
    }
}

/// Returns which messages of this kind are acknowledged without a session. A message that begins a
/// session needs no acknowledgment, nor does a message of a session: both ends are of this project,
/// and the next message of the peer tells more than an acknowledgment. All others are sent exactly
/// as Mesos sends them.
const fn receipt_outside_session(kind: MessageKind) -> Receipt {
    match kind {
        MessageKind::AuthenticateAgent | MessageKind::AuthenticationChallenge => {
            Receipt::ErrorsOnly
        }
        _ => Receipt::Always,
    }
}

/// Returns a function that seals with the session of a master with an agent.
pub(super) fn seal_for<'a>(
    sessions: &'a mut MasterSessions,
    to: &'a Upid,
) -> impl FnOnce(MessageKind, &[u8]) -> Option<Seal> + 'a {
    |kind, content| sessions.seal(to, kind, || ContentDigest::of(content))
}

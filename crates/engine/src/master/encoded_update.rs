//! A peer update with its encoded body, which all its receivers share.

use std::fmt;
use std::sync::Arc;

use overlay_types::protocol::{Message, PeersUpdate};

/// A peer update and its body on the wire. The update is encoded and compressed once. Clones share
/// the content and the body.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedUpdate {
    content: Arc<PeersUpdate>,
    body: Arc<[u8]>,
}

impl EncodedUpdate {
    pub(super) const fn new(content: Arc<PeersUpdate>, body: Arc<[u8]>) -> Self {
        Self { content, body }
    }

    /// Returns the content of the update.
    #[must_use]
    pub fn content(&self) -> &PeersUpdate {
        &self.content
    }

    /// Returns the update as a message.
    #[must_use]
    pub fn message(&self) -> Message {
        Message::UpdatePeers(Arc::clone(&self.content))
    }

    /// Returns the body of the message.
    #[must_use]
    pub const fn body(&self) -> &Arc<[u8]> {
        &self.body
    }
}

impl fmt::Debug for EncodedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} bytes", self.message(), self.body.len())
    }
}

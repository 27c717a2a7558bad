//! A peer update with its encoded body, which all its receivers share.

use std::fmt;
use std::sync::{Arc, OnceLock};

use overlay_types::protocol::{Message, PeersUpdate};

use crate::authentication::ContentDigest;

/// A peer update and its body on the wire. The update is encoded and compressed once. Clones share
/// the content, the body and its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedUpdate {
    content: Arc<PeersUpdate>,
    body: Arc<[u8]>,
    /// Computed for the first receiver with a session.
    digest: Arc<OnceLock<ContentDigest>>,
}

impl EncodedUpdate {
    pub(super) fn new(content: Arc<PeersUpdate>, body: Arc<[u8]>) -> Self {
        Self { content, body, digest: Arc::default() }
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

    /// Returns the digest of the body.
    #[must_use]
    pub fn digest(&self) -> ContentDigest {
        *self.digest.get_or_init(|| ContentDigest::of(&self.body))
    }
}

impl fmt::Debug for EncodedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} bytes", self.message(), self.body.len())
    }
}

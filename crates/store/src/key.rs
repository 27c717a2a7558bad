//! Encodes the keys of records as bytes.

use overlay_types::state::Key;

/// First byte of the key of an agent. The four bytes of its address follow, so that the bytes sort
/// as the keys do.
const AGENT_KEY: u8 = 1;
/// First byte of the key of a history part. The eight bytes of its number follow.
const HISTORY_KEY: u8 = 2;

/// The encoding of a key, which all stores share.
pub(crate) trait KeyBytes: Sized {
    /// Encodes the key.
    fn to_bytes(self) -> Vec<u8>;

    /// Decodes a key. Returns `None` for a key of a later version of this program.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl KeyBytes for Key {
    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Agent(ip) => {
                let [a, b, c, d] = ip.octets();
                vec![AGENT_KEY, a, b, c, d]
            }
            Self::History(number) => [&[HISTORY_KEY][..], &number.to_be_bytes()].concat(),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [AGENT_KEY, a, b, c, d] => Some(Self::Agent([a, b, c, d].into())),
            [HISTORY_KEY, ref number @ ..] => {
                Some(Self::History(u64::from_be_bytes(number.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

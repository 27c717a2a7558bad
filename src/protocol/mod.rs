//! The words that master and agent share: the network of a cluster, an agent's share of it, what is
//! kept of it, the messages between them, and who stands for election. [`crate::wire`] turns
//! them into bytes and back.

mod assignment;
mod candidate;
mod history;
pub mod limits;
mod message;
mod network;
mod peers;
mod record;
mod request;

pub use assignment::{AgentInfo, Assignment, Bridge, State, Status, Vtep};
pub use candidate::Candidate;
pub use history::{HistoryEntry, HistoryEvent};
pub use message::{AgentOptions, Message, MessageKind};
pub use network::{AddressRange, Network, Overlay, Vxlan};
pub use peers::{PeerInfo, PeersHave, PeersUpdate, digest_of};
pub use record::{Addresses, AgentRecord, OverlayRecord, Record, ReleasedRecord};
pub use request::{Refused, RequestId};

//! Types that master and agent share: the network of a cluster, assignments, stored records, the
//! messages between master and agent, and election candidates. The crate `overlay-wire` encodes and
//! decodes them.

mod assignment;
mod authentication;
mod candidate;
mod history;
pub mod limits;
mod message;
mod network;
mod peer_failures;
mod peers;
mod program_version;
mod record;
mod registration_problems;
mod request;

pub use assignment::{AgentContact, AgentInfo, Assignment, Bridge, State, Status, Vtep};
pub use authentication::{
    AgentCredential, AuthenticateAgent, AuthenticationChallenge, AuthenticationMode,
    AuthenticationRefusal, AuthenticityFault, MasterNonce, Nonce, Principal, PrincipalError, Seal,
    SessionOpening, SharedSecret, SharedSecrets,
};
pub use candidate::{Candidate, Leader};
pub use history::{Author, HistoryEntry, HistoryEvent};
pub use message::{AgentOptions, MasterKind, Message, MessageKind};
pub use network::{AddressRange, Network, Overlay, Vxlan};
pub use peer_failures::{PeerFailure, PeerFailureCause, PeerFailures};
pub use peers::{PeerInfo, PeerTableVersion, PeersRequest, PeersUpdate, UpdateForm, peer_digest};
pub use program_version::{ProgramVersion, ProgramVersionError};
pub use record::{Addresses, AgentRecord, OverlayRecord, Record, ReleasedRecord};
pub use registration_problems::{HeldAddresses, Reassigned, RegistrationProblems};
pub use request::{RejectedMessages, RequestId};

//! Types shared by the other crates. A value is checked when it is created. No IO, no clock.
//!
//! - [`addr`]: subnets, names, MACs, MTUs, VNIs
//! - [`address_usage`]: the addresses that containers of a host use
//! - [`advice`]: the commands that messages advise
//! - [`assignment`]: builds the assignments of an agent from its record
//! - [`clock`]: time as an argument, and exponential backoff
//! - [`container_network`]: the CNI and Docker networks of an assignment
//! - [`escape`]: escapes untrusted text before it is shown
//! - [`mutation`]: deliberate defects that the simulator must detect
//! - [`port_mapping`]: ports of the host that lead to containers
//! - [`protocol`]: networks, assignments, records, messages
//! - [`repetition`]: logs a repeated cause once, and then with a count
//! - [`secret`]: keeps passwords out of messages
//! - [`state`]: epochs, versions, and changes of a stored state
//! - [`text`]: phrases shared by log and error messages
//! - [`tunnel`]: the desired state of VXLAN devices, overlay subnets and peers
//! - [`warnings`]: standing warnings shown by health

pub mod addr;
pub mod address_usage;
pub mod advice;
pub mod assignment;
pub mod clock;
pub mod container_network;
pub mod escape;
pub mod mutation;
pub mod port_mapping;
pub mod protocol;
pub mod repetition;
pub mod secret;
pub mod state;
pub mod text;
pub mod tunnel;
pub mod warnings;

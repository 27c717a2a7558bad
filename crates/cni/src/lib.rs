//! The protocol of the CNI plugin `mesos-overlay-cni`, without IO.
//!
//! - [`request`]: the command and the attachment, from the environment
//! - [`config`]: the network configuration, from the standard input
//! - [`mesos`]: what Mesos adds to the configuration: port mappings and labels
//! - [`allocation`]: chooses the address of a container
//! - [`names`]: names and MACs that follow from an attachment
//! - [`result`]: the result of a command as JSON, for each version
//! - [`error`]: errors of a command, with the codes of the specification
//! - [`version`]: the versions of the protocol
//!
//! Source: <https://github.com/containernetworking/cni/blob/main/SPEC.md>.

pub mod allocation;
pub mod config;
pub mod error;
pub mod mesos;
pub mod names;
pub mod request;
pub mod result;
pub mod version;

pub use error::{ErrorCode, PluginError};
pub use version::CniVersion;

//! The agent.

mod network;

pub use network::{CniNetwork, DockerNetwork};

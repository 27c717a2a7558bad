//! Who leads: finds the address of the master that an agent registers with.

mod fixed;

use std::net::SocketAddrV4;

use tokio::sync::watch;

pub use fixed::{FixedMaster, FixedMasterError};

/// A way to find the master.
#[derive(Debug)]
pub enum Detector {
    /// The configuration names it.
    Fixed(FixedMaster),
    /// Somebody follows the election and says who leads, if anybody does.
    Watched(watch::Receiver<Option<SocketAddrV4>>),
}

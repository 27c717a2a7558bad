//! Who leads: finds the address of the master that an agent registers with, and has several masters
//! agree on one of them.

mod contender;
mod fixed;
mod follower;
mod group;

use std::net::SocketAddrV4;

use tokio::sync::watch;

pub use contender::{Contender, Withdrawal};
pub use fixed::{FixedMaster, FixedMasterError};
pub use follower::follow;

/// A way to find the master.
#[derive(Debug)]
pub enum Detector {
    /// The configuration names it.
    Fixed(FixedMaster),
    /// Somebody follows the election and says who leads, if anybody does.
    Watched(watch::Receiver<Option<SocketAddrV4>>),
}

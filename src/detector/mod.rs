//! Who leads: finds the address of the master that an agent registers with.

mod fixed;

pub use fixed::{FixedMaster, FixedMasterError};

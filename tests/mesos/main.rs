//! Tests with a real Mesos. They need `MESOS_PREFIX`; `tests/run mesos` runs them. Without a Mesos
//! they fail, so that a missing Mesos is not mistaken for a success.
//!
//! Every test removes all that it created, also when it fails.

mod boundary;
mod cluster;
mod library;

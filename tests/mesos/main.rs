//! Tests against a real Mesos. They need `MESOS_PREFIX`, and are run by `tests/run mesos`. They
//! never pass by not running: without a Mesos they fail.
//!
//! What a test makes is gone when it ends, also when it fails.

mod boundary;
mod cluster;
mod library;

//! Tests with a real Mesos. They need `MESOS_PREFIX`; `tests/run mesos` runs them. Without a Mesos
//! they fail, so that a missing Mesos is not mistaken for a success.
//!
//! Every test removes all that it created, also when it fails.

#![expect(clippy::print_stdout, reason = "the test runner shows it if a test fails")]

mod boundary;
mod cluster;
mod library;

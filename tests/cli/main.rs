//! The program as its users have it: the built binary, its whole output, its exit codes.
//!
//! Nothing is shared between tests: every master and agent has an address of its own and a port
//! that the kernel chose, every file is in a temporary directory, and every process ends with its
//! test.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

mod check;
mod cluster;
mod demo;
mod doctor;
mod documentation;
mod forget;
mod help;
mod hostile;
mod hosts;
mod lifecycle;
mod moving;
mod plan;
mod refused;
mod state;
mod support;

//! The library of the program `mesos-overlay` and of the two Mesos modules. The crates in `crates/`
//! contain the layers below; `docs/architecture.md` shows how they depend on each other.
//!
//! - [`cli`]: the subcommands of the program
//! - `files`: reads files without waiting
//! - [`http`]: the HTTP endpoints: routing to a state machine, and rendering of its replies
//! - [`logging`]: limits of the log: rate per call site and in total, length, escaping
//! - [`module`]: the two Mesos modules; their C++ half is `cpp-shim/`
//! - [`runtime`]: runs a state machine: event queue, commands, durability gate

pub mod cli;
mod files;
pub mod http;
pub mod logging;
pub mod module;
pub mod runtime;

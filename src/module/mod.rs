//! The two Mesos modules: the state machines of the program, embedded in mesos-master and
//! mesos-agent.
//!
//! ```text
//!   libprocess threads ── bridge ── Module ── Gateway ── queue ─┐
//!                                                               ▼  threads of the module
//!   libprocess threads ◀── bridge ◀── Process ◀──── supervised state machine and executor
//! ```
//!
//! A [`Module`] is created on the main thread of Mesos, started with its libprocess process, and
//! stopped when that process ends. Embedded code must not exit or abort the process, or change its
//! signals, environment, umask or working directory. It must not block a thread of libprocess, and
//! no panic or exception may propagate into Mesos. Every descriptor is closed on exec, since the
//! agent forks tasks.
//!
//! The feature `mesos` adds the modules that need the headers of Mesos: `bridge`, the only module
//! with `unsafe` calls, and `manifest`. The other modules use Mesos only through traits, and their
//! tests need no Mesos.

mod agent;
mod configured;
mod http;
mod instance;
mod kind;
mod logger;
mod master;
mod panic;
mod parameters;
mod realm;
mod replicated_log;

#[cfg(all(feature = "mesos", not(test)))]
mod bridge;
#[cfg(all(feature = "mesos", not(test)))]
pub mod manifest;

#[cfg(test)]
mod authentication_tests;
#[cfg(test)]
mod tests;

pub use self::http::{RequestParts, ResponseParts, interrupted_response, split_response};
pub use self::panic::log_panics;
pub use configured::{Gauges, Route};
pub use instance::Module;
pub use kind::Kind;
pub use logger::{Sink, drain as drain_log, install as install_logger};
pub use parameters::Inputs;
pub use replicated_log::{LogLocation, OpenLog};

//! The two Mesos modules: the same machines as in the program, as guests of mesos-master and
//! mesos-agent.
//!
//! ```text
//!   libprocess threads ── bridge ── Part ── Gateway ── queue ─┐
//!                                                             ▼  threads of ours
//!   libprocess threads ◀── bridge ◀── Process ◀────── supervised host: machine and executor
//! ```
//!
//! A [`Part`] is one module: made by Mesos' `create` on its main thread, started when its
//! libprocess process is, stopped when that ends. The rules for a guest: never exit, abort, change
//! signals, environment, umask or working directory; no thread of libprocess waits for us, no panic
//! and no exception crosses, and every descriptor is closed on exec, since the agent forks tasks.
//!
//! What needs the headers of Mesos is the feature `mesos`: `bridge`, the only room with `unsafe`,
//! and `manifest`. The rest knows Mesos only through traits, and is tested without it.

mod agent;
mod guard;
mod http;
mod log_place;
mod logger;
mod master;
mod parameters;
mod part;
mod realm;

#[cfg(all(feature = "mesos", not(test)))]
mod bridge;
#[cfg(all(feature = "mesos", not(test)))]
pub mod manifest;

#[cfg(test)]
mod tests;

pub use self::http::{Answer, Parts, answer, unanswered};
pub use guard::log_panics;
pub use log_place::{LogPlace, OpenLog};
pub use logger::{Sink, install as install_logger};
pub use parameters::Inputs;
pub use part::{Gauges, Kind, Part, Route};

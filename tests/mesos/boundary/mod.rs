//! The boundary between the module and libprocess, driven by a minimal host program
//! (`../host.cpp`). The host program does all that Mesos does with a module, and rare or invalid
//! operations as well.

mod agent;
mod authentication;
mod exports;
mod flood;
mod host;
mod isolation;
mod master;
mod metrics;
mod panics;
mod parameters;
mod peer;
mod sanitizer;
mod shutdown;

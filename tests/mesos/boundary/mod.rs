//! The boundary between the module and libprocess, driven by a host program of our own
//! (`../host.cpp`): what Mesos does with a module, and what it never does but might.

mod agent;
mod end;
mod exports;
mod flood;
mod guest;
mod host;
mod master;
mod metrics;
mod panics;
mod parameters;
mod peer;
mod realms;
mod sanitizer;

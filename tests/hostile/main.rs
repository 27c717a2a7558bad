//! Attacks on the built program. During each of them the master answers the health of another
//! address and keeps its memory; afterwards honest agents are served, and the links of those that
//! were there before are the same ones.
//!
//! All of them go to loopback, are bounded in number and time, and print what they measured. The
//! limits here leave room for a build without optimization on a busy machine; `docs/security.md`
//! has the figures.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[path = "../../benches/storm/agents.rs"]
#[expect(dead_code, reason = "here no agent ends")]
mod agents;
mod amplification;
mod connections;
mod crowd;
mod descriptors;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
mod log_flood;
mod memory;
#[path = "../../benches/storm/program.rs"]
mod program;
#[path = "../../benches/storm/promises.rs"]
#[expect(dead_code, reason = "here no agent ends")]
mod promises;
#[path = "../../benches/storm/usage.rs"]
#[expect(dead_code, reason = "here no processor time is measured")]
mod usage;
mod victim;

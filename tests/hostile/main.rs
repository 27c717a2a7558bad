//! Attacks on the built program. During each attack the master answers health requests from another
//! address, and its memory stays bounded. Afterwards the master serves new agents, and the honest
//! agents still have their links.
//!
//! All attacks use loopback addresses, are bounded in number and time, and print their
//! measurements. The limits here allow for a build without optimization on a busy machine;
//! `docs/security.md` has the figures.

#![expect(clippy::print_stdout, reason = "the costs of each attack are printed")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../../benches/storm/agents.rs"]
#[expect(dead_code, reason = "these tests stop no agent")]
mod agents;
mod amplification;
#[path = "../../benches/storm/assignment_checker.rs"]
#[expect(dead_code, reason = "these tests stop no agent")]
mod assignment_checker;
mod connections;
mod descriptors;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
mod log_flood;
#[path = "../../benches/storm/master_process.rs"]
mod master_process;
mod memory;
mod misbehaving_peers;
#[path = "../../benches/storm/usage.rs"]
#[expect(dead_code, reason = "these tests measure no processor time")]
mod usage;
mod victim;

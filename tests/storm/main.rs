//! A whole cluster registers at once with the built program, and something goes wrong meanwhile.
//! The agents are those of the benchmark.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[path = "../../benches/storm/agents.rs"]
mod agents;
mod crash;
mod hostile;
mod kill;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../benches/storm/program.rs"]
mod program;
#[path = "../../benches/storm/promises.rs"]
mod promises;
mod single;

//! The agents of the benchmark, and what the crash tests have in common.

#[path = "../../../benches/storm/agents.rs"]
pub(super) mod agents;
#[path = "../../storm/crash/mod.rs"]
pub(super) mod crash;
#[path = "../../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../../benches/storm/program.rs"]
#[expect(dead_code, reason = "several masters start differently")]
pub(super) mod program;
#[path = "../../../benches/storm/promises.rs"]
mod promises;

//! The agents of the benchmark, and the code that all crash tests share.

#[path = "../../../benches/storm/agents.rs"]
pub(super) mod agents;
#[path = "../../storm/crash/mod.rs"]
pub(super) mod crash;
#[path = "../../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../../benches/storm/program.rs"]
#[expect(dead_code, reason = "this test starts its masters by other functions")]
pub(super) mod program;
#[path = "../../../benches/storm/promises.rs"]
mod promises;

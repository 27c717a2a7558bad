//! The agents of the benchmark, and the code that all crash tests share.

#[path = "../../../benches/storm/agents.rs"]
pub(super) mod agents;
#[path = "../../../benches/storm/assignment_checker.rs"]
mod assignment_checker;
#[path = "../../storm/crash/mod.rs"]
pub(super) mod crash;
#[path = "../../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../../benches/storm/master_process.rs"]
#[expect(dead_code, reason = "this test starts its masters by other functions")]
pub(super) mod master_process;

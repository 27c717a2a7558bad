//! A whole cluster registers at once with the built program while the master is killed again and
//! again. The simulated agents are those of the benchmark.

#[path = "../../benches/storm/agents.rs"]
mod agents;
#[path = "../../benches/storm/assignment_checker.rs"]
mod assignment_checker;
mod crash;
mod kill;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../benches/storm/master_process.rs"]
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod master_process;
mod single;

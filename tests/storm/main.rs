//! A whole cluster registers at once with the built program while the master is killed again and
//! again. The simulated agents are those of the benchmark.

#[path = "../../benches/storm/agents.rs"]
mod agents;
mod crash;
mod kill;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../benches/storm/program.rs"]
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod program;
#[path = "../../benches/storm/promises.rs"]
mod promises;
mod single;

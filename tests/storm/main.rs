//! A whole cluster registers at once with the built program, and something goes wrong meanwhile.
//! The agents are those of the benchmark.

#[path = "../../benches/storm/agents.rs"]
mod agents;
mod crash;
mod kill;
#[path = "../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../benches/storm/program.rs"]
#[expect(dead_code, reason = "some of it is for the benchmark")]
mod program;
#[path = "../../benches/storm/promises.rs"]
mod promises;
mod single;

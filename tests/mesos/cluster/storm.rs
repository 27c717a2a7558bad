//! A whole cluster registers at once with the module, whose mesos-master is killed meanwhile. The
//! agents are those of the benchmark.

use crate::library::{prefix, release_library};

#[path = "../../../benches/storm/agents.rs"]
mod agents;
#[path = "../../storm/crash/mod.rs"]
#[expect(dead_code, reason = "the network is that of the benchmark")]
mod crash;
#[path = "../../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../../benches/storm/mesos.rs"]
#[expect(dead_code, reason = "the benchmark uses more of it")]
mod mesos;
#[path = "../../../benches/storm/program.rs"]
#[expect(dead_code, reason = "the program is tested elsewhere")]
mod program;
#[path = "../../../benches/storm/promises.rs"]
mod promises;
#[path = "../../storm/single.rs"]
mod single;

/// How to run it alone.
const COMMAND: &str = "tests/run mesos";
/// How long it is in trouble, where nothing else is asked for.
const SECONDS: u64 = 15;

#[tokio::test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
async fn a_mesos_master_that_is_killed_in_a_storm_keeps_every_promise() {
    let (prefix, library) = (prefix().into(), release_library().into());
    let mesos = mesos::Mesos { prefix, library, is_replicated: false };
    let start = async |dir: &_, address| mesos.start(dir, address, crash::AGENTS).await;
    // libprocess may lock itself up when connections come while it initializes: `on_accept` in its
    // process.cpp then calls itself with its mutex held.
    let they_wait = true;
    let mut masters = single::Single::new(they_wait, start).await;
    crash::crash(COMMAND, SECONDS, &mut masters).await;
}

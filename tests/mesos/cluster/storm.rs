//! A whole cluster registers at once with the module while mesos-master is killed repeatedly. The
//! test uses the simulated agents of the benchmark.

use crate::library::{prefix, release_library};

#[path = "../../../benches/storm/agents.rs"]
mod agents;
#[path = "../../../benches/storm/assignment_checker.rs"]
mod assignment_checker;
#[path = "../../storm/crash/mod.rs"]
#[expect(dead_code, reason = "the test uses the network of the benchmark")]
mod crash;
#[path = "../../../benches/storm/libprocess.rs"]
mod libprocess;
#[path = "../../../benches/storm/master_process.rs"]
#[expect(dead_code, reason = "this test runs mesos-master instead of the program")]
mod master_process;
#[path = "../../../benches/storm/mesos.rs"]
#[expect(dead_code, reason = "only the benchmark uses the other items")]
mod mesos;
#[path = "../../storm/single.rs"]
mod single;

/// The command that runs this test.
const COMMAND: &str = "tests/run mesos";
/// Default duration of the kills.
const SECONDS: u64 = 15;

#[tokio::test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
async fn killed_mesos_master_keeps_durable_assignments() {
    let (prefix, library) = (prefix().into(), release_library().into());
    let mesos = mesos::Mesos { prefix, library, is_replicated: false };
    let start = async |dir: &_, address| mesos.start(dir, address, crash::AGENTS).await;
    // libprocess may deadlock on connections during its initialization: `on_accept` in its
    // process.cpp then calls itself with its mutex locked.
    let they_wait = true;
    let mut masters = single::Single::new(they_wait, start).await;
    crash::crash(COMMAND, SECONDS, &mut masters).await;
}

//! A whole cluster registers at once with the module, whose mesos-master is killed meanwhile. The
//! agents are those of the benchmark.

use crate::library::{prefix, release_library};

#[path = "../../../benches/storm/agents.rs"]
mod agents;
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
#[path = "../../storm/survival.rs"]
mod survival;

#[tokio::test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
async fn a_mesos_master_that_is_killed_in_a_storm_keeps_every_promise() {
    let (prefix, library) = (prefix().into(), release_library().into());
    let mesos = mesos::Mesos { prefix, library, is_replicated: false };
    let start = async |dir: &_, address| mesos.start(dir, address, survival::AGENTS).await;
    // libprocess may lock itself up when connections come while it initializes: `on_accept` in its
    // process.cpp then calls itself with its mutex held.
    let they_wait = true;
    let survived = survival::survive_kills(they_wait, start).await;
    survived.unwrap_or_else(|fault| panic!("{fault}"));
}

//! The crash test of a single master with its state in a file.

use crate::crash::{crash, write_network};
use crate::master_process::MasterProcess;
use crate::single::Single;

/// Command that runs this test alone.
const COMMAND: &str = "cargo test --test storm kill";
/// Default duration of the fault injection.
const SECONDS: u64 = 15;

#[tokio::test]
async fn killed_master_in_storm_keeps_sent_assignments() {
    let start = async |dir: &_, address| {
        let command = MasterProcess::command("file", &write_network(dir)?, dir, address);
        MasterProcess::launch(command, dir, address).await
    };
    let mut masters = Single::new(false, start).await;
    crash(COMMAND, SECONDS, &mut masters).await;
}

//! The crash test of one master with its state in a file.

use crate::crash::{crash, write_network};
use crate::program::Program;
use crate::single::Single;

/// How to run it alone.
const COMMAND: &str = "cargo test --test storm kill";
/// How long it is in trouble, where nothing else is asked for.
const SECONDS: u64 = 15;

#[tokio::test]
async fn a_master_that_is_killed_in_a_storm_keeps_every_promise() {
    let start = async |dir: &_, address| {
        let command = Program::command("file", &write_network(dir)?, dir, address);
        Program::launch(command, dir, address).await
    };
    let mut masters = Single::new(false, start).await;
    crash(COMMAND, SECONDS, &mut masters).await;
}

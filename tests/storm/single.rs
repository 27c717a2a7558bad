//! A single master that is restarted with the same directory and address.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;

use super::agents::Leader;
use super::crash::{Masters, Tally};
use super::master_process::{MasterProcess, free_address};

/// A master. The function `start` starts the master in a directory and at an address.
pub(crate) struct Single<S> {
    start: S,
    dir: TempDir,
    address: SocketAddrV4,
    master: MasterProcess,
    /// The leader as the agents see it.
    leader: watch::Sender<Option<SocketAddrV4>>,
    /// Whether agents reconnect only when the master serves, instead of as soon as a process
    /// listens.
    agents_wait_until_served: bool,
}

impl<S: AsyncFn(&Path, SocketAddrV4) -> Result<MasterProcess, String>> Single<S> {
    pub(crate) async fn new(agents_wait_until_served: bool, start: S) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let address = free_address();
        let master = start(dir.path(), address).await.expect("the master starts");
        Self {
            start,
            dir,
            address,
            master,
            leader: watch::Sender::new(Some(address)),
            agents_wait_until_served,
        }
    }

    async fn restart(&mut self, downtime: Duration) -> Result<(), String> {
        if self.agents_wait_until_served {
            self.leader.send_replace(None);
        }
        self.master.kill();
        sleep(downtime).await;
        self.master = (self.start)(self.dir.path(), self.address).await?;
        if self.agents_wait_until_served {
            self.leader.send_replace(Some(self.address));
        }
        Ok(())
    }
}

impl<S: AsyncFn(&Path, SocketAddrV4) -> Result<MasterProcess, String>> Masters for Single<S> {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn watch_leader(&self) -> Leader {
        self.leader.subscribe()
    }

    async fn inject_fault(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String> {
        tally.add("masters killed", 1);
        self.restart(Duration::from_millis(random.u64(..200))).await
    }

    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String> {
        tally.add("masters killed", 1);
        self.restart(Duration::ZERO).await
    }

    async fn wait_for_leader(&mut self) -> Result<SocketAddrV4, String> {
        Ok(self.address)
    }

    fn log(&self) -> String {
        self.master.log()
    }
}

//! One master, which is started again where it was.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;

use super::agents::Leader;
use super::crash::{Masters, Tally};
use super::program::{Program, free_address};

/// A master that `start` starts in a directory and at an address.
pub(crate) struct Single<S> {
    start: S,
    dir: TempDir,
    address: SocketAddrV4,
    master: Program,
    /// Who leads, as the agents know it.
    leader: watch::Sender<Option<SocketAddrV4>>,
    /// Whether agents come back only when it serves, instead of as soon as anybody listens.
    they_wait: bool,
}

impl<S: AsyncFn(&Path, SocketAddrV4) -> Result<Program, String>> Single<S> {
    pub(crate) async fn new(they_wait: bool, start: S) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("there is room");
        let address = free_address();
        let master = start(dir.path(), address).await.expect("it starts");
        Self { start, dir, address, master, leader: watch::Sender::new(Some(address)), they_wait }
    }

    async fn restart(&mut self, pause: Duration) -> Result<(), String> {
        if self.they_wait {
            self.leader.send_replace(None);
        }
        self.master.kill();
        sleep(pause).await;
        self.master = (self.start)(self.dir.path(), self.address).await?;
        if self.they_wait {
            self.leader.send_replace(Some(self.address));
        }
        Ok(())
    }
}

impl<S: AsyncFn(&Path, SocketAddrV4) -> Result<Program, String>> Masters for Single<S> {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn follow(&self) -> Leader {
        self.leader.subscribe()
    }

    async fn trouble(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String> {
        tally.add("masters killed", 1);
        self.restart(Duration::from_millis(random.u64(..200))).await
    }

    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String> {
        tally.add("masters killed", 1);
        self.restart(Duration::ZERO).await
    }

    async fn leader(&mut self) -> Result<SocketAddrV4, String> {
        Ok(self.address)
    }

    fn log(&self) -> String {
        self.master.log()
    }
}

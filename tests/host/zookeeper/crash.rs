//! The crash test of three masters on an ensemble of three servers: all of them are killed, and the
//! master that leads is put to sleep until it leads no more.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use mesos_network_overlay::detector::follow;
use mesos_network_overlay::warnings::Warnings;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::storm::agents::Leader;
use super::storm::crash::{Masters, PATIENCE, Tally, crash, write_network};
use super::storm::program::{Program, free_address, health};
use super::{SERVERS, SESSION, TICK, ensemble};
use crate::ensemble::Servers;

/// How to run it alone.
const COMMAND: &str = "cargo test --test host crash -- --ignored";
/// How long it is in trouble, where nothing else is asked for.
const SECONDS: u64 = 30;

const MASTERS: usize = 3;
const PATH: &str = "/overlay";
const PAUSE: Duration = Duration::from_millis(50);

/// What can happen.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Leader,
    Follower,
    AllMasters,
    SleepingLeader,
    OneServer,
    TwoServers,
    LeaderAndServer,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Leader,
    Trouble::Follower,
    Trouble::AllMasters,
    Trouble::SleepingLeader,
    Trouble::OneServer,
    Trouble::TwoServers,
    Trouble::LeaderAndServer,
];

/// Masters that elect the one that leads.
struct Elected {
    servers: Servers,
    dir: TempDir,
    masters: Vec<Program>,
    leader: Leader,
    /// What is still to come, so that nothing is left out in a short run.
    coming: Vec<Trouble>,
}

impl Elected {
    fn start() -> Self {
        let servers = Servers::start(SERVERS, TICK);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let address = ensemble(&servers, "overlay:secret@", PATH);
        let credentials = address.credentials().expect("they were given");
        let address = format!("zk://{credentials}@{}{PATH}", address.servers());
        fs::write(dir.path().join("zk"), address).expect("an address");
        let (leader, work) = follow(ensemble(&servers, "", PATH), SESSION, Warnings::new());
        tokio::spawn(async move { match work.await {} });
        let mut elected = Self { servers, dir, masters: Vec::new(), leader, coming: Vec::new() };
        for number in 0..MASTERS {
            let master = elected.spawn(number, free_address()).expect("a master starts");
            elected.masters.push(master);
        }
        elected
    }

    fn spawn(&self, number: usize, address: SocketAddrV4) -> Result<Program, String> {
        let dir: PathBuf = self.dir.path().join(format!("master-{number}"));
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let store = format!("file://{}", self.dir.path().join("zk").display());
        let mut command = Program::command(&store, &write_network(&dir)?, &dir, address);
        command.args(["--zk-session-timeout", &format!("{}s", SESSION.as_secs())]);
        Program::spawn(command, &dir, address)
    }

    fn restart(&mut self, number: usize) -> Result<(), String> {
        self.masters[number] = self.spawn(number, self.masters[number].address)?;
        Ok(())
    }

    /// Who leads, if anybody does.
    fn leading(&self) -> Option<usize> {
        let leader = *self.leader.borrow();
        self.masters.iter().position(|master| Some(master.address) == leader)
    }

    /// Kills masters and servers, and starts them again after a while.
    async fn crash(
        &mut self,
        masters: &[usize],
        servers: &[usize],
        random: &mut Rng,
        tally: &mut Tally,
    ) -> Result<(), String> {
        masters.iter().for_each(|&master| self.masters[master].kill());
        servers.iter().for_each(|&server| self.servers.kill(server));
        tally.add("masters killed", masters.len());
        tally.add("ZooKeeper servers killed", servers.len());
        // Some are back before anybody has noticed, some long after.
        sleep(SESSION.mul_f64(random.f64().powi(2) * 1.5)).await;
        servers.iter().for_each(|&server| self.servers.restart(server));
        masters.iter().try_for_each(|&master| self.restart(master))
    }
}

impl Masters for Elected {
    fn address(&self) -> String {
        format!("zk://{}{PATH}", self.servers.addresses())
    }

    fn follow(&self) -> Leader {
        self.leader.clone()
    }

    async fn trouble(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String> {
        if self.coming.is_empty() {
            self.coming = TROUBLES.to_vec();
            random.shuffle(&mut self.coming);
        }
        let (any, server) = (random.usize(..MASTERS), random.usize(..SERVERS));
        let leader = self.leading().unwrap_or(any);
        match self.coming.pop() {
            Some(Trouble::Leader) => {
                tally.add("leading masters killed", 1);
                self.crash(&[leader], &[], random, tally).await
            }
            Some(Trouble::Follower) => {
                self.crash(&[(leader + 1) % MASTERS], &[], random, tally).await
            }
            Some(Trouble::AllMasters) => self.crash(&[0, 1, 2], &[], random, tally).await,
            Some(Trouble::OneServer) => self.crash(&[], &[server], random, tally).await,
            Some(Trouble::TwoServers) => {
                tally.add("times most servers were killed at once", 1);
                self.crash(&[], &[server, (server + 1) % SERVERS], random, tally).await
            }
            Some(Trouble::LeaderAndServer) => {
                tally.add("leading masters killed", 1);
                self.crash(&[leader], &[server], random, tally).await
            }
            Some(Trouble::SleepingLeader) | None => {
                tally.add("leading masters put to sleep", 1);
                let asleep = Pid::from_child(&self.masters[leader].child);
                kill_process(asleep, Signal::STOP).map_err(|error| error.to_string())?;
                sleep(SESSION.mul_f64(1.0 + random.f64())).await;
                kill_process(asleep, Signal::CONT).map_err(|error| error.to_string())
            }
        }
    }

    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String> {
        tally.add("leading masters killed", 1);
        let leader = self.leading().ok_or("nobody leads")?;
        self.masters[leader].kill();
        self.restart(leader)
    }

    async fn leader(&mut self) -> Result<SocketAddrV4, String> {
        let mut last = Vec::new();
        let wait = async {
            loop {
                last.clear();
                for master in &self.masters {
                    let health = health(master.address).await;
                    last.push(health.map(|health| health["status"].to_string()));
                }
                let is = |wanted: &str| {
                    let said =
                        |one: &&Result<String, String>| one.as_ref().is_ok_and(|it| it == wanted);
                    last.iter().filter(said).count()
                };
                if (is("\"ok\""), is("\"standby\"")) == (1, MASTERS - 1) {
                    let leads = |one: &Result<_, _>| *one == Ok("\"ok\"".to_owned());
                    let leader = last.iter().position(leads);
                    if leader.is_some() && leader == self.leading() {
                        return;
                    }
                }
                sleep(PAUSE).await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        let leader = *self.leader.borrow();
        match (waited, leader) {
            (Ok(()), Some(leader)) => Ok(leader),
            _ => Err(format!("after {PATIENCE:?} the masters say {last:?}, {leader:?} leads")),
        }
    }

    fn log(&self) -> String {
        let logs = self.masters.iter().map(|one| format!("{}:\n{}", one.address, one.log()));
        logs.collect::<Vec<_>>().join("\n")
    }
}

#[tokio::test]
#[ignore = "needs packages: tests/run host"]
async fn masters_and_servers_that_are_killed_in_a_storm_keep_every_promise() {
    crash(COMMAND, SECONDS, &mut Elected::start()).await;
}

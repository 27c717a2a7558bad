//! The crash test of three masters on an ensemble of three servers. Masters and servers are killed,
//! and the leader is suspended until it loses leadership.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use overlay_types::warnings::Warnings;
use overlay_zookeeper::detector::follow_election;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::storm::agents::Leader;
use super::storm::crash::{Masters, TIMEOUT, Tally, crash, write_network};
use super::storm::master_process::{MasterProcess, free_address, health};
use super::{SERVERS, SESSION, TICK, ensemble};
use crate::ensemble::Servers;

/// Command that runs this test alone.
const COMMAND: &str = "cargo test --test host crash -- --ignored";
/// Default duration of the fault injection.
const SECONDS: u64 = 30;

const MASTERS: usize = 3;
const PATH: &str = "/overlay";
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The faults that the test injects.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Leader,
    Follower,
    AllMasters,
    SuspendedLeader,
    OneServer,
    TwoServers,
    LeaderAndServer,
}

const FAULTS: [Fault; 7] = [
    Fault::Leader,
    Fault::Follower,
    Fault::AllMasters,
    Fault::SuspendedLeader,
    Fault::OneServer,
    Fault::TwoServers,
    Fault::LeaderAndServer,
];

/// Masters that elect their leader.
struct ElectedMasters {
    servers: Servers,
    dir: TempDir,
    masters: Vec<MasterProcess>,
    leader: Leader,
    /// Faults that remain to be injected. Even a short run injects every fault once.
    pending_faults: Vec<Fault>,
}

impl ElectedMasters {
    fn start() -> Self {
        let servers = Servers::start(SERVERS, TICK);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let address = ensemble(&servers, "overlay:secret@", PATH);
        let credentials = address.credentials().expect("credentials in the address");
        let address = format!("zk://{credentials}@{}{PATH}", address.servers());
        fs::write(dir.path().join("zk"), address).expect("an address");
        let (election, work) =
            follow_election(ensemble(&servers, "", PATH), SESSION, Warnings::new());
        tokio::spawn(async move { match work.await {} });
        let leader = election.leader;
        let mut elected =
            Self { servers, dir, masters: Vec::new(), leader, pending_faults: Vec::new() };
        for number in 0..MASTERS {
            let master = elected.spawn(number, free_address()).expect("a master starts");
            elected.masters.push(master);
        }
        elected
    }

    fn spawn(&self, number: usize, address: SocketAddrV4) -> Result<MasterProcess, String> {
        let dir: PathBuf = self.dir.path().join(format!("master-{number}"));
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let store = format!("file://{}", self.dir.path().join("zk").display());
        let mut command = MasterProcess::command(&store, &write_network(&dir)?, &dir, address);
        command.args(["--zk-session-timeout", &format!("{}s", SESSION.as_secs())]);
        MasterProcess::spawn(command, &dir, address)
    }

    fn restart(&mut self, number: usize) -> Result<(), String> {
        self.masters[number] = self.spawn(number, self.masters[number].address)?;
        Ok(())
    }

    /// Returns the index of the leader, if there is a leader.
    fn leader_index(&self) -> Option<usize> {
        let leader = *self.leader.borrow();
        self.masters.iter().position(|master| Some(master.address) == leader)
    }

    /// Kills masters and servers, and restarts them after a random delay.
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
        // Short delays end before the session expires, and long delays end afterwards.
        sleep(SESSION.mul_f64(random.f64().powi(2) * 1.5)).await;
        servers.iter().for_each(|&server| self.servers.restart(server));
        masters.iter().try_for_each(|&master| self.restart(master))
    }
}

impl Masters for ElectedMasters {
    fn address(&self) -> String {
        format!("zk://{}{PATH}", self.servers.addresses())
    }

    fn watch_leader(&self) -> Leader {
        self.leader.clone()
    }

    async fn inject_fault(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String> {
        if self.pending_faults.is_empty() {
            self.pending_faults = FAULTS.to_vec();
            random.shuffle(&mut self.pending_faults);
        }
        let (any, server) = (random.usize(..MASTERS), random.usize(..SERVERS));
        let leader = self.leader_index().unwrap_or(any);
        match self.pending_faults.pop() {
            Some(Fault::Leader) => {
                tally.add("leading masters killed", 1);
                self.crash(&[leader], &[], random, tally).await
            }
            Some(Fault::Follower) => {
                self.crash(&[(leader + 1) % MASTERS], &[], random, tally).await
            }
            Some(Fault::AllMasters) => self.crash(&[0, 1, 2], &[], random, tally).await,
            Some(Fault::OneServer) => self.crash(&[], &[server], random, tally).await,
            Some(Fault::TwoServers) => {
                tally.add("times two of three servers were killed at once", 1);
                self.crash(&[], &[server, (server + 1) % SERVERS], random, tally).await
            }
            Some(Fault::LeaderAndServer) => {
                tally.add("leading masters killed", 1);
                self.crash(&[leader], &[server], random, tally).await
            }
            Some(Fault::SuspendedLeader) | None => {
                tally.add("leading masters suspended", 1);
                let suspended = Pid::from_child(&self.masters[leader].child);
                kill_process(suspended, Signal::STOP).map_err(|error| error.to_string())?;
                sleep(SESSION.mul_f64(1.0 + random.f64())).await;
                kill_process(suspended, Signal::CONT).map_err(|error| error.to_string())
            }
        }
    }

    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String> {
        tally.add("leading masters killed", 1);
        let leader = self.leader_index().ok_or("there is no leader")?;
        self.masters[leader].kill();
        self.restart(leader)
    }

    async fn wait_for_leader(&mut self) -> Result<SocketAddrV4, String> {
        let mut statuses = Vec::new();
        let elected = async {
            loop {
                statuses.clear();
                for master in &self.masters {
                    let health = health(master.address).await;
                    statuses.push(health.map(|health| health["status"].to_string()));
                }
                let has = |status: &Result<String, String>, expected: &str| {
                    status.as_ref().is_ok_and(|status| status == expected)
                };
                let count =
                    |expected| statuses.iter().filter(|status| has(status, expected)).count();
                if (count("\"ok\""), count("\"standby\"")) == (1, MASTERS - 1) {
                    let leader = statuses.iter().position(|status| has(status, "\"ok\""));
                    if leader.is_some() && leader == self.leader_index() {
                        return;
                    }
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        let result = timeout(TIMEOUT, elected).await;
        let leader = *self.leader.borrow();
        match (result, leader) {
            (Ok(()), Some(leader)) => Ok(leader),
            _ => Err(format!(
                "after {TIMEOUT:?} the masters report {statuses:?}, and the leader is {leader:?}"
            )),
        }
    }

    fn log(&self) -> String {
        let logs =
            self.masters.iter().map(|master| format!("{}:\n{}", master.address, master.log()));
        logs.collect::<Vec<_>>().join("\n")
    }
}

#[tokio::test]
#[ignore = "needs packages: tests/run host"]
async fn killed_masters_and_servers_keep_sent_assignments() {
    crash(COMMAND, SECONDS, &mut ElectedMasters::start()).await;
}

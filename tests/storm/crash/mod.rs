//! The crash test: thousands of agents register, crash, restart and are replaced by new agents,
//! while masters, agents and other processes are killed. No assignment may contradict an earlier
//! assignment, and the cluster must be healthy again when the kills end.
//!
//! A seed determines the killed processes and their order. The timing depends on the machine.

mod real;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::agents::{Agents, Leader};
use super::master_process::{health, send_request, state};
use real::RealAgents;

/// A network with addresses for 2,046 agents, slightly more than the agents that run at a time.
/// Agents that register late receive addresses of agents that were released.
pub(crate) const NETWORK: &str = r#"{
    "reuse_after": "0s",
    "network": {
        "vtep_subnet": "44.128.0.0/21",
        "vtep_mac_oui": "70:B3:D5:00:00:00",
        "overlays": [
            { "name": "vxlan-1", "subnet": "10.0.0.0/13", "prefix": 24 },
            { "name": "vxlan-2", "subnet": "10.128.0.0/13", "prefix": 24 }
        ]
    }
}"#;

/// Number of simulated agents, and how many of them are alive at a time.
pub(crate) const AGENTS: usize = 2600;
pub(crate) const ALIVE: usize = 1800;
/// Number of real agent processes.
const REAL_AGENTS: usize = 3;

/// Upper bounds for one round: simulated agents that crash, and simulated agents that are replaced.
const CRASHES_MAX: usize = 256;
const REPLACEMENTS_MAX: usize = 512;

/// Number of rounds between two health checks of the whole cluster.
const ROUNDS_PER_HEALTH_CHECK: usize = 6;

/// Time limit for the cluster to become healthy, on a machine that is busy with other things.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);
/// Interval between two health checks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time limit for the next progress of the agents: no progress happens without a leader.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of registrations that an agent needs once everything runs again: 2 on an idle
/// machine. The first registrations can arrive while the master loads its state, one can be lost with
/// a commit that was in progress, and a busy machine answers after the retry interval. Within the
/// time limit, an agent without answers registers about 25 times.
const REGISTRATIONS_MAX: usize = 12;

/// Environment variable with the seed of a run to replay.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// Environment variable with the duration of the fault injection in seconds.
const SECONDS: &str = "MESOS_OVERLAY_CRASH_SECONDS";

/// The masters, and the processes that they depend on, which the test kills besides the agents.
pub(crate) trait Masters {
    /// Address for `--master` of the agents.
    fn address(&self) -> String;

    /// Returns a receiver of the leader's address, as the agents discover the address.
    fn watch_leader(&self) -> Leader;

    /// Kills or suspends processes, and makes sure that they run again.
    async fn inject_fault(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String>;

    /// Kills the leading master of a healthy cluster, and starts the master again.
    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String>;

    /// Waits until all masters are healthy. Returns the address of the leader.
    async fn wait_for_leader(&mut self) -> Result<SocketAddrV4, String>;

    /// Returns the log of the masters.
    fn log(&self) -> String;
}

/// Counts of events, by name.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    pub(crate) fn add(&mut self, event: &'static str, count: usize) {
        *self.0.entry(event).or_default() += count;
    }

    fn raise_to(&mut self, event: &'static str, count: usize) {
        let highest = self.0.entry(event).or_default();
        *highest = count.max(*highest);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(event, count)| write!(f, "\n  {count:>8} {event}"))
    }
}

#[expect(clippy::disallowed_methods, reason = "a developer sets seed and duration")]
/// Returns the number in an environment variable.
fn number_from_env(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

/// Runs the crash test for `seconds`, or for the duration in the environment. A failure prints its
/// cause and the command that replays the run.
pub(crate) async fn crash(command: &str, seconds: u64, masters: &mut impl Masters) {
    let seed = number_from_env(SEED).unwrap_or_else(|| fastrand::u64(..));
    let duration = Duration::from_secs(number_from_env(SECONDS).unwrap_or(seconds));
    let replay = format!("{SEED}={seed} {SECONDS}={} {command}", duration.as_secs());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let leader = masters.watch_leader();
    let agents = Agents::start(leader.clone(), AGENTS, None).expect("agents");
    // The agents' tasks run only from the first `await` on, so these agents never connect.
    (ALIVE..AGENTS).for_each(|index| agents.kill(index));
    let real = RealAgents::start(dir.path(), &masters.address(), REAL_AGENTS);
    let random = Rng::with_seed(seed);
    let mut crash = Crash { agents, real, masters, leader, random, tally: Tally::default() };
    if let Err(fault) = crash.run(duration).await {
        let (masters, agents) = (crash.masters.log(), crash.real.log());
        let _ = writeln!(std::io::stderr(), "{masters}\n{agents}");
        panic!("{fault}{}\n{replay}", crash.tally);
    }
    // The test runner hides the output of `print!` for a test that passes.
    let _ = writeln!(std::io::stderr(), "\n{replay}{}", crash.tally);
}

/// A cluster under fault injection.
struct Crash<'a, M> {
    agents: Arc<Agents>,
    real: RealAgents,
    masters: &'a mut M,
    leader: Leader,
    random: Rng,
    tally: Tally,
}

impl<M: Masters> Crash<'_, M> {
    async fn run(&mut self, duration: Duration) -> Result<(), String> {
        let end = now() + duration;
        // Faults start immediately, while nothing is durable yet.
        let mut rounds = 0;
        while now() < end {
            self.round().await?;
            rounds += 1;
            if rounds % ROUNDS_PER_HEALTH_CHECK == 0 {
                self.wait_until_healthy().await?;
            }
        }
        self.tally.add("rounds", rounds);
        self.wait_until_healthy().await?;
        self.check_acknowledged_changes_are_durable().await?;
        let checker = self.agents.checker.lock();
        let registrations = self.agents.registrations.load(Ordering::Relaxed);
        self.tally.add("registrations", registrations);
        self.tally.add("registrations repeated without an answer", self.agents.repeated());
        self.tally.add("assignments compared", checker.compared);
        self.tally.add("assignments of released addresses", checker.reused);
        Ok(())
    }

    /// Runs one round: agents are killed and started while a fault is injected.
    async fn round(&mut self) -> Result<(), String> {
        let mut random = self.random.fork();
        let mut killed = Tally::default();
        let mut churn_random = self.random.fork();
        // The loop ends between two churns, so that each churn restarts the agents that it killed.
        let is_over = Cell::new(false);
        let fault = async {
            wait_for_random_progress(&self.agents, &mut random).await;
            let real_crash = self.real.crash(random.usize(..REAL_AGENTS));
            let masters_fault = self.masters.inject_fault(&mut random, &mut killed).await;
            is_over.set(true);
            real_crash.and(masters_fault)
        };
        let churn = async {
            while !is_over.get() {
                churn(&self.agents, &self.leader, &mut churn_random, &mut self.tally).await;
            }
        };
        tokio::join!(fault, churn).0?;
        killed.0.into_iter().for_each(|(event, count)| self.tally.add(event, count));
        self.tally.add("real agents killed", 1);
        self.real.check_files()?;
        self.agents.checker.lock().check()
    }

    /// Waits until the cluster is healthy, and checks that all agents have their assignments. Makes
    /// the master forget agents that no longer exist, and returns the number of these agents.
    async fn wait_until_healthy(&mut self) -> Result<usize, String> {
        self.agents.take_max_registrations();
        let begin = now();
        let leader = self.masters.wait_for_leader().await?;
        self.agents.all_acknowledged(TIMEOUT).await?;
        self.real.all_acknowledged(TIMEOUT).await?;
        let tries = self.agents.take_max_registrations();
        if tries > REGISTRATIONS_MAX {
            return Err(format!("an agent registered {tries} times after the faults ended"));
        }
        self.tally.raise_to("maximum registrations of one agent until healthy", tries);
        let took = usize::try_from(begin.elapsed().as_millis()).unwrap_or(usize::MAX);
        self.tally.raise_to("maximum ms until healthy", took);
        self.tally.add("times healthy", 1);

        // A late registration can recreate an agent after the master has forgotten it.
        let shown = state(leader).await?;
        let gone = {
            let mut checker = self.agents.checker.lock();
            self.real.record_assignments(&shown, &mut checker);
            checker.unassigned_agents(&shown)
        };
        if !gone.is_empty() {
            forget(leader, &gone).await?;
        }
        // The master may request another report from an agent that registered twice.
        let mut last = Ok(Value::Null);
        let healthy = async {
            loop {
                last = self.check_all(leader).await;
                if last.is_ok() {
                    return;
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        let _ = timeout(TIMEOUT, healthy).await;
        let health = last?;
        let epoch = health["epoch"].as_u64().and_then(|epoch| usize::try_from(epoch).ok());
        self.tally.raise_to("epochs of the state", epoch.ok_or("health shows no epoch")?);
        Ok(gone.len())
    }

    /// Checks that the master shows exactly the agents that are alive, with their assignments.
    async fn check_all(&mut self, leader: SocketAddrV4) -> Result<Value, String> {
        let state = state(leader).await?;
        self.agents.checker.lock().check_state(&state)?;
        self.real.check_state(&state)?;
        let health = health(leader).await?;
        let count = ALIVE + REAL_AGENTS;
        if health["status"] == "ok"
            && health["agents"]["ok"] == count
            && state.agents.len() == count
        {
            return Ok(health);
        }
        Err(format!("{count} agents are alive, and the master is not healthy: {health}"))
    }

    /// Checks that a kill right after an acknowledged deletion does not undo the deletion.
    async fn check_acknowledged_changes_are_durable(&mut self) -> Result<(), String> {
        let leader = self.masters.wait_for_leader().await?;
        let (mut alive, mut dead) = self.agents.running_and_stopped();
        self.random.shuffle(&mut alive);
        self.random.shuffle(&mut dead);
        for (gone, added) in alive.iter().zip(&dead).take(REPLACEMENTS_MAX) {
            self.agents.kill(*gone);
            self.agents.checker.lock().release(self.agents.ip(*gone));
            self.agents.restart(*added);
        }
        let gone: Vec<Ipv4Addr> =
            alive.iter().take(REPLACEMENTS_MAX).map(|&index| self.agents.ip(index)).collect();
        forget(leader, &gone).await?;
        self.masters.kill_leader(&mut self.tally).await?;
        match self.wait_until_healthy().await? {
            0 => Ok(()),
            restored => Err(format!("{restored} deleted agents exist again after a kill")),
        }
    }
}

/// Waits until a random number of agents received assignments. Small and large numbers are equally
/// likely, because a master is most vulnerable right after its start.
async fn wait_for_random_progress(agents: &Agents, random: &mut Rng) {
    let magnitude = random.u32(..ALIVE.ilog2());
    let updates = random.usize(..1 << magnitude);
    let before = agents.updates.load(Ordering::Relaxed);
    let has_progressed = || agents.updates.load(Ordering::Relaxed) > before + updates;
    let _ = agents.wait_until(PROGRESS_TIMEOUT, has_progressed).await;
}

/// Crashes and restarts some agents, and replaces others: the master forgets each of these, and an
/// agent that was not running takes its place.
async fn churn(agents: &Agents, leader: &Leader, random: &mut Rng, tally: &mut Tally) {
    let (mut alive, mut dead) = agents.running_and_stopped();
    random.shuffle(&mut alive);
    random.shuffle(&mut dead);
    let (gone, rest) = alive.split_at(random.usize(1..REPLACEMENTS_MAX));
    let crashed = &rest[..random.usize(1..CRASHES_MAX)];
    for &index in crashed.iter().chain(gone) {
        agents.kill(index);
    }
    tally.add("simulated agents killed", crashed.len() + gone.len());
    sleep(Duration::from_millis(random.u64(..1000))).await;
    crashed.iter().for_each(|&index| agents.restart(index));

    // The master may forget these agents from now on. Without an answer the outcome is unknown, and
    // the agents are restarted.
    let ips: Vec<Ipv4Addr> = gone.iter().map(|&index| agents.ip(index)).collect();
    ips.iter().for_each(|&ip| agents.checker.lock().release(ip));
    let leader = *leader.borrow();
    let forgotten = match leader {
        Some(leader) => forget(leader, &ips).await,
        None => Err("there is no leader".to_owned()),
    };
    match forgotten {
        Ok(()) => {
            dead[..gone.len()].iter().for_each(|&index| agents.restart(index));
            tally.add("simulated agents forgotten", gone.len());
        }
        Err(_) => {
            gone.iter().for_each(|&index| agents.restart(index));
            tally.add("simulated agents with an unanswered request to forget them", gone.len());
        }
    }
}

/// Makes a master forget agents. After an error, the outcome is unknown.
async fn forget(leader: SocketAddrV4, agents: &[Ipv4Addr]) -> Result<(), String> {
    let body = serde_json::json!({ "agents": agents, "force": true }).to_string();
    send_request(leader, "POST /overlay-master/agents/delete", "application/json", &body)
        .await
        .map(drop)
}

/// Writes the network of the crash test into `dir`.
pub(crate) fn write_network(dir: &Path) -> Result<std::path::PathBuf, String> {
    let path = dir.join("network.json");
    std::fs::write(&path, NETWORK).map_err(|error| format!("write {}: {error}", path.display()))?;
    Ok(path)
}

#[expect(clippy::disallowed_methods, reason = "the test runs for a given duration")]
fn now() -> Instant {
    Instant::now()
}

//! The crash test: thousands of agents register, end, come back and are forgotten for others, while
//! masters, agents and whatever else there is are killed. Nobody may ever be told anything that
//! contradicts what was told before, and when the killing ends everything has to be well again.
//!
//! A seed stands for the choice of what is killed and in which order; what else happens then is up
//! to the machine.

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
use super::program::{ask, health, state};
use real::RealAgents;

/// A network with room for 2,046 agents, and so for a few more than there are at a time: those that
/// come later are given what others had.
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

/// Agents that the test plays, of which some are alive at a time.
pub(crate) const AGENTS: usize = 2600;
pub(crate) const ALIVE: usize = 1800;
/// Agents of the program.
const REAL: usize = 3;

/// At most so many agents end in a round, by a crash and to be forgotten.
const CRASHES: usize = 256;
const REPLACED: usize = 512;

/// After so many rounds everything has to be well.
const ROUNDS: usize = 6;

/// How long that may take, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks whether it is so.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the next moment is waited for: there is none while nobody leads.
const MOMENT: Duration = Duration::from_secs(5);
/// How many registrations an agent may need when everything runs again. The first ones may come
/// while the state is read, and one may be lost with the write that was under way.
const TRIES_MAX: usize = 5;

/// Replays a run.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// How many seconds there are kills.
const SECONDS: &str = "MESOS_OVERLAY_CRASH_SECONDS";

/// What is killed besides the agents.
pub(crate) trait Masters {
    /// The agents' `--master`.
    fn address(&self) -> String;

    /// Who leads, as agents find out.
    fn follow(&self) -> Leader;

    /// Kills something, and has it run again in the end.
    async fn trouble(&mut self, random: &mut Rng, tally: &mut Tally) -> Result<(), String>;

    /// Kills the master that leads, which was well, and has it run again.
    async fn kill_leader(&mut self, tally: &mut Tally) -> Result<(), String>;

    /// Waits until all masters are well, and says which one leads.
    async fn leader(&mut self) -> Result<SocketAddrV4, String>;

    /// What the masters had to say.
    fn log(&self) -> String;
}

/// What happened, and how often.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    pub(crate) fn add(&mut self, what: &'static str, count: usize) {
        *self.0.entry(what).or_default() += count;
    }

    fn most(&mut self, what: &'static str, count: usize) {
        let most = self.0.entry(what).or_default();
        *most = count.max(*most);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| write!(f, "\n  {count:>8} {what}"))
    }
}

#[expect(clippy::disallowed_methods, reason = "how to run a test is not part of its code")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

/// Kills for `seconds`, or as long as the environment wants, and fails with what went wrong and the
/// command that replays it.
pub(crate) async fn crash(command: &str, seconds: u64, masters: &mut impl Masters) {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let duration = Duration::from_secs(number(SECONDS).unwrap_or(seconds));
    let replay = format!("{SEED}={seed} {SECONDS}={} {command}", duration.as_secs());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let leader = masters.follow();
    let agents = Agents::start(leader.clone(), AGENTS).expect("agents");
    // Nobody was awaited yet, so none of them was ever there.
    (ALIVE..AGENTS).for_each(|index| agents.kill(index));
    let real = RealAgents::start(dir.path(), &masters.address(), REAL);
    let random = Rng::with_seed(seed);
    let mut crash = Crash { agents, real, masters, leader, random, tally: Tally::default() };
    if let Err(fault) = crash.run(duration).await {
        panic!("{fault}\n{}\n{}{}\n{replay}", crash.masters.log(), crash.real.log(), crash.tally);
    }
    // Not by print, which a test that passes keeps to itself.
    let _ = writeln!(std::io::stderr(), "\n{replay}{}", crash.tally);
}

/// A cluster and what happens to it.
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
        // From the first moment on, in which nothing is durable.
        let mut rounds = 0;
        while now() < end {
            self.round().await?;
            rounds += 1;
            if rounds % ROUNDS == 0 {
                self.heal().await?;
            }
        }
        self.tally.add("rounds", rounds);
        self.heal().await?;
        self.what_was_answered_is_durable().await?;
        let promises = self.agents.promises.lock();
        let registrations = self.agents.registrations.load(Ordering::Relaxed);
        self.tally.add("registrations", registrations);
        self.tally.add("registrations repeated without an answer", self.agents.repeated());
        self.tally.add("answers compared", promises.compared);
        self.tally.add("agents given what another one had before", promises.reused);
        Ok(())
    }

    /// Agents end and come, and meanwhile something is killed.
    async fn round(&mut self) -> Result<(), String> {
        let mut random = self.random.fork();
        let mut killed = Tally::default();
        let mut churning = self.random.fork();
        // Churn that has begun is ended: nobody is left out.
        let is_over = Cell::new(false);
        let trouble = async {
            reach_some_moment(&self.agents, &mut random).await;
            let crashed = self.real.crash(random.usize(..REAL));
            let troubled = self.masters.trouble(&mut random, &mut killed).await;
            is_over.set(true);
            crashed.and(troubled)
        };
        let churn = async {
            while !is_over.get() {
                churn(&self.agents, &self.leader, &mut churning, &mut self.tally).await;
            }
        };
        tokio::join!(trouble, churn).0?;
        killed.0.into_iter().for_each(|(what, count)| self.tally.add(what, count));
        self.tally.add("agents of the program killed", 1);
        self.real.check_files()?;
        self.agents.promises.lock().check()
    }

    /// Everything runs: waits until all is well, and checks that it is as it was told. Agents that
    /// are gone are forgotten; returns how many that were.
    async fn heal(&mut self) -> Result<usize, String> {
        self.agents.take_most_tries();
        let begin = now();
        let leader = self.masters.leader().await?;
        self.agents.all_acknowledged(PATIENCE).await?;
        self.real.all_acknowledged(PATIENCE).await?;
        let tries = self.agents.take_most_tries();
        if tries > TRIES_MAX {
            return Err(format!("an agent registered {tries} times when all was well again"));
        }
        self.tally.most("registrations of an agent at most until all was well", tries);
        let took = usize::try_from(begin.elapsed().as_millis()).unwrap_or(usize::MAX);
        self.tally.most("ms at most until all was well", took);
        self.tally.add("times all was well", 1);

        // The registration of an agent may have come after it was forgotten.
        let shown = state(leader).await?;
        let gone = {
            let mut promises = self.agents.promises.lock();
            self.real.learn(&shown, &mut promises);
            promises.unpromised(&shown)
        };
        if !gone.is_empty() {
            forget(leader, &gone).await?;
        }
        // An agent that registered twice may be asked for its report once more.
        let mut last = Ok(Value::Null);
        let wait = async {
            loop {
                last = self.check_all(leader).await;
                if last.is_ok() {
                    return;
                }
                sleep(PAUSE).await;
            }
        };
        let _ = timeout(PATIENCE, wait).await;
        let health = last?;
        let epoch = health["epoch"].as_u64().and_then(|epoch| usize::try_from(epoch).ok());
        self.tally.most("epochs of the state", epoch.ok_or("health shows no epoch")?);
        Ok(gone.len())
    }

    /// Checks that the master shows all that lives, and nothing else, as it was told.
    async fn check_all(&mut self, leader: SocketAddrV4) -> Result<Value, String> {
        let state = state(leader).await?;
        self.agents.promises.lock().check_state(&state)?;
        self.real.check_state(&state)?;
        let health = health(leader).await?;
        let count = ALIVE + REAL;
        if health["status"] == "ok"
            && health["agents"]["ok"] == count
            && state.agents.len() == count
        {
            return Ok(health);
        }
        Err(format!("{count} agents are alive, and not all is well: {health}"))
    }

    /// What was answered while all was well survives a kill right after it.
    async fn what_was_answered_is_durable(&mut self) -> Result<(), String> {
        let leader = self.masters.leader().await?;
        let (mut alive, mut dead) = self.agents.by_life();
        self.random.shuffle(&mut alive);
        self.random.shuffle(&mut dead);
        for (gone, come) in alive.iter().zip(&dead).take(REPLACED) {
            self.agents.kill(*gone);
            self.agents.promises.lock().release(self.agents.ip(*gone));
            self.agents.revive(*come);
        }
        let gone: Vec<Ipv4Addr> =
            alive.iter().take(REPLACED).map(|&index| self.agents.ip(index)).collect();
        forget(leader, &gone).await?;
        self.masters.kill_leader(&mut self.tally).await?;
        match self.heal().await? {
            0 => Ok(()),
            back => Err(format!("{back} agents were deleted, and are back after a kill")),
        }
    }
}

/// Waits until some agents were told something. Few are as likely as many, since the first moments
/// of a master are the most delicate.
async fn reach_some_moment(agents: &Agents, random: &mut Rng) {
    let magnitude = random.u32(..ALIVE.ilog2());
    let some = random.usize(..1 << magnitude);
    let before = agents.updates.load(Ordering::Relaxed);
    let is_so = || agents.updates.load(Ordering::Relaxed) > before + some;
    let _ = agents.until(MOMENT, is_so).await;
}

/// Agents crash and come back, and others end for good: they are forgotten, and as many come that
/// were not there.
async fn churn(agents: &Agents, leader: &Leader, random: &mut Rng, tally: &mut Tally) {
    let (mut alive, mut dead) = agents.by_life();
    random.shuffle(&mut alive);
    random.shuffle(&mut dead);
    let (gone, rest) = alive.split_at(random.usize(1..REPLACED));
    let crashed = &rest[..random.usize(1..CRASHES)];
    for &index in crashed.iter().chain(gone) {
        agents.kill(index);
    }
    tally.add("simulated agents killed", crashed.len() + gone.len());
    sleep(Duration::from_millis(random.u64(..1000))).await;
    crashed.iter().for_each(|&index| agents.revive(index));

    // From the moment on at which they may be forgotten; whether they are, nobody knows who gets
    // no answer. They come back then.
    let ips: Vec<Ipv4Addr> = gone.iter().map(|&index| agents.ip(index)).collect();
    ips.iter().for_each(|&ip| agents.promises.lock().release(ip));
    let leader = *leader.borrow();
    let forgotten = match leader {
        Some(leader) => forget(leader, &ips).await,
        None => Err("nobody leads".to_owned()),
    };
    match forgotten {
        Ok(()) => {
            dead[..gone.len()].iter().for_each(|&index| agents.revive(index));
            tally.add("simulated agents forgotten", gone.len());
        }
        Err(_) => {
            gone.iter().for_each(|&index| agents.revive(index));
            tally.add("simulated agents that were to be forgotten, without an answer", gone.len());
        }
    }
}

/// Has a master forget agents. An error says nothing about whether it did.
async fn forget(leader: SocketAddrV4, agents: &[Ipv4Addr]) -> Result<(), String> {
    let body = serde_json::json!({ "agents": agents, "force": true }).to_string();
    ask(leader, "POST /overlay-master/agents/delete", "application/json", &body).await.map(drop)
}

/// Writes the network of the crash test into `dir`.
pub(crate) fn write_network(dir: &Path) -> Result<std::path::PathBuf, String> {
    let path = dir.join("network.json");
    std::fs::write(&path, NETWORK).map_err(|error| format!("write {}: {error}", path.display()))?;
    Ok(path)
}

#[expect(clippy::disallowed_methods, reason = "a test that lasts as long as was asked for")]
fn now() -> Instant {
    Instant::now()
}

//! What must be true when masters are killed in the middle of a storm, and again while all come
//! back to the next one.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::agents::Agents;
use super::program::{Program, free_address};
use super::promises::{check_distinct, check_state};

/// How many agents there are.
pub(crate) const AGENTS: usize = 1500;
const KILLS: u32 = 2;

/// How long one storm may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a storm at the masters that `start` starts in a directory and at an address, and kills
/// them. Agents come back as soon as anybody listens where the last one was; with `they_wait`, only
/// when the next one serves.
pub(crate) async fn survive_kills(
    they_wait: bool,
    start: impl AsyncFn(&Path, SocketAddrV4) -> Result<Program, String>,
) -> Result<(), String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .map_err(|error| format!("make a directory: {error}"))?;
    let address = free_address();
    let mut master = start(dir.path(), address).await?;
    let agents = Agents::start(address, AGENTS).map_err(|error| error.to_string())?;
    let mut updates = 0;
    for _ in 0..KILLS {
        reach_some_moment(&agents, updates).await?;
        agents.are_held.store(they_wait, Ordering::Relaxed);
        master.kill();
        // All that it had sent counts too.
        let is_read = || agents.connections.load(Ordering::Relaxed) == 0;
        let unread = |()| "connections outlive the master".to_owned();
        agents.until(PATIENCE, is_read).await.map_err(unread)?;
        let told = agents.told()?;
        println!("killed when {} agents had been told", told.len());
        check_distinct(&told)?;
        // The next one may be through with all of them before this test hears of it.
        updates = agents.updates.load(Ordering::Relaxed);
        // Whoever is told something else from now on says so at the next `told`.
        master = start(dir.path(), address).await?;
        agents.are_held.store(false, Ordering::Relaxed);
    }
    agents.all_acknowledged(PATIENCE).await.map_err(|fault| fault + &master.log())?;
    let told = agents.told()?;
    assert_eq!(told.len(), AGENTS, "{} registrations were repeated", agents.repeated());
    check_distinct(&told)?;
    check_state(&master.state().await?, &told)?;
    let health = master.health().await?;
    assert_eq!(health["agents"]["ok"], AGENTS, "{health}");
    Ok(())
}

/// Waits until some agents were told something by the present master, `before` which there were so
/// many updates. Few are as likely as many, since the first moments are the most delicate: nothing
/// is durable then.
async fn reach_some_moment(agents: &Agents, before: usize) -> Result<(), String> {
    let some = fastrand::usize(..1 << fastrand::u32(..AGENTS.ilog2()));
    let is_so = || agents.updates.load(Ordering::Relaxed) > before + some;
    let missing = |()| format!("no {some} agents were told anything");
    agents.until(PATIENCE, is_so).await.map_err(missing)
}

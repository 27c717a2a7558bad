//! The cost of the table of peers for a real master, in the compact and in the plain form.

use std::net::SocketAddrV4;
use std::sync::atomic::Ordering;
use std::time::Duration;

use overlay_types::addr::master_upid;
use overlay_types::protocol::{Message, PeersRequest, UpdateForm};
use tokio::sync::watch;

use super::agents::Agents;
use super::libprocess::request;
use super::master_process::{MasterProcess, free_address};
use super::usage::{Usage, cpu_time};
use super::{AFTERMATH, STORM_TIMEOUT, block_on, now, number};

/// Timeout until all agents have their peers. 8,000 plain tables occupy a network of 1 Gbit/s for
/// 30 s.
const PEERS_TIMEOUT: Duration = Duration::from_secs(300);

/// Lets `count` registered agents request their peers at once, in each form, and prints the cost for
/// the master.
pub(crate) fn measure(count: usize) -> Result<(), String> {
    block_on(async {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory: {error}"))?;
        let address = free_address();
        let master = MasterProcess::start("file", dir.path(), address).await?;
        let pid = master.child.id();
        let agents = Agents::start(watch::channel(Some(address)).1, count, None)
            .map_err(|error| error.to_string())?;
        agents.all_acknowledged(STORM_TIMEOUT).await.map_err(|error| error + &master.log())?;
        tokio::time::sleep(AFTERMATH).await;
        println!("{count} agents request the table of {count} agents at once:");
        for form in [UpdateForm::Compact, UpdateForm::Plain] {
            let received = || agents.traffic.received.load(Ordering::Relaxed);
            let (cpu_before, bytes_before, start) = (cpu_time(pid)?, received(), now());
            receive_peers(&agents, address, form).await?;
            println!(
                "  {form:?}: {:.1} MB in {:.2} s, CPU of the master {:.3} s, peak RSS {:.1} MiB",
                number(received() - bytes_before) / 1e6,
                start.elapsed().as_secs_f64(),
                (cpu_time(pid)? - cpu_before).as_secs_f64(),
                Usage::of(pid)?.peak
            );
        }
        Ok(())
    })
}

/// Requests the peers for each agent in this form, and waits until each agent has received a table
/// of all agents.
async fn receive_peers(
    agents: &Agents,
    master: SocketAddrV4,
    form: UpdateForm,
) -> Result<(), String> {
    agents.tables.store(0, Ordering::Relaxed);
    let master = master_upid(master);
    let message = Message::RequestPeers(PeersRequest { form, ..PeersRequest::default() });
    for agent in &agents.agents {
        let link = agent.state.lock().link.clone().ok_or("an agent has no link")?;
        let request = request(&agent.upid, &master, &message, |_| None);
        agents.write(&link, &request).await.map_err(|error| error.to_string())?;
    }
    let received = || agents.tables.load(Ordering::Relaxed);
    agents
        .wait_until(PEERS_TIMEOUT, || received() >= agents.agents.len())
        .await
        .map_err(|()| format!("after {PEERS_TIMEOUT:?} only {} agents have peers", received()))
}

//! The master module.

use std::net::SocketAddrV4;
use std::sync::Arc;

use tokio::sync::watch;

use super::Kind;
use super::log_place::{LogPlace, OpenLog, OpeningLog};
use super::parameters::Inputs;
use super::part::{Configured, Task};
use super::realm::Access;
use crate::config::{MasterConfig, StoreKind, master_file, master_from_parameters};
use crate::master::Settings;
use crate::protocol::Network;
use crate::runtime::{MasterHost, MasterOptions, Metrics, supervise};
use crate::store::{FileStore, MemoryStore, ReplicatedLogStore, Store};
use crate::transport::mesos::Gateway;

/// Path, what a request may do, and what `/help` says.
pub(super) const ROUTES: [(&str, Access, &str); 4] = [
    (
        "/state",
        Access::Read,
        "### TL;DR; ###\nThe overlay networks, and what every agent has of them.\n\n\
         ### DESCRIPTION ###\nJSON, or protobuf where `Accept` says `application/x-protobuf`.\n\n\
         Query parameters:\n\n>        jsonp=VALUE   Wraps the JSON in a call of this function.\n",
    ),
    (
        "/agents/delete",
        Access::Write,
        "### TL;DR; ###\nForgets agents, and frees their addresses.\n\n\
         ### DESCRIPTION ###\nPOST `{\"agents\":[\"10.0.0.1\"]}`. An agent that still runs gets \
         its addresses again as long as nobody else has them.\n",
    ),
    (
        "/health",
        Access::Read,
        "### TL;DR; ###\nWhether the overlay master is well, and what needs an operator.\n",
    ),
    ("/metrics", Access::Read, "### TL;DR; ###\nWhat the overlay master counts, for Prometheus.\n"),
];

/// Reads the configuration; what it says can then be started.
pub(super) fn configure(
    inputs: &Inputs,
    gateway: &Arc<Gateway>,
    leader: watch::Receiver<Option<SocketAddrV4>>,
    open_log: OpenLog,
) -> Result<Configured, String> {
    let config = inputs.read(Kind::Master, master_file, master_from_parameters)?;
    let place = LogPlace::of(&config).map_err(|reason| format!("{}: {reason}", Kind::Master))?;
    let election = place.as_ref().and_then(|place| place.url.clone());
    let metrics = Metrics::new();
    let gauges = Arc::new(metrics.clone());
    let gateway = Arc::clone(gateway);
    let is_elected = election.is_some();
    let start = Box::new(move |address, ended| {
        Box::pin(async move {
            let (leads, leading) = watch::channel(false);
            let network = Arc::new(config.network.clone());
            let mut open = match store(&config, place, open_log, &network) {
                Ok(open) => open,
                Err(reason) => return log::error!("overlay master: start a thread: {reason}"),
            };
            let counted = metrics.clone();
            let start = move || {
                let options = MasterOptions {
                    settings: Settings {
                        network: Arc::clone(&network),
                        reuse_after: config.reuse_after,
                    },
                    store: open(),
                    leading: is_elected.then(|| leading.clone()),
                    metrics: metrics.clone(),
                    seed: fastrand::u64(..),
                };
                MasterHost::start(options, gateway.transport(address))
            };
            tokio::select! {
                () = supervise("overlay master", start, || counted.count_restart(), ended) => {}
                () = follow(leader, address, leads) => {}
            }
        }) as Task
    });
    Ok(Configured { start, election, gauges })
}

/// Says whether this master, at `own`, is the leader.
async fn follow(
    mut leader: watch::Receiver<Option<SocketAddrV4>>,
    own: SocketAddrV4,
    leads: watch::Sender<bool>,
) {
    loop {
        let is_leader = *leader.borrow_and_update() == Some(own);
        leads.send_if_modified(|leads| std::mem::replace(leads, is_leader) != is_leader);
        if leader.changed().await.is_err() {
            // Whoever follows the election has ended, and so will this.
            std::future::pending().await
        }
    }
}

/// A way to open the store, now and after each restart. A store that cannot be opened does not keep
/// Mesos from starting: the master says FAILED, and tries again.
fn store(
    config: &MasterConfig,
    place: Option<LogPlace>,
    open_log: OpenLog,
    network: &Arc<Network>,
) -> std::io::Result<Box<dyn FnMut() -> Box<dyn Store> + Send>> {
    if let Some(place) = place {
        log::info!("overlay master: its state is in the log in {}", place.directory.display());
        let (log, network) = (Arc::new(OpeningLog::start(place, open_log)?), Arc::clone(network));
        return Ok(Box::new(move || {
            Box::new(ReplicatedLogStore::new(Arc::clone(&log) as _, Arc::clone(&network)))
        }));
    }
    let directory = config.work_dir.clone();
    Ok(match config.store {
        StoreKind::File => {
            log::info!("overlay master: its state is in {}", directory.display());
            Box::new(move || Box::new(FileStore::at(&directory)))
        }
        StoreKind::Memory => {
            log::warn!(
                "overlay master: the state is kept in memory only: a restart of Mesos forgets all \
                 allocations"
            );
            let memory = MemoryStore::new();
            Box::new(move || Box::new(memory.clone()))
        }
    })
}

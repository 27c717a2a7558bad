//! The master module.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Kind;
use super::log_place::{LogPlace, OpenLog, OpeningLog, resolve};
use super::parameters::Inputs;
use super::part::{Configured, Task};
use super::realm::Access;
use crate::config::{MasterConfig, StoreKind, master_file, master_from_parameters};
use crate::master::Settings;
use crate::protocol::Network;
use crate::runtime::{MasterHost, MasterOptions, Metrics, judge_for_master, supervise};
use crate::store::{
    Change, Epoch, FileStore, Loaded, MemoryStore, ReplicatedLogStore, Store, StoreError, Version,
};
use crate::transport::mesos::Gateway;

/// Path, what a request may do, and what `/help` says.
pub(super) const ROUTES: [(&str, Access, &str); 6] = [
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
    (
        "/history",
        Access::Read,
        "### TL;DR; ###\nWho had which overlay addresses when, and why that changed.\n\n\
         ### DESCRIPTION ###\nQuery parameters:\n\n>        agent=IP   Shows what happened to this \
         agent only.\n",
    ),
    (
        "/preview",
        Access::Read,
        "### TL;DR; ###\nWhat a network file would do to the agents; nothing changes.\n\n\
         ### DESCRIPTION ###\nPOST the network file.\n",
    ),
    ("/metrics", Access::Read, "### TL;DR; ###\nWhat the overlay master counts, for Prometheus.\n"),
];

/// How long nobody may lead before that is worth a line: longer than any election takes.
const LEADERLESS: Duration = Duration::from_secs(30);

/// Reads the configuration; what it says can then be started.
pub(super) fn configure(
    inputs: &Inputs,
    leader: watch::Receiver<Option<SocketAddrV4>>,
    open_log: OpenLog,
) -> Result<Configured, String> {
    let config = inputs.read(Kind::Master, master_file, master_from_parameters)?;
    refuse_zookeeper(&config)?;
    let place = LogPlace::of(&config).map_err(|reason| format!("{}: {reason}", Kind::Master))?;
    let shared = place.as_ref().and_then(|place| place.url.clone());
    // Where mesos-master itself is elected; the log's path need not be the same.
    let election = shared.map(|url| inputs.environment.mesos_zk.clone().unwrap_or(url));
    let election = election.map(|url| resolve(&url)).transpose()?;
    let metrics = Metrics::new();
    let gauges = Arc::new(metrics.clone());
    let gateway = Gateway::new(config.limits, judge_for_master());
    let transports = Arc::clone(&gateway);
    let is_elected = election.is_some();
    let start = Box::new(move |address, ended| {
        let (leads, leading) = watch::channel(false);
        let network = Arc::new(config.network.clone());
        let store = store(&config, place, open_log, &network);
        let counted = metrics.clone();
        let start = move || {
            let network = Arc::clone(&network);
            let options = MasterOptions {
                settings: Settings { network, reuse_after: config.reuse_after },
                store: Box::new(store.clone()),
                leading: is_elected.then(|| leading.clone()),
                metrics: metrics.clone(),
                reread: None,
                seed: fastrand::u64(..),
            };
            MasterHost::start(options, transports.transport(address))
        };
        Box::pin(async move {
            tokio::select! {
                () = supervise("overlay master", start, || counted.count_restart(), ended) => {}
                () = tell_whether_leading(leader, address, leads), if is_elected => {}
            }
        }) as Task
    });
    Ok(Configured { gateway, start, election, gauges })
}

/// Says whether this master, at `own`, is the leader, at each change of who is.
async fn tell_whether_leading(
    mut leader: watch::Receiver<Option<SocketAddrV4>>,
    own: SocketAddrV4,
    leads: watch::Sender<bool>,
) {
    loop {
        let now = *leader.borrow_and_update();
        leads.send_replace(now == Some(own));
        let changed = match now {
            Some(_) => leader.changed().await,
            None => match tokio::time::timeout(LEADERLESS, leader.changed()).await {
                Ok(changed) => changed,
                Err(_) => {
                    log::warn!(
                        "overlay master: for {LEADERLESS:?} nobody leads: is the path in ZooKeeper \
                         that of --zk of mesos-master? MESOS_ZK or zk.url names it"
                    );
                    leader.changed().await
                }
            },
        };
        if changed.is_err() {
            // Whoever follows the election has ended, and so will this.
            std::future::pending().await
        }
    }
}

/// Mesos holds the election, at an address of its own, and a state that is elsewhere would need
/// another one.
fn refuse_zookeeper(config: &MasterConfig) -> Result<(), String> {
    match &config.store {
        StoreKind::ZooKeeper(_) => Err(format!(
            "{}: store: an address of ZooKeeper is for the program alone: in Mesos, write \
             replicated_log_dir for a state that several masters share",
            Kind::Master
        )),
        StoreKind::File | StoreKind::Memory => Ok(()),
    }
}

/// The store, for this host and the next ones: one that was open must not be made anew, if its file
/// has vanished. One that cannot be opened does not keep Mesos from starting: the master says
/// FAILED, and tries again.
fn store(
    config: &MasterConfig,
    place: Option<LogPlace>,
    open_log: OpenLog,
    network: &Arc<Network>,
) -> SharedStore {
    let store: Box<dyn Store> = if let Some(place) = place {
        log::info!("overlay master: its state is in the log in {}", place.directory.display());
        let log = Arc::new(OpeningLog::start(place, open_log));
        Box::new(ReplicatedLogStore::new(log, Arc::clone(network)))
    } else if config.store == StoreKind::File {
        log::info!("overlay master: its state is in {}", config.work_dir.display());
        Box::new(FileStore::at(&config.work_dir))
    } else {
        log::warn!(
            "overlay master: the state is kept in memory only: a restart of Mesos forgets all \
             allocations"
        );
        Box::new(MemoryStore::new())
    };
    SharedStore(Arc::new(Mutex::new(store)))
}

/// A store that one host after the other uses.
#[derive(Clone)]
struct SharedStore(Arc<Mutex<Box<dyn Store>>>);

impl Store for SharedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.0.lock().load()
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        self.0.lock().commit(epoch, changes)
    }
}

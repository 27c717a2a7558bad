//! The master module.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use overlay_config::{MasterConfig, StoreKind, master_file, master_from_parameters};
use overlay_engine::master::Settings;
use overlay_store::{Change, FileStore, Loaded, MemoryStore, ReplicatedLogStore, Store};
use overlay_types::protocol::{Leader, MasterKind, Network};
use overlay_types::state::{Epoch, StoreError, Version};
use overlay_types::warnings::Warnings;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::configured::{Configured, Task};
use super::kind::Kind;
use super::parameters::Inputs;
use super::realm::Access;
use super::replicated_log::{LogLocation, OpenLog, OpeningLog, resolve};
use crate::runtime::gateway::Gateway;
use crate::runtime::{
    CredentialFile, MasterHost, MasterOptions, Metrics, ProgressOptions, master_admission,
    read_credentials, supervise,
};

/// Path, access, and text of `/help` of each route.
pub(super) const ROUTES: [(&str, Access, &str); 6] = [
    (
        "/state",
        Access::Read,
        "### TL;DR; ###\nThe overlay networks, and the allocations of every agent.\n\n\
         ### DESCRIPTION ###\nJSON, or protobuf where `Accept` says `application/x-protobuf`.\n\n\
         Query parameters:\n\n>        jsonp=VALUE   Wraps the JSON in a call of this function.\n",
    ),
    (
        "/agents/delete",
        Access::Write,
        "### TL;DR; ###\nReleases agents and their addresses.\n\n\
         ### DESCRIPTION ###\nPOST `{\"agents\":[\"10.0.0.1\"]}`. An agent that still runs gets \
         its addresses again unless another agent has them.\n",
    ),
    (
        "/health",
        Access::Read,
        "### TL;DR; ###\nCondition of the overlay master, and problems for an operator.\n",
    ),
    (
        "/history",
        Access::Read,
        "### TL;DR; ###\nHistory of the overlay addresses of every agent, with reasons.\n\n\
         ### DESCRIPTION ###\nQuery parameters:\n\n>        agent=IP   Selects the entries of this \
         agent.\n",
    ),
    (
        "/preview",
        Access::Read,
        "### TL;DR; ###\nEffect of a network file on the agents; nothing changes.\n\n\
         ### DESCRIPTION ###\nPOST the network file.\n",
    ),
    (
        "/metrics",
        Access::Read,
        "### TL;DR; ###\nMetrics of the overlay master, for Prometheus.\n\n\
         ### DESCRIPTION ###\nQuery parameters:\n\n>        agent=IP,IP   Adds the metrics of \
         these agents.\n",
    ),
];

/// The names of masters in Mesos-DNS and in DC/OS. No other domain can have them.
const MESOS_DNS_NAMES: [&str; 2] = ["leader.mesos", "master.mesos"];

/// Time without a leader after which the master needs an operator. No election takes that long.
const LEADERLESS_MAX: Duration = Duration::from_secs(30);
/// Key of the failure that no master leads.
const LEADERLESS_FAILURE: &str = "no-leader";

/// Reads the configuration of the master module.
pub(super) fn configure(
    inputs: &Inputs,
    leader: watch::Receiver<Option<SocketAddrV4>>,
    open_log: OpenLog,
) -> Result<Configured, String> {
    let config = inputs.read(Kind::Master, master_file, master_from_parameters)?;
    refuse_zookeeper(&config)?;
    let location = LogLocation::from_config(&config)
        .map_err(|reason| format!("{}: {reason}", Kind::Master))?;
    let log_url = location.as_ref().and_then(|location| location.url.clone());
    // The election of mesos-master may have another path than the log.
    let election = log_url.map(|url| inputs.environment.mesos_zk.clone().unwrap_or(url));
    let election = election.map(|url| resolve(&url)).transpose()?;
    let metrics = Metrics::new();
    let credentials = config.authentication.as_ref().map(|it| CredentialFile::of_master(&it.file));
    let authentication = read_credentials(config.authentication.as_ref(), metrics.warnings())
        .map_err(|reason| format!("{}: {reason}", Kind::Master))?;
    let gauges = Arc::new(metrics.clone());
    let gateway = Gateway::new(config.limits, master_admission());
    let transports = Arc::clone(&gateway);
    let is_elected = election.is_some();
    let access = inputs.access(config.http.clone(), &MESOS_DNS_NAMES);
    let start = Box::new(move |address, ended| {
        let (leading_sender, leading) = watch::channel(false);
        let (leader_sender, leader_changes) = watch::channel(None);
        let warnings = metrics.warnings().clone();
        let network = Arc::new(config.network.clone());
        let store = create_store(&config, location, open_log, &network);
        let counted = metrics.clone();
        let start = move || {
            let network = Arc::clone(&network);
            let options = MasterOptions {
                settings: Settings {
                    network,
                    reuse_after: config.reuse_after,
                    kind: MasterKind::Module,
                    authentication: authentication.clone(),
                },
                store: Box::new(store.clone()),
                leading: is_elected.then(|| leading.clone()),
                leader: is_elected.then(|| leader_changes.clone()),
                lease: None,
                progress: ProgressOptions::default(),
                metrics: metrics.clone(),
                access: access.clone(),
                read_config: None,
                credentials: credentials.clone(),
                seed: fastrand::u64(..),
            };
            MasterHost::start(options, transports.transport(address))
        };
        Box::pin(async move {
            tokio::select! {
                () = supervise("overlay master", start, || counted.count_restart(), ended) => {}
                () = follow_election(leader, address, (leading_sender, leader_sender), warnings),
                    if is_elected => {}
            }
        }) as Task
    });
    Ok(Configured { gateway, start, election, gauges })
}

/// Reports at each change of the leader whether the master at `own` leads.
async fn follow_election(
    mut leader: watch::Receiver<Option<SocketAddrV4>>,
    own: SocketAddrV4,
    (leading, shown): (watch::Sender<bool>, watch::Sender<Option<Leader>>),
    warnings: Warnings,
) {
    loop {
        let now = *leader.borrow_and_update();
        leading.send_replace(now == Some(own));
        shown.send_replace(now.map(|address| Leader { address, id: None }));
        if now.is_some() {
            warnings.set_failure(LEADERLESS_FAILURE, None);
        }
        let changed = match now {
            Some(_) => leader.changed().await,
            None => match tokio::time::timeout(LEADERLESS_MAX, leader.changed()).await {
                Ok(changed) => changed,
                Err(_) => {
                    let failure = format!(
                        "overlay master: no master has led for {LEADERLESS_MAX:?}: check that the \
                         path in ZooKeeper, from MESOS_ZK or zk.url, is that of --zk of \
                         mesos-master"
                    );
                    warnings.set_failure(LEADERLESS_FAILURE, Some(failure));
                    leader.changed().await
                }
            },
        };
        if changed.is_err() {
            // The election is no longer followed: the module is about to stop.
            std::future::pending().await
        }
    }
}

/// Refuses a store in ZooKeeper. Mesos holds the election of the module, and such a store would
/// need another election.
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

/// Creates the store. Restarts of the state machine keep the store, so that a store whose file was
/// deleted is not created again. If the store cannot be opened, Mesos still starts: the master
/// reports FAILED and retries.
fn create_store(
    config: &MasterConfig,
    location: Option<LogLocation>,
    open_log: OpenLog,
    network: &Arc<Network>,
) -> SharedStore {
    let store: Box<dyn Store> = if let Some(location) = location {
        log::info!("overlay master: the state is in the log in {}", location.directory.display());
        let log = Arc::new(OpeningLog::start(location, open_log));
        Box::new(ReplicatedLogStore::new(log, Arc::clone(network)))
    } else if config.store == StoreKind::File {
        log::info!("overlay master: the state is in {}", config.work_dir.display());
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

/// A store that successive instances of the state machine use.
#[derive(Clone)]
struct SharedStore(Arc<Mutex<Box<dyn Store>>>);

impl Store for SharedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.0.lock().load()
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        self.0.lock().commit(epoch, changes)
    }

    fn check(&mut self) -> Result<(), StoreError> {
        self.0.lock().check()
    }
}

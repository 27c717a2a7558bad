//! The master module.

use std::sync::Arc;

use super::Kind;
use super::parameters::Inputs;
use super::part::Configured;
use super::realm::Access;
use crate::config::{MasterConfig, StoreKind, master_file, master_from_parameters};
use crate::master::Settings;
use crate::runtime::{MasterHost, MasterOptions, Metrics, supervise};
use crate::store::{FileStore, MemoryStore, Store};
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
pub(super) fn configure(inputs: &Inputs, gateway: &Arc<Gateway>) -> Result<Configured, String> {
    let config = inputs.read(Kind::Master, master_file, master_from_parameters)?;
    refuse_replicated_log(&config)?;
    let metrics = Metrics::new();
    let gauges = Arc::new(metrics.clone());
    let gateway = Arc::clone(gateway);
    let mut open = store(&config);
    let start = Box::new(move |address, ended| {
        let counted = metrics.clone();
        let settings =
            Settings { network: Arc::new(config.network), reuse_after: config.reuse_after };
        let start = move || {
            let options = MasterOptions {
                settings: settings.clone(),
                store: open(),
                metrics: metrics.clone(),
                leading: None,
                seed: fastrand::u64(..),
            };
            MasterHost::start(options, gateway.transport(address))
        };
        let restarted = move || counted.count_restart();
        Box::pin(supervise("overlay master", start, restarted, ended)) as super::part::Task
    });
    Ok(Configured { start, election: None, gauges })
}

/// A way to open the store, now and after each restart. A store that cannot be opened does not keep
/// Mesos from starting: the master says FAILED, and tries again.
fn store(config: &MasterConfig) -> impl FnMut() -> Box<dyn Store> + Send + use<> {
    let memory = MemoryStore::new();
    let (kind, directory) = (config.store, config.work_dir.clone());
    match kind {
        StoreKind::File => log::info!("overlay master: its state is in {}", directory.display()),
        StoreKind::Memory => log::warn!(
            "overlay master: the state is kept in memory only: a restart of Mesos forgets all \
             allocations"
        ),
    }
    move || match kind {
        StoreKind::File => Box::new(FileStore::at(&directory)),
        StoreKind::Memory => Box::new(memory.clone()),
    }
}

/// What the C++ module keeps there is not read by this version. To begin with an empty plan instead
/// would give every agent other addresses.
fn refuse_replicated_log(config: &MasterConfig) -> Result<(), String> {
    let Some(directory) = &config.replicated_log_dir else { return Ok(()) };
    Err(format!(
        "overlay master: replicated_log_dir: this version cannot read the replicated log in {}: \
         leave the key out to keep the state in work_dir, where a new plan begins",
        directory.display()
    ))
}

//! `mesos-overlay master`.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::Failure;
use super::host::{
    Addresses, EndSignals, ReloadSignal, raise_descriptor_limit, read_config, reread_config,
    runtime,
};
use crate::config::{MasterConfig, StoreKind, parse_master};
use crate::master::{Request, Settings};
use crate::runtime::{MasterHost, MasterOptions, Metrics, Reread};
use crate::store::{FileStore, MemoryStore, Store};

/// Run a master.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay master --config network.json
  mesos-overlay master --config master.json --listen 10.0.0.1:5050 --work-dir /var/lib/mesos-overlay

Flags win over the configuration file. It ends cleanly at SIGTERM, and reads the file again at SIGHUP.
What it promised to agents is in the work directory; a master that is started there again promises the
same.")]
pub(super) struct MasterCommand {
    /// The network file or master_config
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Where to accept agents and HTTP requests
    #[arg(
        long,
        env = "MESOS_OVERLAY_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:5050"
    )]
    listen: SocketAddrV4,
    /// Where the state is kept, with --store file. Without this flag: the key 'work_dir', else
    /// /var/lib/mesos-overlay
    #[arg(long, env = "MESOS_OVERLAY_WORK_DIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// How the state is kept. Without this flag: the key 'store', else file
    #[arg(long, env = "MESOS_OVERLAY_STORE", value_enum)]
    store: Option<StoreKind>,
    #[command(flatten)]
    addresses: Addresses,
}

impl ValueEnum for StoreKind {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::File => "In one file of the work directory, durable",
            Self::Memory => "Nowhere: a restart forgets everything. For trials",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl MasterCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let config = read_config(&self.config, parse_master)?;
        let store = self.open_store(&config)?;
        runtime()?.block_on(self.serve(config, store))
    }

    fn open_store(&self, config: &MasterConfig) -> Result<Box<dyn Store>, Failure> {
        match self.store.unwrap_or(config.store) {
            StoreKind::File => {
                let store = FileStore::open(self.work_dir.as_ref().unwrap_or(&config.work_dir))
                    .map_err(|error| Failure::new(error.to_string()))?;
                Ok(Box::new(store))
            }
            StoreKind::Memory => {
                log::warn!("the state is kept in memory only: a restart forgets all allocations");
                Ok(Box::new(MemoryStore::new()))
            }
        }
    }

    async fn serve(self, config: MasterConfig, store: Box<dyn Store>) -> Result<(), Failure> {
        let mut signals = EndSignals::watch()?;
        let mut reload = ReloadSignal::watch()?;
        let transport = self.addresses.bind(self.listen, None)?;
        let advertise = transport.advertise;
        let options = MasterOptions {
            settings: settings(&config),
            store,
            leading: None,
            reread: Some(self.reread(config)),
            seed: fastrand::u64(..),
            metrics: Metrics::new(),
        };
        let mut host = MasterHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start the thread of the store: {error}")))?;
        log::info!("overlay master at {advertise}: see http://{advertise}/overlay-master/state");
        loop {
            tokio::select! {
                () = signals.received() => {
                    host.stop().await;
                    return Ok(());
                }
                () = host.stopped() => {
                    return Err(Failure::new("the master stopped by itself: this is a bug"));
                }
                () = reload.received() => {
                    // What comes of it is in the log. A master that has stopped is told of above.
                    let _ = host.ask(Request::Reload).await;
                }
            }
        }
    }

    /// Reads the configuration again. What cannot change while the master runs is left as it is.
    fn reread(&self, config: MasterConfig) -> Reread {
        let path = self.config.clone();
        Arc::new(move || {
            let new = reread_config(&path, parse_master)?;
            if (new.store, &new.work_dir) != (config.store, &config.work_dir) {
                log::warn!("another store or work_dir is used from the next start on");
            }
            Ok(settings(&new))
        })
    }
}

fn settings(config: &MasterConfig) -> Settings {
    Settings { network: Arc::new(config.network.clone()), reuse_after: config.reuse_after }
}

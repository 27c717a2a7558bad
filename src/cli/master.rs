//! `mesos-overlay master`.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::host::{
    Addresses, EndSignals, ReloadSignal, fitted, raise_descriptor_limit, read_config,
    read_ensemble, reread_config, runtime,
};
use crate::addr::Ensemble;
use crate::config::{MasterConfig, StoreKind, parse_master};
use crate::detector::{Contender, Watched};
use crate::master::{Request, Settings};
use crate::runtime::{Contested, MasterHost, MasterOptions, Metrics, Reread};
use crate::store::{FileStore, MemoryStore, Store, ZooKeeperStore};
use crate::warnings::Warnings;
use crate::zookeeper::SESSION_TIMEOUTS;

/// Run a master.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay master --config network.json
  mesos-overlay master --config master.json --listen 10.0.0.1:5050 --work-dir /var/lib/mesos-overlay
  mesos-overlay master --config network.json --store zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay

Flags win over the configuration file. It ends cleanly at SIGTERM, and reads the file again at SIGHUP.
What it promised to agents is in the work directory or in ZooKeeper; a master that is started there
again promises the same.")]
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
    /// Where the state is kept: 'file', in one file of the work directory; 'memory', nowhere, for
    /// trials; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, in ZooKeeper, where several masters elect the
    /// one that leads; file:///PATH of a file with such an address. Without this flag: the key
    /// 'store', else file
    // It may hold a password, which neither the help nor clap's own errors are to show.
    #[arg(long, env = "MESOS_OVERLAY_STORE", hide_env_values = true)]
    store: Option<String>,
    /// With ZooKeeper: after how long without a word from it another master leads
    #[arg(
        long,
        env = "MESOS_OVERLAY_ZK_SESSION_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_session_timeout
    )]
    zk_session_timeout: Duration,
    #[command(flatten)]
    addresses: Addresses,
}

impl MasterCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let store = self.store.as_deref().map(str::parse::<StoreKind>).transpose();
        let store = store.map_err(|error| Failure::usage(format!("--store: {error}")))?;
        let config = read_config(&self.config, parse_master)?;
        let store = self.open_store(store.as_ref().unwrap_or(&config.store), &config)?;
        runtime()?.block_on(self.serve(config, store))
    }

    fn open_store(&self, store: &StoreKind, config: &MasterConfig) -> Result<Opened, Failure> {
        match store {
            StoreKind::File => {
                let store = FileStore::open(self.work_dir.as_ref().unwrap_or(&config.work_dir))
                    .map_err(|error| Failure::new(error.to_string()))?;
                Ok(Opened::Own(Box::new(store)))
            }
            StoreKind::Memory => {
                log::warn!("the state is kept in memory only: a restart forgets all allocations");
                Ok(Opened::Own(Box::new(MemoryStore::new())))
            }
            StoreKind::ZooKeeper(source) => {
                let ensemble = read_ensemble(source)
                    .map_err(|failure| Failure::new(format!("store: {failure}")))?;
                let store = ZooKeeperStore::new(ensemble.clone(), self.zk_session_timeout)
                    .map_err(|error| Failure::new(format!("start a thread: {error}")))?;
                Ok(Opened::Shared(Box::new(store), ensemble))
            }
        }
    }

    async fn serve(self, config: MasterConfig, store: Opened) -> Result<(), Failure> {
        let mut signals = EndSignals::watch()?;
        let mut reload = ReloadSignal::watch()?;
        let metrics = Metrics::new();
        let warnings = metrics.warnings().clone();
        let limits = fitted(config.limits, &warnings);
        let transport = self.addresses.bind(self.listen, None, limits)?;
        let advertise = transport.advertise;
        let (store, contender) = store.contend(self.zk_session_timeout, advertise, warnings);
        let options = MasterOptions {
            settings: settings(&config),
            store,
            leading: contender.as_ref().map(Contender::leading),
            reread: Some(self.reread(config)),
            seed: fastrand::u64(..),
            metrics,
        };
        let mut host = MasterHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start the thread of the store: {error}")))?;
        log::info!("overlay master at {advertise}: see http://{advertise}/overlay-master/state");
        loop {
            tokio::select! {
                () = signals.received() => {
                    host.stop().await;
                    if let Some(contender) = contender {
                        contender.resign().await;
                    }
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
            if (&new.store, &new.work_dir) != (&config.store, &config.work_dir) {
                log::warn!("another store or work_dir is used from the next start on");
            }
            Ok(settings(&new))
        })
    }
}

fn settings(config: &MasterConfig) -> Settings {
    Settings { network: Arc::new(config.network.clone()), reuse_after: config.reuse_after }
}

/// A store, and whether other masters want it.
enum Opened {
    Own(Box<dyn Store>),
    Shared(Box<ZooKeeperStore>, Ensemble),
}

impl Opened {
    /// The store as the master at `address` uses it, and the election that says when. To be called
    /// within a tokio runtime.
    fn contend(
        self,
        session_timeout: Duration,
        address: SocketAddrV4,
        warnings: Warnings,
    ) -> (Box<dyn Store>, Option<Contender>) {
        match self {
            Self::Own(store) => (store, None),
            Self::Shared(store, ensemble) => {
                log::info!("the state is in {ensemble}, and the election of the master that leads");
                let watched = Watched { state: store.znodes(), warnings };
                let contender = Contender::start(ensemble, session_timeout, address, watched);
                (Box::new(Contested::new(*store, contender.withdrawal())), Some(contender))
            }
        }
    }
}

pub(super) fn parse_session_timeout(text: &str) -> Result<Duration, String> {
    let expected = "write a number and a unit, 1s to 1h, as in 10s";
    let timeout =
        humantime::parse_duration(text).map_err(|error| format!("{error}: {expected}"))?;
    if SESSION_TIMEOUTS.contains(&timeout) { Ok(timeout) } else { Err(expected.to_owned()) }
}

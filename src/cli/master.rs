//! `mesos-overlay master`.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use overlay_config::{MasterConfig, StoreKind, parse_master};
use overlay_engine::master::{Authentication, Master, Request, Settings};
use overlay_store::{FileStore, MemoryStore, Store, ZooKeeperStore};
use overlay_types::addr::Ensemble;
use overlay_types::protocol::{Author, MasterKind};
use overlay_types::secret::may_contain;
use overlay_types::warnings::Warnings;
use overlay_zookeeper::detector::{Contender, ElectionWarnings, Progress, progress_deadline};

use super::Failure;
use super::http_options::HttpOptions;
use super::process::{
    ReloadSignal, ShutdownSignals, TransportOptions, fit_limits, raise_descriptor_limit,
    read_config, reread_config, run_to_end,
};
use super::service_notifier::{Reported, ServiceNotifier, elected};
use super::store_uri::{open_zookeeper, parse_session_timeout};
use crate::http::Realms;
use crate::runtime::{
    AccessControl, CredentialFile, ElectionAwareStore, MasterHost, MasterOptions, Metrics,
    ProgressOptions, ReadConfig, ReadConfiguration, read_credentials,
};

/// The name of the Unix socket in the work directory.
const HTTP_SOCKET: &str = "http.sock";

/// Run a master.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay master --config network.json
  mesos-overlay master --config master.json --listen 10.0.0.1:5050 --work-dir /var/lib/mesos-overlay
  mesos-overlay master --config network.json --store zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay

Flags have precedence over the configuration file. The master stops cleanly at SIGTERM, and reads
the file again at SIGHUP. It stores allocations in the work directory or in ZooKeeper, and keeps
them after a restart.")]
pub(super) struct MasterCommand {
    /// The network file or master_config
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The address on which to accept messages and HTTP requests
    #[arg(
        long,
        env = "MESOS_OVERLAY_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:5050"
    )]
    listen: SocketAddrV4,
    /// The directory of the state, with the store 'file'. Without this flag: the key 'work_dir',
    /// else /var/lib/mesos-overlay
    #[arg(long, env = "MESOS_OVERLAY_WORK_DIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Where the state is stored: 'file', in one file of the work directory; 'memory', which loses
    /// it at a restart, for trials; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, in ZooKeeper, where
    /// several masters elect a leader; file:///PATH of a file with such an address. Without this
    /// flag: the key 'store', else file
    // The value may contain a password, which neither the help nor the errors of clap may show.
    #[arg(long, env = "MESOS_OVERLAY_STORE", hide_env_values = true)]
    store: Option<String>,
    /// The timeout of the session with ZooKeeper. After it, another master leads
    #[arg(
        long,
        env = "MESOS_OVERLAY_ZK_SESSION_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_session_timeout
    )]
    zk_session_timeout: Duration,
    #[command(flatten)]
    addresses: TransportOptions,
    #[command(flatten)]
    http: HttpOptions,
    /// Let every client that reaches this master change its state. Without this flag and without
    /// --credentials, only clients on this host may
    #[arg(
        long,
        env = "MESOS_OVERLAY_INSECURE_WRITES",
        value_parser = clap::builder::BoolishValueParser::new(),
        conflicts_with = "credentials"
    )]
    insecure_writes: bool,
}

impl MasterCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let store = self.store.as_deref().map(str::parse::<StoreKind>).transpose();
        let store = store.map_err(|error| Failure::usage(format!("--store: {error}")))?;
        let config = read_config(&self.config, parse_master)?;
        let kind = store.unwrap_or_else(|| config.store.clone());
        let store = self.open_store(&kind, &config)?;
        let work_dir = self.work_dir.as_ref().unwrap_or(&config.work_dir);
        let socket = (kind == StoreKind::File).then(|| work_dir.join(HTTP_SOCKET));
        run_to_end(self.serve(config, store, socket))
    }

    fn open_store(&self, store: &StoreKind, config: &MasterConfig) -> Result<OpenedStore, Failure> {
        match store {
            StoreKind::File => {
                let work_dir = self.work_dir.as_ref().unwrap_or(&config.work_dir);
                refuse_address(work_dir)?;
                let store =
                    FileStore::open(work_dir).map_err(|error| Failure::new(error.to_string()))?;
                Ok(OpenedStore::Exclusive(Box::new(store)))
            }
            StoreKind::Memory => {
                log::warn!("the state is in memory only: a restart loses all allocations");
                Ok(OpenedStore::Exclusive(Box::new(MemoryStore::new())))
            }
            StoreKind::ZooKeeper(source) => {
                let (store, ensemble) = open_zookeeper(source, self.zk_session_timeout)?;
                Ok(OpenedStore::Shared(Box::new(store), ensemble))
            }
        }
    }

    async fn serve(
        self,
        config: MasterConfig,
        store: OpenedStore,
        socket: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let mut signals = ShutdownSignals::watch()?;
        let mut reload = ReloadSignal::watch()?;
        let metrics = Metrics::new();
        let warnings = metrics.warnings().clone();
        let limits = fit_limits(config.limits, &warnings);
        let credentials =
            config.authentication.as_ref().map(|it| CredentialFile::of_master(&it.file));
        let authentication = read_credentials(config.authentication.as_ref(), &warnings);
        let authentication = authentication.map_err(Failure::new)?;
        let access =
            self.http.access(&config.http, Realms::MASTER, self.insecure_writes, &warnings)?;
        let mut transport = self.addresses.bind(self.listen, None, limits)?;
        self.http.listen_on_unix(&mut transport, socket.as_deref())?;
        let advertise = transport.advertise;
        let progress = ProgressOptions {
            listener: Some(transport.server.local_addr()),
            ..ProgressOptions::default()
        };
        let proof = progress.progress.clone();
        if matches!(store, OpenedStore::Shared(..)) {
            proof.set_deadline(progress_deadline(self.zk_session_timeout));
        }
        let election = (self.zk_session_timeout, advertise, warnings.clone(), proof);
        let (store, contender) = store.join_election(election)?;
        let notifier = notify_service_manager(&progress, &metrics, contender.as_ref(), advertise);
        let options = MasterOptions {
            settings: settings(&config, authentication.clone()),
            store,
            leading: contender.as_ref().map(Contender::leading),
            leader: contender.as_ref().map(Contender::leader),
            lease: contender.as_ref().map(Contender::lease),
            progress,
            read_config: Some(self.reread(config, (access.clone(), authentication), warnings)),
            credentials,
            seed: fastrand::u64(..),
            metrics,
            access,
        };
        let mut host = MasterHost::start(options, transport)
            .map_err(|error| Failure::new(format!("start the thread of the store: {error}")))?;
        log::info!("overlay master at {advertise}: see http://{advertise}/overlay-master/state");
        loop {
            tokio::select! {
                () = signals.received() => {
                    notifier.stop();
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
                    let client = Some("SIGHUP".to_owned());
                    let author = Author { client, ..Author::default() };
                    let request = Request::By(author, Box::new(Request::Reload));
                    // The master logs the result. In another task, since signals are handled
                    // while the file, the state machine or the store hangs.
                    tokio::spawn(host.request(request));
                }
            }
        }
    }

    /// Returns the function that reads the configuration and the credentials again. The store and
    /// its directory cannot change while the master runs.
    fn reread(
        &self,
        config: MasterConfig,
        (access, authentication): (AccessControl, Option<Authentication>),
        warnings: Warnings,
    ) -> ReadConfig {
        let (path, http) = (self.config.clone(), self.http.clone());
        Arc::new(move || {
            let new = reread_config(&path, parse_master)?;
            let new_access = http.read(&new.http).map_err(|reason| vec![reason])?;
            let has_other_store = (&new.store, &new.work_dir) != (&config.store, &config.work_dir);
            let (access, warnings) = (access.clone(), warnings.clone());
            let (authentication, has_other_file) =
                new_authentication(authentication.as_ref(), &config, &new);
            let apply = move || {
                new_access.apply(&access, &warnings);
                if has_other_file {
                    log::warn!("another path of credentials takes effect at the next start");
                }
                if has_other_store {
                    log::warn!("a changed store or work_dir takes effect at the next start");
                }
            };
            let settings = settings(&new, authentication);
            Ok(ReadConfiguration { settings, apply: Box::new(apply) })
        })
    }
}

/// Refuses a work directory that is an address of ZooKeeper. Messages name the directory, and the
/// address may contain a password.
fn refuse_address(work_dir: &Path) -> Result<(), Failure> {
    if may_contain(&work_dir.to_string_lossy()) {
        let reason = "it looks like an address of ZooKeeper: give that as --store";
        return Err(Failure::usage(format!("--work-dir: {reason}")));
    }
    Ok(())
}

/// Returns how agents authenticate with the mode of the new configuration, and whether the new
/// configuration has another file. The file cannot change while the master runs. It is followed on
/// its own.
fn new_authentication(
    current: Option<&Authentication>,
    config: &MasterConfig,
    new: &MasterConfig,
) -> (Option<Authentication>, bool) {
    let path = |config: &MasterConfig| config.authentication.as_ref().map(|it| it.file.clone());
    let mut authentication = current.cloned();
    if let (Some(authentication), Some(new)) = (&mut authentication, &new.authentication) {
        authentication.mode = new.mode;
    }
    (authentication, path(config) != path(new))
}

/// Starts to report to the service manager. The master serves when it listens, has loaded its state,
/// and knows who leads.
fn notify_service_manager(
    progress: &ProgressOptions,
    metrics: &Metrics<Master>,
    contender: Option<&Contender>,
    advertise: SocketAddrV4,
) -> ServiceNotifier {
    let election = contender.map(|contender| (contender.leading(), contender.leader()));
    let (watched, metrics) = (election.clone(), metrics.clone());
    let status = move || {
        let status = metrics.status().unwrap_or("starting");
        let Some((leading, leader)) = &watched else { return format!("{status}: at {advertise}") };
        match &*leader.borrow() {
            _ if *leading.borrow() => format!("{status}: leads at {advertise}"),
            Some(leader) => format!("{status}: {} leads", leader.address),
            None => format!("{status}: no leader is known"),
        }
    };
    let readiness = async move {
        if let Some((leading, leader)) = election {
            elected(leading, leader).await;
        }
    };
    ServiceNotifier::start(Reported { progress: progress.clone(), readiness, status })
}

fn settings(config: &MasterConfig, authentication: Option<Authentication>) -> Settings {
    Settings {
        network: Arc::new(config.network.clone()),
        reuse_after: config.reuse_after,
        kind: MasterKind::Program,
        authentication,
    }
}

/// A store that this master alone opens, or that several masters share.
enum OpenedStore {
    Exclusive(Box<dyn Store>),
    Shared(Box<ZooKeeperStore>, Ensemble),
}

impl OpenedStore {
    /// Joins the election of a shared store as the master at `address`. Returns the store, and the
    /// candidacy.
    fn join_election(
        self,
        (session_timeout, address, warnings, progress): (
            Duration,
            SocketAddrV4,
            Warnings,
            Progress,
        ),
    ) -> Result<(Box<dyn Store>, Option<Contender>), Failure> {
        match self {
            Self::Exclusive(store) => Ok((store, None)),
            Self::Shared(store, ensemble) => {
                log::info!("the state and the election of the leader are in {ensemble}");
                let watched = ElectionWarnings { state: store.znodes(), warnings };
                let election = (ensemble, session_timeout);
                let contender = Contender::start(election, address, watched, Some(progress))
                    .map_err(|error| {
                        Failure::new(format!("start the thread of the election: {error}"))
                    })?;
                let store =
                    ElectionAwareStore::new(*store, contender.withdrawal(), contender.lease());
                Ok((Box::new(store), Some(contender)))
            }
        }
    }
}

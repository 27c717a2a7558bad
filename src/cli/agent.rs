//! `mesos-overlay agent`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::Pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use libprocess::limits::Limits;
use overlay_config::{AgentConfig, CniPlugin, DataplaneKind, HttpConfig, parse_agent};
use overlay_engine::agent::Settings;
use overlay_linux::cni::CniDirectory;
use overlay_linux::docker::Docker;
use overlay_linux::source;
use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use overlay_zookeeper::detector::{Detector, FixedMaster, follow_election};
use overlay_zookeeper::session::SESSION_TIMEOUT_DEFAULT;
use tokio::task::JoinHandle;

use super::Failure;
use super::agent_options::{AgentConfigFile, AgentHostOptions};
use super::http_options::HttpOptions;
use super::master_address::MasterSource;
use super::process::{
    ReloadSignal, ShutdownSignals, TransportOptions, fit_limits, raise_descriptor_limit,
    reread_config, run_to_end,
};
use super::service_notifier::{Reported, ServiceNotifier};
use crate::http::Realms;
use crate::runtime::{
    AccessControl, AddressRemedy, AgentHost, AgentOptions, CredentialFile, DataplaneOptions,
    Metrics, has_address, read_credential,
};

/// Longest wait for the first leader at the start. The agent uses the leader's address only to
/// choose its own.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval of the checks whether the host still has the advertised address.
const ADDRESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Consecutive checks that have to find the same new address. A renewed lease removes the address of
/// the host for a moment.
const ADDRESS_CHECKS: u32 = 3;

/// Run an agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay agent --master 10.0.0.1:5050 --cni-dir /var/lib/mesos/cni
  mesos-overlay agent --master zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay --cni-dir /var/lib/mesos/cni
  mesos-overlay agent --config agent.json --no-docker

Flags have precedence over the configuration file. The agent stops cleanly at SIGTERM, and keeps the
container networks.")]
pub(super) struct AgentCommand {
    #[command(flatten)]
    file: AgentConfigFile,
    /// The master to register with; or zk://[USER:PASSWORD@]HOST:PORT,…/PATH of an election of
    /// several masters, overlay masters or Mesos masters; or file:///PATH of a file with one of
    /// these addresses
    // The value may contain a password, which the help must not show.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    host: AgentHostOptions,
    /// What creates the tunnels to other agents: vxlan, this agent; or external, another program
    /// such as dcos-net [default: vxlan]
    #[arg(long, env = "MESOS_OVERLAY_DATAPLANE", value_name = "KIND", value_enum)]
    dataplane: Option<Dataplane>,
    /// The address on which to accept messages and HTTP requests
    #[arg(
        long,
        env = "MESOS_OVERLAY_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:5051"
    )]
    listen: SocketAddrV4,
    #[command(flatten)]
    addresses: TransportOptions,
    #[command(flatten)]
    http: HttpOptions,
}

/// The program that creates the tunnels.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dataplane {
    Vxlan,
    External,
}

impl AgentCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        raise_descriptor_limit();
        let config = self.configuration()?;
        let mut settings = Settings::from(&config);
        let dataplane = config.dataplane;
        let verify_interval = config.verify_interval;
        let cni = move || {
            CniDirectory::new(
                config.cni_dir.clone(),
                config.cni_data_dir.clone(),
                config.cni_plugins_dir.clone(),
                config.port_mapper,
            )
            .with_overlay_plugin(config.cni_plugin == CniPlugin::Overlay)
        };
        let master = config
            .master
            .ok_or_else(|| Failure::new("no master: give --master IP:PORT or the key 'master'"))?;
        let master =
            Master::read(&master).map_err(|failure| Failure::new(format!("master: {failure}")))?;
        cni().prepare().map_err(|error| Failure::new(error.to_string()))?;
        let docker = Docker::new(config.docker, settings.options.command_timeout);
        let metrics = Metrics::new();
        let warnings = metrics.warnings().clone();
        let limits = fit_limits(config.limits, &warnings);
        let credential =
            config.authentication.as_ref().map(|it| CredentialFile::of_agent(&it.file));
        settings.authentication =
            read_credential(config.authentication.as_ref(), &warnings).map_err(Failure::new)?;
        let access = self.http.access(&config.http, Realms::AGENT, false, &warnings)?;
        let control = access.clone();
        let follows_host = self.addresses.follows_host(self.listen);
        let address_remedy = if follows_host { AddressRemedy::Follow } else { AddressRemedy::Flag };
        let options = move |master, ports| AgentOptions {
            settings: settings.clone(),
            master,
            cni: cni(),
            docker: docker.clone(),
            dataplane: DataplaneOptions::new(&dataplane, ports, verify_interval),
            credential: credential.clone(),
            seed: fastrand::u64(..),
            metrics: metrics.clone(),
            access: access.clone(),
            address_remedy,
        };
        run_to_end(self.serve(limits, (master, warnings), control, options))
    }

    /// Reads the access lists and the credentials again, on a thread of the blocking pool: the
    /// files may be on a disk that hangs.
    fn reload_access(&self, control: &AccessControl, warnings: &Warnings) -> JoinHandle<()> {
        let (path, http) = (self.file.config.clone(), self.http.clone());
        let (control, warnings) = (control.clone(), warnings.clone());
        tokio::task::spawn_blocking(move || {
            let config = match &path {
                Some(path) => reread_config(path, parse_agent).map(|config| config.http),
                None => Ok(HttpConfig::default()),
            };
            let read = config.and_then(|config| http.read(&config).map_err(|reason| vec![reason]));
            match read {
                Ok(access) => access.apply(&control, &warnings),
                Err(problems) => {
                    for problem in problems {
                        log::error!("acls, hostnames and credentials stay as they are: {problem}");
                    }
                }
            }
        })
    }

    fn configuration(&self) -> Result<AgentConfig, Failure> {
        let mut config = self.file.read()?;
        if let Some(master) = &self.master {
            config.master = Some(master.clone());
        }
        if let Some(dataplane) = self.dataplane {
            config.dataplane.kind = match dataplane {
                Dataplane::Vxlan => DataplaneKind::Vxlan,
                Dataplane::External => DataplaneKind::External,
            };
        }
        if let Some(cni_dir) = &self.file.cni_dir {
            config
                .set_cni_dir(cni_dir)
                .map_err(|reason| Failure::usage(format!("--cni-dir: {reason}")))?;
        }
        self.host.apply(&mut config)?;
        Ok(config)
    }
}

/// How the agent finds its master.
enum Master {
    Fixed(FixedMaster),
    Elected(Ensemble),
}

impl Master {
    fn read(text: &str) -> Result<Self, Failure> {
        match MasterSource::read(text)? {
            MasterSource::Fixed(master) => Ok(Self::Fixed(master)),
            MasterSource::Elected(ensemble) => Ok(Self::Elected(ensemble)),
            MasterSource::Socket(_) => Err(Failure::new(
                "an agent registers over the network, not over a Unix socket: give IP:PORT or an \
                 election",
            )),
        }
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(master) => master.fmt(f),
            Self::Elected(ensemble) => ensemble.fmt(f),
        }
    }
}

/// A running detection of the master.
struct Detection {
    detector: Detector,
    /// Detects the master while the caller polls this future.
    work: Pin<Box<dyn Future<Output = Infallible>>>,
    /// The master's address, if it was known within [`DETECTION_TIMEOUT`].
    address: Option<SocketAddrV4>,
}

/// Starts to detect the master.
async fn detect(master: Master, warnings: Warnings) -> Detection {
    match master {
        Master::Fixed(master) => {
            let address = master.resolve().await.ok();
            let work = Box::pin(std::future::pending());
            Detection { detector: Detector::Fixed(master), work, address }
        }
        Master::Elected(ensemble) => {
            let (election, work) = follow_election(ensemble, SESSION_TIMEOUT_DEFAULT, warnings);
            let mut work = Box::pin(work);
            let mut found = election.leader.clone();
            let address = tokio::select! {
                found = found.wait_for(Option::is_some) => found.ok().and_then(|found| *found),
                never = &mut work => match never {},
                () = tokio::time::sleep(DETECTION_TIMEOUT) => None,
            };
            Detection { detector: Detector::Elected(election), work, address }
        }
    }
}

/// How the agent of one address ended.
enum End {
    /// A signal requested the end of the program.
    Stopped,
    /// The host has lost the address, and has this address instead.
    Moved(Ipv4Addr),
}

impl AgentCommand {
    async fn serve(
        &self,
        limits: Limits,
        (master, warnings): (Master, Warnings),
        access: AccessControl,
        options: impl Fn(Detector, BTreeSet<u16>) -> AgentOptions,
    ) -> Result<(), Failure> {
        let mut signals = ShutdownSignals::watch()?;
        let mut reload = ReloadSignal::watch()?;
        let name = master.to_string();
        // A host with several addresses advertises the one from which the master is reached.
        let Detection { detector, mut work, mut address } = detect(master, warnings.clone()).await;
        let mut listen = self.listen;
        let mut reloading = None;
        loop {
            let mut transport = self.addresses.bind(listen, address, limits)?;
            self.http.listen_on_unix(&mut transport, None)?;
            listen.set_port(transport.server.local_addr().port());
            let advertise = transport.advertise;
            log::info!(
                "overlay agent at {advertise}, master {name}: see \
                 http://{advertise}/overlay-agent/overlay"
            );
            let ports = [listen.port(), advertise.port()].into();
            let mut host = AgentHost::start(options(detector.clone(), ports), transport)
                .map_err(|error| Failure::new(format!("start a thread of the agent: {error}")))?;
            let notifier = notify_service_manager(&host, &name);
            let follows_host = self.addresses.follows_host(listen);
            let end = loop {
                tokio::select! {
                    () = signals.received() => {
                        notifier.stop();
                        break End::Stopped;
                    }
                    () = host.stopped() => {
                        return Err(Failure::new("the agent stopped by itself: this is a bug"));
                    }
                    // One after the other: otherwise earlier content could be applied last.
                    () = reload.received(), if reloading.is_none() => {
                        reloading = Some(self.reload_access(&access, &warnings));
                    }
                    () = ended(&mut reloading) => reloading = None,
                    never = &mut work => match never {},
                    moved = new_address(*advertise.ip(), &detector), if follows_host => {
                        break End::Moved(moved);
                    }
                }
            };
            host.stop().await;
            let End::Moved(moved) = end else { return Ok(()) };
            let old = advertise.ip();
            log::warn!(
                "this host has the address {moved} instead of {old}: the agent registers as \
                 {moved} from now on; the master keeps the record of {old}: if no other host has \
                 that address, release it with 'mesos-overlay forget {old}'"
            );
            address = master_address(&detector).await;
        }
    }
}

/// Starts to report to the service manager. The agent serves when it listens and its state machine
/// answers. It does not wait for a master: Docker and the Mesos agent start after it.
fn notify_service_manager(host: &AgentHost, master: &str) -> ServiceNotifier {
    let (metrics, master) = (host.metrics(), master.to_owned());
    let status = move || {
        let status = metrics.status().unwrap_or("starting");
        format!("{status}: master {master}")
    };
    let readiness = std::future::ready(());
    ServiceNotifier::start(Reported { progress: host.progress(), readiness, status })
}

/// Waits until a task has ended. Without a task, the future never completes.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        // A panic is in the log.
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

/// Returns the address of the master, as far as it is known now.
async fn master_address(detector: &Detector) -> Option<SocketAddrV4> {
    match detector {
        Detector::Fixed(master) => master.resolve().await.ok(),
        Detector::Elected(election) => *election.leader.borrow(),
    }
}

/// Waits until the host has lost the address `own`, and has another address that lasts.
async fn new_address(own: Ipv4Addr, detector: &Detector) -> Ipv4Addr {
    let (mut candidate, mut checks) = (None, 0);
    loop {
        tokio::time::sleep(ADDRESS_CHECK_INTERVAL).await;
        // Nothing is known about the address while the process has no free descriptors.
        let found = if has_address(own.into()) == Some(false) {
            let new = source::own_address(master_address(detector).await).ok();
            new.filter(|new| *new != own && !new.is_loopback())
        } else {
            None
        };
        checks = if found == candidate { checks + 1 } else { 1 };
        candidate = found;
        if let Some(new) = candidate
            && checks >= ADDRESS_CHECKS
        {
            return new;
        }
    }
}

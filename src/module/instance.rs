//! A module in a Mesos process.

use std::fmt;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use overlay_types::addr::Upid;
use overlay_wire as wire;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::configured::{Gauges, Route, Start, Task};
use super::http::RequestParts;
use super::kind::Kind;
use super::parameters::Inputs;
use super::realm::{Access, realm};
use super::replicated_log::OpenLog;
use super::{agent, http, master, panic};
use crate::http::MesosClient;
use crate::runtime::gateway::{Gateway, Process, Responder};

/// Timeout for the end of a module. Mesos blocks during that time.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Timeout for threads that still run afterwards.
const ABANDON_MAX: Duration = Duration::from_millis(500);

/// A module of Mesos.
pub struct Module {
    kind: Kind,
    gateway: Arc<Gateway>,
    gauges: Arc<dyn Gauges>,
    leader: watch::Sender<Option<SocketAddrV4>>,
    election: Option<String>,
    lifecycle: Mutex<Lifecycle>,
    _claim: Claim,
}

enum Lifecycle {
    Created(Runtime, Start),
    Started(Runtime, oneshot::Sender<()>, JoinHandle<()>),
    Stopped,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Module {
    /// Creates a module from its parameters. Nothing runs yet. `open_log` opens a replicated log of
    /// Mesos.
    ///
    /// # Errors
    /// When a parameter or a file is invalid, or the process has a module of this kind already. All
    /// problems are logged, and the error summarizes them.
    pub fn create(kind: Kind, inputs: &Inputs, open_log: OpenLog) -> Result<Self, String> {
        let claim = Claim::of(kind)?;
        let (leader, leader_changes) = watch::channel(None);
        let configured = match kind {
            Kind::Master => master::configure(inputs, leader_changes, open_log)?,
            Kind::Agent => agent::configure(inputs, leader_changes)?,
        };
        let runtime = runtime(kind).map_err(|error| format!("{kind}: start threads: {error}"))?;
        Ok(Self {
            kind,
            gateway: configured.gateway,
            gauges: configured.gauges,
            leader,
            election: configured.election,
            lifecycle: Mutex::new(Lifecycle::Created(runtime, configured.start)),
            _claim: claim,
        })
    }

    /// Returns the ID of the module's libprocess process.
    #[must_use]
    pub const fn process(&self) -> &'static str {
        self.kind.process()
    }

    /// Returns the names of the messages that the module handles.
    #[must_use]
    pub const fn messages(&self) -> &'static [&'static str] {
        &wire::MESSAGE_NAMES
    }

    /// Returns the connection to the libprocess process.
    #[must_use]
    pub const fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Returns the HTTP routes of the module.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let executable = std::env::current_exe().ok();
        let route = |&(path, access, help): &(&'static str, Access, &'static str)| Route {
            path,
            realm: realm(self.kind, access, executable.as_deref()),
            help,
        };
        match self.kind {
            Kind::Master => master::ROUTES.iter().map(route).collect(),
            Kind::Agent => agent::ROUTES.iter().map(route).collect(),
        }
    }

    /// Returns the metrics for Mesos.
    #[must_use]
    pub fn gauges(&self) -> &dyn Gauges {
        self.gauges.as_ref()
    }

    /// Returns the `zk://` URL of the election that the module follows, see [`Self::elected`].
    #[must_use]
    pub fn election(&self) -> Option<&str> {
        self.election.as_deref()
    }

    /// Starts the module. `process` sends its messages, and `address` is its advertised address.
    pub fn start(&self, process: Arc<dyn Process>, address: SocketAddrV4) {
        let mut lifecycle = self.lifecycle.lock();
        *lifecycle = match std::mem::replace(&mut *lifecycle, Lifecycle::Stopped) {
            Lifecycle::Created(runtime, start) => {
                log::info!("{} at {address}", self.kind);
                self.gateway.attach(process);
                let (end, ended) = oneshot::channel();
                let task =
                    runtime.spawn(run(self.kind, start(address, ended), Arc::clone(&self.gateway)));
                Lifecycle::Started(runtime, end, task)
            }
            other => other,
        };
    }

    /// Handles a message of the process `from`.
    pub fn message(&self, from: &str, name: &str, body: &[u8]) {
        panic::guarded("handle a message", (), || {
            #[cfg(feature = "faults")]
            assert!(!from.contains("overlay-test-panic-at-border"), "asked to");
            self.gateway.deliver(from, self.process(), name, body);
        });
    }

    /// Handles a request of `client`.
    pub fn request(&self, parts: RequestParts<'_>, client: MesosClient, reply: Box<dyn Responder>) {
        panic::guarded("handle a request", (), || {
            match http::assemble_request(parts, &self.gateway) {
                Ok(request) => self.gateway.request(request, client, reply),
                Err(response) => reply.respond(*response),
            }
        });
    }

    /// Handles the end of the link to the process `pid`.
    pub fn exited(&self, pid: &str) {
        if let Ok(pid) = pid.parse::<Upid>() {
            self.gateway.exited(pid.address);
        }
    }

    /// Handles a change of the leading master, given as a UPID of libprocess.
    pub fn elected(&self, pid: Option<&str>) {
        let leader = pid.and_then(|pid| match pid.parse::<Upid>() {
            Ok(pid) => Some(pid.address),
            Err(reason) => {
                log::error!(
                    "invalid address of the leading master: {reason}: waiting for another leader"
                );
                None
            }
        });
        self.leader.send_replace(leader);
    }

    /// Stops the module. After the return, the module no longer calls Mesos.
    pub fn stop(&self) {
        let lifecycle = std::mem::replace(&mut *self.lifecycle.lock(), Lifecycle::Stopped);
        let runtime = match lifecycle {
            Lifecycle::Started(runtime, end, task) => {
                drop(end);
                let stopped =
                    runtime.block_on(async { tokio::time::timeout(STOP_MAX, task).await });
                if stopped.is_err() {
                    log::warn!(
                        "{}: the module has not ended in {STOP_MAX:?}: Mesos continues without it",
                        self.kind
                    );
                }
                Some(runtime)
            }
            Lifecycle::Created(runtime, _) => Some(runtime),
            Lifecycle::Stopped => None,
        };
        self.gateway.close();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(ABANDON_MAX);
        }
        self.gateway.detach();
    }
}

/// Runs the task of a module. If the task panics, which is a defect of the supervisor, the gateway
/// is closed so that no request waits for a response.
async fn run(kind: Kind, task: Task, gateway: Arc<Gateway>) {
    if tokio::spawn(task).await.is_err() {
        log::error!("{kind}: the module has ended, which is a defect: restart Mesos");
    }
    gateway.close();
}

impl Drop for Module {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ensures that the process has at most one module of each kind.
struct Claim(Kind);

impl Claim {
    fn of(kind: Kind) -> Result<Self, String> {
        if kind.claimed().swap(true, Ordering::AcqRel) {
            let names = match kind {
                Kind::Master => {
                    "com_mesosphere_mesos_MasterOverlayHelper and \
                                 com_mesosphere_mesos_OverlayMasterManager"
                }
                Kind::Agent => {
                    "com_mesosphere_mesos_AgentOverlayHelper and \
                                com_mesosphere_mesos_OverlayAgentManager"
                }
            };
            return Err(format!(
                "{kind}: this process has one already: {names} are two names of one module: load one"
            ));
        }
        Ok(Self(kind))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed().store(false, Ordering::Release);
    }
}

/// Creates the threads of the module. They must not handle signals of Mesos, so this function
/// blocks the signals while it creates the threads: a thread inherits the mask of its creator.
fn runtime(kind: Kind) -> std::io::Result<Runtime> {
    let mut blocked = SigSet::all();
    for fault in [Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGTRAP]
    {
        // Mesos logs a stack trace for these signals, which it cannot if they are blocked.
        blocked.remove(fault);
    }
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
    // Linux truncates the name of a thread to 15 characters.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(kind.process())
        .enable_all()
        .build();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    runtime
}

//! One module in a Mesos process.

use std::fmt;
use std::future::Future;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::http::Parts;
use super::log_place::OpenLog;
use super::parameters::Inputs;
use super::realm::{Access, realm};
use super::{agent, guard, http, master};
use crate::addr::Upid;
use crate::machine::Machine;
use crate::runtime::Metrics;
use crate::transport::mesos::{Gateway, Process, Responder};
use crate::wire;

/// How long the end of a part may take: the agent waits for it.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How long threads that still run then are waited for.
const ABANDON_MAX: Duration = Duration::from_millis(500);

/// Which module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The master's.
    Master,
    /// The agent's.
    Agent,
}

impl Kind {
    /// Id of its libprocess process.
    #[must_use]
    pub const fn process(self) -> &'static str {
        match self {
            Self::Master => Upid::MASTER,
            Self::Agent => Upid::AGENT,
        }
    }

    /// Whether a module of this kind lives in this process.
    fn claimed(self) -> &'static AtomicBool {
        static MASTER: AtomicBool = AtomicBool::new(false);
        static AGENT: AtomicBool = AtomicBool::new(false);
        match self {
            Self::Master => &MASTER,
            Self::Agent => &AGENT,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "overlay master",
            Self::Agent => "overlay agent",
        })
    }
}

/// An HTTP route of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Path below the id of the process.
    pub path: &'static str,
    /// Mesos' authentication realm.
    pub realm: &'static str,
    /// What `/help` says of it, in Markdown.
    pub help: &'static str,
}

/// What runs a host until it is told to end.
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes the task, when the address of the process is known.
pub(super) type Start = Box<dyn FnOnce(SocketAddrV4, oneshot::Receiver<()>) -> Task + Send>;

/// A configured module: what runs, how it is reached, and which leader it follows.
pub(super) struct Configured {
    pub(super) gateway: Arc<Gateway>,
    pub(super) start: Start,
    /// The `zk://` URL whose leader the part wants to be told.
    pub(super) election: Option<String>,
    pub(super) gauges: Arc<dyn Gauges>,
}

/// Numbers for the metrics of Mesos, read on any thread without waiting.
pub trait Gauges: Send + Sync {
    /// Their names in `/metrics/snapshot`.
    fn names(&self) -> Vec<String>;

    /// The number at this index of the names.
    fn get(&self, index: usize) -> f64;
}

impl<M: Machine> Gauges for Metrics<M> {
    fn names(&self) -> Vec<String> {
        let catalogue = Self::catalogue();
        let name = |name| format!("{}{name}", catalogue.mesos_prefix);
        catalogue.metrics.iter().map(|metric| name(metric.name)).collect()
    }

    fn get(&self, index: usize) -> f64 {
        Self::get(self, index)
    }
}

/// One module.
pub struct Part {
    kind: Kind,
    gateway: Arc<Gateway>,
    gauges: Arc<dyn Gauges>,
    leader: watch::Sender<Option<SocketAddrV4>>,
    election: Option<String>,
    life: Mutex<Life>,
    _claim: Claim,
}

enum Life {
    Created(Runtime, Start),
    Started(Runtime, oneshot::Sender<()>, JoinHandle<()>),
    Stopped,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Part {
    /// Makes a module from what Mesos was configured with. Nothing runs yet. `open_log` opens a
    /// replicated log of Mesos.
    ///
    /// # Errors
    /// When a parameter or a file is wrong, or the process has this module already. All problems
    /// are in the log then, and the text is the conclusion.
    pub fn create(kind: Kind, inputs: &Inputs, open_log: OpenLog) -> Result<Self, String> {
        let claim = Claim::of(kind)?;
        let (leader, leader_seen) = watch::channel(None);
        let configured = match kind {
            Kind::Master => master::configure(inputs, leader_seen, open_log)?,
            Kind::Agent => agent::configure(inputs, leader_seen)?,
        };
        let runtime = runtime(kind).map_err(|error| format!("{kind}: start threads: {error}"))?;
        Ok(Self {
            kind,
            gateway: configured.gateway,
            gauges: configured.gauges,
            leader,
            election: configured.election,
            life: Mutex::new(Life::Created(runtime, configured.start)),
            _claim: claim,
        })
    }

    /// Id of its libprocess process.
    #[must_use]
    pub const fn process(&self) -> &'static str {
        self.kind.process()
    }

    /// The names of the messages that it takes.
    #[must_use]
    pub const fn messages(&self) -> &'static [&'static str] {
        &wire::MESSAGE_NAMES
    }

    /// The way to the Mesos process, as long as that is there.
    #[must_use]
    pub const fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Its HTTP routes.
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

    /// What it counts, for Mesos' metrics.
    #[must_use]
    pub fn gauges(&self) -> &dyn Gauges {
        self.gauges.as_ref()
    }

    /// The `zk://` URL of the election that it wants to follow, see [`Self::elected`].
    #[must_use]
    pub fn election(&self) -> Option<&str> {
        self.election.as_deref()
    }

    /// Starts it. `process` sends for it, and others know it under `address`.
    pub fn start(&self, process: Arc<dyn Process>, address: SocketAddrV4) {
        let mut life = self.life.lock();
        *life = match std::mem::replace(&mut *life, Life::Stopped) {
            Life::Created(runtime, start) => {
                log::info!("{} at {address}", self.kind);
                self.gateway.attach(process);
                let (end, ended) = oneshot::channel();
                let task =
                    runtime.spawn(run(self.kind, start(address, ended), Arc::clone(&self.gateway)));
                Life::Started(runtime, end, task)
            }
            other => other,
        };
    }

    /// Takes a message of the process `from`.
    pub fn message(&self, from: &str, name: &str, body: &[u8]) {
        guard::guarded("take a message", (), || {
            #[cfg(feature = "faults")]
            assert!(!from.contains("overlay-test-panic-at-border"), "asked to");
            self.gateway.deliver(from, self.process(), name, body);
        });
    }

    /// Takes a request of the client `peer`.
    pub fn request(&self, parts: Parts<'_>, peer: &str, reply: Box<dyn Responder>) {
        guard::guarded("take a request", (), || match http::request(parts, &self.gateway) {
            Ok(request) => self.gateway.request(request, peer, reply),
            Err(response) => reply.respond(*response),
        });
    }

    /// The process `pid` to which there was a link is gone.
    pub fn exited(&self, pid: &str) {
        if let Ok(pid) = pid.parse::<Upid>() {
            self.gateway.exited(pid.address);
        }
    }

    /// Says who leads now, as a UPID of libprocess, if anybody does.
    pub fn elected(&self, pid: Option<&str>) {
        let leader = pid.and_then(|pid| match pid.parse::<Upid>() {
            Ok(pid) => Some(pid.address),
            Err(reason) => {
                log::error!("the leading master calls itself {reason}: waiting for another one");
                None
            }
        });
        self.leader.send_replace(leader);
    }

    /// Stops it, and returns when nothing of it calls Mesos any more.
    pub fn stop(&self) {
        let life = std::mem::replace(&mut *self.life.lock(), Life::Stopped);
        let runtime = match life {
            Life::Started(runtime, end, task) => {
                drop(end);
                let stopped =
                    runtime.block_on(async { tokio::time::timeout(STOP_MAX, task).await });
                if stopped.is_err() {
                    log::warn!(
                        "{}: it has not ended in {STOP_MAX:?}: going on without it",
                        self.kind
                    );
                }
                Some(runtime)
            }
            Life::Created(runtime, _) => Some(runtime),
            Life::Stopped => None,
        };
        self.gateway.close();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(ABANDON_MAX);
        }
        self.gateway.detach();
    }
}

/// Runs the task of a part. If it ends by itself, which only a defect in what keeps hosts running
/// can do, nobody is to wait for an answer.
async fn run(kind: Kind, task: Task, gateway: Arc<Gateway>) {
    if tokio::spawn(task).await.is_err() {
        log::error!("{kind}: it has ended, a defect, until Mesos is started again");
    }
    gateway.close();
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The right to be the only module of its kind in the process.
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

/// Threads of our own, on which no signal of Mesos is ever handled: a thread inherits the mask of
/// the one that makes it.
fn runtime(kind: Kind) -> std::io::Result<Runtime> {
    let mut ours = SigSet::all();
    for fault in [Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGTRAP]
    {
        // Of a fault Mesos shows a stack trace, which it could not of one that is blocked.
        ours.remove(fault);
    }
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ours), Some(&mut before))?;
    // Linux shows the first 15 letters of a thread's name.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(kind.process())
        .enable_all()
        .build();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    runtime
}

//! A module in a Mesos process.

use std::fmt;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use once_cell::sync::OnceCell;
use overlay_types::addr::Upid;
use overlay_types::escape::bounded_line;
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
use super::{agent, http, logger, master, panic};
use crate::http::MesosClient;
use crate::runtime::gateway::{Gateway, Process, Responder};

/// Longest wait for the end of a module, and then for the end of its threads. A thread of
/// libprocess, which all of Mesos shares, blocks during that time.
const STOP_MAX: Duration = Duration::from_millis(20);
const THREADS_END_MAX: Duration = Duration::from_millis(10);
/// Longest time for a module to end, after Mesos has continued without it.
const BACKGROUND_STOP_MAX: Duration = Duration::from_secs(5);
/// Longest time for threads that still run afterwards.
const ABANDON_MAX: Duration = Duration::from_millis(500);

/// Longest part of an address in a message, in characters. A scope is part of an IPv6 address.
const ADDRESS_MAX: usize = 100;

/// A module of Mesos.
pub struct Module {
    kind: Kind,
    gateway: Arc<Gateway>,
    gauges: Arc<dyn Gauges>,
    leader: watch::Sender<Option<SocketAddrV4>>,
    election: Option<String>,
    lifecycle: Mutex<Lifecycle>,
    /// Why the module cannot run in this Mesos.
    failure: OnceCell<String>,
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
            failure: OnceCell::new(),
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

    /// Handles an address of Mesos that is no IPv4 address. The module does not start, and its
    /// health says why.
    pub fn refuse_address(&self, address: &str) {
        let address = bounded_line(address, ADDRESS_MAX);
        let reason = format!(
            "Mesos advertises {address}, which is no IPv4 address, and the overlay protocol has \
             only IPv4 addresses: start Mesos with an IPv4 address as --advertise_ip or --ip"
        );
        log::error!("{}: not started: {reason}", self.kind);
        let _ = self.failure.set(reason);
        self.stop();
        // Mesos runs on, and its process answers requests until `stop`.
        self.gateway.attach(Arc::new(FailedProcess));
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
            if let Some(reason) = self.failure.get() {
                return reply.respond(http::failed_response(parts.path, reason));
            }
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

    /// Stops the module. After the return, the module no longer calls Mesos. A module that has not
    /// ended by then ends on its own threads.
    pub fn stop(&self) {
        let lifecycle = std::mem::replace(&mut *self.lifecycle.lock(), Lifecycle::Stopped);
        match lifecycle {
            Lifecycle::Started(runtime, end, task) => {
                drop(end);
                // A wait in the runtime would last for ever if the threads of the runtime hang.
                let (ending, ended) = mpsc::channel::<()>();
                runtime.spawn(async move {
                    let _ = task.await;
                    drop(ending);
                });
                let has_ended = ended.recv_timeout(STOP_MAX) == Err(RecvTimeoutError::Disconnected);
                self.leave_mesos();
                if has_ended {
                    runtime.shutdown_timeout(THREADS_END_MAX);
                } else {
                    end_in_background(self.kind, runtime, ended);
                }
            }
            Lifecycle::Created(runtime, _) => {
                self.leave_mesos();
                runtime.shutdown_timeout(THREADS_END_MAX);
            }
            Lifecycle::Stopped => self.leave_mesos(),
        }
    }

    fn leave_mesos(&self) {
        self.gateway.close();
        self.gateway.detach();
        logger::drain();
    }
}

/// The process of a module that cannot run in this Mesos. It sends nothing.
struct FailedProcess;

impl Process for FailedProcess {
    fn send(&self, _: &Upid, _: &'static str, _: &[u8]) {}

    fn link(&self, _: &Upid) {}
}

/// Ends a runtime on a thread of its own, after the task of the module has ended.
fn end_in_background(kind: Kind, runtime: Runtime, ended: mpsc::Receiver<()>) {
    let runtime = Arc::new(Mutex::new(Some(runtime)));
    let shared = Arc::clone(&runtime);
    let end = move || {
        if ended.recv_timeout(BACKGROUND_STOP_MAX) == Err(RecvTimeoutError::Timeout) {
            log::warn!("{kind}: the module has not ended in {BACKGROUND_STOP_MAX:?}: abandoned");
        }
        let runtime = shared.lock().take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(ABANDON_MAX);
        }
    };
    let name = format!("{}-end", kind.process());
    let thread = with_signals_blocked(|| std::thread::Builder::new().name(name).spawn(end));
    if let Err(reason) = thread {
        log::error!("{kind}: start a thread: {reason}: the module is abandoned");
        let runtime = runtime.lock().take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
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
        panic::guarded("stop", (), || self.stop());
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

/// Creates the threads of the module.
fn runtime(kind: Kind) -> std::io::Result<Runtime> {
    // Linux truncates the name of a thread to 15 characters.
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(2).thread_name(kind.process()).enable_all();
    with_signals_blocked(|| builder.build())
}

/// Creates threads that must not handle signals of Mesos: blocks the signals meanwhile, since a
/// thread inherits the mask of its creator.
pub(super) fn with_signals_blocked<T>(
    create: impl FnOnce() -> std::io::Result<T>,
) -> std::io::Result<T> {
    let mut blocked = SigSet::all();
    for fault in [Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGTRAP]
    {
        // Mesos logs a stack trace for these signals, which it cannot if they are blocked.
        blocked.remove(fault);
    }
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
    let created = create();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    created
}

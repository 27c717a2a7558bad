//! Runs the state machines: feeds events to them and executes their commands. The runtime makes no
//! decisions.
//!
//! ```text
//!   transport ─┐                                     ┌─▶ sender: messages, links
//!   http      ─┼─▶ Inbox ─▶ drive: handle, poll ─────┼─▶ store thread (master)
//!   adapters  ─┘    ▲                                ├─▶ cni, docker, detector (agent)
//!                   └────────── results ◀────────────┘
//! ```
//! Each state machine runs in one task, which never blocks. Slow operations run in other tasks or
//! threads, and their results come back as events.

mod access_control;
mod address_counter;
mod agent;
mod authentication_mark;
mod change_listeners;
mod container_networks;
mod credential_file;
mod dataplane_options;
mod dataplane_thread;
mod dataplane_worker;
mod election_aware_store;
mod foreign_rules_thread;
pub mod gateway;
mod inbox;
mod lease_reaper;
mod local_masters;
mod master;
mod memory;
mod metrics;
mod own_address;
mod probe_thread;
mod progress;
mod sealed_sender;
mod service_tasks;
mod store_thread;
mod supervisor;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use libprocess::RequestClass;
use overlay_engine::agent::Agent;
use overlay_engine::master::Master;
use overlay_engine::metrics::{HostCounters, LogTally};
use overlay_engine::state_machine::StateMachine;
use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::protocol::{
    AuthenticityFault, Author, Message, MessageKind, Principal, RejectedMessages, RequestId, Seal,
};
use overlay_types::warnings::{Severity, Warnings};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::gateway::AdmissionRules;
use self::inbox::{Input, PendingReplies};
use self::metrics::Publisher;
use self::progress::Probe;
use crate::http::{Access, Format, Request, Response};
use crate::logging::reader_problem;
pub use access_control::AccessControl;
pub use agent::{AgentHost, AgentOptions};
pub use authentication_mark::AuthenticationMark;
pub use credential_file::{CredentialFile, ReadCredentials, read_credential, read_credentials};
pub use dataplane_options::DataplaneOptions;
pub use election_aware_store::ElectionAwareStore;
pub use inbox::Stopped;
pub use master::{MasterHost, MasterOptions, ReadConfig, ReadConfiguration};
pub use metrics::Metrics;
pub use own_address::AddressRemedy;
pub(crate) use own_address::has_address;
pub use progress::ProgressOptions;
pub use supervisor::{Supervised, supervise};

/// Capacity of the queue of a state machine. When the queue is full, the senders wait.
const INBOX_SIZE: usize = 4096;
/// Largest number of events that are received at a time.
const BATCH_SIZE: usize = 128;

/// A state machine that is reached over libprocess and HTTP.
trait Service: StateMachine<Event: Send, Command: Send> + Send + 'static {
    type Request: Send;
    type Reply: Send + 'static;

    /// The id of the libprocess process.
    const PROCESS: &'static str;

    /// Whether the service handles messages of this kind.
    fn handles(kind: MessageKind) -> bool;

    /// Whether the service accepts messages of this kind from this sender.
    fn accepts(&self, from: &Upid, kind: MessageKind) -> bool;

    /// Whether the service accepts messages of this kind from this sender, if its seal is as good as
    /// `is_authenticated` says.
    fn trusts(&self, from: &Upid, kind: MessageKind, is_authenticated: bool) -> bool;

    /// Returns the event of a decoded message. `principal` is that of an authenticated sender, if
    /// senders have principals.
    fn message(from: Upid, principal: Option<Principal>, message: Message) -> Self::Event;
    /// Returns the event of a message that is not authentic.
    fn unauthentic(from: Upid, kind: MessageKind, fault: AuthenticityFault) -> Self::Event;
    /// Returns the event of a message that the service does not handle or accept.
    fn ignored(from: Upid, kind: MessageKind) -> Self::Event;
    /// Returns the event of a message that cannot be decoded.
    fn malformed(from: Upid, name: String, reason: String) -> Self::Event;
    /// Returns the event of a lost link to the process at `address`, if the service needs one.
    fn exited(address: SocketAddrV4) -> Option<Self::Event>;
    /// Returns the event of an HTTP request.
    fn request(id: RequestId, request: Self::Request) -> Self::Event;

    /// Fills in the fields of a reply that only the runtime knows.
    fn complete(reply: &mut Self::Reply, runtime: RuntimeStatus);

    /// Returns the access that a request to this path needs.
    fn access(path: &str) -> Access;
    /// Describes the change that a request makes; `None` if it only reads.
    fn describe_change(request: &Self::Request) -> Option<String>;
    /// Returns a request that names its client.
    fn with_author(request: Self::Request, author: Author) -> Self::Request;

    fn classify(method: &Method, path: &str) -> RequestClass;
    fn route(request: &Request) -> Result<(Self::Request, Format), Box<Response>>;
    fn render(reply: &Self::Reply, format: &Format) -> Response;
}

/// The state of the runtime that replies of a state machine include.
struct RuntimeStatus {
    refused: RejectedMessages,
    counters: HostCounters,
    /// Standing warnings.
    warnings: Vec<String>,
    /// The effect of the warnings on the status.
    severity: Option<Severity>,
}

/// Returns the effect of the warnings, and of a log that loses lines, on the status.
fn worst_severity(warnings: &Warnings) -> Option<Severity> {
    warnings.worst().or_else(|| reader_problem().map(|_| Severity::Degraded))
}

impl RuntimeStatus {
    fn new(refused: RejectedMessages, counters: HostCounters, warnings: &Warnings) -> Self {
        let severity = worst_severity(warnings);
        let warnings = warnings.texts().into_iter().chain(reader_problem()).collect();
        Self { refused, counters, warnings, severity }
    }

    /// Completes a health reply. Returns the effect of the warnings on its status.
    fn complete_health(
        self,
        (refused, log): (&mut RejectedMessages, &mut LogTally),
        problems: &mut Vec<String>,
    ) -> Option<Severity> {
        *refused = self.refused.sanitized();
        *log = self.counters.log;
        problems.extend(self.warnings);
        self.severity
    }

    /// Completes a metrics reply. Returns the effect of the warnings on its status.
    fn complete_metrics(self, counters: &mut HostCounters) -> Option<Severity> {
        *counters = self.counters;
        self.severity
    }
}

/// Checks the seals of messages.
trait Authenticator {
    /// Whether messages may have seals.
    fn is_on(&self) -> bool;

    /// Checks a message. Returns the principal of an authenticated sender, if senders have
    /// principals.
    ///
    /// # Errors
    /// Why the message is not authentic.
    fn authenticate(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        content: &[u8],
        seal: Option<&Seal>,
    ) -> Result<Option<Principal>, AuthenticityFault>;
}

/// Executes the commands of a state machine.
trait Executor<M: Service>: Send {
    /// Returns the sessions with other processes.
    fn sessions(&mut self) -> &mut dyn Authenticator;

    /// Sees an event before the state machine handles it.
    fn observe(&mut self, event: &M::Event);

    /// Returns an event that the state machine must handle before any output is sent.
    fn interruption(&mut self) -> Option<M::Event> {
        None
    }

    /// Executes a command, or starts its execution. Never blocks.
    fn execute(&mut self, command: M::Command, replies: &mut PendingReplies<M>);

    /// Passes a probe on to everything behind the state machine.
    fn probe(&mut self, probe: Probe) {
        probe.pass();
    }

    /// Sends buffered output. Called when the state machine has no further command.
    fn flush(&mut self, replies: &mut PendingReplies<M>);
}

/// Runs the event loop of a state machine until all senders of events are dropped, or the task is
/// aborted.
async fn drive<M: Service>(
    mut state_machine: M,
    mut executor: impl Executor<M>,
    mut receiver: mpsc::Receiver<Input<M>>,
    metrics: Metrics<M>,
) {
    let warnings_changed = Arc::new(Notify::new());
    let notify = Arc::clone(&warnings_changed);
    metrics.warnings().on_change(move || notify.notify_one());
    let publisher = Publisher(metrics);
    let clock = Clock::start();
    let mut replies = PendingReplies::new();
    let mut batch = Vec::with_capacity(BATCH_SIZE);
    loop {
        while let Some(command) = state_machine.poll_command() {
            log::trace!("{}: {command}", M::PROCESS);
            executor.execute(command, &mut replies);
        }
        // The process may have been suspended since the last event.
        if let Some(event) = executor.interruption() {
            log::trace!("{}: {event}", M::PROCESS);
            executor.observe(&event);
            state_machine.handle(clock.now(), event);
            continue;
        }
        executor.flush(&mut replies);
        publisher.0.publish(&state_machine);
        tokio::select! {
            biased;
            () = clock.sleep_until(state_machine.next_timeout()) => {
                state_machine.handle(clock.now(), M::TIMEOUT);
            }
            // Publishes the changed status; the state machine has no event.
            () = warnings_changed.notified() => {}
            count = receiver.recv_many(&mut batch, BATCH_SIZE) => {
                if count == 0 {
                    return;
                }
                for input in batch.drain(..) {
                    let sessions = executor.sessions();
                    let event = match replies.convert_input(&state_machine, sessions, input) {
                        Ok(event) => event,
                        Err(probe) => {
                            executor.probe(probe);
                            continue;
                        }
                    };
                    log::trace!("{}: {event}", M::PROCESS);
                    #[cfg(feature = "faults")]
                    panic_on_request(&event.to_string());
                    executor.observe(&event);
                    state_machine.handle(clock.now(), event);
                }
            }
        }
    }
}

/// Panics if a test has sent an event that requests a panic.
#[cfg(feature = "faults")]
fn panic_on_request(event: &str) {
    assert!(!event.contains("overlay-test-panic-in-machine"), "a test requested this panic");
}

/// Returns the admission rules of the master for the transport of its module.
#[must_use]
pub const fn master_admission() -> AdmissionRules {
    AdmissionRules { admit: inbox::admit::<Master>, classify: <Master as Service>::classify }
}

/// Returns the admission rules of the agent for the transport of its module.
#[must_use]
pub const fn agent_admission() -> AdmissionRules {
    AdmissionRules { admit: inbox::admit::<Agent>, classify: <Agent as Service>::classify }
}

/// Returns a random number that nobody else knows.
fn random_seed() -> std::io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    let length = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    // The kernel returns up to 256 bytes at once.
    if length == seed.len() { Ok(seed) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// The monotonic clock and the wall clock of [`Now`].
struct Clock {
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the runtime reads the wall clock for the state machines"
    )]
    fn now(&self) -> Now {
        // A clock before 1970 is broken. The state machines accept any number.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Now { elapsed: self.start.elapsed(), unix }
    }

    /// Sleeps until `elapsed` after the start; forever without a time.
    async fn sleep_until(&self, elapsed: Option<Duration>) {
        match elapsed {
            Some(elapsed) => tokio::time::sleep_until(self.start + elapsed).await,
            None => std::future::pending().await,
        }
    }
}

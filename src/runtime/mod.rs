//! Runs the machines: feeds them what happens, does what they want done, and decides nothing.
//!
//! ```text
//!   transport ─┐                                     ┌─▶ client: messages, links
//!   http      ─┼─▶ Inbox ─▶ drive: handle, poll ─────┼─▶ store thread (master)
//!   adapters  ─┘    ▲                                ├─▶ cni, docker, detector (agent)
//!                   └────────── results ◀────────────┘
//! ```
//! Each machine lives in one task, which nothing blocks: what takes long happens elsewhere and
//! comes back as an event.

mod agent;
mod contested;
mod inbox;
mod master;
mod metrics;
mod networks;
mod running;
mod store_thread;
mod supervisor;
mod tunnels;

use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use agent::{AgentHost, AgentOptions};
pub use contested::Contested;
pub use inbox::Stopped;
pub use master::{MasterHost, MasterOptions, Reread};
pub use metrics::Metrics;
pub use supervisor::{Host, supervise};
pub use tunnels::TunnelOptions;

use crate::addr::Upid;
use crate::agent::Agent;
use crate::clock::Now;
use crate::http::{Format, Request, Response};
use crate::machine::Machine;
use crate::master::Master;
use crate::metrics::HostCounters;
use crate::protocol::{Message, MessageKind, Refused, RequestId};
use crate::transport::RequestClass;
use crate::transport::mesos::Judge;
use crate::warnings::Warnings;
use inbox::{Input, Inputs};
use metrics::Publisher;

/// Events that wait for a machine. When there are more, the connections that bring them wait.
const INBOX_SIZE: usize = 4096;
/// Events that are taken at a time.
const BATCH_SIZE: usize = 128;

/// What a machine needs to be reached from outside.
trait Hosted: Machine<Event: Send, Command: Send> + Send + 'static {
    type Question: Send;
    type Reply: Send + 'static;

    /// The id of its libprocess process.
    const PROCESS: &'static str;

    /// Whether such a message is meant for it.
    fn takes(kind: MessageKind) -> bool;

    /// Whether it has to do with the sender of such a message.
    fn accepts(&self, from: &Upid, kind: MessageKind) -> bool;

    fn message(from: Upid, message: Message) -> Self::Event;
    /// A message that it does not take, or not from this sender.
    fn ignored(from: Upid, kind: MessageKind) -> Self::Event;
    fn malformed(from: Upid, name: String, reason: String) -> Self::Event;
    fn exited(address: SocketAddrV4) -> Option<Self::Event>;
    fn request(id: RequestId, question: Self::Question) -> Self::Event;

    /// Fills in what the machine cannot know.
    fn complete(reply: &mut Self::Reply, refused: Refused, host: HostCounters, warnings: &Warnings);

    fn classify(method: &Method, path: &str) -> RequestClass;
    fn route(request: &Request) -> Result<(Self::Question, Format), Box<Response>>;
    fn render(reply: &Self::Reply, format: &Format) -> Response;
}

/// Does what a machine wants done.
trait Executor<M: Hosted>: Send {
    /// Sees an event before the machine does.
    fn before(&mut self, event: &M::Event);

    /// Does it, or starts it. It never waits.
    fn run(&mut self, command: M::Command, inputs: &mut Inputs<M>);

    /// Called when the machine wants nothing more for the moment.
    fn settled(&mut self, inputs: &mut Inputs<M>);
}

/// The loop: until nobody can send an event any more, or the task is aborted.
async fn drive<M: Hosted>(
    mut machine: M,
    mut executor: impl Executor<M>,
    mut receiver: mpsc::Receiver<Input<M>>,
    metrics: Metrics<M>,
) {
    let mut warnings = metrics.warnings().subscribe();
    let publisher = Publisher(metrics);
    let clock = Clock::start();
    let mut inputs = Inputs::new();
    let mut batch = Vec::with_capacity(BATCH_SIZE);
    loop {
        while let Some(command) = machine.poll_command() {
            log::trace!("{}: {command}", M::PROCESS);
            executor.run(command, &mut inputs);
        }
        executor.settled(&mut inputs);
        publisher.0.publish(&machine);
        tokio::select! {
            biased;
            () = clock.sleep_until(machine.next_timeout()) => {
                machine.handle(clock.now(), M::TIMEOUT);
            }
            // Only the published status changes. `publisher` keeps the registry alive.
            _ = warnings.changed() => {}
            count = receiver.recv_many(&mut batch, BATCH_SIZE) => {
                if count == 0 {
                    return;
                }
                for input in batch.drain(..) {
                    let event = inputs.event(&machine, input);
                    log::trace!("{}: {event}", M::PROCESS);
                    #[cfg(feature = "faults")]
                    assert!(!event.to_string().contains("overlay-test-panic-in-machine"), "asked to");
                    executor.before(&event);
                    machine.handle(clock.now(), event);
                }
            }
        }
    }
}

/// How the transport of a module judges what is for the master.
#[must_use]
pub const fn judge_for_master() -> Judge {
    Judge { admit: inbox::admit::<Master>, classify: <Master as Hosted>::classify }
}

/// How the transport of a module judges what is for the agent.
#[must_use]
pub const fn judge_for_agent() -> Judge {
    Judge { admit: inbox::admit::<Agent>, classify: <Agent as Hosted>::classify }
}

/// The two clocks of [`Now`].
struct Clock {
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "the runtime is where the wall clock is read")]
    fn now(&self) -> Now {
        // A clock before 1970 is a broken one; the machines cope with any number.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Now { elapsed: self.start.elapsed(), unix }
    }

    /// Never, if there is no such moment.
    async fn sleep_until(&self, elapsed: Option<Duration>) {
        match elapsed {
            Some(elapsed) => tokio::time::sleep_until(self.start + elapsed).await,
            None => std::future::pending().await,
        }
    }
}

//! Runs the master.

use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::inbox::{Inbox, Inputs, Stopped};
use super::running::Running;
use super::store_thread::{Job, StoreThread};
use super::{Executor, Hosted, Metrics};
use crate::addr::Upid;
use crate::http::{
    Format, Request as HttpRequest, Response, classify_master, render_master, route_master,
};
use crate::machine::Machine as _;
use crate::master::{
    Command, DurabilityGate, Effect, Event, Master, PendingSend, PreviewJob, Reply, Request,
    Settings,
};
use crate::metrics::HostCounters;
use crate::protocol::{Message, MessageKind, Refused, RequestId};
use crate::store::{Store, StoreError};
use crate::transport::{RequestClass, Sender, Transport};
use crate::warnings::Warnings;
use crate::wire;
use bytes::Bytes;
use http::Method;
use tokio::sync::watch;
use tokio::task::JoinHandle;

impl Hosted for Master {
    type Question = Request;
    type Reply = Reply;

    const PROCESS: &'static str = Upid::MASTER;

    fn takes(kind: MessageKind) -> bool {
        matches!(
            kind,
            MessageKind::RegisterAgent | MessageKind::AgentRegistered | MessageKind::RequestPeers
        )
    }

    fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        Self::accepts(self, from, kind)
    }

    fn ignored(from: Upid, kind: MessageKind) -> Event {
        Event::Ignored { from, kind }
    }

    fn message(from: Upid, message: Message) -> Event {
        Event::Message { from, message }
    }

    fn malformed(from: Upid, name: String, reason: String) -> Event {
        Event::Malformed { from, name, reason }
    }

    fn exited(_: SocketAddrV4) -> Option<Event> {
        None
    }

    fn request(id: RequestId, question: Request) -> Event {
        Event::Request(id, question)
    }

    fn complete(reply: &mut Reply, refused: Refused, host: HostCounters, warnings: &Warnings) {
        match reply {
            Reply::Health(health) => {
                health.refused = refused.sanitized();
                if !warnings.is_empty() {
                    health.status = health.status.degraded();
                    health.problems.extend(warnings.texts());
                }
            }
            Reply::Metrics(snapshot) => {
                snapshot.host = host;
                if !warnings.is_empty() {
                    Self::degrade(&mut snapshot.machine);
                }
            }
            Reply::State(_)
            | Reply::ReleaseResults(_)
            | Reply::History(_)
            | Reply::Effect(_)
            | Reply::Misconfigured(_)
            | Reply::Unavailable(_) => {}
        }
    }

    fn classify(method: &Method, path: &str) -> RequestClass {
        classify_master(method, path)
    }

    fn route(request: &HttpRequest) -> Result<(Request, Format), Box<Response>> {
        route_master(request)
    }

    fn render(reply: &Reply, format: &Format) -> Response {
        render_master(reply, format)
    }
}

/// How a master reads its configuration again.
pub type Reread = Arc<dyn Fn() -> Result<Settings, Vec<String>> + Send + Sync>;

/// What a master needs to run.
pub struct MasterOptions {
    /// How it behaves.
    pub settings: Settings,
    /// Where its state is.
    pub store: Box<dyn Store>,
    /// The election: whether this master leads. Every change of it counts, also one that was taken
    /// back at once; when its sender is gone this master leads no more. `None`: it leads from the
    /// start, and there is no other.
    pub leading: Option<watch::Receiver<bool>>,
    /// Reads its configuration again, if it can: the settings, or every problem. It may block.
    pub reread: Option<Reread>,
    /// What its waits are drawn from.
    pub seed: u64,
    /// Where its numbers are shown.
    pub metrics: Metrics<Master>,
}

impl fmt::Debug for MasterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterOptions").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A running master. Dropped, it stops; what it was writing is finished.
pub struct MasterHost {
    running: Running<Master>,
    election: Option<AbortOnDrop>,
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for MasterHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterHost")
    }
}

impl MasterHost {
    /// Starts a master that is reached over `transport`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(options: MasterOptions, transport: impl Transport) -> io::Result<Self> {
        let MasterOptions { settings, store, leading, reread, seed, metrics } = options;
        let own = Upid::master(transport.address());
        let (inbox, receiver) = Inbox::new(metrics);
        let results = inbox.clone();
        let store = StoreThread::start(store, move |store, job| {
            results.tell_blocking(do_job(store, job));
        })?;
        let (sender, transport) = transport.open(Arc::new(inbox.clone()));
        let rereader = Rereader { reread, inbox: inbox.clone() };
        let executor = MasterExecutor { own, sender, store, gate: DurabilityGate::new(), rereader };
        let machine = match &leading {
            None => Master::new(settings, seed),
            Some(_) => Master::standing_by(settings, seed),
        };
        let follow = |leading| AbortOnDrop(tokio::spawn(follow(leading, inbox.clone())));
        let election = leading.map(follow);
        let running = Running::start(machine, executor, (inbox, receiver), transport);
        Ok(Self { running, election })
    }

    /// Asks the master, as a request over HTTP would.
    ///
    /// # Errors
    /// When it has stopped.
    pub async fn ask(&self, question: Request) -> Result<Reply, Stopped> {
        self.running.ask(question).await
    }

    /// Its numbers, which outlive it.
    #[must_use]
    pub fn metrics(&self) -> Metrics<Master> {
        self.running.metrics()
    }

    /// Waits until the master has stopped by itself, which it never should.
    pub async fn stopped(&mut self) {
        self.running.stopped().await;
    }

    /// Stops it, and returns when its store is closed.
    pub async fn stop(self) {
        drop(self.election);
        self.running.stop().await;
    }
}

/// Tells the machine what the election says.
async fn follow(mut leading: watch::Receiver<bool>, inbox: Inbox<Master>) {
    let mut told = false;
    loop {
        let leads = *leading.borrow_and_update();
        // What was said in between, and nobody saw: another master may have led meanwhile.
        if told && leads {
            inbox.tell(Event::Leading(false)).await;
        }
        inbox.tell(Event::Leading(leads)).await;
        told = leads;
        if leading.changed().await.is_err() {
            log::error!("the election has ended: this master leads no more");
            inbox.tell(Event::Leading(false)).await;
            return;
        }
    }
}

fn do_job(store: &mut dyn Store, job: Job) -> Event {
    match job {
        Job::Load => Event::Loaded(guard("load", || store.load())),
        Job::Commit { epoch, changes } => {
            Event::Committed(guard("commit", || store.commit(epoch, &changes)))
        }
    }
}

/// Makes an error of a panic: the master waits for the end of a job, and without one it would
/// send nothing any more and look well. The state is then read again, as after any error of a
/// commit.
fn guard<T>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let reason =
            "it panicked, which is a defect: see what the log or stderr says of it".to_owned();
        Err(StoreError::Failed { store: "store".to_owned(), action, reason })
    })
}

struct MasterExecutor {
    own: Upid,
    sender: Box<dyn Sender>,
    store: StoreThread,
    gate: DurabilityGate,
    rereader: Rereader,
}

/// Reads the configuration again, and tells the machine.
struct Rereader {
    reread: Option<Reread>,
    inbox: Inbox<Master>,
}

impl Rereader {
    fn start(&self, id: RequestId) {
        let (reread, inbox) = (self.reread.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let reading = tokio::task::spawn_blocking(move || match reread {
                Some(reread) => reread(),
                None => Err(vec![
                    "this master cannot read its configuration again: restart it".to_owned(),
                ]),
            });
            let settings = reading.await.unwrap_or_else(|error| {
                Err(vec![format!("read the configuration: {error}, which is a defect")])
            });
            inbox.tell(Event::ConfigRead(id, settings)).await;
        });
    }
}

impl Rereader {
    /// Runs a preview where nothing waits for it. Its client's slot bounds how many there are.
    fn preview(&self, id: RequestId, job: PreviewJob) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let effect = tokio::task::spawn_blocking(move || job.run()).await;
            let effect = effect.unwrap_or_else(|error| Effect {
                problems: vec![format!("preview the network: {error}, which is a defect")],
                ..Effect::default()
            });
            inbox.tell(Event::Previewed(id, Box::new(effect))).await;
        });
    }
}

impl Executor<Master> for MasterExecutor {
    fn before(&mut self, event: &Event) {
        self.gate.observe(event);
    }

    fn run(&mut self, command: Command, inputs: &mut Inputs<Master>) {
        match command {
            Command::Load => self.store.queue(Job::Load),
            Command::Abandon(reason) => {
                for send in self.gate.abandon() {
                    if let PendingSend::Reply(id, _) = send {
                        inputs.reply(id, Reply::Unavailable(reason.clone()));
                    }
                }
            }
            Command::Withdraw(agents) => self.gate.withdraw(&agents),
            Command::Commit { epoch, changes } => {
                self.store.queue(Job::Commit { epoch, changes });
            }
            Command::ReadConfig(id) => self.rereader.start(id),
            Command::Preview { id, job } => self.rereader.preview(id, *job),
            Command::Send { to, message, when } => {
                self.gate.hold(when, PendingSend::Message(vec![to], message));
            }
            Command::Broadcast { to, message, when } => {
                self.gate.hold(when, PendingSend::Message(to, message));
            }
            Command::Reply { id, reply, when } => {
                self.gate.hold(when, PendingSend::Reply(id, reply));
            }
        }
    }

    fn settled(&mut self, inputs: &mut Inputs<Master>) {
        for send in self.gate.release() {
            match send {
                PendingSend::Message(to, message) => {
                    let (name, body) = wire::encode_message(&message);
                    let body = Bytes::from(body);
                    for to in to {
                        self.sender.send(&self.own, &to, name, &body);
                    }
                }
                PendingSend::Reply(id, reply) => inputs.reply(id, reply),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Input;
    use super::*;
    use crate::store::{Change, Epoch, Loaded, Version};

    struct Broken;

    impl Store for Broken {
        fn load(&mut self) -> Result<Loaded, StoreError> {
            panic!("a page is damaged")
        }

        fn commit(&mut self, _: Epoch, _: &[Change]) -> Result<Version, StoreError> {
            panic!("a page is damaged")
        }
    }

    #[tokio::test]
    async fn an_election_that_was_lost_and_won_again_is_told_as_both() {
        let (inbox, mut events) = Inbox::new(Metrics::new());
        let (election, leading) = watch::channel(false);
        let follower = tokio::spawn(follow(leading, inbox));
        let mut next = async || match events.recv().await {
            Some(Input::Event(event)) => event.to_string(),
            Some(Input::Question(..) | Input::Message(..)) | None => "nothing".to_owned(),
        };
        assert_eq!(next().await, "not elected");
        election.send_replace(true);
        assert_eq!(next().await, "elected");
        // Faster than anybody could see.
        election.send_replace(false);
        election.send_replace(true);
        assert_eq!((next().await, next().await), ("not elected".into(), "elected".into()));
        drop(election);
        assert_eq!((next().await, next().await), ("not elected".into(), "nothing".into()));
        follower.await.unwrap();
    }

    #[test]
    fn a_store_that_panics_has_failed() {
        let words = "it panicked, which is a defect: see what the log or stderr says of it";
        assert_eq!(
            do_job(&mut Broken, Job::Load).to_string(),
            format!("not loaded: store: load: {words}")
        );
        let commit = Job::Commit { epoch: Epoch(1), changes: Vec::new() };
        assert_eq!(
            do_job(&mut Broken, commit).to_string(),
            format!("not committed: store: commit: {words}")
        );
    }
}

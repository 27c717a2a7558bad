//! The thread that inspects and programs the network of the host for the agent, since the calls
//! block. If a call panics, the thread reports and counts the panic, and goes on with a new worker.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use overlay_engine::agent::{Agent, Event, Programmed, Scope};
use overlay_types::tunnel::{Collision, Desired, Fault, UnderlayMtu};
use rustix::event::{EventfdFlags, eventfd};

use super::inbox::Inbox;

/// Delay after a panic outside of a job. After a panic of a job, the agent delays the next attempt.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// The failure of a job that panicked.
const PANICKED: &str = "the dataplane thread panicked, which is a defect: it starts again, and the \
                        agent tries again: report the lines of the log with 'panic'";

/// A job of the dataplane thread.
#[derive(Debug)]
pub(super) enum Job {
    Inspect { attempt: u64, claims: Arc<Desired> },
    Program { attempt: u64, desired: Arc<Desired>, scope: Scope },
}

/// The calls of the thread. Each call ends by itself, except [`Self::listen`], which waits.
pub(super) trait Worker {
    /// Takes the lock of the host before the first job, so that `clean` refuses a host whose agent
    /// waits for its master. After a reboot, loads the firewall rules of the time before.
    fn begin(&mut self);

    /// Returns the addresses of the managed devices that an earlier process left. Without them the
    /// agent does not notice that another agent has its VTEP address, until it has an assignment.
    fn find_vteps(&mut self) -> Vec<IpAddr>;

    /// Returns the conflicts of the desired state with objects of the host.
    fn inspect(&mut self, claims: &Desired) -> Result<Vec<Collision>, String>;

    /// Returns the MTU of the underlay, if it is known.
    fn underlay_mtu(&mut self, claims: &Desired) -> Option<UnderlayMtu>;

    /// Programs the desired state.
    fn program(&mut self, desired: &Arc<Desired>, scope: Scope) -> Programmed;

    /// Waits until a job is queued or another program changes the network of the host. Returns the
    /// scope of such a change.
    fn listen(&mut self) -> Option<Scope>;
}

/// The dataplane thread. Dropping it finishes the queued jobs. The programmed dataplane stays.
#[derive(Debug)]
pub(super) struct DataplaneThread {
    jobs: Option<mpsc::Sender<Job>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl DataplaneThread {
    /// Starts the thread in the network namespace of the calling thread. `create` creates the
    /// worker at the start and after each panic, with a descriptor that is readable when a job is
    /// queued. Without `programs`, the thread only inspects the host.
    ///
    /// # Errors
    /// When the thread or the eventfd cannot be created.
    pub(super) fn start<W: Worker>(
        create: impl Fn(Arc<OwnedFd>) -> W + Send + 'static,
        programs: bool,
        inbox: Inbox<Agent>,
    ) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, receiver) = mpsc::channel();
        let shared = Arc::clone(&wake);
        let supervise = move || {
            let mut start = programs.then_some(Task::Begin);
            loop {
                let mut worker = create(Arc::clone(&shared));
                match run(&mut worker, &inbox, &receiver, start.take()) {
                    RunEnd::Closed => return,
                    RunEnd::Panicked(task) => report_panic(&inbox, &task),
                }
            }
        };
        let thread = thread::Builder::new().name("overlay-tunnel".to_owned()).spawn(supervise)?;
        Ok(Self { jobs: Some(jobs), wake, thread: Some(thread) })
    }

    /// Queues a job. The state machine queues one job at a time.
    pub(super) fn queue(&self, job: Job) {
        let is_queued = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_queued {
            log::error!(
                "the dataplane thread has ended: the dataplane is no longer programmed: restart \
                 the agent"
            );
        }
        self.wake_up();
    }

    fn wake_up(&self) {
        // A write fails only if the counter of the eventfd is full, and then the thread wakes up
        // anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for DataplaneThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.wake_up();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the dataplane thread panicked");
        }
    }
}

/// One step of the thread.
#[derive(Debug)]
enum Task {
    /// The first step of a thread that programs the host.
    Begin,
    Job(Job),
    Listen,
}

/// Why [`run`] has ended.
enum RunEnd {
    /// The owner of the thread has dropped it.
    Closed,
    /// The task panicked.
    Panicked(Task),
}

/// Executes jobs, and listens for changes in between, until the queue of jobs is closed.
fn run(
    worker: &mut impl Worker,
    inbox: &Inbox<Agent>,
    jobs: &mpsc::Receiver<Job>,
    first: Option<Task>,
) -> RunEnd {
    let mut next = first;
    loop {
        let task = match next.take() {
            Some(task) => task,
            None => match jobs.try_recv() {
                Ok(job) => Task::Job(job),
                Err(TryRecvError::Empty) => Task::Listen,
                Err(TryRecvError::Disconnected) => return RunEnd::Closed,
            },
        };
        match catch_unwind(AssertUnwindSafe(|| execute(worker, &task))) {
            Ok(Some(event)) => inbox.send_blocking(event),
            Ok(None) => {}
            Err(_) => return RunEnd::Panicked(task),
        }
    }
}

/// Executes a task. Returns the event for the agent, if there is one.
fn execute(worker: &mut impl Worker, task: &Task) -> Option<Event> {
    match task {
        Task::Begin => {
            worker.begin();
            Some(Event::FoundVteps(worker.find_vteps()))
        }
        Task::Job(Job::Inspect { attempt, claims }) => Some(Event::Inspected {
            attempt: *attempt,
            underlay_mtu: worker.underlay_mtu(claims),
            result: worker.inspect(claims),
        }),
        Task::Job(Job::Program { attempt, desired, scope }) => {
            Some(Event::Programmed { attempt: *attempt, result: worker.program(desired, *scope) })
        }
        Task::Listen => worker.listen().map(Event::Drifted),
    }
}

/// Counts a panic, and reports the task as failed, since the agent waits for the result of a job.
fn report_panic(inbox: &Inbox<Agent>, task: &Task) {
    inbox.metrics().count_dataplane_restart();
    let event = match task {
        Task::Job(Job::Inspect { attempt, .. }) => {
            let result = Err(PANICKED.to_owned());
            Event::Inspected { attempt: *attempt, underlay_mtu: None, result }
        }
        Task::Job(Job::Program { attempt, .. }) => {
            let faults = vec![Fault::of_host(PANICKED)];
            let result = Programmed { faults, ..Programmed::default() };
            Event::Programmed { attempt: *attempt, result }
        }
        Task::Begin | Task::Listen => {
            log::error!("{PANICKED}");
            thread::park_timeout(RESTART_DELAY);
            Event::Drifted(Scope::Everything)
        }
    };
    inbox.send_blocking(event);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use overlay_engine::agent::Agent;
    use rustix::event::{PollFd, PollFlags, poll};
    use tokio::sync::mpsc as tokio_mpsc;

    use super::super::Metrics;
    use super::super::inbox::Input;
    use super::*;

    /// A worker whose first calls panic.
    struct PanickingWorker {
        calls: Arc<AtomicUsize>,
        wake: Arc<OwnedFd>,
    }

    /// The number of calls that panic.
    const PANICS: usize = 2;

    impl PanickingWorker {
        fn call(&self) {
            assert!(self.calls.fetch_add(1, Ordering::SeqCst) >= PANICS, "a defect");
        }
    }

    impl Worker for PanickingWorker {
        fn begin(&mut self) {}

        fn find_vteps(&mut self) -> Vec<IpAddr> {
            Vec::new()
        }

        fn inspect(&mut self, _: &Desired) -> Result<Vec<Collision>, String> {
            self.call();
            Ok(Vec::new())
        }

        fn underlay_mtu(&mut self, _: &Desired) -> Option<UnderlayMtu> {
            None
        }

        fn program(&mut self, _: &Arc<Desired>, _: Scope) -> Programmed {
            self.call();
            Programmed { changes: 1, ..Programmed::default() }
        }

        fn listen(&mut self) -> Option<Scope> {
            let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], None);
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            None
        }
    }

    fn next_event(receiver: &mut tokio_mpsc::Receiver<Input<Agent>>) -> Event {
        match receiver.blocking_recv() {
            Some(Input::Event(event)) => event,
            _ => panic!("an event"),
        }
    }

    #[test]
    fn panicking_job_fails_and_thread_starts_again() {
        let metrics: Metrics<Agent> = Metrics::new();
        let (inbox, mut receiver) = Inbox::new(metrics.clone());
        let calls = Arc::new(AtomicUsize::new(0));
        let create = move |wake| PanickingWorker { calls: Arc::clone(&calls), wake };
        let thread = DataplaneThread::start(create, true, inbox).unwrap();
        assert!(matches!(next_event(&mut receiver), Event::FoundVteps(_)));

        thread.queue(Job::Inspect { attempt: 1, claims: Arc::default() });
        match next_event(&mut receiver) {
            Event::Inspected { attempt: 1, result: Err(reason), .. } => {
                assert_eq!(reason, PANICKED)
            }
            event => panic!("{event}"),
        }
        let program =
            |attempt| Job::Program { attempt, desired: Arc::default(), scope: Scope::Everything };
        thread.queue(program(2));
        match next_event(&mut receiver) {
            Event::Programmed { attempt: 2, result } => {
                assert_eq!(result.faults, [Fault::of_host(PANICKED)]);
            }
            event => panic!("{event}"),
        }
        thread.queue(program(3));
        match next_event(&mut receiver) {
            Event::Programmed { attempt: 3, result } => {
                assert_eq!((result.changes, result.faults), (1, Vec::new()));
            }
            event => panic!("{event}"),
        }
        assert_eq!(metrics.host().dataplane_restarts, 2);
    }
}

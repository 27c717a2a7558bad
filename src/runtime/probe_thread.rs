//! The thread that sends the probes of the agent, since it waits for the replies.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use overlay_engine::agent::{Agent, Event};
use overlay_linux::cni::Leases;
use overlay_linux::probe::PeerProber;
use overlay_types::tunnel::{Desired, ProbePacket, ProbeReport};

use super::inbox::Inbox;

/// The failure of a batch that panicked.
const PANICKED: &str = "the probe thread panicked, which is a defect: report the lines of the log \
                        with 'panic'";

/// A batch of probes.
#[derive(Debug)]
pub(super) struct ProbeJob {
    pub(super) attempt: u64,
    pub(super) desired: Arc<Desired>,
    pub(super) packets: Vec<ProbePacket>,
}

/// The probe thread. Dropping it ends the running batch and removes the ports of the probes.
#[derive(Debug)]
pub(super) struct ProbeThread {
    jobs: Option<mpsc::Sender<ProbeJob>>,
    thread: Option<JoinHandle<()>>,
}

impl ProbeThread {
    /// Starts the thread in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub(super) fn start(leases: Leases, inbox: Inbox<Agent>) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<ProbeJob>();
        let run = move || {
            let mut prober = None;
            while let Ok(job) = receiver.recv() {
                let attempt = job.attempt;
                let probe = || probe(&mut prober, &leases, &job);
                let result = catch_unwind(AssertUnwindSafe(probe)).unwrap_or_else(|_| {
                    prober = None;
                    Err(PANICKED.to_owned())
                });
                inbox.send_blocking(Event::Probed { attempt, result });
            }
        };
        let thread = thread::Builder::new().name("overlay-probe".to_owned()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a batch. The state machine queues one batch at a time.
    pub(super) fn queue(&self, job: ProbeJob) {
        // A thread that has ended sends no outcome, and the state machine reports that.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

/// Sends a batch. The first batch opens the prober, and so does a batch after a failure to open it.
fn probe(
    prober: &mut Option<PeerProber>,
    leases: &Leases,
    job: &ProbeJob,
) -> Result<ProbeReport, String> {
    let prober = match prober {
        Some(prober) => prober,
        none => none.insert(PeerProber::new(leases.clone())?),
    };
    prober.probe(&job.desired, &job.packets)
}

impl Drop for ProbeThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the probe thread panicked");
        }
    }
}

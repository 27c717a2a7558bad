//! The thread that sends the probes of the agent, since it waits for the replies.

use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use overlay_engine::agent::{Agent, Event};
use overlay_linux::cni::Leases;
use overlay_linux::probe::{PeerProber, test_peer};
use overlay_types::tunnel::{Desired, ProbePacket, ProbeReport};

use super::inbox::Inbox;

/// The failure of a batch that panicked.
const PANICKED: &str = "the probe thread panicked, which is a defect: report the lines of the log \
                        with 'panic'";

/// A job of the thread.
#[derive(Debug)]
pub(super) enum ProbeJob {
    /// Sends a batch of echo requests.
    Echo { attempt: u64, desired: Arc<Desired>, packets: Vec<ProbePacket> },
    /// Tests the offloads to a peer.
    Offloads { attempt: u64, desired: Arc<Desired>, peer: IpAddr },
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
                let event = match job {
                    ProbeJob::Echo { attempt, desired, packets } => {
                        let probe = || probe(&mut prober, &leases, &desired, &packets);
                        let result = catch_unwind(AssertUnwindSafe(probe)).unwrap_or_else(|_| {
                            prober = None;
                            Err(PANICKED.to_owned())
                        });
                        Event::Probed { attempt, result }
                    }
                    ProbeJob::Offloads { attempt, desired, peer } => {
                        let test = || test_peer(&desired, peer);
                        let result = catch_unwind(AssertUnwindSafe(test));
                        let result = result.unwrap_or_else(|_| Err(PANICKED.to_owned()));
                        Event::OffloadsTested { attempt, result }
                    }
                };
                inbox.send_blocking(event);
            }
        };
        let thread = thread::Builder::new().name("overlay-probe".to_owned()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job. The state machine queues one job of each kind at a time.
    pub(super) fn queue(&self, job: ProbeJob) {
        // A thread that has ended sends no outcome, and the state machine reports that.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

/// Sends a batch. The first batch opens the prober, and so does a batch after a failure to open it.
fn probe(
    prober: &mut Option<PeerProber>,
    leases: &Leases,
    desired: &Desired,
    packets: &[ProbePacket],
) -> Result<ProbeReport, String> {
    let prober = match prober {
        Some(prober) => prober,
        none => none.insert(PeerProber::new(leases.clone())?),
    };
    prober.probe(desired, packets)
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

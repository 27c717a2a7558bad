//! The thread of the store. Writes block as long as the disk needs, so they run on a separate
//! thread.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use overlay_store::Store;
use overlay_types::state::{Epoch, RecordChange};

use super::progress::Probe;

/// Interval of the checks of an idle store: the health reports a lost state within seconds.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A job of the store.
#[derive(Debug)]
pub(super) enum Job {
    Load,
    /// Check that the state is still there. The thread adds this job while the queue is empty, and
    /// before each probe.
    Check,
    Commit {
        epoch: Epoch,
        changes: Vec<RecordChange>,
    },
    Probe(Probe),
}

/// A store on a thread of its own. Dropping it finishes the queued jobs.
#[derive(Debug)]
pub(super) struct StoreThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts a thread that calls `run_job` with `store` and every queued job.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub(super) fn start(
        mut store: Box<dyn Store>,
        mut run_job: impl FnMut(&mut dyn Store, Job) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let work = move || {
            loop {
                match receiver.recv_timeout(CHECK_INTERVAL) {
                    Ok(job) => {
                        // Probes arrive more often than the interval of the checks.
                        if matches!(job, Job::Probe(_)) {
                            run_job(store.as_mut(), Job::Check);
                        }
                        run_job(store.as_mut(), job);
                    }
                    Err(RecvTimeoutError::Timeout) => run_job(store.as_mut(), Job::Check),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("overlay-store".to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job. The state machine queues one job at a time, and there is one probe at a time.
    pub(super) fn queue(&self, job: Job) {
        let is_queued = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_queued {
            log::error!("the store thread has ended: nothing is stored");
        }
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the store thread panicked");
        }
    }
}

//! The thread of the store: a write takes as long as the disk does, and nothing else waits for it.

use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::store::{Change, Epoch, Store};

/// What the store is to do.
#[derive(Debug)]
pub(super) enum Job {
    Load,
    Commit { epoch: Epoch, changes: Vec<Change> },
}

/// A store on a thread of its own. Dropped, it finishes what it has begun.
#[derive(Debug)]
pub(super) struct StoreThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Does every job with `store` and hands the result to `done`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(
        mut store: Box<dyn Store>,
        mut done: impl FnMut(&mut dyn Store, Job) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let work = move || {
            for job in receiver {
                done(store.as_mut(), job);
            }
        };
        let thread = std::thread::Builder::new().name("overlay-store".to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job. The machine sees to it that there is one at a time.
    pub(super) fn queue(&self, job: Job) {
        let is_queued = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_queued {
            log::error!("the thread of the store has ended: nothing is stored any more");
        }
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the store ended by a panic");
        }
    }
}

//! The store that all masters share: the real store in memory, with faults. It is slow, it hangs,
//! it fails before or after a write, and its disk is full. A write of a killed process may still
//! take effect.

use std::time::Duration;

use overlay_engine::master::Event;
use overlay_store::{Change, MemoryStore, Store as _};
use overlay_types::state::{Epoch, RecordChange, StoreError};

use crate::chance::Chance;
use crate::counts::Counts;
use crate::invariants::Writer;
use crate::scenario::Faults;

/// How long each half of a job takes without faults.
const USUAL: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(8));
/// The longest time for which a job hangs.
const HANGING: Duration = Duration::from_secs(240);

/// A job of a master for the store.
pub(crate) struct Job {
    pub(crate) by: Writer,
    pub(crate) work: Work,
    outcome: JobOutcome,
}

pub(crate) enum Work {
    Load,
    Commit { epoch: Epoch, changes: Vec<RecordChange> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JobOutcome {
    Works,
    /// Nothing is written, as when a write was torn and undone.
    FailsBefore,
    /// Everything is written, and the answer is an error.
    FailsAfter,
}

/// The store.
#[derive(Default)]
pub(crate) struct Storage {
    memory: MemoryStore,
    pub(crate) is_full: bool,
}

impl Storage {
    /// Begins a job. Returns the job, the delay until it takes effect, and the delay after that
    /// until it is answered.
    pub(crate) fn begin(
        by: Writer,
        work: Work,
        faults: Option<&Faults>,
        (chance, counts): (&mut Chance, &mut Counts),
    ) -> (Job, Duration, Duration) {
        let mut outcome = JobOutcome::Works;
        let mut before = chance.time_between(USUAL.0, USUAL.1);
        let mut after = chance.time_between(USUAL.0, USUAL.1);
        if let Some(faults) = faults {
            if chance.is(faults.store_failing) {
                counts.add("fault: store fails", 1);
                outcome =
                    if chance.is(0.5) { JobOutcome::FailsBefore } else { JobOutcome::FailsAfter };
            }
            if chance.is(faults.store_hanging) {
                counts.add("fault: store hangs", 1);
                let hang = chance.time_up_to(HANGING);
                *if chance.is(0.5) { &mut before } else { &mut after } += hang;
            }
        }
        (Job { by, work, outcome }, before, after)
    }

    /// Fills the store before any master has read it.
    pub(crate) fn import(&mut self, changes: &[Change]) {
        let loaded = self.memory.load_records().expect("memory can be read");
        self.memory.commit(loaded.epoch, changes).expect("memory can be written");
    }

    /// Begins an epoch for a process that takes no part in the election. Writes nothing.
    pub(crate) fn begin_foreign_epoch(&mut self) {
        self.memory.load_records().expect("memory can be read");
    }

    /// Applies a job. Returns the answer, and whether the state has changed.
    pub(crate) fn act(&mut self, job: &Job) -> (Event, bool) {
        let failed = |action, reason: &str| StoreError::Failed {
            store: "simulated store".to_owned(),
            action,
            reason: reason.to_owned(),
        };
        match &job.work {
            Work::Load => {
                if job.outcome == JobOutcome::FailsBefore || self.is_full {
                    return (Event::Loaded(Err(failed("load", "no page can be read"))), false);
                }
                let loaded = self.memory.load_records();
                if job.outcome == JobOutcome::FailsAfter {
                    return (Event::Loaded(Err(failed("load", "the answer is lost"))), true);
                }
                (Event::Loaded(loaded), true)
            }
            Work::Commit { epoch, changes } => {
                if job.outcome == JobOutcome::FailsBefore || self.is_full {
                    return (Event::Committed(Err(failed("commit", "the disk is full"))), false);
                }
                let result = self.memory.commit_records(*epoch, changes);
                let is_done = result.is_ok();
                if is_done && job.outcome == JobOutcome::FailsAfter {
                    return (Event::Committed(Err(failed("commit", "the answer is lost"))), true);
                }
                (Event::Committed(result), is_done)
            }
        }
    }
}

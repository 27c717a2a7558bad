//! The store that all masters share. What it does is done by the real store in memory; this room
//! adds what goes wrong: it is slow, it hangs, it fails before or after it has written, and its
//! disk is full. A write of a process that was killed may still take effect.

use std::time::Duration;

use mesos_network_overlay::master::Event;
use mesos_network_overlay::store::{Change, Epoch, MemoryStore, Store as _, StoreError};

use crate::chance::Chance;
use crate::counts::Counts;
use crate::invariants::Writer;
use crate::scenario::Faults;

/// How long half a job takes where nothing is wrong.
const USUAL: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(8));
/// How long a job hangs at most.
const HANGING: Duration = Duration::from_secs(240);

/// What a master wants of the store.
pub(crate) struct Job {
    pub(crate) by: Writer,
    pub(crate) work: Work,
    fate: Fate,
}

pub(crate) enum Work {
    Load,
    Commit { epoch: Epoch, changes: Vec<Change> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    /// Nothing is written, as when a write was torn and undone.
    FailsBefore,
    /// All is written, and the answer is an error.
    FailsAfter,
}

/// The store.
#[derive(Default)]
pub(crate) struct Storage {
    memory: MemoryStore,
    pub(crate) is_full: bool,
}

impl Storage {
    /// A job begins: what becomes of it, after how long it takes effect, and how long after that it
    /// is answered.
    pub(crate) fn begin(
        by: Writer,
        work: Work,
        faults: Option<&Faults>,
        (chance, counts): (&mut Chance, &mut Counts),
    ) -> (Job, Duration, Duration) {
        let mut fate = Fate::Works;
        let mut before = chance.time_between(USUAL.0, USUAL.1);
        let mut after = chance.time_between(USUAL.0, USUAL.1);
        if let Some(faults) = faults {
            if chance.is(faults.store_failing) {
                counts.add("fault: store fails", 1);
                fate = if chance.is(0.5) { Fate::FailsBefore } else { Fate::FailsAfter };
            }
            if chance.is(faults.store_hanging) {
                counts.add("fault: store hangs", 1);
                let hang = chance.time_up_to(HANGING);
                *if chance.is(0.5) { &mut before } else { &mut after } += hang;
            }
        }
        (Job { by, work, fate }, before, after)
    }

    /// Somebody whom no election knows begins an epoch, and writes nothing.
    pub(crate) fn usurp(&mut self) {
        self.memory.load().expect("memory can be read");
    }

    /// A job takes effect: what is answered, and whether the state was changed.
    pub(crate) fn act(&mut self, job: &Job) -> (Event, bool) {
        let failed = |action, reason: &str| StoreError::Failed {
            store: "simulated store".to_owned(),
            action,
            reason: reason.to_owned(),
        };
        match &job.work {
            Work::Load => {
                if job.fate == Fate::FailsBefore || self.is_full {
                    return (Event::Loaded(Err(failed("load", "no page can be read"))), false);
                }
                let loaded = self.memory.load();
                if job.fate == Fate::FailsAfter {
                    return (Event::Loaded(Err(failed("load", "the answer is lost"))), true);
                }
                (Event::Loaded(loaded), true)
            }
            Work::Commit { epoch, changes } => {
                if job.fate == Fate::FailsBefore || self.is_full {
                    return (Event::Committed(Err(failed("commit", "the disk is full"))), false);
                }
                let result = self.memory.commit(*epoch, changes);
                let is_done = result.is_ok();
                if is_done && job.fate == Fate::FailsAfter {
                    return (Event::Committed(Err(failed("commit", "the answer is lost"))), true);
                }
                (Event::Committed(result), is_done)
            }
        }
    }
}

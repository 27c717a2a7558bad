//! The thread that looks for foreign firewall rules that drop packets of the overlays. On a host with
//! many rules their listing takes seconds, and peers must not wait for it.
//!
//! The thread uses about one percent of a CPU, apart from short bursts: a program that changes rules
//! all the time must not keep the agent busy.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use overlay_linux::firewall::foreign::Inspector;
use overlay_types::tunnel::{Desired, Fault};
use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

/// Maximum time that a job waits for the first inspection. Until then a dead path would be `ok`.
const FIRST_INSPECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time that a job waits for a later inspection. Few hosts need more.
const INSPECTION_TIMEOUT: Duration = Duration::from_millis(300);
/// The thread is idle for this many times the duration of its inspections.
const IDLE_FACTOR: u32 = 100;
/// Total duration of the inspections that may run without a delay in between.
const BURST: Duration = Duration::from_secs(2);
/// Longest delay after a slow inspection.
const DELAY_MAX: Duration = Duration::from_mins(5);

/// The thread, which starts with the first inspection.
#[derive(Debug)]
pub(super) struct ForeignRulesThread {
    shared: Option<Arc<Shared>>,
    /// Becomes readable when a late inspection has changed the faults.
    wake: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The desired state of the next inspection.
    next: Option<Arc<Desired>>,
    is_running: bool,
    /// Whether the next inspection is delayed until the budget allows it.
    is_throttled: bool,
    is_closed: bool,
    /// The faults of the last inspection.
    found: Option<Vec<Fault>>,
    /// Whether the faults have changed since they were last read.
    has_changed: bool,
}

impl ForeignRulesThread {
    pub(super) const fn new(wake: Arc<OwnedFd>) -> Self {
        Self { shared: None, wake }
    }

    /// Returns whether no inspection has ended.
    pub(super) fn is_unknown(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.state.lock().found.is_none())
    }

    /// Requests an inspection, and waits a short time for its end.
    pub(super) fn inspect(&mut self, desired: &Arc<Desired>) {
        let create = || {
            let mut inspector = Inspector::default();
            move |desired: &Desired| inspector.inspect(desired, Instant::now())
        };
        self.inspect_with(desired, create);
    }

    fn inspect_with<I: FnMut(&Desired) -> Vec<Fault>>(
        &mut self,
        desired: &Arc<Desired>,
        create: impl Fn() -> I + Send + 'static,
    ) {
        let Some(shared) = self.started(create) else { return };
        let mut state = shared.state.lock();
        state.next = Some(Arc::clone(desired));
        let timeout =
            if state.found.is_none() { FIRST_INSPECTION_TIMEOUT } else { INSPECTION_TIMEOUT };
        shared.changed.notify_all();
        let is_pending =
            |state: &mut State| (state.next.is_some() || state.is_running) && !state.is_throttled;
        shared.changed.wait_while_for(&mut state, is_pending, timeout);
    }

    /// Starts the thread, in the network namespace of the calling thread.
    fn started<I: FnMut(&Desired) -> Vec<Fault>>(
        &mut self,
        create: impl Fn() -> I + Send + 'static,
    ) -> Option<Arc<Shared>> {
        if self.shared.is_none() {
            let shared = Arc::new(Shared::default());
            let (own, wake) = (Arc::clone(&shared), Arc::clone(&self.wake));
            let run = move || own.run(&wake, create);
            match thread::Builder::new().name("overlay-rules".to_owned()).spawn(run) {
                Ok(_) => self.shared = Some(shared),
                Err(error) => log::error!("look for foreign firewall rules: {error}"),
            }
        }
        self.shared.clone()
    }

    /// Returns the faults of the last inspection.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let Some(shared) = &self.shared else { return Vec::new() };
        let mut state = shared.state.lock();
        state.has_changed = false;
        state.found.clone().unwrap_or_default()
    }

    /// Returns whether the faults have changed since the last call of [`Self::faults`]. The change is
    /// returned once.
    pub(super) fn take_changed(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| std::mem::take(&mut shared.state.lock().has_changed))
    }

    /// Ends the thread, since the host has no tunnels. A running inspection has no effect.
    pub(super) fn stop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.state.lock().is_closed = true;
            shared.changed.notify_all();
        }
    }
}

impl Drop for ForeignRulesThread {
    /// Does not wait for the thread: a program that it runs may hang.
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run<I: FnMut(&Desired) -> Vec<Fault>>(&self, wake: &OwnedFd, create: impl Fn() -> I) {
        let (mut inspect, mut budget) = (create(), Budget { covered_at: Instant::now() });
        while let Some(desired) = self.wait_for_request(&budget) {
            let start = Instant::now();
            let found = catch_unwind(AssertUnwindSafe(|| inspect(&desired)));
            let end = Instant::now();
            budget.spend(end, end - start);
            let found = found.ok().or_else(|| {
                log::error!(
                    "the evaluation of the foreign firewall rules panicked, which is a defect: \
                     report the lines of the log with 'panic'"
                );
                inspect = create();
                None
            });
            let mut state = self.state.lock();
            state.is_running = false;
            if let Some(found) = found
                && state.found.as_ref() != Some(&found)
            {
                state.found = Some(found);
                state.has_changed = true;
                // A write fails only if the counter is full, and then the thread wakes up anyway.
                let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
            }
            self.changed.notify_all();
        }
    }

    /// Waits until an inspection is requested and the budget allows it. Returns `None` at the
    /// end of the thread.
    fn wait_for_request(&self, budget: &Budget) -> Option<Arc<Desired>> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let delay = budget.delay(Instant::now());
            state.is_throttled = delay.is_some();
            match delay {
                _ if state.next.is_none() => self.changed.wait(&mut state),
                Some(delay) => {
                    self.changed.notify_all();
                    let _ = self.changed.wait_for(&mut state, delay);
                }
                None => {
                    state.is_running = true;
                    return state.next.take();
                }
            }
        }
    }
}

/// Limits the time that inspections take in the long run.
struct Budget {
    /// When the idle time of all former inspections has passed.
    covered_at: Instant,
}

impl Budget {
    fn spend(&mut self, now: Instant, duration: Duration) {
        let covered_at =
            self.covered_at.max(now) + duration.saturating_mul(IDLE_FACTOR).min(DELAY_MAX * 100);
        self.covered_at = covered_at.min(now + BURST * IDLE_FACTOR + DELAY_MAX);
    }

    /// Returns the time until the next inspection may begin, or `None` if it may begin now.
    fn delay(&self, now: Instant) -> Option<Duration> {
        let uncovered = self.covered_at.saturating_duration_since(now);
        let delay = uncovered.saturating_sub(BURST * IDLE_FACTOR);
        (!delay.is_zero()).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    use super::*;

    #[test]
    fn inspections_take_one_percent_after_burst() {
        let start = Instant::now();
        let mut budget = Budget { covered_at: start };
        let (mut now, mut count) = (start, 0_u32);
        while now < start + Duration::from_secs(1000) {
            match budget.delay(now) {
                Some(delay) => now += delay,
                None => {
                    now += Duration::from_millis(50);
                    budget.spend(now, Duration::from_millis(50));
                    count += 1;
                }
            }
        }
        // 2 s at once, and 10 s in 1,000 s.
        assert!((235..=245).contains(&count), "{count}");
        budget.spend(now, Duration::from_secs(90));
        assert_eq!(budget.delay(now), Some(DELAY_MAX));
    }

    /// An inspection that takes as long as the test wants.
    fn thread_with_results()
    -> (ForeignRulesThread, mpsc::Sender<Vec<Fault>>, impl FnMut(&mut ForeignRulesThread)) {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (sender, results) = mpsc::channel::<Vec<Fault>>();
        let results = Arc::new(Mutex::new(results));
        let request = move |thread: &mut ForeignRulesThread| {
            let results = Arc::clone(&results);
            thread.inspect_with(&Arc::default(), move || {
                let results = Arc::clone(&results);
                move |_: &Desired| results.lock().recv().unwrap_or_default()
            });
        };
        (ForeignRulesThread::new(Arc::new(wake)), sender, request)
    }

    #[test]
    fn slow_inspection_delays_no_job_and_is_reported_later() {
        let (mut thread, sender, mut request) = thread_with_results();
        assert!(thread.is_unknown());
        sender.send(Vec::new()).unwrap();
        request(&mut thread);
        assert!(!thread.is_unknown());
        assert_eq!(thread.faults(), []);
        assert!(!thread.take_changed(), "the job has read it");

        let start = Instant::now();
        request(&mut thread);
        assert!(start.elapsed() < FIRST_INSPECTION_TIMEOUT, "the job does not wait for the end");
        assert_eq!(thread.faults(), []);
        let fault = vec![Fault::of_host("a rule drops packets")];
        sender.send(fault.clone()).unwrap();
        while !thread.take_changed() {
            let _ = poll(&mut [PollFd::new(&thread.wake, PollFlags::IN)], None);
        }
        assert!(!thread.take_changed(), "once");
        assert_eq!(thread.faults(), fault);
        thread.stop();
        assert_eq!(thread.faults(), []);
    }
}

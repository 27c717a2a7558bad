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
const FIRST_GRACE: Duration = Duration::from_secs(5);
/// Maximum time that a job waits for a later inspection. Few hosts need more.
const GRACE: Duration = Duration::from_millis(300);
/// An inspection is paid for by a pause of this many times its duration.
const PAUSE: u32 = 100;
/// Duration of the inspections that may precede their pauses.
const BURST: Duration = Duration::from_secs(2);
/// Longest pause after a slow inspection.
const REST_MAX: Duration = Duration::from_mins(5);

/// The thread, which starts with the first inspection.
#[derive(Debug)]
pub(super) struct ObstacleThread {
    shared: Option<Arc<Shared>>,
    /// Becomes readable when a late inspection has found something new.
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
    /// Whether the next inspection waits until the former ones are paid for.
    is_resting: bool,
    is_closed: bool,
    /// The faults of the last inspection.
    found: Option<Vec<Fault>>,
    /// Whether the faults have changed since they were last read.
    has_news: bool,
}

impl ObstacleThread {
    pub(super) const fn new(wake: Arc<OwnedFd>) -> Self {
        Self { shared: None, wake }
    }

    /// Returns whether no inspection has ended.
    pub(super) fn is_unknown(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.state.lock().found.is_none())
    }

    /// Requests an inspection, and waits for its end for a short time.
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
        let grace = if state.found.is_none() { FIRST_GRACE } else { GRACE };
        shared.changed.notify_all();
        let is_pending =
            |state: &mut State| (state.next.is_some() || state.is_running) && !state.is_resting;
        shared.changed.wait_while_for(&mut state, is_pending, grace);
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
        state.has_news = false;
        state.found.clone().unwrap_or_default()
    }

    /// Returns whether the faults have changed since the last call of [`Self::faults`]. The change is
    /// returned once.
    pub(super) fn take_news(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| std::mem::take(&mut shared.state.lock().has_news))
    }

    /// Ends the thread, since the host has no tunnels. A running inspection has no effect.
    pub(super) fn stop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.state.lock().is_closed = true;
            shared.changed.notify_all();
        }
    }
}

impl Drop for ObstacleThread {
    /// Does not wait for the thread: a program that it runs may hang.
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run<I: FnMut(&Desired) -> Vec<Fault>>(&self, wake: &OwnedFd, create: impl Fn() -> I) {
        let (mut inspect, mut budget) = (create(), Budget { paid_at: Instant::now() });
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
                state.has_news = true;
                // A write fails only if the counter is full, and then the thread wakes up anyway.
                let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
            }
            self.changed.notify_all();
        }
    }

    /// Waits until an inspection is requested and the former ones are paid for. Returns `None` at the
    /// end of the thread.
    fn wait_for_request(&self, budget: &Budget) -> Option<Arc<Desired>> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let rest = budget.rest(Instant::now());
            state.is_resting = rest.is_some();
            match rest {
                _ if state.next.is_none() => self.changed.wait(&mut state),
                Some(rest) => {
                    self.changed.notify_all();
                    let _ = self.changed.wait_for(&mut state, rest);
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
    /// When all inspections are paid for.
    paid_at: Instant,
}

impl Budget {
    fn spend(&mut self, now: Instant, duration: Duration) {
        let paid_at = self.paid_at.max(now) + duration.saturating_mul(PAUSE).min(REST_MAX * 100);
        self.paid_at = paid_at.min(now + BURST * PAUSE + REST_MAX);
    }

    /// Returns the time until the next inspection may begin, or `None` if it may begin now.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let unpaid = self.paid_at.saturating_duration_since(now);
        let rest = unpaid.saturating_sub(BURST * PAUSE);
        (!rest.is_zero()).then_some(rest)
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
        let mut budget = Budget { paid_at: start };
        let (mut now, mut count) = (start, 0_u32);
        while now < start + Duration::from_secs(1000) {
            match budget.rest(now) {
                Some(rest) => now += rest,
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
        assert_eq!(budget.rest(now), Some(REST_MAX));
    }

    /// An inspection that takes as long as the test wants.
    fn thread_with_results()
    -> (ObstacleThread, mpsc::Sender<Vec<Fault>>, impl FnMut(&mut ObstacleThread)) {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (sender, results) = mpsc::channel::<Vec<Fault>>();
        let results = Arc::new(Mutex::new(results));
        let request = move |thread: &mut ObstacleThread| {
            let results = Arc::clone(&results);
            thread.inspect_with(&Arc::default(), move || {
                let results = Arc::clone(&results);
                move |_: &Desired| results.lock().recv().unwrap_or_default()
            });
        };
        (ObstacleThread::new(Arc::new(wake)), sender, request)
    }

    #[test]
    fn slow_inspection_delays_no_job_and_is_reported_later() {
        let (mut thread, sender, mut request) = thread_with_results();
        assert!(thread.is_unknown());
        sender.send(Vec::new()).unwrap();
        request(&mut thread);
        assert!(!thread.is_unknown());
        assert_eq!(thread.faults(), []);
        assert!(!thread.take_news(), "the job has read it");

        let start = Instant::now();
        request(&mut thread);
        assert!(start.elapsed() < FIRST_GRACE, "the job does not wait for the end");
        assert_eq!(thread.faults(), []);
        let fault = vec![Fault::of_host("a rule drops packets")];
        sender.send(fault.clone()).unwrap();
        while !thread.take_news() {
            let _ = poll(&mut [PollFd::new(&thread.wake, PollFlags::IN)], None);
        }
        assert!(!thread.take_news(), "once");
        assert_eq!(thread.faults(), fault);
        thread.stop();
        assert_eq!(thread.faults(), []);
    }
}

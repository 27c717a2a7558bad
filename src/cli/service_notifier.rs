//! Reports readiness, status and progress to the service manager, such as systemd.
//!
//! The environment variable `NOTIFY_SOCKET` names the socket of the service manager, and
//! `WATCHDOG_USEC` the time after which it restarts a silent process: see sd_notify(3).

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use overlay_engine::state_machine::should_log_sample;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::runtime::ProgressOptions;

/// Interval at which the status is compared with the reported one.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Number of reports of progress within the timeout of the watchdog.
const WATCHDOG_REPORTS: u32 = 3;

/// Number of reports that failed.
static FAILURES: AtomicU64 = AtomicU64::new(0);

/// Reports to the service manager until it is dropped.
pub(super) struct ServiceNotifier(Option<JoinHandle<()>>);

/// The reports about a service.
pub(super) struct Reported<R, S> {
    /// The proof that the service makes progress.
    pub(super) progress: ProgressOptions,
    /// Completes when the service has everything that it needs to serve.
    pub(super) readiness: R,
    /// Returns the status, in one line.
    pub(super) status: S,
}

/// One report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Report {
    is_ready: bool,
    /// The status, if it has changed.
    status: Option<String>,
    makes_progress: bool,
}

impl ServiceNotifier {
    /// Starts to report, if a service manager wants reports. Call this within a tokio runtime,
    /// before the service starts.
    pub(super) fn start<R, S>(reported: Reported<R, S>) -> Self
    where
        R: Future<Output = ()> + Send + 'static,
        S: Fn() -> String + Send + 'static,
    {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self(None);
        }
        let watchdog = sd_notify::watchdog_enabled();
        Self(Some(tokio::spawn(report(reported, watchdog, send))))
    }

    /// Reports that the service stops.
    pub(super) fn stop(self) {
        if self.0.is_some() {
            log_failure(sd_notify::notify(&[
                NotifyState::Stopping,
                NotifyState::Status("stopping"),
            ]));
        }
    }
}

impl Drop for ServiceNotifier {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Waits until the election has a result: this master leads, or knows the leading master.
pub(super) async fn elected<L: Sync>(
    mut leading: watch::Receiver<bool>,
    mut leader: watch::Receiver<Option<L>>,
) {
    let is_known = tokio::select! {
        leads = leading.wait_for(|leads| *leads) => leads.is_ok(),
        found = leader.wait_for(Option::is_some) => found.is_ok(),
    };
    if !is_known {
        // The election has ended, which only a defect causes.
        std::future::pending().await
    }
}

/// Sends reports with `send`, which may take a while: the service manager may hang.
async fn report<R, S>(
    reported: Reported<R, S>,
    watchdog: Option<Duration>,
    send: impl AsyncFn(Report),
) where
    R: Future<Output = ()>,
    S: Fn() -> String,
{
    let Reported { progress, readiness, status } = reported;
    let mut readiness = pin!(async {
        progress.passed().await;
        readiness.await;
    });
    let period = watchdog.map_or(STATUS_INTERVAL, |timeout| {
        STATUS_INTERVAL.min(timeout / WATCHDOG_REPORTS).max(Duration::from_millis(1))
    });
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_ready, mut last_status) = (false, None);
    loop {
        let mut report = Report::default();
        tokio::select! {
            () = &mut readiness, if !is_ready => {
                is_ready = true;
                report.is_ready = true;
            }
            _ = ticks.tick() => {}
        }
        let current = Some(status());
        if current != last_status {
            report.status.clone_from(&current);
            last_status = current;
        }
        report.makes_progress = watchdog.is_some() && progress.is_alive();
        if report != Report::default() {
            send(report).await;
        }
    }
}

async fn send(report: Report) {
    let notify = move || {
        let mut states = Vec::new();
        states.extend(report.is_ready.then_some(NotifyState::Ready));
        states.extend(report.status.as_deref().map(NotifyState::Status));
        states.extend(report.makes_progress.then_some(NotifyState::Watchdog));
        log_failure(sd_notify::notify(&states));
    };
    // A panic is in the log.
    let _ = spawn_blocking(notify).await;
}

fn log_failure(result: std::io::Result<()>) {
    if let Err(error) = result {
        // A report follows every second, so only a sample is logged.
        let failures = FAILURES.fetch_add(1, Ordering::Relaxed) + 1;
        if should_log_sample(failures) {
            log::warn!(
                "report to the service manager at NOTIFY_SOCKET: {error} ({failures} since the start): \
                 see whether systemd runs, or restart the service"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_zookeeper::detector::Progress;
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const WATCHDOG: Duration = Duration::from_secs(3);

    struct Harness {
        progress: Progress,
        is_elected: Option<oneshot::Sender<()>>,
        status: watch::Sender<&'static str>,
        reports: mpsc::UnboundedReceiver<Report>,
    }

    impl Harness {
        fn start(watchdog: Option<Duration>) -> Self {
            let progress = Progress::new(DEADLINE);
            let (is_elected, elected) = oneshot::channel();
            let (status, shown) = watch::channel("starting");
            let (sender, reports) = mpsc::unbounded_channel();
            let reported = Reported {
                progress: ProgressOptions { progress: progress.clone(), listener: None },
                readiness: async { drop(elected.await) },
                status: move || (*shown.borrow()).to_owned(),
            };
            let send = async move |report| drop(sender.send(report));
            tokio::spawn(async move { report(reported, watchdog, send).await });
            Self { progress, is_elected: Some(is_elected), status, reports }
        }

        /// Proves progress, after a moment.
        async fn prove(&self) {
            sleep(Duration::from_millis(1)).await;
            self.progress.prove(Instant::now());
        }

        /// Returns the reports of this time.
        async fn during(&mut self, time: Duration) -> Vec<Report> {
            let mut reports = Vec::new();
            let receive = async {
                while let Some(report) = self.reports.recv().await {
                    reports.push(report);
                }
            };
            let _ = timeout(time, receive).await;
            reports
        }
    }

    fn status(text: &str) -> Report {
        Report { status: Some(text.to_owned()), ..Report::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_needs_a_passed_probe_and_the_election() {
        let ready = Report { is_ready: true, ..Report::default() };
        for is_probe_first in [true, false] {
            let mut harness = Harness::start(None);
            assert_eq!(harness.during(DEADLINE).await, [status("starting")]);
            for step in [is_probe_first, !is_probe_first] {
                assert_eq!(harness.during(DEADLINE).await, []);
                if step {
                    harness.prove().await;
                } else {
                    harness.is_elected.take().unwrap().send(()).unwrap();
                }
            }
            assert_eq!(harness.during(DEADLINE).await, vec![ready.clone()]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn status_is_reported_after_a_change_only() {
        let mut harness = Harness::start(None);
        assert_eq!(harness.during(DEADLINE).await, [status("starting")]);
        harness.status.send_replace("ok");
        assert_eq!(harness.during(DEADLINE).await, [status("ok")]);
    }

    #[tokio::test(start_paused = true)]
    async fn watchdog_is_silent_while_the_state_machine_hangs() {
        let mut harness = Harness::start(Some(WATCHDOG));
        let alive = Report { makes_progress: true, ..Report::default() };
        harness.during(WATCHDOG).await;
        harness.prove().await;
        let is_alive = |reports: Vec<Report>| {
            reports.len() >= WATCHDOG_REPORTS as usize && reports.iter().all(|it| *it == alive)
        };
        assert!(is_alive(harness.during(WATCHDOG).await));
        harness.progress.wait_for("the state machine");
        harness.during(DEADLINE).await;
        assert_eq!(harness.during(WATCHDOG * 10).await, []);
        harness.prove().await;
        assert!(is_alive(harness.during(WATCHDOG).await));
        // A restart repairs neither a disk nor a ZooKeeper that hangs.
        harness.progress.wait_for("the store");
        harness.during(DEADLINE).await;
        assert!(is_alive(harness.during(WATCHDOG).await));
    }

    #[tokio::test]
    async fn election_has_a_result_when_a_master_leads() {
        let (leads, leading) = watch::channel(false);
        let (found, leader) = watch::channel(None::<u8>);
        let moment = Duration::from_millis(20);
        let result = || elected(leading.clone(), leader.clone());
        assert!(timeout(moment, result()).await.is_err());
        leads.send_replace(true);
        assert!(timeout(moment, result()).await.is_ok());
        leads.send_replace(false);
        found.send_replace(Some(1));
        assert!(timeout(moment, result()).await.is_ok());
    }
}

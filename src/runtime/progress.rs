//! Probes whether a service makes progress: its listener, its state machine and its store. Without
//! a probe that passed in time, health is `failed`, and a master with an election gives up its
//! candidacy (see [`Progress`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use overlay_zookeeper::detector::Progress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::Service;
use super::inbox::Inbox;

/// Longest time without progress of a service without an election. A slow disk needs less for a
/// commit.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Number of probes within the deadline.
const PROBES: u32 = 6;
/// Longest interval between two probes. The servers of ZooKeeper may grant a much shorter session
/// timeout than the operator requested, and with it a shorter deadline.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Key of the failure.
const FAILURE: &str = "progress";

/// The path of a probe of the listener. It has no content, so that it needs no credentials.
pub(super) const PROBE_PATH: &str = "/overlay-probe";

const STATE_MACHINE: &str = "the state machine";
const STORE: &str = "the store";

/// How the progress of a service is probed.
#[derive(Debug, Clone)]
pub struct ProgressOptions {
    /// The proof of progress, which the election of a master also uses.
    pub progress: Progress,
    /// The listening address of a server of this process.
    pub listener: Option<SocketAddrV4>,
}

impl Default for ProgressOptions {
    fn default() -> Self {
        Self { progress: Progress::new(DEADLINE_DEFAULT), listener: None }
    }
}

impl ProgressOptions {
    /// Waits until the next probe has passed.
    pub async fn passed(&self) {
        self.progress.proven().await;
    }

    /// Returns whether the listener and the state machine answer. A store that hangs does not
    /// count: its disk or its ZooKeeper has failed, which a restart of this process does not
    /// repair.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.progress.awaited_by_stall().is_none_or(|awaited| awaited == STORE)
    }

    /// Returns the interval between two probes.
    fn interval(&self) -> Duration {
        (self.progress.deadline() / PROBES).min(INTERVAL_MAX)
    }
}

/// A probe on its way through a service.
#[derive(Debug)]
pub(super) struct Probe {
    progress: Progress,
    passed: oneshot::Sender<()>,
}

impl Probe {
    /// Notes that the probe has passed the state machine, and goes on to the store.
    pub(super) fn enter_store(self) -> Self {
        self.progress.wait_for(STORE);
        self
    }

    /// Notes that the probe has passed everything.
    pub(super) fn pass(self) {
        // The receiver is gone when the service stops.
        let _ = self.passed.send(());
    }
}

/// Probes a service until the future is dropped. `activity` grows while an operation of the store
/// makes progress.
pub(super) async fn watch_progress<M: Service>(
    inbox: Inbox<M>,
    options: ProgressOptions,
    activity: Option<Arc<AtomicU64>>,
) {
    tokio::join!(
        send_probes(&inbox, &options, activity.as_deref()),
        report_stalls(&inbox, &options)
    );
}

async fn send_probes<M: Service>(
    inbox: &Inbox<M>,
    options: &ProgressOptions,
    activity: Option<&AtomicU64>,
) {
    loop {
        let start = Instant::now();
        if let Some(listener) = options.listener {
            options.progress.wait_for(&format!("the listener at {listener}"));
            let deadline = options.progress.deadline();
            while !matches!(timeout(deadline, await_answer(listener)).await, Ok(Ok(()))) {
                sleep(options.interval()).await;
            }
        }
        options.progress.wait_for(STATE_MACHINE);
        let (passed, passing) = oneshot::channel();
        inbox.probe(Probe { progress: options.progress.clone(), passed }).await;
        if has_passed(passing, options, activity).await {
            options.progress.prove(start);
        }
        sleep(options.interval()).await;
    }
}

/// Waits until a probe has passed state machine and store. An operation of the store that makes
/// progress counts meanwhile. Returns whether the probe has passed.
async fn has_passed(
    mut passing: oneshot::Receiver<()>,
    options: &ProgressOptions,
    activity: Option<&AtomicU64>,
) -> bool {
    let count = || activity.map_or(0, |activity| activity.load(Ordering::Relaxed));
    let mut last = count();
    loop {
        let start = Instant::now();
        match timeout(options.interval(), &mut passing).await {
            Ok(passed) => return passed.is_ok(),
            Err(_) if options.progress.is_waiting_for(STORE) && count() != last => {
                last = count();
                options.progress.prove(start);
            }
            Err(_) => {}
        }
    }
}

/// Waits for any answer of the server at `listener`. The answer needs neither the state machine nor
/// credentials. A closed connection is an answer, too: the server may be at a limit.
async fn await_answer(listener: SocketAddrV4) -> io::Result<()> {
    let ip = if listener.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *listener.ip() };
    let address = SocketAddrV4::new(ip, listener.port());
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("HEAD {PROBE_PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let _ = stream.read(&mut [0]).await;
    }
    Ok(())
}

/// Shows in health and metrics that the service hangs.
async fn report_stalls<M: Service>(inbox: &Inbox<M>, options: &ProgressOptions) {
    let metrics = inbox.metrics();
    let warnings = metrics.warnings();
    loop {
        let awaited = options.progress.awaited_by_stall();
        let deadline = options.progress.deadline();
        let failure = awaited.as_ref().map(|awaited| stall_problem(awaited, deadline));
        let is_state_machine = awaited.is_some_and(|awaited| awaited == STATE_MACHINE);
        metrics.set_stalled(failure.clone().filter(|_| is_state_machine));
        warnings.set_failure(FAILURE, failure);
        sleep(options.interval()).await;
    }
}

fn stall_problem(awaited: &str, deadline: Duration) -> String {
    let remedy = match awaited {
        STATE_MACHINE => {
            "see whether the host has CPU time and memory left; if it lasts, restart the process"
        }
        STORE => "see whether its disk, or its ZooKeeper, hangs",
        _ => "see whether the address still exists, and whether descriptors are left",
    };
    format!("{awaited} has not answered for more than {deadline:?}: {remedy}")
}

#[cfg(test)]
mod tests {
    use overlay_engine::master::Master;
    use tokio::sync::mpsc;

    use super::super::Metrics;
    use super::super::inbox::Input;
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(120);

    /// Handles inputs as a state machine with a store does, while `is_hung` returns false.
    async fn serve(mut receiver: mpsc::Receiver<Input<Master>>, hung: Arc<AtomicU64>) {
        while let Some(input) = receiver.recv().await {
            while hung.load(Ordering::Relaxed) == 1 {
                sleep(DEADLINE / 10).await;
            }
            if let Input::Probe(probe) = input {
                let probe = probe.enter_store();
                while hung.load(Ordering::Relaxed) == 2 {
                    sleep(DEADLINE / 10).await;
                }
                probe.pass();
            }
        }
    }

    #[tokio::test]
    async fn hung_stage_is_a_failure_until_it_answers() {
        let (inbox, receiver) = Inbox::<Master>::new(Metrics::new());
        let metrics = inbox.metrics().clone();
        let hung = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve(receiver, Arc::clone(&hung)));
        let options = ProgressOptions { progress: Progress::new(DEADLINE), listener: None };
        tokio::spawn(watch_progress(inbox, options, None));
        sleep(DEADLINE * 2).await;
        let texts = || metrics.warnings().texts();
        assert_eq!(texts(), [""; 0]);
        for (stage, name) in [(1, STATE_MACHINE), (2, STORE)] {
            hung.store(stage, Ordering::Relaxed);
            while texts().is_empty() {
                sleep(DEADLINE / 10).await;
            }
            assert_eq!(texts(), [stall_problem(name, DEADLINE)]);
            assert_eq!(metrics.stalled().is_some(), stage == 1);
            hung.store(0, Ordering::Relaxed);
            while !texts().is_empty() {
                sleep(DEADLINE / 10).await;
            }
            assert_eq!(metrics.stalled(), None);
        }
    }

    #[tokio::test]
    async fn store_that_makes_progress_does_not_hang() {
        let (inbox, receiver) = Inbox::<Master>::new(Metrics::new());
        let metrics = inbox.metrics().clone();
        tokio::spawn(serve(receiver, Arc::new(AtomicU64::new(2))));
        let activity = Arc::new(AtomicU64::new(0));
        let options = ProgressOptions { progress: Progress::new(DEADLINE), listener: None };
        tokio::spawn(watch_progress(inbox, options, Some(Arc::clone(&activity))));
        for _ in 0..100 {
            activity.fetch_add(1, Ordering::Relaxed);
            sleep(DEADLINE / 25).await;
        }
        assert_eq!(metrics.warnings().texts(), [""; 0]);
    }

    #[tokio::test]
    async fn closed_connection_is_an_answer_and_silence_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
        assert!(timeout(DEADLINE, await_answer(address)).await.is_err());
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert!(await_answer(address).await.is_ok());
    }
}

//! The metrics of a state machine, readable at any time on any thread. Mesos reads metrics one by
//! one on its own threads, which must not wait for a state machine.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libprocess::limits::Limit;
use overlay_engine::metrics::{Catalogue, HostCounters, Kind, LogTally};
use overlay_engine::state_machine::StateMachine;
use overlay_types::warnings::Warnings;
use parking_lot::Mutex;

use super::{Clock, worst_severity};
use crate::logging::{lines_dropped, lines_left_out};

/// The metrics of a state machine. Clones share the values, and reading takes no lock.
///
/// Create the metrics before the state machine and keep them when it is restarted: pass a clone to
/// each of its hosts in turn. Each value is read separately, so two values may be of different
/// moments.
pub struct Metrics<M: StateMachine> {
    shared: Arc<Shared>,
    state_machine: PhantomData<fn() -> M>,
}

#[derive(Debug)]
struct Shared {
    /// The metrics of the state machine, in the order of the catalogue.
    values: Box<[AtomicU64]>,
    /// When the host started, in seconds since 1970.
    start_unix: u64,
    process_restarts: AtomicU64,
    dataplane_restarts: AtomicU64,
    refused: AtomicU64,
    authentication_failures: AtomicU64,
    forbidden_requests: AtomicU64,
    /// The number of refusals of each limit.
    limits: [AtomicU64; Limit::COUNT],
    warnings: Warnings,
    /// Why the state machine counts as hanging.
    stalled: Mutex<Option<String>>,
}

impl<M: StateMachine> Metrics<M> {
    /// Creates metrics that are 0 until a state machine runs.
    #[must_use]
    pub fn new() -> Self {
        let values = M::CATALOGUE.metrics.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Shared {
            values,
            start_unix: Clock::start().now().unix,
            process_restarts: AtomicU64::new(0),
            dataplane_restarts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            authentication_failures: AtomicU64::new(0),
            forbidden_requests: AtomicU64::new(0),
            limits: Default::default(),
            warnings: Warnings::new(),
            stalled: Mutex::new(None),
        };
        Self { shared: Arc::new(shared), state_machine: PhantomData }
    }

    /// Returns the names, kinds and help texts, in the order of the indices.
    #[must_use]
    pub const fn catalogue() -> &'static Catalogue<M::Metrics> {
        M::CATALOGUE
    }

    /// Returns the value at an index of the catalogue, and 0 beyond its end.
    #[must_use]
    pub fn get(&self, index: usize) -> f64 {
        let metric = M::CATALOGUE.metrics.get(index);
        let value = match metric.and_then(|metric| metric.read_host(&self.host())) {
            Some(value) => value,
            None => self.shared.values.get(index).map_or(0, |value| value.load(Ordering::Relaxed)),
        };
        metric.map_or(0.0, |metric| metric.kind.shown(value))
    }

    /// Returns the status of the state machine, such as `ok`; `None` before it has one.
    #[must_use]
    pub fn status(&self) -> Option<&'static str> {
        let metrics = M::CATALOGUE.metrics.iter().zip(&self.shared.values);
        let mut current = metrics.filter(|(_, value)| value.load(Ordering::Relaxed) == 1);
        current.find_map(|(metric, _)| metric.name.strip_prefix("status/"))
    }

    /// Returns the standing warnings of the adapters. While there is one, the status `ok` becomes
    /// `degraded`.
    #[must_use]
    pub fn warnings(&self) -> &Warnings {
        &self.shared.warnings
    }

    /// Returns why the state machine counts as hanging; `None` if it answers.
    pub(super) fn stalled(&self) -> Option<String> {
        self.shared.stalled.lock().clone()
    }

    /// Sets why the state machine counts as hanging. It cannot publish its status then.
    pub(super) fn set_stalled(&self, reason: Option<String>) {
        if reason.is_some() {
            for (metric, value) in M::CATALOGUE.metrics.iter().zip(&self.shared.values) {
                if metric.name.starts_with("status/") {
                    let is_failed = metric.name == "status/failed";
                    value.store(u64::from(is_failed), Ordering::Relaxed);
                }
            }
        }
        *self.shared.stalled.lock() = reason;
    }

    /// Counts a restart of the state machine after it stopped by itself.
    pub fn count_restart(&self) {
        self.shared.process_restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a restart of the dataplane thread after a panic.
    pub(super) fn count_dataplane_restart(&self) {
        self.shared.dataplane_restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often the state machine was restarted after it stopped by itself.
    pub(super) fn restarts(&self) -> u64 {
        self.shared.process_restarts.load(Ordering::Relaxed)
    }

    /// Counts a refusal, because of a limit or another reason.
    pub(super) fn count_refused(&self) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that was refused because of its client. Returns the number of such
    /// requests.
    pub(super) fn count_denial(&self, has_wrong_credentials: bool) -> u64 {
        let counter = if has_wrong_credentials {
            &self.shared.authentication_failures
        } else {
            &self.shared.forbidden_requests
        };
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a message, request or connection that a limit refused or ended.
    pub(super) fn count_limit(&self, limit: Limit) {
        self.shared.limits[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counters of the runtime.
    pub(super) fn host(&self) -> HostCounters {
        HostCounters {
            start_unix: self.shared.start_unix,
            process_restarts: self.restarts(),
            dataplane_restarts: self.shared.dataplane_restarts.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            limits: self.shared.limits.each_ref().map(|count| count.load(Ordering::Relaxed)),
            authentication_failures: self.shared.authentication_failures.load(Ordering::Relaxed),
            forbidden_requests: self.shared.forbidden_requests.load(Ordering::Relaxed),
            log: LogTally { lines_left_out: lines_left_out(), lines_dropped: lines_dropped() },
        }
    }

    /// Publishes the current metrics of `state_machine`.
    pub(super) fn publish(&self, state_machine: &M) {
        let (mut current, host) = (state_machine.metrics(), self.host());
        if let Some(severity) = worst_severity(&self.shared.warnings) {
            M::degrade(&mut current, severity);
        }
        for (metric, value) in M::CATALOGUE.metrics.iter().zip(&self.shared.values) {
            value.store(metric.read(&current, &host), Ordering::Relaxed);
        }
    }

    /// Sets all gauges to 0, because the state machine has ended and is in no state. Counters stay.
    fn clear_gauges(&self) {
        for (metric, value) in M::CATALOGUE.metrics.iter().zip(&self.shared.values) {
            if metric.kind != Kind::Counter {
                value.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl<M: StateMachine> Clone for Metrics<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), state_machine: PhantomData }
    }
}

impl<M: StateMachine> Default for Metrics<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: StateMachine> fmt::Debug for Metrics<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metrics = M::CATALOGUE.metrics.iter().enumerate();
        f.debug_map().entries(metrics.map(|(at, metric)| (metric.name, self.get(at)))).finish()
    }
}

/// Publishes the metrics of a running state machine. Clears the gauges when it is dropped.
pub(super) struct Publisher<M: StateMachine>(pub(super) Metrics<M>);

impl<M: StateMachine> Drop for Publisher<M> {
    fn drop(&mut self) {
        self.0.clear_gauges();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use overlay_engine::authentication::MasterSessions;
    use overlay_engine::master::{Command, Condition, Event, Master, Reply, Request, Settings};
    use overlay_types::protocol::{MasterKind, Network, Vxlan};
    use overlay_types::state::{Epoch, LoadedState, Version};

    use super::super::inbox::{Inbox, PendingReplies};
    use super::super::{Authenticator, Executor, drive};
    use super::*;

    /// Executes only replies.
    struct ReplyExecutor(MasterSessions);

    impl Executor<Master> for ReplyExecutor {
        fn sessions(&mut self) -> &mut dyn Authenticator {
            &mut self.0
        }

        fn observe(&mut self, _: &Event) {}

        fn execute(&mut self, command: Command, replies: &mut PendingReplies<Master>) {
            if let Command::Reply { id, reply, .. } = command {
                replies.send(id, reply);
            }
        }

        fn flush(&mut self, _: &mut PendingReplies<Master>) {}
    }

    fn loaded(epoch: Epoch, version: Version) -> LoadedState {
        LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() }
    }

    fn master() -> Master {
        let network = Network {
            vtep_subnet: "44.128.0.0/16".parse().unwrap(),
            vtep_subnet6: None,
            vtep_mac_oui: "70:B3:D5:00:00:00".parse().unwrap(),
            vtep_mtu: None,
            vxlan: Vxlan::default(),
            overlays: Vec::new(),
        };
        Master::new(
            Settings {
                network: Arc::new(network),
                reuse_after: Duration::ZERO,
                kind: MasterKind::Module,
                authentication: None,
            },
            overlay_wire::encode_peers_update,
            1,
        )
    }

    /// Reads the metrics with these names on another thread.
    async fn read<const N: usize>(metrics: &Metrics<Master>, names: [&'static str; N]) -> [f64; N] {
        let metrics = metrics.clone();
        let read = move || {
            names.map(|name| {
                let all = Metrics::<Master>::catalogue().metrics;
                metrics.get(all.iter().position(|metric| metric.name == name).unwrap())
            })
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    async fn wait_until<const N: usize>(
        metrics: &Metrics<Master>,
        names: [&'static str; N],
        expected: [f64; N],
    ) {
        while read(metrics, names).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn metrics_exist_before_and_after_state_machine() {
        const NAMES: [&str; 5] =
            ["recovering", "status/ok", "version", "malformed_messages", "refused"];
        let metrics = Metrics::new();
        assert_eq!(read(&metrics, NAMES).await, [0.0; 5]);
        assert_eq!(metrics.get(usize::MAX).to_bits(), 0);

        let (inbox, receiver) = Inbox::new(metrics.clone());
        let state_machine = tokio::spawn(drive(
            master(),
            ReplyExecutor(MasterSessions::new(None, &[0; 32])),
            receiver,
            metrics.clone(),
        ));
        wait_until(&metrics, NAMES, [1.0, 0.0, 0.0, 0.0, 0.0]).await;
        let loaded = loaded(Epoch(3), Version(41));
        inbox.send(Event::Loaded(Ok(loaded))).await;
        let from = "overlay-agent@10.0.0.1:5051".parse().unwrap();
        let (name, reason) = ("nonsense".to_owned(), "malformed".to_owned());
        inbox.send(Event::Malformed { from, name, reason }).await;
        wait_until(&metrics, NAMES, [0.0, 1.0, 41.0, 1.0, 0.0]).await;
        // The listener counts a refusal without an event of the state machine.
        metrics.count_refused();
        assert_eq!(read(&metrics, NAMES).await, [0.0, 1.0, 41.0, 1.0, 1.0]);

        drop(inbox);
        state_machine.await.unwrap();
        assert_eq!(
            read(&metrics, NAMES).await,
            [0.0, 0.0, 0.0, 1.0, 1.0],
            "the state machine has ended"
        );
        metrics.count_restart();
        let (_inbox, receiver) = Inbox::new(metrics.clone());
        tokio::spawn(drive(
            master(),
            ReplyExecutor(MasterSessions::new(None, &[0; 32])),
            receiver,
            metrics.clone(),
        ));
        wait_until(&metrics, NAMES, [1.0, 0.0, 0.0, 0.0, 1.0]).await;
        assert_eq!(read(&metrics, ["process_restarts"]).await, [1.0]);
    }

    async fn health(inbox: &Inbox<Master>) -> (Condition, Vec<String>) {
        match inbox.request(Request::Health).await {
            Ok(Reply::Health(health)) => (health.status, health.problems),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn standing_warning_degrades_health_and_status() {
        const NAMES: [&str; 3] = ["status/ok", "status/degraded", "status/recovering"];
        let metrics = Metrics::new();
        let (inbox, receiver) = Inbox::new(metrics.clone());
        tokio::spawn(drive(
            master(),
            ReplyExecutor(MasterSessions::new(None, &[0; 32])),
            receiver,
            metrics.clone(),
        ));
        let warnings = metrics.warnings();
        warnings.set("acl", Some("anybody can write /overlay".to_owned()));
        let texts = || vec!["anybody can write /overlay".to_owned()];
        assert_eq!(
            health(&inbox).await,
            (Condition::Recovering, texts()),
            "the worse status stays"
        );
        wait_until(&metrics, NAMES, [0.0, 0.0, 1.0]).await;
        let loaded = loaded(Epoch(1), Version(1));
        inbox.send(Event::Loaded(Ok(loaded))).await;
        assert_eq!(health(&inbox).await, (Condition::Degraded, texts()));
        wait_until(&metrics, NAMES, [0.0, 1.0, 0.0]).await;
        let Ok(Reply::Metrics(snapshot)) = inbox.request(Request::Metrics(Vec::new())).await else {
            panic!()
        };
        assert_eq!(snapshot.metrics.status, Condition::Degraded);
        // The end of a warning is published without an event of the state machine.
        warnings.set("acl", None);
        wait_until(&metrics, NAMES, [1.0, 0.0, 0.0]).await;
        assert_eq!(health(&inbox).await, (Condition::Ok, Vec::new()));
        let Ok(Reply::Metrics(snapshot)) = inbox.request(Request::Metrics(Vec::new())).await else {
            panic!()
        };
        assert_eq!(snapshot.metrics.status, Condition::Ok);
    }
}

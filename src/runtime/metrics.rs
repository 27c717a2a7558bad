//! The numbers of a machine, for whoever wants to read them at any time and on any thread: Mesos
//! asks for its metrics one by one, on threads of its own, which must not wait for a machine.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::Limit;
use crate::logging::lines_left_out;
use crate::machine::Machine;
use crate::metrics::{Catalogue, HostCounters, Kind};
use crate::warnings::Warnings;

/// The numbers of a machine. Clones show the same numbers, and reading takes no lock.
///
/// Made before the machine, and kept when it is started again: pass a clone to each host of it, one
/// after the other. Each number is read by itself, so two of them may be of different moments.
pub struct Metrics<M: Machine> {
    shared: Arc<Shared>,
    machine: PhantomData<fn() -> M>,
}

#[derive(Debug)]
struct Shared {
    /// What the machine shows, in the order of the catalogue.
    values: Box<[AtomicU64]>,
    process_restarts: AtomicU64,
    refused: AtomicU64,
    /// What each limit refused.
    limits: [AtomicU64; Limit::COUNT],
    warnings: Warnings,
}

impl<M: Machine> Metrics<M> {
    /// All zero, until a machine runs.
    #[must_use]
    pub fn new() -> Self {
        let values = M::CATALOGUE.metrics.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Shared {
            values,
            process_restarts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            limits: Default::default(),
            warnings: Warnings::new(),
        };
        Self { shared: Arc::new(shared), machine: PhantomData }
    }

    /// Names, kinds and meanings, in the order of the indices.
    #[must_use]
    pub const fn catalogue() -> &'static Catalogue<M::Metrics> {
        M::CATALOGUE
    }

    /// The number at this index of the catalogue; 0 beyond its end.
    #[must_use]
    pub fn get(&self, index: usize) -> f64 {
        let of_host =
            M::CATALOGUE.metrics.get(index).and_then(|metric| metric.read_host(&self.host()));
        let of_machine =
            || self.shared.values.get(index).map_or(0, |value| value.load(Ordering::Relaxed));
        of_host.unwrap_or_else(of_machine) as f64
    }

    /// The standing warnings of the machine's adapters. While there is one, the status `ok` is
    /// shown as `degraded`.
    #[must_use]
    pub fn warnings(&self) -> &Warnings {
        &self.shared.warnings
    }

    /// Notes that the machine is started again because it had stopped by itself.
    pub fn count_restart(&self) {
        self.shared.process_restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts something that was refused, because of a limit or otherwise.
    pub(super) fn count_refused(&self) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts something that a limit refused or ended.
    pub(super) fn count_limit(&self, limit: Limit) {
        self.shared.limits[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn host(&self) -> HostCounters {
        HostCounters {
            process_restarts: self.shared.process_restarts.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            limits: self.shared.limits.each_ref().map(|count| count.load(Ordering::Relaxed)),
            log_lines_left_out: lines_left_out(),
        }
    }

    /// Shows how `machine` is now.
    pub(super) fn publish(&self, machine: &M) {
        let (mut machine, host) = (machine.metrics(), self.host());
        if !self.shared.warnings.is_empty() {
            M::degrade(&mut machine);
        }
        for (metric, value) in M::CATALOGUE.metrics.iter().zip(&self.shared.values) {
            value.store(metric.read(&machine, &host), Ordering::Relaxed);
        }
    }

    /// The machine has ended: it is in no state any more. What was counted stays.
    fn clear_gauges(&self) {
        for (metric, value) in M::CATALOGUE.metrics.iter().zip(&self.shared.values) {
            if metric.kind == Kind::Gauge {
                value.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl<M: Machine> Clone for Metrics<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), machine: PhantomData }
    }
}

impl<M: Machine> Default for Metrics<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> fmt::Debug for Metrics<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metrics = M::CATALOGUE.metrics.iter().enumerate();
        f.debug_map().entries(metrics.map(|(at, metric)| (metric.name, self.get(at)))).finish()
    }
}

/// Shows the numbers of a machine while it runs, however it ends.
pub(super) struct Publisher<M: Machine>(pub(super) Metrics<M>);

impl<M: Machine> Drop for Publisher<M> {
    fn drop(&mut self) {
        self.0.clear_gauges();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::inbox::{Inbox, Inputs};
    use super::super::{Executor, drive};
    use super::*;
    use crate::master::{Command, Condition, Event, Master, Reply, Request, Settings};
    use crate::protocol::{Network, Vxlan};
    use crate::store::{Epoch, Loaded, Version};

    struct Idle;

    impl Executor<Master> for Idle {
        fn before(&mut self, _: &Event) {}
        fn run(&mut self, command: Command, inputs: &mut Inputs<Master>) {
            if let Command::Reply { id, reply, .. } = command {
                inputs.reply(id, reply);
            }
        }
        fn settled(&mut self, _: &mut Inputs<Master>) {}
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
        Master::new(Settings { network: Arc::new(network), reuse_after: Duration::ZERO }, 1)
    }

    /// The numbers of these names, read on a thread that knows nothing of the machine.
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

    async fn until<const N: usize>(
        metrics: &Metrics<Master>,
        names: [&'static str; N],
        wanted: [f64; N],
    ) {
        while read(metrics, names).await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_numbers_are_there_before_the_machine_and_after_it() {
        const NAMES: [&str; 5] =
            ["recovering", "status/ok", "version", "malformed_messages", "refused"];
        let metrics = Metrics::new();
        assert_eq!(read(&metrics, NAMES).await, [0.0; 5]);
        assert_eq!(metrics.get(usize::MAX).to_bits(), 0);

        let (inbox, receiver) = Inbox::new(metrics.clone());
        let machine = tokio::spawn(drive(master(), Idle, receiver, metrics.clone()));
        until(&metrics, NAMES, [1.0, 0.0, 0.0, 0.0, 0.0]).await;
        let loaded = Loaded { epoch: Epoch(3), version: Version(41), records: Vec::new() };
        inbox.tell(Event::Loaded(Ok(loaded))).await;
        let from = "overlay-agent@10.0.0.1:5051".parse().unwrap();
        let (name, reason) = ("nonsense".to_owned(), "it is".to_owned());
        inbox.tell(Event::Malformed { from, name, reason }).await;
        until(&metrics, NAMES, [0.0, 1.0, 41.0, 1.0, 0.0]).await;
        // Whoever listens counts it, and the machine hears nothing of it.
        metrics.count_refused();
        assert_eq!(read(&metrics, NAMES).await, [0.0, 1.0, 41.0, 1.0, 1.0]);

        drop(inbox);
        machine.await.unwrap();
        assert_eq!(read(&metrics, NAMES).await, [0.0, 0.0, 0.0, 1.0, 1.0], "it is in no state");
        metrics.count_restart();
        let (_inbox, receiver) = Inbox::new(metrics.clone());
        tokio::spawn(drive(master(), Idle, receiver, metrics.clone()));
        until(&metrics, NAMES, [1.0, 0.0, 0.0, 0.0, 1.0]).await;
        assert_eq!(read(&metrics, ["process_restarts"]).await, [1.0]);
    }

    async fn health(inbox: &Inbox<Master>) -> (Condition, Vec<String>) {
        match inbox.ask(Request::Health).await {
            Ok(Reply::Health(health)) => (health.status, health.problems),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn standing_warning_degrades_health_and_status() {
        const NAMES: [&str; 3] = ["status/ok", "status/degraded", "status/recovering"];
        let metrics = Metrics::new();
        let (inbox, receiver) = Inbox::new(metrics.clone());
        tokio::spawn(drive(master(), Idle, receiver, metrics.clone()));
        let warnings = metrics.warnings();
        warnings.set("acl", Some("anybody can write /overlay".to_owned()));
        let texts = || vec!["anybody can write /overlay".to_owned()];
        assert_eq!(health(&inbox).await, (Condition::Recovering, texts()), "a worse status stays");
        until(&metrics, NAMES, [0.0, 0.0, 1.0]).await;
        let loaded = Loaded { epoch: Epoch(1), version: Version(1), records: Vec::new() };
        inbox.tell(Event::Loaded(Ok(loaded))).await;
        assert_eq!(health(&inbox).await, (Condition::Degraded, texts()));
        until(&metrics, NAMES, [0.0, 1.0, 0.0]).await;
        let Ok(Reply::Metrics(snapshot)) = inbox.ask(Request::Metrics).await else { panic!() };
        assert_eq!(snapshot.machine.status, Condition::Degraded);
        // Without any event of the machine.
        warnings.set("acl", None);
        until(&metrics, NAMES, [1.0, 0.0, 0.0]).await;
        assert_eq!(health(&inbox).await, (Condition::Ok, Vec::new()));
        let Ok(Reply::Metrics(snapshot)) = inbox.ask(Request::Metrics).await else { panic!() };
        assert_eq!(snapshot.machine.status, Condition::Ok);
    }
}

//! The metrics of a state machine: their names, what they mean, and where each is read from.
//!
//! One catalogue serves Mesos' `/metrics/snapshot` and Prometheus, so both show the same metrics.
//! Metrics of the C++ modules keep their names: dashboards and alerts use them. Mesos has no labels
//! and no histograms, so metrics that need them are in Prometheus only.

use std::time::Duration;

use libprocess::limits::Limit;
use overlay_types::container_network::NetworkKind;
use serde::Serialize;

/// Returns the value of the label `network`.
pub(crate) fn network_label(kind: NetworkKind) -> String {
    let label = match kind {
        NetworkKind::Cni => "cni",
        NetworkKind::Docker => "docker",
    };
    label.to_owned()
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Counts what happened since the start. A counter never falls.
    Counter,
    /// Shows a current value.
    Gauge,
    /// Shows a current duration in seconds. It is read in microseconds.
    Seconds,
}

impl Kind {
    /// Returns a value that was read, in the unit that is shown.
    #[must_use]
    pub fn shown(self, value: u64) -> f64 {
        match self {
            Self::Counter | Self::Gauge => value as f64,
            Self::Seconds => value as f64 / 1e6,
        }
    }
}

/// The counters of the host of a state machine: events that the state machine does not see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostCounters {
    /// When the host started, in seconds since 1970.
    pub start_unix: u64,
    /// How often the host restarted the state machine after it stopped by itself.
    pub process_restarts: u64,
    /// How often the thread of the dataplane started again after a panic.
    pub dataplane_restarts: u64,
    /// Messages and requests that were refused before they reached the state machine.
    pub refused: u64,
    /// What each limit refused, in the order of [`Limit`].
    pub limits: [u64; Limit::COUNT],
    /// Requests with wrong credentials.
    pub authentication_failures: u64,
    /// Requests that were refused because of their client or their host name.
    pub forbidden_requests: u64,
    /// Log lines that the process did not write.
    pub log: LogTally,
}

/// Log lines that the process did not write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LogTally {
    /// Lines that were suppressed because of their rate.
    pub lines_left_out: u64,
    /// Lines that the reader of the log did not take.
    pub lines_dropped: u64,
}

/// One metric, read from the values `S` of a state machine or from its host.
#[derive(Debug)]
pub struct Metric<S: 'static> {
    /// The name in Mesos, without the prefix of the catalogue. Metrics below `internal/` are for
    /// developers.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The meaning, in a sentence.
    pub help: &'static str,
    /// The Prometheus label that distinguishes the metrics of one family. Its value is the last
    /// part of the name.
    label: Option<&'static str>,
    source: Source<S>,
}

#[derive(Debug)]
enum Source<S: 'static> {
    StateMachine(fn(&S) -> u64),
    Host(fn(&HostCounters) -> u64),
    Limit(Limit),
}

impl<S> Metric<S> {
    /// Creates a counter of the state machine.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str, read: fn(&S) -> u64) -> Self {
        Self { name, kind: Kind::Counter, help, label: None, source: Source::StateMachine(read) }
    }

    /// Creates a counter of the host.
    #[must_use]
    pub const fn host_counter(
        name: &'static str,
        help: &'static str,
        read: fn(&HostCounters) -> u64,
    ) -> Self {
        Self { name, kind: Kind::Counter, help, label: None, source: Source::Host(read) }
    }

    /// Creates the gauge of the start of the host.
    pub(crate) const fn process_start() -> Self {
        Self {
            name: "process_start_time_seconds",
            kind: Kind::Gauge,
            help: "When this process started, in seconds since 1970.",
            label: None,
            source: Source::Host(|host| host.start_unix),
        }
    }

    /// Creates the counter of state machines that the host restarted.
    pub(crate) const fn process_restarts(help: &'static str) -> Self {
        Self::host_counter("process_restarts", help, |host| host.process_restarts)
    }

    /// Creates the counter of everything that was refused before it became a message.
    pub(crate) const fn refused() -> Self {
        let help = "Messages and requests that were refused before they reached the process.";
        Self::host_counter("refused", help, |host| host.refused)
    }

    /// Creates the counter of what a limit refused.
    pub(crate) const fn limit(limit: Limit) -> Self {
        Self {
            name: limit.metric(),
            kind: Kind::Counter,
            help: "Connections, messages and requests that a limit refused or ended, by its key.",
            label: Some("limit"),
            source: Source::Limit(limit),
        }
    }

    /// Creates the counter of suppressed log lines.
    pub(crate) const fn log_lines_left_out() -> Self {
        let help = "Log lines that this process suppressed because of their rate.";
        Self::host_counter("log_lines_left_out", help, |host| host.log.lines_left_out)
    }

    /// Creates the counter of dropped log lines.
    pub(crate) const fn log_lines_dropped() -> Self {
        let help = "Log lines that this process dropped, since the reader of the log hung.";
        Self::host_counter("log_lines_dropped", help, |host| host.log.lines_dropped)
    }

    /// Creates the counter of requests with wrong credentials.
    pub(crate) const fn authentication_failures() -> Self {
        let help = "HTTP requests with a wrong principal or secret.";
        let read = |host: &HostCounters| host.authentication_failures;
        Self::host_counter("authentication_failures", help, read)
    }

    /// Creates the counter of refused clients.
    pub(crate) const fn forbidden_requests() -> Self {
        let help = "HTTP requests refused because of their client or the host name in them.";
        Self::host_counter("forbidden_requests", help, |host| host.forbidden_requests)
    }

    /// Creates a gauge.
    pub(crate) const fn gauge(name: &'static str, help: &'static str, read: fn(&S) -> u64) -> Self {
        Self { name, kind: Kind::Gauge, help, label: None, source: Source::StateMachine(read) }
    }

    /// Creates a gauge of a duration that is read in microseconds.
    pub(crate) const fn seconds(
        name: &'static str,
        help: &'static str,
        read_microseconds: fn(&S) -> u64,
    ) -> Self {
        let source = Source::StateMachine(read_microseconds);
        Self { name, kind: Kind::Seconds, help, label: None, source }
    }

    /// Creates one gauge of a family. The gauges of a family share the first part of the name and
    /// the help, and differ in `label`: `agents/ok` is `agents{state="ok"}`.
    #[must_use]
    pub const fn gauge_of(
        name: &'static str,
        label: &'static str,
        help: &'static str,
        read: fn(&S) -> u64,
    ) -> Self {
        Self {
            name,
            kind: Kind::Gauge,
            help,
            label: Some(label),
            source: Source::StateMachine(read),
        }
    }

    /// Returns the current value.
    #[must_use]
    pub fn read(&self, metrics: &S, host: &HostCounters) -> u64 {
        match self.source {
            Source::StateMachine(read) => read(metrics),
            Source::Host(read) => read(host),
            Source::Limit(limit) => host.limits[limit as usize],
        }
    }

    /// Returns the current value if the host counts it.
    #[must_use]
    pub fn read_host(&self, host: &HostCounters) -> Option<u64> {
        match self.source {
            Source::StateMachine(_) => None,
            Source::Host(read) => Some(read(host)),
            Source::Limit(limit) => Some(host.limits[limit as usize]),
        }
    }

    /// Returns the name in Prometheus, without the prefix of the catalogue and the suffix of the
    /// type.
    fn family(&self) -> &'static str {
        let name = self.name.strip_prefix("internal/").unwrap_or(self.name);
        self.label_value().map_or(name, |(family, _)| family)
    }

    fn label_value(&self) -> Option<(&'static str, &'static str)> {
        self.label.and_then(|_| self.name.rsplit_once('/'))
    }

    fn series(&self, metrics: &S, host: &HostCounters) -> Series {
        let label = self.label.zip(self.label_value());
        let labels = label.map(|(label, (_, value))| (label, value.to_owned()));
        Series { labels: labels.into_iter().collect(), value: self.read(metrics, host) }
    }
}

/// All metrics of a state machine that do not depend on its configuration.
#[derive(Debug)]
pub struct Catalogue<S: 'static> {
    /// The prefix of every name in Mesos.
    pub mesos_prefix: &'static str,
    /// The prefix of every name in Prometheus. An underscore follows.
    pub prometheus_prefix: &'static str,
    /// The metrics. The metrics of one family are adjacent.
    pub metrics: &'static [Metric<S>],
}

/// Appends the counters of the host to the metrics of a state machine. The second list has the
/// limits on registrations, which only masters have. The caller imports `Limit` and `Metric`.
macro_rules! with_host_counters {
    ([$($metric:expr),+ $(,)?], [$($registration_limit:expr),* $(,)?]) => {
        &[
            $($metric,)+
            Metric::process_start(),
            Metric::refused(),
            Metric::limit(Limit::Connections),
            Metric::limit(Limit::ConnectionsPerAddress),
            Metric::limit(Limit::HttpConnections),
            Metric::limit(Limit::HttpConnectionsPerAddress),
            Metric::limit(Limit::RequestBytes),
            Metric::limit(Limit::RequestBytesPerAddress),
            Metric::limit(Limit::ResponseBytes),
            Metric::limit(Limit::ResponseBytesPerAddress),
            Metric::limit(Limit::Requests),
            Metric::limit(Limit::RequestsPerAddress),
            Metric::limit(Limit::MessagesPerSecond),
            Metric::limit(Limit::MessagesPerSecondPerAddress),
            $(Metric::limit($registration_limit),)*
            Metric::limit(Limit::UnsentBytes),
            Metric::limit(Limit::UnsentBytesPerAddress),
            Metric::limit(Limit::Connects),
            Metric::limit(Limit::ConnectsPerAddress),
            Metric::limit(Limit::RequestTimeout),
            Metric::limit(Limit::WriteTimeout),
            Metric::limit(Limit::HttpIdleTimeout),
            Metric::log_lines_left_out(),
            Metric::authentication_failures(),
            Metric::forbidden_requests(),
            Metric::log_lines_dropped(),
        ]
    };
}
pub(crate) use with_host_counters;

/// The values of all metrics at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<S> {
    /// The values of the state machine.
    pub metrics: S,
    /// The counters of the host, which fills them in.
    pub host: HostCounters,
    /// Metrics whose labels depend on the configuration, so no catalogue can list them.
    pub configured: Vec<Family>,
    /// Distributions of durations.
    pub histograms: Vec<Histogram>,
}

impl<S> Snapshot<S> {
    /// Returns all metrics in families, as Prometheus requires.
    #[must_use]
    pub fn families(&self, catalogue: &Catalogue<S>) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for metric in catalogue.metrics {
            let series = metric.series(&self.metrics, &self.host);
            match families.last_mut().filter(|last| last.name == metric.family()) {
                Some(last) => last.series.push(series),
                None => families.push(Family {
                    name: metric.family(),
                    kind: metric.kind,
                    help: metric.help,
                    series: vec![series],
                }),
            }
        }
        families.extend(self.configured.iter().cloned());
        families
    }
}

/// Metrics of one name, which differ in their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The name in Prometheus, without the prefix of the catalogue and the suffix of the type.
    pub name: &'static str,
    /// Counters or gauges.
    pub kind: Kind,
    /// The meaning, in a sentence.
    pub help: &'static str,
    /// The values.
    pub series: Vec<Series>,
}

/// One value of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Names and values of the labels.
    pub labels: Vec<(&'static str, String)>,
    /// The current value.
    pub value: u64,
}

/// A distribution of durations since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// The name in Prometheus, without the prefix of the catalogue.
    pub name: &'static str,
    /// The meaning, in a sentence.
    pub help: &'static str,
    /// The longest duration of each bucket, ascending. A last bucket without limit follows.
    pub bounds: &'static [Duration],
    /// The number of durations in each bucket, and in the last one.
    counts: Vec<u64>,
    /// The sum of all durations.
    pub sum: Duration,
}

impl Histogram {
    /// Creates a histogram without durations.
    #[must_use]
    pub fn new(name: &'static str, help: &'static str, bounds: &'static [Duration]) -> Self {
        Self { name, help, bounds, counts: vec![0; bounds.len() + 1], sum: Duration::ZERO }
    }

    /// Adds a duration.
    pub fn observe(&mut self, duration: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < duration);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += duration;
    }

    /// Returns the number of all durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the longest duration of each bucket in seconds, with the number of its durations.
    /// The last bucket has no limit.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied())
    }
}

//! The numbers by which operators watch a machine: their names, what they mean, and where each is
//! read from. One catalogue serves Mesos' `/metrics/snapshot` and Prometheus, so that nothing is in
//! one and not in the other.
//!
//! The names are those of the C++ modules where they have one: dashboards and alerts know them.

use crate::limits::Limit;

/// How a number behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It counts what happened since the start, and never falls.
    Counter,
    /// It says how things are now.
    Gauge,
}

/// What is counted by whoever runs a machine, since the machine cannot know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostCounters {
    /// How often the machine was started again because it had stopped by itself.
    pub process_restarts: u64,
    /// What peers sent and was refused before it reached the machine.
    pub refused: u64,
    /// What each limit refused, in the order of [`Limit`].
    pub limits: [u64; Limit::COUNT],
    /// Lines of the log that the process left out, since they came too often.
    pub log_lines_left_out: u64,
}

/// One number, out of `S`, which a machine shows of itself.
#[derive(Debug)]
pub struct Metric<S: 'static> {
    /// Its name in Mesos, without the prefix of the machine. Below `internal/` is what only
    /// developers look at.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// The label that tells it from the others of its family in Prometheus; its value is the last
    /// part of the name.
    label: Option<&'static str>,
    source: Source<S>,
}

#[derive(Debug)]
enum Source<S: 'static> {
    Machine(fn(&S) -> u64),
    Host(fn(&HostCounters) -> u64),
    Limit(Limit),
}

impl<S> Metric<S> {
    /// A number that never falls.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str, read: fn(&S) -> u64) -> Self {
        Self { name, kind: Kind::Counter, help, label: None, source: Source::Machine(read) }
    }

    /// The same, counted by whoever runs the machine.
    #[must_use]
    pub const fn host_counter(
        name: &'static str,
        help: &'static str,
        read: fn(&HostCounters) -> u64,
    ) -> Self {
        Self { name, kind: Kind::Counter, help, label: None, source: Source::Host(read) }
    }

    /// How often a limit refused something.
    #[must_use]
    pub const fn limit(limit: Limit) -> Self {
        Self {
            name: limit.metric(),
            kind: Kind::Counter,
            help: "Connections, messages and requests that a limit refused or ended, by its key.",
            label: Some("limit"),
            source: Source::Limit(limit),
        }
    }

    /// A number that says how things are now.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str, read: fn(&S) -> u64) -> Self {
        Self { name, kind: Kind::Gauge, help, label: None, source: Source::Machine(read) }
    }

    /// One of several gauges, which have the first part of the name and the help in common, and
    /// differ in `label`: `agents/ok` is `agents{state="ok"}`.
    #[must_use]
    pub const fn gauge_of(
        name: &'static str,
        label: &'static str,
        help: &'static str,
        read: fn(&S) -> u64,
    ) -> Self {
        Self { name, kind: Kind::Gauge, help, label: Some(label), source: Source::Machine(read) }
    }

    /// What it is now.
    #[must_use]
    pub fn read(&self, machine: &S, host: &HostCounters) -> u64 {
        match self.source {
            Source::Machine(read) => read(machine),
            Source::Host(read) => read(host),
            Source::Limit(limit) => host.limits[limit as usize],
        }
    }

    /// What it is now, if whoever runs the machine counts it.
    #[must_use]
    pub fn read_host(&self, host: &HostCounters) -> Option<u64> {
        match self.source {
            Source::Machine(_) => None,
            Source::Host(read) => Some(read(host)),
            Source::Limit(limit) => Some(host.limits[limit as usize]),
        }
    }

    /// Its name in Prometheus, without the prefix of the machine and the suffix of its kind.
    fn family(&self) -> &'static str {
        let name = self.name.strip_prefix("internal/").unwrap_or(self.name);
        self.label_value().map_or(name, |(family, _)| family)
    }

    fn label_value(&self) -> Option<(&'static str, &'static str)> {
        self.label.and_then(|_| self.name.rsplit_once('/'))
    }

    fn series(&self, machine: &S, host: &HostCounters) -> Series {
        let label = self.label.zip(self.label_value());
        let labels = label.map(|(label, (_, value))| (label, value.to_owned()));
        Series { labels: labels.into_iter().collect(), value: self.read(machine, host) }
    }
}

/// All numbers of a machine whose names are known beforehand.
#[derive(Debug)]
pub struct Catalogue<S: 'static> {
    /// What is in front of every name in Mesos.
    pub mesos_prefix: &'static str,
    /// What is in front of every name in Prometheus, and separated by an underscore.
    pub prometheus_prefix: &'static str,
    /// The numbers. Those of one family follow each other.
    pub metrics: &'static [Metric<S>],
}

/// What a machine shows of itself at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<S> {
    /// What the catalogue reads.
    pub machine: S,
    /// What it reads besides. Whoever runs the machine fills it in.
    pub host: HostCounters,
    /// What has labels that depend on the configuration, and so no place in a catalogue.
    pub configured: Vec<Family>,
}

impl<S> Snapshot<S> {
    /// All of it in families, as Prometheus wants it.
    #[must_use]
    pub fn families(&self, catalogue: &Catalogue<S>) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for metric in catalogue.metrics {
            let series = metric.series(&self.machine, &self.host);
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

/// Numbers of one name, which differ in their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The name in Prometheus, without the prefix of the machine and the suffix of its kind.
    pub name: &'static str,
    /// How they behave.
    pub kind: Kind,
    /// What they say, in a sentence.
    pub help: &'static str,
    /// The numbers.
    pub series: Vec<Series>,
}

/// One number of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// What it is now.
    pub value: u64,
}

//! Limits on what peers can make a program hold and do: their configuration keys, defaults and
//! ranges, and how they are fitted to the descriptors that the process may have.
//!
//! One table serves the configuration, the transports, the metrics and the documentation, so that
//! no limit is without a key, and none without a counter of what it refused.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Descriptors that are left for the store, the log, ZooKeeper, netlink and subprocesses.
const DESCRIPTORS_RESERVED: u64 = 128;
/// Connections that a process accepts however few descriptors it has.
const CONNECTIONS_MIN: u64 = 16;
/// A rate limit lets a peer send what it may send in this many seconds at once.
pub const BURST_SECONDS: u64 = 10;

const MIB: u64 = 1024 * 1024;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "SPECS has the meaning of each")]
#[repr(usize)]
pub enum Limit {
    Connections,
    ConnectionsPerAddress,
    HttpConnections,
    HttpConnectionsPerAddress,
    RequestBytes,
    RequestBytesPerAddress,
    ResponseBytes,
    ResponseBytesPerAddress,
    Requests,
    RequestsPerAddress,
    MessagesPerSecond,
    MessagesPerSecondPerAddress,
    RegistrationsPerSecond,
    RegistrationsPerSecondPerAddress,
    UnsentBytes,
    UnsentBytesPerAddress,
    Connects,
    ConnectsPerAddress,
    RequestTimeout,
    WriteTimeout,
    HttpIdleTimeout,
}

/// How the value of a limit is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number.
    Count,
    /// A number of bytes.
    Bytes,
    /// A number for each second.
    PerSecond,
    /// A duration of whole seconds.
    Seconds,
}

/// A limit as the configuration and the metrics know it.
#[derive(Debug)]
struct Spec {
    limit: Limit,
    /// Its counter in the metrics; the last part is its configuration key.
    metric: &'static str,
    unit: Unit,
    master: u64,
    /// `None`: the limit applies to masters only.
    agent: Option<u64>,
    range: (u64, u64),
}

/// A limit, its key and unit, its defaults for master and agent, and its range.
macro_rules! spec {
    (
        $limit:ident, $key:literal, $unit:ident, $master:expr, $agent:expr, $least:expr, $most:expr
    ) => {
        Spec {
            limit: Limit::$limit,
            metric: concat!("limit_refusals/", $key),
            unit: Unit::$unit,
            master: $master,
            agent: $agent,
            range: ($least, $most),
        }
    };
}

const MILLION: u64 = 1_000_000;
/// Most bytes of a limit, 64 GiB: more than any host lends to this program.
const BYTES_MAX: u64 = 64 * 1024 * MIB;

/// Every limit, in the order of [`Limit`].
///
/// The bytes of a master add up to less than 160 MiB together with its connections: that is what
/// hostile peers can add to its memory, apart from the answers that are being made.
#[rustfmt::skip]
const SPECS: [Spec; Limit::COUNT] = [
    // The links of 10,000 agents, some that come and go in a failover, and some for people: within
    // the descriptors that a process has on most machines.
    spec!(Connections, "connections", Count, 14_000, Some(1024), 16, MILLION),
    // An agent has one link and a few connections that come and go.
    spec!(ConnectionsPerAddress, "connections_per_address", Count, 256, Some(64), 4, MILLION),
    // A connection with the HTTP server holds at least 16 KiB; a page or a script needs one.
    spec!(HttpConnections, "http_connections", Count, 512, Some(64), 4, 100_000),
    spec!(HttpConnectionsPerAddress, "http_connections_per_address", Count,
        32, Some(16), 1, 100_000),
    // An agent takes a whole table of peers, of up to 16 MiB and, while it grows, twice that.
    spec!(RequestBytes, "request_bytes", Bytes, 24 * MIB, Some(64 * MIB), 4 * MIB, BYTES_MAX),
    spec!(RequestBytesPerAddress, "request_bytes_per_address", Bytes,
        4 * MIB, Some(32 * MIB), 4 * MIB, BYTES_MAX),
    // The state of 20,000 agents has about 20 MiB.
    spec!(ResponseBytes, "response_bytes", Bytes, 48 * MIB, Some(16 * MIB), MIB, BYTES_MAX),
    spec!(ResponseBytesPerAddress, "response_bytes_per_address", Bytes,
        16 * MIB, Some(4 * MIB), MIB, BYTES_MAX),
    spec!(Requests, "requests", Count, 64, Some(32), 4, 10_000),
    spec!(RequestsPerAddress, "requests_per_address", Count, 8, Some(8), 1, 10_000),
    // 20,000 agents that register at once send three messages each: within one burst.
    spec!(MessagesPerSecond, "messages_per_second", PerSecond, 20_000, Some(2000), 10, MILLION),
    spec!(MessagesPerSecondPerAddress, "messages_per_second_per_address", PerSecond,
        100, Some(200), 1, MILLION),
    spec!(RegistrationsPerSecond, "registrations_per_second", PerSecond, 5000, None, 10, MILLION),
    // An agent registers once, and after a second at the earliest again.
    spec!(RegistrationsPerSecondPerAddress, "registrations_per_second_per_address", PerSecond,
        5, None, 1, MILLION),
    spec!(UnsentBytes, "unsent_bytes", Bytes, 48 * MIB, Some(16 * MIB), MIB, BYTES_MAX),
    spec!(UnsentBytesPerAddress, "unsent_bytes_per_address", Bytes,
        MIB, Some(MIB), 64 * 1024, 1024 * MIB),
    // A host that swallows packets holds a place for five seconds.
    spec!(Connects, "connects", Count, 1024, Some(64), 16, 100_000),
    spec!(ConnectsPerAddress, "connects_per_address", Count, 8, Some(8), 1, 100_000),
    spec!(RequestTimeout, "request_timeout", Seconds, 60, Some(60), 1, 3600),
    spec!(WriteTimeout, "write_timeout", Seconds, 30, Some(30), 1, 3600),
    spec!(HttpIdleTimeout, "http_idle_timeout", Seconds, 120, Some(120), 1, 86_400),
];

impl Limit {
    /// How many limits there are.
    pub const COUNT: usize = Self::HttpIdleTimeout as usize + 1;

    /// Every limit.
    pub fn all() -> impl Iterator<Item = Self> {
        SPECS.iter().map(|spec| spec.limit)
    }

    const fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    /// The name of its counter in the metrics.
    #[must_use]
    pub const fn metric(self) -> &'static str {
        self.spec().metric
    }

    /// Its key in `limits` of the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        let metric = self.metric();
        metric.rsplit_once('/').map_or(metric, |(_, key)| key)
    }

    /// How its value is written.
    #[must_use]
    pub const fn unit(self) -> Unit {
        self.spec().unit
    }

    /// The values that it may have.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u64> {
        let (least, most) = self.spec().range;
        least..=most
    }

    /// Whether an agent has this limit: nobody registers with an agent.
    #[must_use]
    pub const fn is_of_agents(self) -> bool {
        self.spec().agent.is_some()
    }

    /// Returns the total that bounds this limit.
    #[must_use]
    pub const fn total(self) -> Option<Self> {
        match self {
            Self::ConnectionsPerAddress => Some(Self::Connections),
            Self::HttpConnections => Some(Self::Connections),
            Self::HttpConnectionsPerAddress => Some(Self::HttpConnections),
            Self::RequestBytesPerAddress => Some(Self::RequestBytes),
            Self::ResponseBytesPerAddress => Some(Self::ResponseBytes),
            Self::RequestsPerAddress => Some(Self::Requests),
            Self::MessagesPerSecondPerAddress => Some(Self::MessagesPerSecond),
            Self::RegistrationsPerSecondPerAddress => Some(Self::RegistrationsPerSecond),
            Self::UnsentBytesPerAddress => Some(Self::UnsentBytes),
            Self::ConnectsPerAddress => Some(Self::Connects),
            _ => None,
        }
    }
}

/// What an HTTP request may cost, as far as its method and path tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestClass {
    /// Longest body in bytes.
    pub body_max: usize,
    /// Whether its answer grows with the cluster. Such requests are limited in number.
    pub is_heavy: bool,
}

/// The values of all limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([u64; Limit::COUNT]);

impl Limits {
    /// The defaults of a master.
    #[must_use]
    pub fn of_master() -> Self {
        Self(SPECS.each_ref().map(|spec| spec.master))
    }

    /// The defaults of an agent.
    #[must_use]
    pub fn of_agent() -> Self {
        Self(SPECS.each_ref().map(|spec| spec.agent.unwrap_or(spec.master)))
    }

    /// The value of a limit, in its unit.
    #[must_use]
    pub const fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    /// The value of a limit as a size or a count.
    #[must_use]
    pub fn size(&self, limit: Limit) -> usize {
        usize::try_from(self.get(limit)).unwrap_or(usize::MAX)
    }

    /// The value of a limit that is a duration.
    #[must_use]
    pub const fn timeout(&self, limit: Limit) -> Duration {
        Duration::from_secs(self.get(limit))
    }

    /// Sets a limit.
    pub const fn set(&mut self, limit: Limit, value: u64) {
        self.0[limit as usize] = value;
    }

    /// The same with another value of one limit.
    #[must_use]
    pub const fn with(mut self, limit: Limit, value: u64) -> Self {
        self.set(limit, value);
        self
    }

    /// Fits the numbers of connections to the descriptors that the process may have: three
    /// quarters of them, without some that are reserved, may be accepted connections. Gives the
    /// fitted limits, and a warning if they are others.
    #[must_use]
    pub fn fit_to_descriptors(self, descriptors: u64) -> (Self, Option<String>) {
        let available = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 4 * 3;
        let most = available.max(CONNECTIONS_MIN.min(descriptors / 2));
        let wanted = self.get(Limit::Connections);
        if wanted <= most {
            return (self, None);
        }
        let mut fitted = self.with(Limit::Connections, most);
        for part in Limit::all() {
            if let Some(total) = part.total() {
                fitted.set(part, fitted.get(part).min(fitted.get(total)));
            }
        }
        let warning = format!(
            "limits.connections is {most} instead of {wanted}: this process may have {descriptors} \
             open files: raise the limit of open files (LimitNOFILE= of its systemd unit, ulimit \
             -n), or lower limits.connections"
        );
        (fitted, Some(warning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_consistent(limits: &Limits) -> bool {
        Limit::all()
            .all(|part| part.total().is_none_or(|total| limits.get(part) <= limits.get(total)))
    }

    #[test]
    fn specs_are_in_the_order_of_the_limits() {
        for (index, limit) in Limit::all().enumerate() {
            assert_eq!(limit as usize, index, "{limit:?}");
            assert!(limit.metric().starts_with("limit_refusals/"), "{limit:?}");
        }
    }

    #[test]
    fn defaults_are_within_their_ranges_and_do_not_contradict() {
        for limits in [Limits::of_master(), Limits::of_agent()] {
            for limit in Limit::all() {
                assert!(limit.range().contains(&limits.get(limit)), "{limit:?}");
            }
            assert!(is_consistent(&limits));
        }
    }

    #[test]
    fn bytes_of_a_master_stay_below_its_memory_limit() {
        let limits = Limits::of_master();
        let all = [Limit::RequestBytes, Limit::ResponseBytes, Limit::UnsentBytes];
        let bytes: u64 = all.iter().map(|limit| limits.get(*limit)).sum();
        // An accepted connection holds about 1 KiB, one with the HTTP server about 24 KiB.
        let connections = limits.get(Limit::Connections) * 1024;
        let http = limits.get(Limit::HttpConnections) * 24 * 1024;
        assert!(bytes + connections + http < 160 * MIB);
    }

    #[test]
    fn descriptors_clamp_connections_with_a_warning() {
        let limits = Limits::of_master();
        assert_eq!(limits.fit_to_descriptors(20_000), (limits, None));
        let (fitted, warning) = limits.fit_to_descriptors(1024);
        assert_eq!(fitted.get(Limit::Connections), 672);
        assert_eq!(fitted.get(Limit::HttpConnections), 512);
        assert!(warning.unwrap().starts_with("limits.connections is 672 instead of 14000"));
        let (fitted, _) = limits.fit_to_descriptors(64);
        assert_eq!(fitted.get(Limit::Connections), 16);
        assert!(is_consistent(&fitted));
        let (fitted, _) = limits.fit_to_descriptors(20);
        assert!(fitted.get(Limit::Connections) <= 10);
    }
}

//! Limits of memory, connections and rates: configuration keys, defaults, ranges, and the
//! adjustment to the descriptor limit of the process.
//!
//! One table serves configuration, transports, metrics and documentation. Every limit therefore has
//! a key and a metric name.
//!
//! ```
//! use libprocess::limits::{Limit, Limits};
//!
//! let limits = Limits::for_server().with(Limit::Connections, 2000);
//! assert_eq!(limits.get(Limit::Connections), 2000);
//! assert_eq!(Limit::Connections.key(), "connections");
//! ```

use std::ops::RangeInclusive;
use std::time::Duration;

/// Descriptors reserved for the rest of the program: files, logs, subprocesses, other sockets.
const DESCRIPTORS_RESERVED: u64 = 128;
/// Minimum number of accepted connections, even with few descriptors.
const CONNECTIONS_MIN: u64 = 16;
/// A rate limit allows bursts of this many seconds.
pub const BURST_SECONDS: u64 = 10;

const MIB: u64 = 1024 * 1024;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "SPECS documents the limits")]
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

/// The unit of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number.
    Count,
    /// A number of bytes.
    Bytes,
    /// A number per second.
    PerSecond,
    /// A duration in whole seconds.
    Seconds,
}

/// Name, unit, defaults and range of a limit.
#[derive(Debug)]
struct Spec {
    limit: Limit,
    /// Name of the metric. The last part is the configuration key.
    metric: &'static str,
    unit: Unit,
    /// Default for servers.
    server: u64,
    /// Default for clients; `None` if the limit applies to servers only.
    client: Option<u64>,
    range: (u64, u64),
}

/// Builds a `Spec` from limit, key, unit, defaults for servers and clients, minimum and maximum.
macro_rules! spec {
    (
        $limit:ident, $key:literal, $unit:ident, $server:expr, $client:expr, $least:expr, $most:expr
    ) => {
        Spec {
            limit: Limit::$limit,
            metric: concat!("limit_refusals/", $key),
            unit: Unit::$unit,
            server: $server,
            client: $client,
            range: ($least, $most),
        }
    };
}

const MILLION: u64 = 1_000_000;
/// Upper bound of limits in bytes: 64 GiB, more than a host reserves for one program.
const BYTES_MAX: u64 = 64 * 1024 * MIB;

/// Every limit, in the order of [`Limit`].
///
/// With the defaults for servers, hostile peers can occupy less than 160 MiB: the sum of all bytes
/// and of the memory of connections. Responses under construction are not included.
#[rustfmt::skip]
const SPECS: [Spec; Limit::COUNT] = [
    // A server with 10,000 linked peers, temporary connections in a failover, and browsers. The sum
    // is within the usual descriptor limit.
    spec!(Connections, "connections", Count, 14_000, Some(1024), 16, MILLION),
    // A peer has one link and a few temporary connections.
    spec!(ConnectionsPerAddress, "connections_per_address", Count, 256, Some(64), 4, MILLION),
    // hyper allocates at least 16 KiB for a connection. A page or a script needs one connection.
    spec!(HttpConnections, "http_connections", Count, 512, Some(64), 4, 100_000),
    spec!(HttpConnectionsPerAddress, "http_connections_per_address", Count,
        32, Some(16), 1, 100_000),
    // A client may receive a message of 16 MiB, whose buffer doubles while it grows.
    spec!(RequestBytes, "request_bytes", Bytes, 24 * MIB, Some(64 * MIB), 4 * MIB, BYTES_MAX),
    spec!(RequestBytesPerAddress, "request_bytes_per_address", Bytes,
        4 * MIB, Some(32 * MIB), 4 * MIB, BYTES_MAX),
    // A page about 20,000 peers has about 20 MiB.
    spec!(ResponseBytes, "response_bytes", Bytes, 48 * MIB, Some(16 * MIB), MIB, BYTES_MAX),
    spec!(ResponseBytesPerAddress, "response_bytes_per_address", Bytes,
        16 * MIB, Some(4 * MIB), MIB, BYTES_MAX),
    spec!(Requests, "requests", Count, 64, Some(32), 4, 10_000),
    spec!(RequestsPerAddress, "requests_per_address", Count, 8, Some(8), 1, 10_000),
    // 20,000 peers that register at the same time with three messages each are within one burst.
    spec!(MessagesPerSecond, "messages_per_second", PerSecond, 20_000, Some(2000), 10, MILLION),
    spec!(MessagesPerSecondPerAddress, "messages_per_second_per_address", PerSecond,
        100, Some(200), 1, MILLION),
    spec!(RegistrationsPerSecond, "registrations_per_second", PerSecond, 5000, None, 10, MILLION),
    // A peer registers once, and again after one second at the earliest.
    spec!(RegistrationsPerSecondPerAddress, "registrations_per_second_per_address", PerSecond,
        5, None, 1, MILLION),
    spec!(UnsentBytes, "unsent_bytes", Bytes, 48 * MIB, Some(16 * MIB), MIB, BYTES_MAX),
    spec!(UnsentBytesPerAddress, "unsent_bytes_per_address", Bytes,
        MIB, Some(MIB), 64 * 1024, 1024 * MIB),
    // A host that drops packets occupies an attempt for five seconds.
    spec!(Connects, "connects", Count, 1024, Some(64), 16, 100_000),
    spec!(ConnectsPerAddress, "connects_per_address", Count, 8, Some(8), 1, 100_000),
    spec!(RequestTimeout, "request_timeout", Seconds, 60, Some(60), 1, 3600),
    spec!(WriteTimeout, "write_timeout", Seconds, 30, Some(30), 1, 3600),
    spec!(HttpIdleTimeout, "http_idle_timeout", Seconds, 120, Some(120), 1, 86_400),
];

impl Limit {
    /// Number of limits.
    pub const COUNT: usize = Self::HttpIdleTimeout as usize + 1;

    /// Returns all limits.
    pub fn all() -> impl Iterator<Item = Self> {
        SPECS.iter().map(|spec| spec.limit)
    }

    const fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    /// Returns the name of the metric that counts rejections by this limit.
    #[must_use]
    pub const fn metric(self) -> &'static str {
        self.spec().metric
    }

    /// Returns the configuration key.
    #[must_use]
    pub fn key(self) -> &'static str {
        let metric = self.metric();
        metric.rsplit_once('/').map_or(metric, |(_, key)| key)
    }

    /// Returns the unit.
    #[must_use]
    pub const fn unit(self) -> Unit {
        self.spec().unit
    }

    /// Returns the valid range.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u64> {
        let (least, most) = self.spec().range;
        least..=most
    }

    /// Whether the limit applies to clients. Peers do not register with clients.
    #[must_use]
    pub const fn applies_to_clients(self) -> bool {
        self.spec().client.is_some()
    }

    /// Returns the total limit that bounds this limit.
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

/// The cost class of an HTTP request, by its method and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestClass {
    /// Maximum length of the body in bytes.
    pub body_max: usize,
    /// Whether the response is expensive. The number of concurrent expensive requests is limited.
    pub is_heavy: bool,
}

/// The values of all limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([u64; Limit::COUNT]);

impl Limits {
    /// Returns the defaults for a server with thousands of peers.
    #[must_use]
    pub fn for_server() -> Self {
        Self(SPECS.each_ref().map(|spec| spec.server))
    }

    /// Returns the defaults for a client of such a server.
    #[must_use]
    pub fn for_client() -> Self {
        Self(SPECS.each_ref().map(|spec| spec.client.unwrap_or(spec.server)))
    }

    /// Returns the value of a limit in its unit.
    #[must_use]
    pub const fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    /// Returns the value of a limit as a size or a count.
    #[must_use]
    pub fn size(&self, limit: Limit) -> usize {
        usize::try_from(self.get(limit)).unwrap_or(usize::MAX)
    }

    /// Returns the value of a limit that is a duration.
    #[must_use]
    pub const fn timeout(&self, limit: Limit) -> Duration {
        Duration::from_secs(self.get(limit))
    }

    /// Sets the value of a limit.
    pub const fn set(&mut self, limit: Limit, value: u64) {
        self.0[limit as usize] = value;
    }

    /// Returns the limits with another value of one limit.
    #[must_use]
    pub const fn with(mut self, limit: Limit, value: u64) -> Self {
        self.set(limit, value);
        self
    }

    /// Reduces the limits of connections to the descriptor limit of the process. Three quarters of
    /// the unreserved descriptors may be accepted connections. Returns the limits, and a warning if
    /// they were reduced.
    #[must_use]
    pub fn fit_to_descriptors(self, descriptors: u64) -> (Self, Option<String>) {
        let available = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 4 * 3;
        let most = available.max(CONNECTIONS_MIN.min(descriptors / 2));
        let configured = self.get(Limit::Connections);
        if configured <= most {
            return (self, None);
        }
        let mut fitted = self.with(Limit::Connections, most);
        for part in Limit::all() {
            if let Some(total) = part.total() {
                fitted.set(part, fitted.get(part).min(fitted.get(total)));
            }
        }
        let warning = format!(
            "limits.connections is {most} instead of {configured}: this process may have \
             {descriptors} open files: raise the limit of open files (LimitNOFILE= of its systemd \
             unit, ulimit -n), or lower limits.connections"
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
    fn specs_have_order_of_limits() {
        for (index, limit) in Limit::all().enumerate() {
            assert_eq!(limit as usize, index, "{limit:?}");
            assert!(limit.metric().starts_with("limit_refusals/"), "{limit:?}");
        }
    }

    #[test]
    fn defaults_are_in_range_and_consistent() {
        for limits in [Limits::for_server(), Limits::for_client()] {
            for limit in Limit::all() {
                assert!(limit.range().contains(&limits.get(limit)), "{limit:?}");
            }
            assert!(is_consistent(&limits));
        }
    }

    #[test]
    fn server_defaults_bound_memory() {
        let limits = Limits::for_server();
        let all = [Limit::RequestBytes, Limit::ResponseBytes, Limit::UnsentBytes];
        let bytes: u64 = all.iter().map(|limit| limits.get(*limit)).sum();
        // An accepted connection holds about 1 KiB, and a connection of hyper about 24 KiB.
        let connections = limits.get(Limit::Connections) * 1024;
        let http = limits.get(Limit::HttpConnections) * 24 * 1024;
        assert!(bytes + connections + http < 160 * MIB);
    }

    #[test]
    fn fit_to_descriptors_reduces_connections_with_warning() {
        let limits = Limits::for_server();
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

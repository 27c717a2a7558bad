//! Pings from every container to every other container, with small packets and with the largest
//! that an overlay carries, and the matrix of their round-trip times.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use overlay_linux::probe::echo::{EchoRequest, IcmpError, Outcome, Prober};
use serde::Serialize;

use super::containers::Container;

/// Bytes of a small packet: the default of `ping`.
const SMALL: u32 = 84;
/// Timeout of a reply, and number of attempts: a machine may be busy.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
/// Width of a cell of the matrix.
const CELL_WIDTH: usize = 5;

/// The cell of a ping without a reply.
pub(super) const LOST: &str = "lost";

/// A ping between two containers, which are identified by their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Ping {
    pub(super) from: String,
    pub(super) to: String,
    /// Length of the packet with its headers.
    pub(super) bytes: u32,
    /// The round-trip time; `None` without a reply.
    pub(super) microseconds: Option<u64>,
    /// Why there was no reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// Pings every container from every other container. The pings run concurrently, so that their
/// timeouts overlap. Blocks.
pub(super) fn ping_all(containers: &[Container]) -> Vec<Ping> {
    let all = || containers.iter();
    let pairs = all().flat_map(|from| all().map(move |to| (from, to)));
    let pairs = pairs.filter(|(from, to)| from.name != to.name);
    std::thread::scope(|scope| {
        let start = |(from, to)| {
            let thread = std::thread::Builder::new().name("overlay-ping".to_owned());
            (from, to, thread.spawn_scoped(scope, move || ping(from, to)))
        };
        let started: Vec<_> = pairs.map(start).collect();
        let finish = |(from, to, thread): (_, _, io::Result<ScopedJoinHandle<'_, _>>)| {
            let pinged = match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("its thread panicked".into())),
                Err(error) => Err(error.to_string()),
            };
            let results = pinged.unwrap_or_else(|why: String| [Err(why.clone()), Err(why)]);
            let all = sizes(from, to).into_iter().zip(results);
            all.map(|(bytes, took)| Ping::new(from, to, bytes, took)).collect::<Vec<_>>()
        };
        started.into_iter().flat_map(finish).collect()
    })
}

fn sizes(from: &Container, to: &Container) -> [u32; 2] {
    [SMALL, from.mtu.min(to.mtu)]
}

/// Pings with all sizes. The calling thread stays in the namespace of the container.
fn ping(from: &Container, to: &Container) -> Result<[Result<Duration, String>; 2], String> {
    from.namespace.enter().map_err(|error| error.to_string())?;
    let (source, target) = (from.address.into(), to.address.into());
    let mut prober = Prober::open(&[source].into()).map_err(|error| error.to_string())?;
    // Send one after the other: of two concurrent pings, the second would measure the first too.
    Ok(sizes(from, to).map(|size| {
        let echo = EchoRequest { from: source, to: target, size };
        round_trip_time(&prober.round(&[echo], TRIES, REPLY_TIMEOUT).outcomes[0])
    }))
}

/// Returns the round-trip time, or why there was no reply.
fn round_trip_time(outcome: &Outcome) -> Result<Duration, String> {
    match outcome {
        Outcome::Replied(took) => Ok(*took),
        Outcome::NoReply => Err(format!("no reply to {TRIES} pings within {REPLY_TIMEOUT:?} each")),
        Outcome::TooBig(_) => Err("the packet is larger than the path allows".to_owned()),
        Outcome::Unreachable(IcmpError { reporter, .. }) => {
            Err(format!("{reporter} has no route to the target, or forbids the ping"))
        }
        Outcome::NotSent(reason) => Err(reason.clone()),
    }
}

impl Ping {
    fn new(from: &Container, to: &Container, bytes: u32, took: Result<Duration, String>) -> Self {
        let took = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let (from, to) = (from.name.clone(), to.name.clone());
        Self { from, to, bytes, microseconds: took.as_ref().ok().copied(), error: took.err() }
    }
}

/// Draws the matrix. Each cell shows the slower ping of a row's container to a column's container.
pub(super) fn draw(containers: &[(&str, Ipv4Addr)], pings: &[Ping]) -> Vec<String> {
    let width = containers.iter().map(|(name, ip)| name.len() + 1 + ip.to_string().len()).max();
    let width = width.unwrap_or(0);
    let mut head = format!("{:width$}", "from \\ to");
    for (name, _) in containers {
        head += &format!("{name:>CELL_WIDTH$}");
    }
    let mut lines = vec![head];
    for (from, ip) in containers {
        let mut line = format!("{:width$}", format!("{from} {ip}"));
        for (to, _) in containers {
            line += &format!("{:>CELL_WIDTH$}", cell(from, to, pings));
        }
        lines.push(line);
    }
    lines
}

fn cell(from: &str, to: &str, pings: &[Ping]) -> String {
    let matching = pings.iter().filter(|ping| ping.from == from && ping.to == to);
    let times: Option<Vec<u64>> = matching.map(|ping| ping.microseconds).collect();
    match times.map(|times| times.into_iter().max()) {
        None => LOST.to_owned(),
        Some(None) => "·".to_owned(),
        Some(Some(slowest)) => milliseconds(slowest),
    }
}

/// Formats a time in at most four columns.
fn milliseconds(microseconds: u64) -> String {
    let hundredths = microseconds.div_ceil(10);
    match hundredths {
        0..1000 => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        1000..10_000 => format!("{}.{}", hundredths / 100, hundredths / 10 % 10),
        _ => (hundredths / 100).to_string(),
    }
}

/// Returns the number of replies, and a line for each ping without a reply.
pub(super) fn summary(pings: &[Ping]) -> Vec<String> {
    let sizes: BTreeSet<u32> = pings.iter().map(|ping| ping.bytes).collect();
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    let replied = pings.iter().filter(|ping| ping.microseconds.is_some()).count();
    let mut lines = vec![format!(
        "{replied} of {} pings had a reply, with unfragmented packets of {} bytes",
        pings.len(),
        sizes.join(" and ")
    )];
    for ping in pings {
        if let Some(error) = &ping.error {
            lines.push(format!("{} to {}, {} bytes: {error}", ping.from, ping.to, ping.bytes));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping(from: &str, to: &str, bytes: u32, took: Option<u64>) -> Ping {
        let error = took.is_none().then(|| "no reply within 1s".to_owned());
        Ping { from: from.into(), to: to.into(), bytes, microseconds: took, error }
    }

    #[test]
    fn matrix_shows_slower_ping_and_lost_pings() {
        let containers =
            [("c1", Ipv4Addr::new(192, 168, 0, 2)), ("c2", Ipv4Addr::new(192, 168, 128, 2))];
        let pings = [
            ping("c1", "c2", 84, Some(61)),
            ping("c1", "c2", 1420, Some(118)),
            ping("c2", "c1", 84, Some(70)),
            ping("c2", "c1", 1420, None),
        ];
        assert_eq!(
            draw(&containers, &pings),
            [
                "from \\ to          c1   c2",
                "c1 192.168.0.2      · 0.12",
                "c2 192.168.128.2 lost    ·"
            ]
        );
        assert_eq!(
            summary(&pings),
            [
                "3 of 4 pings had a reply, with unfragmented packets of 84 and 1420 bytes",
                "c2 to c1, 1420 bytes: no reply within 1s"
            ]
        );
    }

    #[test]
    fn times_have_at_most_four_columns() {
        let shown = [1, 9_994, 12_345, 99_991, 123_456, 2_999_000].map(milliseconds);
        assert_eq!(shown, ["0.01", "10.0", "12.3", "100", "123", "2999"]);
        assert_eq!(milliseconds(9_981), "9.99");
    }
}

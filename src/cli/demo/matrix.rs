//! Pings from every container to every other, with small packets and with the largest that an
//! overlay carries, and what came of them.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::containers::Container;
use crate::cli::echo::{Echo, Outcome, Prober, Refusal};

/// A small packet: what `ping` sends.
const SMALL: u32 = 84;
/// How long an answer is waited for, and how often it is tried: a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
/// Columns of a cell.
const CELL: usize = 5;

/// A ping, by the names of the containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Ping {
    pub(super) from: String,
    pub(super) to: String,
    /// Of the packet, with its headers.
    pub(super) bytes: u32,
    /// How long the answer took; nothing if there was none.
    pub(super) microseconds: Option<u64>,
    /// Why there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// Pings everybody from everywhere, all at once, so that what is lost is waited for at the same
/// time. Blocks.
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

/// The thread stays where the container is.
fn ping(from: &Container, to: &Container) -> Result<[Result<Duration, String>; 2], String> {
    from.namespace.enter().map_err(|error| error.to_string())?;
    let (source, target) = (from.address.into(), to.address.into());
    let mut prober = Prober::open(&[source].into()).map_err(|error| error.to_string())?;
    // One after the other: of two at once the second waits until the first was taken.
    Ok(sizes(from, to).map(|size| {
        let echo = Echo { from: source, to: target, size };
        took(&prober.round(&[echo], TRIES, PATIENCE).outcomes[0])
    }))
}

/// How long it took, or why there was no answer.
fn took(outcome: &Outcome) -> Result<Duration, String> {
    match outcome {
        Outcome::Answered(took) => Ok(*took),
        Outcome::Silent => Err(format!("no answer to {TRIES} of them, within {PATIENCE:?} each")),
        Outcome::TooBig(_) => Err("it is larger than what passes on the way".to_owned()),
        Outcome::Refused(Refusal { by, .. }) => {
            Err(format!("{by} has no way to it, or forbids it"))
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

/// One line for each container, and in its columns how long the slower of its pings took.
pub(super) fn draw(containers: &[(&str, Ipv4Addr)], pings: &[Ping]) -> Vec<String> {
    let width = containers.iter().map(|(name, ip)| name.len() + 1 + ip.to_string().len()).max();
    let width = width.unwrap_or(0);
    let mut head = format!("{:width$}", "from \\ to");
    for (name, _) in containers {
        head += &format!("{name:>CELL$}");
    }
    let mut lines = vec![head];
    for (from, ip) in containers {
        let mut line = format!("{:width$}", format!("{from} {ip}"));
        for (to, _) in containers {
            line += &format!("{:>CELL$}", cell(from, to, pings));
        }
        lines.push(line);
    }
    lines
}

fn cell(from: &str, to: &str, pings: &[Ping]) -> String {
    let own = pings.iter().filter(|ping| ping.from == from && ping.to == to);
    let times: Option<Vec<u64>> = own.map(|ping| ping.microseconds).collect();
    match times.map(|times| times.into_iter().max()) {
        None => "lost".to_owned(),
        Some(None) => "·".to_owned(),
        Some(Some(slowest)) => milliseconds(slowest),
    }
}

/// In at most four columns.
fn milliseconds(microseconds: u64) -> String {
    let hundredths = microseconds.div_ceil(10);
    match hundredths {
        0..1000 => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        1000..10_000 => format!("{}.{}", hundredths / 100, hundredths / 10 % 10),
        _ => (hundredths / 100).to_string(),
    }
}

/// How many there were, how fast, and why some had no answer.
pub(super) fn summary(pings: &[Ping]) -> Vec<String> {
    let sizes: BTreeSet<u32> = pings.iter().map(|ping| ping.bytes).collect();
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    let answered = pings.iter().filter(|ping| ping.microseconds.is_some()).count();
    let mut lines = vec![format!(
        "{answered} of {} pings were answered, with {} bytes, none of which may be cut in pieces",
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
        let error = took.is_none().then(|| "no answer within 1s".to_owned());
        Ping { from: from.into(), to: to.into(), bytes, microseconds: took, error }
    }

    #[test]
    fn the_slower_ping_is_shown_and_what_is_lost_is_named() {
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
                "3 of 4 pings were answered, with 84 and 1420 bytes, none of which may be cut in \
                 pieces",
                "c2 to c1, 1420 bytes: no answer within 1s"
            ]
        );
    }

    #[test]
    fn times_have_four_columns() {
        let shown = [1, 9_994, 12_345, 99_991, 123_456, 2_999_000].map(milliseconds);
        assert_eq!(shown, ["0.01", "10.0", "12.3", "100", "123", "2999"]);
        assert_eq!(milliseconds(9_981), "9.99");
    }
}

//! Probes: connections and datagrams from a namespace, and whether they arrive. The probes of a
//! table run in parallel, since most of them wait for packets that the firewall drops.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};

use super::packets::{Mark, VxlanPacket, send_datagram};
use crate::namespace::Namespace;
use crate::traffic::{now, sleep};

/// Time limit of a connection: the kernel sends the second SYN after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Number of times that a datagram is sent, and the time that the receiver waits for each.
const SENDS: u32 = 3;
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Pass,
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(if *self == Self::Pass { "pass" } else { "drop" })
    }
}

type Call<'a, T> = Box<dyn Fn() -> T + std::marker::Send + Sync + 'a>;
type Send<'a> = Box<dyn Fn(&Mark) + std::marker::Send + Sync + 'a>;

/// What a row does.
pub(super) enum Action<'a> {
    /// Connects by TCP. A reset passes too: it proves that the packet arrived.
    Connect { from: &'a Namespace, source: Option<IpAddr>, to: SocketAddr },
    /// Sends an HTTP request by TCP. Passes if there is a response.
    Request { from: &'a Namespace, to: SocketAddr },
    /// Calls `send` in one namespace. Passes if the datagram arrives in the other.
    Datagram { from: &'a Namespace, to: &'a Namespace, send: Send<'a> },
    /// Calls `act`. Passes if it has an effect.
    Change { act: Call<'a, ()>, has_effect: Call<'a, bool> },
}

impl<'a> Action<'a> {
    /// Sends a datagram to a container as an ordinary process does.
    pub(super) fn datagram(from: &'a Namespace, to: &'a Namespace, address: IpAddr) -> Self {
        let send = move |mark: &Mark| send_datagram((address, mark.port).into(), &mark.tag);
        Self::Datagram { from, to, send: Box::new(send) }
    }

    /// Sends a VXLAN packet from the underlay address `outer` to a container.
    pub(super) fn vxlan(
        (from, outer): (&'a Namespace, Ipv4Addr),
        to: &'a Namespace,
        packet: VxlanPacket,
    ) -> Self {
        let send = move |mark: &Mark| packet.send_raw(outer, mark);
        Self::Datagram { from, to, send: Box::new(send) }
    }
}

/// A row of a table.
pub(super) struct Row<'a> {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) expected: Verdict,
    /// The result without the rules.
    pub(super) control: Verdict,
    /// Whether only isolation of the overlays drops the packets.
    pub(super) is_about_isolation: bool,
    pub(super) action: Action<'a>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        source: impl Into<String>,
        target: impl Into<String>,
        expected: Verdict,
        action: Action<'a>,
    ) -> Self {
        let (source, target) = (source.into(), target.into());
        let (control, is_about_isolation) = (Verdict::Pass, false);
        Self { source, target, expected, control, is_about_isolation, action }
    }

    pub(super) const fn about_isolation(mut self) -> Self {
        self.is_about_isolation = true;
        self
    }

    fn run(&self, index: u16) -> Verdict {
        let has_passed = match &self.action {
            Action::Connect { from, source, to } => from.inside(|| can_connect(*source, *to)),
            Action::Request { from, to } => from.inside(|| has_response(*to)),
            Action::Change { act, has_effect } => (0..SENDS).any(|_| {
                act();
                sleep(RECEIVE_TIMEOUT);
                has_effect()
            }),
            Action::Datagram { from, to, send } => {
                let port = 20_000 + index;
                let receiver = to.inside(|| {
                    UdpSocket::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
                        .expect("a free port")
                });
                let mut mark = Mark { tag: *b"probe-00", port, source_port: 40_000 + index };
                mark.tag[6..].copy_from_slice(&index.to_be_bytes());
                (0..SENDS).any(|_| {
                    from.inside(|| send(&mark));
                    is_received(&receiver, &mark.tag)
                })
            }
        };
        if has_passed { Verdict::Pass } else { Verdict::Drop }
    }
}

/// Runs all rows in parallel. Returns their results in the same order.
pub(super) fn run(rows: &[&Row<'_>]) -> Vec<Verdict> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (index, row) in (0..).zip(rows) {
            let thread = std::thread::Builder::new();
            threads.push(thread.spawn_scoped(scope, move || row.run(index)).expect("a thread"));
        }
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Runs and prints the rows. Returns a line for each row with another result than `expected`.
pub(super) fn differences<'a, 'b: 'a>(
    rows: impl Iterator<Item = &'a Row<'b>>,
    backend: &str,
    expected: impl Fn(&Row<'_>) -> Verdict,
) -> Vec<String> {
    let rows: Vec<_> = rows.collect();
    let mut different = Vec::new();
    for (row, mut seen) in rows.iter().zip(run(&rows)) {
        let expected = expected(row);
        if (expected, seen) == (Verdict::Pass, Verdict::Drop) {
            // On a busy machine an answer may take too long.
            seen = run(&[row])[0];
        }
        let Row { source, target, .. } = row;
        let mut line = format!("{source:46} {target:46} {backend:24} {expected:5} {seen:5}");
        if seen != expected {
            line += " DIFFERENT";
            different.push(line.clone());
        }
        eprintln!("{line}");
    }
    different
}

fn can_connect(source: Option<IpAddr>, to: SocketAddr) -> bool {
    let result = match source {
        None => TcpStream::connect_timeout(&to, CONNECT_TIMEOUT).map(drop),
        Some(source) => {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            // The timeout of sends limits the time of a connection too.
            let timeout = Some(CONNECT_TIMEOUT);
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, timeout).expect("set");
            bind(&socket, &SocketAddr::new(source, 0)).expect("a local address");
            connect(&socket, &to).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    }
}

fn has_response(to: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT) else { return false };
    let timeout = Some(2 * CONNECT_TIMEOUT);
    stream.set_read_timeout(timeout).expect("a socket timeout");
    stream.write_all(b"GET /bin/busybox HTTP/1.0\r\n\r\n").is_ok()
        && stream.read(&mut [0; 8]).is_ok_and(|count| count > 0)
}

/// Waits for the datagram. Other probes may have sent other datagrams to this port.
fn is_received(receiver: &UdpSocket, tag: &[u8]) -> bool {
    let start = now();
    let mut buffer = [0; 64];
    while let Some(time) = RECEIVE_TIMEOUT.checked_sub(start.elapsed()).filter(|t| !t.is_zero()) {
        receiver.set_read_timeout(Some(time)).expect("a socket timeout");
        if receiver.recv(&mut buffer).is_ok_and(|count| buffer[..count] == *tag) {
            return true;
        }
    }
    false
}

//! Traffic between containers that a CNI plugin, Docker or the test created.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::namespace::{BUSYBOX, Namespace, run};

/// Size of the receive buffer in bytes. It holds about ten seconds of a stream.
const RECEIVE_BUFFER: usize = 16 << 20;

#[expect(clippy::disallowed_methods, reason = "the kernel under test uses the real clock")]
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "the kernel under test uses the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns how many times slower than a real machine this machine is: `tests/kernels/init` sets the
/// factor for emulated machines.
#[expect(clippy::disallowed_methods, reason = "the emulated machine sets the factor")]
pub(crate) fn time_factor() -> u32 {
    let factor = std::env::var("MESOS_OVERLAY_TIME_FACTOR").ok();
    factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Returns a time limit for this machine.
pub(crate) fn time_limit(limit: Duration) -> Duration {
    limit * time_factor()
}

/// Returns the time between two polls on this machine. Each poll starts programs, which take
/// processor time from the agents: polling at full speed makes a slow machine much slower.
pub(crate) fn poll_interval(interval: Duration) -> Duration {
    interval * time_factor().min(4)
}

/// Returns a guard that calls `end` when it is dropped.
pub(crate) fn on_drop(end: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}

/// Returns whether `address` answers a ping from `from` with `size` bytes.
pub(crate) fn can_ping(from: &Namespace, address: IpAddr, size: u32) -> bool {
    let (size, address) = (size.to_string(), address.to_string());
    let ping = ["ping", "-c", "1", "-W", "2", "-s", &size, &address];
    run(from.command(BUSYBOX).args(ping), "").status.success()
}

/// A stream of datagrams from one container to another.
pub(crate) struct Stream<'a> {
    from: &'a Namespace,
    to: &'a Namespace,
    address: IpAddr,
}

impl<'a> Stream<'a> {
    /// Creates a stream from one container to the other container, which has this address.
    pub(crate) const fn new(from: &'a Namespace, to: &'a Namespace, address: IpAddr) -> Self {
        Self { from, to, address }
    }

    /// Sends datagrams while `act` runs. Returns the number of sent and the number of lost
    /// datagrams.
    pub(crate) fn measure_loss_during(&self, act: impl FnOnce()) -> (u32, u32) {
        let address = SocketAddr::new(self.address, 7007);
        let receiver = self.to.inside(|| UdpSocket::bind(address).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket timeout");
        // On a busy machine the receiver may not run for a while; the buffer prevents a false loss.
        set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER)
            .expect("permission for a larger buffer");
        let sender = self.from.inside(|| {
            let any: IpAddr = if self.address.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a free port");
            socket.connect(address).expect("a route");
            socket
        });
        // Both containers resolve their gateways before the measurement.
        assert!(can_ping(self.from, self.address, 16), "{} does not answer", self.address);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let send = || {
                let mut sent = 0;
                while !is_over.load(Ordering::Relaxed) {
                    sent += u32::from(sender.send(b"datagram").is_ok());
                    sleep(Duration::from_millis(1));
                }
                sent
            };
            let count = || {
                let mut buffer = [0; 16];
                let mut received = 0;
                loop {
                    match receiver.recv(&mut buffer) {
                        Ok(_) => received += 1,
                        // A timeout of the receiver, or an ICMP error.
                        Err(_) if !is_over.load(Ordering::Relaxed) => {}
                        Err(_) => return received,
                    }
                }
            };
            let spawn = "a thread";
            let counting = std::thread::Builder::new().spawn_scoped(scope, count).expect(spawn);
            let sending = std::thread::Builder::new().spawn_scoped(scope, send).expect(spawn);
            sleep(Duration::from_millis(100));
            let over = on_drop(|| is_over.store(true, Ordering::Relaxed));
            act();
            sleep(Duration::from_millis(100));
            drop(over);
            let sent = sending.join().expect("thread does not panic");
            (sent, sent - counting.join().expect("thread does not panic"))
        })
    }
}

/// Sends `size` bytes by TCP from one container to another.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, size: usize) {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));
    let listener =
        to.inside(|| TcpListener::bind(SocketAddr::new(address, 0)).expect("a free port"));
    let port = listener.local_addr().expect("a bound address").port();
    let received = std::thread::scope(|scope| {
        let receive = || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(TIMEOUT).expect("a socket timeout");
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("readable stream");
            bytes.len()
        };
        let receiver = std::thread::Builder::new().spawn_scoped(scope, receive);
        let receiver = receiver.expect("a thread");
        from.inside(|| {
            let to = SocketAddr::new(address, port);
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let mut stream = stream.unwrap_or_else(|error| panic!("{to}: {error}"));
            stream.set_write_timeout(TIMEOUT).expect("a socket timeout");
            stream.write_all(&vec![7; size]).expect("accepted bytes");
        });
        receiver.join().expect("thread does not panic")
    });
    assert_eq!(received, size);
}

//! Traffic between containers, be they made by a plugin, by Docker or by the test itself.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::namespace::{BUSYBOX, Namespace, run};

/// Bytes that wait for whoever receives a stream: some ten seconds of it.
const RECEIVE_BUFFER: usize = 16 << 20;

#[expect(clippy::disallowed_methods, reason = "the kernel cannot be given another clock")]
pub(crate) fn wait(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "the kernel cannot be given another clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Calls `end` when it goes.
pub(crate) fn at_the_end(end: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}

/// Whether a ping from `from` with so many bytes is answered.
pub(crate) fn reaches(from: &Namespace, address: IpAddr, size: u32) -> bool {
    let (size, address) = (size.to_string(), address.to_string());
    let ping = ["ping", "-c", "1", "-W", "2", "-s", &size, &address];
    run(from.command(BUSYBOX).args(ping), "").status.success()
}

/// Datagrams that go from one container to another until it is told to end.
pub(crate) struct Stream<'a> {
    from: &'a Namespace,
    to: &'a Namespace,
    address: IpAddr,
}

impl<'a> Stream<'a> {
    /// From one container to the other, which has this address.
    pub(crate) const fn new(from: &'a Namespace, to: &'a Namespace, address: IpAddr) -> Self {
        Self { from, to, address }
    }

    /// How many datagrams were sent while `act` ran, and how many of them were lost.
    pub(crate) fn lost_while(&self, act: impl FnOnce()) -> (u32, u32) {
        let address = SocketAddr::new(self.address, 7007);
        let receiver = self.to.inside(|| UdpSocket::bind(address).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("it is a socket");
        // On a busy machine the receiver may not get to run for a while, which is no loss.
        set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).expect("root may have more");
        let sender = self.from.inside(|| {
            let any: IpAddr = if self.address.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a free port");
            socket.connect(address).expect("there is a route");
            socket
        });
        // The containers get to know their gateways.
        assert!(reaches(self.from, self.address, 16), "{} answers", self.address);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let send = || {
                let mut sent = 0;
                while !is_over.load(Ordering::Relaxed) {
                    sent += u32::from(sender.send(b"datagram").is_ok());
                    wait(Duration::from_millis(1));
                }
                sent
            };
            let count = || {
                let mut buffer = [0; 16];
                let mut received = 0;
                loop {
                    match receiver.recv(&mut buffer) {
                        Ok(_) => received += 1,
                        // Neither is one of the sender.
                        Err(_) if !is_over.load(Ordering::Relaxed) => {}
                        Err(_) => return received,
                    }
                }
            };
            let spawn = "there is room for a thread";
            let counting = std::thread::Builder::new().spawn_scoped(scope, count).expect(spawn);
            let sending = std::thread::Builder::new().spawn_scoped(scope, send).expect(spawn);
            wait(Duration::from_millis(100));
            let over = at_the_end(|| is_over.store(true, Ordering::Relaxed));
            act();
            wait(Duration::from_millis(100));
            drop(over);
            let sent = sending.join().expect("it does not panic");
            (sent, sent - counting.join().expect("it does not panic"))
        })
    }
}

/// Sends `size` bytes by TCP from a container to another.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, size: usize) {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));
    let listener =
        to.inside(|| TcpListener::bind(SocketAddr::new(address, 0)).expect("a free port"));
    let port = listener.local_addr().expect("it is bound").port();
    let received = std::thread::scope(|scope| {
        let receive = || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            stream.set_read_timeout(TIMEOUT).expect("it is a socket");
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("it arrives");
            bytes.len()
        };
        let receiver = std::thread::Builder::new().spawn_scoped(scope, receive);
        let receiver = receiver.expect("there is room for a thread");
        from.inside(|| {
            let to = SocketAddr::new(address, port);
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let mut stream = stream.unwrap_or_else(|error| panic!("{to}: {error}"));
            stream.set_write_timeout(TIMEOUT).expect("it is a socket");
            stream.write_all(&vec![7; size]).expect("it is taken");
        });
        receiver.join().expect("it does not panic")
    });
    assert_eq!(received, size);
}

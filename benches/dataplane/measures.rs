//! Measures throughput, request/response rate and connect rate between two network namespaces. Client and server are threads of this process, each on its own processor.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::namespace::Namespace;
use crate::{now, pin_to_processor};

/// The processor of the servers. The client has processor 0.
const SERVER_PROCESSOR: usize = 1;
const BULK_PORT: u16 = 7007;
const REQUESTS_PORT: u16 = 7008;
const CONNECTS_PORT: u16 = 7009;
/// Length of a write, in bytes.
const CHUNK: u32 = 1 << 18;

/// A measured quantity, with its unit and its function.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) run: fn(&mut Link<'_>, Duration) -> f64,
}

pub(crate) const MEASURES: [Measure; 3] = [
    Measure { name: "throughput", unit: "Gbit/s", run: |link, time| link.throughput(time) },
    Measure { name: "request and response", unit: "per s", run: |link, time| link.requests(time) },
    Measure {
        name: "connect, request, reset",
        unit: "per s",
        run: |link, time| link.connects(time),
    },
];

/// Open connections from a client to a server.
pub(crate) struct Link<'a> {
    client: &'a Namespace,
    address: IpAddr,
    bulk: TcpStream,
    requests: TcpStream,
}

impl<'a> Link<'a> {
    /// Starts the servers at `address` in the namespace `server`, and connects to them.
    pub(crate) fn open(client: &'a Namespace, server: &Namespace, address: IpAddr) -> Self {
        serve(server, address, BULK_PORT, |mut stream| {
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
        serve(server, address, REQUESTS_PORT, answer);
        serve(server, address, CONNECTS_PORT, answer);
        let connect = |port| {
            let open = || TcpStream::connect(SocketAddr::new(address, port));
            client.inside(open).expect("the path works")
        };
        let (bulk, requests) = (connect(BULK_PORT), connect(REQUESTS_PORT));
        requests.set_nodelay(true).expect("an option of TCP");
        Self { client, address, bulk, requests }
    }

    /// Sends data. Returns the throughput in Gbit/s.
    fn throughput(&mut self, time: Duration) -> f64 {
        let bytes = vec![7; CHUNK as usize];
        let (start, mut sent) = (now(), 0.0);
        while start.elapsed() < time {
            self.bulk.write_all(&bytes).expect("data is sent");
            sent += 8.0 * f64::from(CHUNK);
        }
        sent / start.elapsed().as_secs_f64() / 1e9
    }

    /// Exchanges a byte for a byte on one connection. Returns the number of exchanges per second.
    fn requests(&mut self, time: Duration) -> f64 {
        let (start, mut count) = (now(), 0.0);
        while start.elapsed() < time {
            exchange(&mut self.requests);
            count += 1.0;
        }
        count / start.elapsed().as_secs_f64()
    }

    /// Connects, exchanges a byte for a byte, and resets the connection, so that none is left.
    /// Returns the number of connections per second.
    fn connects(&mut self, time: Duration) -> f64 {
        let address = SocketAddr::new(self.address, CONNECTS_PORT);
        self.client.inside(|| {
            pin_to_processor(0);
            let (start, mut count) = (now(), 0.0);
            while start.elapsed() < time {
                let mut stream = TcpStream::connect(address).expect("the path works");
                set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option of sockets");
                exchange(&mut stream);
                count += 1.0;
            }
            count / start.elapsed().as_secs_f64()
        })
    }
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(&[7]).expect("a request is sent");
    stream.read_exact(&mut [0]).expect("a response arrives");
}

/// Answers each byte with a byte until the connection ends.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    while stream.read_exact(&mut [0]).is_ok() && stream.write_all(&[7]).is_ok() {}
}

/// Serves the connections to a port one after another, on a thread that lives as long as the
/// process.
fn serve(server: &Namespace, address: IpAddr, port: u16, handle: fn(TcpStream)) {
    let listen = || TcpListener::bind(SocketAddr::new(address, port)).expect("a free port");
    let listener = server.inside(listen);
    let run = move || {
        pin_to_processor(SERVER_PROCESSOR);
        listener.incoming().flatten().for_each(handle);
    };
    std::thread::Builder::new().spawn(run).expect("a thread");
}

//! The other end of the connections: an HTTP client, and a simulated libprocess process.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use overlay_wire::{self as wire, mesos};

pub(crate) type Register = mesos::modules::overlay::internal::RegisterAgentMessage;
pub(crate) type Update = mesos::modules::overlay::internal::UpdateAgentOverlaysMessage;
pub(crate) type Registered = mesos::modules::overlay::internal::AgentRegisteredMessage;
pub(crate) type Acknowledgement = mesos::modules::overlay::internal::AgentRegisteredAcknowledgement;

/// The message of an agent that the C++ modules do not know.
const HELD_ADDRESSES: &str = "mesos.modules.overlay.internal.HeldAddressesMessage";

/// Upper bound for any awaited event.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "each test has its own thread, which may sleep")]
pub(crate) fn sleep_briefly() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Polls until `poll` returns a value.
#[expect(
    clippy::disallowed_methods,
    reason = "`poll` itself may take long, so the clock limits the wait"
)]
pub(crate) fn wait_for<T>(event: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "{event}: not within {TIMEOUT:?}");
        sleep_briefly();
    }
}

// ---- HTTP ----

/// An HTTP response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns the value of a header. `name` must be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn content_type(&self) -> &str {
        self.header("content-type").unwrap_or_default()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the host listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout is set");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout is set");
    stream
}

/// Reads the next response. Returns `None` at the end of the connection.
pub(crate) fn read_response(reader: &mut BufReader<TcpStream>) -> Option<Response> {
    let (first, headers) = read_head(reader)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let response = Response { status: status.expect("a status"), headers, body: Vec::new() };
    let length = response.header("content-length").expect("libprocess sends the length");
    let mut body = vec![0; length.parse().expect("a number")];
    reader.read_exact(&mut body).expect("the complete body");
    Some(Response { body, ..response })
}

type Head = (String, Vec<(String, String)>);

fn read_head(reader: &mut impl BufRead) -> Option<Head> {
    let mut line = || {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        line.ends_with("\r\n").then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        if line.is_empty() {
            return Some((first, headers));
        }
        let (name, value) = line.split_once(':').expect("a header");
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Sends bytes, reads one response, and checks that no data follows. Returns `None` if the
/// connection ends without a response.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> Option<Response> {
    let mut stream = connect(address);
    // A server that refuses the request may close the connection before it has read everything.
    let _ = stream.write_all(request);
    let mut reader = BufReader::new(stream);
    let response = read_response(&mut reader)?;
    let mut rest = Vec::new();
    // The server closes the connection as requested. A reset also ends it.
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.is_empty(), "data after the response: {}", String::from_utf8_lossy(&rest));
    Some(response)
}

/// Formats a request with `Connection: close`.
pub(crate) fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

pub(crate) fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Response {
    exchange(address, &request("GET", target, headers, b"")).expect("a response")
}

pub(crate) fn post(address: SocketAddr, target: &str, body: &[u8]) -> Response {
    exchange(address, &request("POST", target, &[], body)).expect("a response")
}

// ---- Messages ----

/// Encodes a message as libprocess of Mesos does.
pub(crate) fn encode(to: &str, name: &str, from: &str, body: &[u8]) -> Vec<u8> {
    let mut head = format!(
        "POST /{to}/{name} HTTP/1.1\r\nUser-Agent: libprocess/{from}\r\n\
         Libprocess-From: {from}\r\nConnection: Keep-Alive\r\nHost: \r\n"
    );
    if body.is_empty() {
        return (head + "\r\n").into_bytes();
    }
    head += &format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    [head.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

/// Sends a message. Returns the status of its receipt.
pub(crate) fn deliver(address: SocketAddr, to: &str, name: &str, from: &str, body: &[u8]) -> u16 {
    let mut stream = connect(address);
    stream.write_all(&encode(to, name, from, body)).expect("data is sent");
    read_response(&mut BufReader::new(stream)).expect("a receipt").status
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) to: String,
    pub(crate) name: String,
    pub(crate) from: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Decodes the body as a message of type `M`.
    pub(crate) fn read<M: wire::Message>(&self) -> M {
        assert_eq!(self.name, M::NAME);
        wire::decode(&self.body).expect("the body is valid")
    }
}

/// Parses a recorded message.
pub(crate) fn recorded(bytes: &[u8]) -> Message {
    read_message(&mut BufReader::new(bytes)).expect("a complete message")
}

fn read_message(reader: &mut impl BufRead) -> Option<Message> {
    let (first, headers) = read_head(reader)?;
    let path = first.split(' ').nth(1).expect("a path");
    let (to, name) = path.trim_start_matches('/').split_once('/').expect("a process and a name");
    let find = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let from = find("libprocess-from").expect("a sender").clone();
    let mut body = Vec::new();
    while find("transfer-encoding").is_some() {
        let mut size = String::new();
        reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            break;
        }
    }
    Some(Message { to: to.to_owned(), name: name.to_owned(), from, body })
}

/// A simulated libprocess process that receives messages.
pub(crate) struct Peer {
    id: &'static str,
    address: SocketAddr,
    messages: Receiver<Message>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Listens on `ip` with a port that the kernel chooses.
    pub(crate) fn listen(id: &'static str, ip: Ipv4Addr) -> Self {
        Self::listen_at(id, SocketAddr::new(IpAddr::V4(ip), 0)).expect("the port is free")
    }

    /// Listens on `address`. Returns `None` if the address is in use.
    pub(crate) fn listen_at(id: &'static str, address: SocketAddr) -> Option<Self> {
        let listener = TcpListener::bind(address).ok()?;
        let address = listener.local_addr().expect("an address");
        let (sender, messages) = mpsc::channel();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let is_ending = Arc::new(AtomicBool::new(false));
        let (accepted, ending) = (Arc::clone(&connections), Arc::clone(&is_ending));
        let accept = move || {
            for stream in listener.incoming().flatten() {
                if ending.load(Ordering::Acquire) {
                    return;
                }
                let copy = stream.try_clone().expect("a descriptor");
                accepted.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                let sender = sender.clone();
                let serve = move || serve(stream, &sender);
                Builder::new().name("connection".to_owned()).spawn(serve).expect("a thread");
            }
        };
        let thread = Builder::new().name("peer".to_owned()).spawn(accept).expect("a thread");
        Some(Self { id, address, messages, connections, is_ending, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the UPID of this process, as text.
    pub(crate) fn upid(&self) -> String {
        format!("{}@{}", self.id, self.address)
    }

    /// Waits for the next message that the C++ modules know.
    pub(crate) fn receive(&self) -> Message {
        let message = self.receive_within(TIMEOUT).expect("a message arrives");
        assert_eq!(message.to, self.id);
        message
    }

    /// Waits for the next message that the C++ modules know, until the timeout. After each
    /// registration, an agent names the addresses that it holds: a C++ master ignores that.
    pub(crate) fn receive_within(&self, timeout: Duration) -> Option<Message> {
        loop {
            let message = self.messages.recv_timeout(timeout).ok()?;
            if message.name != HELD_ADDRESSES {
                return Some(message);
            }
        }
    }

    /// Sends a message to the process `to` at `address`, and checks its receipt.
    pub(crate) fn send<M: wire::Message>(&self, address: SocketAddr, to: &str, message: &M) {
        let body = message.encode_to_vec();
        assert_eq!(deliver(address, to, M::NAME, &self.upid(), &body), 202);
    }

    /// Closes all incoming connections.
    pub(crate) fn disconnect(&self) {
        for stream in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The connection may already be closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Release);
        self.disconnect();
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Receives the messages of a connection, and sends a receipt for each.
fn serve(stream: TcpStream, messages: &Sender<Message>) {
    let mut writer = stream.try_clone().expect("a descriptor");
    let mut reader = BufReader::new(stream);
    while let Some(message) = read_message(&mut reader) {
        // A failure is ignored, since libprocess does not wait for receipts.
        let _ = writer.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        if messages.send(message).is_err() {
            return;
        }
    }
}

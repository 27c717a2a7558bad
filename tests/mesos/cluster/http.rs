//! An HTTP client that connects from the network namespace of a host.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::host::{Host, TIMEOUT};

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Status line and headers in lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON. The status must be 200.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Host {
    /// Sends a GET request. Returns `None` if there is no response.
    pub(crate) fn get(&self, port: u16, path: &str) -> Option<Response> {
        self.request(port, "GET", path, &[], "")
    }

    /// Sends a request. Returns `None` if there is no response.
    pub(crate) fn request(
        &self,
        port: u16,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Response> {
        self.send_request((self.ip, port).into(), method, path, headers, body)
    }

    /// Sends a GET request to a process that listens only on loopback.
    pub(crate) fn get_local(&self, port: u16, path: &str) -> Option<Response> {
        self.send_request((Ipv4Addr::LOCALHOST, port).into(), "GET", path, &[], "")
    }

    /// Connects to a port of the host.
    pub(crate) fn connect(&self, port: u16) -> io::Result<TcpStream> {
        connect(&self.network(), (self.ip, port).into())
    }

    /// Sends bytes. Returns all received bytes until the server closes the connection.
    pub(crate) fn exchange(&self, port: u16, bytes: &[u8]) -> io::Result<Vec<u8>> {
        exchange(&self.network(), (self.ip, port).into(), bytes)
    }

    fn send_request(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Response> {
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{headers}\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let response = exchange(&self.network(), to, request.as_bytes()).ok()?;
        let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&response[..end]).to_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Response { status, head, body: response[end + 4..].to_vec() })
    }
}

fn exchange(network: &Path, to: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(network, to)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request)?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    Ok(response)
}

/// Connects from a network namespace. This needs a separate thread, since entering a namespace
/// changes the calling thread.
fn connect(network: &Path, to: SocketAddr) -> io::Result<TcpStream> {
    let network = File::open(network)?;
    let connect = || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect_timeout(&to, TIMEOUT)
    };
    std::thread::scope(|scope| scope.spawn(connect).join().expect("the thread does not panic"))
}

//! An HTTP client that speaks from any host's network.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::host::{Host, PATIENCE};

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and headers, in small letters.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of what must be a 200 with JSON.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Host {
    /// The answer to a GET; nothing if nobody answers.
    pub(crate) fn get(&self, port: u16, path: &str) -> Option<Answer> {
        self.request(port, "GET", path, &[], "")
    }

    /// The answer to a request; nothing if nobody answers.
    pub(crate) fn request(
        &self,
        port: u16,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        self.ask((self.ip, port).into(), method, path, headers, body)
    }

    /// The answer to a GET of a process that is on loopback only.
    pub(crate) fn get_local(&self, port: u16, path: &str) -> Option<Answer> {
        self.ask((Ipv4Addr::LOCALHOST, port).into(), "GET", path, &[], "")
    }

    /// All that comes back for these bytes, until the other side closes the connection.
    pub(crate) fn exchange(&self, port: u16, bytes: &[u8]) -> io::Result<Vec<u8>> {
        exchange(&self.network(), (self.ip, port).into(), bytes)
    }

    fn ask(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{headers}\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let answer = exchange(&self.network(), to, request.as_bytes()).ok()?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body: answer[end + 4..].to_vec() })
    }
}

fn exchange(network: &Path, to: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(network, to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A connection in a network: on a thread of its own, since a thread is in one network only.
fn connect(network: &Path, to: SocketAddr) -> io::Result<TcpStream> {
    let network = File::open(network)?;
    let connect = || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect_timeout(&to, PATIENCE)
    };
    std::thread::scope(|scope| scope.spawn(connect).join().expect("it does not panic"))
}

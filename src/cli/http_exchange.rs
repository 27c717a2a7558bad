//! One HTTP request over a new connection, by TCP or to a Unix socket, with bounded time and
//! memory.

use std::fmt;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use overlay_zookeeper::detector::{FixedMaster, ResolveError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::master_address::Authorization;
use super::output::sanitize;
use super::response::{BodyError, read_body};

/// A reachable server accepts at once. A longer delay indicates a firewall that drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A resolver that has not answered by then is not reachable.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent responds from memory.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest response of an agent: 128 overlays take 128 KiB, and its problems less.
const AGENT_MAX: usize = 1024 * 1024;
/// Longest head of a response, in bytes. The heads of masters have 300; a proxy may add cookies.
const HEAD_MAX: usize = 64 * 1024;
/// Most headers of a response.
const HEADERS_MAX: usize = 100;

/// The address of an HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A host name or address, which is resolved for each request.
    Named(FixedMaster),
    /// An address.
    Tcp(SocketAddrV4),
    /// A Unix socket of this host.
    Socket(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Tcp(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Exchange<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) body: Bytes,
    /// The header `Authorization`.
    pub(super) authorization: Option<&'a HeaderValue>,
    /// Longest body of the response, in bytes.
    pub(super) max: usize,
}

/// Why a server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Resolve(ResolveError),
    #[error(transparent)]
    Io(std::io::Error),
    #[error("no answer in {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("the resolver does not answer in {} s", RESOLVE_TIMEOUT.as_secs())]
    ResolveTimeout,
}

/// A connection to a server.
pub(super) enum Stream {
    Tcp(TcpStream, SocketAddrV4),
    Socket(UnixStream),
}

/// Connects to the server.
pub(super) async fn connect(endpoint: &Endpoint) -> Result<Stream, ConnectError> {
    let address = match endpoint {
        Endpoint::Named(name) => match timeout(RESOLVE_TIMEOUT, name.resolve()).await {
            Ok(address) => address.map_err(ConnectError::Resolve)?,
            Err(_) => return Err(ConnectError::ResolveTimeout),
        },
        Endpoint::Tcp(address) => *address,
        Endpoint::Socket(path) => {
            let connecting = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
            let stream = connecting.map_err(|_| ConnectError::Timeout)?;
            return stream.map(Stream::Socket).map_err(ConnectError::Io);
        }
    };
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(Stream::Tcp(stream, address)),
        Ok(Err(error)) => Err(ConnectError::Io(error)),
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// Why a connection brought no complete response.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("{}", with_sources(.0))]
    Http(hyper::Error),
    #[error(transparent)]
    Request(http::Error),
    /// Only [`BodyError::TooLong`]: errors of the connection are [`Self::Http`].
    #[error(transparent)]
    Body(BodyError),
}

/// Sends the request over the connection.
pub(super) async fn exchange(
    stream: Stream,
    request: Exchange<'_>,
) -> Result<(StatusCode, Bytes), ExchangeError> {
    match stream {
        Stream::Tcp(stream, address) => exchange_over(stream, &address.to_string(), request).await,
        // The socket's name is no valid host.
        Stream::Socket(stream) => exchange_over(stream, "localhost", request).await,
    }
}

async fn exchange_over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    Exchange { method, path, body, authorization, max }: Exchange<'_>,
) -> Result<(StatusCode, Bytes), ExchangeError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX).max_headers(HEADERS_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(ExchangeError::Http)?;
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close");
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request.body(Full::new(body)).map_err(ExchangeError::Request)?;
    let response = async {
        let response = sender.send_request(request).await.map_err(ExchangeError::Http)?;
        let status = response.status();
        let body = read_body(response.into_body(), max).await.map_err(|error| match error {
            BodyError::Http(error) => ExchangeError::Http(error),
            too_long @ BodyError::TooLong { .. } => ExchangeError::Body(too_long),
        })?;
        Ok((status, body))
    };
    // The connection transfers the bytes. If it ends early, the response reports the error.
    let transfer = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        response = response => response,
        never = transfer => never,
    }
}

/// Returns the error and its causes. The first error of hyper names only the failed operation.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Sends a GET request to an agent, of mesos-overlay or with the C++ module. Returns the response.
/// The agent gets the credential if it requires one.
pub(super) async fn get_from_agent(
    endpoint: &Endpoint,
    path: &str,
    authorization: Option<&Authorization>,
) -> Result<(StatusCode, Bytes), String> {
    get_bounded_from_agent(endpoint, path, authorization, AGENT_MAX).await
}

/// Sends a GET request like [`get_from_agent`]. A response of more than `max` bytes is an error.
pub(super) async fn get_bounded_from_agent(
    endpoint: &Endpoint,
    path: &str,
    authorization: Option<&Authorization>,
    max: usize,
) -> Result<(StatusCode, Bytes), String> {
    let get = async |authorization| {
        let stream = connect(endpoint).await.map_err(|error| error.to_string())?;
        let body = Bytes::new();
        let request = Exchange { method: Method::GET, path, body, authorization, max };
        match timeout(AGENT_TIMEOUT, exchange(stream, request)).await {
            Ok(response) => response.map_err(|error| sanitize(&error.to_string())),
            Err(_) => Err(format!("{path}: no complete response in {} s", AGENT_TIMEOUT.as_secs())),
        }
    };
    let response = get(None).await?;
    match authorization {
        Some(Authorization { header, .. }) if response.0 == StatusCode::UNAUTHORIZED => {
            get(Some(header)).await
        }
        _ => Ok(response),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use super::*;
    use crate::cli::http_client::block_on;

    /// Starts a server that sends `beginning`, and then `rest` until the client disconnects.
    fn serve(beginning: &str, rest: &'static [u8]) -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let beginning = beginning.to_owned();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(beginning.as_bytes());
            while !rest.is_empty() && stream.write_all(rest).is_ok() {}
            // Wait until the client has read everything: closing earlier would reset the
            // connection.
            let _ = stream.read(&mut [0; 4096]);
        };
        thread::Builder::new().spawn(serve).unwrap();
        address
    }

    /// Sends a request to the server. Returns the response and the peak memory.
    fn get(address: SocketAddrV4) -> (Result<(StatusCode, Bytes), String>, u64) {
        let mut result = None;
        let taken = allocation_counter::measure(|| {
            let request = async {
                Ok(get_from_agent(&Endpoint::Tcp(address), "/overlay-agent/overlay", None).await)
            };
            result = block_on(request).ok();
        });
        (result.unwrap(), taken.bytes_max)
    }

    #[test]
    fn response_in_chunks_of_one_byte_takes_little_memory() {
        let length = 64 * 1024;
        let chunks = "1\r\nx\r\n".repeat(length);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (response, taken) = get(serve(&format!("{head}{chunks}0\r\n\r\n"), b""));
        assert_eq!(response.unwrap().1.len(), length);
        assert!(taken < 8 * length as u64, "{taken} bytes");
    }

    #[test]
    fn response_beyond_limit_is_refused() {
        let expected = Err("the body has more than 1 MiB".to_owned());
        let length = AGENT_MAX + 1;
        let announced = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(get(serve(&announced, b"")).0, expected);
        let endless = "HTTP/1.1 200 OK\r\n\r\n";
        let (response, taken) = get(serve(endless, &[b'x'; 1024]));
        assert_eq!(response, expected);
        assert!(taken < 4 * AGENT_MAX as u64, "{taken} bytes");
    }

    #[test]
    fn response_with_endless_head_is_refused() {
        let refused = |beginning: &str, rest: &'static [u8]| {
            let (response, taken) = get(serve(beginning, rest));
            assert!(taken < 4 * HEAD_MAX as u64, "{taken} bytes");
            response.unwrap_err()
        };
        let too_large = "message head is too large";
        assert_eq!(refused("HTTP/1.1 200 ", b"OK and more "), too_large);
        assert_eq!(refused("HTTP/1.1 200 OK\r\nX: ", b"xxxxxxxxxxxx"), too_large);
        assert_eq!(refused("HTTP/1.1 200 OK\r\n", b"X: y\r\n"), too_large);
    }
}

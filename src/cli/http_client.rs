//! HTTP client for running masters and agents, of mesos-overlay or with the C++ modules.

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use overlay_engine::master::{Effect, ReleaseResult};
use overlay_types::escape::bounded_line;
use overlay_types::protocol::State;
use overlay_zookeeper::detector::FixedMaster;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use super::output::sanitize;
use super::response::{self, BodyError, read_body};

const STATE: &str = "/overlay-master/state";
const HEALTH: &str = "/overlay-master/health";
const DELETE: &str = "/overlay-master/agents/delete";
pub(super) const HISTORY: &str = "/overlay-master/history";
const PREVIEW: &str = "/overlay-master/preview";
const RELOAD: &str = "/overlay-master/reload";

/// A reachable master accepts at once. A longer delay indicates a firewall that drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A master with its state on a slow disk takes a second. A longer delay means that it hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// An agent responds from memory.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of a response, in bytes. The heads of masters have 300; a proxy may add cookies.
const HEAD_MAX: usize = 64 * 1024;
/// Most headers of a response.
const HEADERS_MAX: usize = 100;
const MIB: usize = 1024 * 1024;
/// Longest state: 100,000 agents in two overlays, or 20,000 agents in ten.
const STATE_MAX: usize = 128 * MIB;
/// Longest health: a master with 20,000 agents that it cannot serve reports a problem of 200 bytes
/// for each agent.
const HEALTH_MAX: usize = 8 * MIB;
/// Longest history: a master keeps 32,768 entries, of 400 bytes in two overlays.
const HISTORY_MAX: usize = 64 * MIB;
/// Longest effect of a changed configuration: 20,000 agents whose addresses change in ten overlays.
const EFFECT_MAX: usize = 32 * MIB;
/// Longest response to a deletion without agents, and the addition for each agent: two subnets in
/// each of 128 overlays.
const DELETE_BASE_MAX: usize = 64 * 1024;
const DELETE_AGENT_MAX: usize = 16 * 1024;
/// Longest response of an agent: 128 overlays take 128 KiB, and its problems less.
const AGENT_MAX: usize = MIB;
/// Bytes of an error page in which its first line is searched.
const ERROR_PAGE_MAX: usize = 4096;
/// Characters of an error's text that are repeated: a proxy may respond with a page.
const REASON_MAX: usize = 200;

/// The flag that names a running master.
#[derive(Debug, Args)]
pub(super) struct MasterAddress {
    /// The running master
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "IP:PORT")]
    master: String,
}

impl MasterAddress {
    pub(super) fn client(&self) -> Result<MasterClient, Failure> {
        MasterClient::of(&self.master, "--master")
    }
}

/// HTTP client of one master.
#[derive(Debug)]
pub(super) struct MasterClient(FixedMaster);

impl fmt::Display for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The displayed part of a master's health.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) problems: Vec<String>,
    pub(super) epoch: u64,
    pub(super) version: u64,
}

impl Health {
    /// Returns why the master does not serve an agent of which it has a record. Such an agent is
    /// not in the state.
    pub(super) fn quarantine_reason(&self, ip: Ipv4Addr) -> Option<&str> {
        let prefix = format!("agent {ip} is not served: ");
        self.problems.iter().find_map(|problem| problem.strip_prefix(&prefix))
    }
}

/// A master's response to a preview or a reload.
#[derive(Debug)]
pub(super) struct EffectResponse {
    pub(super) effect: Effect,
    /// The JSON of the master.
    pub(super) body: Bytes,
}

/// Runs the requests of a subcommand on the calling thread.
pub(super) fn block_on<T>(
    requests: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))?
        .block_on(requests)
}

impl MasterClient {
    /// Creates the client for the address that was given with `flag`.
    pub(super) fn of(address: &str, flag: &str) -> Result<Self, Failure> {
        address.parse().map(Self).map_err(|error| Failure::usage(format!("{flag}: {error}")))
    }

    /// Returns the master's JSON of its state.
    pub(super) async fn state(&self) -> Result<Bytes, Failure> {
        let response = self.request(Method::GET, STATE, Bytes::new(), STATE_MAX).await?;
        self.success_body(STATE, response, &[])
    }

    /// Returns the health; `None` if the master has no such endpoint, like the C++ modules.
    pub(super) async fn health(&self) -> Result<Option<Health>, Failure> {
        let (status, body) = self.request(Method::GET, HEALTH, Bytes::new(), HEALTH_MAX).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        // A failed master responds with 503 and a health in the usual form.
        let health = serde_json::from_slice(&body);
        if health.is_err() {
            self.require_success(HEALTH, status, &body)?;
        }
        health.map(Some).map_err(|error| self.unexpected(HEALTH, &error))
    }

    /// Deletes agents of a C++ master. Returns the JSON of its state afterwards.
    pub(super) async fn delete(&self, agents: &[Ipv4Addr]) -> Result<Bytes, Failure> {
        let body = serde_json::json!({ "agents": agents }).to_string().into();
        let response = self.request(Method::POST, DELETE, body, STATE_MAX).await?;
        self.success_body(DELETE, response, &[])
    }

    /// Forgets agents. Returns the result for each agent.
    pub(super) async fn forget(
        &self,
        agents: &[Ipv4Addr],
        force: bool,
        dry_run: bool,
    ) -> Result<Vec<ReleaseResult>, Failure> {
        #[derive(Deserialize)]
        struct Results {
            agents: Vec<ReleaseResult>,
        }
        let body = serde_json::json!({ "agents": agents, "force": force, "dry_run": dry_run });
        let max = STATE_MAX.min(DELETE_BASE_MAX + DELETE_AGENT_MAX * agents.len());
        let response = self.request(Method::POST, DELETE, body.to_string().into(), max).await?;
        // The status is 409 if some agents are running. The body has the results then too.
        let body = self.success_body(DELETE, response, &[StatusCode::CONFLICT])?;
        Ok(self.parse::<Results>(DELETE, &body)?.agents)
    }

    /// Returns the master's JSON of the history, of all agents or of one.
    pub(super) async fn history(&self, agent: Option<Ipv4Addr>) -> Result<Bytes, Failure> {
        let path = match agent {
            Some(ip) => format!("{HISTORY}?agent={ip}"),
            None => HISTORY.to_owned(),
        };
        let response = self.request(Method::GET, &path, Bytes::new(), HISTORY_MAX).await?;
        self.success_body(HISTORY, response, &[])
    }

    /// Returns the effect that the configuration in `text` would have.
    pub(super) async fn preview(&self, text: String) -> Result<EffectResponse, Failure> {
        self.effect(PREVIEW, text.into()).await
    }

    /// Makes the master read its configuration again. Returns the effect.
    pub(super) async fn reload(&self) -> Result<EffectResponse, Failure> {
        self.effect(RELOAD, Bytes::new()).await
    }

    async fn effect(&self, path: &str, body: Bytes) -> Result<EffectResponse, Failure> {
        let response = self.request(Method::POST, path, body, EFFECT_MAX).await?;
        // A master that refuses the configuration responds with these statuses and the effect.
        let refusals = [StatusCode::CONFLICT, StatusCode::UNPROCESSABLE_ENTITY];
        let body = self.success_body(path, response, &refusals)?;
        Ok(EffectResponse { effect: self.parse(path, &body)?, body })
    }

    /// Decodes a state of this master.
    pub(super) fn read_state(&self, body: &[u8]) -> Result<State, Failure> {
        response::read_state(body).map_err(|error| self.unexpected(STATE, &error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        max: usize,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let address = self.0.resolve().await.map_err(|error| Failure::new(error.to_string()))?;
        let stream = connect(address).await.map_err(|error| {
            let remedy = match error {
                ConnectError::Io(_) => "is the master running there? --master names its address",
                ConnectError::Timeout => "check the address and the firewalls in between",
            };
            self.failure(format_args!("connect: {error}: {remedy}"))
        })?;
        let exchange = exchange(stream, address, method, path, body, max);
        match timeout(RESPONSE_TIMEOUT, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failure(format_args!(
                "{path}: no complete HTTP response: {error}: is this the address of a master?"
            ))),
            Err(_) => {
                let seconds = RESPONSE_TIMEOUT.as_secs();
                Err(self.failure(format_args!(
                    "{path}: no complete response in {seconds} s: try again"
                )))
            }
        }
    }

    /// Returns the body of a successful response. The `accepted` statuses are successes too.
    fn success_body(
        &self,
        path: &str,
        (status, body): (StatusCode, Bytes),
        accepted: &[StatusCode],
    ) -> Result<Bytes, Failure> {
        if !accepted.contains(&status) {
            self.require_success(path, status, &body)?;
        }
        Ok(body)
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| self.unexpected(path, &error))
    }

    fn require_success(&self, path: &str, status: StatusCode, body: &[u8]) -> Result<(), Failure> {
        // If the cut splits a character, the replacement character is shown.
        let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_PAGE_MAX)]);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let reason = bounded_line(line, REASON_MAX);
        let separator = if reason.is_empty() { "" } else { ": " };
        let response = format!("{path}: {status}{separator}{reason}");
        let remedy = match status {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND => "this is no overlay master: --master names its address",
            StatusCode::SERVICE_UNAVAILABLE => {
                "it is not ready: try again, and see its log if that lasts"
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "it requires authentication: use curl with credentials"
            }
            _ => "see its log",
        };
        Err(self.failure(format_args!("{response}: {remedy}")))
    }

    /// Creates the failure for a response that is not one of a master to a request of `path`.
    pub(super) fn unexpected(&self, path: &str, error: &dyn fmt::Display) -> Failure {
        // The error may quote the response.
        let error: String = sanitize(&error.to_string()).chars().take(REASON_MAX).collect();
        self.failure(format_args!(
            "{path}: not the response of a master: {error}: is this the address of a master?"
        ))
    }

    fn failure(&self, reason: fmt::Arguments<'_>) -> Failure {
        Failure::new(format!("master {self}: {reason}"))
    }
}

/// Sends a GET request to an agent, of mesos-overlay or with the C++ module. Returns the response.
pub(super) async fn get_from_agent(
    address: SocketAddrV4,
    path: &str,
) -> Result<(StatusCode, Bytes), String> {
    let stream = connect(address).await.map_err(|error| error.to_string())?;
    let exchange = exchange(stream, address, Method::GET, path, Bytes::new(), AGENT_MAX);
    match timeout(AGENT_TIMEOUT, exchange).await {
        Ok(response) => response.map_err(|error| sanitize(&error.to_string())),
        Err(_) => Err(format!("{path}: no complete response in {} s", AGENT_TIMEOUT.as_secs())),
    }
}

/// Why a server cannot be reached.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Io(std::io::Error),
    #[error("no answer in {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
}

async fn connect(address: SocketAddrV4) -> Result<TcpStream, ConnectError> {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(stream) => stream.map_err(ConnectError::Io),
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// Why a connection brought no complete response.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("{}", with_sources(.0))]
    Http(hyper::Error),
    #[error(transparent)]
    Request(http::Error),
    /// Only [`BodyError::TooLong`]: errors of the connection are [`Self::Http`].
    #[error(transparent)]
    Body(BodyError),
}

/// Sends one request over a new connection. The body of the response has at most `max` bytes.
async fn exchange(
    stream: TcpStream,
    address: SocketAddrV4,
    method: Method,
    path: &str,
    body: Bytes,
    max: usize,
) -> Result<(StatusCode, Bytes), ExchangeError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX).max_headers(HEADERS_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(ExchangeError::Http)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(body))
        .map_err(ExchangeError::Request)?;
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use super::*;

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
            let request = async { Ok(get_from_agent(address, "/overlay-agent/overlay").await) };
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

    #[test]
    fn error_page_is_shown_up_to_limit() {
        let client = MasterClient::of("127.0.0.1:5050", "--master").unwrap();
        let page = vec![0xff; 16 * MIB];
        let mut failure = None;
        let taken = allocation_counter::measure(|| {
            failure = client.require_success(STATE, StatusCode::BAD_GATEWAY, &page).err();
        });
        let length = failure.unwrap().to_string().chars().count();
        assert!(length < 2 * REASON_MAX, "{length} characters");
        assert!(taken.bytes_max < 64 * 1024, "{} bytes", taken.bytes_max);
        let quoted = client.unexpected(STATE, &"x".repeat(10_000)).to_string();
        assert!(quoted.len() < 2 * REASON_MAX, "{quoted}");
    }
}

//! Questions to a running master over HTTP: ours, or one with the C++ modules.

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
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use super::answer::{self, BodyError, read_body};
use super::output::harmless;
use crate::detector::FixedMaster;
use crate::escape::bounded_line;
use crate::master::{Effect, ReleaseResult};
use crate::protocol::State;

const STATE: &str = "/overlay-master/state";
const HEALTH: &str = "/overlay-master/health";
const DELETE: &str = "/overlay-master/agents/delete";
pub(super) const HISTORY: &str = "/overlay-master/history";
const PREVIEW: &str = "/overlay-master/preview";
const RELOAD: &str = "/overlay-master/reload";

/// A master in reach answers at once; what takes longer is a firewall.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A master with its state on a slow disk takes a second; what takes this long hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// An agent answers from memory.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of an answer, in bytes: those of masters have 300, a proxy may add cookies.
const HEAD_MAX: usize = 64 * 1024;
/// Most headers of an answer.
const HEADERS_MAX: usize = 100;
const MIB: usize = 1024 * 1024;
/// Longest state: that of 100,000 agents in two overlays, or of 20,000 in ten.
const STATE_MAX: usize = 128 * MIB;
/// Longest health: a master with 20,000 agents that it cannot serve has a problem of 200 bytes for
/// each of them.
const HEALTH_MAX: usize = 8 * MIB;
/// Longest history: a master keeps 32,768 entries, of 400 bytes in two overlays.
const HISTORY_MAX: usize = 64 * MIB;
/// Longest effect of another network: 20,000 agents whose addresses change in ten overlays.
const EFFECT_MAX: usize = 32 * MIB;
/// Longest list of what becomes of forgotten agents: this, and for each of them the second number,
/// enough for two subnets of each of 128 overlays.
const FORGET_MAX: (usize, usize) = (64 * 1024, 16 * 1024);
/// Longest answer of an agent: 128 overlays take 128 KiB, and its problems less.
const AGENT_MAX: usize = MIB;
/// How many bytes of an error's page are looked at for its first line.
const ERROR_PAGE_MAX: usize = 4096;
/// How much of an error's text is repeated, in characters: a proxy may answer with a page.
const REASON_MAX: usize = 200;

/// Which master.
#[derive(Debug, Args)]
pub(super) struct MasterAddress {
    /// The running master
    // Agents have the same variable, and there it may hold a password: nothing repeats it, clap
    // neither.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "IP:PORT")]
    master: String,
}

impl MasterAddress {
    pub(super) fn client(&self) -> Result<MasterClient, Failure> {
        MasterClient::of(&self.master, "--master")
    }
}

/// Asks one master.
#[derive(Debug)]
pub(super) struct MasterClient(FixedMaster);

impl fmt::Display for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a master says of itself, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) problems: Vec<String>,
    pub(super) epoch: u64,
    pub(super) version: u64,
}

impl Health {
    /// Why the agent is not served although the master has a record of it: it is not in the state
    /// then.
    pub(super) fn set_aside(&self, ip: Ipv4Addr) -> Option<&str> {
        let beginning = format!("agent {ip} is not served: ");
        self.problems.iter().find_map(|problem| problem.strip_prefix(&beginning))
    }
}

/// What a master says to another configuration.
#[derive(Debug)]
pub(super) struct EffectAnswer {
    pub(super) effect: Effect,
    /// As the master wrote it.
    pub(super) body: Bytes,
}

/// Runs the questions of a subcommand; one thread is enough for them.
pub(super) fn block_on<T>(
    questions: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))?
        .block_on(questions)
}

impl MasterClient {
    /// Asks the master at the address that was given with this flag.
    pub(super) fn of(address: &str, flag: &str) -> Result<Self, Failure> {
        address.parse().map(Self).map_err(|error| Failure::usage(format!("{flag}: {error}")))
    }

    /// The state, as the master wrote it.
    pub(super) async fn state(&self) -> Result<Bytes, Failure> {
        let (status, body) = self.ask(Method::GET, STATE, Bytes::new(), STATE_MAX).await?;
        self.insist_on_success(STATE, status, &body)?;
        Ok(body)
    }

    /// The health; `None` if the master has none to show, as those with the C++ modules.
    pub(super) async fn health(&self) -> Result<Option<Health>, Failure> {
        let (status, body) = self.ask(Method::GET, HEALTH, Bytes::new(), HEALTH_MAX).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        // One that is not well says so with 503, in the same form.
        let health = serde_json::from_slice(&body);
        if health.is_err() {
            self.insist_on_success(HEALTH, status, &body)?;
        }
        health.map(Some).map_err(|error| self.unexpected(HEALTH, &error))
    }

    /// Deletes agents; the state without them, as the master wrote it.
    pub(super) async fn delete(&self, agents: &[Ipv4Addr]) -> Result<Bytes, Failure> {
        let body = serde_json::json!({ "agents": agents }).to_string();
        let (status, body) = self.ask(Method::POST, DELETE, body.into(), STATE_MAX).await?;
        self.insist_on_success(DELETE, status, &body)?;
        Ok(body)
    }

    /// Forgets agents, and tells what became of each.
    pub(super) async fn forget(
        &self,
        agents: &[Ipv4Addr],
        force: bool,
        dry_run: bool,
    ) -> Result<Vec<ReleaseResult>, Failure> {
        #[derive(Deserialize)]
        struct Fates {
            agents: Vec<ReleaseResult>,
        }
        let body = serde_json::json!({ "agents": agents, "force": force, "dry_run": dry_run });
        let (base, each) = FORGET_MAX;
        let max = STATE_MAX.min(base + each * agents.len());
        let body = body.to_string().into();
        let (status, body) = self.ask(Method::POST, DELETE, body, max).await?;
        // That some agents are running is an answer.
        if status != StatusCode::CONFLICT {
            self.insist_on_success(DELETE, status, &body)?;
        }
        let fates: Fates =
            serde_json::from_slice(&body).map_err(|error| self.unexpected(DELETE, &error))?;
        Ok(fates.agents)
    }

    /// The history of all agents or of one, as the master wrote it.
    pub(super) async fn history(&self, agent: Option<Ipv4Addr>) -> Result<Bytes, Failure> {
        let path = match agent {
            Some(ip) => format!("{HISTORY}?agent={ip}"),
            None => HISTORY.to_owned(),
        };
        let (status, body) = self.ask(Method::GET, &path, Bytes::new(), HISTORY_MAX).await?;
        self.insist_on_success(HISTORY, status, &body)?;
        Ok(body)
    }

    /// What the network in the text of a configuration would do.
    pub(super) async fn preview(&self, text: String) -> Result<EffectAnswer, Failure> {
        self.effect(PREVIEW, text.into()).await
    }

    /// Has the master read its configuration again.
    pub(super) async fn reload(&self) -> Result<EffectAnswer, Failure> {
        self.effect(RELOAD, Bytes::new()).await
    }

    async fn effect(&self, path: &str, body: Bytes) -> Result<EffectAnswer, Failure> {
        let (status, body) = self.ask(Method::POST, path, body, EFFECT_MAX).await?;
        // A refusal is an answer.
        if !matches!(status, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY) {
            self.insist_on_success(path, status, &body)?;
        }
        let effect =
            serde_json::from_slice(&body).map_err(|error| self.unexpected(path, &error))?;
        Ok(EffectAnswer { effect, body })
    }

    /// What is in a state that this master wrote.
    pub(super) fn read_state(&self, body: &[u8]) -> Result<State, Failure> {
        answer::read_state(body).map_err(|error| self.unexpected(STATE, &error))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        max: usize,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let address = self.0.resolve().await.map_err(Failure::new)?;
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = match connecting {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let remedy = "is the master running there? --master names its address";
                return Err(self.failure(format_args!("connect: {error}: {remedy}")));
            }
            Err(_) => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                let remedy = "check the address and the firewalls in between";
                return Err(
                    self.failure(format_args!("connect: no answer in {seconds} s: {remedy}"))
                );
            }
        };
        match timeout(ANSWER_TIMEOUT, exchange(stream, address, method, path, body, max)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(self.failure(format_args!(
                "{path}: no whole answer in HTTP: {reason}: is this the address of a master?"
            ))),
            Err(_) => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                Err(self.failure(format_args!("{path}: no whole answer in {seconds} s: ask again")))
            }
        }
    }

    fn insist_on_success(
        &self,
        path: &str,
        status: StatusCode,
        body: &[u8],
    ) -> Result<(), Failure> {
        // Where a line is cut in the middle of a character, that one is shown as unknown.
        let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_PAGE_MAX)]);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let reason = bounded_line(line, REASON_MAX);
        let separator = if reason.is_empty() { "" } else { ": " };
        let said = format!("{path}: {status}{separator}{reason}");
        let remedy = match status {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND => "this is no overlay master: --master names its address",
            StatusCode::SERVICE_UNAVAILABLE => {
                "it is not ready: ask again, and see its log if that lasts"
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "it wants to know who asks: ask with curl and its credentials"
            }
            _ => "see its log",
        };
        Err(self.failure(format_args!("{said}: {remedy}")))
    }

    /// An answer that is not of the form that a master gives to a request of `path`.
    pub(super) fn unexpected(&self, path: &str, error: &dyn fmt::Display) -> Failure {
        // It may repeat what came, as far as that reaches.
        let error: String = harmless(&error.to_string()).chars().take(REASON_MAX).collect();
        self.failure(format_args!(
            "{path}: not what a master answers: {error}: is this the address of a master?"
        ))
    }

    fn failure(&self, reason: fmt::Arguments<'_>) -> Failure {
        Failure::new(format!("master {self}: {reason}"))
    }
}

/// What an agent answers to a GET, which is ours, or one of the C++ modules.
pub(super) async fn ask_agent(
    address: SocketAddrV4,
    path: &str,
) -> Result<(StatusCode, Bytes), String> {
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(stream) => stream.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())),
    };
    let answer = exchange(stream, address, Method::GET, path, Bytes::new(), AGENT_MAX);
    match timeout(AGENT_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|reason| harmless(&reason)),
        Err(_) => Err(format!("{path}: no whole answer in {} s", AGENT_TIMEOUT.as_secs())),
    }
}

/// One request and its answer over a fresh connection, whose body has at most `max` bytes.
async fn exchange(
    stream: TcpStream,
    address: SocketAddrV4,
    method: Method,
    path: &str,
    body: Bytes,
    max: usize,
) -> Result<(StatusCode, Bytes), String> {
    let sentence = |error: hyper::Error| with_sources(&error);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX).max_headers(HEADERS_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(sentence)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let answering = async {
        let response = sender.send_request(request).await.map_err(sentence)?;
        let status = response.status();
        let body = read_body(response.into_body(), max).await.map_err(|error| match error {
            BodyError::Http(error) => with_sources(&error),
            too_long @ BodyError::TooLong { .. } => too_long.to_string(),
        })?;
        Ok((status, body))
    };
    // The connection is what moves the bytes; that it ended is told by the answer.
    let moving = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = answering => answer,
        never = moving => never,
    }
}

/// The error and what caused it: hyper says in the first only what it did.
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

    /// A server that sends `beginning` to whoever connects, and then `rest` until it is closed.
    fn serve(beginning: &str, rest: &'static [u8]) -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let beginning = beginning.to_owned();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(beginning.as_bytes());
            while !rest.is_empty() && stream.write_all(rest).is_ok() {}
            // What was sent must be read before the end is.
            let _ = stream.read(&mut [0; 4096]);
        };
        thread::Builder::new().spawn(serve).unwrap();
        address
    }

    /// What comes of a question to the server, and the most memory that was taken for it.
    fn ask(address: SocketAddrV4) -> (Result<(StatusCode, Bytes), String>, u64) {
        let mut result = None;
        let taken = allocation_counter::measure(|| {
            let asking = async { Ok(ask_agent(address, "/overlay-agent/overlay").await) };
            result = block_on(asking).ok();
        });
        (result.unwrap(), taken.bytes_max)
    }

    #[test]
    fn answer_in_chunks_of_one_byte_takes_little_memory() {
        let length = 64 * 1024;
        let chunks = "1\r\nx\r\n".repeat(length);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (answer, taken) = ask(serve(&format!("{head}{chunks}0\r\n\r\n"), b""));
        assert_eq!(answer.unwrap().1.len(), length);
        assert!(taken < 8 * length as u64, "{taken} bytes");
    }

    #[test]
    fn answer_beyond_limit_is_refused() {
        let expected = Err("the body has more than 1 MiB".to_owned());
        let length = AGENT_MAX + 1;
        let announced = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(ask(serve(&announced, b"")).0, expected);
        let endless = "HTTP/1.1 200 OK\r\n\r\n";
        let (answer, taken) = ask(serve(endless, &[b'x'; 1024]));
        assert_eq!(answer, expected);
        assert!(taken < 4 * AGENT_MAX as u64, "{taken} bytes");
    }

    #[test]
    fn answer_with_endless_head_is_refused() {
        let refused = |beginning: &str, rest: &'static [u8]| {
            let (answer, taken) = ask(serve(beginning, rest));
            assert!(taken < 4 * HEAD_MAX as u64, "{taken} bytes");
            answer.unwrap_err()
        };
        let too_large = "message head is too large";
        assert_eq!(refused("HTTP/1.1 200 ", b"OK and more "), too_large);
        assert_eq!(refused("HTTP/1.1 200 OK\r\nX: ", b"xxxxxxxxxxxx"), too_large);
        assert_eq!(refused("HTTP/1.1 200 OK\r\n", b"X: y\r\n"), too_large);
    }

    #[test]
    fn error_page_is_shown_to_its_limit() {
        let client = MasterClient::of("127.0.0.1:5050", "--master").unwrap();
        let page = vec![0xff; 16 * MIB];
        let mut failure = None;
        let taken = allocation_counter::measure(|| {
            failure = client.insist_on_success(STATE, StatusCode::BAD_GATEWAY, &page).err();
        });
        let length = failure.unwrap().to_string().chars().count();
        assert!(length < 2 * REASON_MAX, "{length} characters");
        assert!(taken.bytes_max < 64 * 1024, "{} bytes", taken.bytes_max);
        let quoted = client.unexpected(STATE, &"x".repeat(10_000)).to_string();
        assert!(quoted.len() < 2 * REASON_MAX, "{quoted}");
    }
}

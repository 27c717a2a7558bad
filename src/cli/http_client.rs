//! HTTP client for running masters and agents, of mesos-overlay or with the C++ modules.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use overlay_engine::master::{Effect, ReleaseResult};
use overlay_types::escape::bounded_line;
use overlay_types::protocol::State;
use overlay_zookeeper::detector::find_leader;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Failure;
use super::http_exchange::{ConnectError, Endpoint, Exchange, connect, exchange};
use super::master_address::{Authorization, MasterSource};
use super::output::{print_error, sanitize};
use super::response;

const STATE: &str = "/overlay-master/state";
const HEALTH: &str = "/overlay-master/health";
const DELETE: &str = "/overlay-master/agents/delete";
pub(super) const HISTORY: &str = "/overlay-master/history";
const PREVIEW: &str = "/overlay-master/preview";
const RELOAD: &str = "/overlay-master/reload";

/// A master with its state on a slow disk takes a second. A longer delay means that it hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
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
/// Bytes of an error page in which its first line is searched.
const ERROR_PAGE_MAX: usize = 4096;
/// Characters of an error's text that are repeated: a proxy may respond with a page.
const REASON_MAX: usize = 200;

/// Most masters that are asked for the leader: each may name the next, while leadership changes.
const LEADERS_MAX: usize = 3;

/// HTTP client of one master. If that master is a standby, its leader.
#[derive(Debug)]
pub(super) struct MasterClient {
    endpoint: RefCell<Endpoint>,
    /// The election that named the master.
    election: Option<String>,
    authorization: Option<Authorization>,
    login: Cell<Login>,
}

/// Whether the master gets the credential. Basic authentication reveals the secret to the server,
/// so only a server that requires it gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    /// The master was named by the operator, or by a master that has accepted the credential.
    IfRequired,
    /// The master has required the credential and accepted it.
    Accepted,
    /// The master was named by a standby that has not required the credential, which may belong to
    /// another cluster.
    Never,
}

impl fmt::Display for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.borrow().fmt(f)
    }
}

/// The displayed part of a master's health.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) problems: Vec<String>,
    pub(super) epoch: u64,
    pub(super) version: u64,
    /// The leading master, if this one is a standby and knows it.
    #[serde(default)]
    leader: Option<Leader>,
    /// The authentication of the agents. A master without credentials shows none.
    #[serde(default)]
    authentication: Option<Authentication>,
}

/// The authentication of the agents in the health of a master.
#[derive(Debug, Deserialize)]
struct Authentication {
    #[serde(default)]
    mode: Option<String>,
    authenticated: u64,
    unauthenticated: u64,
    refused: u64,
    unauthenticated_agents: Vec<Ipv4Addr>,
}

/// The leading master in the health of a standby.
#[derive(Debug, Deserialize)]
struct Leader {
    address: String,
}

impl Health {
    /// Describes the authentication of the agents, if the master shows it.
    pub(super) fn authentication(&self) -> Option<String> {
        let Authentication {
            mode,
            authenticated,
            unauthenticated,
            refused,
            unauthenticated_agents,
        } = self.authentication.as_ref()?;
        let mode = mode.as_deref().map_or_else(|| "no credentials".to_owned(), sanitize);
        let counts = format!(
            "authentication: {mode}: {authenticated} authenticated, {unauthenticated} not, {refused} \
             refused"
        );
        if *unauthenticated == 0 {
            return Some(counts);
        }
        let few: Vec<String> =
            unauthenticated_agents.iter().take(10).map(ToString::to_string).collect();
        let more = match unauthenticated.saturating_sub(few.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("{counts}; not authenticated: {}{more}", few.join(", ")))
    }

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(requests);
    // A resolver that hangs must not delay the end.
    runtime.shutdown_background();
    result
}

impl MasterClient {
    /// Creates the client of the master at `source`. Finds the leader, if that is an election.
    pub(super) async fn find(
        source: &MasterSource,
        authorization: Option<&Authorization>,
    ) -> Result<Self, Failure> {
        let mut election = None;
        let endpoint = match source {
            MasterSource::Fixed(master) => Endpoint::Named(master.clone()),
            MasterSource::Socket(path) => Endpoint::Socket(path.clone()),
            MasterSource::Elected(ensemble) => {
                let leader = find_leader(ensemble).await.map_err(|error| {
                    Failure::new(format!("find the leading master at {ensemble}: {error}"))
                })?;
                election = Some(ensemble.to_string());
                Endpoint::Tcp(leader)
            }
        };
        let authorization = authorization.cloned();
        let login = Cell::new(Login::IfRequired);
        Ok(Self { endpoint: RefCell::new(endpoint), election, authorization, login })
    }

    /// Returns the master's JSON of its state.
    pub(super) async fn state(&self) -> Result<Bytes, Failure> {
        let response = self.request(Method::GET, STATE, Bytes::new(), STATE_MAX).await?;
        self.success_body(STATE, response, &[])
    }

    /// Returns the health; `None` if the master has no such endpoint, like the C++ modules.
    pub(super) async fn health(&self) -> Result<Option<Health>, Failure> {
        // Every master, also a standby, answers for itself.
        let request = self.exchange(Method::GET, HEALTH, Bytes::new(), HEALTH_MAX);
        let (status, body) = self.send(request).await?;
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

    /// Returns the response of the master to a GET request of `path`, at most `max` bytes.
    pub(super) async fn get(&self, path: &str, max: usize) -> Result<Bytes, Failure> {
        let response = self.request(Method::GET, path, Bytes::new(), max).await?;
        self.success_body(path, response, &[])
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

    /// Sends a request. A standby refuses it: then sends it to the leader that the standby names.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        max: usize,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let request = self.exchange(method, path, body, max);
        let mut asked = vec![self.to_string()];
        loop {
            let response = self.send(request.clone()).await?;
            if response.0 != StatusCode::SERVICE_UNAVAILABLE {
                return Ok(response);
            }
            let Some(leader) = self.leader_of_standby().await? else { return Ok(response) };
            let is_repetition = asked.contains(&leader.to_string());
            if is_repetition || asked.len() > LEADERS_MAX {
                return Err(self.failure(format_args!(
                    "it is a standby and names {leader} as the leader, which does not lead \
                     either: the leadership is changing: try again"
                )));
            }
            print_error(format_args!(
                "mesos-overlay: master {self} is a standby: asking the leader {leader}"
            ));
            asked.push(leader.to_string());
            self.endpoint.replace(Endpoint::Tcp(leader));
            self.login.update(|login| match login {
                Login::Accepted => Login::IfRequired,
                Login::IfRequired | Login::Never => Login::Never,
            });
        }
    }

    fn exchange<'a>(
        &'a self,
        method: Method,
        path: &'a str,
        body: Bytes,
        max: usize,
    ) -> Exchange<'a> {
        Exchange { method, path, body, authorization: None, max }
    }

    /// Returns the leader, if this master is a standby; `None` if it is none.
    async fn leader_of_standby(&self) -> Result<Option<SocketAddrV4>, Failure> {
        let health = match self.health().await {
            Ok(Some(health)) if health.status == "standby" => health,
            // The refusal of the first request says more.
            Ok(_) | Err(_) => return Ok(None),
        };
        let Some(leader) = health.leader else {
            return Err(self.failure(format_args!(
                "it is a standby and does not know the leading master: give the address of the \
                 leader, or the zk:// address of the election, as --master"
            )));
        };
        leader.address.parse().map(Some).map_err(|_| {
            let leader = bounded_line(&leader.address, REASON_MAX);
            self.failure(format_args!(
                "it is a standby, and its leader '{leader}' is no IPv4 address with a port: give \
                 the address of the leader as --master"
            ))
        })
    }

    /// Sends a request, with the credential if the master requires it.
    async fn send<'a>(&'a self, mut request: Exchange<'a>) -> Result<(StatusCode, Bytes), Failure> {
        let header = self.authorization.as_ref().map(|authorization| &authorization.header);
        if self.login.get() != Login::Accepted {
            let response = self.send_once(request.clone()).await?;
            let is_refused = response.0 == StatusCode::UNAUTHORIZED;
            if !is_refused || header.is_none() || self.login.get() == Login::Never {
                return Ok(response);
            }
        }
        request.authorization = header;
        let response = self.send_once(request).await?;
        if response.0 != StatusCode::UNAUTHORIZED {
            self.login.set(Login::Accepted);
        }
        Ok(response)
    }

    async fn send_once(&self, request: Exchange<'_>) -> Result<(StatusCode, Bytes), Failure> {
        let endpoint = self.endpoint.borrow().clone();
        let path = request.path;
        let stream = connect(&endpoint).await.map_err(|error| self.unreachable(&error))?;
        match timeout(RESPONSE_TIMEOUT, exchange(stream, request)).await {
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

    fn unreachable(&self, error: &ConnectError) -> Failure {
        let is_socket = matches!(*self.endpoint.borrow(), Endpoint::Socket(_));
        let remedy = match (error, &self.election) {
            (ConnectError::Resolve(error), _) => return Failure::new(error.to_string()),
            (ConnectError::Io(error), _) if is_socket => match error.kind() {
                ErrorKind::PermissionDenied => "run the command as root, or as the master's user",
                _ => "is the master running, with this path as its --http-socket?",
            },
            (ConnectError::Io(_), None) => {
                "is the master running there? --master names its address"
            }
            (ConnectError::Io(_) | ConnectError::Timeout, Some(election)) => {
                return self.failure(format_args!(
                    "connect: {error}: the election at {election} names it as the leader: if it \
                     was just stopped, try again"
                ));
            }
            (ConnectError::Timeout | ConnectError::ResolveTimeout, _) => {
                "check the address and the firewalls in between"
            }
        };
        self.failure(format_args!("connect: {error}: {remedy}"))
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
                return Err(self.failure(format_args!("{response}: {}", self.login_remedy(status))));
            }
            _ => "see its log",
        };
        Err(self.failure(format_args!("{response}: {remedy}")))
    }

    /// Returns what to do about 401, an unknown client, or 403, a client without the permission.
    fn login_remedy(&self, status: StatusCode) -> String {
        match (&self.authorization, status == StatusCode::UNAUTHORIZED) {
            (None, true) => {
                "give the file of a credential that it accepts, as --credential FILE".to_owned()
            }
            (None, false) => "run the command on the master's host, or give --credential FILE, or \
                              start the master with --credentials or --insecure-writes"
                .to_owned(),
            (Some(_), true) if self.login.get() == Login::Never => {
                "a standby that requires no credential has named it, so it does not get the \
                 credential: if it is the right master, give its address as --master"
                    .to_owned()
            }
            (Some(Authorization { file, .. }), true) => {
                format!("it does not accept the credential in {file}: check principal and secret")
            }
            (Some(_), false) if self.login.get() != Login::Accepted => {
                "it does not take the credential: run the command on the master's host, or start \
                 the master with --credentials or --insecure-writes"
                    .to_owned()
            }
            (Some(Authorization { file, .. }), false) => format!(
                "its access list does not allow this to the principal in {file}: use the \
                 credential of another principal, or change the list"
            ),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_page_is_shown_up_to_limit() {
        let source = MasterSource::from_flag("--master", "127.0.0.1:5050").unwrap();
        let client = block_on(MasterClient::find(&source, None)).unwrap();
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

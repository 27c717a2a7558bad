//! Who may read and write over HTTP: the name of the server in a request, authentication, and the
//! lists of principals.
//!
//! The program authenticates by itself. In a Mesos process, the realms of Mesos authenticate, and
//! the module gets the principal.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use libprocess::RequestSource;
use overlay_config::{Acls, Credentials, HttpConfig, Principals};
use overlay_types::escape::bounded_line;
use overlay_types::protocol::Author;

use super::host::require_known_host;
use super::{Request, Response, error};

/// Longest principal in the log and in the history, in characters. Mesos passes names of any length,
/// and the history stores one for each changed agent.
const PRINCIPAL_MAX: usize = 256;

/// The access that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The request reads.
    Read,
    /// The request may change the state.
    Write,
}

/// The client of a request that Mesos has authenticated, or not. It is in the extensions of the
/// request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MesosClient {
    /// The address of the client, where Mesos knows it.
    pub peer: Option<SocketAddr>,
    /// The principal, empty if it has no name. `None` if the realm of Mesos does not authenticate.
    pub principal: Option<String>,
}

/// The rules of a server.
#[derive(Debug, Clone, Default)]
pub struct AccessRules {
    /// The lists of principals, and configured names of this server.
    pub config: HttpConfig,
    /// The names of the host, in lower case.
    pub own_names: BTreeSet<String>,
    /// What authenticates clients.
    pub authentication: Authentication,
}

/// What authenticates clients.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// The realms of Mesos.
    Mesos,
    /// Basic authentication of the program, in the realms of this process.
    Basic {
        /// The principals and their secrets.
        credentials: Credentials,
        /// The realms for reading and writing.
        realms: Realms,
    },
    /// None: everybody may read. Local clients may write, or everybody.
    None {
        /// Whether every client may write.
        insecure_writes: bool,
    },
}

impl Default for Authentication {
    fn default() -> Self {
        Self::None { insecure_writes: false }
    }
}

/// The names of the realms of a process, which are those of Mesos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Realms {
    read: &'static str,
    write: &'static str,
}

impl Realms {
    /// The realms of mesos-master.
    pub const MASTER: Self =
        Self { read: "mesos-master-readonly", write: "mesos-master-readwrite" };
    /// The realms of mesos-agent.
    pub const AGENT: Self = Self { read: "mesos-agent-readonly", write: "mesos-agent-readwrite" };

    /// Returns the realm for an access.
    #[must_use]
    pub const fn of(self, access: Access) -> &'static str {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
        }
    }
}

/// A request that is refused.
#[derive(Debug)]
pub struct Denial {
    /// The reason, for the log and the client.
    pub reason: String,
    /// Whether the client gave wrong credentials.
    pub has_wrong_credentials: bool,
    response: Response,
}

impl Denial {
    pub(super) fn forbidden(reason: String) -> Self {
        let response = error(StatusCode::FORBIDDEN, &reason);
        Self { reason, has_wrong_credentials: false, response }
    }

    fn unauthorized(realm: &str, has_wrong_credentials: bool) -> Self {
        let reason = if has_wrong_credentials {
            "wrong principal or secret: compare it with the file of --credentials"
        } else {
            "authentication is required: give the principal and the secret of --credentials by \
             HTTP basic authentication"
        };
        let mut response = error(StatusCode::UNAUTHORIZED, reason);
        if let Ok(challenge) = HeaderValue::from_str(&format!("Basic realm=\"{realm}\"")) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        Self { reason: reason.to_owned(), has_wrong_credentials, response }
    }

    /// Returns the status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Returns the response for the client.
    #[must_use]
    pub fn into_response(self) -> Response {
        self.response
    }
}

impl AccessRules {
    /// Decides whether a request may have this access. Returns the client.
    ///
    /// # Errors
    /// The refusal.
    pub fn authorize(&self, request: &Request, access: Access) -> Result<Author, Box<Denial>> {
        let source = Source::of(request);
        let principal = self.authenticate(request, &source, access)?;
        if principal.is_none() && !source.is_unix() {
            require_known_host(request, &self.config.hostnames, &self.own_names)?;
        }
        self.check_acls(principal.as_deref(), &source, access)?;
        if let Authentication::None { insecure_writes: false } = self.authentication
            && access == Access::Write
        {
            require_local(request, &source)?;
        }
        let principal = principal.map(|name| bounded_line(&name, PRINCIPAL_MAX));
        Ok(Author { principal, client: Some(source.to_string()) })
    }

    /// Returns the principal of an authenticated client.
    fn authenticate(
        &self,
        request: &Request,
        source: &Source,
        access: Access,
    ) -> Result<Option<String>, Box<Denial>> {
        match (&self.authentication, source) {
            (_, Source::Mesos(client)) => Ok(client.principal.clone()),
            (Authentication::Mesos | Authentication::None { .. }, _) => Ok(None),
            (Authentication::Basic { credentials, realms }, _) => {
                let realm = realms.of(access);
                let mut values = request.headers().get_all(AUTHORIZATION).iter();
                if let Some(value) = values.next() {
                    // Of two headers, a proxy may have checked the other one.
                    let value = value.to_str().ok().filter(|_| values.next().is_none());
                    return match value.and_then(|value| credentials.authenticate(value)) {
                        Some(principal) => Ok(Some(principal.to_owned())),
                        None => Err(Box::new(Denial::unauthorized(realm, true))),
                    };
                }
                let is_open = access == Access::Read && self.config.acls.read == Principals::Any;
                if source.is_unix() || is_open {
                    return Ok(None);
                }
                Err(Box::new(Denial::unauthorized(realm, false)))
            }
        }
    }

    /// Checks the lists of principals. The Unix socket is for the user of this process, who can
    /// change the lists.
    fn check_acls(
        &self,
        principal: Option<&str>,
        source: &Source,
        access: Access,
    ) -> Result<(), Box<Denial>> {
        let Acls { read, write } = &self.config.acls;
        let (principals, action) = match access {
            Access::Read => (read, "read"),
            Access::Write => (write, "write"),
        };
        let reason = match (principals, principal) {
            (Principals::Listed(_), Some(principal)) if !principals.contains(principal) => {
                format!(
                    "'{principal}' may not {action}: 'acls' of the configuration lists the \
                     principals that may"
                )
            }
            (Principals::Listed(_), None) if !source.is_unix() => format!(
                "only authenticated clients may {action}, as 'acls' of the configuration says: \
                 start Mesos with --authenticate_http_readonly and --authenticate_http_readwrite, \
                 or the program with --credentials"
            ),
            _ => return Ok(()),
        };
        Err(Box::new(Denial::forbidden(reason)))
    }
}

/// Headers of a proxy, besides those that begin with [`FORWARDED_PREFIX`]. The clients of a proxy
/// are not local although its connection is.
const PROXY_HEADERS: [HeaderName; 9] = [
    http::header::FORWARDED,
    http::header::VIA,
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-envoy-external-address"),
    HeaderName::from_static("x-original-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
];
/// Begins `X-Forwarded-For`, `X-Forwarded-Host` and others.
const FORWARDED_PREFIX: &str = "x-forwarded-";

fn is_of_proxy(header: &HeaderName) -> bool {
    PROXY_HEADERS.contains(header) || header.as_str().starts_with(FORWARDED_PREFIX)
}

/// Refuses a client of another host, and a client behind a proxy.
fn require_local(request: &Request, source: &Source) -> Result<(), Box<Denial>> {
    let is_proxied = request.headers().keys().any(is_of_proxy);
    let client = match source {
        Source::Connection(RequestSource::Unix { .. }) => return Ok(()),
        Source::Connection(RequestSource::Tcp { peer, local }) => {
            let (peer, local) = (peer.ip().to_canonical(), local.ip().to_canonical());
            let is_local = peer.is_loopback() || peer == local;
            if is_local && !is_proxied {
                return Ok(());
            }
            if is_local { "a client of a proxy".to_owned() } else { peer.to_string() }
        }
        Source::Mesos(_) | Source::Unknown => "a client of unknown address".to_owned(),
    };
    Err(Box::new(Denial::forbidden(format!(
        "{client} may not write: without --credentials, only clients on the host of this process may: \
         send the request there, or start this process with --credentials FILE, or with \
         --insecure-writes"
    ))))
}

/// Describes the client of a request, for the log.
#[must_use]
pub fn client_of(request: &Request) -> String {
    Source::of(request).to_string()
}

/// Where a request came from.
#[derive(Debug)]
enum Source {
    Connection(RequestSource),
    Mesos(MesosClient),
    /// A transport without this information.
    Unknown,
}

impl Source {
    fn of(request: &Request) -> Self {
        if let Some(client) = request.extensions().get::<MesosClient>() {
            return Self::Mesos(client.clone());
        }
        request.extensions().get().copied().map_or(Self::Unknown, Self::Connection)
    }

    const fn is_unix(&self) -> bool {
        matches!(self, Self::Connection(RequestSource::Unix { .. }))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(RequestSource::Tcp { peer, .. }) => peer.fmt(f),
            Self::Connection(RequestSource::Unix { user: Some(user) }) => {
                write!(f, "Unix socket, user id {user}")
            }
            Self::Connection(RequestSource::Unix { user: None }) => f.write_str("Unix socket"),
            Self::Mesos(MesosClient { peer: Some(peer), .. }) => peer.fmt(f),
            Self::Mesos(MesosClient { peer: None, .. }) | Self::Unknown => {
                f.write_str("unknown address")
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! A session with a ZooKeeper ensemble, which the store and the detector share. It connects with
//! the credentials of the operator, sets a timeout for every request, chooses the access lists of
//! new znodes, and explains errors with a remedy.
//!
//! Sessions are replaceable: the user of an ended session opens a new one. Operations that must not
//! run twice or concurrently are protected by versions of znodes, not by sessions.
//!
//! The client polls its sockets on one thread for the whole process (`async-io`). Its tasks run on
//! the tokio runtime in which the session was opened.

mod access;
mod error;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use overlay_types::addr::Ensemble;
use tokio::time::timeout;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, CreateOptions, Error, Permission};

pub(crate) use access::GuardedZnodes;
pub use error::SessionError;

/// Default session timeout: ZooKeeper expires a session without a heartbeat for this time. The
/// value is the default of Mesos.
pub const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Shortest and longest session timeout that an operator can configure. Servers clamp the timeout
/// to their own limits of 2 and 20 ticks.
pub const SESSION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);

/// A session. Dropping it closes the session, which removes its ephemeral znodes at once.
#[derive(Debug)]
pub struct Session {
    client: Client,
    ensemble: Ensemble,
    /// Number of replies, which proves progress.
    replies: Arc<AtomicU64>,
}

impl Session {
    /// Connects to a server. Must be called within a tokio runtime, which then runs a task that
    /// keeps the session alive.
    ///
    /// # Errors
    /// When no server replies within the session timeout, or the credentials are refused.
    pub async fn open(
        ensemble: &Ensemble,
        session_timeout: Duration,
    ) -> Result<Self, SessionError> {
        let mut connector = Client::connector().with_session_timeout(session_timeout);
        if let Some(credentials) = ensemble.credentials() {
            connector = connector.with_auth("digest", credentials.as_bytes());
        }
        let servers = ensemble.servers();
        let connecting = timeout(session_timeout * 2, connector.connect(&servers)).await;
        match connecting.unwrap_or(Err(Error::Timeout)) {
            Ok(client) => Ok(Self { client, ensemble: ensemble.clone(), replies: Arc::default() }),
            Err(error) => Err(SessionError::connect(ensemble, session_timeout, &error)),
        }
    }

    /// Counts the replies in `replies`.
    #[must_use]
    pub fn with_counter(self, replies: &Arc<AtomicU64>) -> Self {
        Self { replies: Arc::clone(replies), ..self }
    }

    /// Returns the client for requests.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the session timeout that the servers have granted.
    pub(crate) fn timeout(&self) -> Duration {
        self.client.session_timeout()
    }

    /// Whether the session has expired or was closed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.client.state().is_terminated()
    }

    /// Awaits the reply to a request, with the session timeout.
    ///
    /// # Errors
    /// The error of the request, or [`Error::Timeout`]. After a timeout, the servers may still
    /// execute the request.
    pub async fn with_timeout<T, E: Into<Error>>(
        &self,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        match timeout(self.timeout(), request).await {
            Ok(reply) => {
                self.replies.fetch_add(1, Ordering::Relaxed);
                reply.map_err(Into::into)
            }
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Explains the `error` of a request for the znode at `path`.
    #[must_use]
    pub fn error(&self, path: &str, error: &Error) -> SessionError {
        SessionError::request(&self.ensemble, self.timeout(), path, error)
    }

    /// Returns the options for a znode that only its owner may read and write. Without credentials,
    /// every client may read and write the znode.
    #[must_use]
    pub fn private(&self, mode: CreateMode) -> CreateOptions<'static> {
        let has_owner = self.ensemble.credentials().is_some();
        mode.with_acls(if has_owner { Acls::creator_all() } else { Acls::anyone_all() })
    }

    /// Returns the options for a znode that every client may read and only its owner may write, as
    /// Mesos creates the znodes of its election. Without credentials, every client may
    /// write the znode.
    pub(crate) fn public(&self, mode: CreateMode) -> CreateOptions<'static> {
        static OWNER_WRITES: LazyLock<[Acl; 2]> = LazyLock::new(|| {
            let anyone_reads = Acl::new(Permission::READ, AuthId::anyone());
            [anyone_reads, Acl::new(Permission::ALL, AuthId::authed())]
        });
        let has_owner = self.ensemble.credentials().is_some();
        mode.with_acls(if has_owner { Acls::new(&*OWNER_WRITES) } else { Acls::anyone_all() })
    }

    /// Creates the path of the ensemble with its missing parents.
    ///
    /// # Errors
    /// When a part of the path is missing and may not be created.
    pub async fn create_path(&self) -> Result<(), SessionError> {
        let path = self.ensemble.path();
        let create = async {
            // Checks first: a user without permission to create the path may still use it.
            if self.with_timeout(self.client.check_stat(path)).await?.is_none() {
                let options = self.public(CreateMode::Persistent);
                self.with_timeout(self.client.mkdir(path, &options)).await?;
            }
            Ok(())
        };
        create.await.map_err(|error: Error| self.error(path, &error))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn session_connects_to_ipv6_server() {
        let server = TcpListener::bind("[::1]:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let ensemble = format!("zk://user:password@[::1]:{port}/path").parse().unwrap();
        let opening = Session::open(&ensemble, Duration::from_secs(5));
        tokio::select! {
            accepted = server.accept() => assert!(accepted.is_ok()),
            opened = opening => panic!("{opened:?} without a connection"),
        }
    }
}

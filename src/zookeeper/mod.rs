//! A session with a ZooKeeper ensemble: what the store and the detector have in common. It connects
//! with the operator's credentials, gives every request a deadline, says which access lists new
//! znodes get, and turns the client's errors into sentences with a remedy.
//!
//! Sessions are not made to last: one that has ended is replaced by whoever needs it. What must not
//! be done twice, or by two, is not protected by a session but by versions of znodes.
//!
//! The client has its sockets watched by a thread of its own (`async-io`), one for the whole
//! process; its tasks run on the tokio runtime in which the session was opened.

mod access;
mod failure;

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::timeout;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, CreateOptions, Error, Permission};

pub use access::Guarded;
pub use failure::Failure;

use crate::addr::Ensemble;

/// After how long without a word ZooKeeper gives up a session, unless the operator says otherwise:
/// the default of Mesos.
pub const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Shortest and longest session timeout that can be asked for. Servers have bounds of their own, of
/// 2 and 20 of their ticks, and use the nearest.
pub const SESSION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);

/// A session. Dropped, it is closed, and its ephemeral znodes go at once.
#[derive(Debug)]
pub struct Session {
    client: Client,
    ensemble: Ensemble,
}

impl Session {
    /// Finds a server that answers. To be called within a tokio runtime, which then has a task that
    /// keeps the session alive.
    ///
    /// # Errors
    /// When no server answers within the session timeout, or the credentials are refused.
    pub async fn open(ensemble: &Ensemble, session_timeout: Duration) -> Result<Self, Failure> {
        let mut connector = Client::connector().with_session_timeout(session_timeout);
        if let Some(credentials) = ensemble.credentials() {
            connector = connector.with_auth("digest", credentials.as_bytes());
        }
        let servers = ensemble.servers();
        let connecting = timeout(session_timeout * 2, connector.connect(&servers)).await;
        match connecting.unwrap_or(Err(Error::Timeout)) {
            Ok(client) => Ok(Self { client, ensemble: ensemble.clone() }),
            Err(error) => Err(Failure::connect(ensemble, session_timeout, &error)),
        }
    }

    /// Where requests begin.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The session timeout that the servers have granted.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.client.session_timeout()
    }

    /// Whether nothing can come of this session any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.client.state().is_terminated()
    }

    /// Waits for the answer to a request, for as long as a session lasts without one.
    ///
    /// # Errors
    /// Those of the request; [`Error::Timeout`] if there is no answer, which leaves open whether
    /// the request was or still will be carried out.
    pub async fn answer<T, E: Into<Error>>(
        &self,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        match timeout(self.timeout(), request).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// What `error` means to an operator, who knows nothing of requests but of the znode at `path`.
    #[must_use]
    pub fn failure(&self, path: &str, error: &Error) -> Failure {
        Failure::request(&self.ensemble, self.timeout(), path, error)
    }

    /// How znodes are made that only their owner is to see: with credentials he alone may read and
    /// write them, without any everybody.
    #[must_use]
    pub fn private(&self, mode: CreateMode) -> CreateOptions<'static> {
        let has_owner = self.ensemble.credentials().is_some();
        mode.with_acls(if has_owner { Acls::creator_all() } else { Acls::anyone_all() })
    }

    /// How znodes are made that everybody is to see, as Mesos makes those of its election: with
    /// credentials everybody may read them, and their owner alone may write.
    #[must_use]
    pub fn public(&self, mode: CreateMode) -> CreateOptions<'static> {
        static OWNER_WRITES: LazyLock<[Acl; 2]> = LazyLock::new(|| {
            let everybody = Acl::new(Permission::READ, AuthId::anyone());
            [everybody, Acl::new(Permission::ALL, AuthId::authed())]
        });
        let has_owner = self.ensemble.credentials().is_some();
        mode.with_acls(if has_owner { Acls::new(&*OWNER_WRITES) } else { Acls::anyone_all() })
    }

    /// Makes the path of the ensemble with its parents, where it is missing.
    ///
    /// # Errors
    /// When a part of it is missing and may not be made.
    pub async fn make_path(&self) -> Result<(), Failure> {
        let path = self.ensemble.path();
        let make = async {
            // Asked first: who may not make it may still use what is there.
            if self.answer(self.client.check_stat(path)).await?.is_none() {
                let options = self.public(CreateMode::Persistent);
                self.answer(self.client.mkdir(path, &options)).await?;
            }
            Ok(())
        };
        make.await.map_err(|error: Error| self.failure(path, &error))
    }
}

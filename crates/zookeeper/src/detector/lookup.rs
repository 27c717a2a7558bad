//! Finds the leading master once, for a client that sends a request to it.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use tokio::time::timeout;

use super::group;
use crate::session::{Session, SessionError};

/// Session timeout of a lookup. The servers answer at once, or not at all.
const SESSION_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest lookup, from the first connection to the leader's address.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no leading master was found. The text contains no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The servers do not answer, or refuse the request.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The time is over.
    #[error(
        "no answer of {servers} within {} s: check that most of them run and are reachable from \
         this host",
        LOOKUP_TIMEOUT.as_secs()
    )]
    Timeout {
        /// The servers of the ensemble.
        servers: String,
    },
    /// The path does not exist.
    #[error("{0} does not exist: no master has used this address: check its path")]
    NoPath(String),
    /// The election has no candidate.
    #[error("no master leads: no candidate is at {0}: check that the masters run")]
    NoLeader(String),
    /// The first candidate is no master. A client must not send its credential there.
    #[error("no master leads: {0}")]
    Foreign(String),
}

/// Returns the address of the master that leads the election at the path of `ensemble`. Must be
/// called within a tokio runtime.
///
/// # Errors
/// When the servers do not answer in time, or no master leads.
pub async fn find_leader(ensemble: &Ensemble) -> Result<SocketAddrV4, LookupError> {
    let servers = || ensemble.servers();
    let lookup = timeout(LOOKUP_TIMEOUT, lookup(ensemble));
    lookup.await.unwrap_or_else(|_| Err(LookupError::Timeout { servers: servers() }))
}

async fn lookup(ensemble: &Ensemble) -> Result<SocketAddrV4, LookupError> {
    let session = Session::open(ensemble, SESSION_TIMEOUT).await?;
    let path = ensemble.path();
    let explain = |error| LookupError::from(session.error(path, &error));
    let Some((members, _)) = group::list(&session, path).await.map_err(explain)? else {
        return Err(LookupError::NoPath(path.to_owned()));
    };
    for member in &members {
        // A candidate that has disappeared since the list leads no more.
        let Some(content) = group::read(&session, path, member).await.map_err(explain)? else {
            continue;
        };
        return match (&content.defect, &content.candidate) {
            (None, Ok(candidate)) if group::is_reachable(candidate) => Ok(candidate.address),
            (Some(defect), _) => {
                Err(LookupError::Foreign(format!("{defect}: {}", content.remedy())))
            }
            (None, _) => Err(LookupError::Foreign(format!(
                "the first candidate at {path} has no usable address: {}",
                content.remedy()
            ))),
        };
    }
    Err(LookupError::NoLeader(path.to_owned()))
}

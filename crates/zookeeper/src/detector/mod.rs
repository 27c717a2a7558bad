//! Detection of the leading master for agents, and the election among masters.

mod contender;
mod fixed;
mod follower;
mod group;
mod lease;
mod lookup;
mod progress;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use tokio::sync::watch;
use tokio::time::sleep;
use zookeeper_client::AuthId;

use crate::session::{GuardedZnodes, Session, SessionError};
pub use contender::{Contender, ElectionWarnings, Withdrawal};
pub use fixed::{FixedMaster, FixedMasterError, ResolveError};
pub use follower::follow_election;
pub use lease::Lease;
pub use lookup::{LookupError, find_leader};
pub use progress::{Progress, progress_deadline};

/// Key of the warning that foreign clients can change the election or the state.
const ACCESS_WARNING: &str = "zookeeper-access";
/// Key of the warning that a candidate of the election is no master.
const CANDIDATE_WARNING: &str = "zookeeper-candidate";
/// Key of the failure that this process cannot take part in the election.
pub const ELECTION_FAILURE: &str = "zookeeper-election";
/// Interval of checks of access lists. A warning must end after the operator has fixed the list.
const ACCESS_INTERVAL: Duration = Duration::from_secs(60);

/// Lists the candidates of the election at the path of `ensemble`, the leader first. A candidate is
/// its address, or the name of its znode if the content is malformed.
///
/// # Errors
/// When the servers do not reply, or refuse to list the candidates.
pub async fn list_candidates(
    ensemble: &Ensemble,
    session_timeout: Duration,
) -> Result<Vec<String>, SessionError> {
    let session = Session::open(ensemble, session_timeout).await?;
    let path = ensemble.path();
    let explain = |error| session.error(path, &error);
    let listed = group::list(&session, path).await.map_err(explain)?;
    let mut candidates = Vec::new();
    for member in listed.map(|(members, _)| members).unwrap_or_default() {
        if let Some(content) = group::read(&session, path, &member).await.map_err(explain)? {
            candidates.push(match content.candidate {
                Ok(candidate) => candidate.address.to_string(),
                Err(_) => member.name,
            });
        }
    }
    Ok(candidates)
}

/// Opens a session. Sets the failure `action` if the servers do not answer soon.
async fn open_session(
    (ensemble, session_timeout): (&Ensemble, Duration),
    warnings: &Warnings,
    action: &str,
) -> Result<Session, SessionError> {
    let opening = Session::open(ensemble, session_timeout);
    tokio::pin!(opening);
    tokio::select! {
        opened = &mut opening => return opened,
        () = sleep(session_timeout / 2) => {}
    }
    // The reason of an earlier attempt is more precise.
    if !warnings.has_failure(ELECTION_FAILURE) {
        let error = SessionError::unanswered(ensemble);
        warnings.set_failure(ELECTION_FAILURE, Some(format!("{action} at {ensemble}: {error}")));
    }
    opening.await
}

/// Checks access lists at an interval and updates the warning, until the future is dropped.
async fn watch_access(
    session: &Session,
    guarded: &GuardedZnodes,
    own: Option<&[AuthId]>,
    warnings: &Warnings,
) -> Infallible {
    loop {
        // Without a reply, the last warning stays.
        if let Ok(warning) = session.access_warning(guarded, own).await {
            warnings.set(ACCESS_WARNING, warning);
        }
        sleep(ACCESS_INTERVAL).await;
    }
}

/// The source of the master's address.
#[derive(Debug, Clone)]
pub enum Detector {
    /// The configuration contains the name or address of the master.
    Fixed(FixedMaster),
    /// A follower of the election sends the masters that it finds.
    Elected(Election),
}

/// The masters that a follower of the election finds.
#[derive(Debug, Clone)]
pub struct Election {
    /// The address of the leading master, or `None`.
    pub leader: watch::Receiver<Option<SocketAddrV4>>,
    /// The addresses of all candidates that are masters of this program.
    pub programs: watch::Receiver<BTreeSet<SocketAddrV4>>,
}

impl Election {
    /// Returns the election of a follower that knows only the leading master.
    #[must_use]
    pub fn of_leader(leader: watch::Receiver<Option<SocketAddrV4>>) -> Self {
        Self { leader, programs: watch::channel(BTreeSet::new()).1 }
    }
}

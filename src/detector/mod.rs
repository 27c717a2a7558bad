//! Who leads: finds the address of the master that an agent registers with, and has several masters
//! agree on one of them.

mod contender;
mod fixed;
mod follower;
mod group;

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use zookeeper_client::AuthId;

pub use contender::{Contender, Watched, Withdrawal};
pub use fixed::{FixedMaster, FixedMasterError};
pub use follower::follow;

use crate::addr::Ensemble;
use crate::warnings::Warnings;
use crate::zookeeper::{Failure, Guarded, Session};

/// The standing warning that clients other than masters can change the state in ZooKeeper.
const ACCESS_WARNING: &str = "zookeeper-access";
/// The standing warning that somebody stands for election who is no master.
const CANDIDATE_WARNING: &str = "zookeeper-candidate";
/// How often access lists are looked at again: a warning is to end when the operator has acted.
const ACCESS_INTERVAL: Duration = Duration::from_secs(60);

/// Who stands for election at the path of `ensemble`, the leader first: their addresses, or the
/// names of their znodes where these say nothing that can be understood.
///
/// # Errors
/// When the servers do not answer, or not to this.
pub async fn candidates(
    ensemble: &Ensemble,
    session_timeout: Duration,
) -> Result<Vec<String>, Failure> {
    let session = Session::open(ensemble, session_timeout).await?;
    let path = ensemble.path();
    let failure = |error| session.failure(path, &error);
    let listed = group::list(&session, path).await.map_err(failure)?;
    let mut candidates = Vec::new();
    for member in listed.map(|(members, _)| members).unwrap_or_default() {
        if let Some(seen) = group::read(&session, path, &member).await.map_err(failure)? {
            candidates.push(match seen.candidate {
                Ok(candidate) => candidate.address.to_string(),
                Err(_) => member.name,
            });
        }
    }
    Ok(candidates)
}

/// Keeps the warning of access lists true for as long as it is polled.
async fn watch_access(
    session: &Session,
    guarded: &Guarded,
    own: Option<&[AuthId]>,
    warnings: &Warnings,
) -> Infallible {
    loop {
        // Servers that do not answer say nothing of access lists.
        if let Ok(warning) = session.access_warning(guarded, own).await {
            warnings.set(ACCESS_WARNING, warning);
        }
        sleep(ACCESS_INTERVAL).await;
    }
}

/// A way to find the master.
#[derive(Debug)]
pub enum Detector {
    /// The configuration names it.
    Fixed(FixedMaster),
    /// Somebody follows the election and says who leads, if anybody does.
    Watched(watch::Receiver<Option<SocketAddrV4>>),
}

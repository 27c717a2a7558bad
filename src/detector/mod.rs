//! Who leads: finds the address of the master that an agent registers with, and has several masters
//! agree on one of them.

mod contender;
mod fixed;
mod follower;
mod group;

use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::sync::watch;

pub use contender::{Contender, Withdrawal};
pub use fixed::{FixedMaster, FixedMasterError};
pub use follower::follow;

use crate::addr::Ensemble;
use crate::zookeeper::{Failure, Session};

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
        match group::read(&session, path, &member).await.map_err(failure)? {
            Some(Ok(candidate)) => candidates.push(candidate.address.to_string()),
            Some(Err(_)) => candidates.push(member.name),
            None => {}
        }
    }
    Ok(candidates)
}

/// A way to find the master.
#[derive(Debug)]
pub enum Detector {
    /// The configuration names it.
    Fixed(FixedMaster),
    /// Somebody follows the election and says who leads, if anybody does.
    Watched(watch::Receiver<Option<SocketAddrV4>>),
}

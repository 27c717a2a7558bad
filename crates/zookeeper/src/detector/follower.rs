//! Follows an election in ZooKeeper for an agent: detects the leader now and after every change.
//! The follower only reads. It accepts masters of this program and Mesos masters.
//!
//! During an outage of ZooKeeper, the last leader stays until the servers report another leader. A
//! master that lost its leadership detects that by itself.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use zookeeper_client::{EventType, SessionState};

use super::group::{self, Leader};
use super::{CANDIDATE_WARNING, ELECTION_FAILURE, open_session, watch_access};
use crate::session::{GuardedZnodes, Session, SessionError};

/// Shortest interval between two attempts, as in Mesos.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The action in error messages.
const ACTION: &str = "find the master";

/// Follows the election at the path of `ensemble`. Returns a receiver of the leader, and the future
/// that must be polled to follow the election. A leader that is elected again is sent again. Sets
/// `warnings` if foreign clients can change the election, or the leader is no master.
pub fn follow_election(
    ensemble: Ensemble,
    session_timeout: Duration,
    warnings: Warnings,
) -> (watch::Receiver<Option<SocketAddrV4>>, impl Future<Output = Infallible> + Send) {
    let (sender, receiver) = watch::channel(None);
    let work = async move {
        let mut leader = None;
        loop {
            let began = Instant::now();
            let outputs = (&sender, &warnings);
            let session = follow_session(&ensemble, session_timeout, outputs, &mut leader);
            let Err(error) = session.await;
            let failure = format!("{ACTION} at {ensemble}: {error}; trying again");
            warnings.set_failure(ELECTION_FAILURE, Some(failure));
            sleep(RETRY_INTERVAL.saturating_sub(began.elapsed())).await;
        }
    };
    (receiver, work)
}

/// Follows the election until the session ends. `last` is the candidate that was sent last. The
/// same address in a new candidate is sent again, because that master has lost its volatile state.
async fn follow_session(
    ensemble: &Ensemble,
    session_timeout: Duration,
    (leader, warnings): (&watch::Sender<Option<SocketAddrV4>>, &Warnings),
    last: &mut Option<group::Member>,
) -> Result<Infallible, SessionError> {
    let session = open_session((ensemble, session_timeout), warnings, ACTION).await?;
    let guarded = GuardedZnodes { election: ensemble.path().to_owned(), state: Vec::new() };
    loop {
        let Leader { found, warning, watcher } = group::leader(&session, ensemble.path()).await?;
        // A first member without a usable address leaves the agent without a master.
        if found.is_none() && warning.is_some() {
            warnings.set_failure(CANDIDATE_WARNING, warning);
        } else {
            warnings.set(CANDIDATE_WARNING, warning);
        }
        warnings.set_failure(ELECTION_FAILURE, None);
        let (member, address) =
            found.map(|(member, candidate)| (member, candidate.address)).unzip();
        if member != *last {
            match address {
                Some(address) => log::info!("{ensemble}: the leading master is {address}"),
                None => log::warn!("{ensemble}: no master leads: waiting for a leader"),
            }
            *last = member;
            leader.send_replace(address);
        }
        let event = tokio::select! {
            event = watcher.changed() => event,
            never = watch_access(&session, &guarded, None, warnings) => match never {},
            never = watch_connection(&session, ensemble, warnings) => match never {},
        };
        if event.event_type == EventType::Session {
            let error = zookeeper_client::Error::SessionExpired;
            return Err(session.error(ensemble.path(), &error));
        }
    }
}

/// Sets a failure while the servers do not serve this session, until the future is dropped. Servers
/// without a quorum close all connections. An agent sends no heartbeats of its own, since a cluster
/// has thousands of agents.
async fn watch_connection(
    session: &Session,
    ensemble: &Ensemble,
    warnings: &Warnings,
) -> Infallible {
    let mut states = session.client().state_watcher();
    let mut state = states.state();
    loop {
        if state == SessionState::Disconnected {
            let grace = session.timeout() / 2;
            state = match timeout(grace, states.changed()).await {
                Ok(state) => state,
                Err(_) => {
                    let error = SessionError::unanswered(ensemble);
                    let failure = format!("{ACTION} at {ensemble}: {error}");
                    warnings.set_failure(ELECTION_FAILURE, Some(failure));
                    states.changed().await
                }
            };
        } else {
            if state == SessionState::SyncConnected {
                warnings.set_failure(ELECTION_FAILURE, None);
            }
            state = states.changed().await;
        }
    }
}

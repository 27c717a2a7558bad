//! Follows an election in ZooKeeper for an agent: detects the leader now and after every change.
//! The follower only reads. It accepts masters of this program and Mesos masters.
//!
//! During an outage of ZooKeeper, the last leader stays until the servers report another leader. A
//! master that lost its leadership detects that by itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use zookeeper_client::{EventType, SessionState};

use super::group::{self, Leader, ProgramCache};
use super::{CANDIDATE_WARNING, ELECTION_FAILURE, Election, open_session, watch_access};
use crate::session::{GuardedZnodes, Session, SessionError};

/// Shortest interval between two attempts, as in Mesos.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The action in error messages.
const ACTION: &str = "find the master";

/// Follows the election at the path of `ensemble`. Returns receivers of the masters that the
/// follower finds, and the future that must be polled to follow the election. A leader that is
/// elected again is sent again. Sets `warnings` if foreign clients can change the election, or the
/// leader is no master.
pub fn follow_election(
    ensemble: Ensemble,
    session_timeout: Duration,
    warnings: Warnings,
) -> (Election, impl Future<Output = Infallible> + Send) {
    let (leader, leader_receiver) = watch::channel(None);
    let (programs, programs_receiver) = watch::channel(BTreeSet::new());
    let election = Election { leader: leader_receiver, programs: programs_receiver };
    let work = async move {
        let outputs = Outputs { leader, programs, warnings };
        let warnings = &outputs.warnings;
        let mut known = Known::default();
        loop {
            let began = Instant::now();
            let session = follow_session(&ensemble, session_timeout, &outputs, &mut known);
            let Err(error) = session.await;
            let failure = format!("{ACTION} at {ensemble}: {error}; trying again");
            warnings.set_failure(ELECTION_FAILURE, Some(failure));
            sleep(RETRY_INTERVAL.saturating_sub(began.elapsed())).await;
        }
    };
    (election, work)
}

/// The senders of the masters that the follower finds, and its warnings.
struct Outputs {
    leader: watch::Sender<Option<SocketAddrV4>>,
    programs: watch::Sender<BTreeSet<SocketAddrV4>>,
    warnings: Warnings,
}

/// The state of the election that the follower keeps from one session to the next.
#[derive(Default)]
struct Known {
    /// The candidate that was sent last.
    leader: Option<group::Member>,
    programs: ProgramCache,
}

/// Follows the election until the session ends. The same address in a new candidate is sent again,
/// because that master has lost its volatile state.
async fn follow_session(
    ensemble: &Ensemble,
    session_timeout: Duration,
    Outputs { leader, programs, warnings }: &Outputs,
    known: &mut Known,
) -> Result<Infallible, SessionError> {
    let session = open_session((ensemble, session_timeout), warnings, ACTION).await?;
    let guarded = GuardedZnodes { election: ensemble.path().to_owned(), state: Vec::new() };
    loop {
        let path = ensemble.path();
        let Leader { found, warning, members, watcher } = group::leader(&session, path).await?;
        group::update_programs(&session, path, &members, &mut known.programs)
            .await
            .map_err(|error| session.error(path, &error))?;
        // Sent before the leader: the firewall closes the ports of masters on standby.
        let found_programs: BTreeSet<_> = known.programs.values().flatten().copied().collect();
        programs.send_if_modified(|before| {
            let is_changed = *before != found_programs;
            *before = found_programs;
            is_changed
        });
        // A first member without a usable address leaves the agent without a master.
        if found.is_none() && warning.is_some() {
            warnings.set_failure(CANDIDATE_WARNING, warning);
        } else {
            warnings.set(CANDIDATE_WARNING, warning);
        }
        warnings.set_failure(ELECTION_FAILURE, None);
        let (member, address) =
            found.map(|(member, candidate)| (member, candidate.address)).unzip();
        if member != known.leader {
            match address {
                Some(address) => log::info!("{ensemble}: the leading master is {address}"),
                None => log::warn!("{ensemble}: no master leads: waiting for a leader"),
            }
            known.leader = member;
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

//! Follows an election in ZooKeeper without standing for it, as agents do: who leads, now and after
//! every change. It only reads, and any master is as good as another: ours, or one of Mesos.
//!
//! An outage of ZooKeeper says nothing about the master: the last leader stays until the servers
//! say otherwise. A master that should not lead any more finds that out by itself.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use zookeeper_client::EventType;

use super::group::{self, Leader};
use super::{CANDIDATE_WARNING, watch_access};
use crate::addr::Ensemble;
use crate::warnings::Warnings;
use crate::zookeeper::{Failure, Guarded, Session};

/// Least time between two attempts, as in Mesos.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the election at the path of `ensemble`: the leader, and the work to be done for as long
/// as somebody wants to know it. A leader that was elected anew is told anew. `warnings` gets those
/// of an election that clients other than masters can change, and of a leader that is not a
/// master.
pub fn follow(
    ensemble: Ensemble,
    session_timeout: Duration,
    warnings: Warnings,
) -> (watch::Receiver<Option<SocketAddrV4>>, impl Future<Output = Infallible> + Send) {
    let (sender, receiver) = watch::channel(None);
    let work = async move {
        let mut last = String::new();
        let mut leader = None;
        loop {
            let began = Instant::now();
            let tools = (&sender, &warnings);
            let session = follow_session(&ensemble, session_timeout, tools, &mut leader);
            let Err(failure) = session.await;
            let failure = failure.to_string();
            // The same again and again would fill the log.
            if failure != last {
                log::warn!("find the master at {ensemble}: {failure}; trying again");
                last = failure;
            }
            sleep(RETRY.saturating_sub(began.elapsed())).await;
        }
    };
    (receiver, work)
}

/// Follows for as long as one session lasts. `last` is the candidate that was told last: the same
/// address in another candidate is news, since that one has forgotten what the last one knew.
async fn follow_session(
    ensemble: &Ensemble,
    session_timeout: Duration,
    (leader, warnings): (&watch::Sender<Option<SocketAddrV4>>, &Warnings),
    last: &mut Option<group::Member>,
) -> Result<Infallible, Failure> {
    let session = Session::open(ensemble, session_timeout).await?;
    let guarded = Guarded { election: ensemble.path().to_owned(), state: Vec::new() };
    loop {
        let Leader { found, warning, watcher } = group::leader(&session, ensemble.path()).await?;
        warnings.set(CANDIDATE_WARNING, warning);
        let (member, address) = found.map(|(member, one)| (member, one.address)).unzip();
        if member != *last {
            match address {
                Some(address) => log::info!("{address} leads, says {ensemble}"),
                None => log::warn!("no master leads, says {ensemble}: waiting for one"),
            }
            *last = member;
            leader.send_replace(address);
        }
        let event = tokio::select! {
            event = watcher.changed() => event,
            never = watch_access(&session, &guarded, None, warnings) => match never {},
        };
        if event.event_type == EventType::Session {
            let error = zookeeper_client::Error::SessionExpired;
            return Err(session.failure(ensemble.path(), &error));
        }
    }
}

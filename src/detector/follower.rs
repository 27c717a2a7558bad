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

use super::group;
use crate::addr::Ensemble;
use crate::zookeeper::{Failure, Session};

/// Least time between two attempts, as in Mesos.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the election at the path of `ensemble`: the leader, and the work to be done for as long
/// as somebody wants to know it. A leader that was elected anew is told anew.
pub fn follow(
    ensemble: Ensemble,
    session_timeout: Duration,
) -> (watch::Receiver<Option<SocketAddrV4>>, impl Future<Output = Infallible> + Send) {
    let (sender, receiver) = watch::channel(None);
    let work = async move {
        let mut last = String::new();
        let mut leader = None;
        loop {
            let began = Instant::now();
            let session = follow_session(&ensemble, session_timeout, &sender, &mut leader);
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
    leader: &watch::Sender<Option<SocketAddrV4>>,
    last: &mut Option<group::Member>,
) -> Result<Infallible, Failure> {
    let session = Session::open(ensemble, session_timeout).await?;
    loop {
        let (found, watcher) = group::leader(&session, ensemble.path()).await?;
        let (member, address) = found.map(|(member, one)| (member, one.address)).unzip();
        if member != *last {
            match address {
                Some(address) => log::info!("{address} leads, says {ensemble}"),
                None => log::warn!("no master leads, says {ensemble}: waiting for one"),
            }
            *last = member;
            leader.send_replace(address);
        }
        let event = watcher.changed().await;
        if event.event_type == EventType::Session {
            let error = zookeeper_client::Error::SessionExpired;
            return Err(session.failure(ensemble.path(), &error));
        }
    }
}

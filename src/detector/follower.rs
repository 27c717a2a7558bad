//! Follows an election in ZooKeeper without standing for it, as agents do: who leads, now and after
//! every change. It only reads, and any master is as good as another: ours, or one of Mesos.
//!
//! An outage of ZooKeeper says nothing about the master: the last leader stays until the servers say
//! otherwise. A master that should not lead any more finds that out by itself.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::sync::watch;
use zookeeper_client::EventType;

use super::group;
use crate::addr::Ensemble;
use crate::zookeeper::{Failure, Session};

/// How long to wait before a failed attempt is repeated, as in Mesos.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the election at the path of `ensemble`: the leader, and the work to be done for as long
/// as somebody wants to know it.
pub fn follow(
    ensemble: Ensemble,
    session_timeout: Duration,
) -> (watch::Receiver<Option<SocketAddrV4>>, impl Future<Output = Infallible> + Send) {
    let (sender, receiver) = watch::channel(None);
    let work = async move {
        let mut last = String::new();
        loop {
            let Err(failure) = follow_session(&ensemble, session_timeout, &sender, &mut last).await;
            let failure = failure.to_string();
            // The same again and again would fill the log.
            if failure != last {
                log::warn!("find the master at {ensemble}: {failure}; trying again");
                last = failure;
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    (receiver, work)
}

/// Follows for as long as one session lasts.
async fn follow_session(
    ensemble: &Ensemble,
    session_timeout: Duration,
    leader: &watch::Sender<Option<SocketAddrV4>>,
    last_failure: &mut String,
) -> Result<Infallible, Failure> {
    let session = Session::open(ensemble, session_timeout).await?;
    loop {
        let (candidate, watcher) = group::leader(&session, ensemble.path()).await?;
        last_failure.clear();
        let address = candidate.map(|candidate| candidate.address);
        leader.send_if_modified(|leader| {
            let is_news = *leader != address;
            if is_news {
                match address {
                    Some(address) => log::info!("{address} leads, says {ensemble}"),
                    None => log::warn!("no master leads, says {ensemble}: waiting for one"),
                }
            }
            *leader = address;
            is_news
        });
        let event = watcher.changed().await;
        if event.event_type == EventType::Session {
            let error = zookeeper_client::Error::SessionExpired;
            return Err(session.failure(ensemble.path(), &error));
        }
    }
}

//! Stands for election in ZooKeeper, as masters do, in the form of Mesos: whether this one leads.
//!
//! The servers let another one lead when our session expires, which is the session timeout after
//! they last heard of us. We have to know that before they do, on our own clock: leading is a lease
//! that counts from the moment at which we *asked* the leader of the servers for a sign of life
//! that then came, and that ends earlier than the session could. A process that sleeps through all
//! of it (stopped, swapped out) may still believe to lead for a moment; that is what the epoch of
//! the store is for.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zookeeper_client::{CreateMode, Error, EventType, OneshotWatcher};

use super::{CANDIDATE_WARNING, group, watch_access};
use crate::addr::Ensemble;
use crate::protocol::Candidate;
use crate::warnings::Warnings;
use crate::wire::encode_candidate;
use crate::zookeeper::{Failure, Guarded, Session};

/// Least time between two attempts, as in Mesos.
const RETRY: Duration = Duration::from_secs(2);

/// How long to wait before an election is looked at again that belongs to others.
const RETRY_FOREIGN: Duration = Duration::from_secs(30);

/// How long the end waits for ZooKeeper to know of it. Without that the next leader comes as after
/// a crash.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many members of the election are read: more than masters, and few enough that whoever makes
/// thousands does not keep us from leading.
const MEMBERS_MAX: usize = 64;

/// The name of our znode, before the number.
const LABEL: &str = "json.info_";

/// What a contender warns of.
#[derive(Debug)]
pub struct Watched {
    /// The znodes of the state, the root first: whether clients other than masters can change them.
    pub state: Vec<String>,
    /// Where the warnings are shown.
    pub warnings: Warnings,
}

/// A master that stands for election. Dropped, it does not any more.
#[derive(Debug)]
pub struct Contender {
    leading: watch::Receiver<bool>,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    task: JoinHandle<()>,
}

/// A way to have a contender go to the end of the queue.
#[derive(Debug, Clone)]
pub struct Withdrawal(Arc<Notify>);

impl Withdrawal {
    /// Another one leads, whatever the election says: stand for it anew.
    pub fn withdraw(&self) {
        self.0.notify_one();
    }
}

impl Contender {
    /// Stands for the election at the path of `ensemble`, which is made if it is missing, as the
    /// master that is reached at `address`. `watched` gets the warnings of what it sees there. To
    /// be called within a tokio runtime.
    #[must_use]
    pub fn start(
        ensemble: Ensemble,
        session_timeout: Duration,
        address: SocketAddrV4,
        watched: Watched,
    ) -> Self {
        let (sender, leading) = watch::channel(false);
        let (withdraw, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let candidacy = Candidacy {
            ensemble,
            session_timeout,
            candidate: Candidate::own(address, fastrand::u64(..)),
            leading: sender,
            withdraw: Arc::clone(&withdraw),
            end: Arc::clone(&end),
            watched,
        };
        Self { leading, withdraw, end, task: tokio::spawn(candidacy.run()) }
    }

    /// Whether this master leads.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    /// For whoever finds out first that another one leads.
    #[must_use]
    pub fn withdrawal(&self) -> Withdrawal {
        Withdrawal(Arc::clone(&self.withdraw))
    }

    /// Leads no more, and lets the next one lead at once.
    pub async fn resign(mut self) {
        self.end.notify_one();
        let _ = timeout(FAREWELL, &mut self.task).await;
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a candidacy was given up.
enum Given {
    /// It can be tried again.
    Up(Failure),
    /// Others hold an election there, which is not ours.
    Foreign(String),
    /// Another one leads.
    Withdrawn,
    /// For good.
    Ended,
}

impl From<Failure> for Given {
    fn from(failure: Failure) -> Self {
        Self::Up(failure)
    }
}

struct Candidacy {
    ensemble: Ensemble,
    session_timeout: Duration,
    candidate: Candidate,
    leading: watch::Sender<bool>,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    watched: Watched,
}

impl Candidacy {
    async fn run(self) {
        let mut last = String::new();
        loop {
            let began = Instant::now();
            let Err(given) = self.stand().await;
            self.lead(false);
            let wait = match given {
                Given::Ended => return,
                Given::Withdrawn => {
                    log::warn!("another master has the state: standing for election anew");
                    Duration::ZERO
                }
                Given::Up(failure) => {
                    self.report(&mut last, failure.to_string());
                    RETRY.saturating_sub(began.elapsed())
                }
                Given::Foreign(path) => {
                    let why = format!(
                        "stand for election at {}: {path} is a master of Mesos, which this one must \
                         not compete with: choose a path of its own",
                        self.ensemble
                    );
                    self.watched.warnings.set(CANDIDATE_WARNING, Some(why));
                    RETRY_FOREIGN
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.end.notified() => return,
            }
        }
    }

    /// The same again and again would fill the log.
    fn report(&self, last: &mut String, failure: String) {
        if *last != failure {
            log::warn!("stand for election at {}: {failure}; trying again", self.ensemble);
            *last = failure;
        }
    }

    fn lead(&self, leads: bool) {
        self.leading.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
    }

    /// Stands for election for as long as one session lasts.
    async fn stand(&self) -> Result<Infallible, Given> {
        let session = Session::open(&self.ensemble, self.session_timeout).await?;
        session.make_path().await?;
        self.refuse_mesos_election(&session).await?;
        let started = Instant::now();
        let own = self.announce(&session).await?;
        let lease = watch::channel(started).0;
        let is_first = watch::channel(false).0;
        let given = tokio::select! {
            given = self.watch_group(&session, &own, &is_first) => given,
            never = self.watch_access(&session, &own) => match never {},
            never = keep_lease(&session, &lease) => match never {},
            () = self.decide(&session, lease.subscribe(), is_first.subscribe()) => {
                session.failure(self.ensemble.path(), &Error::Timeout).into()
            }
            () = self.withdraw.notified() => Given::Withdrawn,
            () = self.end.notified() => Given::Ended,
        };
        self.lead(false);
        if !matches!(given, Given::Up(_)) {
            // The end of the session removes the znode too, if there is time for it.
            let path = format!("{}/{own}", self.ensemble.path());
            let _ = timeout(FAREWELL, session.client().delete(&path, None)).await;
        }
        Err(given)
    }

    /// Refuses to compete with masters of Mesos.
    async fn refuse_mesos_election(&self, session: &Session) -> Result<(), Given> {
        let path = self.ensemble.path();
        let failure = |error: Error| Given::Up(session.failure(path, &error));
        let Some((members, _)) = group::list(session, path).await.map_err(failure)? else {
            return Ok(());
        };
        match foreign_candidates(session, path, &members).await.map_err(failure)?.mesos {
            Some(mesos) => Err(Given::Foreign(mesos)),
            None => Ok(()),
        }
    }

    /// Warns for as long as clients other than masters can change the election or the state.
    async fn watch_access(&self, session: &Session, own: &str) -> Infallible {
        let Watched { state, warnings } = &self.watched;
        let election = self.ensemble.path().to_owned();
        let own = format!("{election}/{own}");
        let guarded = Guarded { election, state: state.clone() };
        let identities = loop {
            match session.identities(&own).await {
                Ok(identities) => break identities,
                Err(_) => sleep(lease_step(session)).await,
            }
        };
        watch_access(session, &guarded, Some(&identities), warnings).await
    }

    /// Makes our znode, and returns its name. If that fails its session must not be used again,
    /// since the znode may be there all the same.
    async fn announce(&self, session: &Session) -> Result<String, Given> {
        let prefix = format!("{}/{LABEL}", self.ensemble.path());
        let content = encode_candidate(&self.candidate);
        let options = session.public(CreateMode::EphemeralSequential);
        let create = session.client().create(&prefix, content.as_bytes(), &options);
        match session.answer(create).await {
            Ok((_, number)) => Ok(format!("{LABEL}{number}")),
            Err(error) => Err(session.failure(self.ensemble.path(), &error).into()),
        }
    }

    /// Looks at the candidates whenever they change, and says whether we are the first.
    async fn watch_group(
        &self,
        session: &Session,
        own: &str,
        is_first: &watch::Sender<bool>,
    ) -> Given {
        let path = self.ensemble.path();
        loop {
            let watcher = match self.look(session, own, is_first).await {
                Ok(Ok(watcher)) => watcher,
                Ok(Err(given)) => return given,
                // As long as the session lasts, so does our place in the queue.
                Err(Error::Timeout | Error::ConnectionLoss | Error::Custom(_))
                    if !session.has_ended() =>
                {
                    sleep(lease_step(session)).await;
                    continue;
                }
                Err(error) => return session.failure(path, &error).into(),
            };
            let event = watcher.changed().await;
            if event.event_type == EventType::Session {
                return session.failure(path, &Error::SessionExpired).into();
            }
        }
    }

    async fn look(
        &self,
        session: &Session,
        own: &str,
        is_first: &watch::Sender<bool>,
    ) -> Result<Result<OneshotWatcher, Given>, Error> {
        let path = self.ensemble.path();
        let (members, watcher) = group::list(session, path).await?.ok_or(Error::NoNode)?;
        if !members.iter().any(|member| member.name == own) {
            // Somebody has removed it: a session that lasts is no proof of leading.
            let failure = session.failure(&format!("{path}/{own}"), &Error::NoNode);
            return Ok(Err(failure.into()));
        }
        let foreign = foreign_candidates(session, path, &members).await?;
        if let Some(mesos) = foreign.mesos {
            return Ok(Err(Given::Foreign(mesos)));
        }
        self.watched.warnings.set(CANDIDATE_WARNING, foreign.warning);
        is_first.send_replace(members.first().is_some_and(|member| member.name == own));
        Ok(Ok(watcher))
    }

    /// We lead while we are the first and the lease lasts. A lease that has ended is not renewed:
    /// who leads again is another candidate, so that everybody hears of it.
    async fn decide(
        &self,
        session: &Session,
        mut lease: watch::Receiver<Instant>,
        mut is_first: watch::Receiver<bool>,
    ) {
        let length = lease_length(session.timeout());
        loop {
            let end = *lease.borrow_and_update() + length;
            if Instant::now() >= end {
                return;
            }
            self.lead(*is_first.borrow_and_update());
            tokio::select! {
                biased;
                () = sleep_until(end) => return,
                _ = lease.changed() => {}
                _ = is_first.changed() => {}
            }
        }
    }
}

/// Members of the election that are not masters of this program.
#[derive(Debug, Default)]
struct ForeignCandidates {
    /// The path of a master of Mesos. Its agents and frameworks would follow us, and its candidates
    /// would lead us.
    mesos: Option<String>,
    /// Set if a member is not a master at all. It is ignored unless it comes first: then agents
    /// follow it, those with the C++ modules whatever its content, so that a second leader beside
    /// it would divide the cluster.
    warning: Option<String>,
}

async fn foreign_candidates(
    session: &Session,
    path: &str,
    members: &[group::Member],
) -> Result<ForeignCandidates, Error> {
    let mut foreign = ForeignCandidates::default();
    for (index, member) in members.iter().take(MEMBERS_MAX).enumerate() {
        let Some(seen) = group::read(session, path, member).await? else { continue };
        match (&seen.fault, &seen.candidate) {
            (Some(fault), _) => {
                let effect = if index == 0 {
                    "it comes first, so that no master can lead, and agents follow it"
                } else {
                    "it will be followed when the masters before it have gone"
                };
                let text = || format!("{fault}: {effect}: {}", seen.remedy());
                foreign.warning.get_or_insert_with(text);
            }
            (None, Ok(candidate)) if candidate.is_own() => {}
            (None, _) => {
                foreign.mesos = Some(format!("{path}/{}", member.name));
                return Ok(foreign);
            }
        }
    }
    Ok(foreign)
}

/// How long we lead after a sign of life: a quarter less than the session lasts, which leaves time
/// for clocks that differ, and for the news of a follower to reach the leader of the servers.
fn lease_length(session_timeout: Duration) -> Duration {
    session_timeout * 3 / 4
}

/// How often a sign of life is asked for.
fn lease_step(session: &Session) -> Duration {
    session.timeout() / 8
}

/// Asks for signs of life. By `sync`, which the leader of the servers answers: one that is cut off
/// from the others does not.
async fn keep_lease(session: &Session, lease: &watch::Sender<Instant>) -> Infallible {
    loop {
        let asked = Instant::now();
        let answer = session.client().sync("/");
        if session.answer(answer).await.is_ok() {
            lease.send_replace(asked);
        }
        sleep(lease_step(session)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_ends_before_the_session() {
        let session = Duration::from_secs(10);
        assert_eq!(lease_length(session), Duration::from_millis(7500));
    }
}

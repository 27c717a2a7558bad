//! Stands for election in ZooKeeper for a master, in the format of Mesos, and reports leadership.
//!
//! When the session of this master expires, the servers let another master lead. A session expires
//! one session timeout after the last heartbeat that the servers received. This master must stop
//! leading earlier, by its own clock. So leadership is a lease, which is shorter than the session
//! timeout. The lease starts when this master *sends* a heartbeat that the leader of the servers
//! then acknowledges. A master whose process was suspended or swapped out may act as the leader for
//! a moment. The epoch of the store fences such a master.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::protocol::Candidate;
use overlay_types::warnings::Warnings;
use overlay_wire::encode_candidate;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zookeeper_client::{CreateMode, Error, EventType, OneshotWatcher};

use super::{CANDIDATE_WARNING, group, watch_access};
use crate::session::{GuardedZnodes, Session, SessionError};

/// Shortest interval between two attempts, as in Mesos.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Interval between two checks of an election that Mesos masters use.
const MESOS_ELECTION_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Longest time to remove the candidate at the end. If that fails, the next master leads only after
/// the session timeout, as after a crash.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest number of members that are read. There are fewer masters, and a client that creates
/// thousands of members must not delay the election.
const MEMBERS_MAX: usize = 64;

/// Name of the candidate's znode, without the number.
const LABEL: &str = "json.info_";

/// The warnings of a contender.
#[derive(Debug)]
pub struct ElectionWarnings {
    /// The znodes of the state, the root first. The contender warns if foreign clients can change
    /// them.
    pub state: Vec<String>,
    /// The registry of the warnings.
    pub warnings: Warnings,
}

/// A master that stands for election. Dropping it ends the candidacy.
#[derive(Debug)]
pub struct Contender {
    leading: watch::Receiver<bool>,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    task: JoinHandle<()>,
}

/// A handle that moves a contender to the end of the queue.
#[derive(Debug, Clone)]
pub struct Withdrawal(Arc<Notify>);

impl Withdrawal {
    /// Ends the candidacy and begins a new one, because another master has the state.
    pub fn withdraw(&self) {
        self.0.notify_one();
    }
}

impl Contender {
    /// Stands for the election at the path of `ensemble`, as the master at `address`. Creates the
    /// path if it is missing. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        ensemble: Ensemble,
        session_timeout: Duration,
        address: SocketAddrV4,
        warnings: ElectionWarnings,
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
            election_warnings: warnings,
        };
        Self { leading, withdraw, end, task: tokio::spawn(candidacy.run()) }
    }

    /// Returns a receiver of whether this master leads.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    /// Returns a handle that withdraws the candidacy.
    #[must_use]
    pub fn withdrawal(&self) -> Withdrawal {
        Withdrawal(Arc::clone(&self.withdraw))
    }

    /// Ends the candidacy, so that the next master can lead at once.
    pub async fn resign(mut self) {
        self.end.notify_one();
        let _ = timeout(RESIGN_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a candidacy ended.
enum StandDown {
    /// ZooKeeper failed. The candidacy can be tried again.
    Failed(SessionError),
    /// Mesos masters use this election. Contains the path of their candidate.
    MesosElection(String),
    /// Another master has the state.
    Withdrawn,
    /// The contender resigned.
    Resigned,
}

impl From<SessionError> for StandDown {
    fn from(error: SessionError) -> Self {
        Self::Failed(error)
    }
}

/// Why a check of the members failed.
enum CheckError {
    Request(Error),
    StandDown(StandDown),
}

impl From<Error> for CheckError {
    fn from(error: Error) -> Self {
        Self::Request(error)
    }
}

struct Candidacy {
    ensemble: Ensemble,
    session_timeout: Duration,
    candidate: Candidate,
    leading: watch::Sender<bool>,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    election_warnings: ElectionWarnings,
}

impl Candidacy {
    async fn run(self) {
        let mut last = String::new();
        loop {
            let began = Instant::now();
            let Err(reason) = self.stand().await;
            self.set_leading(false);
            let interval = match reason {
                StandDown::Resigned => return,
                StandDown::Withdrawn => {
                    log::warn!("another master has the state: standing for election again");
                    Duration::ZERO
                }
                StandDown::Failed(error) => {
                    self.log_new_error(&mut last, error.to_string());
                    RETRY_INTERVAL.saturating_sub(began.elapsed())
                }
                StandDown::MesosElection(path) => {
                    let warning = format!(
                        "stand for election at {}: {path} is a Mesos master, and an overlay master \
                         must not join its election: choose a separate path",
                        self.ensemble
                    );
                    self.election_warnings.warnings.set(CANDIDATE_WARNING, Some(warning));
                    MESOS_ELECTION_RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = sleep(interval) => {}
                () = self.end.notified() => return,
            }
        }
    }

    /// Logs an error, unless it is equal to the last logged error: repetitions would fill the log.
    fn log_new_error(&self, last: &mut String, error: String) {
        if *last != error {
            log::warn!("stand for election at {}: {error}; trying again", self.ensemble);
            *last = error;
        }
    }

    fn set_leading(&self, leads: bool) {
        self.leading.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
    }

    /// Stands for election until the session ends.
    async fn stand(&self) -> Result<Infallible, StandDown> {
        let session = Session::open(&self.ensemble, self.session_timeout).await?;
        session.create_path().await?;
        self.refuse_mesos_election(&session).await?;
        let started = Instant::now();
        let own = self.announce(&session).await?;
        let lease = watch::channel(started).0;
        let is_first = watch::channel(false).0;
        let reason = tokio::select! {
            reason = self.watch_group(&session, &own, &is_first) => reason,
            never = self.watch_access(&session, &own) => match never {},
            never = keep_lease(&session, &lease) => match never {},
            () = self.lead_while_leased(&session, lease.subscribe(), is_first.subscribe()) => {
                session.error(self.ensemble.path(), &Error::Timeout).into()
            }
            () = self.withdraw.notified() => StandDown::Withdrawn,
            () = self.end.notified() => StandDown::Resigned,
        };
        self.set_leading(false);
        if !matches!(reason, StandDown::Failed(_)) {
            // Closing the session also removes the znode, but the process may end before that.
            let path = format!("{}/{own}", self.ensemble.path());
            let _ = timeout(RESIGN_TIMEOUT, session.client().delete(&path, None)).await;
        }
        Err(reason)
    }

    /// Refuses to join an election of Mesos masters.
    async fn refuse_mesos_election(&self, session: &Session) -> Result<(), StandDown> {
        let path = self.ensemble.path();
        let explain = |error: Error| StandDown::Failed(session.error(path, &error));
        let Some((members, _)) = group::list(session, path).await.map_err(explain)? else {
            return Ok(());
        };
        match foreign_candidates(session, path, &members).await.map_err(explain)?.mesos {
            Some(mesos) => Err(StandDown::MesosElection(mesos)),
            None => Ok(()),
        }
    }

    /// Warns while foreign clients can change the election or the state.
    async fn watch_access(&self, session: &Session, own: &str) -> Infallible {
        let ElectionWarnings { state, warnings } = &self.election_warnings;
        let election = self.ensemble.path().to_owned();
        let own = format!("{election}/{own}");
        let guarded = GuardedZnodes { election, state: state.clone() };
        let identities = loop {
            match session.identities(&own).await {
                Ok(identities) => break identities,
                Err(_) => sleep(lease_step(session)).await,
            }
        };
        watch_access(session, &guarded, Some(&identities), warnings).await
    }

    /// Creates the candidate's znode and returns its name. After an error, the session must not be
    /// used again, because the znode may exist nevertheless.
    async fn announce(&self, session: &Session) -> Result<String, StandDown> {
        let prefix = format!("{}/{LABEL}", self.ensemble.path());
        let content = encode_candidate(&self.candidate);
        let options = session.public(CreateMode::EphemeralSequential);
        let create = session.client().create(&prefix, content.as_bytes(), &options);
        match session.with_timeout(create).await {
            Ok((_, number)) => Ok(format!("{LABEL}{number}")),
            Err(error) => Err(session.error(self.ensemble.path(), &error).into()),
        }
    }

    /// Checks the members after every change, and reports whether this master is the first.
    async fn watch_group(
        &self,
        session: &Session,
        own: &str,
        is_first: &watch::Sender<bool>,
    ) -> StandDown {
        let path = self.ensemble.path();
        loop {
            let watcher = match self.check_members(session, own, is_first).await {
                Ok(watcher) => watcher,
                Err(CheckError::StandDown(reason)) => return reason,
                // While the session lasts, this master keeps its position in the queue.
                Err(CheckError::Request(
                    Error::Timeout | Error::ConnectionLoss | Error::Custom(_),
                )) if !session.has_ended() => {
                    sleep(lease_step(session)).await;
                    continue;
                }
                Err(CheckError::Request(error)) => return session.error(path, &error).into(),
            };
            let event = watcher.changed().await;
            if event.event_type == EventType::Session {
                return session.error(path, &Error::SessionExpired).into();
            }
        }
    }

    async fn check_members(
        &self,
        session: &Session,
        own: &str,
        is_first: &watch::Sender<bool>,
    ) -> Result<OneshotWatcher, CheckError> {
        let path = self.ensemble.path();
        let (members, watcher) = group::list(session, path).await?.ok_or(Error::NoNode)?;
        if !members.iter().any(|member| member.name == own) {
            // A foreign client removed the znode. Without the znode this master cannot lead, even
            // while its session lasts.
            let error = session.error(&format!("{path}/{own}"), &Error::NoNode);
            return Err(CheckError::StandDown(error.into()));
        }
        let foreign = foreign_candidates(session, path, &members).await?;
        if let Some(mesos) = foreign.mesos {
            return Err(CheckError::StandDown(StandDown::MesosElection(mesos)));
        }
        self.election_warnings.warnings.set(CANDIDATE_WARNING, foreign.warning);
        is_first.send_replace(members.first().is_some_and(|member| member.name == own));
        Ok(watcher)
    }

    /// Leads while this master is the first member and the lease lasts. Returns at the end of the
    /// lease, which is not renewed: a new candidacy follows, so that agents notice the change.
    async fn lead_while_leased(
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
            self.set_leading(*is_first.borrow_and_update());
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
    /// The path of a Mesos master. In a shared election, its agents and frameworks would follow an
    /// overlay master, and its masters would lead the overlay.
    mesos: Option<String>,
    /// Set if a member is no master at all. Such a member has an effect only if it is the first:
    /// then agents follow it as the leader. Agents with the C++ modules follow it whatever its
    /// content. If another master led too, it would split the cluster.
    warning: Option<String>,
}

async fn foreign_candidates(
    session: &Session,
    path: &str,
    members: &[group::Member],
) -> Result<ForeignCandidates, Error> {
    let mut foreign = ForeignCandidates::default();
    for (index, member) in members.iter().take(MEMBERS_MAX).enumerate() {
        let Some(content) = group::read(session, path, member).await? else { continue };
        match (&content.defect, &content.candidate) {
            (Some(defect), _) => {
                let effect = if index == 0 {
                    "it comes first, so that no master can lead, and agents follow it"
                } else {
                    "agents follow it when the masters before it are gone"
                };
                let text = || format!("{defect}: {effect}: {}", content.remedy());
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

/// Returns the length of the lease after a heartbeat: three quarters of the session timeout. The
/// rest covers clock drift, and the delay from a ZooKeeper follower to its leader.
fn lease_length(session_timeout: Duration) -> Duration {
    session_timeout * 3 / 4
}

/// Returns the heartbeat interval.
fn lease_step(session: &Session) -> Duration {
    session.timeout() / 8
}

/// Sends heartbeats and renews the lease. A heartbeat is a `sync`, which only the leader of the
/// servers can complete: a server that is cut off from the majority cannot.
async fn keep_lease(session: &Session, lease: &watch::Sender<Instant>) -> Infallible {
    loop {
        let sent = Instant::now();
        let heartbeat = session.client().sync("/");
        if session.with_timeout(heartbeat).await.is_ok() {
            lease.send_replace(sent);
        }
        sleep(lease_step(session)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ends_before_session() {
        let session = Duration::from_secs(10);
        assert_eq!(lease_length(session), Duration::from_millis(7500));
    }
}

//! Stands for election in ZooKeeper for a master, in the format of Mesos, and reports leadership.
//!
//! When the session of this master expires, the servers let another master lead. A session expires
//! one session timeout after the last heartbeat that the servers received. This master must stop
//! leading earlier, by its own clock. So leadership is a lease, which is shorter than the session
//! timeout. The lease starts when this master *sends* a heartbeat that the leader of the servers
//! then acknowledges. A master whose process was suspended or swapped out does not act as the leader
//! afterwards: it asks [`Lease`] before it sends anything. The epoch of the store fences what such a
//! master had sent to the store before.
//!
//! A master that hangs must not lead either, although its heartbeats continue. So the candidacy
//! also ends when no probe of [`Progress`] has passed in time: the znode is deleted, and the session
//! is closed. The candidacy and its session run on a thread of their own: a runtime whose threads
//! are all blocked cannot keep them alive in part.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::protocol::{Candidate, Leader};
use overlay_types::repetition::Repetitions;
use overlay_types::warnings::Warnings;
use overlay_wire::encode_candidate;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zookeeper_client::{CreateMode, Error, EventType, OneshotWatcher};

use super::group::MEMBERS_MAX;
use super::{
    CANDIDATE_WARNING, ELECTION_FAILURE, Lease, Progress, group, open_session, progress_deadline,
    watch_access,
};
use crate::session::{GuardedZnodes, Session, SessionError};

/// Shortest interval between two attempts, as in Mesos.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// A candidacy of this length was stable: the next withdrawal has a new cause.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Interval between two checks of an election that Mesos masters use.
const MESOS_ELECTION_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Longest time to remove the candidate at the end. If that fails, the next master leads only after
/// the session timeout, as after a crash.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest id of a leader that is shown, in characters.
const ID_MAX: usize = 80;

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
    leader: watch::Receiver<Option<Leader>>,
    lease: Lease,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    task: JoinHandle<()>,
    /// `None` only while the contender is dropped.
    runtime: Option<Runtime>,
}

/// A handle that moves a contender to the end of the queue.
#[derive(Debug, Clone)]
pub struct Withdrawal(Arc<Notify>);

impl Withdrawal {
    /// Ends the candidacy and begins a new one, because another master has the state, or this master
    /// cannot use the state.
    pub fn withdraw(&self) {
        self.0.notify_one();
    }
}

impl Contender {
    /// Stands for the election at the path of `ensemble`, as the master at `address`. Creates the
    /// path if it is missing. Without `progress`, the master never counts as hanging.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn start(
        (ensemble, session_timeout): (Ensemble, Duration),
        address: SocketAddrV4,
        warnings: ElectionWarnings,
        progress: Option<Progress>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("overlay-elect")
            .enable_time()
            .build()?;
        let (leading_sender, leading) = watch::channel(false);
        let (leader_sender, leader) = watch::channel(None);
        let (withdraw, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let lease = Lease::new();
        let candidacy = Candidacy {
            ensemble,
            session_timeout,
            candidate: Candidate::own(address, fastrand::u64(..)),
            leading: leading_sender,
            leader: leader_sender,
            lease: lease.clone(),
            withdraw: Arc::clone(&withdraw),
            end: Arc::clone(&end),
            election_warnings: warnings,
            progress,
        };
        let task = runtime.spawn(candidacy.run());
        Ok(Self { leading, leader, lease, withdraw, end, task, runtime: Some(runtime) })
    }

    /// Returns a receiver of whether this master leads.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    /// Returns a receiver of the leading master, if it is known.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.clone()
    }

    /// Returns the lease, which lasts while this master may act as the leader.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.lease.clone()
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
        if let Some(runtime) = self.runtime.take() {
            // Does not wait for the runtime, which would panic inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Why a candidacy ended.
enum StandDown {
    /// ZooKeeper failed. The candidacy can be tried again.
    Failed(SessionError),
    /// Mesos masters use this election. Contains the path of their candidate.
    MesosElection(String),
    /// Another master has the state, or this master cannot use it.
    Withdrawn,
    /// This master hangs. Contains what a probe waits for.
    Stalled(String),
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
    leader: watch::Sender<Option<Leader>>,
    lease: Lease,
    withdraw: Arc<Notify>,
    end: Arc<Notify>,
    election_warnings: ElectionWarnings,
    progress: Option<Progress>,
}

impl Candidacy {
    async fn run(self) {
        let mut withdrawals = Repetitions::new();
        loop {
            let began = Instant::now();
            let Err(reason) = self.stand().await;
            self.set_leading(false);
            self.leader.send_replace(None);
            if began.elapsed() >= STABLE_AFTER {
                withdrawals.clear();
            }
            let interval = match reason {
                StandDown::Resigned => return,
                StandDown::Withdrawn => {
                    if let Some(repetition) = withdrawals.note("withdrawn") {
                        log::warn!(
                            "withdrew from the election: standing behind the other \
                             masters{repetition}"
                        );
                    }
                    Duration::ZERO
                }
                StandDown::Stalled(awaited) => {
                    if let Some(repetition) = withdrawals.note(&awaited) {
                        log::error!(
                            "withdrew from the election: {awaited} does not answer{repetition}"
                        );
                    }
                    Duration::ZERO
                }
                StandDown::Failed(error) => {
                    self.set_failure(Some(format!("{error}; trying again")));
                    RETRY_INTERVAL.saturating_sub(began.elapsed())
                }
                StandDown::MesosElection(path) => {
                    self.set_failure(Some(format!(
                        "{path} is a Mesos master, and an overlay master must not join its \
                         election: choose a separate path"
                    )));
                    MESOS_ELECTION_RETRY_INTERVAL
                }
            };
            let wait = async {
                sleep(interval).await;
                if let Some(progress) = &self.progress {
                    progress.resumed().await;
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.end.notified() => return,
            }
        }
    }

    /// Sets or clears the reason why no master, or at least not this one, can lead.
    fn set_failure(&self, reason: Option<String>) {
        let text = |reason| format!("stand for election at {}: {reason}", self.ensemble);
        self.election_warnings.warnings.set_failure(ELECTION_FAILURE, reason.map(text));
    }

    /// Waits until this master hangs.
    async fn stalled(&self, session: &Session) -> StandDown {
        match &self.progress {
            Some(progress) => {
                // The servers may have granted another timeout than this master requested.
                progress.set_deadline(progress_deadline(session.timeout()));
                StandDown::Stalled(progress.stalled().await)
            }
            None => std::future::pending().await,
        }
    }

    fn set_leading(&self, leads: bool) {
        if !leads {
            self.lease.end();
        }
        self.leading.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
    }

    /// Stands for election until the session ends.
    async fn stand(&self) -> Result<Infallible, StandDown> {
        let location = (&self.ensemble, self.session_timeout);
        let warnings = &self.election_warnings.warnings;
        let session = open_session(location, warnings, "stand for election").await?;
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
                SessionError::no_quorum(&self.ensemble, lease_length(session.timeout())).into()
            }
            stalled = self.stalled(&session) => stalled,
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
        match read_candidates(session, path, &members).await.map_err(explain)?.mesos {
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
        let candidates = read_candidates(session, path, &members).await?;
        if let Some(mesos) = candidates.mesos {
            return Err(CheckError::StandDown(StandDown::MesosElection(mesos)));
        }
        self.election_warnings.warnings.set(CANDIDATE_WARNING, candidates.warning);
        self.set_failure(candidates.blocking);
        is_first.send_replace(candidates.first.is_some_and(|first| first == own));
        self.leader.send_if_modified(|leader| {
            let is_changed = *leader != candidates.leader;
            *leader = candidates.leader;
            is_changed
        });
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
            let (is_first_now, leads) = (*is_first.borrow_and_update(), *self.leading.borrow());
            if is_first_now && leads && !self.lease.renew(end) {
                return;
            }
            if is_first_now && !leads {
                self.lease.begin(end);
            }
            self.set_leading(is_first_now);
            tokio::select! {
                biased;
                () = sleep_until(end) => return,
                _ = lease.changed() => {}
                _ = is_first.changed() => {}
            }
        }
    }
}

/// The leader, and members of the election that are not masters of this program.
#[derive(Debug, Default)]
struct Candidates {
    /// The name of the first member that takes part in the election.
    first: Option<String>,
    /// The first member, if it is a master.
    leader: Option<Leader>,
    /// The path of a Mesos master. In a shared election, its agents and frameworks would follow an
    /// overlay master, and its masters would lead the overlay.
    mesos: Option<String>,
    /// Set if a member is no master at all, and does not prevent leadership.
    warning: Option<String>,
    /// Set if the first member is no master, but a living client. Agents follow it as the leader:
    /// agents with the C++ modules follow it whatever its content. If another master led too, it
    /// would split the cluster. Leadership continues at the end of the client's session.
    blocking: Option<String>,
}

async fn read_candidates(
    session: &Session,
    path: &str,
    members: &[group::Member],
) -> Result<Candidates, Error> {
    let mut candidates = Candidates::default();
    for member in members.iter().take(MEMBERS_MAX) {
        let Some(content) = group::read(session, path, member).await? else { continue };
        if content.is_persistent {
            candidates.warning = candidates.warning.or_else(|| content.ignored_warning());
            continue;
        }
        let is_first = candidates.first.is_none();
        candidates.first.get_or_insert_with(|| member.name.clone());
        match (&content.defect, &content.candidate) {
            (Some(defect), _) if is_first => {
                candidates.blocking = Some(format!(
                    "{defect}: it comes first, so that no master can lead, and agents follow it: {}",
                    content.remedy()
                ));
            }
            (Some(defect), _) => {
                let effect = "agents follow it when the masters before it are gone";
                let text = || format!("{defect}: {effect}: {}", content.remedy());
                candidates.warning.get_or_insert_with(text);
            }
            (None, Ok(candidate)) if candidate.is_own() => {
                if is_first {
                    let id = candidate.id.chars().take(ID_MAX).collect();
                    candidates.leader = Some(Leader { address: candidate.address, id: Some(id) });
                }
            }
            (None, _) => {
                candidates.mesos = Some(format!("{path}/{}", member.name));
                return Ok(candidates);
            }
        }
    }
    Ok(candidates)
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

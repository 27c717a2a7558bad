//! A container network: the attempt under way, the result of the last attempt, and the time of the
//! next attempt.

use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::clock::{Backoff, Now};
use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::Status;

use super::event::NetworkDetails;
use super::view::NetworkHealth;
use super::{Context, Settings};

/// Bounds of the backoff after a failed attempt, for the quick attempts.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One container network that the agent configures and verifies.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) network: ContainerNetwork,
    pub(super) running: Option<Running>,
    /// The result of the last attempt.
    pub(super) status: Status,
    /// What the last successful attempt found out.
    pub(super) details: NetworkDetails,
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    /// When the next attempt or verification is due, since `Now::elapsed` 0. `None` during an
    /// attempt.
    pub(super) due: Option<Duration>,
}

/// An attempt under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) attempt: u64,
    /// Whether the attempt configures a network that is no longer desired. The desired network
    /// waits for its end: two attempts at the same network never run at the same time.
    pub(super) is_outdated: bool,
}

/// An attempt under way and its network.
#[derive(Debug)]
pub(super) struct NetworkAttempt {
    pub(super) overlay: OverlayName,
    pub(super) kind: NetworkKind,
    pub(super) running: Running,
}

impl NetworkAttempt {
    pub(super) fn is_at(&self, network: &ContainerNetwork) -> bool {
        self.overlay == *network.name() && self.kind == network.kind()
    }
}

impl Task {
    pub(super) fn new(now: Now, network: ContainerNetwork, running: Option<Running>) -> Self {
        let mut task = Self {
            network,
            running: None,
            status: Status::Configuring,
            details: NetworkDetails::default(),
            attempts: 0,
            backoff: Backoff::new(RETRY_BACKOFF.0, RETRY_BACKOFF.1),
            due: Some(now.elapsed),
        };
        if let Some(running) = running {
            task.wait_for(running);
        }
        task
    }

    /// Delays this network until the attempt at its predecessor has ended.
    pub(super) const fn wait_for(&mut self, running: Running) {
        self.running = Some(Running { is_outdated: true, ..running });
        self.due = None;
    }

    /// Returns whether the network has failed and has used up its quick attempts.
    pub(super) const fn has_given_up(&self, settings: &Settings) -> bool {
        matches!(self.status, Status::Failed(_))
            && self.attempts >= settings.max_configuration_attempts
    }

    /// Logs the result of an attempt. A result that equals the last result is not repeated above
    /// the level `debug`.
    fn log_result(&self, result: &Status) {
        let name = self.network.name();
        let is_new = self.status != *result;
        match result {
            Status::Ok if is_new => {
                log::info!("overlay {name}: its {} is ready", self.network.kind())
            }
            Status::Failed(reason) if is_new => log::error!("overlay {name}: {reason}"),
            Status::Failed(reason) => log::debug!("overlay {name}: {reason}"),
            Status::Ok | Status::Configuring => {}
        }
    }

    /// Records the result of an attempt.
    pub(super) fn finish_attempt(
        &mut self,
        context: &mut Context<'_>,
        result: Result<NetworkDetails, String>,
    ) {
        let Context { now, settings, random } = context;
        let was_outdated = self.running.take().is_some_and(|running| running.is_outdated);
        if was_outdated {
            self.due = Some(now.elapsed);
            return;
        }
        let was_ok = self.status == Status::Ok;
        let is_ok = result.is_ok();
        let (details, result) = match result {
            Ok(details) => (details, Status::Ok),
            Err(reason) => (NetworkDetails::default(), Status::Failed(reason)),
        };
        self.log_result(&result);
        let former = self.details.note.as_ref();
        if let Some(note) = details.note.as_ref().filter(|note| former != Some(*note)) {
            log::warn!("{note}");
        }
        self.details = details;
        self.status = result;
        let delay = if is_ok {
            // A verification does not count: `attempts` shows the attempts until the first success.
            if !was_ok {
                self.attempts = self.attempts.saturating_add(1);
            }
            self.backoff.reset();
            settings.verify_interval
        } else {
            self.attempts = if was_ok { 1 } else { self.attempts.saturating_add(1) };
            if self.attempts < settings.max_configuration_attempts {
                self.backoff.next_delay(random)
            } else {
                settings.verify_interval
            }
        };
        let is_given_up = !is_ok && Mutation::NeverRetryNetwork.is_on();
        self.due = (!is_given_up).then_some(now.elapsed + delay);
    }

    pub(super) fn health(&self, now: Now) -> NetworkHealth {
        NetworkHealth {
            overlay: self.network.name().to_string(),
            network: self.network.kind().to_string(),
            status: self.status.to_string(),
            plugin: self.details.plugin,
            attempts: self.attempts,
            next_attempt_seconds: self.due.map(|due| due.saturating_sub(now.elapsed).as_secs()),
        }
    }
}

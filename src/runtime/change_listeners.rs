//! Listens for changes of the host's network and of its firewall by other programs.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use overlay_engine::agent::Scope;
use overlay_linux::dataplane::{self, KernelEvent, Watch};
use overlay_linux::firewall::{self, RulesEvent};
use overlay_types::repetition::Repetitions;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// The monitors of changes by other programs, and the changes that were reported since the last
/// job.
#[derive(Default)]
pub(super) struct ChangeListeners {
    kernel: Option<dataplane::Monitor>,
    rules: Option<firewall::Monitor>,
    /// The objects of the kernel whose changes matter.
    pub(super) watch: Watch,
    /// The changes by other programs during the last job.
    foreign: Option<Change>,
    reported_kernel: Option<Scope>,
    reported_rules: bool,
    /// The errors of the monitors.
    errors: Repetitions,
}

/// A change of the host's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Containers started or ended.
    Ports,
    /// Another program changed objects of this scope, which have to be verified.
    Foreign(Scope),
}

impl Change {
    /// Returns what an event means.
    const fn of(event: KernelEvent) -> Option<Self> {
        match event {
            KernelEvent::Unrelated => None,
            KernelEvent::PortsChanged => Some(Self::Ports),
            KernelEvent::Changed(_) => Some(Self::Foreign(Scope::Kernel)),
            KernelEvent::SettingChanged | KernelEvent::Overrun => {
                Some(Self::Foreign(Scope::Everything))
            }
        }
    }

    /// Returns the change of both. A verification follows the ports, too.
    const fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Foreign(one), Self::Foreign(two)) => Self::Foreign(one.union(two)),
            (foreign @ Self::Foreign(_), Self::Ports) | (Self::Ports, foreign) => foreign,
        }
    }
}

impl ChangeListeners {
    /// Opens the monitors that are closed. A monitor that cannot be opened stays closed.
    pub(super) fn open(&mut self) {
        (self.reported_kernel, self.reported_rules) = (None, false);
        if self.kernel.is_none() {
            self.kernel = dataplane::Monitor::open().ok();
        }
        if self.rules.is_none() {
            self.rules = firewall::Monitor::open().ok();
        }
    }

    /// Takes the events that were received during a job. Those of our own changes are dropped. The
    /// next call of [`Self::wait`] returns the others. `port` is the socket of our own changes in
    /// the kernel, `processes` are the programs that made our rules. Returns the change of rules by
    /// other programs.
    pub(super) fn take_changes(&mut self, port: Option<u32>, processes: &[u32]) -> RulesEvent {
        let watch = &self.watch;
        let kernel = self
            .kernel
            .as_mut()
            .map_or(Ok(KernelEvent::Unrelated), |kernel| kernel.take(Duration::ZERO, watch, port));
        let rules = self.rules.as_mut();
        let rules =
            rules.map_or(Ok(RulesEvent::None), |rules| rules.take(Duration::ZERO, processes));
        match kernel.and_then(|event| Ok((event, rules?))) {
            Ok((event, rules)) => {
                let of_rules =
                    (rules != RulesEvent::None).then_some(Change::Foreign(Scope::Firewall));
                self.foreign = Change::of(event).into_iter().chain(of_rules).reduce(Change::union);
                rules
            }
            Err(error) => {
                self.close(&error);
                RulesEvent::None
            }
        }
    }

    /// Closes the monitors. Until they are open again, only the next verification finds drift.
    pub(super) fn close(&mut self, error: &io::Error) {
        let problem = format!("cannot listen for changes of the host's network: {error}");
        if let Some(repetition) = self.errors.note(&problem) {
            log::warn!("{problem}{repetition}");
        }
        (self.kernel, self.rules) = (None, None);
    }

    /// Waits for a change. Returns it, unless it has to be verified and was reported already since
    /// the last job.
    pub(super) fn wait(&mut self, wake: &OwnedFd) -> io::Result<Option<Change>> {
        if let Some(change) = self.foreign.take() {
            return Ok(self.report_kernel(change));
        }
        let kernel = self.kernel.as_ref().map(|kernel| kernel.as_fd());
        let rules = self.rules.as_ref().map(|rules| rules.as_fd());
        let fds = [Some(wake.as_fd()), kernel, rules].into_iter().flatten();
        let mut polled: Vec<_> =
            fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        drop(polled);
        let _ = rustix::io::read(wake, &mut [0; 8]);
        let timeout = Duration::from_millis(1);
        if let Some(kernel) = &mut self.kernel
            && let Some(change) = Change::of(kernel.take(timeout, &self.watch, None)?)
            && let Some(change) = self.report_kernel(change)
        {
            return Ok(Some(change));
        }
        if let Some(rules) = &mut self.rules
            && rules.take(timeout, &[])? != RulesEvent::None
            && !std::mem::replace(&mut self.reported_rules, true)
        {
            return Ok(Some(Change::Foreign(Scope::Firewall)));
        }
        Ok(None)
    }

    /// Notes a change in the kernel. Returns it, unless it was reported already.
    fn report_kernel(&mut self, change: Change) -> Option<Change> {
        if let Change::Foreign(scope) = change {
            let is_reported = |reported| reported == Scope::Everything || reported == scope;
            if self.reported_kernel.is_some_and(is_reported) {
                return None;
            }
            self.reported_kernel = Some(scope);
        }
        Some(change)
    }
}

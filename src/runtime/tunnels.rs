//! Looks at the host's network and programs it for the agent, on a thread of its own: netlink and
//! the programs of the firewall block. The same thread listens for what others change.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::inbox::Inbox;
use crate::agent::{Agent, Event, Programmed, Scope};
use crate::config::{DataplaneConfig, FirewallKind};
use crate::dataplane::{self, Dataplane, DataplaneError, Heard, Report, Watch};
use crate::firewall::{self, Backend, Firewall, FirewallError, Outcome, Ruleset};
use crate::host::{HostError, HostLock, HostSettings};
use crate::tunnel::{Collision, Desired, Fault};

/// How an agent programs the network of its host.
#[derive(Debug, Clone)]
pub struct TunnelOptions {
    /// Who makes the rules of the firewall; `None`: the best that there is.
    pub firewall: Option<Backend>,
    /// What they are to do.
    pub rules: firewall::Options,
    /// Whether the host's own settings are seen to. Otherwise the operator does.
    pub host_settings: bool,
    /// Where is kept what they were before, and the lock of the agent that programs this host.
    pub state_dir: PathBuf,
}

impl TunnelOptions {
    /// As the configuration says.
    #[must_use]
    pub fn new(config: &DataplaneConfig) -> Self {
        Self {
            firewall: match config.firewall {
                FirewallKind::Auto => None,
                FirewallKind::Nftables => Some(Backend::Nftables),
                FirewallKind::Iptables => Some(Backend::Iptables),
                FirewallKind::None => Some(Backend::None),
            },
            rules: firewall::Options {
                masquerade: config.masquerade,
                known_agents_only: config.known_agents_only,
                isolate: config.isolate_overlays,
            },
            host_settings: config.host_settings,
            state_dir: config.state_dir.clone(),
        }
    }

    /// For an agent that programs nothing: what one before it has programmed is not kept right any
    /// more, and does harm some day.
    pub(super) fn tell_of_former(&self) {
        if HostLock::was_left(&self.state_dir) {
            log::warn!(
                "an agent with dataplane vxlan has programmed this host ({}), and nobody keeps that \
                 right any more: until a reboot its firewall drops packets of agents that join \
                 later: stop this agent and run `mesos-overlay clean`, or set dataplane to vxlan again",
                HostLock::path_in(&self.state_dir).display()
            );
        }
    }
}

/// What the thread is to do.
#[derive(Debug)]
pub(super) enum Job {
    Inspect { attempt: u64, claims: Arc<Desired> },
    Program { attempt: u64, desired: Arc<Desired>, scope: Scope },
}

/// The thread. Dropped, it finishes what it has begun; what it programmed stays.
#[derive(Debug)]
pub(super) struct Tunnels {
    jobs: Option<mpsc::Sender<Job>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnels {
    /// Works in the network namespace of the calling thread. With `programs` it is not only to
    /// look.
    ///
    /// # Errors
    /// When the system has no thread or file to give.
    pub(super) fn start(
        options: TunnelOptions,
        programs: bool,
        inbox: Inbox<Agent>,
    ) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, receiver) = mpsc::channel();
        let worker = Worker::new(options, inbox, Arc::clone(&wake));
        let work = move || worker.run(programs, &receiver);
        let thread = thread::Builder::new().name("overlay-tunnel".to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), wake, thread: Some(thread) })
    }

    /// Queues a job. The machine sees to it that there is one at a time.
    pub(super) fn queue(&self, job: Job) {
        let is_queued = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_queued {
            log::error!("the thread of the dataplane has ended: nothing is programmed any more");
        }
        self.ring();
    }

    fn ring(&self) {
        // It is full only if the thread has not looked at four thousand million calls.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.jobs = None;
        self.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the dataplane ended by a panic");
        }
    }
}

struct Worker {
    options: TunnelOptions,
    inbox: Inbox<Agent>,
    wake: Arc<OwnedFd>,
    /// Held from the start, or from the first job on that finds it free.
    lock: Option<HostLock>,
    dataplane: Option<Dataplane>,
    firewall: Option<Firewall>,
    /// What was wrong when the host's settings were made last.
    settings_error: Option<HostError>,
    ears: Ears,
}

/// What listens to the changes of others, and what was told of them since the last job.
#[derive(Default)]
struct Ears {
    kernel: Option<dataplane::Monitor>,
    rules: Option<firewall::Monitor>,
    watch: Watch,
    told_kernel: bool,
    told_rules: bool,
}

impl Worker {
    fn new(options: TunnelOptions, inbox: Inbox<Agent>, wake: Arc<OwnedFd>) -> Self {
        let ears = Ears::default();
        Self {
            options,
            inbox,
            wake,
            lock: None,
            dataplane: None,
            firewall: None,
            settings_error: None,
            ears,
        }
    }

    fn run(mut self, programs: bool, jobs: &mpsc::Receiver<Job>) {
        if programs {
            // Early, so that nobody cleans up a host whose agent waits for its master. A refusal is
            // told with the first job.
            let _ = self.lock();
        }
        loop {
            match jobs.try_recv() {
                Ok(Job::Inspect { attempt, claims }) => {
                    let result = self.inspect(&claims).map_err(|error| error.to_string());
                    self.inbox.tell_blocking(Event::Inspected { attempt, result });
                }
                Ok(Job::Program { attempt, desired, scope }) => {
                    let result = self.program(&desired, scope);
                    self.ears.forget_echo();
                    self.inbox.tell_blocking(Event::Programmed { attempt, result });
                }
                Err(TryRecvError::Empty) => self.listen(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// One agent at a time programs a host.
    fn lock(&mut self) -> Result<(), HostError> {
        if self.lock.is_none() {
            self.lock = Some(HostLock::acquire(&self.options.state_dir)?);
        }
        Ok(())
    }

    fn dataplane(&mut self) -> Result<&mut Dataplane, DataplaneError> {
        match &mut self.dataplane {
            Some(dataplane) => Ok(dataplane),
            none => Ok(none.insert(Dataplane::open()?)),
        }
    }

    fn inspect(&mut self, claims: &Desired) -> Result<Vec<Collision>, DataplaneError> {
        self.dataplane()?.collisions(claims)
    }

    fn program(&mut self, desired: &Arc<Desired>, scope: Scope) -> Programmed {
        // Before the state is read, so that no change falls between.
        self.ears.open();
        let mut result = Programmed::default();
        if let Err(error) = self.lock() {
            result.faults.push(Fault::of_host(error));
            return result;
        }
        self.make_rules(desired, scope, &mut result);
        if self.options.host_settings && scope == Scope::Everything {
            self.make_settings(desired, &mut result);
        }
        // Until it is done, however little there was to be looked at.
        result.faults.extend(self.settings_error.as_ref().map(Fault::of_host));
        match self.make_kernel(desired, scope) {
            Ok(report) => {
                result.faults.extend(report.faults());
                result.add(report.done.iter());
            }
            Err(error) => result.faults.push(Fault::of_host(error)),
        }
        result
    }

    fn make_settings(&mut self, desired: &Desired, result: &mut Programmed) {
        let settings = HostSettings::new(&self.options.state_dir);
        let made = match self.settings_error {
            Some(HostError::Reload { .. }) => settings.retry(desired),
            _ => settings.apply(desired),
        };
        self.settings_error = made.as_ref().err().cloned();
        result.add(made.unwrap_or_default().into_iter());
    }

    fn make_kernel(
        &mut self,
        desired: &Arc<Desired>,
        scope: Scope,
    ) -> Result<Report, DataplaneError> {
        let dataplane = self.dataplane()?;
        let report =
            if scope.has_kernel() { dataplane.verify(desired) } else { dataplane.update(desired) };
        self.ears.watch = self.dataplane()?.watch(desired);
        report
    }

    fn make_rules(&mut self, desired: &Desired, scope: Scope, result: &mut Programmed) {
        let rules = Ruleset::new(desired, self.options.rules);
        let made = self.firewall().and_then(|firewall| {
            if scope.has_firewall() { firewall.verify(&rules) } else { firewall.update(&rules) }
        });
        match made {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Made | Outcome::Repaired) => {
                let what = if rules.is_empty() { "removed" } else { "made" };
                result.add(std::iter::once(format!("{what} the rules of the firewall")));
            }
            Err(error) => result.faults.push(Fault::of_host(error)),
        }
    }

    fn firewall(&mut self) -> Result<&mut Firewall, FirewallError> {
        match &mut self.firewall {
            Some(firewall) => Ok(firewall),
            none => {
                let backend = match self.options.firewall {
                    Some(backend) => backend,
                    None => Backend::detect()?,
                };
                Ok(none.insert(Firewall::new(backend)))
            }
        }
    }

    /// Waits for a job or for a change that may concern us.
    fn listen(&mut self) {
        match self.ears.wait(&self.wake) {
            Ok(Some(scope)) => self.inbox.tell_blocking(Event::Drifted(scope)),
            Ok(None) => {}
            Err(error) => self.ears.close(&error),
        }
    }
}

impl Ears {
    /// Listens from now on, to whatever can be listened to.
    fn open(&mut self) {
        (self.told_kernel, self.told_rules) = (false, false);
        if self.kernel.is_none() {
            self.kernel = dataplane::Monitor::open().ok();
        }
        if self.rules.is_none() {
            self.rules = firewall::Monitor::open().ok();
        }
    }

    /// Passes over what was heard while we worked: our own changes, as good as always. What others
    /// did meanwhile is found by the machine, which has it verified soon after a change.
    fn forget_echo(&mut self) {
        let kernel = self.kernel.as_mut().map_or(Ok(()), dataplane::Monitor::forget);
        let rules = self.rules.as_mut().map_or(Ok(()), firewall::Monitor::forget);
        if let Err(error) = kernel.and(rules) {
            self.close(&error);
        }
    }

    /// Drift is found at the next verification, then.
    fn close(&mut self, error: &io::Error) {
        log::warn!("cannot listen for changes of the host's network: {error}");
        (self.kernel, self.rules) = (None, None);
    }

    /// What has changed, unless it was told already since the last job.
    fn wait(&mut self, wake: &OwnedFd) -> io::Result<Option<Scope>> {
        let kernel = self.kernel.as_ref().map(|kernel| kernel.as_fd());
        let rules = self.rules.as_ref().map(|rules| rules.as_fd());
        let all = [Some(wake.as_fd()), kernel, rules].into_iter().flatten();
        let mut polled: Vec<_> =
            all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        drop(polled);
        let _ = rustix::io::read(wake, &mut [0; 8]);
        let at_once = Duration::from_millis(1);
        if let Some(kernel) = &mut self.kernel {
            let heard = kernel.wait(at_once, &self.watch)?;
            if heard != Heard::Nothing {
                kernel.forget()?;
                if !std::mem::replace(&mut self.told_kernel, true) {
                    let is_kernel = matches!(heard, Heard::Change(_));
                    return Ok(Some(if is_kernel { Scope::Kernel } else { Scope::Everything }));
                }
            }
        }
        if let Some(rules) = &mut self.rules
            && rules.wait(at_once)?
            && !std::mem::replace(&mut self.told_rules, true)
        {
            return Ok(Some(Scope::Firewall));
        }
        Ok(None)
    }
}

impl Programmed {
    fn add(&mut self, changes: impl ExactSizeIterator<Item: ToString>) {
        self.changes += changes.len() as u64;
        let room = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(changes.take(room).map(|change| change.to_string()));
    }
}

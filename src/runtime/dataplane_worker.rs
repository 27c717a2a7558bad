//! Inspects and programs the network of the host for the agent, and listens for changes of other
//! programs. Netlink and the firewall programs block.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use overlay_config::{DataplaneConfig, FirewallKind, OverlayIngress};
use overlay_engine::agent::{FirewallState, Programmed, Scope};
use overlay_linux::dataplane::{self, Dataplane, DataplaneError, KernelEvent, Report, Watch};
use overlay_linux::firewall::foreign::Inspector;
use overlay_linux::firewall::{
    self, Backend, Firewall, FirewallError, Ingress, InnerCheck, Outcome, RulesFile, Ruleset,
};
use overlay_linux::host::{HostError, HostLock, HostSettings};
use overlay_types::repetition::Repetitions;
use overlay_types::tunnel::{Collision, Desired, Fault};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::time::Instant;

use super::dataplane_thread::Worker;
use super::local_masters::LocalMasters;
use super::own_address::has_address;

/// The options of the dataplane.
#[derive(Debug, Clone)]
pub struct DataplaneOptions {
    /// The backend of the firewall rules. `None` selects the best available backend.
    pub firewall: Option<Backend>,
    /// The options of the firewall rules.
    pub rules: firewall::Options,
    /// Interval of the complete verification.
    pub verify_interval: Duration,
    /// Whether the agent manages the settings of the host. Otherwise the operator manages them.
    pub host_settings: bool,
    /// The directory of the former host settings, of the firewall rules for the next start of the
    /// host, and of the lock of the agent that programs the host.
    pub state_dir: PathBuf,
}

impl DataplaneOptions {
    /// Returns the options of the configuration. `control_ports` are closed to containers: see
    /// [`firewall::Options::control_ports`].
    #[must_use]
    pub fn new(
        config: &DataplaneConfig,
        control_ports: BTreeSet<u16>,
        verify_interval: Duration,
    ) -> Self {
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
                ingress: match config.overlay_ingress {
                    OverlayIngress::Open => Ingress::Open,
                    OverlayIngress::Closed => Ingress::Closed,
                },
                control_ports,
                local_ports: BTreeSet::new(),
            },
            verify_interval,
            host_settings: config.host_settings,
            state_dir: config.state_dir.clone(),
        }
    }

    /// Returns the options of the rules for a desired state.
    fn rules_for(&self, desired: &Desired, local_masters: &mut LocalMasters) -> firewall::Options {
        let mut rules = self.rules.clone();
        rules.local_ports.extend(local_masters.ports(&desired.masters, has_address));
        // A master that sends no peers names no senders, so all are accepted.
        rules.known_agents_only &= !desired.accepts_every_sender;
        rules
    }

    /// Warns if an earlier agent has programmed this host. An agent without a dataplane does not
    /// maintain that state, and outdated state drops packets.
    pub(super) fn warn_stale_dataplane(&self) {
        if HostLock::is_stale(&self.state_dir) {
            log::warn!(
                "an agent with dataplane vxlan has programmed this host ({}), and no agent \
                 maintains that dataplane now: until a reboot its firewall drops packets of agents \
                 that join later: stop this agent and run `mesos-overlay clean`, or set dataplane \
                 to vxlan again",
                HostLock::path_in(&self.state_dir).display()
            );
        }
    }
}

/// The network of this host.
pub(super) struct HostNetwork {
    options: DataplaneOptions,
    /// Readable when a job is queued.
    wake: Arc<OwnedFd>,
    /// The lock of the host. The thread takes the lock at its start, or, if another process holds
    /// it then, in the first job after that process has ended.
    lock: Option<HostLock>,
    dataplane: Option<Dataplane>,
    firewall: Option<Firewall>,
    /// When nft was last asked whether it supports our rules.
    probed: Option<Instant>,
    /// Whether the flows that are older than the first rules are deleted.
    has_forgotten_flows: bool,
    /// The error of the last attempt to apply the host settings.
    settings_error: Option<HostError>,
    local_masters: LocalMasters,
    /// The foreign firewall rules.
    foreign_rules: Inspector,
    /// The faults of the foreign rules. `None` until they are evaluated.
    obstacles: Option<Vec<Fault>>,
    /// Whether the job has made rules, and so caused events.
    has_made_rules: bool,
    listeners: ChangeListeners,
}

/// The monitors of changes by other programs, and the changes that were reported since the last
/// job.
#[derive(Default)]
struct ChangeListeners {
    kernel: Option<dataplane::Monitor>,
    rules: Option<firewall::Monitor>,
    /// The objects of the kernel whose changes matter.
    watch: Watch,
    /// What changes by other programs during the last job require to verify.
    foreign: Option<Scope>,
    reported_kernel: Option<Scope>,
    reported_rules: bool,
    /// The errors of the monitors.
    errors: Repetitions,
}

impl HostNetwork {
    pub(super) fn new(options: DataplaneOptions, wake: Arc<OwnedFd>) -> Self {
        Self {
            options,
            wake,
            lock: None,
            dataplane: None,
            firewall: None,
            probed: None,
            has_forgotten_flows: false,
            settings_error: None,
            local_masters: LocalMasters::default(),
            foreign_rules: Inspector::default(),
            obstacles: None,
            has_made_rules: false,
            listeners: ChangeListeners::default(),
        }
    }

    /// Takes the lock of the host: only one agent at a time may program the host.
    fn acquire_lock(&mut self) -> Result<(), HostError> {
        // Another agent may hold the lock of a file that replaced the locked file.
        if self.lock.take_if(|lock| !lock.is_at_its_path()).is_some() {
            let path = HostLock::path_in(&self.options.state_dir);
            log::warn!(
                "{}: the lock file was removed or replaced: locking it again",
                path.display()
            );
        }
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

    fn apply(&mut self, desired: &Arc<Desired>, scope: Scope, result: &mut Programmed) {
        let is_removal = desired.vxlan_devices.is_empty();
        // The rules are made before the devices and removed after them, so that no device is open.
        let has_rules = is_removal || self.apply_rules(desired, scope, result);
        if self.options.host_settings && scope == Scope::Everything {
            self.apply_settings(desired, result);
        }
        // A job of any scope reports this error until the settings are applied.
        result.faults.extend(self.settings_error.as_ref().map(Fault::of_host));
        let applied = match self.apply_kernel(desired, scope, has_rules) {
            Ok(report) => {
                result.faults.extend(report.faults());
                result.add(report.done.iter());
                report.is_complete()
            }
            Err(error) => {
                result.faults.push(Fault::of_host(error));
                false
            }
        };
        if is_removal && applied {
            self.apply_rules(desired, scope, result);
        }
        self.report_obstacles(desired, scope, result);
    }

    /// Reports foreign firewall rules that drop packets of the overlays. They are evaluated after
    /// the managed rules are made, since those accept packets before some foreign rules.
    fn report_obstacles(&mut self, desired: &Desired, scope: Scope, result: &mut Programmed) {
        if desired.vxlan_devices.is_empty() {
            self.obstacles = None;
        } else if scope.has_firewall() || self.obstacles.is_none() {
            self.obstacles = Some(self.foreign_rules.inspect(desired, Instant::now()));
        }
        // A job of any scope reports the obstacles until they are gone.
        result.faults.extend(self.obstacles.iter().flatten().cloned());
    }

    fn apply_settings(&mut self, desired: &Desired, result: &mut Programmed) {
        let settings = HostSettings::new(&self.options.state_dir);
        let applied = match self.settings_error {
            Some(HostError::Reload { .. }) => settings.retry(desired),
            _ => settings.apply(desired),
        };
        self.settings_error = applied.as_ref().err().cloned();
        result.add(applied.unwrap_or_default().into_iter());
    }

    /// Programs the kernel. If the rules are missing, the kernel is programmed only if it already
    /// has all desired devices and overlays: then no new device is open to every host.
    fn apply_kernel(
        &mut self,
        desired: &Arc<Desired>,
        scope: Scope,
        has_rules: bool,
    ) -> Result<Report, DataplaneError> {
        let dataplane = self.dataplane()?;
        if !has_rules && !dataplane.observe(desired)?.includes_overlays(desired) {
            return Err(DataplaneError::WithoutRules);
        }
        let report =
            if scope.has_kernel() { dataplane.verify(desired) } else { dataplane.update(desired) };
        self.listeners.watch = self.dataplane()?.watch(desired);
        report
    }

    /// Applies the rules of the firewall. Returns whether that succeeded.
    fn apply_rules(&mut self, desired: &Desired, scope: Scope, result: &mut Programmed) -> bool {
        let options = self.options.rules_for(desired, &mut self.local_masters);
        let rules = Ruleset::new(desired, &options);
        self.probe_again(desired, scope);
        let outcome = self.firewall().and_then(|firewall| {
            if scope.has_firewall() { firewall.verify(&rules) } else { firewall.update(&rules) }
        });
        match outcome {
            Ok(Outcome::Unchanged) => {}
            Ok(made) => {
                self.has_made_rules = true;
                let action = if rules.is_empty() { "removed" } else { "installed" };
                result.add(std::iter::once(format!("{action} the firewall rules")));
                self.forget_flows(desired, &options, made, result);
            }
            Err(error) => {
                self.has_made_rules = true;
                result.faults.push(Fault::of_host(error));
                return false;
            }
        }
        let checks = options.known_agents_only;
        result.firewall = self.firewall.as_ref().map(|firewall| state_of(firewall, checks));
        true
    }

    /// Deletes the tracked flows that are older than the rules, after the first rules and after rules
    /// that another program had removed.
    fn forget_flows(
        &mut self,
        desired: &Desired,
        options: &firewall::Options,
        made: Outcome,
        result: &mut Programmed,
    ) {
        let has_rules = options.masquerade || options.ingress == Ingress::Closed;
        let is_needed = made == Outcome::Repaired || !self.has_forgotten_flows;
        if !has_rules || !is_needed || desired.spaces.is_empty() {
            return;
        }
        match self.dataplane().and_then(|dataplane| dataplane.forget_flows(desired)) {
            Ok(count) => {
                self.has_forgotten_flows = true;
                let deleted = format!("deleted {count} flows that were older than the rules");
                result.add((count > 0).then_some(deleted).into_iter());
            }
            Err(error) => log::warn!("{error}"),
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
                self.probed = Some(Instant::now());
                let firewall = none.insert(Firewall::new(backend));
                firewall.keep_in(&self.options.state_dir);
                Ok(firewall)
            }
        }
    }

    /// Asks nft again whether it supports our rules, once in each interval of the verification.
    fn probe_again(&mut self, desired: &Desired, scope: Scope) {
        let is_due =
            self.probed.is_some_and(|probed| probed.elapsed() >= self.options.verify_interval);
        if let Some(firewall) = &mut self.firewall
            && is_due
            && scope == Scope::Everything
            && desired.peers.is_some()
        {
            firewall.probe_again(self.options.firewall.is_none());
            self.probed = Some(Instant::now());
        }
    }

    /// Closes a host that was started again, before a master has answered.
    fn load_rules(&self) {
        if self.options.firewall == Some(Backend::None) {
            return;
        }
        let file = RulesFile::new(&self.options.state_dir);
        match file.load() {
            Ok(false) => {}
            Ok(true) => log::info!(
                "the host had no firewall rules: loaded those of {} until a master answers",
                file.path().display()
            ),
            Err(error) => log::warn!(
                "load the firewall rules of the time before the restart: {error}; the containers of \
                 this host are open until a master has assigned its overlays"
            ),
        }
    }
}

/// Describes the rules for the health of the agent. `checks` is whether the rules check the source of
/// packets inside of the tunnel.
fn state_of(firewall: &Firewall, checks: bool) -> FirewallState {
    FirewallState {
        backend: match firewall.backend() {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
            Backend::None => "none",
        },
        inner_check: checks.then(|| check_of(firewall)).flatten(),
        keeps_agents: firewall.keeps_agents(),
    }
}

/// Returns the name of the check for the health of the agent.
fn check_of(firewall: &Firewall) -> Option<&'static str> {
    firewall.inner_check().map(|check| match check {
        InnerCheck::Pair => "pair",
        InnerCheck::Membership => "membership",
    })
}

impl Worker for HostNetwork {
    fn begin(&mut self) {
        // If the lock is held by another process, the first job reports that.
        if self.acquire_lock().is_ok() {
            self.load_rules();
        }
    }

    fn find_vteps(&mut self) -> Vec<IpAddr> {
        let observed =
            self.dataplane().and_then(|dataplane| dataplane.observe(&Desired::default()));
        match observed {
            Ok(observed) => {
                let devices = observed.state.devices.into_values();
                let addresses = devices.flat_map(|device| device.addresses);
                addresses.map(|address| address.address()).collect()
            }
            Err(error) => {
                log::warn!("find the devices of an earlier agent: {error}");
                Vec::new()
            }
        }
    }

    fn inspect(&mut self, claims: &Desired) -> Result<Vec<Collision>, String> {
        let dataplane = self.dataplane().map_err(|error| error.to_string())?;
        dataplane.collisions(claims).map_err(|error| error.to_string())
    }

    fn program(&mut self, desired: &Arc<Desired>, scope: Scope) -> Programmed {
        // Opens the monitors before the state is read, so that no change is missed.
        self.listeners.open();
        self.has_made_rules = false;
        let mut result = Programmed::default();
        if let Err(error) = self.acquire_lock() {
            result.faults.push(Fault::of_host(error));
        } else {
            self.apply(desired, scope, &mut result);
        }
        let own = self.dataplane.as_ref().and_then(|dataplane| dataplane.port().ok());
        self.listeners.drop_own_events(own, self.has_made_rules);
        result
    }

    fn listen(&mut self) -> Option<Scope> {
        self.listeners.wait(&self.wake).unwrap_or_else(|error| {
            self.listeners.close(&error);
            None
        })
    }
}

impl ChangeListeners {
    /// Opens the monitors that are closed. A monitor that cannot be opened stays closed.
    fn open(&mut self) {
        (self.reported_kernel, self.reported_rules) = (None, false);
        if self.kernel.is_none() {
            self.kernel = dataplane::Monitor::open().ok();
        }
        if self.rules.is_none() {
            self.rules = firewall::Monitor::open().ok();
        }
    }

    /// Drops the events of our own changes that were received during a job, and keeps the others.
    /// If the job has made rules, all events about rules are dropped: the kernel does not name the
    /// program that caused them. The state machine verifies the dataplane soon after a change, and
    /// so finds foreign changes.
    fn drop_own_events(&mut self, own: Option<u32>, has_made_rules: bool) {
        let watch = &self.watch;
        let kernel = self
            .kernel
            .as_mut()
            .map_or(Ok(KernelEvent::Unrelated), |kernel| kernel.take(Duration::ZERO, watch, own));
        let rules = self.rules.as_mut().filter(|_| has_made_rules);
        let rules = rules.map_or(Ok(()), firewall::Monitor::discard_pending);
        match kernel.and_then(|event| rules.map(|()| event)) {
            Ok(event) => self.foreign = scope_of(event),
            Err(error) => self.close(&error),
        }
    }

    /// Closes the monitors. Until they are open again, only the next verification finds drift.
    fn close(&mut self, error: &io::Error) {
        let problem = format!("cannot listen for changes of the host's network: {error}");
        if let Some(repetition) = self.errors.note(&problem) {
            log::warn!("{problem}{repetition}");
        }
        (self.kernel, self.rules) = (None, None);
    }

    /// Waits for a change. Returns its scope, unless it was reported already since the last job.
    fn wait(&mut self, wake: &OwnedFd) -> io::Result<Option<Scope>> {
        if let Some(scope) = self.foreign.take() {
            self.reported_kernel = Some(scope);
            return Ok(Some(scope));
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
            && let Some(scope) = scope_of(kernel.take(timeout, &self.watch, None)?)
            && self.reported_kernel.is_none_or(|reported| reported != Scope::Everything)
            && self.reported_kernel != Some(scope)
        {
            self.reported_kernel = Some(scope);
            return Ok(Some(scope));
        }
        if let Some(rules) = &mut self.rules
            && rules.wait(timeout)?
            && !std::mem::replace(&mut self.reported_rules, true)
        {
            return Ok(Some(Scope::Firewall));
        }
        Ok(None)
    }
}

/// Returns what an event requires to verify.
const fn scope_of(event: KernelEvent) -> Option<Scope> {
    match event {
        KernelEvent::Unrelated => None,
        KernelEvent::Changed(_) => Some(Scope::Kernel),
        KernelEvent::SettingChanged | KernelEvent::Overrun => Some(Scope::Everything),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_local_master_and_for_master_without_peers() {
        let config = DataplaneConfig::default();
        let options = DataplaneOptions::new(&config, [5051].into(), Duration::ZERO);
        let masters = ["127.0.0.1:5050", "192.0.2.1:5060"].map(|master| master.parse().unwrap());
        let mut desired = Desired { masters: masters.into(), ..Desired::default() };
        let mut local = LocalMasters::default();
        let rules = options.rules_for(&desired, &mut local);
        assert_eq!((rules.control_ports, rules.local_ports), ([5051].into(), [5050].into()));
        assert!(rules.known_agents_only);
        desired.accepts_every_sender = true;
        assert!(!options.rules_for(&desired, &mut local).known_agents_only);
    }
}

//! Inspects and programs the network of the host for the agent. Netlink and the firewall programs
//! block.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use overlay_engine::agent::{FirewallState, Programmed, Scope};
use overlay_linux::cni::Leases;
use overlay_linux::dataplane::{Dataplane, DataplaneError, Report};
use overlay_linux::firewall::{
    self, Backend, Firewall, FirewallError, Forwarding, Ingress, InnerCheck, Outcome, RulesEvent,
    RulesFile, Ruleset,
};
use overlay_linux::host::{HostError, HostLock, HostSettings};
use overlay_types::advice::Command;
use overlay_types::tunnel::{Collision, Desired, DirectReport, Fault, UnderlayMtu};
use tokio::time::Instant;

use super::change_listeners::{Change, ChangeListeners};
use super::dataplane_options::DataplaneOptions;
use super::dataplane_thread::Worker;
use super::foreign_rules_thread::ForeignRulesThread;
use super::lease_reaper::LeaseReaper;
use super::local_masters::LocalMasters;
use super::memory;

/// The network of this host.
pub(super) struct HostWorker {
    options: DataplaneOptions,
    /// Readable when a job is queued.
    wake: Arc<OwnedFd>,
    /// The lock of the host. The thread takes the lock at its start, or, if another process holds
    /// it then, in the first job after that process has ended.
    lock: Option<HostLock>,
    dataplane: Option<Dataplane>,
    firewall: Option<Firewall>,
    /// The rules of the last job, with the desired state and the options that they follow from.
    ruleset: Option<(Arc<Desired>, firewall::Options, Ruleset)>,
    /// When nft was last asked whether it supports our rules.
    probed: Option<Instant>,
    /// Whether flows may be older than the rules about flows.
    has_old_flows: bool,
    /// The error of the last attempt to apply the host settings.
    settings_error: Option<HostError>,
    local_masters: LocalMasters,
    /// The foreign firewall rules that drop packets of the overlays.
    foreign_rules: ForeignRulesThread,
    /// Whether the job has made rules, and so caused events.
    has_made_rules: bool,
    leases: LeaseReaper,
    listeners: ChangeListeners,
}

impl HostWorker {
    pub(super) fn new(options: DataplaneOptions, leases: Leases, wake: Arc<OwnedFd>) -> Self {
        Self {
            options,
            foreign_rules: ForeignRulesThread::new(Arc::clone(&wake)),
            wake,
            lock: None,
            dataplane: None,
            firewall: None,
            ruleset: None,
            probed: None,
            has_old_flows: false,
            settings_error: None,
            local_masters: LocalMasters::default(),
            has_made_rules: false,
            leases: LeaseReaper::new(leases),
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
            none => {
                let dataplane = none.insert(Dataplane::open()?);
                dataplane.set_checksum(self.options.vxlan_checksum);
                Ok(dataplane)
            }
        }
    }

    fn apply(&mut self, desired: &Arc<Desired>, scope: Scope, result: &mut Programmed) {
        let is_removal = desired.vxlan_devices.is_empty();
        // The rules are made before the devices and removed after them, so that no device is open.
        let has_rules = is_removal || self.apply_rules(desired, scope, result);
        if scope == Scope::Everything {
            self.apply_settings(desired, result);
        }
        // A job of any scope reports this error until the settings are applied.
        result.faults.extend(self.settings_error.as_ref().map(Fault::of_host));
        let applied = match self.apply_kernel(desired, scope, has_rules) {
            Ok(report) => {
                result.faults.extend(report.faults());
                result
                    .possible_causes
                    .extend(report.possible_causes.iter().map(ToString::to_string));
                result.add(report.done.iter());
                result.underlay_mtu = report.underlay_mtu;
                let is_complete = report.is_complete();
                result.container_problems = report.container_problems;
                self.apply_shortcut(desired, scope, result);
                result.direct = report.direct.map(|direct| self.check_direct(direct));
                is_complete
            }
            Err(error) => {
                result.faults.push(Fault::of_host(error));
                false
            }
        };
        if is_removal && applied {
            self.apply_rules(desired, scope, result);
        }
        self.report_foreign_rules(desired, scope, result);
        if scope == Scope::Everything
            && let Some(dataplane) = &mut self.dataplane
        {
            let report = self.leases.run(desired, dataplane);
            result.leases_released = report.released;
            result.warnings.get_or_insert_default().extend(report.warnings);
        }
        if let Some(dataplane) = &mut self.dataplane {
            result.gone_bridges = dataplane.take_gone_bridges();
        }
    }

    /// Excludes direct routing if the firewall cannot accept packets by MAC and source.
    fn check_direct(&self, mut report: DirectReport) -> DirectReport {
        let backend = self.firewall.as_ref().map(Firewall::backend);
        if backend != Some(Backend::Nftables) && report.link.is_ok() {
            report.link = Err("the firewall rules are not those of nftables".to_owned());
        }
        report
    }

    /// Reports foreign firewall rules that drop packets of the overlays. They are evaluated after
    /// the managed rules are made, since those accept packets before some foreign rules.
    fn report_foreign_rules(
        &mut self,
        desired: &Arc<Desired>,
        scope: Scope,
        result: &mut Programmed,
    ) {
        if desired.vxlan_devices.is_empty() {
            self.foreign_rules.stop();
        } else if scope.has_firewall() || self.foreign_rules.is_unknown() {
            self.foreign_rules.inspect(desired);
        }
        // A job of any scope reports the foreign rules until they are gone.
        result.faults.extend(self.foreign_rules.faults());
    }

    /// Applies the settings of the host, or names those that the operator has to apply.
    fn apply_settings(&mut self, desired: &Desired, result: &mut Programmed) {
        let uplinks = self.uplinks(desired);
        let settings = HostSettings::new(&self.options.state_dir).with_uplinks(uplinks);
        if !self.options.host_settings {
            let closed = settings.closed_uplinks();
            let warnings = closed.iter().map(|device| closed_uplink(device));
            result.warnings.get_or_insert_default().extend(warnings);
            return;
        }
        let applied = match self.settings_error {
            Some(HostError::Reload { .. }) => settings.retry(desired),
            _ => settings.apply(desired),
        };
        self.settings_error = applied.as_ref().err().cloned();
        result.add(applied.unwrap_or_default().into_iter());
    }

    /// Returns the devices that replies to masqueraded packets arrive at.
    fn uplinks(&mut self, desired: &Desired) -> Vec<String> {
        if !self.options.rules.masquerade || desired.vxlan_devices.is_empty() {
            return Vec::new();
        }
        let uplinks = self.dataplane().and_then(|dataplane| dataplane.uplinks(desired));
        uplinks.unwrap_or_else(|error| {
            log::warn!("find the devices that lead to other hosts: {error}");
            Vec::new()
        })
    }

    /// Programs the kernel. If the rules are missing, the kernel is programmed only if it already
    /// has all desired devices and overlays: then no new device is open to every host.
    fn apply_kernel(
        &mut self,
        desired: &Arc<Desired>,
        scope: Scope,
        has_rules: bool,
    ) -> Result<Report, DataplaneError> {
        let is_tracked = self.is_tracked();
        let dataplane = self.dataplane()?;
        dataplane.set_tracked(is_tracked);
        if !has_rules && !dataplane.observe(desired)?.includes_overlays(desired) {
            return Err(DataplaneError::WithoutRules);
        }
        let report =
            if scope.has_kernel() { dataplane.verify(desired) } else { dataplane.update(desired) };
        self.listeners.watch = self.dataplane()?.watch(desired);
        report
    }

    /// Returns whether the rules let the host track packets between containers of different agents.
    fn is_tracked(&self) -> bool {
        let firewall = self.firewall.as_ref();
        firewall
            .is_none_or(|firewall| firewall.forwarding(&self.options.rules) == Forwarding::Tracked)
    }

    /// Applies the rules of the firewall. Returns whether that succeeded.
    fn apply_rules(
        &mut self,
        desired: &Arc<Desired>,
        scope: Scope,
        result: &mut Programmed,
    ) -> bool {
        let options = self.options.rules_for(desired, &mut self.local_masters);
        let rules = self.ruleset(desired, &options);
        self.probe_again(desired, scope);
        let outcome = self.firewall().and_then(|firewall| {
            if scope.has_firewall() { firewall.verify(&rules) } else { firewall.update(&rules) }
        });
        match outcome {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Made | Outcome::Repaired) => {
                self.has_made_rules = true;
                let action = if rules.is_empty() { "removed" } else { "installed" };
                result.add(std::iter::once(format!("{action} the firewall rules")));
                self.forget_flows(desired, &options, result);
            }
            Err(error) => {
                self.has_made_rules = true;
                result.faults.push(Fault::of_host(error));
                return false;
            }
        }
        result.firewall = self.firewall.as_ref().map(|firewall| state_of(firewall, &options));
        true
    }

    /// Makes the shortcut for the devices of the overlays, which exist by now. Without it, packets
    /// take the ordinary path. If the state of the kernel is unknown, because it refused a change, the
    /// shortcut is removed: it would lead segments past the changed routes.
    fn apply_shortcut(&mut self, desired: &Arc<Desired>, scope: Scope, result: &mut Programmed) {
        let options = self.options.rules_for(desired, &mut self.local_masters);
        let links = self.dataplane.as_ref().and_then(|dataplane| dataplane.shortcut_links(desired));
        let Some(firewall) = &mut self.firewall else { return };
        let links = links.unwrap_or_default();
        let outcome = firewall.apply_shortcut(desired, &options, &links, scope.has_firewall());
        if outcome == Outcome::Repaired {
            result.add(std::iter::once("installed the shortcut for TCP segments again"));
        }
        self.has_made_rules |= outcome != Outcome::Unchanged;
        result.firewall = Some(state_of(firewall, &options));
    }

    /// Lets the shortcut follow the ports of containers that started or ended. Without the shortcut of
    /// its port, a container takes the ordinary path.
    fn follow_ports(&mut self) {
        let (Some((desired, ..)), Some(dataplane), Some(firewall)) =
            (&self.ruleset, &mut self.dataplane, &mut self.firewall)
        else {
            return;
        };
        if !firewall.has_shortcut() {
            return;
        }
        if let Err(error) = dataplane.read_ports() {
            log::warn!("find the ports of containers for the shortcut: {error}");
            return;
        }
        self.listeners.watch = dataplane.watch(desired);
        let links = dataplane.shortcut_links(desired);
        let outcome = links.map_or(Outcome::Unchanged, |links| firewall.follow_ports(&links));
        let (port, processes) = (dataplane.port().ok(), firewall.take_processes());
        let rules = self.listeners.take_changes(port, &processes);
        self.note_event_of_rules(rules, outcome != Outcome::Unchanged);
    }

    /// Returns the rules for a desired state. A verification repeats those of the last job.
    fn ruleset(&mut self, desired: &Arc<Desired>, options: &firewall::Options) -> Ruleset {
        match &self.ruleset {
            Some((known, used, rules)) if Arc::ptr_eq(known, desired) && used == options => {
                rules.clone()
            }
            _ => {
                let rules = Ruleset::new(desired, options);
                self.ruleset = Some((Arc::clone(desired), options.clone(), rules.clone()));
                rules
            }
        }
    }

    /// Deletes the tracked flows that are older than the rules, if rules about flows were missing or
    /// different before.
    fn forget_flows(
        &mut self,
        desired: &Desired,
        options: &firewall::Options,
        result: &mut Programmed,
    ) {
        self.has_old_flows |= self.firewall.as_mut().is_some_and(Firewall::take_new_flow_rules);
        let has_rules = options.masquerade || options.ingress == Ingress::Closed;
        if !has_rules || !self.has_old_flows || desired.spaces.is_empty() {
            return;
        }
        match self.dataplane().and_then(|dataplane| dataplane.forget_flows(desired)) {
            Ok(count) => {
                self.has_old_flows = false;
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

    /// Passes an event of the rules to the firewall: see [`Firewall::note_event`].
    fn note_event_of_rules(&mut self, event: RulesEvent, is_during_change: bool) {
        if let Some(firewall) = &mut self.firewall {
            firewall.note_event(event, is_during_change);
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

/// Describes a device that the host forwards no packets from, although it forwards others.
fn closed_uplink(device: &str) -> String {
    format!(
        "the host forwards no IPv4 packets from {device}, so containers get no replies from outside \
         of the overlays: set host_settings to true, or run {}",
        Command::forward_from_uplink(device)
    )
}

/// Describes the rules for the health of the agent.
fn state_of(firewall: &Firewall, options: &firewall::Options) -> FirewallState {
    FirewallState {
        backend: match firewall.backend() {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
            Backend::None => "none",
        },
        inner_check: options.known_agents_only.then(|| check_of(firewall)).flatten(),
        forwarding: match firewall.forwarding(options) {
            Forwarding::Tracked => "tracked",
            Forwarding::Untracked => "untracked",
            Forwarding::Shortcut => "shortcut",
        },
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

impl Worker for HostWorker {
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

    fn underlay_mtu(&mut self, claims: &Desired) -> Option<UnderlayMtu> {
        let found = self.dataplane().and_then(|dataplane| dataplane.underlay_mtu(claims));
        found.unwrap_or_else(|error| {
            log::warn!("read the MTU of the underlay: {error}");
            None
        })
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
        let port = self.dataplane.as_ref().and_then(|dataplane| dataplane.port().ok());
        let processes = self.firewall.as_mut().map(Firewall::take_processes).unwrap_or_default();
        let rules = self.listeners.take_changes(port, &processes);
        self.note_event_of_rules(rules, self.has_made_rules);
        if scope == Scope::Everything {
            memory::release_unused();
        }
        result
    }

    fn listen(&mut self) -> Option<Scope> {
        // A job of any scope reports the foreign rules.
        if self.foreign_rules.take_changed() {
            return Some(Scope::Change);
        }
        let changed = self.listeners.wait(&self.wake).unwrap_or_else(|error| {
            self.listeners.close(&error);
            None
        });
        let scope = match changed {
            Some(Change::Foreign(scope)) => Some(scope),
            Some(Change::Ports) => {
                self.follow_ports();
                None
            }
            None => None,
        };
        if scope.is_some_and(Scope::has_firewall) {
            self.note_event_of_rules(RulesEvent::Foreign, false);
        }
        scope.or_else(|| self.foreign_rules.take_changed().then_some(Scope::Change))
    }
}

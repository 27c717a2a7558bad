//! The VXLAN dataplane: programs the kernel's devices, addresses, neighbors, forwarding entries and
//! routes until they match the desired state of [`overlay_types::tunnel`], and repairs drift.
//! [`plan()`] makes all decisions and is pure. The rest reads and writes through netlink from this
//! process.
//!
//! An object is managed if it has our mark: a device has an alias, which covers all entries on the
//! device, and a route has a protocol number. Unmanaged objects are never changed or removed. All
//! calls act on the network namespace of the thread that calls [`Dataplane::open`], and only that
//! thread may call the other methods. All calls block, for milliseconds.

mod apply;
mod attachment;
mod bridges;
mod change;
mod conntrack;
mod containers;
mod direct;
mod error;
mod features;
mod interference;
mod link_builder;
pub(crate) mod message;
mod monitor;
mod mtu;
mod observe;
mod path;
mod plan;
mod policy_rules;
pub(crate) mod socket;
mod state;
#[cfg(test)]
mod tests;
mod uapi;
mod underlay;
mod vrf;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, Mtu};
use overlay_types::tunnel::{
    Collision, Desired, DirectReport, Fault, HostAddress, HostRoute, UnderlayMtu, collisions,
    validate_peers,
};
use rustix::net::netdevice;

pub use self::attachment::{
    BridgeSettings, ContainerInterface, ContainerNamespace, HostPort, HostSide, InterfaceSettings,
    NamespaceError, PortSettings,
};
use self::bridges::BridgeMemory;
pub use self::change::plan_change;
pub use self::containers::{ContainerEndpoint, ContainerPorts};
pub use self::direct::{DirectUnderlay, direct_link};
pub use self::error::{DataplaneError, Failure};
pub use self::features::has_checksum_offload;
use self::interference::Ports;
pub use self::interference::{Impact, Interference, Remedy};
pub use self::link_builder::{LinkBuilder, LinkBuilderError};
pub use self::monitor::{KernelEvent, Monitor, Watch};
pub use self::mtu::MtuProblem;
pub use self::observe::Bridge;
use self::observe::Indices;
pub use self::path::{Detour, PolicyRule, RouteResult};
use self::plan::ValidPeers;
pub use self::plan::{METRIC_UNALLOCATED, Observed, Plan, Problem, plan};
use self::socket::Netlink;
pub use self::state::{
    BridgeState, Device, Hop, Identity, Link, LostBridge, Operation, Port, RouteKey, State,
};
pub use self::underlay::{Underlay, uplinks_to_peers};
pub use self::vrf::VrfMember;
use crate::firewall::shortcut::{BridgeLink, ShortcutLinks, TunnelLink};

/// Protocol number that marks our routes. `rtnetlink.h` assigns this number to no program, and no
/// routing daemon is known to use it.
pub const PROTOCOL: u8 = 109;
/// Alias that marks our devices.
pub const MARK: &str = "mesos-overlay";
/// Maximum number of times that a verification reads the state, if another program changes it at
/// the same time. The next verification repairs the remaining differences.
const VERIFY_ROUNDS_MAX: usize = 3;

/// Result of a verification or an update.
#[derive(Debug, Default)]
pub struct Report {
    /// The changes that were applied, in order. Empty if the kernel had the desired state.
    pub done: Vec<Operation>,
    /// The changes that the kernel refused.
    pub failures: Vec<Failure>,
    /// The parts of the desired state that the plan leaves out, and why.
    pub problems: Vec<Problem>,
    /// The MTU of the underlay, if it is known.
    pub underlay_mtu: Option<UnderlayMtu>,
    /// The containers that keep another MTU or are cut off, one sentence for each bridge.
    pub container_problems: Vec<String>,
    /// Objects of other programs that may drop packets. Packets pass them on most hosts, so they
    /// matter only if packets are lost.
    pub possible_causes: Vec<Interference>,
    /// Whether packets can go to peers without encapsulation. `None` if direct routing is off.
    pub direct: Option<DirectReport>,
}

/// What drops packets of the overlays although the kernel has the desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathProblems {
    /// What drops packets of the overlays.
    pub problems: Vec<Problem>,
    /// Objects of other programs that cut off single containers.
    pub of_containers: Vec<Interference>,
    /// Objects of other programs that may drop packets.
    pub possible_causes: Vec<Interference>,
}

impl Report {
    /// Returns whether the kernel has the complete desired state.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.problems.is_empty()
    }

    /// Returns the remaining differences from the desired state.
    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        let failures = self.failures.iter().map(Failure::fault);
        failures.chain(self.problems.iter().map(Problem::fault))
    }
}

impl Failure {
    fn fault(&self) -> Fault {
        Fault { scope: self.operation.scope(), reason: self.to_string() }
    }
}

impl Problem {
    fn fault(&self) -> Fault {
        Fault { scope: self.scope(), reason: self.to_string() }
    }
}

/// The overlays' state in the kernel of this host.
#[derive(Debug)]
pub struct Dataplane {
    netlink: Netlink,
    indices: Indices,
    /// The bridges of the last observation that are not left out.
    maintained: BTreeSet<DeviceName>,
    /// Indices of the bridges of the last observation. `None` before the first observation.
    known_bridges: Option<BTreeSet<u32>>,
    memory: BridgeMemory,
    /// Indices of the devices through which containers reach other hosts.
    uplinks: BTreeSet<u32>,
    /// `None` if the kernel may differ from the state that this process last read or wrote.
    cache: Option<CachedState>,
    /// The ports of the bridges at earlier observations.
    ports: Ports,
    /// The valid peers of the desired state of the last verification.
    valid_peers: Option<(Arc<Desired>, Arc<ValidPeers>)>,
    /// The objects of other programs in the way of packets, at the last verification.
    path_problems: PathProblems,
    /// See [`Self::set_checksum`].
    has_checksum: bool,
    /// See [`Self::set_tracked`].
    is_tracked: bool,
    /// The MACs that the kernel resolved for peers that offer direct routing. The kernel forgets
    /// those of idle peers.
    resolved: BTreeMap<IpAddr, Mac>,
}

/// The last observed state, with the changes that were applied since.
#[derive(Debug)]
struct CachedState {
    observed: Observed,
    /// The desired state that `observed` matches. `None` if the plan left out a peer.
    applied: Option<Arc<Desired>>,
}

impl Dataplane {
    /// Opens the dataplane of the calling thread's network namespace. Changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn open() -> Result<Self, DataplaneError> {
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(DataplaneError::Open)?;
        Ok(Self {
            netlink,
            indices: Indices::default(),
            maintained: BTreeSet::new(),
            known_bridges: None,
            memory: BridgeMemory::default(),
            uplinks: BTreeSet::new(),
            cache: None,
            ports: Ports::default(),
            valid_peers: None,
            path_problems: PathProblems::default(),
            has_checksum: true,
            is_tracked: true,
            resolved: BTreeMap::new(),
        })
    }

    /// Sets whether packets between containers of different agents are tracked, which is the default. A
    /// full table of tracked flows then drops them.
    pub const fn set_tracked(&mut self, is_tracked: bool) {
        self.is_tracked = is_tracked;
    }

    /// Sets whether new VXLAN devices send UDP packets with a checksum, which is the default. With
    /// it, the receiving kernel can merge packets (GRO) whatever the network card supports. The
    /// kernel cannot change an existing device, which is kept.
    pub const fn set_checksum(&mut self, has_checksum: bool) {
        self.has_checksum = has_checksum;
    }

    /// Returns the port by which a [`Monitor`] recognizes the changes of this dataplane.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn port(&self) -> Result<u32, DataplaneError> {
        self.netlink.port().map_err(DataplaneError::Open)
    }

    /// Reads the observed state. Needs no privilege. A bridge that did not exist at the last
    /// observation is left out, since its maker has not finished it yet: the CNI plugin fails if
    /// the address that it adds exists already.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn observe(&mut self, desired: &Desired) -> Result<Observed, DataplaneError> {
        self.cache = None;
        let (mut observed, indices) =
            observe::observe(&mut self.netlink, desired, &mut self.memory)
                .map_err(DataplaneError::Read)?;
        if let Some(known) = self.known_bridges.replace(indices.all_bridges.clone()) {
            observed.state.bridges.retain(|name, _| {
                indices.bridges.get(name).is_some_and(|index| known.contains(index))
            });
        }
        self.indices = indices;
        if let Some(direct) = &mut observed.direct {
            direct.remember(&mut self.resolved, desired);
        }
        self.maintained = observed.state.bridges.keys().cloned().collect();
        Ok(observed)
    }

    /// Returns the conflicts of `desired` with routes and addresses of the host. Needs no
    /// privilege. Objects that this program made are no conflict. Call this before an overlay is
    /// programmed.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn collisions(&mut self, desired: &Desired) -> Result<Vec<Collision>, DataplaneError> {
        let (routes, addresses) = self.host_routes_and_addresses()?;
        Ok(collisions(desired, &routes, &addresses))
    }

    /// Returns the host's unicast routes, our routes, and the host's addresses. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn host_routes_and_addresses(
        &mut self,
    ) -> Result<(Vec<HostRoute>, Vec<HostAddress>), DataplaneError> {
        observe::host_routes_and_addresses(&mut self.netlink).map_err(DataplaneError::Read)
    }

    /// Reads the observed state and repairs every difference from the desired state. Correct
    /// objects are not touched, so traffic through them continues.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn verify(&mut self, desired: &Arc<Desired>) -> Result<Report, DataplaneError> {
        let mut report = Report::default();
        for _ in 0..VERIFY_ROUNDS_MAX {
            let observed = self.observe(desired)?;
            let cache = CachedState { observed, applied: None };
            if !self.reconcile(desired, cache, &mut report) {
                break;
            }
        }
        self.disable_offloads(desired, &mut report);
        self.path_problems = self.path_problems(desired)?;
        self.add_path_problems(&mut report);
        Ok(report)
    }

    /// Returns the MTU of the underlay for the first desired device, if it is known. Needs no
    /// privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn underlay_mtu(
        &mut self,
        desired: &Desired,
    ) -> Result<Option<UnderlayMtu>, DataplaneError> {
        let observed = observe::observe_underlay(&mut self.netlink, desired);
        Ok(observed.map_err(DataplaneError::Read)?.underlay_mtu(desired))
    }

    /// Adds the path problems of the last verification: a change of the desired state ends none.
    fn add_path_problems(&self, report: &mut Report) {
        let PathProblems { problems, of_containers, possible_causes } = &self.path_problems;
        report.problems.extend(problems.iter().cloned());
        report.container_problems.extend(of_containers.iter().map(ToString::to_string));
        report.possible_causes.clone_from(possible_causes);
    }

    /// Returns what drops packets of the overlays although the kernel has the desired state: paths of
    /// packets that are wrong, and objects of other programs. Call this after [`Self::observe`].
    /// Needs no privilege, but without `CAP_NET_ADMIN` IPsec policies are left out.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn path_problems(
        &mut self,
        desired: &Arc<Desired>,
    ) -> Result<PathProblems, DataplaneError> {
        let valid = self.valid_peers(desired);
        let (peers, _) = &*valid;
        let found = interference::interferences(
            &mut self.netlink,
            desired,
            peers,
            &self.indices,
            &self.maintained,
            &mut self.ports,
            self.is_tracked,
        );
        let found = found.map_err(DataplaneError::Read)?;
        let mut path_problems = PathProblems::default();
        let removes_routes = found.iter().any(|interference| {
            interference.impact == Impact::Overlays && interference.removes_routes
        });
        for interference in found {
            match interference.impact {
                Impact::Possible => path_problems.possible_causes.push(interference),
                Impact::SomeContainers => path_problems.of_containers.push(interference),
                Impact::Overlays => {
                    path_problems.problems.push(Problem::Interference(interference))
                }
            }
        }
        let mut detours =
            path::detours(&mut self.netlink, desired, peers, &self.indices, &self.maintained)
                .map_err(DataplaneError::Read)?;
        if removes_routes {
            // The interference is the cause.
            detours.retain(|detour| !matches!(detour.found, RouteResult::Dropped(_)));
        }
        let detours = detours.into_iter().map(|detour| Problem::Detour(Box::new(detour)));
        path_problems.problems.extend(detours);
        Ok(path_problems)
    }

    /// Deletes the tracked flows between containers and other hosts that began without the rules of
    /// the firewall. Returns their number. Their next packets begin new flows.
    ///
    /// # Errors
    /// When the kernel has no connection tracking, or does not answer.
    pub fn forget_flows(&mut self, desired: &Desired) -> Result<usize, DataplaneError> {
        conntrack::forget_flows(desired).map_err(DataplaneError::Flows)
    }

    /// Applies a new desired state to the cached state, without reading the kernel's state again.
    /// One peer that is added or removed costs a few operations. Falls back to [`Self::verify`].
    ///
    /// # Errors
    /// When the kernel's state must be read and the read fails.
    pub fn update(&mut self, desired: &Arc<Desired>) -> Result<Report, DataplaneError> {
        let mut report = Report::default();
        if desired.vxlan_devices.is_empty() {
            self.path_problems = PathProblems::default();
        }
        match self.cache.take() {
            Some(cache) if covers(&cache.observed, desired) => {
                if self.reconcile(desired, cache, &mut report) || !report.failures.is_empty() {
                    let done = std::mem::take(&mut report.done);
                    report = self.verify(desired)?;
                    report.done.splice(0..0, done);
                } else {
                    self.disable_offloads(desired, &mut report);
                    self.add_path_problems(&mut report);
                }
                Ok(report)
            }
            _ => self.verify(desired),
        }
    }

    /// Returns the valid peers of a desired state. A verification repeats those of the last one.
    fn valid_peers(&mut self, desired: &Arc<Desired>) -> Arc<ValidPeers> {
        if let Some((known, peers)) = &self.valid_peers
            && Arc::ptr_eq(known, desired)
        {
            return Arc::clone(peers);
        }
        let peers = Arc::new(validate_peers(desired));
        self.valid_peers = Some((Arc::clone(desired), Arc::clone(&peers)));
        peers
    }

    /// Plans and applies once. Returns whether the state must be read again, because another
    /// program changed it meanwhile.
    fn reconcile(
        &mut self,
        desired: &Arc<Desired>,
        cache: CachedState,
        report: &mut Report,
    ) -> bool {
        let CachedState { mut observed, applied } = cache;
        let mut plan = match applied {
            Some(applied) => plan_change(Some(&applied), desired, &observed),
            None => plan::plan_of(desired, &self.valid_peers(desired), &observed),
        };
        for operation in &mut plan.operations {
            if let Operation::AddDevice(_, link) = operation {
                link.has_checksum = self.has_checksum;
            }
        }
        let applied = plan.includes_every_peer().then(|| Arc::clone(desired));
        let result = apply::apply(&mut self.netlink, &mut self.indices, plan.operations);
        for operation in &result.done {
            observed.state.perform(operation);
            if let Operation::AddBridge(name, _) = operation {
                self.note_added(name);
            }
        }
        report.done.extend(result.done);
        report.failures = result.failures;
        report.problems = plan.problems;
        report.underlay_mtu = observed.underlay_mtu(desired);
        report.direct = observed.direct.as_ref().map(|direct| direct.report(desired));
        report.container_problems = observed.kept_mtus(desired);
        if result.is_stale {
            return true;
        }
        if report.failures.is_empty() {
            self.cache = Some(CachedState { observed, applied });
        }
        false
    }

    /// Switches off the checksum offload of our VXLAN devices, if that is desired. The devices keep
    /// the setting when it is no longer desired: it does no harm.
    fn disable_offloads(&mut self, desired: &Desired, report: &mut Report) {
        if !desired.disables_checksum_offload {
            return;
        }
        let devices = desired.vxlan_devices.iter().map(|local| &local.device);
        // A device that cannot be read gets the operation, whose failure is reported.
        let devices = devices.filter(|device| {
            self.indices.vxlan.contains_key(*device)
                && has_checksum_offload(device.as_str()).unwrap_or(true)
        });
        let operations = devices.cloned().map(Operation::DisableChecksumOffload).collect();
        let result = apply::apply(&mut self.netlink, &mut self.indices, operations);
        report.done.extend(result.done);
        // Packets with complete checksums pass the tunnels, so no overlay fails for it.
        report.container_problems.extend(result.failures.iter().map(ToString::to_string));
    }

    /// Notes a bridge that this process added again: it needs no time to be finished.
    fn note_added(&mut self, name: &DeviceName) {
        let Some(index) = self.indices.get(name) else { return };
        self.memory.note_added(name, index);
        self.maintained.insert(name.clone());
        if let Some(known) = &mut self.known_bridges {
            known.insert(index);
        }
    }

    /// Returns the bridges of overlays that another program removed or replaced since the last call,
    /// and that this process did not add again.
    pub fn take_gone_bridges(&mut self) -> BTreeSet<DeviceName> {
        self.memory.take_gone()
    }

    /// Removes every managed object from the kernel.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn clean(&mut self) -> Result<Report, DataplaneError> {
        self.verify(&Arc::default())
    }

    /// Returns the devices of the overlays that exist, or `None` if the state of the kernel is
    /// unknown.
    #[must_use]
    pub fn shortcut_links(&self, desired: &Desired) -> Option<ShortcutLinks> {
        let observed = &self.cache.as_ref()?.observed;
        let direct = self.indices.direct.clone();
        let mut links = ShortcutLinks { direct, ..ShortcutLinks::default() };
        for (device, state) in &observed.state.devices {
            let Some(&index) = self.indices.vxlan.get(device) else { continue };
            let tunnel = TunnelLink { index, has_ipv6: state.link.has_ipv6 };
            links.tunnels.insert(device.clone(), tunnel);
            let spaces = desired.spaces.iter().filter(|space| space.device == *device);
            for bridge in spaces.flat_map(|space| &space.bridges) {
                let link = self.bridge_link(&bridge.device, state.link.mtu);
                links.bridges.extend(link.map(|link| (bridge.device.clone(), link)));
            }
        }
        Some(links)
    }

    /// Returns a bridge with the ports of its containers for the shortcut. A bridge that separates
    /// VLANs has none.
    fn bridge_link(&self, bridge: &DeviceName, mtu: Mtu) -> Option<BridgeLink> {
        let index = *self.indices.bridges.get(bridge)?;
        let link = self.indices.links.iter().find(|link| link.index == index)?;
        let ports = self.indices.links.iter().filter(|port| {
            port.master == Some(index) && port.leads_to_container() && port.mtu <= mtu.bytes()
        });
        let ports = ports.filter(|_| !link.has_vlan_filtering);
        let ports = ports.filter_map(|port| Some((port.name.parse().ok()?, port.index)));
        Some(BridgeLink { index, mac: link.mac?, ports: ports.collect() })
    }

    /// Reads the devices of the host again: see [`Self::shortcut_links`]. Costs no time per peer.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn read_ports(&mut self) -> Result<(), DataplaneError> {
        self.indices.links = observe::links(&mut self.netlink).map_err(DataplaneError::Read)?;
        Ok(())
    }

    /// Lists the bridges of this host, managed or not. The CNI plugin and Docker make the bridges
    /// of containers. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn bridges(&mut self) -> Result<Vec<Bridge>, DataplaneError> {
        observe::bridges(&mut self.netlink).map_err(DataplaneError::Read)
    }

    /// Returns the names of the devices through which containers reach other hosts over IPv4: those
    /// with an underlay address, and the one that leads to the rest of the world. Replies arrive
    /// there and are forwarded to the containers. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn uplinks(&mut self, desired: &Desired) -> Result<Vec<String>, DataplaneError> {
        let netlink = &mut self.netlink;
        let addresses = observe::addresses(netlink).map_err(DataplaneError::Read)?;
        let is_underlay = |(_, address): &&(u32, InterfaceAddress)| {
            desired.vxlan_devices.iter().any(|local| local.underlay == address.address())
        };
        let underlays = addresses.iter().filter(is_underlay).map(|(index, _)| *index);
        let outside = path::outside(netlink).map_err(DataplaneError::Read)?;
        let own = self.indices.vxlan.values().chain(self.indices.bridges.values());
        let own: BTreeSet<u32> = own.copied().collect();
        self.uplinks = underlays.chain(outside).filter(|index| !own.contains(index)).collect();
        let name = |index: &u32| netdevice::index_to_name(netlink.borrowed(), *index).ok();
        Ok(self.uplinks.iter().filter_map(name).collect())
    }

    /// Returns the ports of the containers on this host, on request with the addresses of the
    /// containers. Needs `CAP_NET_ADMIN` for the addresses.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn container_ports(
        &mut self,
        with_addresses: bool,
    ) -> Result<ContainerPorts, DataplaneError> {
        containers::container_ports(&mut self.netlink, with_addresses).map_err(DataplaneError::Read)
    }

    /// Returns the IPv4 addresses that were reachable at devices within the last seconds, with the
    /// names of the devices. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel's state cannot be read.
    pub fn reachable_neighbors(&mut self) -> Result<Vec<(IpAddr, String)>, DataplaneError> {
        containers::reachable_neighbors(&mut self.netlink).map_err(DataplaneError::Read)
    }

    /// Removes a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_bridge(&mut self, bridge: &Bridge) -> Result<(), DataplaneError> {
        apply::remove_bridge(&mut self.netlink, bridge)
            .map_err(|error| DataplaneError::Remove(bridge.name.clone(), error))
    }

    /// Returns the objects that a [`Monitor`] should watch. Every call that changes the kernel may
    /// change this result.
    #[must_use]
    pub fn watch(&self, desired: &Arc<Desired>) -> Watch {
        let underlays: Vec<_> = desired.vxlan_devices.iter().map(|local| local.underlay).collect();
        let observed = self.cache.as_ref().map(|cache| &cache.observed);
        let underlay_indices = observed.into_iter().flat_map(|observed| &observed.underlay_indices);
        let is_bridge = |index: &u32| self.indices.bridges.values().any(|bridge| bridge == index);
        let mtu_of = |name| Some(observed?.state.bridges.get(name)?.mtu);
        Watch {
            devices: desired.vxlan_devices.iter().map(|local| local.device.clone()).collect(),
            tunnels: self.indices.vxlan.values().copied().collect(),
            indices: self
                .indices
                .vxlan
                .values()
                .chain(underlay_indices)
                .chain(&self.uplinks)
                .copied()
                .collect(),
            bridges: self
                .indices
                .bridges
                .iter()
                .map(|(name, index)| (*index, mtu_of(name)))
                .collect(),
            bridge_names: desired.bridges().map(|bridge| bridge.device.clone()).collect(),
            ports: self.ports.indices(&self.indices.bridges),
            port_mtus: self
                .indices
                .links
                .iter()
                .filter(|link| link.master.is_some_and(|master| is_bridge(&master)))
                .map(|link| (link.index, link.mtu))
                .collect(),
            underlays,
            desired: Arc::clone(desired),
            spaces: desired.spaces.iter().flat_map(|space| space.whole.iter().copied()).collect(),
        }
    }
}

/// Returns whether `observed` has all information that a plan for `desired` needs. The MTU of the
/// underlay was not read if the underlay or the first peers are new in `desired`.
fn covers(observed: &Observed, desired: &Desired) -> bool {
    let knows_direct = observed.direct.is_some() == desired.direct.is_some();
    knows_direct
        && desired.vxlan_devices.iter().all(|local| {
            observed.state.devices.contains_key(&local.device)
                && observed.underlays.get(&local.underlay).is_some_and(|underlay| {
                    underlay.is_routed || desired.peers.as_ref().is_none_or(BTreeMap::is_empty)
                })
        })
}

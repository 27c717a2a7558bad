//! Counts the addresses that the containers of a host use: the leases of the CNI plugin, and the
//! ports at Docker's bridges.
//!
//! The kernel counts for Docker's half, not Docker: each running container of a network has a port at
//! its bridge, and Docker gives the address of a stopped container to the next one. The kernel always
//! answers within milliseconds, while a call of `docker` takes a process and a daemon that may hang.
//! Docker is asked for the names of its containers only, and a list without names is complete.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use overlay_engine::agent::{Agent, Event};
use overlay_linux::cni::{Lease, LeaseFiles, Leases};
use overlay_linux::dataplane::{ContainerEndpoint, ContainerPorts, Dataplane, DataplaneError};
use overlay_linux::docker::{Docker, NetworkUse};
use overlay_types::addr::Subnet;
use overlay_types::address_usage::{
    AddressCount, AddressSource, HalfAddresses, UsedAddress, container_capacity,
};
use overlay_types::container_network::NetworkKind;
use overlay_types::escape::bounded_line;
use overlay_types::tunnel::{Desired, OverlaySubnets};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::inbox::Inbox;
use super::lease_reaper::range_at;

/// Most addresses that a half lists, and all halves together. A reply has fewer.
const LISTED_PER_HALF_MAX: usize = 1024;
const LISTED_MAX: usize = 4096;
/// Longest shown text of a lease or of Docker, in characters: the IDs of containers are shorter.
const TEXT_MAX: usize = 256;
/// Number of attempts to read the addresses of containers. Their number needs one.
const PORTS_ATTEMPTS: usize = 3;
/// Longest time for the names of Docker's containers. A request waits not much longer.
const NAMES_TIMEOUT: Duration = Duration::from_secs(2);

/// Counts the addresses of one host.
pub(super) struct AddressCounter {
    leases: Leases,
    /// `None` if the Docker networks of the host do not belong to this agent.
    docker: Option<Arc<Docker>>,
    inbox: Inbox<Agent>,
    /// The running counts, which end when this is dropped.
    tasks: JoinSet<()>,
    /// The only thread that counts.
    thread: Arc<Semaphore>,
}

impl AddressCounter {
    pub(super) fn new(leases: Leases, docker: Option<Docker>, inbox: Inbox<Agent>) -> Self {
        let (docker, thread) = (docker.map(Arc::new), Arc::new(Semaphore::new(1)));
        Self { leases, docker, inbox, tasks: JoinSet::new(), thread }
    }

    /// Starts a count. The result is an event. While a former count hangs, as on a file system that
    /// does not answer, no other one starts: each would keep a thread.
    pub(super) fn count(&mut self, attempt: u64, desired: Arc<Desired>, with_names: bool) {
        while self.tasks.try_join_next().is_some() {}
        let Ok(thread) = Arc::clone(&self.thread).try_acquire_owned() else { return };
        let (leases, inbox) = (self.leases.clone(), self.inbox.clone());
        let docker = self.docker.clone().filter(|_| with_names);
        self.tasks.spawn(async move {
            let names = async {
                let Some(docker) = docker else { return Vec::new() };
                let networks = tokio::time::timeout(NAMES_TIMEOUT, docker.networks_in_use()).await;
                match networks {
                    Ok(Ok(networks)) => networks,
                    Ok(Err(error)) => {
                        log::debug!("read the names of Docker's containers: {error}");
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                }
            };
            let counted = tokio::task::spawn_blocking(move || {
                let halves = count_halves(&leases, &desired);
                drop(thread);
                halves
            });
            let (counted, networks) = tokio::join!(counted, names);
            // Without a result, which only a defect causes, the agent forgets the last count later.
            let Ok(mut halves) = counted else { return };
            add_names(&mut halves, &networks);
            inbox.send(Event::AddressesCounted { attempt, halves }).await;
        });
    }
}

/// Counts the addresses of each half that has IPv4.
fn count_halves(leases: &Leases, desired: &Desired) -> Vec<HalfAddresses> {
    let ports = Dataplane::open().and_then(|mut kernel| read_ports(&mut kernel));
    let ports = ports.map_err(|error| format!("read the ports of containers: {error}"));
    let mut halves = Vec::new();
    for space in &desired.spaces {
        if let Some((_, subnet)) = range_at(space, &space.overlay.mesos_bridge()) {
            let files = leases.files(&space.overlay).map_err(|error| error.to_string());
            halves.push(mesos_half(space, subnet, files, ports.as_ref().ok()));
        }
        if let Some((_, subnet)) = range_at(space, &space.overlay.docker_bridge()) {
            halves.push(docker_half(space, subnet, ports.as_ref()));
        }
    }
    let mut left = LISTED_MAX;
    for half in &mut halves {
        half.addresses.truncate(left.min(LISTED_PER_HALF_MAX));
        left -= half.addresses.len();
    }
    halves
}

/// Reads the ports of containers with their addresses, which an ending container prevents.
fn read_ports(kernel: &mut Dataplane) -> Result<ContainerPorts, DataplaneError> {
    for _ in 1..PORTS_ATTEMPTS {
        let ports = kernel.container_ports(true)?;
        if ports.addresses.is_some() {
            return Ok(ports);
        }
    }
    kernel.container_ports(true)
}

fn mesos_half(
    space: &OverlaySubnets,
    subnet: &Subnet,
    files: Result<LeaseFiles, String>,
    ports: Option<&ContainerPorts>,
) -> HalfAddresses {
    let half = |count, addresses| HalfAddresses {
        overlay: space.overlay.clone(),
        kind: NetworkKind::Cni,
        subnet: *subnet,
        count,
        addresses,
    };
    let files = match files {
        Ok(files) if files.is_truncated => {
            return half(Err("the lease directory has too many files".to_owned()), Vec::new());
        }
        Ok(files) => files,
        Err(error) => return half(Err(error), Vec::new()),
    };
    let endpoints = ports.map(|ports| &ports.endpoints[..]).unwrap_or_default();
    let port_of: BTreeMap<IpAddr, &str> =
        endpoints.iter().map(|found| (found.address, found.port.as_str())).collect();
    let own = files.leases.iter().filter(|lease| subnet.contains(lease.address));
    // The plugin skips an address whose file is no lease.
    let blocked = files.unreadable.keys().filter(|address| subnet.contains(**address)).count();
    let count = count_of(subnet, own.clone().count(), blocked);
    let used = |lease: &Lease| UsedAddress {
        address: lease.address,
        holder: shown(&lease.container),
        interface: shown(&lease.interface),
        port: port_of.get(&lease.address).map(|port| (*port).to_owned()),
        source: AddressSource::Lease,
    };
    half(Ok(count), own.take(LISTED_PER_HALF_MAX).map(used).collect())
}

fn docker_half(
    space: &OverlaySubnets,
    subnet: &Subnet,
    ports: Result<&ContainerPorts, &String>,
) -> HalfAddresses {
    let bridge = space.overlay.docker_bridge();
    let count = ports.map(|ports| count_of(subnet, ports.count_at(bridge.as_str()), 0));
    let is_own = |found: &&ContainerEndpoint| {
        found.bridge.as_deref() == Some(bridge.as_str()) && subnet.contains(found.address)
    };
    let used = |found: &ContainerEndpoint| UsedAddress {
        address: found.address,
        holder: None,
        interface: None,
        port: Some(found.port.clone()),
        source: AddressSource::Kernel,
    };
    let endpoints = ports.map(|ports| &ports.endpoints[..]).unwrap_or_default();
    let mut addresses: Vec<UsedAddress> =
        endpoints.iter().filter(is_own).take(LISTED_PER_HALF_MAX).map(used).collect();
    addresses.sort_by_key(|used| used.address);
    HalfAddresses {
        overlay: space.overlay.clone(),
        kind: NetworkKind::Docker,
        subnet: *subnet,
        count: count.map_err(Clone::clone),
        addresses,
    }
}

/// Returns the numbers of addresses of a half. The address of the agent's probes counts as free:
/// the agent gives it back before the half is full.
fn count_of(subnet: &Subnet, used: usize, blocked: usize) -> AddressCount {
    let capacity = u32::try_from(container_capacity(subnet)).unwrap_or(u32::MAX);
    // More ports than addresses belong to containers without an address.
    let used = u32::try_from(used).unwrap_or(u32::MAX).min(capacity);
    let blocked = u32::try_from(blocked).unwrap_or(u32::MAX);
    AddressCount { used, free: (capacity - used).saturating_sub(blocked) }
}

/// Adds the names that Docker knows.
fn add_names(halves: &mut [HalfAddresses], networks: &[NetworkUse]) {
    let mut names: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for endpoint in networks.iter().flat_map(|network| &network.endpoints) {
        names.extend(endpoint.addresses.iter().map(|address| (*address, endpoint.name.as_str())));
    }
    let of_docker = halves.iter_mut().filter(|half| half.kind == NetworkKind::Docker);
    for used in of_docker.flat_map(|half| &mut half.addresses) {
        if let Some(name) = names.get(&used.address) {
            (used.holder, used.source) = (shown(name), AddressSource::Docker);
        }
    }
}

/// Returns untrusted text as a short line without control characters. `None` if it is empty.
fn shown(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| bounded_line(text, TEXT_MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use overlay_linux::docker::Endpoint;
    use overlay_types::tunnel::OverlayBridge;

    use super::super::inbox::Input;
    use super::super::metrics::Metrics;
    use super::*;

    fn space() -> OverlaySubnets {
        let bridge = |device: &str, subnet: &str| OverlayBridge {
            device: device.parse().unwrap(),
            subnets: vec![subnet.parse().unwrap()],
            gateways: Vec::new(),
        };
        OverlaySubnets {
            overlay: "vxlan-1".parse().unwrap(),
            device: "vtep1024".parse().unwrap(),
            whole: vec!["192.168.0.0/16".parse().unwrap()],
            own: vec!["192.168.0.0/27".parse().unwrap()],
            bridges: vec![
                bridge("m-vxlan-1", "192.168.0.0/28"),
                bridge("d-vxlan-1", "192.168.0.16/28"),
            ],
        }
    }

    fn endpoint(address: &str, port: &str, bridge: &str) -> ContainerEndpoint {
        let (port, bridge) = (port.to_owned(), Some(bridge.to_owned()));
        ContainerEndpoint { address: address.parse().unwrap(), port, bridge }
    }

    #[tokio::test]
    async fn hanging_count_keeps_one_thread() {
        let (inbox, mut events) = Inbox::new(Metrics::new());
        let root = tempfile::tempdir().unwrap();
        let mut counter = AddressCounter::new(Leases::new(Some(root.path())), None, inbox);
        let hanging = Arc::clone(&counter.thread).try_acquire_owned().unwrap();
        counter.count(1, Arc::default(), false);
        assert!(counter.tasks.is_empty());
        drop(hanging);
        for attempt in 2..5 {
            counter.count(attempt, Arc::default(), false);
            let Some(Input::Event(Event::AddressesCounted { attempt: counted, .. })) =
                events.recv().await
            else {
                panic!("the count is an event");
            };
            assert_eq!(counted, attempt);
        }
    }

    #[test]
    fn leases_of_containers_are_used_and_foreign_files_are_not_free() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("vxlan-1");
        fs::create_dir(&directory).unwrap();
        let write = |name: &str, content: &str| fs::write(directory.join(name), content).unwrap();
        write("192.168.0.2", "container-1\r\neth0");
        write("192.168.0.3", "\u{1b}[31m\r\neth1");
        write("192.168.0.14", "mesos-overlay-probe\r\nmo-probe");
        write("192.168.7.2", "of another agent\r\neth0");
        fs::create_dir(directory.join("192.168.0.9")).unwrap();
        let leases = Leases::new(Some(root.path()));
        let space = space();
        let subnet = &space.bridges[0].subnets[0];
        let ports = ContainerPorts {
            endpoints: vec![endpoint("192.168.0.2", "veth1", "m-vxlan-1")],
            ..ContainerPorts::default()
        };
        let files = leases.files(&space.overlay).map_err(|error| error.to_string());
        let half = mesos_half(&space, subnet, files, Some(&ports));
        assert_eq!(half.count, Ok(AddressCount { used: 2, free: 10 }));
        let used: Vec<_> =
            half.addresses.iter().map(|it| (it.holder.as_deref(), it.port.as_deref())).collect();
        assert_eq!(used, [(Some("container-1"), Some("veth1")), (Some("\\u{1b}[31m"), None)]);
        let half = mesos_half(&space, subnet, Err("no permission".to_owned()), None);
        assert_eq!(half.count, Err("no permission".to_owned()));
    }

    #[test]
    fn docker_half_is_counted_by_ports_and_named_by_docker() {
        let space = space();
        let subnet = &space.bridges[1].subnets[0];
        let ports = ContainerPorts {
            at_bridges: vec!["d-vxlan-1".to_owned(); 2],
            endpoints: vec![
                endpoint("192.168.0.19", "veth2", "d-vxlan-1"),
                endpoint("192.168.0.18", "veth1", "d-vxlan-1"),
                endpoint("192.168.0.2", "veth0", "m-vxlan-1"),
            ],
            ..ContainerPorts::default()
        };
        let mut halves = [docker_half(&space, subnet, Ok(&ports))];
        assert_eq!(halves[0].count, Ok(AddressCount { used: 2, free: 11 }));
        let network = NetworkUse {
            overlay: space.overlay.clone(),
            subnets: vec![*subnet],
            endpoints: vec![Endpoint {
                container: "0a1b".to_owned(),
                name: "web".to_owned(),
                addresses: vec!["192.168.0.18".parse().unwrap()],
            }],
        };
        add_names(&mut halves, &[network]);
        let used: Vec<_> =
            halves[0].addresses.iter().map(|it| (it.holder.as_deref(), it.source)).collect();
        assert_eq!(used, [(Some("web"), AddressSource::Docker), (None, AddressSource::Kernel)]);
        let unknown = docker_half(&space, subnet, Err(&"no netlink".to_owned()));
        assert_eq!(unknown.count, Err("no netlink".to_owned()));
    }

    #[test]
    fn more_ports_than_addresses_leave_no_free_address() {
        let subnet = "192.168.0.16/29".parse().unwrap();
        assert_eq!(count_of(&subnet, 9, 0), AddressCount { used: 5, free: 0 });
        assert_eq!(count_of(&subnet, 4, 7), AddressCount { used: 4, free: 0 });
        let tiny = "192.168.0.16/31".parse().unwrap();
        assert_eq!(count_of(&tiny, 0, 0), AddressCount { used: 0, free: 0 });
    }
}

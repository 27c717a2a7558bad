//! Hosts in network namespaces. A switch in another namespace connects the hosts. Each host has a
//! bridge and a container, as the CNI plugins and Docker create them. The test process itself
//! programs the dataplane.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use overlay_linux::dataplane::{Dataplane, Report};
use overlay_linux::host::HostSettings;
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, OverlayName, Subnet, Vni};
use overlay_types::tunnel::{
    Desired, OverlayBridge, OverlaySubnets, PORT_DEFAULT, Peer, VxlanDevice,
};

use crate::namespace::{BUSYBOX, Namespace, require_root_and_files};
use crate::traffic::can_ping;

/// The IP version of the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Underlay {
    V4,
    V6,
}

/// MTU of a VXLAN device on an underlay with an MTU of 1500.
const MTU_V4: u32 = 1450;
const MTU_V6: u32 = 1430;

pub(crate) struct Host {
    pub(crate) number: u8,
    pub(crate) namespace: Namespace,
    pub(crate) container: Namespace,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) struct Hosts {
    pub(crate) underlay: Underlay,
    pub(crate) hosts: Vec<Host>,
    pub(crate) switch: Namespace,
}

pub(crate) fn overlay() -> OverlayName {
    "vxlan-1".parse().expect("a valid overlay name")
}

pub(crate) fn device() -> DeviceName {
    DeviceName::vtep(Vni::DEFAULT)
}

fn mac(number: u8) -> Mac {
    Mac::for_vtep("70:B3:D5:00:00:00".parse().expect("a valid OUI"), vtep(number))
}

fn vtep(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(44, 128, 0, number)
}

fn vtep6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd01, 0xa, 0, 0, 0, 0, 0, number.into())
}

fn interface(text: &str) -> InterfaceAddress {
    text.parse().expect("a valid address")
}

fn subnets(number: u8) -> [Subnet; 2] {
    let subnet = |text: String| text.parse().expect("a valid subnet");
    [subnet(format!("192.168.{number}.0/24")), subnet(format!("fd01:b:0:0:{number}::/80"))]
}

/// Returns the bridges of a host: the first has the container of [`Host`], a test may create the
/// second.
fn bridges(number: u8) -> [OverlayBridge; 2] {
    let halves = subnets(number).map(|subnet| subnet.halves().expect("a subnet of many hosts"));
    let bridge = |device: &str, subnets: [Subnet; 2]| OverlayBridge {
        device: device.parse().expect("a valid device name"),
        subnets: subnets.to_vec(),
        gateways: Vec::new(),
    };
    [
        bridge("m-vxlan-1", halves.map(|(lower, _)| lower)),
        bridge("d-vxlan-1", halves.map(|(_, upper)| upper)),
    ]
}

impl Underlay {
    pub(crate) fn address(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// Adds the host's underlay address to `eth0`.
    pub(crate) fn add_address(self, host: &Namespace, number: u8) {
        self.add_address_to(host, number, "eth0");
    }

    pub(crate) fn add_address_to(self, host: &Namespace, number: u8, device: &str) {
        let (prefix, nodad) = if self == Self::V4 { (24, "") } else { (64, "nodad") };
        host.run(&format!("ip addr add {}/{prefix} dev {device} {nodad}", self.address(number)));
    }

    const fn mtu(self) -> u32 {
        match self {
            Self::V4 => MTU_V4,
            Self::V6 => MTU_V6,
        }
    }
}

/// Creates the switch that connects hosts.
pub(crate) fn switch() -> Namespace {
    let switch = Namespace::new();
    switch.run("ip link add br0 type bridge");
    switch.run("ip link set br0 up");
    switch
}

/// Connects a host to the switch, with an address of the underlay.
pub(crate) fn connect_to_switch(
    switch: &Namespace,
    host: &Namespace,
    number: u8,
    underlay: Underlay,
) {
    let netns = host.path();
    let line =
        format!("ip link add port{number} type veth peer name eth0 netns {}", netns.display());
    switch.run(&line);
    switch.run(&format!("ip link set port{number} master br0 up"));
    host.enable_ipv6();
    host.run("ip link set eth0 up");
    underlay.add_address(host, number);
}

impl Hosts {
    pub(crate) fn new(count: u8, underlay: Underlay) -> Self {
        require_root_and_files(&[BUSYBOX]);
        let switch = switch();
        let hosts = (1..=count).map(|number| Host::new(number, &switch, underlay)).collect();
        Self { underlay, hosts, switch }
    }

    /// Returns the desired state of a host.
    pub(crate) fn desired(&self, host: &Host) -> Desired {
        desired(host.number, self.hosts.iter().map(|host| host.number), self.underlay)
    }

    /// Programs all hosts, which have no dataplane yet.
    pub(crate) fn program(&self) {
        for host in &self.hosts {
            let report = host.verify(&self.desired(host));
            assert!(report.is_complete(), "{report:?}");
            assert!(!report.done.is_empty());
            host.apply_settings(&self.desired(host));
        }
    }

    /// Pings every container from every other container: small and full-size packets, IPv4 and
    /// IPv6.
    pub(crate) fn assert_full_reachability(&self) {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.number != from.number) {
                let full = self.underlay.mtu();
                let addresses: [(IpAddr, u32); 2] =
                    [(to.address().into(), 28), (to.address6().into(), 48)];
                for (address, header) in addresses {
                    for size in [16, full - header] {
                        assert!(
                            from.container_can_ping(&address.to_string(), size),
                            "{} to {address} with {size} bytes\n{}",
                            from.number,
                            from.dump()
                        );
                    }
                }
            }
        }
        for host in &self.hosts {
            let counts = host.namespace.run("nstat -asz IpFragCreates Ip6FragCreates");
            let is_zero = |line: &str| line.starts_with('#') || line.contains(" 0 ");
            assert!(counts.lines().all(is_zero), "packets were fragmented: {counts}");
        }
    }
}

pub(crate) fn desired(own: u8, all: impl Iterator<Item = u8>, underlay: Underlay) -> Desired {
    let local = VxlanDevice {
        device: device(),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: mac(own),
        underlay: underlay.address(own),
        mtu: None,
        containers_mtu: None,
        ip: Some(interface(&format!("{}/16", vtep(own)))),
        ip6: Some(interface(&format!("{}/64", vtep6(own)))),
    };
    let whole = ["192.168.0.0/16", "fd01:b::/64"].map(|text| text.parse().expect("a valid subnet"));
    let space = OverlaySubnets {
        overlay: overlay(),
        device: device(),
        whole: whole.to_vec(),
        own: subnets(own).to_vec(),
        bridges: bridges(own).to_vec(),
    };
    let peer = |number: u8| Peer {
        ip: Some(vtep(number)),
        ip6: Some(vtep6(number)),
        mac: mac(number),
        subnets: subnets(number).map(|subnet| (overlay(), subnet)).to_vec(),
        direct: None,
    };
    let others: Vec<u8> = all.filter(|number| *number != own).collect();
    let peers: BTreeMap<_, _> =
        others.iter().map(|number| (underlay.address(*number), peer(*number))).collect();
    Desired {
        vxlan_devices: vec![local],
        spaces: vec![space],
        peers: Some(peers),
        agents: others.iter().map(|number| Ipv4Addr::new(10, 0, 0, *number)).collect(),
        ..Desired::default()
    }
}

impl Host {
    fn new(number: u8, switch: &Namespace, underlay: Underlay) -> Self {
        let namespace = Namespace::new();
        let container = Namespace::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let host = Self { number, namespace, container, dir };
        host.container.enable_ipv6();
        let network = &host.namespace;
        connect_to_switch(switch, network, number, underlay);
        network.run("ip link add m-vxlan-1 type bridge");
        network.run("ip link set m-vxlan-1 up");
        network.run(&format!("ip addr add 192.168.{number}.1/25 dev m-vxlan-1"));
        network.run(&format!("ip addr add fd01:b:0:0:{number}::1/81 dev m-vxlan-1 nodad"));
        network.run(&format!(
            "ip link add veth0 type veth peer name eth0 netns {}",
            host.container.path().display()
        ));
        network.run("ip link set veth0 master m-vxlan-1 up");
        let inside = &host.container;
        inside.run(&format!("ip link set eth0 mtu {} up", underlay.mtu()));
        inside.run(&format!("ip addr add {}/25 dev eth0", host.address()));
        inside.run(&format!("ip addr add {}/81 dev eth0 nodad", host.address6()));
        inside.run(&format!("ip route add default via 192.168.{number}.1"));
        inside.run(&format!("ip -6 route add default via fd01:b:0:0:{number}::1"));
        host
    }

    /// Returns the IPv4 address of the container.
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.number, 2)
    }

    pub(crate) fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd01, 0xb, 0, 0, self.number.into(), 0, 0, 2)
    }

    /// Returns the host settings. They write no files in `/etc`, because this namespace is not the
    /// namespace of process 1.
    pub(crate) fn settings(&self) -> HostSettings {
        HostSettings::new(self.dir.path())
    }

    pub(crate) fn apply_settings(&self, desired: &Desired) {
        let settings = self.settings();
        self.namespace
            .inside(|| settings.apply(desired))
            .expect("permission to write host settings");
    }

    /// Verifies once with a new dataplane, as after a restart of the agent.
    pub(crate) fn verify(&self, desired: &Desired) -> Report {
        self.namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("a netlink socket");
            let desired = Arc::new(desired.clone());
            dataplane.verify(&desired).expect("kernel state is readable")
        })
    }

    pub(crate) fn container_can_ping(&self, address: &str, size: u32) -> bool {
        can_ping(&self.container, address.parse().expect("a valid address"), size)
    }

    /// Lists all kernel state that a dataplane could have changed.
    pub(crate) fn dump(&self) -> String {
        let lines = [
            "ip -d link show",
            "ip addr show",
            "ip rule show",
            "ip -6 rule show",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip neigh show nud permanent",
            "bridge fdb show",
            "nft list ruleset",
            "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra",
        ];
        let dump = |line: &&str| {
            format!("# {line}\n{}", without_volatile_fields(&self.namespace.run(line)))
        };
        lines.iter().map(dump).collect()
    }
}

/// Removes the fields that change without a cause, such as timers, from a listing.
pub(crate) fn without_volatile_fields(listing: &str) -> String {
    let line = |line: &str| {
        let mut is_value = false;
        let words = line.split(' ').filter(|word| {
            let is_volatile = is_value;
            // Several spaces can separate a keyword from its value.
            is_value =
                word.ends_with("_timer") || *word == "state" || (is_value && word.is_empty());
            !is_volatile
        });
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    listing.lines().map(line).collect()
}

//! Tests whether this kernel supports what the agent needs. The test programs the real dataplane
//! and the real firewall, on a thread in its own network namespace, which ends with the thread. The
//! host's network namespace is not changed. `/proc` cannot answer this: a kernel can load modules
//! on demand that `/proc` does not list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use overlay_config::FirewallKind;
use overlay_linux::dataplane::{Dataplane, Problem};
use overlay_linux::firewall::{Backend, Firewall, InnerCheck, Options, Ruleset};
use overlay_types::addr::{DeviceName, Mac, OverlayName, Subnet, Vni};
use overlay_types::tunnel::{
    Desired, OverlayBridge, OverlaySubnets, PORT_DEFAULT, Peer, VxlanDevice,
};

use super::observation::KernelSupport;

/// A port for the rules that close control ports.
const CONTROL_PORT: u16 = 5051;

/// Tests the dataplane of both families, and the configured firewall.
///
/// # Errors
/// When the thread or its network namespace cannot be created.
pub(crate) fn test(firewall: FirewallKind) -> Result<KernelSupport, String> {
    let thread = thread::Builder::new()
        .name("doctor-kernel".to_owned())
        .spawn(move || test_in_new_namespace(firewall))
        .map_err(|error| format!("start a thread: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("the test panicked".to_owned()))
}

fn test_in_new_namespace(firewall: FirewallKind) -> Result<KernelSupport, String> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("create a network namespace: {error}"))?;
    Ok(KernelSupport {
        vxlan: test_dataplane(example_overlay(false)),
        vxlan6: test_dataplane(example_overlay(true)),
        firewall: test_firewall(firewall),
    })
}

/// Returns an overlay with one peer. Its addresses are reserved for documentation.
fn example_overlay(has_v6: bool) -> Desired {
    let device = DeviceName::vtep(Vni::DEFAULT);
    let mac = |last| Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, last]);
    let local = VxlanDevice {
        device: device.clone(),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: mac(1),
        underlay: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        mtu: None,
        containers_mtu: None,
        ip: "198.51.100.1/24".parse().ok(),
        ip6: "2001:db8::1/64".parse().ok().filter(|_| has_v6),
    };
    let overlay = "test".parse::<OverlayName>().expect("a valid name");
    let subnet = "203.0.113.0/25".parse().ok();
    let subnet6 = "2001:db8:1::/64".parse().ok().filter(|_| has_v6);
    let subnets: Vec<Subnet> = [subnet, subnet6].into_iter().flatten().collect();
    let bridge = overlay.mesos_bridge();
    let space = OverlaySubnets {
        overlay: overlay.clone(),
        device,
        whole: subnets.clone(),
        own: Vec::new(),
        bridges: vec![OverlayBridge {
            device: bridge,
            subnets: subnets.clone(),
            gateways: Vec::new(),
        }],
    };
    let peer = Peer {
        ip: Some(Ipv4Addr::new(198, 51, 100, 2)),
        ip6: "2001:db8::2".parse().ok().filter(|_| has_v6),
        mac: mac(2),
        subnets: subnets.into_iter().map(|subnet| (overlay.clone(), subnet)).collect(),
        direct: None,
    };
    let agent = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let peers = Some(BTreeMap::from([(agent, peer)]));
    Desired { vxlan_devices: vec![local], spaces: vec![space], peers, ..Desired::default() }
}

fn test_dataplane(desired: Desired) -> Result<(), String> {
    let mut dataplane = Dataplane::open().map_err(|error| error.to_string())?;
    let mut report = dataplane.verify(&Arc::new(desired)).map_err(|error| error.to_string())?;
    // No device of the namespace has the address of the underlay, so the MTU is an assumption.
    report.problems.retain(|problem| !matches!(problem, Problem::Mtu(_)));
    match report.faults().next() {
        None => Ok(()),
        Some(fault) => Err(fault.reason),
    }
}

fn test_firewall(kind: FirewallKind) -> Result<&'static str, String> {
    let backend = match kind {
        FirewallKind::Auto => Backend::detect().map_err(|error| error.to_string())?,
        FirewallKind::Nftables => Backend::Nftables,
        FirewallKind::Iptables => Backend::Iptables,
        FirewallKind::None => return Ok("none"),
    };
    let control_ports = [CONTROL_PORT].into();
    let options = Options { isolate: true, control_ports, ..Options::default() };
    let rules = Ruleset::new(&example_overlay(true), &options);
    let mut firewall = Firewall::new(backend);
    firewall.verify(&rules).map_err(|error| error.to_string())?;
    Ok(match backend {
        Backend::Nftables if firewall.inner_check() == Some(InnerCheck::Membership) => {
            "nftables, which cannot compare a packet in the tunnel with its sender"
        }
        Backend::Nftables => "nftables",
        Backend::Iptables => "iptables and ipset",
        Backend::None => "none",
    })
}

//! Tries out whether this kernel can do what the agent needs: the real dataplane and the real
//! firewall, on a thread in a network namespace of its own, which ends with it. Nothing of it
//! reaches the host's own network. `/proc` has no answer to this: a kernel may load on demand what
//! it does not show, or lack what is on its disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::observed::Trials;
use crate::addr::{DeviceName, Mac, OverlayName, Vni};
use crate::config::FirewallKind;
use crate::dataplane::Dataplane;
use crate::firewall::{Backend, Firewall, Options, Ruleset};
use crate::tunnel::{Desired, Local, PORT_DEFAULT, Peer, Space};

/// Tries all of it, with the firewall that is configured.
///
/// # Errors
/// When there is no thread or no namespace to be had.
pub(super) fn run(firewall: FirewallKind) -> Result<Trials, String> {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("make a network namespace: {error}"))?;
        let vxlan = try_dataplane(invented(false));
        let vxlan6 = try_dataplane(invented(true));
        Ok(Trials { vxlan, vxlan6, firewall: try_firewall(firewall) })
    };
    let thread = thread::Builder::new().name("doctor-trial".to_owned()).spawn(body);
    let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("the trial ended by a panic".to_owned()))
}

/// An overlay with one peer, of addresses that are nobody's.
fn invented(is_v6: bool) -> Desired {
    let device = DeviceName::vtep(Vni::DEFAULT);
    let parse = |text: &str| text.parse().ok().filter(|_| is_v6);
    let mac = |last| Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, last]);
    let local = Local {
        device: device.clone(),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: mac(1),
        underlay: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        mtu: None,
        containers_mtu: None,
        ip: "198.51.100.1/24".parse().ok(),
        ip6: parse("2001:db8::1/64"),
    };
    let overlay = "trial".parse::<OverlayName>().expect("it is a name");
    let subnets = ["203.0.113.0/25".parse().ok(), "2001:db8:1::/64".parse().ok().filter(|_| is_v6)];
    let subnets: Vec<_> = subnets.into_iter().flatten().collect();
    let space = Space { overlay: overlay.clone(), device, whole: subnets.clone(), own: Vec::new() };
    let peer = Peer {
        ip: Some(Ipv4Addr::new(198, 51, 100, 2)),
        ip6: "2001:db8::2".parse().ok().filter(|_| is_v6),
        mac: mac(2),
        subnets: subnets.into_iter().map(|subnet| (overlay.clone(), subnet)).collect(),
    };
    let agent = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let peers = Some(BTreeMap::from([(agent, peer)]));
    Desired { locals: vec![local], spaces: vec![space], peers, left_out: Vec::new() }
}

fn try_dataplane(desired: Desired) -> Result<(), String> {
    let mut dataplane = Dataplane::open().map_err(|error| error.to_string())?;
    let report = dataplane.verify(&Arc::new(desired)).map_err(|error| error.to_string())?;
    match report.faults().next() {
        None => Ok(()),
        Some(fault) => Err(fault.reason),
    }
}

fn try_firewall(kind: FirewallKind) -> Result<&'static str, String> {
    let backend = match kind {
        FirewallKind::Auto => Backend::detect().map_err(|error| error.to_string())?,
        FirewallKind::Nftables => Backend::Nftables,
        FirewallKind::Iptables => Backend::Iptables,
        FirewallKind::None => return Ok("nobody"),
    };
    let rules = Ruleset::new(&invented(true), Options { isolate: true, ..Options::default() });
    Firewall::new(backend).verify(&rules).map_err(|error| error.to_string())?;
    Ok(match backend {
        Backend::Nftables => "nftables",
        Backend::Iptables => "iptables and ipset",
        Backend::None => "nobody",
    })
}

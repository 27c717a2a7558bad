//! Asks the local agent, its peers' agents, the master and Docker; and puts together with the
//! kernel's answers what is wanted on this host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use serde::Deserialize;

use super::super::answer::shown_problems;
use super::super::host::{own_address, source_towards};
use super::super::http_client::{MasterClient, ask_agent};
use super::super::output::harmless;
use super::observed::{AgentAnswer, AgentSeen, Basis, MasterSeen, NoAgent, Tunnel};
use crate::addr::{DeviceName, InterfaceAddress, Mac};
use crate::agent::{Settings, desired};
use crate::config::AgentConfig;
use crate::dataplane::{self, Dataplane, DataplaneError};
use crate::docker::{Docker, Examined, Reason};
use crate::protocol::{AgentInfo, State, Vxlan};
use crate::tunnel::{Desired, Local, Peer, Space, collisions};
use crate::wire;

const OVERLAY: &str = "/overlay-agent/overlay";
const HEALTH: &str = "/overlay-agent/health";
/// A Docker that takes longer hangs.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is read of an agent's health.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    problems: Vec<String>,
    dataplane: Option<TunnelHealth>,
}

#[derive(Debug, Deserialize)]
struct TunnelHealth {
    status: String,
}

/// What an agent has, be it ours or that of a peer.
pub(super) async fn agent_info(address: SocketAddrV4) -> Result<AgentInfo, NoAgent> {
    let (status, body) = ask_agent(address, OVERLAY).await.map_err(NoAgent::Silent)?;
    if !status.is_success() {
        return Err(NoAgent::Stranger(status.to_string()));
    }
    let stranger = |error: &dyn fmt::Display| NoAgent::Stranger(harmless(&error.to_string()));
    let parsed = wire::parse_json(&body).map_err(|error| stranger(&error))?;
    wire::decode_agent(&parsed).map_err(|error| stranger(&error))
}

pub(super) async fn local_agent(address: SocketAddrV4) -> AgentSeen {
    let answer = async {
        let info = agent_info(address).await?;
        let (_, body) = ask_agent(address, HEALTH).await.map_err(NoAgent::Silent)?;
        let health: Option<Health> = serde_json::from_slice(&body).ok();
        let is_external = health.as_ref().is_none_or(|health| {
            health.dataplane.as_ref().is_none_or(|dataplane| dataplane.status == "external")
        });
        let health = health
            .map(|Health { status, problems, .. }| (harmless(&status), shown_problems(&problems)));
        Ok(AgentAnswer { info, health, is_external })
    };
    AgentSeen { address: address.to_string(), answer: answer.await }
}

pub(super) async fn master(client: &MasterClient) -> MasterSeen {
    let state = async {
        let body = client.state().await?;
        client.read_state(&body)
    };
    let answer = state.await.map_err(|failure| failure.to_string());
    MasterSeen { address: client.to_string(), answer }
}

pub(super) async fn docker(config: &AgentConfig) -> Option<Result<Examined, Reason>> {
    let options = &config.options;
    if !options.allocate_subnet || !options.docker_bridge {
        return None;
    }
    let docker = Docker::new(config.docker.clone(), DOCKER_TIMEOUT);
    Some(docker.examine().await)
}

/// The kernel's part of it.
pub(super) fn tunnel(
    config: &AgentConfig,
    info: Option<&AgentInfo>,
    master: Option<&State>,
) -> Result<Tunnel, DataplaneError> {
    let mut dataplane = Dataplane::open()?;
    let (routes, addresses) = dataplane.surroundings()?;
    let there = dataplane.observe(&Desired::default())?;
    let own = |ip: Ipv4Addr| addresses.iter().any(|own| own.address.address() == IpAddr::V4(ip));
    let of_master = || {
        let agents = master?.agents.iter();
        agents.map(AsRef::as_ref).find(|agent: &&AgentInfo| own(agent.ip))
    };
    let info = info.filter(|info| !info.overlays.is_empty()).or_else(of_master);
    let (desired, basis) = match info {
        Some(info) => {
            let settings = Settings::from(config);
            let mut desired = desired(info.ip, &settings, info.overlays.iter(), None);
            desired.peers = master.map(|state| peers(state, info.ip, &there, &desired));
            (desired, Basis::Assignments)
        }
        None => without_assignments(config, master, &there),
    };
    let seen = dataplane.observe(&desired)?;
    let plan = dataplane::plan(&desired, &seen);
    let collisions = match basis {
        Basis::Assignments | Basis::Network => collisions(&desired, &routes, &addresses),
        Basis::Kernel | Basis::Defaults => Vec::new(),
    };
    let unroutable = unroutable(&seen);
    Ok(Tunnel { desired, basis, seen, plan, collisions, addresses, unroutable })
}

/// The other agents, as the master has them. It does not say where a tunnel over IPv6 ends; the
/// kernel may know.
fn peers(
    state: &State,
    own: Ipv4Addr,
    there: &dataplane::Observed,
    desired: &Desired,
) -> BTreeMap<IpAddr, Peer> {
    let is_v6 = desired.locals.first().is_some_and(|local| local.underlay.is_ipv6());
    let forward = |mac: Mac| {
        there.state.devices.values().find_map(|device| device.forwards.get(&mac).copied())
    };
    let mut peers = BTreeMap::new();
    for agent in state.agents.iter().filter(|agent| agent.ip != own) {
        let Some(first) = agent.overlays.first() else { continue };
        let v4 = |address: IpAddr| if let IpAddr::V4(ip) = address { Some(ip) } else { None };
        let v6 = |address: IpAddr| if let IpAddr::V6(ip) = address { Some(ip) } else { None };
        let mut peer = Peer {
            ip: v4(first.vtep.ip.address()),
            ip6: first.vtep.ip6.and_then(|ip6| v6(ip6.address())),
            mac: first.vtep.mac,
            subnets: Vec::new(),
        };
        for overlay in &agent.overlays {
            let subnets = [overlay.subnet, overlay.subnet6].into_iter().flatten();
            peer.subnets.extend(subnets.map(|subnet| (overlay.name().clone(), subnet)));
        }
        let underlay = if is_v6 { forward(peer.mac) } else { Some(IpAddr::V4(agent.ip)) };
        peers.extend(underlay.map(|underlay| (underlay, peer)));
    }
    peers
}

/// What is there is taken to be wanted; where nothing is, what would be there by default.
fn without_assignments(
    config: &AgentConfig,
    master: Option<&State>,
    there: &dataplane::Observed,
) -> (Desired, Basis) {
    let underlay = config.dataplane.underlay.map(IpAddr::V6);
    let underlay = underlay.or_else(|| own_address(None).ok().map(IpAddr::V4));
    let containers_mtu = config.options.allocate_subnet.then_some(config.options.overlay_mtu);
    if !there.state.devices.is_empty() {
        let local = |(name, device): (&DeviceName, &dataplane::Device)| {
            let link = &device.link;
            let address = |is_v4: bool| {
                device.addresses.iter().find(|own| own.address().is_ipv4() == is_v4).copied()
            };
            Some(Local {
                device: name.clone(),
                vni: link.identity.vni,
                port: link.identity.port,
                mac: link.mac,
                underlay: link.underlay.or(underlay)?,
                mtu: Some(link.mtu),
                containers_mtu,
                ip: address(true),
                ip6: address(false),
            })
        };
        let locals = there.state.devices.iter().filter_map(local).collect();
        return (Desired { locals, ..Desired::default() }, Basis::Kernel);
    }
    let vxlan = master.map_or_else(Vxlan::default, |state| state.network.vxlan.clone());
    let mut local = Local {
        device: vxlan.device.clone(),
        vni: vxlan.vni,
        port: vxlan.port,
        mac: Mac::from([0x70, 0xb3, 0xd5, 0, 0, 1]),
        underlay: underlay.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        mtu: None,
        containers_mtu,
        ip: None,
        ip6: None,
    };
    let Some(state) = master else {
        return (Desired { locals: vec![local], ..Desired::default() }, Basis::Defaults);
    };
    let network = &state.network;
    let first = |subnet: &crate::addr::Subnet| InterfaceAddress::within(subnet, subnet.first());
    local.mtu = network.vtep_mtu;
    local.ip = first(&network.vtep_subnet);
    local.ip6 = network.vtep_subnet6.as_ref().and_then(first);
    let enabled = network.overlays.iter().filter(|overlay| overlay.enabled);
    let spaces = enabled.map(|overlay| Space {
        overlay: overlay.name.clone(),
        device: match overlay.vni.filter(|vni| *vni != vxlan.vni) {
            Some(vni) => DeviceName::vtep(vni),
            None => vxlan.device.clone(),
        },
        whole: [overlay.range, overlay.range6].into_iter().flatten().map(|it| it.subnet).collect(),
        own: Vec::new(),
    });
    let spaces = spaces.collect();
    (Desired { locals: vec![local], spaces, ..Desired::default() }, Basis::Network)
}

/// Peers to which the kernel has no route. Nothing is sent.
fn unroutable(seen: &dataplane::Observed) -> Vec<(IpAddr, String)> {
    let mut found = BTreeMap::new();
    for device in seen.state.devices.values() {
        for peer in device.forwards.values() {
            let to = SocketAddr::new(*peer, device.link.identity.port);
            if let Err(error) = source_towards(device.link.underlay, to) {
                found.insert(*peer, error.to_string());
            }
        }
    }
    found.into_iter().collect()
}

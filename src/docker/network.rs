//! A Docker network: how it is made, and how what exists is compared with what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use super::engine::Engine;
use super::error::Overlap;
use crate::addr::{Family, OverlayName, Subnet};
use crate::agent::DockerNetwork;

/// The only driver whose networks the overlay reaches.
const DRIVER: &str = "bridge";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const MTU: &str = "com.docker.network.driver.mtu";
const GATEWAY_MODE: [(Family, &str); 2] = [
    (Family::V4, "com.docker.network.bridge.gateway_mode_ipv4"),
    (Family::V6, "com.docker.network.bridge.gateway_mode_ipv6"),
];
const UNPROTECTED: &str = "nat-unprotected";
/// By which an operator finds our networks: `docker network ls --filter
/// label=org.apache.mesos.overlay`. Those of the C++ modules have no label, so nothing depends on
/// it.
const LABEL: &str = "org.apache.mesos.overlay=1";
/// What containers of a network without the MTU option have.
const MTU_DEFAULT: u32 = 1500;

/// The arguments of `docker` that make `network`.
pub(super) fn create_arguments(network: &DockerNetwork, engine: &Engine) -> Vec<String> {
    let mut arguments: Vec<String> = ["network", "create"].map(str::to_owned).into();
    arguments.push(format!("--driver={DRIVER}"));
    arguments.push(format!("--label={LABEL}"));
    arguments.push(format!("--opt={BRIDGE_NAME}={}", network.bridge));
    arguments.push(format!("--opt={MASQUERADE}=false"));
    arguments.push(format!("--opt={MTU}={}", network.mtu));
    if engine.has_unprotected_gateway_mode() {
        for (_, option) in gateway_modes(network) {
            arguments.push(format!("--opt={option}={UNPROTECTED}"));
        }
    }
    match network.subnet {
        Some(subnet) => arguments.push(format!("--subnet={subnet}")),
        None if engine.has_networks_without_ipv4() => arguments.push("--ipv4=false".to_owned()),
        // Before 28 there is no such network: the engine adds an IPv4 subnet out of its own pool
        // (observed on 20.10), which the overlay does not route.
        None => {}
    }
    if let Some(subnet) = network.subnet6 {
        arguments.push("--ipv6".to_owned());
        arguments.push(format!("--subnet={subnet}"));
    }
    arguments.push(network.name.to_string());
    arguments
}

/// The subnets of `network`, of both families.
pub(super) fn subnets(network: &DockerNetwork) -> Vec<Subnet> {
    network.subnet.into_iter().chain(network.subnet6).collect()
}

/// The options of the gateway mode that matter for `network`.
fn gateway_modes(network: &DockerNetwork) -> impl Iterator<Item = (Family, &'static str)> {
    let families: Vec<_> = subnets(network).iter().map(Subnet::family).collect();
    GATEWAY_MODE.into_iter().filter(move |(family, _)| families.contains(family))
}

/// One respect in which a network is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In which respect.
    pub what: &'static str,
    /// How it is.
    pub found: String,
    /// How it should be.
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} instead of {}", self.what, self.found, self.wanted)
    }
}

/// Whether a network is as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Differs(Vec<Difference>),
    /// Everything is right, but the engine drops the overlay's packets: it was made for an older
    /// one.
    UnfitGatewayMode,
}

/// A network as `docker network inspect` shows it. What is not compared is not read: labels, and
/// the gateway, which 20.10 leaves out where 28 shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) id: String,
    driver: String,
    #[serde(default)]
    internal: bool,
    #[serde(default, rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(default, rename = "IPAM")]
    ipam: Ipam,
    containers: Option<BTreeMap<String, Attached>>,
    options: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    config: Option<Vec<Pool>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pool {
    #[serde(default)]
    subnet: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attached {
    #[serde(default)]
    name: String,
}

impl Found {
    /// Reads the answer of `docker network inspect`.
    pub(super) fn parse_all(answer: &[u8]) -> serde_json::Result<Vec<Self>> {
        serde_json::from_slice(answer)
    }

    /// Whether the agent made it, or an earlier agent or the C++ modules did.
    pub(super) fn is_ours(&self, name: &OverlayName) -> bool {
        self.driver == DRIVER && self.option(BRIDGE_NAME) == Some(name.docker_bridge().as_str())
    }

    /// Whether it also has what nobody writes by hand: for what is removed without being asked for.
    pub(super) fn was_made_by_us(&self, name: &OverlayName) -> bool {
        self.is_ours(name) && self.is_off(MASQUERADE) && self.option(MTU).is_some()
    }

    /// Names of the containers that run in it.
    pub(super) fn attached(&self) -> Vec<String> {
        let containers = self.containers.iter().flatten();
        containers.map(|(_, container)| container.name.escape_debug().to_string()).collect()
    }

    /// Where this network has addresses of `network`.
    pub(super) fn overlap(&self, network: &DockerNetwork) -> Option<Overlap> {
        let wanted = subnets(network);
        let theirs = self.subnets().filter_map(|text| text.parse::<Subnet>().ok());
        let subnet =
            theirs.into_iter().find(|theirs| wanted.iter().any(|own| own.overlaps(theirs)))?;
        Some(Overlap { network: self.name.escape_debug().to_string(), subnet })
    }

    pub(super) fn compare(&self, network: &DockerNetwork, engine: &Engine) -> Verdict {
        let mut differences = Vec::new();
        let mut demand = |what, found: String, wanted: String| {
            if found != wanted {
                differences.push(Difference { what, found, wanted });
            }
        };
        demand("driver", self.driver.escape_debug().to_string(), DRIVER.to_owned());
        demand("bridge", self.bridge(), network.bridge.to_string());
        demand("subnet", self.addresses(network), listed(&subnets(network)));
        demand("mtu", self.mtu(), network.mtu.to_string());
        demand("masquerade", switch(!self.is_off(MASQUERADE)), switch(false));
        demand("ipv6", switch(self.enable_ipv6), switch(network.subnet6.is_some()));
        demand("internal", switch(self.internal), switch(false));
        if !differences.is_empty() {
            return Verdict::Differs(differences);
        }
        let is_unfit = engine.has_unprotected_gateway_mode()
            && gateway_modes(network).any(|(_, option)| self.option(option) != Some(UNPROTECTED));
        if is_unfit { Verdict::UnfitGatewayMode } else { Verdict::Equal }
    }

    /// Whether what other hosts send reaches containers in all families of this network.
    pub(super) fn is_unprotected(&self) -> bool {
        let subnets: Vec<_> =
            self.subnets().filter_map(|text| text.parse::<Subnet>().ok()).collect();
        let is_there = |family: Family| subnets.iter().any(|subnet| subnet.family() == family);
        let mut modes = GATEWAY_MODE.into_iter().filter(|(family, _)| is_there(*family));
        modes.all(|(_, option)| self.option(option) == Some(UNPROTECTED))
    }

    fn bridge(&self) -> String {
        match self.option(BRIDGE_NAME) {
            Some(name) => name.escape_debug().to_string(),
            None => "one that Docker named".to_owned(),
        }
    }

    fn mtu(&self) -> String {
        match self.option(MTU) {
            Some(mtu) => mtu.escape_debug().to_string(),
            None => MTU_DEFAULT.to_string(),
        }
    }

    /// Its subnets as text, in the order in which [`subnets`] has them.
    fn addresses(&self, network: &DockerNetwork) -> String {
        let mut found: BTreeSet<Result<Subnet, String>> = self
            .subnets()
            .map(|text| text.parse().map_err(|_| text.escape_debug().to_string()))
            .collect();
        if network.subnet.is_none() {
            // What an engine before 28 added of its own; see `create_arguments`.
            found.retain(|subnet| !matches!(subnet, Ok(subnet) if subnet.family() == Family::V4));
        }
        let found: Vec<String> = found
            .into_iter()
            .map(|subnet| subnet.map_or_else(|text| text, |subnet| subnet.to_string()))
            .collect();
        listed(&found)
    }

    fn subnets(&self) -> impl Iterator<Item = &str> {
        self.ipam.config.iter().flatten().map(|pool| pool.subnet.as_str())
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.as_ref()?.get(name).map(String::as_str)
    }

    /// As Docker itself reads a switch (Go's `ParseBool`); a switch that is not there is on.
    fn is_off(&self, name: &str) -> bool {
        self.option(name)
            .is_some_and(|text| ["0", "f", "F", "false", "FALSE", "False"].contains(&text))
    }
}

fn listed(subnets: &[impl ToString]) -> String {
    if subnets.is_empty() {
        return "none".to_owned();
    }
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn switch(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.to_owned()
}

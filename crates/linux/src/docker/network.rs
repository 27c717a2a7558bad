//! A Docker network: the arguments that create it, and the comparison of the observed with the
//! desired network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use overlay_types::addr::{Family, Mtu, OverlayName, Subnet};
use overlay_types::container_network::DockerNetwork;
use serde::Deserialize;

use super::engine::Engine;

/// The only driver that creates networks to which the overlay can route.
const DRIVER: &str = "bridge";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
const GATEWAY_MODE: [(Family, &str); 2] = [
    (Family::V4, "com.docker.network.bridge.gateway_mode_ipv4"),
    (Family::V6, "com.docker.network.bridge.gateway_mode_ipv6"),
];
const UNPROTECTED: &str = "nat-unprotected";
/// The label for operators: `docker network ls --filter label=org.apache.mesos.overlay`. Networks
/// of the C++ modules have no label, so the code does not depend on it.
const LABEL: &str = "org.apache.mesos.overlay=1";
/// MTU of a network without the MTU option.
const MTU_DEFAULT: u32 = 1500;

/// Returns the arguments of `docker` that create `network`.
pub(super) fn create_arguments(network: &DockerNetwork, engine: &Engine) -> Vec<String> {
    let mut arguments: Vec<String> = ["network", "create"].map(str::to_owned).into();
    arguments.push(format!("--driver={DRIVER}"));
    arguments.push(format!("--label={LABEL}"));
    arguments.push(format!("--opt={BRIDGE_NAME}={}", network.bridge));
    arguments.push(format!("--opt={MASQUERADE}=false"));
    arguments.push(format!("--opt={MTU_OPTION}={}", network.mtu));
    if engine.has_unprotected_gateway_mode() {
        for (_, option) in gateway_modes(network) {
            arguments.push(format!("--opt={option}={UNPROTECTED}"));
        }
    }
    match network.subnet {
        Some(subnet) => arguments.push(format!("--subnet={subnet}")),
        None if engine.has_networks_without_ipv4() => arguments.push("--ipv4=false".to_owned()),
        // Engines before 28 add an IPv4 subnet out of their own pool (observed on 20.10). The
        // overlay does not route it.
        None => {}
    }
    if let Some(subnet) = network.subnet6 {
        arguments.push("--ipv6".to_owned());
        arguments.push(format!("--subnet={subnet}"));
    }
    arguments.push(network.name.to_string());
    arguments
}

/// Returns the subnets of `network`, of both families.
pub(super) fn subnets(network: &DockerNetwork) -> Vec<Subnet> {
    network.subnet.into_iter().chain(network.subnet6).collect()
}

/// Returns the gateway mode options for the families of `network`.
fn gateway_modes(network: &DockerNetwork) -> impl Iterator<Item = (Family, &'static str)> {
    let families: Vec<_> = subnets(network).iter().map(Subnet::family).collect();
    GATEWAY_MODE.into_iter().filter(move |(family, _)| families.contains(family))
}

/// A difference between the observed and the desired network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The property that differs.
    pub property: &'static str,
    /// The observed value.
    pub found: String,
    /// The desired value.
    pub desired: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} instead of {}", self.property, self.found, self.desired)
    }
}

/// Another Docker network with a subnet that overlaps the desired network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The other network's name.
    pub network: String,
    /// The other network's subnet.
    pub subnet: Subnet,
}

/// Result of the comparison of an observed network with the desired one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    /// The network is right except for this MTU, which is smaller.
    SmallerMtu(u32),
    Differs(Vec<Difference>),
    /// The network is right except for its gateway mode. It was made for an older engine, and this
    /// engine drops the overlay's packets.
    UnfitGatewayMode,
}

/// A network as `docker network inspect` prints it, without the properties that are not compared:
/// labels, and the gateway, which 20.10 omits and 28 prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InspectedNetwork {
    pub(super) name: String,
    pub(super) id: String,
    driver: String,
    #[serde(default)]
    internal: bool,
    #[serde(default, rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(default, rename = "IPAM")]
    ipam: Ipam,
    containers: Option<BTreeMap<String, Container>>,
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
struct Container {
    #[serde(default)]
    name: String,
    /// The address with the length of its prefix, or an empty text.
    #[serde(default, rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(default, rename = "IPv6Address")]
    ipv6_address: String,
}

/// A container that runs in a managed network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The ID of the container.
    pub container: String,
    /// The name of the container.
    pub name: String,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
}

impl InspectedNetwork {
    /// Parses the answer of `docker network inspect`.
    pub(super) fn parse_all(answer: &[u8]) -> serde_json::Result<Vec<Self>> {
        serde_json::from_slice(answer)
    }

    /// Returns whether this agent, an earlier agent or the C++ modules made the network. The bridge
    /// identifies the network.
    pub(super) fn is_ours(&self, name: &OverlayName) -> bool {
        self.driver == DRIVER && self.option(BRIDGE_NAME) == Some(name.docker_bridge().as_str())
    }

    /// Returns whether the network also has the options that operators never set by hand. The agent
    /// removes only such networks without a command of the operator.
    pub(super) fn has_our_options(&self, name: &OverlayName) -> bool {
        self.is_ours(name) && self.is_off(MASQUERADE) && self.option(MTU_OPTION).is_some()
    }

    /// Returns the names of the containers that run in the network.
    pub(super) fn running_containers(&self) -> Vec<String> {
        let containers = self.containers.iter().flatten();
        containers.map(|(_, container)| container.name.escape_debug().to_string()).collect()
    }

    /// Returns the containers that run in the network, with their addresses.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let address = |text: &str| text.split('/').next().and_then(|address| address.parse().ok());
        let containers = self.containers.iter().flatten();
        let endpoint = |(id, container): (&String, &Container)| Endpoint {
            container: id.clone(),
            name: container.name.clone(),
            addresses: [&container.ipv4_address, &container.ipv6_address]
                .into_iter()
                .filter_map(|text| address(text))
                .collect(),
        };
        containers.map(endpoint).collect()
    }

    /// Returns the overlap of this network with `network`.
    pub(super) fn overlap(&self, network: &DockerNetwork) -> Option<Overlap> {
        let own = subnets(network);
        let mut subnets = self.subnets().filter_map(|text| text.parse::<Subnet>().ok());
        let subnet = subnets.find(|subnet| own.iter().any(|own| own.overlaps(subnet)))?;
        Some(Overlap { network: self.name.escape_debug().to_string(), subnet })
    }

    /// Compares this network with the desired one.
    pub(super) fn compare(&self, network: &DockerNetwork, engine: &Engine) -> Comparison {
        let (mtu, smaller) = (network.mtu.to_string(), self.smaller_mtu(network));
        let properties = [
            ("driver", self.driver.escape_debug().to_string(), DRIVER.to_owned()),
            ("bridge", self.bridge(), network.bridge.to_string()),
            ("subnet", self.addresses(network), join_subnets(&subnets(network))),
            ("mtu", smaller.map_or_else(|| self.mtu(), |_| mtu.clone()), mtu.clone()),
            ("masquerade", on_or_off(!self.is_off(MASQUERADE)), on_or_off(false)),
            ("ipv6", on_or_off(self.enable_ipv6), on_or_off(network.subnet6.is_some())),
            ("internal", on_or_off(self.internal), on_or_off(false)),
        ];
        let properties = properties.into_iter().filter(|(_, found, desired)| found != desired);
        let differences: Vec<_> = properties
            .map(|(property, found, desired)| Difference { property, found, desired })
            .collect();
        if !differences.is_empty() {
            return Comparison::Differs(differences);
        }
        let is_unfit = engine.has_unprotected_gateway_mode()
            && gateway_modes(network).any(|(_, option)| self.option(option) != Some(UNPROTECTED));
        match smaller {
            _ if is_unfit => Comparison::UnfitGatewayMode,
            Some(mtu) => Comparison::SmallerMtu(mtu),
            None => Comparison::Equal,
        }
    }

    /// Returns whether packets from other hosts reach the containers in all families of this
    /// network.
    pub(super) fn is_unprotected(&self) -> bool {
        let subnets: Vec<_> =
            self.subnets().filter_map(|text| text.parse::<Subnet>().ok()).collect();
        let has_family = |family: Family| subnets.iter().any(|subnet| subnet.family() == family);
        let mut modes = GATEWAY_MODE.into_iter().filter(|(family, _)| has_family(*family));
        modes.all(|(_, option)| self.option(option) == Some(UNPROTECTED))
    }

    fn bridge(&self) -> String {
        match self.option(BRIDGE_NAME) {
            Some(name) => name.escape_debug().to_string(),
            None => "one that Docker named".to_owned(),
        }
    }

    fn mtu(&self) -> String {
        match self.option(MTU_OPTION) {
            Some(mtu) => mtu.escape_debug().to_string(),
            None => MTU_DEFAULT.to_string(),
        }
    }

    /// Returns the MTU of this network if it is smaller than that of `network`.
    fn smaller_mtu(&self, network: &DockerNetwork) -> Option<u32> {
        let mtu = self.mtu().parse().ok()?;
        (Mtu::MIN..network.mtu.bytes()).contains(&mtu).then_some(mtu)
    }

    /// Returns the subnets as text, in the order of [`subnets`].
    fn addresses(&self, network: &DockerNetwork) -> String {
        let mut found: BTreeSet<Result<Subnet, String>> = self
            .subnets()
            .map(|text| text.parse().map_err(|_| text.escape_debug().to_string()))
            .collect();
        if network.subnet.is_none() {
            // An engine before 28 added this subnet; see `create_arguments`.
            found.retain(|subnet| !matches!(subnet, Ok(subnet) if subnet.family() == Family::V4));
        }
        let found: Vec<String> = found
            .into_iter()
            .map(|subnet| subnet.map_or_else(|text| text, |subnet| subnet.to_string()))
            .collect();
        join_subnets(&found)
    }

    pub(super) fn subnets(&self) -> impl Iterator<Item = &str> {
        self.ipam.config.iter().flatten().map(|pool| pool.subnet.as_str())
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.as_ref()?.get(name).map(String::as_str)
    }

    /// Returns whether a boolean option is off, by the rules of Docker (Go's `ParseBool`). A
    /// missing option is on.
    fn is_off(&self, name: &str) -> bool {
        self.option(name)
            .is_some_and(|text| ["0", "f", "F", "false", "FALSE", "False"].contains(&text))
    }
}

fn join_subnets(subnets: &[impl ToString]) -> String {
    if subnets.is_empty() {
        return "none".to_owned();
    }
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn on_or_off(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.to_owned()
}

//! The network configuration, from the standard input of the plugin. Unknown keys are ignored, as
//! the specification demands.

use std::net::IpAddr;
use std::path::PathBuf;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mtu, OverlayName, Subnet};
use serde::Deserialize;
use serde_json::Value;

use crate::allocation::Range;
use crate::error::{ErrorCode, PluginError};
use crate::mesos::{MesosArguments, RawArguments};
use crate::request::Attachment;
use crate::version::CniVersion;

/// The checked configuration of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The version of the result.
    pub version: CniVersion,
    /// The name of the network, which is the name of the overlay.
    pub name: OverlayName,
    /// The bridge of the containers.
    pub bridge: DeviceName,
    /// The MTU of the containers. `None` keeps the kernel's default.
    pub mtu: Option<Mtu>,
    /// Whether a container reaches itself through a port of the host.
    pub has_hairpin: bool,
    /// The directory of the leases. `None` is the default of host-local.
    pub data_dir: Option<PathBuf>,
    /// The addresses of the containers: IPv4, IPv6 or both, IPv4 first.
    pub ranges: Vec<Range>,
    /// The routes of the containers.
    pub routes: Vec<Route>,
    /// The subnets of the overlay's Docker half.
    pub docker_subnets: Vec<Subnet>,
    /// The key `args`. Only ADD reads it: DEL must not fail for what ADD refused.
    arguments: RawArguments,
    /// The name servers, passed through to the result.
    pub dns: Value,
    /// The result of the ADD that CHECK verifies.
    pub previous: Option<PreviousResult>,
    /// The attachments that GC keeps.
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// A route of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub destination: Subnet,
    /// The next hop. `None` is the bridge.
    pub gateway: Option<IpAddr>,
}

/// The result of an earlier ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreviousResult {
    /// The names of the interfaces.
    interfaces: Vec<String>,
    /// The addresses with the indices of their interfaces.
    addresses: Vec<(InterfaceAddress, Option<usize>)>,
}

impl PreviousResult {
    /// Returns the addresses of an interface, and those without an interface.
    pub fn addresses_of<'a>(
        &'a self,
        interface: &'a str,
    ) -> impl Iterator<Item = InterfaceAddress> + 'a {
        let is_of = move |index: Option<usize>| {
            let name = index.and_then(|index| self.interfaces.get(index));
            name.is_none_or(|name| name == interface)
        };
        self.addresses.iter().filter(move |(_, index)| is_of(*index)).map(|(ip, _)| *ip)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    name: String,
    bridge: String,
    is_gateway: Option<bool>,
    ip_masq: Option<bool>,
    hairpin_mode: Option<bool>,
    mtu: Option<u32>,
    ipam: RawIpam,
    #[serde(default)]
    docker_subnets: Vec<String>,
    #[serde(default)]
    args: RawArguments,
    dns: Option<Value>,
    prev_result: Option<RawResult>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIpam {
    data_dir: Option<PathBuf>,
    subnet: Option<String>,
    subnet6: Option<String>,
    #[serde(default)]
    routes: Vec<RawRoute>,
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
    gw: Option<IpAddr>,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(default)]
    interfaces: Vec<RawInterface>,
    #[serde(default)]
    ips: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawInterface {
    name: String,
}

#[derive(Deserialize)]
struct RawAddress {
    address: String,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVersion {
    cni_version: Option<String>,
}

/// Returns the version that a configuration declares.
///
/// # Errors
/// When the input is not JSON, or the plugin does not speak the version.
pub fn declared_version(input: &[u8]) -> Result<CniVersion, PluginError> {
    let raw: RawVersion = decode(input)?;
    CniVersion::declared(raw.cni_version.as_deref())
}

impl NetworkConfig {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// When the input is not JSON, a value is invalid, or the plugin does not support it.
    pub fn parse(input: &[u8]) -> Result<Self, PluginError> {
        let version = declared_version(input)?;
        let raw: RawConfig = decode(input)?;
        check_supported(&raw)?;
        let text = |error: &dyn std::fmt::Display, key: &str| invalid(format!("{key}: {error}"));
        let mtu = raw.mtu.filter(|mtu| *mtu > 0).map(Mtu::new).transpose();
        let subnets = raw.docker_subnets.iter().map(|subnet| subnet.parse::<Subnet>());
        let previous = raw.prev_result.map(previous).transpose()?;
        let valid = raw
            .valid_attachments
            .map(|all| all.iter().map(attachment).collect::<Result<Vec<_>, _>>());
        Ok(Self {
            version,
            name: raw.name.parse::<OverlayName>().map_err(|error| text(&error, "name"))?,
            bridge: raw.bridge.parse::<DeviceName>().map_err(|error| text(&error, "bridge"))?,
            mtu: mtu.map_err(|error| text(&error, "mtu"))?,
            has_hairpin: raw.hairpin_mode.unwrap_or(false),
            ranges: ranges(&raw.ipam)?,
            routes: raw.ipam.routes.iter().map(route).collect::<Result<_, _>>()?,
            data_dir: raw.ipam.data_dir,
            docker_subnets: subnets
                .collect::<Result<_, _>>()
                .map_err(|error| text(&error, "dockerSubnets"))?,
            arguments: raw.args,
            dns: raw.dns.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
            previous,
            valid_attachments: valid.transpose()?,
        })
    }

    /// Returns what the task asks for.
    ///
    /// # Errors
    /// When a label or a port mapping is invalid.
    pub fn mesos(&self) -> Result<MesosArguments, PluginError> {
        MesosArguments::from_raw(&self.arguments)
    }

    /// Returns the gateway of a family, which is the address of the bridge.
    #[must_use]
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        let range = self.ranges.iter().find(|range| range.subnet().family() == family)?;
        Some(range.gateway().address())
    }
}

/// Refuses values of bridge's keys that the plugin does not support.
fn check_supported(raw: &RawConfig) -> Result<(), PluginError> {
    for (key, is_supported, value) in [
        ("isGateway", raw.is_gateway.unwrap_or(true), "true"),
        ("ipMasq", !raw.ip_masq.unwrap_or(false), "false: the agent masquerades"),
    ] {
        if !is_supported {
            let message = format!("{key} has a value that is not supported");
            return Err(PluginError::new(ErrorCode::UnsupportedField, message)
                .with_details(format!("set it to {value}")));
        }
    }
    Ok(())
}

fn ranges(ipam: &RawIpam) -> Result<Vec<Range>, PluginError> {
    let keys =
        [("ipam.subnet", &ipam.subnet, Family::V4), ("ipam.subnet6", &ipam.subnet6, Family::V6)];
    let mut ranges = Vec::new();
    for (key, text, family) in keys {
        let Some(text) = text else { continue };
        let subnet = text.parse::<Subnet>().map_err(|error| invalid(format!("{key}: {error}")))?;
        if subnet.family() != family {
            return Err(invalid(format!("{key}: {subnet} is no {family} subnet")));
        }
        let range = Range::new(subnet).ok_or_else(|| {
            invalid(format!("{key}: {subnet} has no address for a container"))
                .with_details("add an overlay with a shorter prefix at the master")
        })?;
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Err(invalid("ipam.subnet and ipam.subnet6 are missing".to_owned()));
    }
    Ok(ranges)
}

fn route(raw: &RawRoute) -> Result<Route, PluginError> {
    let destination = raw.dst.parse::<Subnet>();
    let destination = destination.map_err(|error| invalid(format!("ipam.routes: {error}")))?;
    let is_same_family =
        raw.gw.is_none_or(|gateway| gateway.is_ipv4() == destination.first().is_ipv4());
    if !is_same_family {
        return Err(invalid(format!("ipam.routes: {destination} has a gateway of another family")));
    }
    Ok(Route { destination, gateway: raw.gw })
}

fn previous(raw: RawResult) -> Result<PreviousResult, PluginError> {
    let addresses = raw.ips.iter().map(|ip| {
        let address = ip.address.parse::<InterfaceAddress>();
        address.map(|address| (address, ip.interface))
    });
    Ok(PreviousResult {
        addresses: addresses
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(format!("prevResult.ips: {error}")))?,
        interfaces: raw.interfaces.into_iter().map(|interface| interface.name).collect(),
    })
}

fn attachment(raw: &RawAttachment) -> Result<Attachment, PluginError> {
    Attachment::new(&raw.container_id, &raw.ifname)
        .map_err(|error| invalid(format!("cni.dev/valid-attachments: {error}")))
}

fn decode<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, PluginError> {
    serde_json::from_slice(input).map_err(|error| {
        // A value of another type than expected is wrong configuration, and the rest is no JSON.
        let code =
            if error.is_data() { ErrorCode::InvalidConfiguration } else { ErrorCode::Decode };
        PluginError::new(code, format!("read the network configuration: {error}"))
    })
}

fn invalid(message: String) -> PluginError {
    PluginError::new(ErrorCode::InvalidConfiguration, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "name": "vxlan-1", "type": "mesos-overlay-cni", "bridge": "m-vxlan-1",
            "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1420,
            "dockerSubnets": ["192.168.0.128/25", "fd01:b::/81"],
            "ipam": {
                "type": "mesos-overlay-cni", "dataDir": "/run/mesos/cni",
                "subnet": "192.168.0.0/25", "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    fn parse(change: impl FnOnce(&mut Value)) -> Result<NetworkConfig, PluginError> {
        let mut config = base();
        change(&mut config);
        NetworkConfig::parse(config.to_string().as_bytes())
    }

    fn message(change: impl FnOnce(&mut Value)) -> String {
        let error = parse(change).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidConfiguration, "{error}");
        error.to_string()
    }

    #[test]
    fn config_of_agent_is_read() {
        let config = parse(|_| {}).unwrap();
        assert_eq!(config.version, CniVersion::V0_1_0);
        assert_eq!((config.name.as_str(), config.bridge.as_str()), ("vxlan-1", "m-vxlan-1"));
        assert_eq!((config.mtu.map(Mtu::bytes), config.has_hairpin), (Some(1420), true));
        assert_eq!(config.data_dir, Some(PathBuf::from("/run/mesos/cni")));
        assert_eq!(config.ranges, [Range::new("192.168.0.0/25".parse().unwrap()).unwrap()]);
        let default = Route { destination: "0.0.0.0/0".parse().unwrap(), gateway: None };
        assert_eq!(config.routes, [default]);
        assert_eq!(config.docker_subnets.len(), 2);
        assert_eq!(config.gateway(Family::V4), Some([192, 168, 0, 1].into()));
        assert_eq!(config.gateway(Family::V6), None);
        assert_eq!(config.mesos(), Ok(MesosArguments::default()));
        assert_eq!((config.dns, config.previous), (json!({}), None));
    }

    #[test]
    fn config_with_ipv6_has_two_ranges() {
        let config = parse(|config| {
            config["cniVersion"] = "1.0.0".into();
            config["ipam"]["subnet6"] = "fd01:b::8000:0:0/81".into();
            config["mtu"] = 0.into();
        });
        let config = config.unwrap();
        let families: Vec<Family> =
            config.ranges.iter().map(|range| range.subnet().family()).collect();
        assert_eq!(families, [Family::V4, Family::V6]);
        assert_eq!((config.version, config.mtu), (CniVersion::V1_0_0, None));
    }

    #[test]
    fn invalid_config_names_its_key() {
        let bridge = message(|config| config["bridge"] = "a/b".into());
        assert!(bridge.starts_with("bridge: "), "{bridge}");
        let name = message(|config| config["name"] = "../vxlan".into());
        assert!(name.starts_with("name: "), "{name}");
        let small = message(|config| config["ipam"]["subnet"] = "192.168.0.0/31".into());
        assert!(small.starts_with("ipam.subnet: 192.168.0.0/31 has no address"), "{small}");
        let family = message(|config| config["ipam"]["subnet"] = "fd01:b::/64".into());
        assert_eq!(family, "ipam.subnet: fd01:b::/64 is no IPv4 subnet");
        let none = message(|config| drop(config["ipam"].as_object_mut().unwrap().remove("subnet")));
        assert_eq!(none, "ipam.subnet and ipam.subnet6 are missing");
        let route = message(|config| config["ipam"]["routes"][0]["gw"] = "fd01::1".into());
        assert_eq!(route, "ipam.routes: 0.0.0.0/0 has a gateway of another family");
        let kind = message(|config| config["mtu"] = "1420".into());
        assert!(kind.starts_with("read the network configuration: invalid type"), "{kind}");
    }

    #[test]
    fn unsupported_values_are_refused() {
        for (key, value) in [("isGateway", false), ("ipMasq", true)] {
            let error = parse(|config| config[key] = value.into()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::UnsupportedField, "{key}");
        }
        let error = parse(|config| config["cniVersion"] = "2.0.0".into()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::IncompatibleVersion);
        let error = NetworkConfig::parse(b"{\"name\":").unwrap_err();
        assert_eq!(error.code(), ErrorCode::Decode);
    }

    #[test]
    fn previous_result_has_addresses_of_interface() {
        let config = parse(|config| {
            config["prevResult"] = json!({
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/proc/7/ns/net"}],
                "ips": [{"address": "192.168.0.2/25", "interface": 1},
                    {"address": "10.0.0.2/8", "interface": 0}, {"address": "10.1.0.2/8"}],
            });
        });
        let previous = config.unwrap().previous.unwrap();
        let of =
            |name: &str| previous.addresses_of(name).map(|ip| ip.to_string()).collect::<Vec<_>>();
        assert_eq!(of("eth0"), ["192.168.0.2/25", "10.1.0.2/8"]);
        assert_eq!(of("veth1"), ["10.0.0.2/8", "10.1.0.2/8"]);
    }

    #[test]
    fn valid_attachments_are_read() {
        let config = parse(|config| {
            config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
        });
        let valid = config.unwrap().valid_attachments;
        assert_eq!(valid, Some(vec![Attachment::new("a", "eth0").unwrap()]));
        let wrong = message(|config| {
            config["cni.dev/valid-attachments"] = json!([{"containerID": "/", "ifname": "e"}]);
        });
        assert!(wrong.starts_with("cni.dev/valid-attachments: "), "{wrong}");
    }
}

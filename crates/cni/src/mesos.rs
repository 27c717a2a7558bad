//! What Mesos adds to the configuration: the `NetworkInfo` of the task, with labels and port
//! mappings. clusterd's Docker executor adds nothing.

use std::net::IpAddr;

use overlay_types::escape::bounded_line;
use overlay_types::port_mapping::{PortMapping, PortProtocol};
use serde::Deserialize;

use crate::error::{ErrorCode, PluginError};

/// The label of `NetworkInfo` that asks for an address. It may occur once for each family.
pub const ADDRESS_LABEL: &str = "org.apache.mesos.overlay.address";
/// Most port mappings of a container.
const PORT_MAPPINGS_MAX: usize = 1024;
/// Most characters of an invalid value that a message repeats.
const SHOWN_MAX: usize = 80;

/// The arguments of Mesos that concern the plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MesosArguments {
    /// The addresses that the task asks for, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The ports of the host that lead to the container.
    pub port_mappings: Vec<PortMapping>,
}

/// The key `args` of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RawArguments {
    #[serde(rename = "org.apache.mesos", default)]
    mesos: RawMesos,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RawMesos {
    #[serde(default)]
    network_info: RawNetworkInfo,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RawNetworkInfo {
    #[serde(default)]
    labels: RawLabels,
    #[serde(default)]
    port_mappings: Vec<RawPortMapping>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RawLabels {
    #[serde(default)]
    labels: Vec<RawLabel>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RawLabel {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RawPortMapping {
    host_port: u32,
    container_port: u32,
    protocol: Option<String>,
}

impl MesosArguments {
    pub(crate) fn from_raw(raw: &RawArguments) -> Result<Self, PluginError> {
        let RawNetworkInfo { labels, port_mappings } = &raw.mesos.network_info;
        if port_mappings.len() > PORT_MAPPINGS_MAX {
            let message = format!("a container has at most {PORT_MAPPINGS_MAX} port mappings");
            return Err(PluginError::new(ErrorCode::PortMapping, message));
        }
        let labels = labels.labels.iter().filter(|label| label.key == ADDRESS_LABEL);
        let mut addresses = Vec::new();
        for label in labels {
            let address = parse_address(&label.value)?;
            if addresses.iter().any(|other: &IpAddr| other.is_ipv4() == address.is_ipv4()) {
                return Err(PluginError::new(
                    ErrorCode::AddressRefused,
                    format!("label {ADDRESS_LABEL} asks for two addresses of one family"),
                ));
            }
            addresses.push(address);
        }
        let mut port_mappings: Vec<PortMapping> =
            port_mappings.iter().map(port_mapping).collect::<Result<_, _>>()?;
        port_mappings.sort_unstable();
        port_mappings.dedup();
        let host_port = |mapping: &PortMapping| (mapping.protocol, mapping.host_port);
        let mut pairs = port_mappings.windows(2);
        if let Some(pair) = pairs.find(|pair| host_port(&pair[0]) == host_port(&pair[1])) {
            let (protocol, port) = host_port(&pair[0]);
            let message = format!("port {port}/{protocol} of the host is mapped to two ports");
            return Err(PluginError::new(ErrorCode::PortMapping, message));
        }
        Ok(Self { addresses, port_mappings })
    }
}

fn parse_address(text: &str) -> Result<IpAddr, PluginError> {
    text.trim().parse().map_err(|_| {
        let text = bounded_line(text, SHOWN_MAX);
        let message = format!("label {ADDRESS_LABEL}: '{text}' is no address");
        PluginError::new(ErrorCode::AddressRefused, message)
            .with_details("write one IPv4 or IPv6 address without a prefix length")
    })
}

fn port_mapping(raw: &RawPortMapping) -> Result<PortMapping, PluginError> {
    let invalid = |message: String| PluginError::new(ErrorCode::PortMapping, message);
    let port = |port: u32| {
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| invalid("a port mapping has a port outside of 1 to 65535".to_owned()))
    };
    let name = raw.protocol.as_deref().unwrap_or("tcp").to_ascii_lowercase();
    let protocol = PortProtocol::parse(&name).ok_or_else(|| {
        let message = format!("a port mapping has protocol '{}'", bounded_line(&name, SHOWN_MAX));
        invalid(message).with_details("write tcp or udp")
    })?;
    Ok(PortMapping {
        protocol,
        host_port: port(raw.host_port)?,
        container_port: port(raw.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(network_info: &str) -> Result<MesosArguments, PluginError> {
        let text = format!(r#"{{"org.apache.mesos":{{"network_info":{network_info}}}}}"#);
        MesosArguments::from_raw(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn network_info_of_mesos_is_read() {
        let arguments = parse(
            r#"{"name":"vxlan-1","groups":[],
                "labels":{"labels":[{"key":"a","value":"b"},{"key":"empty"},
                    {"key":"org.apache.mesos.overlay.address","value":" 192.168.0.7"},
                    {"key":"org.apache.mesos.overlay.address","value":"fd01:b::7"}]},
                "port_mappings":[{"host_port":8080,"container_port":80},
                    {"host_port":53,"container_port":5353,"protocol":"UDP"},
                    {"host_port":8080,"container_port":80,"protocol":"tcp"}]}"#,
        )
        .unwrap();
        assert_eq!(
            arguments.addresses,
            ["192.168.0.7".parse::<IpAddr>().unwrap(), "fd01:b::7".parse().unwrap()]
        );
        let mappings: Vec<String> =
            arguments.port_mappings.iter().map(ToString::to_string).collect();
        assert_eq!(mappings, ["8080/tcp to 80", "53/udp to 5353"]);
    }

    #[test]
    fn network_info_may_be_missing() {
        assert_eq!(parse("{}"), Ok(MesosArguments::default()));
        let none = serde_json::from_str(r#"{"other":{}}"#).unwrap();
        assert_eq!(MesosArguments::from_raw(&none), Ok(MesosArguments::default()));
    }

    #[test]
    fn wrong_address_or_port_is_refused() {
        let label = |value: &str| {
            let label = format!(r#"{{"key":"{ADDRESS_LABEL}","value":"{value}"}}"#);
            parse(&format!(r#"{{"labels":{{"labels":[{label},{label}]}}}}"#)).unwrap_err()
        };
        assert_eq!(label("192.168.0.7/24").code(), ErrorCode::AddressRefused);
        assert!(label("10.0.0.1").to_string().ends_with("two addresses of one family"));
        let ports = |mappings: &str| {
            let error = parse(&format!(r#"{{"port_mappings":[{mappings}]}}"#)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::PortMapping);
            error.to_string()
        };
        let outside = "a port mapping has a port outside of 1 to 65535";
        assert_eq!(ports(r#"{"host_port":0,"container_port":1}"#), outside);
        assert_eq!(ports(r#"{"host_port":1,"container_port":65536}"#), outside);
        assert_eq!(
            ports(r#"{"host_port":1,"container_port":1,"protocol":"sctp"}"#),
            "a port mapping has protocol 'sctp': write tcp or udp"
        );
        assert_eq!(
            ports(r#"{"host_port":1,"container_port":1},{"host_port":1,"container_port":2}"#),
            "port 1/tcp of the host is mapped to two ports"
        );
    }
}

//! The result of a command as JSON, for each version of the protocol.

use std::net::IpAddr;

use overlay_types::addr::{Family, InterfaceAddress, Mac, Mtu};
use serde_json::{Map, Value, json};

use crate::config::Route;
use crate::error::{ErrorCode, PluginError};
use crate::version::CniVersion;

/// The result of ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct AddResult {
    /// The interfaces that the plugin made, or the one that the container had before.
    pub interfaces: Vec<ResultInterface>,
    /// The addresses of the container.
    pub addresses: Vec<ResultAddress>,
    /// The routes that the plugin made.
    pub routes: Vec<Route>,
    /// The name servers of the configuration.
    pub dns: Value,
}

/// An interface of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultInterface {
    /// The name of the device.
    pub name: String,
    /// The MAC of the device.
    pub mac: Option<Mac>,
    /// The MTU of the device.
    pub mtu: Option<Mtu>,
    /// The path of the network namespace. `None` for a device of the host.
    pub sandbox: Option<String>,
}

/// An address of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultAddress {
    /// The address.
    pub address: InterfaceAddress,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The position of the interface in the result.
    pub interface: usize,
}

impl AddResult {
    /// Returns the JSON for the standard output.
    ///
    /// # Errors
    /// When the result has no IPv4 address, and the version is 0.1 or 0.2: clusterd ends its
    /// executor if a result has no `ip4`.
    pub fn to_json(&self, version: CniVersion) -> Result<String, PluginError> {
        let mut json = if version < CniVersion::V0_3_0 {
            self.to_first_form()?
        } else {
            self.to_list_form(version)
        };
        json.insert("cniVersion".to_owned(), version.as_str().into());
        json.insert("dns".to_owned(), self.dns.clone());
        Ok(Value::Object(json).to_string())
    }

    /// Returns the form of the versions 0.1 and 0.2: one address of each family.
    fn to_first_form(&self) -> Result<Map<String, Value>, PluginError> {
        let mut json = Map::new();
        for (key, family) in [("ip4", Family::V4), ("ip6", Family::V6)] {
            let mut addresses = self.addresses.iter();
            let Some(found) = addresses.find(|found| found.address.family() == family) else {
                continue;
            };
            let routes = self.routes.iter().filter(|it| it.destination.family() == family);
            let mut ip = json!({"ip": found.address.to_string()});
            if let Some(gateway) = found.gateway {
                ip["gateway"] = gateway.to_string().into();
            }
            let routes: Vec<Value> = routes.map(route).collect();
            if !routes.is_empty() {
                ip["routes"] = routes.into();
            }
            json.insert(key.to_owned(), ip);
        }
        if json.contains_key("ip4") {
            return Ok(json);
        }
        Err(missing_ipv4())
    }

    /// Returns the form of the versions from 0.3 on: lists of interfaces and addresses.
    fn to_list_form(&self, version: CniVersion) -> Map<String, Value> {
        let interfaces: Vec<Value> =
            self.interfaces.iter().map(|interface| interface.to_json(version)).collect();
        let addresses = self.addresses.iter().map(|found| {
            let mut ip = json!({
                "address": found.address.to_string(),
                "interface": found.interface,
            });
            if let Some(gateway) = found.gateway {
                ip["gateway"] = gateway.to_string().into();
            }
            if version < CniVersion::V1_0_0 {
                let is_v4 = found.address.family() == Family::V4;
                ip["version"] = if is_v4 { "4" } else { "6" }.into();
            }
            ip
        });
        let mut json = Map::new();
        json.insert("ips".to_owned(), addresses.collect());
        json.insert("interfaces".to_owned(), interfaces.into());
        json.insert("routes".to_owned(), self.routes.iter().map(route).collect());
        json
    }
}

/// Returns the error for a container without an IPv4 address, in a version of CNI before 0.3.
#[must_use]
pub fn missing_ipv4() -> PluginError {
    let message = "the container has no IPv4 address, which CNI 0.1 and 0.2 need";
    PluginError::new(ErrorCode::NoAddressForVersion, message)
        .with_details("set cniVersion to 1.0.0 if the containerizer reads its results")
}

impl ResultInterface {
    fn to_json(&self, version: CniVersion) -> Value {
        let mut json = json!({"name": self.name});
        if let Some(mac) = self.mac {
            json["mac"] = mac.to_string().into();
        }
        if let Some(mtu) = self.mtu.filter(|_| version >= CniVersion::V1_1_0) {
            json["mtu"] = mtu.bytes().into();
        }
        if let Some(sandbox) = &self.sandbox {
            json["sandbox"] = sandbox.as_str().into();
        }
        json
    }
}

fn route(route: &Route) -> Value {
    let mut json = json!({"dst": route.destination.to_string()});
    if let Some(gateway) = route.gateway {
        json["gw"] = gateway.to_string().into();
    }
    json
}

/// Returns the result of VERSION.
#[must_use]
pub fn version_json() -> String {
    let newest = CniVersion::ALL.into_iter().max().map(CniVersion::as_str);
    json!({"cniVersion": newest, "supportedVersions": CniVersion::names()}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        let interface = |name: &str, mac: &str, sandbox: Option<&str>| ResultInterface {
            name: name.to_owned(),
            mac: Some(mac.parse().unwrap()),
            mtu: Mtu::new(1420).ok(),
            sandbox: sandbox.map(str::to_owned),
        };
        let address = |address: &str, gateway: &str| ResultAddress {
            address: address.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            interface: 1,
        };
        let route =
            |destination: &str| Route { destination: destination.parse().unwrap(), gateway: None };
        AddResult {
            interfaces: vec![
                interface("veth1", "fe:00:00:00:00:01", None),
                interface("eth0", "02:4d:c0:a8:00:02", Some("/proc/7/ns/net")),
            ],
            addresses: vec![
                address("192.168.0.2/25", "192.168.0.1"),
                address("fd01:b::2/81", "fd01:b::1"),
            ],
            routes: vec![route("0.0.0.0/0"), route("::/0")],
            dns: json!({"nameservers": ["198.51.100.1"]}),
        }
    }

    fn json(version: CniVersion) -> Value {
        serde_json::from_str(&result().to_json(version).unwrap()).unwrap()
    }

    #[test]
    fn first_versions_have_one_address_of_each_family() {
        for version in [CniVersion::V0_1_0, CniVersion::V0_2_0] {
            assert_eq!(
                json(version),
                json!({
                    "cniVersion": version.as_str(),
                    "ip4": {"ip": "192.168.0.2/25", "gateway": "192.168.0.1",
                        "routes": [{"dst": "0.0.0.0/0"}]},
                    "ip6": {"ip": "fd01:b::2/81", "gateway": "fd01:b::1",
                        "routes": [{"dst": "::/0"}]},
                    "dns": {"nameservers": ["198.51.100.1"]},
                })
            );
        }
    }

    #[test]
    fn first_versions_refuse_result_without_ipv4() {
        let mut result = result();
        result.addresses.remove(0);
        let error = result.to_json(CniVersion::V0_2_0).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NoAddressForVersion);
        assert!(result.to_json(CniVersion::V0_3_0).is_ok());
    }

    #[test]
    fn later_versions_have_lists() {
        let expected = |version: CniVersion| {
            let mut interfaces = json!([
                {"name": "veth1", "mac": "fe:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:4d:c0:a8:00:02", "sandbox": "/proc/7/ns/net"},
            ]);
            let mut ips = json!([
                {"address": "192.168.0.2/25", "gateway": "192.168.0.1", "interface": 1},
                {"address": "fd01:b::2/81", "gateway": "fd01:b::1", "interface": 1},
            ]);
            if version < CniVersion::V1_0_0 {
                ips[0]["version"] = "4".into();
                ips[1]["version"] = "6".into();
            }
            if version == CniVersion::V1_1_0 {
                interfaces[0]["mtu"] = 1420.into();
                interfaces[1]["mtu"] = 1420.into();
            }
            json!({
                "cniVersion": version.as_str(), "interfaces": interfaces, "ips": ips,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dns": {"nameservers": ["198.51.100.1"]},
            })
        };
        for version in CniVersion::ALL.into_iter().filter(|it| *it >= CniVersion::V0_3_0) {
            assert_eq!(json(version), expected(version), "{version}");
        }
    }

    #[test]
    fn version_result_names_all_versions() {
        assert_eq!(
            version_json(),
            concat!(
                r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","#,
                r#""0.4.0","1.0.0","1.1.0"]}"#
            )
        );
    }
}

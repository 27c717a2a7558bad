//! Writes the text of a CNI configuration, and recognizes managed texts.
//!
//! The text has no `cniVersion`: Mesos reads only CNI results of versions 0.1 and 0.2, which
//! plugins return by default. With version 0.3 or later, Mesos does not see the container's
//! address.

use std::path::Path;

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::container_network::CniNetwork;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The CNI plugin of Mesos for port mappings. It delegates to the bridge plugin.
pub(super) const PORT_MAPPER_PLUGIN: &str = "mesos-cni-port-mapper";
/// The CNI plugin that makes the bridge and attaches containers to it.
pub(super) const BRIDGE_PLUGIN: &str = "bridge";
/// The CNI plugin that allocates addresses to containers.
pub(super) const IPAM_PLUGIN: &str = "host-local";

/// The CNI plugin of mesos-overlay. It replaces the plugins above.
pub(super) const OVERLAY_PLUGIN: &str = "mesos-overlay-cni";

/// The plugin that the configuration names first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `mesos-overlay-cni`, which also allocates the addresses.
    Overlay,
    /// The port mapper, which delegates to the bridge plugin.
    PortMapper,
    /// The bridge plugin itself, without port mappings.
    Plain,
}

/// Returns the file's content for `network`. In the port mapper's form it equals the content that
/// the C++ modules write, byte for byte.
///
/// # Errors
/// When `data_dir` is not UTF-8 text.
pub(super) fn render(
    network: &CniNetwork,
    form: Form,
    data_dir: Option<&Path>,
) -> serde_json::Result<Vec<u8>> {
    if form == Form::Overlay {
        return serde_json::to_vec(&overlay(network, data_dir));
    }
    let bridge = Bridge {
        name: (form == Form::Plain).then_some(network.name.as_str()),
        plugin: BRIDGE_PLUGIN,
        bridge: network.bridge.as_str(),
        is_gateway: true,
        ip_masq: false,
        hairpin_mode: true,
        mtu: network.mtu.bytes(),
        docker_subnets: None,
        ipam: HostLocal {
            plugin: IPAM_PLUGIN,
            data_dir,
            subnet: network.subnet.to_string(),
            subnet6: None,
            routes: vec![DEFAULT_ROUTE],
        },
    };
    if form == Form::Plain {
        return serde_json::to_vec(&bridge);
    }
    serde_json::to_vec(&PortMapper {
        name: network.name.as_str(),
        plugin: PORT_MAPPER_PLUGIN,
        exclude_devices: [network.bridge.as_str()],
        chain: network.bridge.as_str().to_ascii_uppercase(),
        delegate: bridge,
    })
}

/// Returns the configuration of `mesos-overlay-cni`: the plain form with other plugins, so that the
/// same checks of Mesos pass.
fn overlay<'a>(network: &'a CniNetwork, data_dir: Option<&'a Path>) -> Bridge<'a> {
    let subnets = network.docker_subnets.iter().map(ToString::to_string);
    let default6 = network.subnet6.map(|_| Route { dst: "::/0" });
    Bridge {
        name: Some(network.name.as_str()),
        plugin: OVERLAY_PLUGIN,
        bridge: network.bridge.as_str(),
        is_gateway: true,
        ip_masq: false,
        hairpin_mode: true,
        mtu: network.mtu.bytes(),
        docker_subnets: Some(subnets.collect()),
        ipam: HostLocal {
            plugin: OVERLAY_PLUGIN,
            data_dir,
            subnet: network.subnet.to_string(),
            subnet6: network.subnet6.map(|subnet| subnet.to_string()),
            routes: [DEFAULT_ROUTE].into_iter().chain(default6).collect(),
        },
    }
}

/// Returns whether this module or the C++ modules wrote `content` for `overlay`. The C++ modules
/// set no mark, so the overlay's name together with its bridge identifies the text.
pub(super) fn is_ours(content: &[u8], overlay: &OverlayName) -> bool {
    let Ok(found) = serde_json::from_slice::<ExistingConfig>(content) else {
        return false;
    };
    let own = overlay.mesos_bridge();
    let is_own_bridge = |plugin: Option<&str>, bridge: Option<&str>| {
        plugin == Some(BRIDGE_PLUGIN) && bridge == Some(own.as_str())
    };
    let is_overlay_plugin = found.plugin.as_deref() == Some(OVERLAY_PLUGIN);
    found.name.as_deref() == Some(overlay.as_str())
        && match (found.plugin.as_deref(), &found.delegate) {
            (Some(PORT_MAPPER_PLUGIN), Some(delegate)) => {
                is_own_bridge(delegate.plugin.as_deref(), delegate.bridge.as_deref())
            }
            (_, None) if is_overlay_plugin => found.bridge.as_deref() == Some(own.as_str()),
            (plugin, None) => is_own_bridge(plugin, found.bridge.as_deref()),
            _ => false,
        }
}

/// Returns the subnets of the containers in a managed file, IPv4 first.
pub(super) fn subnets_of(content: &[u8]) -> Vec<Subnet> {
    let found = serde_json::from_slice::<ExistingConfig>(content).ok();
    let ipam = found.and_then(|found| found.delegate.map_or(found.ipam, |delegate| delegate.ipam));
    let Some(ExistingIpam { subnet, subnet6 }) = ipam else { return Vec::new() };
    [subnet, subnet6].into_iter().flatten().filter_map(|subnet| subnet.parse().ok()).collect()
}

/// Returns the network name that Mesos reads from `content`.
pub(super) fn declared_name(content: &[u8]) -> Option<String> {
    let declared: Declared<'_> = serde_json::from_slice(content).ok()?;
    serde_json::from_str(declared.name.get()).ok()
}

// The order of the fields is the order of the keys in the file. It matches the C++ modules.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortMapper<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    plugin: &'a str,
    exclude_devices: [&'a str; 1],
    chain: String,
    delegate: Bridge<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bridge<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(rename = "type")]
    plugin: &'a str,
    bridge: &'a str,
    is_gateway: bool,
    ip_masq: bool,
    hairpin_mode: bool,
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_subnets: Option<Vec<String>>,
    ipam: HostLocal<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostLocal<'a> {
    #[serde(rename = "type")]
    plugin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<&'a Path>,
    subnet: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet6: Option<String>,
    routes: Vec<Route>,
}

#[derive(Serialize)]
struct Route {
    dst: &'static str,
}

const DEFAULT_ROUTE: Route = Route { dst: "0.0.0.0/0" };

#[derive(Deserialize)]
struct ExistingConfig {
    name: Option<String>,
    #[serde(rename = "type")]
    plugin: Option<String>,
    bridge: Option<String>,
    ipam: Option<ExistingIpam>,
    delegate: Option<ExistingDelegate>,
}

#[derive(Deserialize)]
struct ExistingDelegate {
    #[serde(rename = "type")]
    plugin: Option<String>,
    bridge: Option<String>,
    ipam: Option<ExistingIpam>,
}

#[derive(Deserialize)]
struct ExistingIpam {
    subnet: Option<String>,
    subnet6: Option<String>,
}

/// The name stays unparsed: a generic JSON value can take 90 times the memory of the file.
#[derive(Deserialize)]
struct Declared<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_name_without_text_takes_no_memory() {
        assert_eq!(declared_name(br#"{"a":1,"name":"b\u0041"}"#).as_deref(), Some("bA"));
        for content in ["{\"name\":7}", "{\"name\":null}", "{}", "[]", "{\"name\":\"a\""] {
            assert_eq!(declared_name(content.as_bytes()), None, "{content}");
        }
        let content = format!(r#"{{"name":[{}0]}}"#, r#"{"":0},"#.repeat(10_000));
        let allocated = allocation_counter::measure(|| {
            assert_eq!(declared_name(content.as_bytes()), None);
        });
        assert!(allocated.bytes_max < 1024, "{} bytes", allocated.bytes_max);
    }
}

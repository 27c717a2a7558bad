//! The text of a CNI configuration, and how a text of ours is recognised.
//!
//! There is no `cniVersion` in it: Mesos reads CNI results of the 0.1 and 0.2 shape only, which is
//! what the plugins answer when they are not asked for another. With 0.3 or later the container has
//! an address that Mesos does not see.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::addr::OverlayName;
use crate::agent::CniNetwork;

/// The CNI plugin of Mesos that publishes ports of containers; it delegates to the bridge plugin.
pub(super) const PORT_MAPPER_PLUGIN: &str = "mesos-cni-port-mapper";
/// The CNI plugin that makes the bridge and puts containers on it.
pub(super) const BRIDGE_PLUGIN: &str = "bridge";
/// The CNI plugin that gives containers their addresses.
pub(super) const IPAM_PLUGIN: &str = "host-local";

/// Which plugin Mesos is told to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The port mapper, which runs the bridge plugin.
    PortMapper,
    /// The bridge plugin itself: ports of containers cannot be published.
    Plain,
}

/// The file's content for `network`, byte for byte what the C++ modules write in the port mapper's
/// form. The one thing that can fail is a `data_dir` that is no UTF-8 text.
pub(super) fn render(
    network: &CniNetwork,
    form: Form,
    data_dir: Option<&Path>,
) -> serde_json::Result<Vec<u8>> {
    let bridge = Bridge {
        name: (form == Form::Plain).then_some(network.name.as_str()),
        plugin: BRIDGE_PLUGIN,
        bridge: network.bridge.as_str(),
        is_gateway: true,
        ip_masq: false,
        hairpin_mode: true,
        mtu: network.mtu.bytes(),
        ipam: HostLocal {
            plugin: IPAM_PLUGIN,
            data_dir,
            subnet: network.subnet.to_string(),
            routes: [Route { dst: "0.0.0.0/0" }],
        },
    };
    match form {
        Form::Plain => serde_json::to_vec(&bridge),
        Form::PortMapper => serde_json::to_vec(&PortMapper {
            name: network.name.as_str(),
            plugin: PORT_MAPPER_PLUGIN,
            exclude_devices: [network.bridge.as_str()],
            chain: network.bridge.as_str().to_ascii_uppercase(),
            delegate: bridge,
        }),
    }
}

/// Whether `content` is a configuration that this module or the C++ ones wrote for `overlay`. There
/// is no mark in it, since the C++ modules set none; what tells is the name together with the
/// bridge.
pub(super) fn is_ours(content: &[u8], overlay: &OverlayName) -> bool {
    let Ok(found) = serde_json::from_slice::<Found>(content) else {
        return false;
    };
    let own = overlay.mesos_bridge();
    let is_own_bridge = |plugin: Option<&str>, bridge: Option<&str>| {
        plugin == Some(BRIDGE_PLUGIN) && bridge == Some(own.as_str())
    };
    found.name.as_deref() == Some(overlay.as_str())
        && match (found.plugin.as_deref(), &found.delegate) {
            (Some(PORT_MAPPER_PLUGIN), Some(delegate)) => {
                is_own_bridge(delegate.plugin.as_deref(), delegate.bridge.as_deref())
            }
            (plugin, None) => is_own_bridge(plugin, found.bridge.as_deref()),
            _ => false,
        }
}

/// The network that Mesos reads from `content`, if any.
pub(super) fn declared_name(content: &[u8]) -> Option<String> {
    let declared: Declared<'_> = serde_json::from_slice(content).ok()?;
    serde_json::from_str(declared.name.get()).ok()
}

// The order of fields is the order of keys in the file, which is that of the C++ modules.

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
    routes: [Route<'a>; 1],
}

#[derive(Serialize)]
struct Route<'a> {
    dst: &'a str,
}

#[derive(Deserialize)]
struct Found {
    name: Option<String>,
    #[serde(rename = "type")]
    plugin: Option<String>,
    bridge: Option<String>,
    delegate: Option<FoundDelegate>,
}

#[derive(Deserialize)]
struct FoundDelegate {
    #[serde(rename = "type")]
    plugin: Option<String>,
    bridge: Option<String>,
}

/// The name is left as text: a generic value of it could take 90 times the memory of the file.
#[derive(Deserialize)]
struct Declared<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_name_that_is_no_text_takes_no_memory() {
        assert_eq!(declared_name(br#"{"a":1,"name":"b\u0041"}"#).as_deref(), Some("bA"));
        for content in ["{\"name\":7}", "{\"name\":null}", "{}", "[]", "{\"name\":\"a\""] {
            assert_eq!(declared_name(content.as_bytes()), None, "{content}");
        }
        let content = format!(r#"{{"name":[{}0]}}"#, r#"{"":0},"#.repeat(10_000));
        let taken = allocation_counter::measure(|| {
            assert_eq!(declared_name(content.as_bytes()), None);
        });
        assert!(taken.bytes_max < 1024, "{} bytes", taken.bytes_max);
    }
}

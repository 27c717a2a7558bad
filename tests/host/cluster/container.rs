//! A container that is connected to an overlay.

use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use super::Host;
use crate::cni::{plugin, try_plugin};
use crate::docker_daemon::IMAGE;
use crate::namespace::Namespace;

/// Default MTU of containers.
const MTU: u32 = 1420;

pub(super) struct Container {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) addresses: Vec<IpAddr>,
}

impl Container {
    /// Connects a namespace to the overlay with the plugin and the CNI configuration that the agent
    /// wrote, as the MesosContainerizer does.
    pub(super) fn for_mesos(host: &Host, overlay: &str) -> Self {
        Self::try_for_mesos(host, overlay).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Connects a namespace like [`Self::for_mesos`]. Returns the output of the plugin if it fails.
    pub(super) fn try_for_mesos(host: &Host, overlay: &str) -> Result<Self, String> {
        let namespace = Namespace::new();
        let configuration = configuration(host, overlay);
        let result = try_plugin(host.namespace(), "ADD", &configuration, &namespace)?;
        let address = result["ip4"]["ip"].as_str().and_then(|text| text.split_once('/'));
        let (address, _) = address.expect("an address with a length");
        let addresses = vec![address.parse().expect("a valid address")];
        Ok(Self { name: format!("{} mesos {overlay}", host.number), namespace, addresses })
    }

    /// Starts a Docker container, which ends with its daemon.
    pub(super) fn for_docker(host: &Host, overlay: &str) -> Self {
        let daemon = &host.daemon;
        // The container needs SIGKILL: process 1 of a container ignores SIGTERM by default.
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", overlay, "--net", overlay];
        daemon.succeed(&[&run[..], &[IMAGE, "/bin/busybox", "sleep", "600"]].concat());
        let inspect = |format: &str| {
            daemon.succeed(&["inspect", "--format", format, overlay]).trim().to_owned()
        };
        let network = format!("index .NetworkSettings.Networks \"{overlay}\"");
        let field = |key: &str| inspect(&format!("{{{{({network}).{key}}}}}"));
        let addresses = [field("IPAddress"), field("GlobalIPv6Address")];
        Self {
            name: format!("{} docker {overlay}", host.number),
            namespace: Namespace::of_process(&inspect("{{.State.Pid}}")),
            addresses: addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// Disconnects the container from the overlay.
    pub(super) fn leave(self, host: &Host, overlay: &str) {
        plugin(host.namespace(), "DEL", &configuration(host, overlay), &self.namespace);
    }

    pub(super) fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    pub(super) fn has_family_of(&self, family: &IpAddr) -> bool {
        self.addresses.iter().any(|address| address.is_ipv4() == family.is_ipv4())
    }
}

/// Reads the CNI configuration that the agent wrote.
fn configuration(host: &Host, overlay: &str) -> Value {
    let path = host.daemon.path("cni").join(format!("{overlay}.conf"));
    let content = fs::read(path).expect("file written by the agent");
    serde_json::from_slice(&content).expect("valid JSON")
}

/// Returns the payload sizes of pings to this address: a small one, and the largest for the MTU.
pub(super) const fn ping_sizes(address: &IpAddr) -> [u32; 2] {
    [16, MTU - if address.is_ipv4() { 28 } else { 48 }]
}

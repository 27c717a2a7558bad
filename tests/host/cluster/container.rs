//! A container in one of the overlays, and what reaches it.

use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use super::Host;
use crate::cni::plugin;
use crate::engine::IMAGE;
use crate::namespace::Namespace;

/// MTU of the containers, unless configured.
const MTU: u32 = 1420;

pub(super) struct Container {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) addresses: Vec<IpAddr>,
}

impl Container {
    /// One of the MesosContainerizer: a namespace that the plugin puts on the network, as the file
    /// says that the agent wrote.
    pub(super) fn of_mesos(host: &Host, overlay: &str) -> Self {
        let namespace = Namespace::new();
        let result = plugin(host.namespace(), "ADD", &configuration(host, overlay), &namespace);
        let address = result["ip4"]["ip"].as_str().and_then(|text| text.split_once('/'));
        let (address, _) = address.expect("an address with a length");
        let addresses = vec![address.parse().expect("it is an address")];
        Self { name: format!("{} mesos {overlay}", host.number), namespace, addresses }
    }

    /// One of the DockerContainerizer, which goes with its daemon.
    pub(super) fn of_docker(host: &Host, overlay: &str) -> Self {
        let engine = &host.engine;
        // Killed at the end: the first process of a container does not hear SIGTERM.
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", overlay, "--net", overlay];
        engine.succeed(&[&run[..], &[IMAGE, "/bin/busybox", "sleep", "600"]].concat());
        let inspect = |format: &str| {
            engine.succeed(&["inspect", "--format", format, overlay]).trim().to_owned()
        };
        let network = format!("index .NetworkSettings.Networks \"{overlay}\"");
        let of = |key: &str| inspect(&format!("{{{{({network}).{key}}}}}"));
        let addresses = [of("IPAddress"), of("GlobalIPv6Address")];
        Self {
            name: format!("{} docker {overlay}", host.number),
            namespace: Namespace::of_process(&inspect("{{.State.Pid}}")),
            addresses: addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// It leaves the network.
    pub(super) fn leave(self, host: &Host, overlay: &str) {
        plugin(host.namespace(), "DEL", &configuration(host, overlay), &self.namespace);
    }

    pub(super) fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    pub(super) fn has(&self, family: &IpAddr) -> bool {
        self.addresses.iter().any(|address| address.is_ipv4() == family.is_ipv4())
    }
}

/// What the agent wrote for Mesos.
fn configuration(host: &Host, overlay: &str) -> Value {
    let path = host.engine.path("cni").join(format!("{overlay}.conf"));
    let content = fs::read(path).expect("the agent wrote it");
    serde_json::from_slice(&content).expect("it is JSON")
}

/// Payloads of a ping to this address: a small one, and one that fills a packet of a container.
pub(super) const fn sizes(address: &IpAddr) -> [u32; 2] {
    [16, MTU - if address.is_ipv4() { 28 } else { 48 }]
}

//! The keys of the configuration files, the parameters of the Mesos modules, and the messages about
//! unknown keys.

use overlay_types::secret;

use super::text::{abbreviate, one_line};

/// The keys of one object, or all the parameters of one module.
#[derive(Debug)]
pub(super) struct Schema {
    /// Describes the object in a message about a key that is in the wrong object.
    description: &'static str,
    /// The word for one of its keys.
    noun: &'static str,
    keys: &'static [&'static str],
    /// Objects whose keys are accepted as well.
    included: &'static [&'static Self],
}

/// The network file, and `network` of `master_config`.
pub(super) const NETWORK: Schema = object(
    "the network",
    &[
        "vtep_subnet",
        "vtep_subnet6",
        "vtep_mac_oui",
        "vtep_mtu",
        "vtep_vni",
        "vtep_name",
        "vtep_port",
        "overlays",
    ],
);
/// One of `overlays`.
pub(super) const OVERLAY: Schema = object(
    "an overlay of 'overlays'",
    &["name", "subnet", "prefix", "subnet6", "prefix6", "vni", "enabled"],
);
/// `master_config`.
pub(super) const MASTER: Schema = object(
    "master_config",
    &[
        "network",
        "zk",
        "replicated_log_dir",
        "replicated_log_timeout",
        "reuse_after",
        "store",
        "work_dir",
        "limits",
        "acls",
        "hostnames",
        "credentials",
        "authentication",
    ],
);
/// `limits` of `master_config` and of `agent_config`.
pub(super) const LIMITS: Schema = object(
    "'limits'",
    &[
        "connections",
        "connections_per_address",
        "http_connections",
        "http_connections_per_address",
        "request_bytes",
        "request_bytes_per_address",
        "response_bytes",
        "response_bytes_per_address",
        "requests",
        "requests_per_address",
        "messages_per_second",
        "messages_per_second_per_address",
        "registrations_per_second",
        "registrations_per_second_per_address",
        "unsent_bytes",
        "unsent_bytes_per_address",
        "connects",
        "connects_per_address",
        "request_timeout",
        "write_timeout",
        "http_idle_timeout",
    ],
);
/// `acls` of `master_config` and of `agent_config`.
pub(super) const ACLS: Schema = object("'acls'", &["read", "write"]);
/// `zk` of `master_config`.
pub(super) const ZOOKEEPER: Schema =
    object("'zk' of master_config", &["url", "quorum", "session_timeout"]);
/// `agent_config`.
pub(super) const AGENT: Schema = object(
    "agent_config",
    &[
        "master",
        "cni_dir",
        "cni_data_dir",
        "cni_plugins_dir",
        "cni_plugin",
        "port_mapper",
        "docker",
        "network_config",
        "max_configuration_attempts",
        "verify_interval",
        "dataplane",
        "underlay",
        "firewall",
        "masquerade",
        "isolate_overlays",
        "overlay_ingress",
        "known_agents_only",
        "forwarding",
        "vxlan_checksum",
        "host_settings",
        "refuse_collisions",
        "direct_routing",
        "probe_rate",
        "repair_offloads",
        "state_dir",
        "limits",
        "acls",
        "hostnames",
        "credential",
        "authentication",
    ],
);
/// `network_config` of `agent_config`.
pub(super) const AGENT_NETWORK: Schema = object(
    "'network_config' of agent_config",
    &[
        "allocate_subnet",
        "mesos_bridge",
        "docker_bridge",
        "overlay_mtu",
        "command_timeout",
        "enable_ipv6",
    ],
);
/// The parameters of the master module. `overlays` comes from [`NETWORK`].
pub(super) const MASTER_MODULE: Schema = Schema {
    description: "the parameters of the master module",
    noun: "parameter",
    keys: &["master_config"],
    included: &[&NETWORK, &MASTER, &ZOOKEEPER, &LIMITS],
};
/// The parameters of the agent module.
pub(super) const AGENT_MODULE: Schema = Schema {
    description: "the parameters of the agent module",
    noun: "parameter",
    keys: &["agent_config"],
    included: &[&AGENT, &AGENT_NETWORK, &LIMITS],
};

/// All schemas. Operators easily write a key into the wrong object or into the wrong file.
const ALL: [&Schema; 10] = [
    &NETWORK,
    &OVERLAY,
    &MASTER,
    &LIMITS,
    &ACLS,
    &ZOOKEEPER,
    &AGENT,
    &AGENT_NETWORK,
    &MASTER_MODULE,
    &AGENT_MODULE,
];

/// A longer name resembles no key. The cost of a comparison is the product of both lengths.
const COMPARED_MAX: usize = 64;

impl Schema {
    pub(super) fn has(&self, name: &str) -> bool {
        self.names().any(|key| key == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().chain(self.included.iter().flat_map(|schema| schema.keys)).copied()
    }

    /// Returns the key most similar to `name`.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        nearest_key(name, self.names())
    }

    /// Describes the unknown key `name`, with a suggestion.
    pub(super) fn describe_unknown(&self, name: &str) -> String {
        let noun = self.noun;
        if let Some(other) = ALL.iter().find(|schema| schema.keys.contains(&name)) {
            format!("is no {noun} here: it belongs in {}", other.description)
        } else if let Some(key) = self.nearest(name) {
            format!("is no {noun}: did you mean '{key}'?")
        } else {
            let names: Vec<_> = self.names().collect();
            format!("is no {noun}: the {noun}s here are {}", names.join(", "))
        }
    }
}

/// Returns the name of `names` that is most similar to `name`. At most a third of its letters may
/// differ.
#[must_use]
pub fn nearest_key<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > COMPARED_MAX {
        return None;
    }
    let lower = name.to_lowercase().replace('-', "_");
    let distances = names.map(|key| (strsim::damerau_levenshtein(&lower, key), key));
    distances
        .filter(|(distance, key)| *distance <= key.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

const fn object(description: &'static str, keys: &'static [&'static str]) -> Schema {
    Schema { description, noun: "key", keys, included: &[] }
}

/// Returns the path of the key `name` in the object at `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    let name = if secret::may_contain_part(name) {
        secret::HIDDEN.to_owned()
    } else {
        one_line(&abbreviate(name, COMPARED_MAX))
    };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_documented() {
        let page = include_str!("../../../docs/configuration.md");
        for schema in ALL {
            for key in schema.keys {
                assert!(page.contains(&format!("| `{key}` |")), "no row for '{key}'");
            }
        }
    }

    #[test]
    fn keys_belong_to_one_object() {
        let mut keys: Vec<_> = ALL.iter().flat_map(|schema| schema.keys).collect();
        // Both configurations have these keys.
        for shared in ["limits", "acls", "hostnames", "authentication"] {
            let position = keys.iter().position(|key| **key == shared);
            keys.remove(position.expect("a shared key"));
        }
        keys.sort_unstable();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count, "the hint which object a key belongs to would be ambiguous");
    }
}

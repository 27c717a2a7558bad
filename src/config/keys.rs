//! The keys of the configuration files, the parameters of the Mesos modules, and what is said to
//! someone who writes another one.

use super::problem::{abbreviate, one_line};

/// The keys of one object, or all the parameters of one module.
#[derive(Debug)]
pub(super) struct Schema {
    /// Where such an object stands, as said to someone who wrote one of its keys elsewhere.
    place: &'static str,
    /// What its keys are called.
    noun: &'static str,
    keys: &'static [&'static str],
    /// Objects whose keys are taken as well.
    others: &'static [&'static Self],
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
        "known_agents_only",
        "host_settings",
        "refuse_collisions",
        "state_dir",
        "limits",
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
/// The parameters of the master module. `overlays` is in the network.
pub(super) const MASTER_MODULE: Schema = Schema {
    place: "the parameters of the master module",
    noun: "parameter",
    keys: &["master_config"],
    others: &[&NETWORK, &MASTER, &ZOOKEEPER, &LIMITS],
};
/// The parameters of the agent module.
pub(super) const AGENT_MODULE: Schema = Schema {
    place: "the parameters of the agent module",
    noun: "parameter",
    keys: &["agent_config"],
    others: &[&AGENT, &AGENT_NETWORK, &LIMITS],
};

/// All of them: a key of one object is easily written into another, or into the other file.
const ALL: [&Schema; 9] = [
    &NETWORK,
    &OVERLAY,
    &MASTER,
    &LIMITS,
    &ZOOKEEPER,
    &AGENT,
    &AGENT_NETWORK,
    &MASTER_MODULE,
    &AGENT_MODULE,
];

/// A name longer than this resembles no key; comparing it would cost its length times that of each
/// key.
const COMPARED_MAX: usize = 64;

impl Schema {
    pub(super) fn has(&self, name: &str) -> bool {
        self.names().any(|key| key == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().chain(self.others.iter().flat_map(|other| other.keys)).copied()
    }

    /// The key that `name` was probably meant to be: a third of its letters may be wrong.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        if name.len() > COMPARED_MAX {
            return None;
        }
        let lower = name.to_lowercase().replace('-', "_");
        let distances = self.names().map(|key| (strsim::damerau_levenshtein(&lower, key), key));
        distances
            .filter(|(distance, key)| *distance <= key.len() / 3)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, key)| key)
    }

    /// What to say about the key `name`, which is none of these.
    pub(super) fn unknown(&self, name: &str) -> String {
        let noun = self.noun;
        if let Some(other) = ALL.iter().find(|schema| schema.keys.contains(&name)) {
            format!("is no {noun} here: it belongs in {}", other.place)
        } else if let Some(key) = self.nearest(name) {
            format!("is no {noun}: did you mean '{key}'?")
        } else {
            let names: Vec<_> = self.names().collect();
            format!("is no {noun}: the {noun}s here are {}", names.join(", "))
        }
    }
}

const fn object(place: &'static str, keys: &'static [&'static str]) -> Schema {
    Schema { place, noun: "key", keys, others: &[] }
}

/// The path of the key `name` in the object at `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    let name = one_line(&abbreviate(name, COMPARED_MAX));
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../docs/configuration.md");
        for schema in ALL {
            for key in schema.keys {
                assert!(page.contains(&format!("| `{key}` |")), "no row for '{key}'");
            }
        }
    }

    #[test]
    fn a_key_belongs_in_one_place_only() {
        let mut keys: Vec<_> = ALL.iter().flat_map(|schema| schema.keys).collect();
        // Both configurations have limits.
        let limits = keys.iter().position(|key| **key == "limits");
        keys.remove(limits.expect("it is there"));
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all, "the advice where a key belongs would be ambiguous");
    }
}

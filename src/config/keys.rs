//! The keys of the configuration files, and what is said to someone who writes another one.

use super::problem::{abbreviate, one_line};

/// The keys of one object.
#[derive(Debug)]
pub(super) struct Schema {
    /// Where such an object stands, as said to someone who wrote one of its keys elsewhere.
    place: &'static str,
    keys: &'static [&'static str],
}

/// The network file, and `network` of `master_config`.
pub(super) const NETWORK: Schema = Schema {
    place: "the network",
    keys: &["vtep_subnet", "vtep_subnet6", "vtep_mac_oui", "vtep_mtu", "overlays"],
};
/// One of `overlays`.
pub(super) const OVERLAY: Schema = Schema {
    place: "an overlay of 'overlays'",
    keys: &["name", "subnet", "prefix", "subnet6", "prefix6", "enabled"],
};
/// `master_config`.
pub(super) const MASTER: Schema = Schema {
    place: "master_config",
    keys: &["network", "zk", "replicated_log_dir", "replicated_log_timeout", "reuse_after"],
};
/// `zk` of `master_config`.
pub(super) const ZOOKEEPER: Schema =
    Schema { place: "'zk' of master_config", keys: &["url", "quorum", "session_timeout"] };
/// `agent_config`.
pub(super) const AGENT: Schema = Schema {
    place: "agent_config",
    keys: &[
        "master",
        "cni_dir",
        "cni_data_dir",
        "cni_plugins_dir",
        "port_mapper",
        "docker",
        "network_config",
        "max_configuration_attempts",
        "verify_interval",
    ],
};
/// `network_config` of `agent_config`.
pub(super) const AGENT_NETWORK: Schema = Schema {
    place: "'network_config' of agent_config",
    keys: &[
        "allocate_subnet",
        "mesos_bridge",
        "docker_bridge",
        "overlay_mtu",
        "command_timeout",
        "enable_ipv6",
    ],
};

/// All of them: a key of one object is easily written into another, or into the other file.
const ALL: [&Schema; 6] = [&NETWORK, &OVERLAY, &MASTER, &ZOOKEEPER, &AGENT, &AGENT_NETWORK];

/// A name longer than this resembles no key; comparing it would cost its length times that of each
/// key.
const COMPARED_MAX: usize = 64;

impl Schema {
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.contains(&name)
    }

    /// The key that `name` was probably meant to be: a third of its letters may be wrong.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        if name.len() > COMPARED_MAX {
            return None;
        }
        let lower = name.to_lowercase().replace('-', "_");
        let distances =
            self.keys.iter().map(|&key| (strsim::damerau_levenshtein(&lower, key), key));
        distances
            .filter(|(distance, key)| *distance <= key.len() / 3)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, key)| key)
    }

    /// What to say about the key `name`, which is none of these.
    pub(super) fn unknown(&self, name: &str) -> String {
        if let Some(other) = ALL.iter().find(|schema| schema.has(name)) {
            format!("is no key here: it belongs in {}", other.place)
        } else if let Some(key) = self.nearest(name) {
            format!("is no key: did you mean '{key}'?")
        } else {
            format!("is no key: the keys here are {}", self.keys.join(", "))
        }
    }
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
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all, "the advice where a key belongs would be ambiguous");
    }
}

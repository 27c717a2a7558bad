//! The options of the dataplane, and the rules of the firewall that follow from them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use overlay_config::{DataplaneConfig, FirewallKind, ForwardingKind, OverlayIngress};
use overlay_linux::firewall::{self, Backend, Forwarding, Ingress};
use overlay_linux::host::HostLock;
use overlay_types::tunnel::Desired;

use super::local_masters::LocalMasters;
use super::own_address::has_address;

/// The options of the dataplane.
#[derive(Debug, Clone)]
pub struct DataplaneOptions {
    /// The backend of the firewall rules. `None` selects the best available backend.
    pub firewall: Option<Backend>,
    /// The options of the firewall rules.
    pub rules: firewall::Options,
    /// Whether new VXLAN devices send UDP packets with a checksum.
    pub vxlan_checksum: bool,
    /// Interval of the complete verification.
    pub verify_interval: Duration,
    /// Whether the agent manages the settings of the host. Otherwise the operator manages them.
    pub host_settings: bool,
    /// The directory of the former host settings, of the firewall rules for the next start of the
    /// host, and of the lock of the agent that programs the host.
    pub state_dir: PathBuf,
}

impl DataplaneOptions {
    /// Returns the options of the configuration. `control_ports` are closed to containers: see
    /// [`firewall::Options::control_ports`].
    #[must_use]
    pub fn new(
        config: &DataplaneConfig,
        control_ports: BTreeSet<u16>,
        verify_interval: Duration,
    ) -> Self {
        Self {
            firewall: match config.firewall {
                FirewallKind::Auto => None,
                FirewallKind::Nftables => Some(Backend::Nftables),
                FirewallKind::Iptables => Some(Backend::Iptables),
                FirewallKind::None => Some(Backend::None),
            },
            rules: firewall::Options {
                masquerade: config.masquerade,
                known_agents_only: config.known_agents_only,
                isolate: config.isolate_overlays,
                ingress: match config.overlay_ingress {
                    OverlayIngress::Open => Ingress::Open,
                    OverlayIngress::Closed => Ingress::Closed,
                },
                forwarding: match config.forwarding {
                    ForwardingKind::Tracked => Forwarding::Tracked,
                    ForwardingKind::Untracked => Forwarding::Untracked,
                    ForwardingKind::Shortcut => Forwarding::Shortcut,
                },
                control_ports,
                local_ports: BTreeSet::new(),
            },
            vxlan_checksum: config.vxlan_checksum,
            verify_interval,
            host_settings: config.host_settings,
            state_dir: config.state_dir.clone(),
        }
    }

    /// Returns the options of the rules for a desired state.
    pub(super) fn rules_for(
        &self,
        desired: &Desired,
        local_masters: &mut LocalMasters,
    ) -> firewall::Options {
        let mut rules = self.rules.clone();
        rules.local_ports.extend(local_masters.ports(&desired.masters, has_address));
        // A master that sends no peers names no senders, so all are accepted.
        rules.known_agents_only &= !desired.accepts_every_sender;
        rules
    }

    /// Warns if an earlier agent has programmed this host. An agent without a dataplane does not
    /// maintain that state, and outdated state drops packets.
    pub(super) fn warn_stale_dataplane(&self) {
        if HostLock::is_stale(&self.state_dir) {
            log::warn!(
                "an agent with dataplane vxlan has programmed this host ({}), and no agent \
                 maintains that dataplane now: until a reboot its firewall drops packets of agents \
                 that join later: stop this agent and run `mesos-overlay clean`, or set dataplane \
                 to vxlan again",
                HostLock::path_in(&self.state_dir).display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_local_master_and_for_master_without_peers() {
        let config = DataplaneConfig::default();
        let options = DataplaneOptions::new(&config, [5051].into(), Duration::ZERO);
        let masters = ["127.0.0.1:5050", "192.0.2.1:5060"].map(|master| master.parse().unwrap());
        let mut desired = Desired { masters: masters.into(), ..Desired::default() };
        let mut local = LocalMasters::default();
        let rules = options.rules_for(&desired, &mut local);
        assert_eq!((rules.control_ports, rules.local_ports), ([5051].into(), [5050].into()));
        assert!(rules.known_agents_only);
        desired.accepts_every_sender = true;
        assert!(!options.rules_for(&desired, &mut local).known_agents_only);
    }
}

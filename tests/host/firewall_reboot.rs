//! A host that starts again: its agent loads the rules of the time before, although no master
//! answers.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use overlay_linux::firewall::{Backend, Firewall, Options, RulesFile, Ruleset};

use crate::docker_daemon::{TIMEOUT, sleep_poll_interval};
use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::require_root_and_files;
use crate::process::Process;
use crate::traffic::can_ping;

/// A host with an overlay, and a stranger with a route to its containers.
struct Setup {
    hosts: Hosts,
    backend: Backend,
}

impl Setup {
    fn new(backend: Backend) -> Self {
        require_root_and_files(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let setup = Self { hosts: Hosts::new(2, Underlay::V4), backend };
        let desired = setup.hosts.desired(setup.host());
        setup.host().verify(&desired);
        setup.host().apply_settings(&desired);
        setup.stranger().namespace.run("ip route add 192.168.1.0/24 via 10.0.0.1");
        setup
    }

    fn host(&self) -> &Host {
        &self.hosts.hosts[0]
    }

    fn stranger(&self) -> &Host {
        &self.hosts.hosts[1]
    }

    fn state_dir(&self) -> PathBuf {
        self.host().dir.path().join("state")
    }

    fn log(&self) -> PathBuf {
        self.host().dir.path().join("agent.log")
    }

    /// Makes the rules, as an agent with a master does, and removes them from the kernel, as a reboot
    /// does.
    fn make_rules_and_reboot(&self) {
        let desired = self.hosts.desired(self.host());
        let mut firewall = Firewall::new(self.backend);
        firewall.keep_in(&self.state_dir());
        self.host().namespace.inside(|| {
            firewall.verify(&Ruleset::new(&desired, &Options::default())).expect("rules");
        });
        assert!(!self.arrives(), "{:?}: closed by the rules", self.backend);
        self.remove_rules();
        assert!(self.arrives(), "{:?}: open without rules", self.backend);
    }

    fn remove_rules(&self) {
        let clean = || Firewall::new(Backend::None).clean();
        self.host().namespace.inside(clean).expect("the rules are removed");
    }

    fn has_rules(&self) -> bool {
        let found = self.host().namespace.inside(Firewall::list_owned);
        !found.expect("the rules are listed").is_empty()
    }

    /// Returns whether a datagram of the stranger arrives in the container.
    fn arrives(&self) -> bool {
        let address = SocketAddr::new(self.host().address().into(), 7008);
        let receiver =
            self.host().container.inside(|| UdpSocket::bind(address).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket timeout");
        self.stranger().namespace.inside(|| {
            let sender = UdpSocket::bind("0.0.0.0:0").expect("a free port");
            sender.send_to(b"test", address).expect("a route");
        });
        receiver.recv_from(&mut [0; 8]).is_ok()
    }

    /// Starts an agent whose master does not answer.
    fn start_agent(&self, firewall: &str) -> Process {
        let dir = self.host().dir.path();
        let config = serde_json::json!({
            "master": "10.0.0.99:5050",
            "cni_dir": dir.join("cni"),
            "network_config": { "docker_bridge": false },
            "firewall": firewall,
            "state_dir": self.state_dir(),
        });
        let path = dir.join("agent.json");
        fs::write(&path, config.to_string()).expect("an agent_config");
        let path = path.to_str().expect("a UTF-8 path");
        let arguments = ["agent", "--config", path, "--listen", "10.0.0.1:5051"];
        Process::start(&self.host().namespace, &self.log(), "", &arguments)
    }

    fn wait_for(&self, what: &str, is_reached: impl Fn() -> bool) {
        let mut waited = Duration::ZERO;
        while !is_reached() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(waited < TIMEOUT, "{:?}: {what}\n{log}", self.backend);
            waited += sleep_poll_interval();
        }
    }

    fn logs(&self, text: &str) -> bool {
        fs::read_to_string(self.log()).unwrap_or_default().contains(text)
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn rebooted_host_is_closed_before_a_master_answers() {
    for (backend, firewall) in [(Backend::Nftables, "nftables"), (Backend::Iptables, "iptables")] {
        let setup = Setup::new(backend);
        setup.make_rules_and_reboot();
        let agent = setup.start_agent(firewall);
        setup.wait_for("the agent loads the rules", || setup.logs("loaded those of"));
        assert!(
            setup.has_rules() && !setup.arrives(),
            "{backend:?}: a stranger reaches a container"
        );
        // The host itself reaches its container, and the agent runs.
        let address = setup.host().address().into();
        assert!(can_ping(&setup.host().namespace, address, 16), "{backend:?}");
        assert!(agent.stop());

        setup.remove_rules();
        let path = RulesFile::new(&setup.state_dir()).path().to_owned();
        let content = fs::read(&path).expect("the file stays");
        fs::write(&path, &content[..content.len() / 2]).expect("a damaged file");
        let agent = setup.start_agent(firewall);
        let warning = format!("{}: it is damaged: remove it", path.display());
        setup.wait_for("the agent reports the file", || setup.logs(&warning));
        assert!(!setup.has_rules(), "{backend:?}: half of the rules");
        assert!(agent.stop(), "{backend:?}: the agent runs without the file");
    }
}

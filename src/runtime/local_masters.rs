//! Which masters run on this host. Such a master is reached at every address of the host, so the
//! firewall closes its port as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use overlay_types::repetition::Repetitions;

/// The masters of which it is known whether they run on this host.
#[derive(Debug, Default)]
pub(super) struct LocalMasters {
    known: BTreeMap<Ipv4Addr, bool>,
    problems: Repetitions,
}

impl LocalMasters {
    /// Returns the ports of the masters on this host. If it cannot be found out whether the host has
    /// an address, the former answer stays. Without a former answer the port is closed.
    pub(super) fn ports(
        &mut self,
        masters: &BTreeSet<SocketAddrV4>,
        has_address: impl Fn(IpAddr) -> Option<bool>,
    ) -> BTreeSet<u16> {
        let mut is_certain = true;
        let mut ports = BTreeSet::new();
        self.known.retain(|known, _| masters.iter().any(|master| master.ip() == known));
        for master in masters {
            let address = *master.ip();
            let is_local = match has_address(address.into()) {
                Some(is_local) => {
                    self.known.insert(address, is_local);
                    is_local
                }
                None => {
                    is_certain = false;
                    self.unknown(*master)
                }
            };
            ports.extend(is_local.then_some(master.port()));
        }
        if is_certain {
            self.problems.clear();
        }
        ports
    }

    /// Returns the former answer for a master.
    fn unknown(&mut self, master: SocketAddrV4) -> bool {
        let is_local = self.known.get(master.ip()).copied().unwrap_or(true);
        let port = master.port();
        let state = if is_local { "closed" } else { "as before" };
        let problem = format!(
            "cannot find out whether this host has the address of master {master}: for containers \
             port {port} of this host stays {state}: see whether the agent has free file descriptors \
             and memory"
        );
        if let Some(repetition) = self.problems.note(&problem) {
            log::warn!("{problem}{repetition}");
        }
        is_local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_address_keeps_former_answer() {
        let masters: BTreeSet<SocketAddrV4> =
            ["192.0.2.1:5050", "192.0.2.2:5060"].map(|master| master.parse().unwrap()).into();
        let mut local = LocalMasters::default();
        // The first job: both ports are closed until the answer is known.
        assert_eq!(local.ports(&masters, |_| None), [5050, 5060].into());
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(local.ports(&masters, |address| Some(address == own)), [5050].into());
        assert_eq!(local.ports(&masters, |_| None), [5050].into());
        // The address has moved.
        assert_eq!(local.ports(&masters, |address| Some(address != own)), [5060].into());
        assert_eq!(local.ports(&masters, |_| None), [5060].into());
        assert_eq!(local.ports(&BTreeSet::new(), |_| None), [].into());
        assert_eq!(local.ports(&masters, |_| None), [5050, 5060].into(), "forgotten with it");
    }
}

//! The masters that are programs of their own. Containers need no connection to them, so the
//! firewall closes their ports. The port of a Mesos master stays open: schedulers in containers
//! connect to it.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use overlay_types::protocol::MasterKind;

use super::event::FoundMasters;

/// The masters that the agent knows.
#[derive(Debug, Default)]
pub(super) struct Masters {
    /// The candidates of the election that are masters of this program.
    elected: BTreeSet<SocketAddrV4>,
    /// The addresses of the configured name.
    named: BTreeSet<SocketAddrV4>,
    /// Whether the last assignment from an address of the name came from a program.
    is_named_program: bool,
    /// The master that sent the last assignment, if it said that it is a program. It stays until
    /// the next master assigns, so that a failover opens nothing.
    assigning: Option<SocketAddrV4>,
    /// Whether the master that sent the last assignment sends the table of peers.
    sends_peers: bool,
}

impl Masters {
    pub(super) fn set_found(&mut self, found: FoundMasters) {
        match found {
            FoundMasters::Elected(addresses) => self.elected = addresses,
            FoundMasters::Named(addresses) => self.named = addresses,
        }
    }

    /// Notes the assignment of the master at `address`, and what it says of itself.
    pub(super) fn note_assignment(&mut self, address: SocketAddrV4, kind: MasterKind) {
        let is_program = kind == MasterKind::Program;
        self.assigning = is_program.then_some(address);
        self.sends_peers = kind.sends_peers();
        if self.named.contains(&address) {
            self.is_named_program = is_program;
        }
    }

    /// Returns whether the master that sent the last assignment sends the table of peers.
    pub(super) const fn sends_peers(&self) -> bool {
        self.sends_peers
    }

    /// Returns the addresses of all masters that are programs.
    pub(super) fn programs(&self) -> BTreeSet<SocketAddrV4> {
        let named = self.named.iter().filter(|_| self.is_named_program);
        self.elected.iter().chain(&self.assigning).chain(named).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> BTreeSet<SocketAddrV4> {
        last.iter().map(|last| SocketAddrV4::new([10, 0, 0, *last].into(), 5050)).collect()
    }

    fn address(last: u8) -> SocketAddrV4 {
        addresses(&[last]).pop_first().unwrap()
    }

    #[test]
    fn mesos_master_stays_open() {
        let mut masters = Masters::default();
        masters.set_found(FoundMasters::Named(addresses(&[1, 2])));
        assert_eq!(masters.programs(), addresses(&[]), "it may be a Mesos master");
        masters.note_assignment(address(1), MasterKind::Module);
        assert_eq!(masters.programs(), addresses(&[]));
    }

    #[test]
    fn program_closes_all_addresses_of_its_name() {
        let mut masters = Masters::default();
        masters.set_found(FoundMasters::Named(addresses(&[1, 2])));
        masters.note_assignment(address(1), MasterKind::Program);
        assert_eq!(masters.programs(), addresses(&[1, 2]));
        masters.set_found(FoundMasters::Named(addresses(&[3])));
        assert_eq!(masters.programs(), addresses(&[1, 3]), "the known master stays");
        masters.note_assignment(address(3), MasterKind::Program);
        assert_eq!(masters.programs(), addresses(&[3]));
        masters.note_assignment(address(3), MasterKind::Other);
        assert_eq!(masters.programs(), addresses(&[]), "a module replaced the program");
    }

    #[test]
    fn standby_is_closed_before_it_leads() {
        let mut masters = Masters::default();
        masters.set_found(FoundMasters::Elected(addresses(&[1, 2])));
        assert_eq!(masters.programs(), addresses(&[1, 2]));
        masters.note_assignment(address(1), MasterKind::Program);
        masters.set_found(FoundMasters::Elected(addresses(&[2])));
        assert_eq!(masters.programs(), addresses(&[1, 2]), "the last master stays");
        masters.note_assignment(address(2), MasterKind::Program);
        assert_eq!(masters.programs(), addresses(&[2]));
    }
}

//! Receives events when another program changes nftables rules. Current versions of iptables make
//! nftables rules as well. An event only triggers a verification, which reads the rules itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use std::{fs, io};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::generation::{NFGENMSG, NFT_MSG_NEWGEN};
use crate::dataplane::message::{Message, attributes, messages, text, u32_at};
use crate::dataplane::socket::{Netlink, has_lost_messages};

/// The multicast group for changes of nftables rules.
const GROUP: u32 = libc::NFNLGRP_NFTABLES as u32;
/// Maximum number of datagrams that are taken at once. Another program may change rules faster than
/// this process reads.
const EVENTS_MAX: usize = 65_536;
/// Size of the kernel's receive buffer in bytes. It holds the events of our own rules, which stay in
/// it while they are made: with 5,000 peers they have about 20,000 elements.
const KERNEL_BUFFER: usize = 32 * 1024 * 1024;
/// Removals, from `linux/netfilter/nf_tables.h`.
const NFT_MSG_DELTABLE: u16 = 0x0a02;
const NFT_MSG_DELCHAIN: u16 = 0x0a05;
const NFT_MSG_DELRULE: u16 = 0x0a08;
/// The table of an object, or its own name if it is a table.
const NFTA_TABLE: u16 = 1;
/// The name of a chain. The chain of a rule has a lower number.
const NFTA_CHAIN_NAME: u16 = 3;
/// The managed table.
const TABLE: &str = "mesos_overlay";
/// The table of the port mappings, which the CNI plugin changes and the inspection does not need.
const PORTS_TABLE: &str = "mesos_overlay_ports";
/// The first word of the managed chains of iptables.
const CHAINS: &str = "MESOS-OVERLAY";
/// The chains of other programs that lead to managed chains.
const JUMPING_CHAINS: [&str; 6] =
    ["FORWARD", "DOCKER-USER", "INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"];
/// The process of a transaction, from `linux/netfilter/nf_tables.h`.
const NFTA_GEN_PROC_PID: u16 = 2;
/// The name of the process, of at most 15 bytes.
const NFTA_GEN_PROC_NAME: u16 = 3;
/// The first words of the names of the programs that make rules for us.
const PROGRAMS: [&str; 4] = ["nft", "iptables", "ip6tables", "xtables"];
/// The first namespace of processes: the kernel gives it this number (`PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// Result of waiting for changes by other programs, in the order of their scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulesEvent {
    /// No change.
    None,
    /// Rules of other programs changed.
    Foreign,
    /// Another program changed managed rules.
    Managed,
    /// Events are lost, so another program may have changed managed rules.
    Lost,
}

/// A subscription to the kernel's events.
#[derive(Debug)]
pub struct Monitor {
    netlink: Netlink,
    /// Whether the events name processes by the numbers that this process knows.
    names_processes: bool,
    transaction: Transaction,
}

impl Monitor {
    /// Opens a monitor of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nftables, or the process has no `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
        netlink.set_kernel_buffer(KERNEL_BUFFER)?;
        netlink.join(&[GROUP])?;
        let names_processes = is_in_first_namespace();
        Ok(Self { netlink, names_processes, transaction: Transaction::default() })
    }

    /// Waits for changes by other programs than the processes `own`, at most for `timeout`, and
    /// takes all that are pending. The kernel reports a change before it acknowledges the request,
    /// so all changes of programs that have ended are pending.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn take(&mut self, timeout: Duration, own: &[u32]) -> io::Result<RulesEvent> {
        let mut widest = RulesEvent::None;
        let mut timeout = timeout;
        for _ in 0..EVENTS_MAX {
            self.netlink.set_timeout(timeout)?;
            timeout = Duration::ZERO;
            match self.netlink.receive() {
                Ok(bytes) => {
                    for message in messages(bytes) {
                        let event = self.transaction.add(&message, own, self.names_processes);
                        widest = widest.max(event);
                    }
                }
                Err(error) if has_lost_messages(&error) => {
                    widest = RulesEvent::Lost;
                    self.transaction = Transaction::default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(widest)
    }
}

/// The changes of a transaction, which has not ended yet.
#[derive(Debug, Default)]
struct Transaction {
    /// Whether a managed rule, or the jump to one, may be among the changes.
    is_of_managed: bool,
    /// Whether port mappings are among the changes.
    is_of_ports: bool,
    /// Whether other rules are among the changes.
    is_of_others: bool,
}

impl Transaction {
    /// Adds a message. The last one names the program that made the changes.
    fn add(&mut self, message: &Message<'_>, own: &[u32], names_processes: bool) -> RulesEvent {
        if message.kind != NFT_MSG_NEWGEN {
            let is_of_ports = is_of_port_mappings(message);
            self.is_of_ports |= is_of_ports;
            self.is_of_others |= !is_of_ports;
            self.is_of_managed |= !is_of_ports && is_of_managed(message);
            return RulesEvent::None;
        }
        let Self { is_of_managed, is_of_ports, is_of_others } = std::mem::take(self);
        let is_only_of_ports = is_of_ports && !is_of_others;
        if is_only_of_ports || is_of_own(message, own, names_processes) {
            RulesEvent::None
        } else if is_of_managed {
            RulesEvent::Managed
        } else {
            RulesEvent::Foreign
        }
    }
}

/// Returns whether a message is about a managed rule, or about the removal of a rule that may lead
/// to managed rules.
fn is_of_managed(message: &Message<'_>) -> bool {
    let words: Vec<(u16, String)> = attributes(message.body, NFGENMSG)
        .filter(|(kind, _)| (NFTA_TABLE..=NFTA_CHAIN_NAME).contains(kind))
        .map(|(kind, value)| (kind, text(value)))
        .collect();
    let is_removal = matches!(message.kind, NFT_MSG_DELTABLE | NFT_MSG_DELCHAIN | NFT_MSG_DELRULE);
    words.iter().any(|(kind, word)| {
        (*kind == NFTA_TABLE && word == TABLE)
            || word.starts_with(CHAINS)
            || (is_removal && JUMPING_CHAINS.contains(&word.as_str()))
    }) || message.kind == NFT_MSG_DELTABLE
}

/// Returns whether a message is about an object of the table of the port mappings.
fn is_of_port_mappings(message: &Message<'_>) -> bool {
    let mut objects = attributes(message.body, NFGENMSG);
    objects.any(|(kind, value)| kind == NFTA_TABLE && text(value) == PORTS_TABLE)
}

/// Returns whether one of our programs made a transaction. Without `names_processes`, the number of
/// the process means nothing here, so each program of a firewall that ran at the same time as ours
/// counts as ours.
fn is_of_own(end: &Message<'_>, own: &[u32], names_processes: bool) -> bool {
    let (mut process, mut program) = (None, None);
    for (kind, value) in attributes(end.body, NFGENMSG) {
        match kind {
            NFTA_GEN_PROC_PID => process = u32_at(value, 0).map(u32::from_be),
            NFTA_GEN_PROC_NAME => program = Some(text(value)),
            _ => {}
        }
    }
    if names_processes && let Some(process) = process {
        return own.contains(&process);
    }
    // Kernels before 4.13 name no program.
    let is_firewall = program.is_none_or(|name| PROGRAMS.iter().any(|own| name.starts_with(own)));
    !own.is_empty() && is_firewall
}

/// Returns whether the numbers of processes in events are those of this process: the kernel names
/// them as the first namespace of processes does.
fn is_in_first_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == FIRST_NAMESPACE)
}

impl AsFd for Monitor {
    /// The descriptor is readable while events are pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.borrowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::message::Batch;

    fn end(process: u32, program: &str) -> Vec<u8> {
        let mut batch = Batch::default();
        batch.begin(NFT_MSG_NEWGEN, 0, &[0; NFGENMSG]);
        batch.attribute(NFTA_GEN_PROC_PID, &process.to_be_bytes());
        batch.text(NFTA_GEN_PROC_NAME, program);
        batch.finish(1, 0).to_vec()
    }

    /// Returns the event of one transaction with one message.
    fn event(
        kind: u16,
        [table, chain]: [&str; 2],
        end: &[u8],
        own: &[u32],
        named: bool,
    ) -> RulesEvent {
        let mut batch = Batch::default();
        batch.begin(kind, 0, &[0; NFGENMSG]);
        batch.text(NFTA_TABLE, table);
        batch.text(NFTA_TABLE + 1, chain);
        let bytes = [batch.finish(1, 0), end].concat();
        let mut transaction = Transaction::default();
        let events = messages(&bytes).map(|message| transaction.add(&message, own, named));
        events.max().unwrap()
    }

    #[test]
    fn transactions_of_other_processes_are_foreign() {
        let of = |end: &[u8], own: &[u32], named| {
            event(NFT_MSG_DELRULE, ["mesos_overlay", "forward"], end, own, named)
        };
        let ours = end(77, "nft");
        assert_eq!(of(&ours, &[5, 77], true), RulesEvent::None);
        assert_eq!(of(&ours, &[5], true), RulesEvent::Managed);
        // In a container the numbers differ.
        assert_eq!(of(&ours, &[5], false), RulesEvent::None);
        assert_eq!(of(&ours, &[], false), RulesEvent::Managed, "no program of ours ran");
        assert_eq!(of(&end(77, "firewalld"), &[5], false), RulesEvent::Managed);
    }

    #[test]
    fn only_changes_that_may_affect_managed_rules_are_managed() {
        let end = end(77, "iptables-restor");
        let of = |kind, words| event(kind, words, &end, &[5], true);
        assert_eq!(of(NFT_MSG_DELRULE, ["nat", "KUBE-SERVICES"]), RulesEvent::Foreign);
        assert_eq!(of(0x0a06, ["filter", "FORWARD"]), RulesEvent::Foreign, "a new rule");
        assert_eq!(of(NFT_MSG_DELRULE, ["filter", "FORWARD"]), RulesEvent::Managed);
        assert_eq!(of(NFT_MSG_DELRULE, ["filter", "MESOS-OVERLAY"]), RulesEvent::Managed);
        assert_eq!(of(NFT_MSG_DELTABLE, ["filter", ""]), RulesEvent::Managed);
        assert_eq!(of(NFT_MSG_DELTABLE, ["mesos_overlay_ports", ""]), RulesEvent::None);
        assert_eq!(of(NFT_MSG_DELRULE, ["mesos_overlay_ports", "output"]), RulesEvent::None);
    }

    proptest::proptest! {
        #[test]
        fn parser_accepts_arbitrary_bytes(body: Vec<u8>, kind: u16) {
            for kind in [kind, NFT_MSG_NEWGEN] {
                let message = Message { kind, flags: 0, sequence: 0, port: 0, body: &body };
                Transaction::default().add(&message, &[1], true);
            }
        }
    }
}

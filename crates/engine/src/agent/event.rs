//! The events of the agent.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use overlay_types::addr::{DeviceName, OverlayName, Upid};
use overlay_types::address_usage::HalfAddresses;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{
    AgentCredential, AuthenticityFault, Message, MessageKind, RequestId,
};
use overlay_types::tunnel::{
    Collision, DirectReport, Fault, OffloadVerdict, ProbeReport, UnderlayMtu,
};

use super::command::Scope;
use super::refusal::FoundNetworks;
use crate::authentication::AuthenticationStatus;

/// What an attempt found out about a container network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkDetails {
    /// A difference that does not prevent the use of the network, one sentence.
    pub note: Option<String>,
    /// The program that attaches containers to the network. `None` for Docker.
    pub plugin: Option<&'static str>,
}

/// An event. The runtime creates events from the reports of its adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time of [`next_timeout`](crate::state_machine::StateMachine::next_timeout) has come.
    Timeout,
    /// The detector found the leading master, or that there is none.
    Detected(Option<SocketAddrV4>),
    /// The detector found all masters of the cluster that it can know, such as those on standby.
    FoundMasters(FoundMasters),
    /// The linked connection to this address has ended or could not be made.
    Exited(SocketAddrV4),
    /// A well-formed message. Its sender and content are not verified. An agent with a credential
    /// gets it only if it is authentic, or if unauthenticated masters are permitted.
    Message {
        /// The sender that the message names.
        from: Upid,
        /// The content.
        message: Message,
    },
    /// A message that is not authentic. The runtime did not decode it.
    Unauthentic {
        /// The sender that the message names.
        from: Upid,
        /// The kind of the message.
        kind: MessageKind,
        /// Why the message is refused.
        fault: AuthenticityFault,
    },
    /// The session with the master has another status.
    AuthenticationChanged(AuthenticationStatus),
    /// The file of the credential has another content.
    CredentialChanged(AgentCredential),
    /// A message that could not be decoded.
    Malformed {
        /// The sender that the message names.
        from: Upid,
        /// The name of the message, as received.
        name: String,
        /// Why the message could not be decoded.
        reason: String,
    },
    /// A message that is not for an agent, or not from its master. The runtime did not decode it.
    Ignored {
        /// The sender that the message names.
        from: Upid,
        /// The kind of the message.
        kind: MessageKind,
    },
    /// The result of [`super::Command::Apply`].
    Applied {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The overlay, from the command.
        overlay: OverlayName,
        /// The network of the overlay, from the command.
        kind: NetworkKind,
        /// What is known about the network.
        details: NetworkDetails,
        /// Success if the network is as desired, or why it is not.
        result: Result<(), String>,
    },
    /// An attempt created a container network, or created it again because another process had
    /// removed or changed it. [`Self::Applied`] follows.
    Remade {
        /// The overlay.
        overlay: OverlayName,
        /// The network of the overlay.
        kind: NetworkKind,
    },
    /// The result of [`super::Command::Inspect`].
    Inspected {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The MTU of the underlay, if it is known.
        underlay_mtu: Option<UnderlayMtu>,
        /// The collisions, or why the host could not be inspected.
        result: Result<Vec<Collision>, String>,
    },
    /// The result of [`super::Command::Program`].
    Programmed {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The changes and the faults.
        result: Programmed,
    },
    /// The result of [`super::Command::Probe`].
    Probed {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The outcomes, or why no packet can be sent.
        result: Result<ProbeReport, String>,
    },
    /// The result of [`super::Command::TestOffloads`].
    OffloadsTested {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// What the test says, or why it was not possible.
        result: Result<OffloadVerdict, String>,
    },
    /// The result of [`super::Command::CountAddresses`].
    AddressesCounted {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The addresses of each half that has IPv4.
        halves: Vec<HalfAddresses>,
    },
    /// Another process changed the host's network, possibly a managed object.
    Drifted(Scope),
    /// The result of [`super::Command::RetainDocker`]: the networks that remain, one sentence each,
    /// or why the removal failed as a whole.
    Removed(Result<Vec<String>, String>),
    /// The result of a removal of CNI configurations: why some remain, one sentence each.
    CniRemoved(Vec<String>),
    /// The managed container networks of this kind on the host, or why they cannot be listed. The
    /// runtime lists them at the start.
    FoundNetworks {
        /// The kind of the networks.
        kind: NetworkKind,
        /// The networks, by overlay.
        networks: Result<FoundNetworks, String>,
    },
    /// The Docker daemon accepts connections, after an attempt failed since it did not run.
    DockerStarted,
    /// The addresses of the managed VXLAN devices at the start.
    FoundVteps(Vec<IpAddr>),
    /// Why the agent cannot be reached at its address: the host does not have it any more. `None`
    /// when the host has the address again.
    OwnAddress(Option<String>),
    /// A request over HTTP. The client waits for the [`super::Command::Reply`] with this id.
    Request(RequestId, Request),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Detected(Some(address)) => write!(f, "detected master {address}"),
            Self::Detected(None) => f.write_str("detected no master"),
            Self::FoundMasters(FoundMasters::Elected(addresses)) => {
                write!(f, "found {} programs in the election", addresses.len())
            }
            Self::FoundMasters(FoundMasters::Named(addresses)) => {
                write!(f, "the master's name has {} addresses", addresses.len())
            }
            Self::Exited(address) => write!(f, "connection to {address} ended"),
            Self::Message { from, message } => write!(f, "{message} from {from}"),
            Self::Unauthentic { from, kind, fault } => {
                write!(f, "refused {kind} from {from}: {fault}")
            }
            Self::AuthenticationChanged(status) => write!(f, "authentication: {status:?}"),
            Self::CredentialChanged(credential) => {
                write!(f, "another credential, of principal '{}'", credential.principal)
            }
            Self::Ignored { from, kind } => write!(f, "ignored {kind} from {from}"),
            Self::Malformed { from, name, reason } => {
                write!(f, "malformed {} from {from}: {reason}", name.escape_debug())
            }
            Self::Applied { attempt, overlay, kind, result, .. } => {
                let result = result.as_ref().map_or_else(String::as_str, |()| "done");
                write!(f, "attempt {attempt}, {kind} of {overlay}: {result}")
            }
            Self::Remade { overlay, kind } => write!(f, "created {kind} of {overlay}"),
            Self::Inspected { attempt, result: Ok(collisions), .. } => {
                write!(f, "attempt {attempt}, inspected: {} collisions", collisions.len())
            }
            Self::Inspected { attempt, result: Err(reason), .. } => {
                write!(f, "attempt {attempt}, not inspected: {reason}")
            }
            Self::Programmed { attempt, result: Programmed { changes, faults, .. } } => {
                let faults = faults.len();
                write!(f, "attempt {attempt}, programmed: {changes} changes, {faults} faults")
            }
            Self::Probed { attempt, result: Ok(report) } => {
                let replies = report.outcomes.iter().filter(|outcome| outcome.has_reply()).count();
                write!(f, "probe {attempt}: {replies} of {} answered", report.outcomes.len())
            }
            Self::Probed { attempt, result: Err(reason) } => {
                write!(f, "probe {attempt}: not sent: {reason}")
            }
            Self::OffloadsTested { attempt, result: Ok(verdict) } => {
                write!(f, "test {attempt}: offloads: {verdict:?}")
            }
            Self::OffloadsTested { attempt, result: Err(reason) } => {
                write!(f, "test {attempt}: offloads not tested: {reason}")
            }
            Self::AddressesCounted { attempt, .. } => write!(f, "counted addresses: {attempt}"),
            Self::Drifted(scope) => write!(f, "drifted: {scope:?}"),
            Self::Removed(Ok(kept)) => write!(f, "removed but for {} docker networks", kept.len()),
            Self::Removed(Err(reason)) => write!(f, "no docker networks removed: {reason}"),
            Self::CniRemoved(failures) => {
                write!(f, "removed cni configurations with {} failures", failures.len())
            }
            Self::FoundNetworks { kind, networks: Ok(networks) } => {
                write!(f, "found {} {kind}s", networks.len())
            }
            Self::FoundNetworks { kind, networks: Err(reason) } => {
                write!(f, "found no {kind}s: {reason}")
            }
            Self::DockerStarted => f.write_str("the docker daemon started"),
            Self::FoundVteps(vteps) => write!(f, "found {} VTEP addresses", vteps.len()),
            Self::OwnAddress(None) => f.write_str("the host has the agent's address"),
            Self::OwnAddress(Some(problem)) => f.write_str(problem),
            Self::Request(id, request) => write!(f, "request {}: {request:?}", id.0),
        }
    }
}

/// The result of programming the host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// The number of changes.
    pub changes: u64,
    /// Descriptions of the first changes.
    pub examples: Vec<String>,
    /// Differences from the desired state that remain.
    pub faults: Vec<Fault>,
    /// Objects of other programs that may drop packets, one sentence each. Packets pass them on most
    /// hosts, so they matter only if packets are lost.
    pub possible_causes: Vec<String>,
    /// The rules of the firewall. `None` if the host may have no rules, or outdated rules.
    pub firewall: Option<FirewallState>,
    /// The bridges of overlays that another process removed, and that were not added again.
    pub gone_bridges: BTreeSet<DeviceName>,
    /// Leases of containers that are gone, which were released.
    pub leases_released: u64,
    /// Problems that do not stop containers yet, one sentence each. `None` if the job did not look
    /// for them.
    pub warnings: Option<Vec<String>>,
    /// The MTU of the underlay, if it is known.
    pub underlay_mtu: Option<UnderlayMtu>,
    /// The containers that keep another MTU than the desired one, or that another program cut off,
    /// one sentence for each bridge.
    pub container_problems: Vec<String>,
    /// Whether packets can go to peers without encapsulation. `None` if direct routing is off, or if
    /// the job did not find out.
    pub direct: Option<DirectReport>,
}

/// The rules of the firewall after a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallState {
    /// The program of the rules: `nftables` or `iptables`. `none` if the operator maintains them.
    pub backend: &'static str,
    /// How the source of a packet inside of the tunnel is checked, for the health. `None` if it is
    /// not checked.
    pub inner_check: Option<&'static str>,
    /// How packets between containers of different agents pass this host, for the health.
    pub forwarding: &'static str,
    /// Whether the rules keep the known agents of earlier rules, because the table of peers is
    /// missing.
    pub keeps_agents: bool,
}

impl Programmed {
    /// The number of changes that are described.
    pub const EXAMPLES: usize = 3;

    /// Counts changes and keeps the descriptions of the first.
    pub fn add(&mut self, changes: impl ExactSizeIterator<Item: ToString>) {
        self.changes += changes.len() as u64;
        let missing = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(changes.take(missing).map(|change| change.to_string()));
    }

    /// Describes the changes in one line.
    pub(super) fn summary(&self) -> String {
        let described = self.examples.join(", ");
        match self.changes.saturating_sub(self.examples.len() as u64) {
            0 => described,
            more => format!("{described}, and {more} more"),
        }
    }
}

/// Masters that the detector found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundMasters {
    /// The candidates of the election that are masters of this program, including those on standby.
    Elected(BTreeSet<SocketAddrV4>),
    /// The addresses of the configured name, which may be those of Mesos masters.
    Named(BTreeSet<SocketAddrV4>),
}

/// A request over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The assignments of all overlays, with their status.
    Overlay,
    /// The health of the agent.
    Health,
    /// The probes of all peers, with at most this number of peers named.
    Probes(usize),
    /// The addresses of containers.
    Addresses(AddressQuery),
    /// The metrics of the agent.
    Metrics,
}

/// Which addresses of containers a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressQuery {
    /// The overlay. `None` for all overlays.
    pub overlay: Option<OverlayName>,
    /// The most addresses that the reply lists. The counts are those of all addresses.
    pub limit: usize,
}

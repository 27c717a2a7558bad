//! Watches the addresses under which master and peers reach the agent. When the host loses one, the
//! answers of the master do not arrive, and every other symptom leads to a wrong remedy.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use overlay_engine::agent::{Agent, Event};
use overlay_linux::source::source_towards;

use super::inbox::Inbox;

/// Interval of the checks. A check takes a few system calls.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What an operator does when the host has lost the address of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressRemedy {
    /// Nothing: the program finds the new address of the host and registers again.
    Follow,
    /// The address is a flag of the program.
    Flag,
    /// Mesos chose the address.
    Mesos,
}

impl fmt::Display for AddressRemedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follow => {
                "give it back to the host, or give the host another address: the agent registers \
                 with that one"
            }
            Self::Flag => {
                "give it back to the host, or restart the agent with another --advertise or --listen"
            }
            Self::Mesos => {
                "give it back to the host, or restart the Mesos agent with its new address as --ip \
                 or --advertise_ip"
            }
        })
    }
}

/// Returns whether the host has this address, or `None` if that cannot be found out now: a process
/// without free descriptors or memory knows nothing about the addresses.
///
/// The kernel chooses an address of the host as the source of packets to itself. A socket can be
/// bound to any address on hosts with `ip_nonlocal_bind`, so binding does not show it.
pub(crate) fn has_address(address: IpAddr) -> Option<bool> {
    // The port has no meaning: no packet is sent.
    judge(source_towards(None, SocketAddr::new(address, 9)), address)
}

/// Judges the source address that the kernel chooses for packets to `address`.
fn judge(source: io::Result<IpAddr>, address: IpAddr) -> Option<bool> {
    match source {
        Ok(source) if source == address => Some(true),
        Err(error) if lacks_resources(&error) => None,
        // The source is the first address of a subnet, also for packets to another address of this
        // host in that subnet.
        Ok(_) | Err(_) => is_on_device(address),
    }
}

/// Returns whether a device has this address, or `None` if that cannot be found out now.
fn is_on_device(address: IpAddr) -> Option<bool> {
    let found = |device: InterfaceAddress| {
        let found = device.address?;
        let v4 = found.as_sockaddr_in().map(|found| found.ip().into());
        v4.or_else(|| found.as_sockaddr_in6().map(|found| found.ip().into()))
    };
    match getifaddrs() {
        Ok(devices) => Some(devices.filter_map(found).any(|found: IpAddr| found == address)),
        Err(_) => None,
    }
}

fn lacks_resources(error: &io::Error) -> bool {
    /// ENOMEM, ENFILE, EMFILE and ENOBUFS of errno.h.
    const RESOURCES: [i32; 4] = [12, 23, 24, 105];

    error.raw_os_error().is_some_and(|code| RESOURCES.contains(&code))
}

/// Sends an event when the host loses one of the addresses, and when it has all of them again. An
/// address that the host does not have at the start is not watched: it belongs to a NAT. If that
/// cannot be found out at the start, it is found out later.
pub(super) async fn watch(
    addresses: impl IntoIterator<Item = IpAddr>,
    remedy: AddressRemedy,
    inbox: Inbox<Agent>,
) {
    let mut unknown: Vec<IpAddr> = addresses.into_iter().collect();
    let mut watched = Vec::new();
    let mut lost = None;
    let mut interval = tokio::time::interval(CHECK_INTERVAL);
    loop {
        interval.tick().await;
        watched.extend(take_own(&mut unknown, has_address));
        if watched.is_empty() && unknown.is_empty() {
            return;
        }
        let states: Vec<Option<bool>> = watched.iter().map(|own| has_address(*own)).collect();
        if states.contains(&None) {
            continue;
        }
        let lacking = states.iter().position(|has_address| *has_address == Some(false));
        let now_lost = lacking.and_then(|index| watched.get(index)).copied();
        if now_lost != lost {
            lost = now_lost;
            let problem = lost.map(|address| {
                format!(
                    "this host has no address {address} any more, and master and peers reach this \
                     agent only there: {remedy}"
                )
            });
            inbox.send(Event::OwnAddress(problem)).await;
        }
    }
}

/// Takes the addresses of which it can be found out whether the host has them. Returns those that it
/// has.
fn take_own(
    unknown: &mut Vec<IpAddr>,
    has_address: impl Fn(IpAddr) -> Option<bool>,
) -> Vec<IpAddr> {
    let mut own = Vec::new();
    unknown.retain(|address| {
        let found = has_address(*address);
        own.extend((found == Some(true)).then_some(*address));
        found.is_none()
    });
    own
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn own_address_is_distinguished_from_foreign_address() {
        let has_address = |address: &str| has_address(address.parse().unwrap());
        assert_eq!(has_address("127.0.0.1"), Some(true));
        assert_eq!(has_address("192.0.2.77"), Some(false));
        assert_eq!(has_address("2001:db8::77"), Some(false));
    }

    #[test]
    fn unknown_address_is_watched_once_it_is_known() {
        let [own, foreign] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let mut unknown = vec![own, foreign];
        assert_eq!(take_own(&mut unknown, |_| None), Vec::<IpAddr>::new());
        assert_eq!(unknown, [own, foreign]);
        assert_eq!(take_own(&mut unknown, |address| Some(address == own)), [own]);
        assert_eq!(unknown, Vec::<IpAddr>::new());
    }

    #[test]
    fn lack_of_descriptors_says_nothing_about_address() {
        let address = "192.0.2.1".parse().unwrap();
        let error = |code| judge(Err(io::Error::from_raw_os_error(code)), address);
        assert_eq!([12, 23, 24, 105].map(error), [None; 4]);
        // ENETUNREACH: without the address and without a route.
        assert_eq!(error(101), Some(false));
        assert_eq!(judge(Ok(address), address), Some(true));
        assert_eq!(judge(Ok("192.0.2.2".parse().unwrap()), address), Some(false));
    }

    #[tokio::test]
    async fn foreign_address_is_not_watched() {
        let (inbox, mut receiver) = Inbox::<Agent>::new(Metrics::new());
        watch(["192.0.2.77".parse().unwrap()], AddressRemedy::Flag, inbox).await;
        assert!(receiver.recv().await.is_none());
    }
}

//! Reads the number of the last change of the nftables rules.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use crate::dataplane::message::{Batch, Message, attributes, u32_at};
use crate::dataplane::socket::Netlink;

/// The request and its answer, from `linux/netfilter/nf_tables.h`. The high byte is the subsystem
/// `NFNL_SUBSYS_NFTABLES`. Linux 3.18 has both.
const NFT_MSG_GETGEN: u16 = 0x0a10;
/// The answer, which is also the last message of a transaction.
pub(super) const NFT_MSG_NEWGEN: u16 = 0x0a0f;
/// The generation, as a number in network byte order.
const NFTA_GEN_ID: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
/// Length of the header of a message about rules.
pub(super) const NFGENMSG: usize = 4;

/// Reads the generation of the nftables rules in the calling thread's network namespace. The kernel
/// counts each transaction of any program, also those of an iptables that makes nftables rules.
/// Rules of iptables-legacy and ipsets have no generation.
///
/// # Errors
/// When the kernel has no nftables, or the process has no `CAP_NET_ADMIN`.
pub(super) fn read() -> io::Result<u32> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut request = Batch::default();
    request.begin(NFT_MSG_GETGEN, NLM_F_REQUEST, &[0; NFGENMSG]);
    let answer = netlink.ask(&mut request, |answer| generation(&answer))??;
    answer.ok_or_else(|| Errno::PROTO.into())
}

fn generation(answer: &Message<'_>) -> Option<u32> {
    let mut attributes = attributes(answer.body, NFGENMSG);
    let (_, value) = attributes.find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    u32_at(value, 0).map(u32::from_be)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::message::messages;

    /// Returns the generation of an answer with one attribute.
    fn of(kind: u16, value: &[u8]) -> Option<u32> {
        let mut batch = Batch::default();
        batch.begin(NFT_MSG_NEWGEN, 0, &[0; NFGENMSG]);
        batch.attribute(kind, value);
        messages(batch.finish(1, 0)).find_map(|answer| generation(&answer))
    }

    #[test]
    fn generation_is_in_network_byte_order() {
        assert_eq!(of(NFTA_GEN_ID, &[0, 0, 1, 2]), Some(258));
        assert_eq!(of(NFTA_GEN_ID, &[0, 0]), None);
        assert_eq!(of(2, &[0, 0, 1, 2]), None);
    }
}

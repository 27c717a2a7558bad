//! Numbers of the kernel's netlink interface, in the widths of the message fields that hold them.
//!
//! `libc` has most numbers in the right width. This module narrows the numbers that are `c_int`
//! there. The numbers that are not in `libc` come from `linux-raw-sys`, which `rustix` needs
//! anyway. Neither crate has `netconf.h` and `veth.h`.

pub(super) use libc::{
    IFA_ADDRESS, IFA_F_NODAD, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_EXT_MASK, IFLA_IFALIAS,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU,
    IFLA_NET_NS_FD, NDA_DST, NDA_IFINDEX, NDA_LLADDR, NTF_SELF, NUD_NOARP, NUD_PERMANENT,
    RT_SCOPE_NOWHERE, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_IIF, RTA_METRICS,
    RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_SRC, RTA_TABLE, RTA_VIA, RTM_DELADDR,
    RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_DELRULE, RTM_F_CLONED, RTM_GETADDR, RTM_GETLINK,
    RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWNETCONF, RTM_NEWROUTE, RTM_NEWRULE, RTN_UNICAST, RTN_UNREACHABLE, RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_NETCONF, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_LINK, RTNLGRP_NEIGH,
    RTPROT_BOOT,
};
use linux_raw_sys::netlink as raw;
pub(super) use raw::RTNH_F_ONLINK;

/// Length of the header of every message.
pub(super) const NLMSG_HEADER: usize = size_of::<libc::nlmsghdr>();
pub(super) const NLM_F_REQUEST: u16 = to_u16(libc::NLM_F_REQUEST);
pub(super) const NLM_F_ACK: u16 = to_u16(libc::NLM_F_ACK);
pub(super) const NLM_F_DUMP_INTR: u16 = to_u16(libc::NLM_F_DUMP_INTR);
pub(super) const NLM_F_DUMP: u16 = to_u16(libc::NLM_F_DUMP);
pub(super) const NLM_F_REPLACE: u16 = to_u16(libc::NLM_F_REPLACE);
pub(super) const NLM_F_EXCL: u16 = to_u16(libc::NLM_F_EXCL);
pub(super) const NLM_F_CREATE: u16 = to_u16(libc::NLM_F_CREATE);
pub(super) const NLM_F_CAPPED: u16 = to_u16(libc::NLM_F_CAPPED);
pub(super) const NLM_F_ACK_TLVS: u16 = to_u16(libc::NLM_F_ACK_TLVS);
pub(super) const NLMSG_ERROR: u16 = to_u16(libc::NLMSG_ERROR);
pub(super) const NLMSG_DONE: u16 = to_u16(libc::NLMSG_DONE);
pub(super) const NLMSG_OVERRUN: u16 = to_u16(libc::NLMSG_OVERRUN);
pub(super) const NLMSGERR_ATTR_MSG: u16 = raw::nlmsgerr_attrs::NLMSGERR_ATTR_MSG as u16;
pub(super) const NLA_F_NESTED: u16 = to_u16(libc::NLA_F_NESTED);
/// `libc` has the complement as a negative `c_int`, which does not fit a `u16`.
pub(super) const NLA_TYPE_MASK: u16 = !to_u16(libc::NLA_F_NESTED | libc::NLA_F_NET_BYTEORDER);

pub(super) const AF_UNSPEC: u8 = to_u8(libc::AF_UNSPEC);
pub(super) const AF_INET: u8 = to_u8(libc::AF_INET);
pub(super) const AF_BRIDGE: u8 = to_u8(libc::AF_BRIDGE);
pub(super) const AF_INET6: u8 = to_u8(libc::AF_INET6);

pub(super) const IFF_LOOPBACK: u32 = libc::IFF_LOOPBACK as u32;
pub(super) const IFF_UP: u32 = libc::IFF_UP as u32;
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = libc::RTEXT_FILTER_SKIP_STATS as u32;
pub(super) const IFLA_VXLAN_ID: u16 = raw::IFLA_VXLAN_ID as u16;
pub(super) const IFLA_VXLAN_LOCAL: u16 = raw::IFLA_VXLAN_LOCAL as u16;
pub(super) const IFLA_VXLAN_LEARNING: u16 = raw::IFLA_VXLAN_LEARNING as u16;
pub(super) const IFLA_VXLAN_PORT: u16 = raw::IFLA_VXLAN_PORT as u16;
pub(super) const IFLA_VXLAN_LOCAL6: u16 = raw::IFLA_VXLAN_LOCAL6 as u16;
pub(super) const IFLA_VXLAN_UDP_CSUM: u16 = raw::IFLA_VXLAN_UDP_CSUM as u16;
pub(super) const IFLA_VRF_TABLE: u16 = raw::IFLA_VRF_TABLE as u16;

/// The answer to a route request has the table of the route.
pub(super) const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
/// The answer to a route request is the route itself, without what the kernel learned since.
pub(super) const RTM_F_FIB_MATCH: u32 = 0x2000;
/// A metric of a route, from `linux/rtnetlink.h`.
pub(super) const RTAX_MTU: u16 = 2;
/// A next hop that the kernel does not use, from `linux/rtnetlink.h`.
pub(super) const RTNH_F_DEAD: u8 = 1;
/// Attributes of a policy rule, from `linux/fib_rules.h`.
pub(super) const FRA_DST: u16 = 1;
pub(super) const FRA_SRC: u16 = 2;
pub(super) const FRA_IIFNAME: u16 = 3;
pub(super) const FRA_GOTO: u16 = 4;
pub(super) const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_FWMARK: u16 = 10;
pub(super) const FRA_FLOW: u16 = 11;
pub(super) const FRA_SUPPRESS_IFGROUP: u16 = 13;
pub(super) const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
pub(super) const FRA_TABLE: u16 = 15;
pub(super) const FRA_FWMASK: u16 = 16;
pub(super) const FRA_OIFNAME: u16 = 17;
pub(super) const FRA_L3MDEV: u16 = 19;
pub(super) const FRA_UID_RANGE: u16 = 20;
pub(super) const FRA_PROTOCOL: u16 = 21;
pub(super) const FRA_IP_PROTO: u16 = 22;
/// The rule applies to packets that do not match.
pub(super) const FIB_RULE_INVERT: u32 = 2;

/// Messages about flows, from `linux/netfilter/nfnetlink_conntrack.h`. The high byte is the
/// subsystem `NFNL_SUBSYS_CTNETLINK`.
pub(super) const IPCTNL_MSG_CT_GET: u16 = 0x101;
pub(super) const IPCTNL_MSG_CT_DELETE: u16 = 0x102;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_STATUS: u16 = 3;
pub(super) const CTA_ID: u16 = 12;
pub(super) const CTA_ZONE: u16 = 18;
pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_IP_V4_SRC: u16 = 1;
pub(super) const CTA_IP_V4_DST: u16 = 2;
pub(super) const CTA_IP_V6_SRC: u16 = 3;
pub(super) const CTA_IP_V6_DST: u16 = 4;
/// The status bits of a flow with NAT of its source or destination, from
/// `linux/netfilter/nf_conntrack_common.h`.
pub(super) const IPS_NAT_MASK: u32 = 0x30;

/// From `linux/if_addr.h`: the namespace that a request for addresses is about.
pub(super) const IFA_TARGET_NETNSID: u16 = 10;
pub(super) const IFLA_TARGET_NETNSID: u16 = 46;
/// From `linux/if_link.h`: the namespace of the other end of a device.
pub(super) const IFLA_LINK_NETNSID: u16 = 37;
/// A port of a bridge, and a bridge, from `linux/if_link.h`.
pub(super) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(super) const IFLA_INFO_SLAVE_DATA: u16 = 5;
pub(super) const IFLA_BRPORT_STATE: u16 = 1;
pub(super) const IFLA_BRPORT_MODE: u16 = 4;
/// The state of a port of a bridge that forwards, from `linux/if_bridge.h`.
pub(super) const BR_STATE_FORWARDING: u8 = 3;
pub(super) const IFLA_BR_VLAN_FILTERING: u16 = 7;
/// An XDP program, from `linux/if_link.h`.
pub(super) const IFLA_XDP: u16 = 43;
pub(super) const IFLA_XDP_PROG_ID: u16 = 4;
pub(super) const IFLA_XDP_HW_PROG_ID: u16 = 7;
pub(super) const IFF_NOARP: u32 = libc::IFF_NOARP as u32;
/// The link of the device is up, from `linux/if.h`.
pub(super) const IFF_LOWER_UP: u32 = 0x1_0000;

/// Type of an Ethernet device, from `linux/if_arp.h`.
pub(super) const ARPHRD_ETHER: u16 = libc::ARPHRD_ETHER;
/// The state of a neighbor that has answered within the last seconds, from `linux/neighbour.h`.
pub(super) const NUD_REACHABLE: u16 = 0x02;
/// The states of a neighbor whose MAC is known, from `linux/neighbour.h`: `NUD_CONNECTED`, stale, and
/// while the kernel confirms the MAC.
pub(super) const NUD_RESOLVED: u16 = 0x02 | 0x04 | 0x08 | 0x10 | NUD_NOARP | NUD_PERMANENT;

/// Queueing disciplines and their filters, from `linux/rtnetlink.h`.
pub(super) const RTM_NEWQDISC: u16 = 36;
pub(super) const RTM_DELQDISC: u16 = 37;
pub(super) const RTM_GETQDISC: u16 = 38;
pub(super) const RTM_NEWTFILTER: u16 = 44;
pub(super) const RTM_DELTFILTER: u16 = 45;
pub(super) const RTM_GETTFILTER: u16 = 46;
pub(super) const RTNLGRP_TC: u32 = 4;
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;

/// Routes without a destination.
pub(super) const RTN_BLACKHOLE: u8 = 6;
pub(super) const RTN_PROHIBIT: u8 = 8;
pub(super) const RTA_MARK: u16 = 16;
/// Table `local`.
pub(super) const RT_TABLE_LOCAL: u32 = 255;

/// From `linux/neighbour.h`.
pub(super) const NDA_MASTER: u16 = 9;

/// Messages about IPsec policies, from `linux/xfrm.h`.
pub(super) const XFRM_MSG_GETPOLICY: u16 = 0x15;
pub(super) const XFRMA_TMPL: u16 = 5;

/// From `linux/veth.h`.
pub(super) const VETH_INFO_PEER: u16 = 1;
/// From `linux/netconf.h`.
pub(super) const NETCONFA_IFINDEX: u16 = 1;
/// From `linux/netconf.h`: -1 in the kernel's `int`. The setting applies to the whole host.
pub(super) const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;

/// Narrows a number at compile time. Fails to compile if the number does not fit.
const fn to_u16(number: libc::c_int) -> u16 {
    assert!(0 <= number && number <= 0xffff, "the number exceeds its field");
    let [low, high, ..] = number.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Narrows a number like [`to_u16`].
const fn to_u8(number: libc::c_int) -> u8 {
    assert!(0 <= number && number <= 0xff, "the number exceeds its field");
    let [low, ..] = number.to_le_bytes();
    low
}

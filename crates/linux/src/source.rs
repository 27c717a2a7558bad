//! Finds the source address that the kernel chooses for a destination. No packet is sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

/// Returns this host's source address for packets to `towards`, or for packets on the default route
/// if `towards` is `None`.
///
/// # Errors
/// When the kernel has no route or chooses no address.
pub fn own_address(towards: Option<SocketAddrV4>) -> io::Result<Ipv4Addr> {
    // RFC 5737 reserves 192.0.2.1 for documentation, so only the default route leads to it.
    let towards = towards.unwrap_or(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));
    match source_towards(None, towards.into())? {
        IpAddr::V4(own) if !own.is_unspecified() => Ok(own),
        _ => Err(io::Error::other("the kernel chooses no address")),
    }
}

/// Returns the source address of packets to `to`: `from`, or the kernel's choice if `from` is
/// `None`.
///
/// # Errors
/// When the kernel has no route to `to`.
pub fn source_towards(from: Option<IpAddr>, to: SocketAddr) -> io::Result<IpAddr> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.connect(to)?;
    socket.local_addr().map(|local| local.ip())
}

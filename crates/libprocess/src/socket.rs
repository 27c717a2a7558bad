//! Creates sockets and sets their options.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::BufMut;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::coop::consume_budget;

/// Length of the listen backlog; `net.core.somaxconn` also bounds it. Thousands of peers may
/// connect at the same time, for example after a failover.
const BACKLOG: u32 = 65_535;

/// TCP keepalive: idle time before the first probe, interval of probes, and number of unanswered
/// probes that end the connection. A host that lost its power is detected after two minutes.
/// libprocess sends no probes, so an idle link to a dead host would stay open forever: a server
/// would keep the descriptor, and a client would wait for a dead server.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Timeout of unacknowledged data on a linked connection. The kernel sends no keepalive probes
/// while data is unacknowledged, and its own timeout is 15 minutes.
const USER_TIMEOUT_MILLISECONDS: u32 = 120_000;

/// Creates the listening socket.
pub(super) fn listening(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // A restarted program can bind its port while old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit these options, which saves two system calls for each socket.
    // Acknowledgments are small and must not be delayed, and a dead host must not hold a descriptor
    // forever.
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(SocketAddr::V4(address))?;
    socket.listen(BACKLOG)
}

/// Creates the socket of an outgoing connection.
pub(super) fn outgoing() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Binds the source address of an outgoing socket, but not its port. A port chosen by `bind` is in
/// use for all destinations, and for one minute after the end of the connection: 28,000 connections
/// in a minute would use all ports. A port chosen by `connect` is in use for one destination only.
pub(super) fn bind_source(socket: &TcpSocket, source: Ipv4Addr) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::V4(SocketAddrV4::new(source, 0)))
}

/// Enables the detection of a dead peer on an idle outgoing connection.
pub(super) fn detect_dead_peer(socket: impl AsFd) -> io::Result<()> {
    keep_alive(&socket)?;
    sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT_MILLISECONDS)?;
    Ok(())
}

/// Reads available data without waiting. Unlike with `try_read`, tokio notices that a read did not
/// fill the buffer, which means that no more data is available. This saves a system call for each
/// message.
pub(super) async fn read_now<B: BufMut>(
    stream: &mut TcpStream,
    buffer: &mut B,
) -> Option<io::Result<usize>> {
    let mut read = pin!(stream.read_buf(buffer));
    match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
        Poll::Ready(count) => Some(count),
        Poll::Pending => {
            // Either no data is available, or the task has used its budget. Then the socket stays
            // ready, and without this call the caller would loop forever.
            consume_budget().await;
            None
        }
    }
}

/// Returns the limit of open descriptors of this process.
pub(super) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    Ok(())
}

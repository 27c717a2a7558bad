//! The sockets' options, each with its reason.

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

/// Connections that the kernel may complete before we accept them. It takes less if
/// `net.core.somaxconn` is less. A whole cluster comes at once after a failover.
const BACKLOG: u32 = 65_535;

/// Silence after which the kernel asks a peer whether it still lives, the time between two
/// questions, and how many unanswered ones end the connection: two minutes for a host that lost its
/// power. libprocess never asks, so there a dead host stays "connected" until something is sent,
/// which an idle link never does: a master would hold the descriptor, and an agent wait for its
/// dead master, for ever.
const ALIVE_AFTER: Duration = Duration::from_secs(60);
const ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const ALIVE_QUESTIONS: u32 = 4;

/// What was sent and is not acknowledged for so long ends a linked connection. While something is
/// unacknowledged the kernel asks no such questions, and would itself give up only after 15
/// minutes.
const UNACKNOWLEDGED_MILLISECONDS: u32 = 120_000;

/// The socket that others connect to.
pub(super) fn listening(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // A restarted program takes its port back at once, although old connections are not quite gone.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit these two, which saves two calls for each of them. Receipts are
    // small and must not wait for one another; and a dead host must not hold a descriptor for ever.
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(SocketAddr::V4(address))?;
    socket.listen(BACKLOG)
}

/// A socket to send on, with its source address.
pub(super) fn outgoing() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Gives an outgoing socket its source address, and leaves the port to `connect`. A port that
/// `bind` chooses is taken for all destinations, and stays so a minute after the end: 28,000 ports
/// would be gone with that many messages a minute. One that `connect` chooses is taken for its
/// destination only.
pub(super) fn bind_source(socket: &TcpSocket, source: Ipv4Addr) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::V4(SocketAddrV4::new(source, 0)))
}

/// Makes a dead peer of an outgoing connection noticed, though nothing is sent.
pub(super) fn watch(socket: impl AsFd) -> io::Result<()> {
    keep_alive(&socket)?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MILLISECONDS)?;
    Ok(())
}

/// Reads what is there, or nothing if nothing is. Unlike `try_read` this lets tokio see that a read
/// did not fill the buffer, which means that there is no more, and so saves a second call for each
/// message.
pub(super) async fn read_now<B: BufMut>(
    stream: &mut TcpStream,
    buffer: &mut B,
) -> Option<io::Result<usize>> {
    let mut read = pin!(stream.read_buf(buffer));
    match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
        Poll::Ready(count) => Some(count),
        Poll::Pending => {
            // Either nothing is there after all, or the task has had its turn and must let others
            // run: readiness alone would not say so, and the caller would come back for ever.
            consume_budget().await;
            None
        }
    }
}

/// How many descriptors this process may have.
pub(super) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, ALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(&socket, ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, ALIVE_QUESTIONS)?;
    Ok(())
}

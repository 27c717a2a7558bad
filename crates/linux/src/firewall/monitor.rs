//! Receives events when another program changes nftables rules. Current versions of iptables make
//! nftables rules as well. An event only triggers a verification, which reads the rules itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

/// The multicast group for changes of nftables rules.
const GROUP: u32 = libc::NFNLGRP_NFTABLES as u32;
/// Maximum number of messages that one call discards. Another program may change rules faster than
/// this process reads.
const DISCARD_MAX: usize = 4096;

/// A subscription to the kernel's events.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: BytesMut,
}

impl Monitor {
    /// Opens a monitor of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nftables, or the process has no `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket, buffer: BytesMut::new() })
    }

    /// Waits for a change, at most for `timeout`. Returns whether rules changed.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        // Zero means no timeout to the kernel.
        let timeout = timeout.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(self.socket.as_fd(), Timeout::Recv, Some(timeout))?;
        self.buffer.clear();
        self.buffer.reserve(1 << 16);
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => Ok(true),
            // The receive buffer was full: events are lost, so rules changed.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => Ok(true),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Discards all pending events. Call it after our own changes: the kernel reports a change
    /// before it acknowledges the request.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn discard_pending(&mut self) -> io::Result<()> {
        for _ in 0..DISCARD_MAX {
            if !self.wait(Duration::ZERO)? {
                break;
            }
        }
        Ok(())
    }
}

impl AsFd for Monitor {
    /// The descriptor is readable while events are pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

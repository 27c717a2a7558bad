//! Hears when somebody changes rules of nftables, which those of today's iptables are too. Not what
//! was changed: the verification finds that out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `ENOBUFS`: events were lost, so that something was changed.
const LOST: i32 = 105;

/// Most messages that are forgotten at once: somebody may change rules without end.
const FORGOTTEN_MAX: usize = 4096;

/// A listener.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: BytesMut,
}

impl Monitor {
    /// A listener to the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no nftables, or nobody may listen.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket, buffer: BytesMut::new() })
    }

    /// Waits for a change, at most for `timeout`. Whether there was one.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        // Zero would be for ever.
        let timeout = timeout.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(self.socket.as_fd(), Timeout::Recv, Some(timeout))?;
        self.buffer.clear();
        self.buffer.reserve(1 << 16);
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(LOST) => Ok(true),
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
}

impl Monitor {
    /// Forgets all that waits: after changes of our own, of which the kernel tells everybody before
    /// it answers who made them.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn forget(&mut self) -> io::Result<()> {
        for _ in 0..FORGOTTEN_MAX {
            if !self.wait(Duration::ZERO)? {
                break;
            }
        }
        Ok(())
    }
}

impl AsFd for Monitor {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! A netlink socket: dumps, and batches of requests of which only the last is acknowledged.
//!
//! The kernel handles a batch in order, continues after an error, and answers every error. So one
//! acknowledgement covers a whole batch, and no burst of answers fills the receive buffer. Calls
//! block: the kernel answers while the request is sent.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use bytes::BytesMut;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use socket2::{SockFilter, SockRef};

use super::message::{Batch, Message, attributes, messages, text, u32_at};
use super::uapi::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_HEADER, NLMSG_OVERRUN, NLMSGERR_ATTR_MSG,
};

/// Maximum number of messages in a batch. The receive buffer can hold an error for each message.
const BATCH_COUNT_MAX: usize = 256;
/// Maximum number of bytes in a batch. The kernel refuses a datagram that exceeds its send buffer.
const BATCH_BYTES_MAX: usize = 32 * 1024;
/// Size of our receive buffer. The kernel fills at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Size of the kernel's receive buffer, which holds a burst of events.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;
/// Maximum number of messages that one call of `drain` discards. Another program may write faster
/// than this process reads, so that the socket is never empty.
const DRAIN_MAX: usize = 65_536;
/// Maximum number of attempts at a dump of a table that changes meanwhile.
const DUMP_TRIES: usize = 5;
/// Maximum time until an answer. The kernel begins to answer while the request is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest timeout of a read. Zero means no timeout to the kernel.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// The kernel's error about one request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetlinkError {
    /// Position of the request in the batch.
    pub(super) index: usize,
    pub(super) errno: Errno,
    /// The kernel's own text, if it sent one.
    pub(super) message: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: BytesMut,
}

impl Netlink {
    /// Opens a socket of the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // Older kernels do not have these options and send more than requested. The readers of
        // dumps filter the answers.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let netlink = Self { socket, sequence: 0, buffer: BytesMut::with_capacity(RECEIVE_BYTES) };
        netlink.set_kernel_buffer(KERNEL_BUFFER)?;
        netlink.set_timeout(ANSWER_TIMEOUT)?;
        Ok(netlink)
    }

    /// Sets the size of the kernel's receive buffer in bytes. Without `CAP_NET_ADMIN` the kernel
    /// limits the size.
    pub(crate) fn set_kernel_buffer(&self, bytes: usize) -> io::Result<()> {
        let forced = sockopt::set_socket_recv_buffer_size_force(self.borrowed(), bytes);
        Ok(forced.or_else(|_| sockopt::set_socket_recv_buffer_size(self.borrowed(), bytes))?)
    }

    pub(crate) fn join(&mut self, groups: &[u32]) -> io::Result<()> {
        groups.iter().try_for_each(|group| self.socket.add_membership(*group))
    }

    /// Attaches a filter. The kernel does not queue the messages that it drops.
    pub(super) fn attach_filter(&self, filter: &[SockFilter]) -> io::Result<()> {
        SockRef::from(&self.borrowed()).attach_filter(filter)
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = timeout.max(TIMEOUT_MIN);
        Ok(sockopt::set_socket_timeout(self.borrowed(), Timeout::Recv, Some(timeout))?)
    }

    pub(crate) fn borrowed(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the port, which identifies this socket in the kernel's messages about its changes.
    pub(super) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Receives one datagram.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE_BYTES);
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Dumps a table. `add` adds each message to a collection that `new` creates. The dump starts
    /// again if the table changes meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        write: impl Fn(&mut Batch),
        add: impl Fn(&mut T, Message<'_>),
        new: impl Fn() -> T,
    ) -> io::Result<T> {
        let mut request = Batch::default();
        request.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, header);
        write(&mut request);
        for _ in 0..DUMP_TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            self.socket.send(request.finish(sequence, 0), 0)?;
            let mut collected = new();
            match self.collect_dump(sequence, &mut collected, &add) {
                Ok(true) => return Ok(collected),
                Ok(false) => {}
                // The kernel has dropped the rest of the dump.
                Err(error) if has_lost_messages(&error) => self.drain()?,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the kernel's tables change faster than they can be read",
        ))
    }

    /// Reads a dump to its end. Returns whether it is consistent.
    fn collect_dump<T>(
        &mut self,
        sequence: u32,
        collected: &mut T,
        add: &impl Fn(&mut T, Message<'_>),
    ) -> io::Result<bool> {
        let mut is_consistent = true;
        loop {
            for message in messages(self.receive()?) {
                if message.sequence != sequence {
                    continue;
                }
                is_consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(is_consistent),
                    NLMSG_ERROR => return Err(error_of(&message).unwrap_or(Errno::PROTO).into()),
                    NLMSG_OVERRUN => is_consistent = false,
                    _ => add(collected, message),
                }
            }
        }
    }

    /// Discards all pending messages, so that none is taken for the answer to the next request.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        for _ in 0..DRAIN_MAX {
            if !self.drain_one()? {
                break;
            }
        }
        Ok(())
    }

    /// Discards one message. Returns whether more may be pending.
    fn drain_one(&mut self) -> io::Result<bool> {
        self.set_timeout(TIMEOUT_MIN)?;
        let received = self.receive().map(|_| ());
        self.set_timeout(ANSWER_TIMEOUT)?;
        match received {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if has_lost_messages(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns whether `batch` must be sent before more messages are added.
    pub(super) const fn is_full(batch: &Batch) -> bool {
        batch.count() >= BATCH_COUNT_MAX || batch.length() >= BATCH_BYTES_MAX
    }

    /// Sends one request that the kernel answers with one message. Returns what `read` reads in the
    /// answer, or why the kernel refused the request.
    ///
    /// # Errors
    /// When the answer is lost.
    pub(crate) fn ask<T>(
        &mut self,
        request: &mut Batch,
        read: impl Fn(Message<'_>) -> T,
    ) -> io::Result<Result<T, Errno>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.socket.send(request.finish(sequence, 0), 0)?;
        loop {
            for message in messages(self.receive()?) {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    return Ok(Err(error_of(&message).unwrap_or(Errno::PROTO)));
                }
                return Ok(Ok(read(message)));
            }
        }
    }

    /// Sends all of `batch` and returns the requests that the kernel refused.
    ///
    /// # Errors
    /// When answers are lost. Then it is unknown which requests took effect.
    pub(super) fn run(&mut self, batch: &mut Batch) -> io::Result<Vec<NetlinkError>> {
        let mut errors = Vec::new();
        if batch.count() == 0 {
            return Ok(errors);
        }
        let first = self.sequence.wrapping_add(1);
        let last = self.sequence.wrapping_add(u32::try_from(batch.count()).unwrap_or(u32::MAX));
        self.sequence = last;
        self.socket.send(batch.finish(first, NLM_F_ACK), 0)?;
        loop {
            for message in messages(self.receive()?) {
                let index = message.sequence.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || index > last.wrapping_sub(first) {
                    continue;
                }
                if let Some(errno) = error_of(&message) {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    errors.push(NetlinkError { index, errno, message: error_text(&message) });
                }
                if message.sequence == last {
                    return Ok(errors);
                }
            }
        }
    }
}

/// Returns whether the kernel's receive buffer was full, so that messages are missing.
pub(crate) fn has_lost_messages(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOBUFS)
}

/// Returns the error number of an answer, or `None` for an acknowledgement.
fn error_of(message: &Message<'_>) -> Option<Errno> {
    let bytes = message.body.get(..4).and_then(|bytes| bytes.try_into().ok());
    match bytes.map_or(0, |bytes| i32::from_ne_bytes(bytes).wrapping_neg()) {
        0 => None,
        // `Errno` panics outside of the kernel's range, and received bytes are never trusted.
        errno => {
            let error = io::Error::from_raw_os_error(errno);
            Some(Errno::from_io_error(&error).unwrap_or(Errno::PROTO))
        }
    }
}

/// Returns the kernel's text about an error. The text follows the refused request, or only the
/// request's header if the kernel supports `NETLINK_CAP_ACK`.
fn error_text(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = if message.flags & NLM_F_CAPPED == 0 {
        usize::try_from(u32_at(message.body, 4)?).ok()?.next_multiple_of(4)
    } else {
        NLMSG_HEADER
    };
    let mut attributes = attributes(message.body, 4 + request);
    attributes.find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text(value))
}

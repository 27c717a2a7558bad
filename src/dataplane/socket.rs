//! A netlink socket: dumps, and batches of requests of which only the last is acknowledged. The
//! kernel handles a batch in its order, goes on after an error, and answers every error; so one
//! answer for a whole batch says all, and no burst of answers fills the receive buffer. Blocking:
//! the kernel answers while it is asked.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use bytes::BytesMut;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

use super::message::{Batch, Message, attributes, messages, text, u32_at};
use super::uapi::{
    ENOBUFS, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_HEADER, NLMSG_OVERRUN, NLMSGERR_ATTR_MSG,
};

/// Most messages in a batch: should each of them fail, all the errors fit the receive buffer.
const BATCH_COUNT_MAX: usize = 256;
/// Most bytes in a batch: the kernel takes no more in one piece than its send buffer has room for.
const BATCH_BYTES_MAX: usize = 32 * 1024;
/// Room for what is received. The kernel fills at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Receive buffer of the kernel, in which a burst of events waits.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;
/// Most messages that are passed over at once: where somebody writes faster than we read, there is
/// no end of them.
const DRAIN_MAX: usize = 65_536;
/// How often a dump is repeated that was changed while it was made.
const DUMP_TRIES: usize = 5;
/// How long the kernel may take for an answer: it is under way when the request has been sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the kernel said against a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Which message of the batch.
    pub(super) index: usize,
    pub(super) errno: i32,
    /// In its own words, if it has any.
    pub(super) said: Option<String>,
}

#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: BytesMut,
}

impl Netlink {
    /// A socket of the network namespace of the calling thread.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // Older kernels have none of these, and do without: they send more than we asked for.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let netlink = Self { socket, sequence: 0, buffer: BytesMut::with_capacity(RECEIVE_BYTES) };
        // Without privilege as much as is allowed.
        netlink.with_fd(|fd| {
            sockopt::set_socket_recv_buffer_size_force(fd, KERNEL_BUFFER)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, KERNEL_BUFFER))
        })?;
        netlink.set_timeout(ANSWER_TIMEOUT)?;
        Ok(netlink)
    }

    pub(super) fn join(&mut self, groups: &[u32]) -> io::Result<()> {
        groups.iter().try_for_each(|group| self.socket.add_membership(*group))
    }

    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        // Zero would be for ever.
        let timeout = timeout.max(Duration::from_millis(1));
        self.with_fd(|fd| sockopt::set_socket_timeout(fd, Timeout::Recv, Some(timeout)))
    }

    fn with_fd(
        &self,
        act: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        Ok(act(self.borrowed())?)
    }

    pub(super) fn borrowed(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Receives once, and returns the bytes.
    pub(super) fn receive(&mut self) -> io::Result<&[u8]> {
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

    /// What `each` makes of the messages of a dump, beginning with a `new` one. A dump whose tables
    /// were changed meanwhile is begun anew.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        write: impl Fn(&mut Batch),
        each: impl Fn(&mut T, Message<'_>),
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
            match self.collect_dump(sequence, &mut collected, &each) {
                Ok(true) => return Ok(collected),
                Ok(false) => {}
                // Its end is lost: the kernel has dropped the dump.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => self.drain()?,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the kernel's tables change faster than they can be read",
        ))
    }

    /// Whether the dump is whole.
    fn collect_dump<T>(
        &mut self,
        sequence: u32,
        collected: &mut T,
        each: &impl Fn(&mut T, Message<'_>),
    ) -> io::Result<bool> {
        let mut is_whole = true;
        loop {
            for message in messages(self.receive()?) {
                if message.sequence != sequence {
                    continue;
                }
                is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(is_whole),
                    NLMSG_ERROR => {
                        let errno = errno_of(&message);
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    NLMSG_OVERRUN => is_whole = false,
                    _ => each(collected, message),
                }
            }
        }
    }

    /// Takes what still waits, so that it is not held for the answer to the next request.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        for _ in 0..DRAIN_MAX {
            if !self.drain_one()? {
                break;
            }
        }
        Ok(())
    }

    fn drain_one(&mut self) -> io::Result<bool> {
        self.set_timeout(Duration::from_millis(1))?;
        let received = self.receive().map(|_| ());
        self.set_timeout(ANSWER_TIMEOUT)?;
        match received {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether `batch` should be sent before more is added.
    pub(super) const fn is_full(batch: &Batch) -> bool {
        batch.count() >= BATCH_COUNT_MAX || batch.length() >= BATCH_BYTES_MAX
    }

    /// Sends all of `batch` and returns what was refused of it.
    ///
    /// # Errors
    /// When the answers were lost, so that nobody knows what was done.
    pub(super) fn run(&mut self, batch: &mut Batch) -> io::Result<Vec<Refusal>> {
        let mut refused = Vec::new();
        if batch.count() == 0 {
            return Ok(refused);
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
                let errno = errno_of(&message);
                if errno != 0 {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    refused.push(Refusal { index, errno, said: said(&message) });
                }
                if message.sequence == last {
                    return Ok(refused);
                }
            }
        }
    }
}

/// The error number in an answer, 0 in a mere acknowledgement.
fn errno_of(message: &Message<'_>) -> i32 {
    let bytes = message.body.get(..4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, |bytes| i32::from_ne_bytes(bytes).wrapping_neg())
}

/// What the kernel says of an error in words. It stands behind the request that was refused, of
/// which there is only the header if the kernel was so kind.
fn said(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = if message.flags & NLM_F_CAPPED == 0 {
        usize::try_from(u32_at(message.body, 4)?).ok()?.next_multiple_of(4)
    } else {
        NLMSG_HEADER
    };
    let mut words = attributes(message.body, 4 + request);
    words.find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text(value))
}

//! An accepted connection: reads messages in order, passes each to the handler, and writes the
//! acknowledgments.
//!
//! An idle connection holds only its socket and this small struct. Buffers exist only while they
//! contain data, and a timer only while a request is incomplete. An idle connection stays open,
//! because the peer would interpret its end as the end of this program. It is closed only if
//! another connection needs its place ([`super::connections`]). The first request that is not a
//! message hands the connection to the HTTP server ([`super::http`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::connections::ConnectionGuard;
use super::framing::Body;
use super::head::{self, Head};
use super::server_state::{CheckedMessage, RATE_LIMIT_DELAY, ServerState};
use super::{encode, http, socket};
use crate::addresses::{Account, Reservation};
use crate::limits::Limit;
use crate::{Handler, Receipt, Rejection, RequestSource};

/// Buffer size of one read. Most messages fit twice.
const READ_SIZE: usize = 8 * 1024;

/// Unused capacity that an input buffer may have in addition to twice its content, in bytes.
const INPUT_SLACK: usize = 512;

/// Maximum length of buffered acknowledgments, in bytes.
const OUTPUT_LIMIT: usize = 2 * 1024;

/// How long the peer may take to read a final response, and how many reads are discarded meanwhile.
/// An immediate close would make the kernel discard the response.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const CLOSE_READS: usize = 64;

/// The next step of a connection.
enum NextStep {
    /// More input is needed.
    Read,
    Message(Box<Message>, Bytes),
    Http,
}

/// Why a connection ends.
enum EndReason {
    /// The peer closed the connection or announced its end.
    Closed,
    /// The input was rejected.
    Refused(Rejection),
    /// The HTTP server takes over the connection.
    Http,
}

/// A message whose head was read.
struct Message {
    checked: CheckedMessage,
    is_kept_alive: bool,
    receipt: Receipt,
    memory: Reservation,
}

/// A message whose body is incomplete.
struct PartialMessage {
    message: Box<Message>,
    body: Body,
}

/// An accepted connection.
pub(super) struct Connection<H> {
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<ServerState<H>>,
    account: Arc<Account>,
    guard: Arc<ConnectionGuard>,
    input: BytesMut,
    /// Memory reserved for an incomplete head.
    input_memory: Option<Reservation>,
    /// Length of the input that does not contain the end of a head.
    scanned: usize,
    partial: Option<Box<PartialMessage>>,
    /// Deadline of the incomplete request or head.
    deadline: Option<Instant>,
    output: Vec<u8>,
    /// Whether acknowledgments are no longer written. Messages of the peer are still read.
    is_write_closed: bool,
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        server: Arc<ServerState<H>>,
        guard: Arc<ConnectionGuard>,
    ) -> Self {
        Self {
            stream,
            peer,
            account: server.addresses.account(peer.ip()),
            server,
            guard,
            input: BytesMut::new(),
            input_memory: None,
            scanned: 0,
            partial: None,
            deadline: None,
            output: Vec::new(),
            is_write_closed: false,
        }
    }

    /// Serves the connection until it ends.
    pub(super) async fn run(mut self) {
        match self.serve().await {
            EndReason::Closed => self.flush().await,
            EndReason::Refused(rejection) => {
                self.server.handler.rejected(self.peer, &rejection);
                // A peer that stalls or has closed the connection does not wait for a response.
                if matches!(rejection, Rejection::Stalled | Rejection::Truncated) {
                    return;
                }
                encode::rejected(&mut self.output, &rejection, false);
                self.flush().await;
                if !self.is_write_closed {
                    close_after_response(self.stream).await;
                }
            }
            EndReason::Http => {
                self.flush().await;
                let received = self.input.freeze();
                let (peer, account, link) = (self.peer, self.account, self.guard);
                // The address is unknown only if the connection has ended.
                let Ok(local) = self.stream.local_addr() else { return };
                let source = RequestSource::Tcp { peer, local };
                let client = http::HttpClient { peer, source, account, link };
                // Boxed, because this future is much larger than the rest of the connection.
                let halves = self.stream.into_split();
                Box::pin(http::serve(halves, received, client, self.server)).await;
            }
        }
    }

    async fn serve(&mut self) -> EndReason {
        loop {
            match self.next_step() {
                Ok(NextStep::Message(message, body)) => {
                    if !self.receive(*message, body).await {
                        return EndReason::Closed;
                    }
                }
                Ok(NextStep::Http) => return EndReason::Http,
                Ok(NextStep::Read) => {
                    self.flush().await;
                    if let Err(end) = self.read().await {
                        return end;
                    }
                }
                Err(rejection) => return EndReason::Refused(rejection),
            }
        }
    }

    /// Passes a message to the handler and buffers the acknowledgment. Returns whether the
    /// connection continues.
    async fn receive(&mut self, message: Message, body: Bytes) -> bool {
        self.free_empty_input();
        let Message { checked, is_kept_alive, receipt, memory } = message;
        let is_registration = checked.is_registration;
        match self.server.receive(self.peer, checked, body, memory).await {
            Ok(()) => {
                if is_registration {
                    self.guard.registered();
                }
                if receipt == Receipt::Always {
                    encode::accepted(&mut self.output, is_kept_alive);
                }
            }
            Err(rejection) => {
                encode::rejected(&mut self.output, &rejection, is_kept_alive);
                if rejection.status() == StatusCode::TOO_MANY_REQUESTS {
                    return is_kept_alive && self.delay_next_read().await;
                }
            }
        }
        if self.output.len() > OUTPUT_LIMIT {
            self.flush().await;
        }
        is_kept_alive
    }

    /// Delays the next read. Returns whether the connection continues.
    async fn delay_next_read(&mut self) -> bool {
        self.flush().await;
        if let Err(rejection) = self.reserve_input() {
            self.server.handler.rejected(self.peer, &rejection);
            return false;
        }
        tokio::time::sleep(RATE_LIMIT_DELAY).await;
        true
    }

    /// Takes a complete request out of the input.
    fn next_step(&mut self) -> Result<NextStep, Rejection> {
        if let Some(partial) = &mut self.partial {
            let Some(body) = partial.body.read(&mut self.input)? else {
                if let Err(rejection) = partial.message.memory.grow_to(partial.body.held()) {
                    self.server.handler.rejected(self.peer, &rejection);
                    partial.body.discard();
                    partial.message.checked.reject(rejection);
                }
                return Ok(NextStep::Read);
            };
            self.deadline = None;
            return Ok(match self.partial.take() {
                Some(partial) => NextStep::Message(partial.message, body),
                None => NextStep::Read,
            });
        }
        self.next_head()
    }

    /// Takes the head of a request out of the input.
    fn next_head(&mut self) -> Result<NextStep, Rejection> {
        if self.scanned == 0 {
            let ends = self.input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            // Some old clients send a line end after a body.
            self.input.advance(ends);
        }
        let Some(length) = head::head_length(&self.input, self.scanned)? else {
            self.scanned = self.input.len();
            return Ok(NextStep::Read);
        };
        let head = head::parse(&self.input[..length])?;
        self.scanned = 0;
        self.deadline = None;
        self.input_memory = None;
        let Head::Message(head) = head else { return Ok(NextStep::Http) };
        self.input.advance(length);
        let (framing, is_kept_alive, receipt) = (head.framing, head.is_kept_alive, head.receipt);
        let is_continue_awaited = head.is_continue_awaited;
        let mut checked = self.server.check_head(self.peer, &self.account, head)?;
        let mut body = Body::new(framing, checked.limits)?;
        let complete = body.read(&mut self.input)?;
        let mut memory = self.server.body_memory(&self.account);
        let held = complete.as_ref().map_or_else(|| body.held(), Bytes::len);
        if let Err(rejection) = memory.grow_to(held) {
            self.server.handler.rejected(self.peer, &rejection);
            body.discard();
            checked.reject(rejection);
        }
        let message = Box::new(Message { checked, is_kept_alive, receipt, memory });
        if let Some(body) = complete {
            return Ok(NextStep::Message(message, body));
        }
        if is_continue_awaited {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.deadline = Some(self.request_deadline());
        self.partial = Some(Box::new(PartialMessage { message, body }));
        Ok(NextStep::Read)
    }

    /// Waits for more input until the deadline of the incomplete request.
    async fn read(&mut self) -> Result<(), EndReason> {
        self.free_empty_input();
        let is_unfinished = self.partial.is_some() || !self.input.is_empty();
        if is_unfinished && self.deadline.is_none() {
            self.deadline = Some(self.request_deadline());
        }
        self.reserve_input().map_err(EndReason::Refused)?;
        loop {
            match self.deadline {
                Some(deadline) => match timeout_at(deadline, self.stream.readable()).await {
                    Ok(_) => {}
                    Err(_) => return Err(EndReason::Refused(Rejection::Stalled)),
                },
                None => drop(self.stream.readable().await),
            }
            self.input.reserve(READ_SIZE);
            match socket::read_now(&mut self.stream, &mut self.input).await {
                None => self.free_empty_input(),
                Some(Ok(1..)) => {
                    self.guard.received();
                    return Ok(());
                }
                Some(_) if is_unfinished => return Err(EndReason::Refused(Rejection::Truncated)),
                Some(_) => return Err(EndReason::Closed),
            }
        }
    }

    /// Shrinks the buffer of an incomplete input and reserves its memory. Peers that never complete
    /// their requests are therefore limited like other peers.
    fn reserve_input(&mut self) -> Result<(), Rejection> {
        if self.input.is_empty() {
            return Ok(());
        }
        if self.input.capacity() > 2 * self.input.len() + INPUT_SLACK {
            self.input = BytesMut::from(&self.input[..]);
        }
        let memory =
            self.input_memory.get_or_insert_with(|| self.server.body_memory(&self.account));
        memory.grow_to(self.input.capacity())
    }

    /// Returns the deadline of a request or a body that starts now.
    fn request_deadline(&self) -> Instant {
        Instant::now() + self.server.options.limits.timeout(Limit::RequestTimeout)
    }

    /// Writes the acknowledgments. A peer that does not read them gets no further acknowledgments,
    /// but its messages are still read.
    async fn flush(&mut self) {
        let mut written = 0;
        while written < self.output.len() && !self.is_write_closed {
            match self.stream.try_write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let duration = self.server.options.limits.timeout(Limit::WriteTimeout);
                    self.is_write_closed = timeout(duration, self.stream.writable()).await.is_err();
                    if self.is_write_closed {
                        let rejection = Rejection::Limit(Limit::WriteTimeout);
                        self.server.handler.rejected(self.peer, &rejection);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_write_closed = true,
            }
        }
        self.output = Vec::new();
    }

    /// Frees an empty buffer, because the connection may now be idle for a long time.
    fn free_empty_input(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }
}

/// Closes a connection after a final response, so that the peer can read the response.
pub(super) async fn close_after_response(mut stream: TcpStream) {
    let _ = timeout(CLOSE_TIME, async {
        stream.shutdown().await?;
        for _ in 0..CLOSE_READS {
            stream.readable().await?;
            let mut scratch = [0; 4096];
            match stream.try_read(&mut scratch) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })
    .await;
}

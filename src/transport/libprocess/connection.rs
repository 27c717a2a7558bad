//! One accepted connection: reads messages off it in order, hands each to the host, writes the
//! receipts.
//!
//! An idle connection holds its socket and this small struct: buffers exist only while there is
//! something in them, and a timer only while a request is unfinished. It may then stay idle for
//! ever, since closing it would mean to the peer that we have ended; only where there is no room
//! for another one it is closed ([`super::connections`]). The first request that is no message
//! hands the connection to the HTTP server ([`super::http`]).

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
use super::server::{Host, Judged};
use super::{encode, http, socket};
use crate::limits::Limit;
use crate::transport::addresses::{Account, Reservation};
use crate::transport::{Handler, Refusal};

/// Room for one read. Most messages fit twice.
const READ_SIZE: usize = 8 * 1024;

/// What the buffer of an unfinished input may hold beside twice the input, in bytes.
const INPUT_SLACK: usize = 512;

/// Receipts that wait to be written together, in bytes.
const OUTPUT_LIMIT: usize = 2 * 1024;

/// How long a connection is not read after a message beyond the rate of its address: what is
/// refused costs time as well.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long an answer before closing may take to be read, and how much of what comes meanwhile is
/// read over. Closing at once would make the kernel take the answer back.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const CLOSE_READS: usize = 64;

/// What comes next on a connection.
enum Next {
    /// More has to be read.
    Read,
    Message(Box<Message>, Bytes),
    Http,
}

/// Why a connection is over.
enum End {
    /// The peer ended it, or said that it would not use it again.
    Closed,
    /// The rest cannot be understood or is not wanted.
    Refused(Refusal),
    /// The rest is for the HTTP server.
    Http,
}

/// A message of which the head was read.
struct Message {
    judged: Judged,
    is_kept_alive: bool,
    memory: Reservation,
}

/// A message whose body is still coming.
struct Unread {
    message: Box<Message>,
    body: Body,
}

/// An accepted connection.
pub(super) struct Connection<H> {
    stream: TcpStream,
    peer: SocketAddr,
    host: Arc<Host<H>>,
    account: Arc<Account>,
    guard: Arc<ConnectionGuard>,
    input: BytesMut,
    /// Memory reserved for an unfinished head.
    input_memory: Option<Reservation>,
    /// How much of the input is known not to hold the end of a head.
    scanned: usize,
    unread: Option<Box<Unread>>,
    /// When the request that has begun must be complete, or its head.
    deadline: Option<Instant>,
    output: Vec<u8>,
    /// Whether receipts are no longer written. Messages of the peer are still read.
    is_deaf: bool,
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        host: Arc<Host<H>>,
        guard: Arc<ConnectionGuard>,
    ) -> Self {
        Self {
            stream,
            peer,
            account: host.addresses.account(peer.ip()),
            host,
            guard,
            input: BytesMut::new(),
            input_memory: None,
            scanned: 0,
            unread: None,
            deadline: None,
            output: Vec::new(),
            is_deaf: false,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn run(mut self) {
        match self.serve().await {
            End::Closed => self.flush().await,
            End::Refused(refusal) => {
                self.host.handler.refused(self.peer, &refusal);
                // Whoever stalls or has gone waits for no answer.
                if matches!(refusal, Refusal::Stalled | Refusal::Truncated) {
                    return;
                }
                encode::refused(&mut self.output, &refusal, false);
                self.flush().await;
                if !self.is_deaf {
                    close_gently(self.stream).await;
                }
            }
            End::Http => {
                self.flush().await;
                let already = self.input.freeze();
                // Boxed, since it is many times the size of everything else here.
                let (peer, account, link) = (self.peer, self.account, self.guard);
                let client = http::Client { peer, account, link };
                Box::pin(http::serve(self.stream, already, client, self.host)).await;
            }
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            match self.next() {
                Ok(Next::Message(message, body)) => {
                    if !self.receive(*message, body).await {
                        return End::Closed;
                    }
                }
                Ok(Next::Http) => return End::Http,
                Ok(Next::Read) => {
                    self.flush().await;
                    if let Err(end) = self.read().await {
                        return end;
                    }
                }
                Err(refusal) => return End::Refused(refusal),
            }
        }
    }

    /// Hands a message to its process and notes the receipt. Returns whether the connection goes
    /// on.
    async fn receive(&mut self, message: Message, body: Bytes) -> bool {
        self.release();
        let Message { judged, is_kept_alive, memory } = message;
        let is_registration = judged.is_registration;
        match self.host.receive(self.peer, judged, body, memory).await {
            Ok(()) => {
                if is_registration {
                    self.guard.registered();
                }
                encode::accepted(&mut self.output, is_kept_alive);
            }
            Err(refusal) => {
                encode::refused(&mut self.output, &refusal, is_kept_alive);
                if refusal.status() == StatusCode::TOO_MANY_REQUESTS {
                    return is_kept_alive && self.pause().await;
                }
            }
        }
        if self.output.len() > OUTPUT_LIMIT {
            self.flush().await;
        }
        is_kept_alive
    }

    /// Reads nothing for a while. Returns whether the connection goes on.
    async fn pause(&mut self) -> bool {
        self.flush().await;
        if let Err(refusal) = self.account_for_input() {
            self.host.handler.refused(self.peer, &refusal);
            return false;
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
        true
    }

    /// Looks for a complete request in the input.
    fn next(&mut self) -> Result<Next, Refusal> {
        if let Some(unread) = &mut self.unread {
            let Some(body) = unread.body.read(&mut self.input)? else {
                if let Err(refusal) = unread.message.memory.grow_to(unread.body.held()) {
                    self.host.handler.refused(self.peer, &refusal);
                    unread.body.discard();
                    unread.message.judged.refuse(refusal);
                }
                return Ok(Next::Read);
            };
            self.deadline = None;
            return Ok(match self.unread.take() {
                Some(unread) => Next::Message(unread.message, body),
                None => Next::Read,
            });
        }
        self.next_head()
    }

    /// Looks for the head of a request in the input.
    fn next_head(&mut self) -> Result<Next, Refusal> {
        if self.scanned == 0 {
            let ends = self.input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            // Some old clients send a line end behind a body.
            self.input.advance(ends);
        }
        let Some(length) = head::head_length(&self.input, self.scanned)? else {
            self.scanned = self.input.len();
            return Ok(Next::Read);
        };
        let head = head::parse(&self.input[..length])?;
        self.scanned = 0;
        self.deadline = None;
        self.input_memory = None;
        let Head::Message(head) = head else { return Ok(Next::Http) };
        self.input.advance(length);
        let (framing, is_kept_alive) = (head.framing, head.is_kept_alive);
        let is_continue_awaited = head.is_continue_awaited;
        let mut judged = self.host.judge(self.peer, &self.account, head)?;
        let mut body = Body::new(framing, judged.limits)?;
        let complete = body.read(&mut self.input)?;
        let mut memory = self.host.body_memory(&self.account);
        let held = complete.as_ref().map_or_else(|| body.held(), Bytes::len);
        if let Err(refusal) = memory.grow_to(held) {
            self.host.handler.refused(self.peer, &refusal);
            body.discard();
            judged.refuse(refusal);
        }
        let message = Box::new(Message { judged, is_kept_alive, memory });
        if let Some(body) = complete {
            return Ok(Next::Message(message, body));
        }
        if is_continue_awaited {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.deadline = Some(self.request_deadline());
        self.unread = Some(Box::new(Unread { message, body }));
        Ok(Next::Read)
    }

    /// Waits for more input, no longer than the unfinished request may take.
    async fn read(&mut self) -> Result<(), End> {
        self.release();
        let is_unfinished = self.unread.is_some() || !self.input.is_empty();
        if is_unfinished && self.deadline.is_none() {
            self.deadline = Some(self.request_deadline());
        }
        self.account_for_input().map_err(End::Refused)?;
        loop {
            match self.deadline {
                Some(deadline) => match timeout_at(deadline, self.stream.readable()).await {
                    Ok(_) => {}
                    Err(_) => return Err(End::Refused(Refusal::Stalled)),
                },
                None => drop(self.stream.readable().await),
            }
            self.input.reserve(READ_SIZE);
            match socket::read_now(&mut self.stream, &mut self.input).await {
                None => self.release(),
                Some(Ok(1..)) => {
                    self.guard.received();
                    return Ok(());
                }
                Some(_) if is_unfinished => return Err(End::Refused(Refusal::Truncated)),
                Some(_) => return Err(End::Closed),
            }
        }
    }

    /// Gives back what the buffer of an unfinished input does not need, and counts the rest: a
    /// thousand peers that begin a request and do not end it hold no more than others may.
    fn account_for_input(&mut self) -> Result<(), Refusal> {
        if self.input.is_empty() {
            return Ok(());
        }
        if self.input.capacity() > 2 * self.input.len() + INPUT_SLACK {
            self.input = BytesMut::from(&self.input[..]);
        }
        let memory = self.input_memory.get_or_insert_with(|| self.host.body_memory(&self.account));
        memory.grow_to(self.input.capacity())
    }

    /// When a request that begins now must have come, or its body.
    fn request_deadline(&self) -> Instant {
        Instant::now() + self.host.options.limits.timeout(Limit::RequestTimeout)
    }

    /// Writes the receipts. If the peer does not take them it gets none from now on, but is
    /// listened to.
    async fn flush(&mut self) {
        let mut written = 0;
        while written < self.output.len() && !self.is_deaf {
            match self.stream.try_write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patience = self.host.options.limits.timeout(Limit::WriteTimeout);
                    self.is_deaf = timeout(patience, self.stream.writable()).await.is_err();
                    if self.is_deaf {
                        let refusal = Refusal::Limit(Limit::WriteTimeout);
                        self.host.handler.refused(self.peer, &refusal);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_deaf = true,
            }
        }
        self.output = Vec::new();
    }

    /// Gives back the buffer if nothing is in it: we may now wait for long.
    fn release(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }
}

/// Closes a connection on which an answer has just been written, so that the peer can read it.
pub(super) async fn close_gently(mut stream: TcpStream) {
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

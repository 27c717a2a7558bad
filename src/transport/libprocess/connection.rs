//! One accepted connection: reads messages off it in order, hands each to the host, writes the
//! receipts.
//!
//! An idle connection holds its socket and this small struct: buffers exist only while there is
//! something in them, and a timer only while a request is unfinished. It may then stay idle for
//! ever, since closing it would mean to the peer that we have ended. The first request that is no
//! message hands the connection to the HTTP server ([`super::http`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::framing::Body;
use super::head::{self, Head, MessageHead};
use super::server::{Host, Unfinished};
use super::{encode, http, socket};
use crate::transport::{Handler, Refusal};

/// From the first byte of a request to the end of its head. Also how long a peer may say nothing at
/// all after it has connected, if there are so many that its place is needed: else it may wait as
/// long as it likes, since libprocess links first and may have nothing to say for minutes.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// From the end of a request's head to the end of its body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// How long a peer may leave its receipts unread, once they fill its socket.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// Room for one read. Most messages fit twice.
const READ_SIZE: usize = 8 * 1024;

/// Receipts that wait to be written together, in bytes.
const OUTPUT_LIMIT: usize = 32 * 1024;

/// How long an answer before closing may take to be read, and how much of what comes meanwhile is
/// read over. Closing at once would make the kernel take the answer back.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const CLOSE_READS: usize = 64;

/// What comes next on a connection.
enum Next {
    /// More has to be read.
    Read,
    Message(MessageHead, Bytes),
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

/// A message whose body is still coming.
struct Unread<H> {
    head: MessageHead,
    body: Body,
    memory: Unfinished<H>,
}

/// An accepted connection.
pub(super) struct Connection<H> {
    stream: TcpStream,
    peer: SocketAddr,
    host: Arc<Host<H>>,
    input: BytesMut,
    /// How much of the input is known not to hold the end of a head.
    scanned: usize,
    unread: Option<Box<Unread<H>>>,
    /// When the request that has begun must be complete, or its head.
    deadline: Option<Instant>,
    output: Vec<u8>,
    /// Whether there was ever a complete request.
    has_spoken: bool,
    /// Whether writing has failed. What the peer sent before it left still counts.
    is_deaf: bool,
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, host: Arc<Host<H>>) -> Self {
        Self {
            stream,
            peer,
            host,
            input: BytesMut::new(),
            scanned: 0,
            unread: None,
            deadline: None,
            output: Vec::new(),
            has_spoken: false,
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
                Box::pin(http::serve(self.stream, already, self.peer, self.host)).await;
            }
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            match self.next() {
                Ok(Next::Message(head, body)) => {
                    if !self.receive(head, body).await {
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
    async fn receive(&mut self, head: MessageHead, body: Bytes) -> bool {
        self.release();
        let MessageHead { envelope, encoding, is_kept_alive, .. } = head;
        match self.host.receive(self.peer, envelope, encoding, body).await {
            Ok(()) => encode::accepted(&mut self.output, is_kept_alive),
            Err(refusal) => encode::refused(&mut self.output, &refusal, is_kept_alive),
        }
        if self.output.len() > OUTPUT_LIMIT {
            self.flush().await;
        }
        is_kept_alive
    }

    /// Looks for a complete request in the input.
    fn next(&mut self) -> Result<Next, Refusal> {
        if let Some(unread) = &mut self.unread {
            let Some(body) = unread.body.read(&mut self.input)? else {
                unread.memory.grow(unread.body.held())?;
                return Ok(Next::Read);
            };
            self.deadline = None;
            return Ok(match self.unread.take() {
                Some(unread) => Next::Message(unread.head, body),
                None => Next::Read,
            });
        }
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
        self.has_spoken = true;
        let Head::Message(head) = head else { return Ok(Next::Http) };
        self.input.advance(length);
        let mut body = Body::new(head.framing);
        if let Some(body) = body.read(&mut self.input)? {
            return Ok(Next::Message(head, body));
        }
        if head.is_continue_awaited {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let memory = Unfinished::new(Arc::clone(&self.host));
        self.deadline = Some(Instant::now() + BODY_TIME);
        self.unread = Some(Box::new(Unread { head, body, memory }));
        Ok(Next::Read)
    }

    /// Waits for more input, no longer than the unfinished request may take.
    async fn read(&mut self) -> Result<(), End> {
        self.release();
        let is_unfinished = self.unread.is_some() || !self.input.is_empty();
        if is_unfinished && self.deadline.is_none() {
            self.deadline = Some(Instant::now() + HEAD_TIME);
        }
        loop {
            match self.deadline {
                Some(deadline) => match timeout_at(deadline, self.stream.readable()).await {
                    Ok(_) => {}
                    Err(_) => return Err(End::Refused(Refusal::Stalled)),
                },
                None if self.has_spoken => drop(self.stream.readable().await),
                None => match timeout(HEAD_TIME, self.stream.readable()).await {
                    Ok(_) => {}
                    Err(_) if self.host.is_crowded() => return Err(End::Refused(Refusal::Stalled)),
                    Err(_) => continue,
                },
            }
            self.input.reserve(READ_SIZE);
            match socket::read_now(&mut self.stream, &mut self.input).await {
                None => self.release(),
                Some(Ok(1..)) => return Ok(()),
                Some(_) if is_unfinished => return Err(End::Refused(Refusal::Truncated)),
                Some(_) => return Err(End::Closed),
            }
        }
    }

    /// Writes the receipts. If the peer does not take them it gets none from now on, but is
    /// listened to.
    async fn flush(&mut self) {
        let mut written = 0;
        while written < self.output.len() && !self.is_deaf {
            match self.stream.try_write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_deaf = timeout(WRITE_TIME, self.stream.writable()).await.is_err();
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

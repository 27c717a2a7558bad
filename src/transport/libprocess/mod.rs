//! The message protocol of libprocess, spoken without libprocess: one-way messages as HTTP/1.1
//! requests.
//!
//! Each direction has its own connections: [`Server`] accepts what others send, [`Client`] opens
//! what we send on, and an answer never goes back on the connection that the question came on. The
//! receipts that come back on a connection mean only "such a process lives here", and no sender
//! waits for them.
//!
//! ```text
//!   server ── connection ─┬─ head, framing ── Handler::deliver        (messages)
//!                         └─ http (hyper) ─── Handler::respond        (browsers, curl)
//!   client ── peer (one task and one queue per address) ── encode, replies
//! ```
//!
//! A general HTTP server or client is the wrong tool here: the client would wait for each reply,
//! and the server holds some 16 KiB per idle connection where ours holds under 1 KiB. With two
//! connections for each of 10,000 agents this decides how much memory a master needs.

mod client;
mod connection;
mod connections;
mod encode;
mod framing;
mod head;
mod http;
mod peer;
mod replies;
mod server;
mod socket;
mod whole;

#[cfg(test)]
mod tests;

use std::net::SocketAddrV4;
use std::sync::Arc;

use bytes::Bytes;

pub use client::Client;
pub(in crate::transport) use head::check_names;
pub use server::{Server, ServerOptions};
#[doc(hidden)]
pub use whole::read_message;

use super::{Handler, Sender, Transport};
use crate::addr::Upid;

/// Longest request line with all headers, in bytes: the same as libprocess.
const HEAD_LIMIT: usize = 80 * 1024;

/// Most headers of a request or a reply.
const HEADERS_LIMIT: usize = 128;

/// The program's transport: a socket that listens, and connections of its own.
#[derive(Debug)]
pub struct Libprocess {
    /// What it listens on, already bound.
    pub server: Server,
    /// How it treats connections.
    pub options: ServerOptions,
    /// The address that peers are told. They must reach the server under it.
    pub advertise: SocketAddrV4,
}

impl Transport for Libprocess {
    fn address(&self) -> SocketAddrV4 {
        self.advertise
    }

    fn open<H: Handler>(
        self,
        handler: Arc<H>,
    ) -> (Box<dyn Sender>, impl Future<Output = ()> + Send + 'static) {
        let client = Client::new(self.advertise, Arc::clone(&handler), &self.options.limits);
        (Box::new(client), self.server.run(handler, self.options, std::future::pending()))
    }
}

impl<H: Handler> Sender for Client<H> {
    fn send(&self, from: &Upid, to: &Upid, name: &'static str, body: &Bytes) {
        Self::send(self, from, to, name, body);
    }

    fn link(&self, to: &Upid) {
        Self::link(self, to.address);
    }
}

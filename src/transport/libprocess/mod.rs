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
mod encode;
mod framing;
mod head;
mod http;
mod peer;
mod replies;
mod server;
mod socket;

#[cfg(test)]
mod tests;

pub use client::Client;
pub use server::{Server, ServerOptions};

/// Longest request line with all headers, in bytes: the same as libprocess.
const HEAD_LIMIT: usize = 80 * 1024;

/// Longest body, also after inflating. A registration has about 220 bytes per overlay, so this is
/// thousands of overlays; libprocess itself has no limit.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Most headers of a request or a reply.
const HEADERS_LIMIT: usize = 128;

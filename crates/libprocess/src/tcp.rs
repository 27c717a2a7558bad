//! The transport over TCP: a listening server, and a client with its own connections.

use std::net::SocketAddrV4;
use std::sync::Arc;

use crate::client::Client;
use crate::handler::{Handler, Receipt, Sender, Transport};
use crate::server::Server;
use crate::server_state::ServerOptions;
use crate::upid::Upid;

/// The transport of a program over TCP: a listening server, and a client with its own connections.
#[derive(Debug)]
pub struct TcpTransport {
    /// The bound server.
    pub server: Server,
    /// Options of the server. The client uses the same limits.
    pub options: ServerOptions,
    /// The advertised address, under which peers reach the server.
    pub advertise: SocketAddrV4,
}

impl Transport for TcpTransport {
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
    fn send(&self, from: &Upid, to: &Upid, name: &'static str, body: &[u8], receipt: Receipt) {
        Self::send(self, from, to, name, body, receipt);
    }

    fn link(&self, to: &Upid) {
        Self::link(self, to.address);
    }
}

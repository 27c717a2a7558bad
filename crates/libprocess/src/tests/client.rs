//! Sends messages and links.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::{Client, ServerOptions, encode};
use super::{Call, RecordingHandler, RunningServer, TIMEOUT, client_upid, next, rest, server_upid};
use crate::limits::{Limit, Limits};
use crate::{Receipt, Upid};

const OWN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5050);

fn new_client(own: SocketAddrV4, handler: Arc<RecordingHandler>) -> Client<RecordingHandler> {
    Client::new(own, handler, &Limits::for_server())
}

/// A client, a listener in the role of its peer, and the UPIDs of both.
struct Pair {
    client: Client<RecordingHandler>,
    calls: mpsc::UnboundedReceiver<Call>,
    listener: TcpListener,
    from: Upid,
    to: Upid,
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let (handler, calls) = RecordingHandler::new();
        let client = new_client(OWN, handler);
        Self { client, calls, listener, from: server_upid(OWN), to: client_upid(address) }
    }

    fn send(&self, name: &str, body: &Bytes) {
        self.client.send(&self.from, &self.to, name, body, Receipt::Always);
    }

    fn encoded(&self, name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(encode::message(&mut bytes, &self.from, &self.to, (name, body), Receipt::Always));
        bytes
    }

    async fn accept(&self) -> TcpStream {
        timeout(TIMEOUT, self.listener.accept()).await.expect("connected in time").unwrap().0
    }

    async fn expect(&self, stream: &mut TcpStream, name: &str, body: &[u8]) {
        let expected = self.encoded(name, body);
        let mut received = vec![0; expected.len()];
        let read = stream.read_exact(&mut received);
        timeout(TIMEOUT, read).await.expect("received in time").unwrap();
        assert_eq!(String::from_utf8_lossy(&received), String::from_utf8_lossy(&expected));
    }
}

async fn reply(stream: &mut TcpStream) {
    stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
}

#[tokio::test]
async fn send_keeps_order_and_does_not_wait_for_acknowledgments() {
    let pair = Pair::new().await;
    let mut stream = None;
    for number in 0..100_usize {
        let (name, body) = (format!("N{number}"), Bytes::from(vec![b'x'; number]));
        pair.send(&name, &body);
        if number == 0 {
            stream = Some(pair.accept().await);
        }
    }
    let mut stream = stream.unwrap();
    for number in 0..100_usize {
        pair.expect(&mut stream, &format!("N{number}"), &vec![b'x'; number]).await;
    }
    assert_eq!(pair.client.lost(), 0);
}

#[tokio::test]
async fn connection_source_is_advertised_address() {
    let pair = Pair::new().await;
    let own = "127.7.8.9:5050".parse().unwrap();
    let client = new_client(own, RecordingHandler::new().0);
    client.send(&server_upid(own), &pair.to, "N", &Bytes::new(), Receipt::Always);
    assert_eq!(pair.accept().await.peer_addr().unwrap().ip(), Ipv4Addr::new(127, 7, 8, 9));
}

#[tokio::test]
async fn send_works_if_host_lacks_advertised_address() {
    let pair = Pair::new().await;
    let own = "192.0.2.1:5050".parse().unwrap();
    let client = new_client(own, RecordingHandler::new().0);
    client.send(&server_upid(own), &pair.to, "N", &Bytes::new(), Receipt::Always);
    pair.accept().await;
}

#[tokio::test]
async fn unlinked_connection_is_closed_when_idle_and_reopened() {
    let pair = Pair::new().await;
    for _ in 0..2 {
        pair.send("N", &Bytes::new());
        let mut stream = pair.accept().await;
        pair.expect(&mut stream, "N", b"").await;
        reply(&mut stream).await;
        assert_eq!(rest(&mut stream).await, "");
    }
}

#[tokio::test]
async fn send_after_peer_closed_uses_new_connection() {
    let mut pair = Pair::new().await;
    for name in ["1", "2", "3"] {
        pair.send(name, &Bytes::new());
        let mut stream = pair.accept().await;
        pair.expect(&mut stream, name, b"").await;
        reply(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, "");
        assert!(pair.calls.try_recv().is_err(), "no link exists");
    }
    assert_eq!(pair.client.lost(), 0);
}

#[tokio::test]
async fn unacknowledged_message_counts_as_lost() {
    let pair = Pair::new().await;
    pair.send("N", &Bytes::new());
    let mut stream = pair.accept().await;
    pair.expect(&mut stream, "N", b"").await;
    drop(stream);
    timeout(TIMEOUT, async {
        while pair.client.lost() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn message_without_receipt_says_so_and_does_not_count_as_lost() {
    let mut pair = Pair::new().await;
    pair.client.send(&pair.from, &pair.to, "1", b"", Receipt::ErrorsOnly);
    let mut stream = pair.accept().await;
    let expected = pair.encoded("1", b"").len() + "Libprocess-Receipt: errors\r\n".len();
    let mut received = vec![0; expected];
    let read = stream.read_exact(&mut received);
    timeout(TIMEOUT, read).await.expect("received in time").unwrap();
    assert!(received.ends_with(b"\r\nLibprocess-Receipt: errors\r\n\r\n"));
    pair.client.link(pair.to.address);
    drop(stream);
    assert_eq!(next(&mut pair.calls).await, Call::Exited(pair.to.address));
    assert_eq!(pair.client.lost(), 0);
}

#[tokio::test(start_paused = true)]
async fn link_stays_open_and_exit_is_reported_once() {
    let mut pair = Pair::new().await;
    for has_reset in [false, true] {
        pair.client.link(pair.to.address);
        pair.client.link(pair.to.address);
        let mut stream = pair.accept().await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        pair.client.link(pair.to.address);
        pair.send("N", &Bytes::from_static(b"on the link"));
        pair.expect(&mut stream, "N", b"on the link").await;
        if has_reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        assert_eq!(next(&mut pair.calls).await, Call::Exited(pair.to.address));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(pair.calls.try_recv().is_err());
    }
}

#[tokio::test]
async fn link_uses_open_connection() {
    let mut pair = Pair::new().await;
    pair.send("1", &Bytes::new());
    let mut stream = pair.accept().await;
    pair.expect(&mut stream, "1", b"").await;
    pair.client.link(pair.to.address);
    pair.send("2", &Bytes::new());
    pair.expect(&mut stream, "2", b"").await;
    drop(stream);
    assert_eq!(next(&mut pair.calls).await, Call::Exited(pair.to.address));
}

#[tokio::test]
async fn link_to_closed_port_reports_exit() {
    let mut pair = Pair::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let SocketAddr::V4(closed) = free else { unreachable!() };
    for _ in 0..2 {
        pair.client.link(closed);
        assert_eq!(next(&mut pair.calls).await, Call::Exited(closed));
    }
    pair.client.send(&pair.from, &client_upid(closed), "N", &Bytes::new(), Receipt::Always);
    timeout(TIMEOUT, async {
        while pair.client.lost() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn stuck_peer_fills_only_its_own_queue() {
    let pair = Pair::new().await;
    let body = Bytes::from(vec![b'x'; 500_000]);
    pair.send("N", &body);
    let mut stuck = pair.accept().await;
    for _ in 0..200 {
        pair.send("N", &body);
        tokio::task::yield_now().await;
    }
    assert!(pair.client.lost() > 100, "{} lost", pair.client.lost());
    let mut other = RunningServer::start(ServerOptions::default());
    let to = client_upid(other.address);
    pair.client.send(&pair.from, &to, "N", &Bytes::from_static(b"hello"), Receipt::Always);
    assert_eq!(other.message().await.body, "hello");
    // The queued messages arrive complete when the peer reads.
    pair.expect(&mut stuck, "N", &body).await;
    pair.expect(&mut stuck, "N", &body).await;
}

#[tokio::test]
async fn concurrent_writes_of_two_programs_do_not_deadlock() {
    let limits = Limits::for_server().with(Limit::MessagesPerSecondPerAddress, 1_000_000);
    let mut server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let client = new_client(OWN, RecordingHandler::new().0);
    let (from, to) = (server_upid(OWN), client_upid(server.address));
    let unknown = Upid { id: "nobody".into(), address: server.address };
    // The error responses exceed the socket buffers.
    for _ in 0..200 {
        for _ in 0..100 {
            client.send(&from, &unknown, "N", &Bytes::new(), Receipt::Always);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    timeout(TIMEOUT, async {
        loop {
            client.send(&from, &to, "Last", &Bytes::new(), Receipt::Always);
            if server.calls.try_recv().is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn send_to_own_address_is_delivered_locally() {
    let (handler, mut calls) = RecordingHandler::new();
    let client = new_client(OWN, Arc::clone(&handler));
    let from = server_upid(OWN);
    let unknown = Upid { id: "nobody".into(), address: OWN };
    client.link(OWN);
    client.send(&from, &unknown, "N", &Bytes::new(), Receipt::Always);
    client.send(&from, &client_upid(OWN), "N", &Bytes::from_static(b"hello"), Receipt::Always);
    let Call::Message(received) = next(&mut calls).await else { panic!("a message was expected") };
    assert_eq!((received.from, &received.body[..]), (from, &b"hello"[..]));
    assert_eq!(handler.rejections.lock().len(), 1);
    assert_eq!(client.lost(), 0);
}

#[tokio::test]
async fn messages_over_link_arrive_in_order() {
    let mut server = RunningServer::start(ServerOptions {
        require_peer_address_match: true,
        ..ServerOptions::default()
    });
    let (handler, mut calls) = RecordingHandler::new();
    let client = new_client(OWN, handler);
    let to = server_upid(server.address);
    client.link(to.address);
    for number in 0..1000_u32 {
        client.send(&client_upid(OWN), &to, "N", &Bytes::from(number.to_string()), Receipt::Always);
        if number % 100 == 99 {
            for number in number - 99..=number {
                assert_eq!(server.message().await.body, number.to_string());
            }
        }
    }
    assert_eq!(client.lost(), 0);
    server.task.abort();
    assert_eq!(next(&mut calls).await, Call::Exited(to.address));
}

#[tokio::test]
async fn drop_of_client_closes_connections() {
    let mut pair = Pair::new().await;
    pair.client.link(pair.to.address);
    let mut stream = pair.accept().await;
    let (handler, calls) = RecordingHandler::new();
    drop(std::mem::replace(&mut pair.client, new_client(OWN, handler)));
    pair.calls = calls;
    assert_eq!(rest(&mut stream).await, "");
}

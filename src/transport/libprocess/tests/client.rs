//! Sending and linking.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::{Client, ServerOptions, encode};
use super::{Host, PATIENCE, Running, Told, next, rest};
use crate::addr::Upid;
use crate::limits::{Limit, Limits};

const OWN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5050);

fn new_client(own: SocketAddrV4, host: Arc<Host>) -> Client<Host> {
    Client::new(own, host, &Limits::of_master())
}

/// A client, a listener that plays a peer, and their names.
struct Pair {
    client: Client<Host>,
    told: mpsc::UnboundedReceiver<Told>,
    listener: TcpListener,
    from: Upid,
    to: Upid,
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let (host, told) = Host::new();
        let client = new_client(OWN, host);
        Self { client, told, listener, from: Upid::master(OWN), to: Upid::agent(address) }
    }

    fn send(&self, name: &str, body: &Bytes) {
        self.client.send(&self.from, &self.to, name, body);
    }

    fn encoded(&self, name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(encode::message(&mut bytes, &self.from, &self.to, name, body));
        bytes
    }

    async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.listener.accept()).await.expect("no connection came").unwrap().0
    }

    async fn expect(&self, stream: &mut TcpStream, name: &str, body: &[u8]) {
        let expected = self.encoded(name, body);
        let mut came = vec![0; expected.len()];
        timeout(PATIENCE, stream.read_exact(&mut came)).await.expect("too little came").unwrap();
        assert_eq!(String::from_utf8_lossy(&came), String::from_utf8_lossy(&expected));
    }
}

async fn reply(stream: &mut TcpStream) {
    stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
}

#[tokio::test]
async fn messages_arrive_in_order_on_one_connection_without_waiting_for_receipts() {
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
async fn connections_come_from_the_advertised_address() {
    let pair = Pair::new().await;
    let own = "127.7.8.9:5050".parse().unwrap();
    let client = new_client(own, Host::new().0);
    client.send(&Upid::master(own), &pair.to, "N", &Bytes::new());
    assert_eq!(pair.accept().await.peer_addr().unwrap().ip(), Ipv4Addr::new(127, 7, 8, 9));
}

#[tokio::test]
async fn an_advertised_address_that_is_not_ours_does_not_silence_us() {
    let pair = Pair::new().await;
    let own = "192.0.2.1:5050".parse().unwrap();
    let client = new_client(own, Host::new().0);
    client.send(&Upid::master(own), &pair.to, "N", &Bytes::new());
    pair.accept().await;
}

#[tokio::test]
async fn a_connection_without_a_link_is_closed_soon_and_made_again() {
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
async fn after_an_unlinked_peer_has_closed_the_next_message_gets_a_new_connection() {
    let mut pair = Pair::new().await;
    for name in ["1", "2", "3"] {
        pair.send(name, &Bytes::new());
        let mut stream = pair.accept().await;
        pair.expect(&mut stream, name, b"").await;
        reply(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, "");
        assert!(pair.told.try_recv().is_err(), "an unlinked peer exited");
    }
    assert_eq!(pair.client.lost(), 0);
}

#[tokio::test]
async fn a_message_without_a_receipt_counts_as_lost() {
    let pair = Pair::new().await;
    pair.send("N", &Bytes::new());
    let mut stream = pair.accept().await;
    pair.expect(&mut stream, "N", b"").await;
    drop(stream);
    timeout(PATIENCE, async {
        while pair.client.lost() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_link_stays_and_its_end_is_told_once() {
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
        assert_eq!(next(&mut pair.told).await, Told::Exited(pair.to.address));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(pair.told.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_link_takes_over_the_connection_that_is_there() {
    let mut pair = Pair::new().await;
    pair.send("1", &Bytes::new());
    let mut stream = pair.accept().await;
    pair.expect(&mut stream, "1", b"").await;
    pair.client.link(pair.to.address);
    pair.send("2", &Bytes::new());
    pair.expect(&mut stream, "2", b"").await;
    drop(stream);
    assert_eq!(next(&mut pair.told).await, Told::Exited(pair.to.address));
}

#[tokio::test]
async fn a_link_that_cannot_be_made_has_exited() {
    let mut pair = Pair::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let SocketAddr::V4(nobody) = free else { unreachable!() };
    for _ in 0..2 {
        pair.client.link(nobody);
        assert_eq!(next(&mut pair.told).await, Told::Exited(nobody));
    }
    pair.client.send(&pair.from, &Upid::agent(nobody), "N", &Bytes::new());
    timeout(PATIENCE, async {
        while pair.client.lost() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_peer_that_reads_nothing_holds_only_its_own_queue() {
    let pair = Pair::new().await;
    let body = Bytes::from(vec![b'x'; 500_000]);
    pair.send("N", &body);
    let mut stuck = pair.accept().await;
    for _ in 0..200 {
        pair.send("N", &body);
        tokio::task::yield_now().await;
    }
    assert!(pair.client.lost() > 100, "{} lost", pair.client.lost());
    let mut other = Running::start(ServerOptions::default());
    let to = Upid::agent(other.address);
    pair.client.send(&pair.from, &to, "N", &Bytes::from_static(b"hello"));
    assert_eq!(other.message().await.body, "hello");
    // What was queued comes whole, once it is read.
    pair.expect(&mut stuck, "N", &body).await;
    pair.expect(&mut stuck, "N", &body).await;
}

#[tokio::test]
async fn two_that_both_write_first_do_not_wait_for_each_other() {
    let limits = Limits::of_master().with(Limit::MessagesPerSecondPerAddress, 1_000_000);
    let mut server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let client = new_client(OWN, Host::new().0);
    let (from, to) = (Upid::master(OWN), Upid::agent(server.address));
    let nobody = Upid { id: "nobody".into(), address: server.address };
    // Each message is answered with more bytes than a socket holds altogether.
    for _ in 0..200 {
        for _ in 0..100 {
            client.send(&from, &nobody, "N", &Bytes::new());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    timeout(PATIENCE, async {
        loop {
            client.send(&from, &to, "Last", &Bytes::new());
            if server.told.try_recv().is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_message_to_ourselves_stays_inside() {
    let (host, mut told) = Host::new();
    let client = new_client(OWN, Arc::clone(&host));
    let from = Upid::master(OWN);
    let nobody = Upid { id: "nobody".into(), address: OWN };
    client.link(OWN);
    client.send(&from, &nobody, "N", &Bytes::new());
    client.send(&from, &Upid::agent(OWN), "N", &Bytes::from_static(b"hello"));
    let Told::Message(came) = next(&mut told).await else { panic!("no message") };
    assert_eq!((came.from, &came.body[..]), (from, &b"hello"[..]));
    assert_eq!(host.refused.lock().len(), 1);
    assert_eq!(client.lost(), 0);
}

#[tokio::test]
async fn a_whole_conversation_with_the_server_works_over_a_link() {
    let mut server = Running::start(ServerOptions {
        require_peer_address_match: true,
        ..ServerOptions::default()
    });
    let (host, mut told) = Host::new();
    let client = new_client(OWN, host);
    let to = Upid::master(server.address);
    client.link(to.address);
    for number in 0..1000_u32 {
        client.send(&Upid::agent(OWN), &to, "N", &Bytes::from(number.to_string()));
        if number % 100 == 99 {
            for number in number - 99..=number {
                assert_eq!(server.message().await.body, number.to_string());
            }
        }
    }
    assert_eq!(client.lost(), 0);
    server.task.abort();
    assert_eq!(next(&mut told).await, Told::Exited(to.address));
}

#[tokio::test]
async fn the_end_of_the_client_is_the_end_of_its_connections() {
    let mut pair = Pair::new().await;
    pair.client.link(pair.to.address);
    let mut stream = pair.accept().await;
    let (host, told) = Host::new();
    drop(std::mem::replace(&mut pair.client, new_client(OWN, host)));
    pair.told = told;
    assert_eq!(rest(&mut stream).await, "");
}

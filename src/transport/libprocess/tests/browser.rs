//! Plain HTTP beside the messages.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::ServerOptions;
use super::{PATIENCE, Running, Told, message, rest_at_last, statuses, statuses_in};
use crate::limits::{Limit, Limits};
use crate::transport::Refusal;
use crate::transport::tests::BODY_MAX;

#[tokio::test]
async fn requests_are_answered_and_the_connection_kept() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    for path in ["/overlay-master/state", "/overlay-master/health?x=1"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        // In two pieces: the second one is read by hyper.
        stream.write_all(&get.as_bytes()[..9]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&get.as_bytes()[9..]).await.unwrap();
        let expected = format!("GET {path}");
        let mut reply = String::new();
        while !reply.ends_with(&expected) {
            let mut piece = [0; 1024];
            let length =
                tokio::time::timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
            assert_ne!(length, 0, "{reply}");
            reply.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        assert_eq!(server.told().await, Told::Request(expected, "".into()));
    }
}

#[tokio::test]
async fn the_body_of_a_request_arrives_and_is_bounded() {
    let mut server = Running::start(ServerOptions::default());
    let post = |length: usize| {
        let mut request =
            format!("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        request.push_str(&"y".repeat(length));
        request
    };
    assert_eq!(statuses_in(&server.ask(post(10_000)).await), [200]);
    assert_eq!(server.told().await, Told::Request("POST /x".into(), "y".repeat(10_000).into()));
    let mut stream = server.connect().await;
    let (mut read, mut write) = stream.split();
    let request = post(BODY_MAX + 1);
    let mut start = [0; 12];
    let sent = write.write_all(request.as_bytes());
    let (_, came) = tokio::join!(sent, read.read_exact(&mut start));
    came.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_path_that_climbs_is_not_found() {
    let server = Running::start(ServerOptions::default());
    for path in ["/..", "/overlay-master/../state", "/..x"] {
        let reply = server.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(statuses_in(&reply), [404], "{path}");
    }
}

#[tokio::test]
async fn a_panic_in_an_answer_is_an_error_of_the_server() {
    let server = Running::start(ServerOptions::default());
    let reply = server.ask("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(statuses_in(&reply), [500]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_browser_is_closed_unless_it_sent_a_message() {
    let server = Running::start(ServerOptions::default());
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut browser = server.connect().await;
    browser.write_all(get.as_bytes()).await.unwrap();
    let mut peer = server.connect().await;
    peer.write_all(get.as_bytes()).await.unwrap();
    peer.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses_in(&rest_at_last(&mut browser).await), [200]);
    assert_eq!(statuses(&mut peer, 2).await, [200, 202]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    peer.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut peer, 1).await, [202]);
}

#[tokio::test]
async fn browser_beyond_the_limit_replaces_the_longest_silent() {
    let limits = Limits::of_master().with(Limit::HttpConnectionsPerAddress, 3);
    let mut server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut browsers = Vec::new();
    for _ in 0..4 {
        let mut browser = server.connect().await;
        browser.write_all(get.as_bytes()).await.unwrap();
        server.told().await;
        browsers.push(browser);
    }
    assert_eq!(statuses_in(&rest_at_last(&mut browsers[0]).await), [200]);
    let refused = [Refusal::Evicted(Limit::HttpConnectionsPerAddress)];
    assert_eq!(server.host.refused.lock()[..], refused);
    browsers[1].write_all(get.as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut browsers[1], 2).await, [200, 200]);
    assert_eq!(statuses_in(&server.ask(message("overlay-master", "N")).await), [202]);
}

/// A request whose answer the host holds back.
const HELD: &str = "GET /heavy/held HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn heavy_requests_of_an_address_are_bounded_in_number() {
    let limits = Limits::of_master().with(Limit::RequestsPerAddress, 2);
    let mut server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(HELD.as_bytes()).await.unwrap();
        server.told().await;
        streams.push(stream);
    }
    let reply = server.ask("GET /heavy HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(statuses_in(&reply), [503]);
    assert!(reply.contains("limit requests_per_address is reached"), "{reply}");
    assert_eq!(statuses_in(&server.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await), [200]);
}

#[tokio::test]
async fn unread_responses_of_an_address_are_bounded_in_bytes() {
    let limits = Limits::of_master().with(Limit::ResponseBytesPerAddress, 1024 * 1024);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let get = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(get.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    first.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let reply = server.ask(get).await;
    assert_eq!(statuses_in(&reply), [503]);
    assert!(reply.contains("limit response_bytes_per_address is reached"), "{reply}");
    // A small response, such as the health, needs no room.
    assert_eq!(statuses_in(&server.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await), [200]);
    drop(first);
    let again = async {
        while statuses_in(&server.ask(get).await) != [200] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn client_that_does_not_read_is_closed_after_the_write_timeout() {
    let limits = Limits::of_master().with(Limit::WriteTimeout, 1);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut deaf = server.connect().await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let expected = Refusal::Limit(Limit::WriteTimeout);
    let closed = async {
        while server.host.refused.lock().first() != Some(&expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn body_of_a_request_that_does_not_come_is_not_waited_for() {
    let server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(statuses_in(&rest_at_last(&mut stream).await), [408]);
    assert_eq!(server.host.refused.lock()[..], [Refusal::Stalled]);
}

#[tokio::test]
async fn bodies_of_requests_count_as_unfinished_memory() {
    let limits = Limits::of_master().with(Limit::RequestBytesPerAddress, 600_000);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let head = format!("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_MAX}\r\n\r\n");
    let mut streams = Vec::new();
    while server.host.refused.lock().is_empty() {
        assert!(streams.len() < 20, "nothing was refused");
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b'y'; 300_000]).await;
        streams.push(stream);
    }
    let expected = Refusal::Limit(Limit::RequestBytesPerAddress);
    assert_eq!(server.host.refused.lock()[0], expected);
}

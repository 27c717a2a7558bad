//! HTTP requests that are not messages.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::ServerOptions;
use super::{Call, RunningServer, TIMEOUT, message, rest_without_timeout, statuses, statuses_in};
use crate::Rejection;
use crate::limits::{Limit, Limits};
use crate::testing::{BODY_MAX, LARGE};

#[tokio::test]
async fn request_is_answered_and_connection_is_kept() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    for path in ["/server/state", "/server/health?x=1"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        // Two pieces: hyper reads the second piece.
        stream.write_all(&get.as_bytes()[..9]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&get.as_bytes()[9..]).await.unwrap();
        let expected = format!("GET {path}");
        let mut reply = String::new();
        while !reply.ends_with(&expected) {
            let mut piece = [0; 1024];
            let length =
                tokio::time::timeout(TIMEOUT, stream.read(&mut piece)).await.unwrap().unwrap();
            assert_ne!(length, 0, "{reply}");
            reply.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        assert_eq!(server.next_call().await, Call::Request(expected, "".into()));
    }
}

#[tokio::test]
async fn request_body_is_delivered_and_bounded() {
    let mut server = RunningServer::start(ServerOptions::default());
    let post = |length: usize| {
        let mut request =
            format!("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        request.push_str(&"y".repeat(length));
        request
    };
    assert_eq!(statuses_in(&server.ask(post(10_000)).await), [200]);
    assert_eq!(
        server.next_call().await,
        Call::Request("POST /x".into(), "y".repeat(10_000).into())
    );
    let mut stream = server.connect().await;
    let (mut read, mut write) = stream.split();
    let request = post(BODY_MAX + 1);
    let mut start = [0; 12];
    let sent = write.write_all(request.as_bytes());
    let (_, received) = tokio::join!(sent, read.read_exact(&mut start));
    received.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn request_with_parent_path_is_not_found() {
    let server = RunningServer::start(ServerOptions::default());
    for path in ["/..", "/server/../state", "/..x"] {
        let reply = server.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(statuses_in(&reply), [404], "{path}");
    }
}

#[tokio::test]
async fn panic_in_respond_is_internal_error() {
    let server = RunningServer::start(ServerOptions::default());
    let reply = server.ask("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(statuses_in(&reply), [500]);
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed_unless_it_sent_a_message() {
    let server = RunningServer::start(ServerOptions::default());
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut browser = server.connect().await;
    browser.write_all(get.as_bytes()).await.unwrap();
    let mut peer = server.connect().await;
    peer.write_all(get.as_bytes()).await.unwrap();
    peer.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses_in(&rest_without_timeout(&mut browser).await), [200]);
    assert_eq!(statuses(&mut peer, 2).await, [200, 202]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    peer.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut peer, 1).await, [202]);
}

#[tokio::test]
async fn connection_beyond_limit_replaces_longest_idle() {
    let limits = Limits::for_server().with(Limit::HttpConnectionsPerAddress, 3);
    let mut server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut browsers = Vec::new();
    for _ in 0..4 {
        let mut browser = server.connect().await;
        browser.write_all(get.as_bytes()).await.unwrap();
        server.next_call().await;
        browsers.push(browser);
    }
    assert_eq!(statuses_in(&rest_without_timeout(&mut browsers[0]).await), [200]);
    let rejected = [Rejection::Evicted(Limit::HttpConnectionsPerAddress)];
    assert_eq!(server.handler.rejections.lock()[..], rejected);
    browsers[1].write_all(get.as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut browsers[1], 2).await, [200, 200]);
    assert_eq!(statuses_in(&server.ask(message("server", "N")).await), [202]);
}

/// A request whose response the handler delays.
const HELD: &str = "GET /heavy/held HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn heavy_requests_beyond_limit_are_rejected() {
    let limits = Limits::for_server().with(Limit::RequestsPerAddress, 2);
    let mut server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(HELD.as_bytes()).await.unwrap();
        server.next_call().await;
        streams.push(stream);
    }
    let reply = server.ask("GET /heavy HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(statuses_in(&reply), [503]);
    assert!(reply.contains("limit requests_per_address is reached"), "{reply}");
    assert_eq!(statuses_in(&server.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await), [200]);
}

#[tokio::test]
async fn unread_responses_beyond_limit_are_rejected() {
    let limits = Limits::for_server().with(Limit::ResponseBytesPerAddress, 1024 * 1024);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let get = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(get.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    first.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let reply = server.ask(get).await;
    assert_eq!(statuses_in(&reply), [503]);
    assert!(reply.contains("limit response_bytes_per_address is reached"), "{reply}");
    // A small response needs no reservation.
    assert_eq!(statuses_in(&server.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await), [200]);
    drop(first);
    let again = async {
        while statuses_in(&server.ask(get).await) != [200] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, again).await.unwrap();
}

#[tokio::test]
async fn client_that_does_not_read_is_closed_after_timeout() {
    let limits = Limits::for_server().with(Limit::WriteTimeout, 1);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut stuck = server.connect().await;
    stuck.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let expected = Rejection::Limit(Limit::WriteTimeout);
    let closed = async {
        while server.handler.rejections.lock().first() != Some(&expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, closed).await.unwrap();
}

#[tokio::test]
async fn client_that_reads_slowly_is_evicted_after_idle_ones() {
    let per_address = Limit::HttpConnectionsPerAddress;
    let limits = Limits::for_server().with(per_address, 3).with(Limit::WriteTimeout, 1);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut slow = server.connect().await;
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut part = vec![0; 64 * 1024];
    let mut idle = Vec::new();
    for _ in 0..20 {
        tokio::time::timeout(TIMEOUT, slow.read_exact(&mut part)).await.unwrap().unwrap();
        let mut browser = server.connect().await;
        browser.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_eq!(statuses(&mut browser, 1).await, [200]);
        idle.push(browser);
    }
    // Two idle connections fit beside the slow one.
    let evicted = vec![Rejection::Evicted(per_address); 18];
    assert_eq!(server.handler.rejections.lock()[..], evicted);
    assert_eq!(statuses_in(&rest_without_timeout(&mut idle[0]).await), [0; 0]);
    // The client stops reading.
    let expected = Rejection::Limit(Limit::WriteTimeout);
    let closed = async {
        while server.handler.rejections.lock().last() != Some(&expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, closed).await.unwrap();
    assert_eq!(server.handler.rejections.lock().len(), 19);
}

#[tokio::test]
async fn connection_is_evicted_as_idle_after_its_response() {
    let limits = Limits::for_server().with(Limit::HttpConnectionsPerAddress, 1);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut first = server.connect().await;
    first.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let (mut received, mut part) = (0, vec![0; 1024 * 1024]);
    while received < LARGE {
        let length = tokio::time::timeout(TIMEOUT, first.read(&mut part)).await.unwrap().unwrap();
        received += part[..length].iter().filter(|byte| **byte == b'x').count();
    }
    first.write_all(b"GET /y HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(statuses(&mut first, 1).await, [200]);
    let mut second = server.connect().await;
    second.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(statuses(&mut second, 1).await, [200]);
    let rejected = [Rejection::Evicted(Limit::HttpConnectionsPerAddress)];
    assert_eq!(server.handler.rejections.lock()[..], rejected);
}

#[tokio::test(start_paused = true)]
async fn missing_request_body_times_out() {
    let server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(statuses_in(&rest_without_timeout(&mut stream).await), [408]);
    assert_eq!(server.handler.rejections.lock()[..], [Rejection::Stalled]);
}

#[tokio::test]
async fn incomplete_request_bodies_are_bounded() {
    let limits = Limits::for_server().with(Limit::RequestBytesPerAddress, 600_000);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let head = format!("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_MAX}\r\n\r\n");
    let mut streams = Vec::new();
    while server.handler.rejections.lock().is_empty() {
        assert!(streams.len() < 20, "nothing was rejected");
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b'y'; 300_000]).await;
        streams.push(stream);
    }
    let expected = Rejection::Limit(Limit::RequestBytesPerAddress);
    assert_eq!(server.handler.rejections.lock()[0], expected);
}

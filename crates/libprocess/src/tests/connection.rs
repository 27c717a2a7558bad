//! Messages on accepted connections.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::{HEAD_LIMIT, Server, ServerOptions};
use super::{
    Call, GOLDEN, RecordingHandler, RunningServer, TIMEOUT, golden, golden_body, message, rest,
    statuses, statuses_in,
};
use crate::Rejection;
use crate::limits::{Limit, Limits};
use crate::testing::BODY_MAX;

const CHUNKED: &str = "POST /server/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn recorded_messages_are_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    for name in GOLDEN {
        let request = golden(name);
        stream.write_all(&request).await.unwrap();
        let received = server.message().await;
        assert_eq!(received.body, golden_body(&request), "{name}");
        assert_eq!(format!("{}.http", received.name), format!("example.internal.{name}"));
        let is_to_server = received.to == "server";
        let from = if is_to_server { "client@127.0.0.1:5051" } else { "server@127.0.0.1:5050" };
        assert_eq!(received.from.to_string(), from);
        assert_eq!(statuses(&mut stream, 1).await, [202]);
    }
}

#[tokio::test]
async fn only_refusal_of_message_without_receipt_is_answered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    for (to, name) in [("server", "1"), ("nobody", "2"), ("server", "3")] {
        let request =
            message(to, name).replace("\r\n\r\n", "\r\nlibprocess-receipt: Errors\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    for name in ["1", "3"] {
        assert_eq!(server.message().await.name, name);
    }
    stream.shutdown().await.unwrap();
    let responses = rest(&mut stream).await;
    assert_eq!(statuses_in(&responses), [404], "{responses}");
}

#[tokio::test]
async fn message_in_single_bytes_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    for name in GOLDEN {
        let request = golden(name);
        let mut stream = server.connect().await;
        stream.set_nodelay(true).unwrap();
        for byte in &request {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(server.message().await.body, golden_body(&request), "{name}");
    }
}

#[tokio::test]
async fn message_in_two_pieces_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let request = golden("RegisterMessage.http");
    let mut stream = server.connect().await;
    stream.set_nodelay(true).unwrap();
    for cut in 1..request.len() {
        stream.write_all(&request[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&request[cut..]).await.unwrap();
        assert_eq!(server.message().await.body, golden_body(&request), "cut at {cut}");
    }
    assert_eq!(statuses(&mut stream, request.len() - 1).await.len(), request.len() - 1);
}

#[tokio::test]
async fn acknowledgment_has_date_and_empty_body() {
    let server = RunningServer::start(ServerOptions::default());
    let reply = server.ask(message("server", "N")).await;
    let lines: Vec<&str> = reply.split("\r\n").collect();
    assert_eq!(lines[0], "HTTP/1.1 202 Accepted");
    assert!(lines[1].starts_with("Date: ") && lines[1].ends_with(" GMT"), "{reply}");
    assert_eq!(&lines[2..], ["Content-Length: 0", "", ""]);
}

#[tokio::test]
async fn rejection_has_status_and_text() {
    let server = RunningServer::start(ServerOptions::default());
    let length = BODY_MAX + 1;
    let head = "POST /server/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n";
    let cases = [
        (message("nobody", "N"), 404, "unknown process 'nobody'"),
        (message("%zz", "N"), 500, "percent-encoded"),
        ("POST /N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\n\r\n".into(), 400, "/PROCESS/NAME"),
        (
            "POST /server/N HTTP/1.1\r\nLibprocess-From: a\r\n\r\n".into(),
            400,
            "expected id@ip:port",
        ),
        (format!("{head}Content-Length: {length}\r\n\r\n"), 413, "the body exceeds 1048576 bytes"),
        (format!("{CHUNKED}{length:x}\r\n"), 413, "the body exceeds"),
        (format!("{CHUNKED}zz\r\n"), 400, "the size of a chunk"),
        (format!("{head}X: {}\r\n\r\n", "x".repeat(HEAD_LIMIT)), 431, "exceeds 81920 bytes"),
        (format!("{head}{}\r\n", "X: y\r\n".repeat(200)), 431, "exceeds"),
        (format!("{head}Content-Encoding: br\r\n\r\n"), 415, "gzip"),
        (format!("{head}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx"), 400, "gzip"),
        ("what is this\r\n\r\n".into(), 400, "not an HTTP/1 request"),
    ];
    for (request, status, text) in cases {
        let reply = server.ask(&request).await;
        let start = &request[..request.len().min(120)];
        assert_eq!(statuses_in(&reply), [status], "{start:?} got {reply:?}");
        assert!(reply.contains(text), "{start:?} got {reply:?}");
        assert!(server.handler.rejections.lock().pop().is_some(), "{start:?} was not counted");
    }
}

#[tokio::test]
async fn connection_continues_after_rejected_message() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let bad =
        "POST /nobody/N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\nContent-Length: 3\r\n\r\nabc";
    let all = [bad.as_bytes(), message("server", "N").as_bytes()].concat();
    stream.write_all(&all).await.unwrap();
    assert_eq!(statuses(&mut stream, 2).await, [404, 202]);
    assert_eq!(server.message().await.name, "N");
}

#[tokio::test]
async fn acknowledgments_have_order_of_messages() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let mut all = String::new();
    let mut expected = Vec::new();
    for number in 0..500 {
        let (to, status) = if number % 3 == 0 { ("nobody", 404) } else { ("client", 202) };
        all.push_str(&message(to, &number.to_string()));
        expected.push(status);
    }
    stream.write_all(all.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(statuses_in(&rest(&mut stream).await), expected);
    for number in (0..500).filter(|number| number % 3 != 0) {
        assert_eq!(server.message().await.name, number.to_string());
    }
}

#[tokio::test]
async fn message_of_closed_connection_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    // Enough for several reads, so that input remains after the first acknowledgment has failed.
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(golden("ReportMessage.http"));
    }
    for has_reset in [false, true] {
        let mut stream = server.connect().await;
        stream.write_all(&all).await.unwrap();
        if has_reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        for _ in 0..100 {
            server.message().await;
        }
    }
}

#[tokio::test]
async fn connection_close_is_respected() {
    let server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let close =
        "POST /server/N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\nConnection: close\r\n\r\n";
    stream.write_all(close.as_bytes()).await.unwrap();
    let reply = rest(&mut stream).await;
    assert!(reply.starts_with("HTTP/1.1 202") && reply.contains("Connection: close"), "{reply}");
    let mut stream = server.connect().await;
    stream
        .write_all(close.replace("1.1\r\nL", "1.0\r\nL").replace("close", "x").as_bytes())
        .await
        .unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 202"));
}

#[tokio::test]
async fn body_with_length_gzip_or_trailers_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, b"hello").unwrap();
    let gzip = encoder.finish().unwrap();
    let head = "POST /server/N HTTP/1.1\r\nlibprocess-FROM: a@127.0.0.1:1\r\nHost:\r\n";
    let packed = format!("{head}Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", gzip.len());
    let all = [
        format!("{head}Content-Length: 5\r\n\r\nhello").as_bytes(),
        packed.as_bytes(),
        &gzip,
        format!("{CHUNKED}2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n").as_bytes(),
    ]
    .concat();
    let mut stream = server.connect().await;
    stream.write_all(&all).await.unwrap();
    assert_eq!(statuses(&mut stream, 3).await, [202, 202, 202]);
    for _ in 0..3 {
        assert_eq!(server.message().await.body, "hello");
    }
}

#[tokio::test]
async fn largest_body_after_expect_continue_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /slave%281%29+x/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
                Expect: 100-continue\r\nContent-Length: 1048576\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [100]);
    stream.write_all(&vec![b'x'; BODY_MAX]).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    let received = server.message().await;
    assert_eq!((received.to.as_str(), received.body.len()), ("slave(1) x", BODY_MAX));
}

#[tokio::test]
async fn sender_with_foreign_address_is_rejected_if_required() {
    let options = ServerOptions { require_peer_address_match: true, ..ServerOptions::default() };
    let mut server = RunningServer::start(options);
    let mismatched = "POST /server/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.2:1\r\n\r\n";
    let reply = server.ask(mismatched).await;
    assert_eq!(statuses_in(&reply), [400]);
    assert!(reply.contains("\r\n\r\nUPID IP address validation failed"), "{reply}");
    assert!(reply.contains("127.0.0.2") && reply.contains("127.0.0.1"), "{reply}");
    assert!(matches!(server.handler.rejections.lock()[..], [Rejection::AddressMismatch { .. }]));
    server.ask(message("server", "N")).await;
    assert_eq!(server.message().await.name, "N");
}

#[tokio::test]
async fn overloaded_handler_delays_only_one_connection() {
    let mut server = RunningServer::start(ServerOptions::default());
    server.handler.capacity.forget_permits(usize::MAX);
    server.handler.capacity.add_permits(1);
    let mut first = server.connect().await;
    first.write_all(message("server", "1").repeat(2).as_bytes()).await.unwrap();
    assert_eq!(server.message().await.name, "1");
    // The second message of the first connection waits. Other connections are served.
    assert_eq!(statuses_in(&server.ask(message("nobody", "N")).await), [404]);
    server.handler.capacity.add_permits(1);
    assert_eq!(statuses(&mut first, 2).await, [202, 202]);
}

#[tokio::test]
async fn panic_in_deliver_ends_only_its_connection() {
    let server = RunningServer::start(ServerOptions::default());
    let mut other = server.connect().await;
    assert_eq!(server.ask(message("server", "Panic")).await, "");
    other.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut other, 1).await, [202]);
}

#[tokio::test]
async fn connection_beyond_limit_replaces_longest_idle() {
    let limits = Limits::for_server().with(Limit::Connections, 2);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut silent = server.connect().await;
    let mut used = server.connect().await;
    for _ in 0..2 {
        used.write_all(message("server", "N").as_bytes()).await.unwrap();
        assert_eq!(statuses(&mut used, 1).await, [202]);
    }
    assert_eq!(statuses_in(&server.ask(message("server", "N")).await), [202]);
    assert_eq!(rest(&mut silent).await, "");
    used.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut used, 1).await, [202]);
    assert_eq!(server.handler.rejections.lock()[..], [Rejection::Evicted(Limit::Connections)]);
}

#[tokio::test]
async fn message_beyond_rate_limit_is_rejected_with_429() {
    let limits = Limits::for_server().with(Limit::RegistrationsPerSecondPerAddress, 1);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut stream = server.connect().await;
    let registrations = message("server", "Registration").repeat(12);
    stream.write_all(registrations.as_bytes()).await.unwrap();
    let statuses = statuses(&mut stream, 12).await;
    assert_eq!((&statuses[..10], statuses[11]), (&[202; 10][..], 429));
    // Other messages of the address are accepted.
    assert_eq!(statuses_in(&server.ask(message("server", "N")).await), [202]);
}

#[tokio::test]
async fn body_of_ignored_message_is_discarded() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /server/Ignored HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n";
    let body = "x".repeat(100_000);
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 2).await, [202, 202]);
    let ignored = server.message().await;
    assert_eq!((ignored.name.as_str(), ignored.body.len()), ("Ignored", 0));
    let too_long = format!("{head}Content-Length: {}\r\n\r\n", 2 * 1024 * 1024);
    assert_eq!(statuses_in(&server.ask(too_long).await), [413]);
}

/// Waits until the server has processed its input.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_link_stays_open_for_days() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut used = server.connect().await;
    used.write_all(message("server", "1").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut used, 1).await, [202]);
    // A link without any data, as libprocess creates it.
    let mut silent = server.connect().await;
    settle().await;
    tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
    for stream in [&mut used, &mut silent] {
        stream.write_all(message("server", "2").as_bytes()).await.unwrap();
        assert_eq!(statuses(stream, 1).await, [202]);
    }
    assert_eq!(server.message().await.name, "1");
}

#[tokio::test(start_paused = true)]
async fn peer_that_stalls_in_request_is_closed() {
    let server = RunningServer::start(ServerOptions::default());
    let body = format!("{CHUNKED}5\r\nhe");
    for start in ["P", "POST /server/N HTTP/1.1\r\nLibprocess-From:", body.as_str()] {
        let mut stream = server.connect().await;
        stream.write_all(message("server", "1").as_bytes()).await.unwrap();
        assert_eq!(statuses(&mut stream, 1).await, [202]);
        stream.write_all(start.as_bytes()).await.unwrap();
        // Occasional bytes do not extend the deadline.
        let (mut read, mut write) = stream.into_split();
        let drip = tokio::spawn(async move {
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        });
        let begun = tokio::time::Instant::now();
        let mut end = Vec::new();
        let _ = read.read_to_end(&mut end).await;
        assert!(begun.elapsed() <= Duration::from_secs(61), "{start:?} took {:?}", begun.elapsed());
        drip.abort();
    }
}

#[tokio::test]
async fn sender_that_reads_nothing_does_not_delay_others() {
    let limits = Limits::for_server().with(Limit::MessagesPerSecondPerAddress, 1_000_000);
    let mut server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut stuck = server.connect().await;
    let flood = message("nobody", "N").repeat(1000);
    let flood =
        tokio::spawn(async move { while stuck.write_all(flood.as_bytes()).await.is_ok() {} });
    for number in 0..20 {
        server.ask(message("server", &number.to_string())).await;
        assert_eq!(server.message().await.name, number.to_string());
    }
    flood.abort();
}

#[tokio::test]
async fn end_of_server_closes_connections_and_frees_port() {
    let server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    stream.write_all(message("server", "1").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    server.task.abort();
    assert_eq!(rest(&mut stream).await, "");
    // The port can be bound again immediately.
    let again = Server::bind(server.address);
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn message_on_http_connection_is_delivered() {
    let mut server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let get = "GET /server/state HTTP/1.1\r\nHost: x\r\n\r\n";
    let all = [get.as_bytes(), &golden("RegisterMessage.http"), get.as_bytes()].concat();
    stream.write_all(&all).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(matches!(server.next_call().await, Call::Request(..)));
    assert_eq!(server.message().await.body, golden_body(&golden("RegisterMessage.http")));
    assert!(matches!(server.next_call().await, Call::Request(..)));
    assert_eq!(statuses_in(&rest(&mut stream).await), [200, 202, 200]);
}

#[tokio::test]
async fn truncated_message_is_rejected() {
    let server = RunningServer::start(ServerOptions::default());
    let mut stream = server.connect().await;
    stream.write_all(b"POST /server/N HT").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
    assert_eq!(server.handler.rejections.lock()[..], [Rejection::Truncated]);
}

#[tokio::test]
async fn incomplete_bodies_are_bounded() {
    let server = RunningServer::start(ServerOptions::default());
    let head = format!(
        "POST /server/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
         Content-Length: {BODY_MAX}\r\n\r\n"
    );
    let most = vec![b'x'; BODY_MAX - 1];
    let mut unfinished = Vec::new();
    while server.handler.rejections.lock().is_empty() {
        assert!(unfinished.len() < 40, "nothing was rejected");
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // A rejected peer cannot write the complete body.
        let _ = stream.write_all(&most).await;
        unfinished.push(stream);
    }
    let expected = Rejection::Limit(Limit::RequestBytesPerAddress);
    assert!(server.handler.rejections.lock().iter().all(|rejection| *rejection == expected));
    drop(unfinished);
    let whole = [head.as_bytes(), &most, b"x"].concat();
    timeout(TIMEOUT, async {
        while statuses_in(&server.ask(&whole).await) != [202] {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn server_ends_after_shutdown() {
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let options = ServerOptions::default();
    let run =
        tokio::spawn(server.run(RecordingHandler::new().0, options, async { drop(stopped.await) }));
    stream.write_all(message("server", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    drop(stop);
    assert_eq!(rest(&mut stream).await, "");
    run.await.unwrap();
}

#[tokio::test]
async fn incomplete_heads_are_bounded() {
    let limits = Limits::for_server().with(Limit::RequestBytesPerAddress, 200_000);
    let server = RunningServer::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut streams = Vec::new();
    let wait = async {
        while server.handler.rejections.lock().is_empty() {
            let mut stream = server.connect().await;
            let head = format!("POST /server/N HTTP/1.1\r\nX: {}", "x".repeat(30_000));
            let _ = stream.write_all(head.as_bytes()).await;
            streams.push(stream);
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap();
    let rejected = server.handler.rejections.lock().clone();
    assert_eq!(rejected[0], Rejection::Limit(Limit::RequestBytesPerAddress));
    drop(streams);
    // The memory is released, and messages are accepted again.
    let again = async {
        while statuses_in(&server.ask(message("server", "N")).await) != [202] {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, again).await.unwrap();
}

#[tokio::test]
async fn message_with_long_name_is_rejected() {
    let server = RunningServer::start(ServerOptions::default());
    let long = "n".repeat(1000);
    let reply = server.ask(message("server", &long)).await;
    assert_eq!(statuses_in(&reply), [400]);
    assert!(reply.len() < 500, "{reply}");
    let head = format!("POST /{long}/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\r\n");
    assert_eq!(statuses_in(&server.ask(head).await), [400]);
}

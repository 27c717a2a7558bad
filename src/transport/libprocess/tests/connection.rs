//! Messages on accepted connections.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::{HEAD_LIMIT, Server, ServerOptions};
use super::{
    GOLDEN, Host, PATIENCE, Running, Told, golden, golden_body, message, rest, statuses,
    statuses_in,
};
use crate::limits::{Limit, Limits};
use crate::transport::Refusal;
use crate::transport::tests::BODY_MAX;

const CHUNKED: &str = "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn the_recorded_messages_are_understood() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    for name in GOLDEN {
        let request = golden(name);
        stream.write_all(&request).await.unwrap();
        let came = server.message().await;
        assert_eq!(came.body, golden_body(&request), "{name}");
        let package = "mesos.modules.overlay.internal.";
        assert_eq!(format!("{}.http", came.name), format!("{package}{name}"));
        let is_to_master = came.to == "overlay-master";
        let from = if is_to_master {
            "overlay-agent@127.0.0.1:5051"
        } else {
            "overlay-master@127.0.0.1:5050"
        };
        assert_eq!(came.from.to_string(), from);
        assert_eq!(statuses(&mut stream, 1).await, [202]);
    }
}

#[tokio::test]
async fn a_message_may_come_byte_by_byte() {
    let mut server = Running::start(ServerOptions::default());
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
async fn a_message_may_come_in_two_pieces_cut_anywhere() {
    let mut server = Running::start(ServerOptions::default());
    let request = golden("RegisterAgentMessage.http");
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
async fn a_receipt_says_that_it_is_empty_and_when() {
    let server = Running::start(ServerOptions::default());
    let reply = server.ask(message("overlay-master", "N")).await;
    let lines: Vec<&str> = reply.split("\r\n").collect();
    assert_eq!(lines[0], "HTTP/1.1 202 Accepted");
    assert!(lines[1].starts_with("Date: ") && lines[1].ends_with(" GMT"), "{reply}");
    assert_eq!(&lines[2..], ["Content-Length: 0", "", ""]);
}

#[tokio::test]
async fn every_refusal_has_its_status_and_its_words() {
    let server = Running::start(ServerOptions::default());
    let length = BODY_MAX + 1;
    let head = "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n";
    let cases = [
        (message("nobody", "N"), 404, "no process 'nobody' lives here"),
        (message("%zz", "N"), 500, "percent-encoded"),
        ("POST /N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\n\r\n".into(), 400, "/PROCESS/NAME"),
        (
            "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a\r\n\r\n".into(),
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
    for (request, status, words) in cases {
        let reply = server.ask(&request).await;
        let start = &request[..request.len().min(120)];
        assert_eq!(statuses_in(&reply), [status], "{start:?} got {reply:?}");
        assert!(reply.contains(words), "{start:?} got {reply:?}");
        assert!(server.host.refused.lock().pop().is_some(), "{start:?} was not counted");
    }
}

#[tokio::test]
async fn a_refused_message_leaves_the_connection_as_it_was() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let bad =
        "POST /nobody/N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\nContent-Length: 3\r\n\r\nabc";
    let all = [bad.as_bytes(), message("overlay-master", "N").as_bytes()].concat();
    stream.write_all(&all).await.unwrap();
    assert_eq!(statuses(&mut stream, 2).await, [404, 202]);
    assert_eq!(server.message().await.name, "N");
}

#[tokio::test]
async fn receipts_come_in_the_order_of_the_messages() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let mut all = String::new();
    let mut expected = Vec::new();
    for number in 0..500 {
        let (to, status) = if number % 3 == 0 { ("nobody", 404) } else { ("overlay-agent", 202) };
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
async fn a_message_counts_although_its_sender_is_gone() {
    let mut server = Running::start(ServerOptions::default());
    // Enough for several reads, so that there is something to read after the first receipt has
    // failed.
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(golden("AgentRegisteredMessage.http"));
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
async fn a_sender_may_ask_for_the_end() {
    let server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let close = "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\nConnection: close\r\n\r\n";
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
async fn bodies_of_known_length_compressed_bodies_and_trailers_are_read() {
    let mut server = Running::start(ServerOptions::default());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, b"hello").unwrap();
    let gzip = encoder.finish().unwrap();
    let head = "POST /overlay-master/N HTTP/1.1\r\nlibprocess-FROM: a@127.0.0.1:1\r\nHost:\r\n";
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
async fn the_largest_body_arrives_and_a_sender_may_wait_for_the_word() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /slave%281%29+x/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
                Expect: 100-continue\r\nContent-Length: 1048576\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [100]);
    stream.write_all(&vec![b'x'; BODY_MAX]).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    let came = server.message().await;
    assert_eq!((came.to.as_str(), came.body.len()), ("slave(1) x", BODY_MAX));
}

#[tokio::test]
async fn a_sender_must_be_where_it_says_if_that_is_demanded() {
    let options = ServerOptions { require_peer_address_match: true, ..ServerOptions::default() };
    let mut server = Running::start(options);
    let liar = "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.2:1\r\n\r\n";
    let reply = server.ask(liar).await;
    assert_eq!(statuses_in(&reply), [400]);
    assert!(reply.contains("\r\n\r\nUPID IP address validation failed"), "{reply}");
    assert!(reply.contains("127.0.0.2") && reply.contains("127.0.0.1"), "{reply}");
    assert!(matches!(server.host.refused.lock()[..], [Refusal::AddressMismatch { .. }]));
    server.ask(message("overlay-master", "N")).await;
    assert_eq!(server.message().await.name, "N");
}

#[tokio::test]
async fn a_full_host_holds_up_the_one_connection_only() {
    let mut server = Running::start(ServerOptions::default());
    server.host.room.forget_permits(usize::MAX);
    server.host.room.add_permits(1);
    let mut first = server.connect().await;
    first.write_all(message("overlay-master", "1").repeat(2).as_bytes()).await.unwrap();
    assert_eq!(server.message().await.name, "1");
    // The first connection now waits with its second message. Others are served.
    assert_eq!(statuses_in(&server.ask(message("nobody", "N")).await), [404]);
    server.host.room.add_permits(1);
    assert_eq!(statuses(&mut first, 2).await, [202, 202]);
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_alone() {
    let server = Running::start(ServerOptions::default());
    let mut other = server.connect().await;
    assert_eq!(server.ask(message("overlay-master", "Panic")).await, "");
    other.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut other, 1).await, [202]);
}

#[tokio::test]
async fn connection_beyond_the_limit_replaces_the_longest_silent() {
    let limits = Limits::of_master().with(Limit::Connections, 2);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut silent = server.connect().await;
    let mut used = server.connect().await;
    for _ in 0..2 {
        used.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
        assert_eq!(statuses(&mut used, 1).await, [202]);
    }
    assert_eq!(statuses_in(&server.ask(message("overlay-master", "N")).await), [202]);
    assert_eq!(rest(&mut silent).await, "");
    used.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut used, 1).await, [202]);
    assert_eq!(server.host.refused.lock()[..], [Refusal::Evicted(Limit::Connections)]);
}

#[tokio::test]
async fn messages_beyond_the_rate_of_an_address_are_refused_with_429() {
    let limits = Limits::of_master().with(Limit::RegistrationsPerSecondPerAddress, 1);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut stream = server.connect().await;
    let registrations = message("overlay-master", "Registration").repeat(12);
    stream.write_all(registrations.as_bytes()).await.unwrap();
    let statuses = statuses(&mut stream, 12).await;
    assert_eq!((&statuses[..10], statuses[11]), (&[202; 10][..], 429));
    // Other messages of the address, and its connection, are not concerned.
    assert_eq!(statuses_in(&server.ask(message("overlay-master", "N")).await), [202]);
}

#[tokio::test]
async fn body_of_an_ignored_message_is_not_kept() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let head = "POST /overlay-master/Ignored HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n";
    let body = "x".repeat(100_000);
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 2).await, [202, 202]);
    let ignored = server.message().await;
    assert_eq!((ignored.name.as_str(), ignored.body.len()), ("Ignored", 0));
    let too_long = format!("{head}Content-Length: {}\r\n\r\n", 2 * 1024 * 1024);
    assert_eq!(statuses_in(&server.ask(too_long).await), [413]);
}

/// Waits until the server has had its turn with everything that was sent.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_lives_for_days() {
    let mut server = Running::start(ServerOptions::default());
    let mut used = server.connect().await;
    used.write_all(message("overlay-master", "1").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut used, 1).await, [202]);
    // A link that nothing was sent on yet, as libprocess makes them.
    let mut silent = server.connect().await;
    settle().await;
    tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
    for stream in [&mut used, &mut silent] {
        stream.write_all(message("overlay-master", "2").as_bytes()).await.unwrap();
        assert_eq!(statuses(stream, 1).await, [202]);
    }
    assert_eq!(server.message().await.name, "1");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_in_a_request_is_dropped() {
    let server = Running::start(ServerOptions::default());
    let body = format!("{CHUNKED}5\r\nhe");
    for start in ["P", "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From:", body.as_str()] {
        let mut stream = server.connect().await;
        stream.write_all(message("overlay-master", "1").as_bytes()).await.unwrap();
        assert_eq!(statuses(&mut stream, 1).await, [202]);
        stream.write_all(start.as_bytes()).await.unwrap();
        // A byte now and then does not help.
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
async fn a_sender_that_reads_no_receipts_holds_up_nobody() {
    let limits = Limits::of_master().with(Limit::MessagesPerSecondPerAddress, 1_000_000);
    let mut server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut deaf = server.connect().await;
    let flood = message("nobody", "N").repeat(1000);
    let flood =
        tokio::spawn(async move { while deaf.write_all(flood.as_bytes()).await.is_ok() {} });
    for number in 0..20 {
        server.ask(message("overlay-master", &number.to_string())).await;
        assert_eq!(server.message().await.name, number.to_string());
    }
    flood.abort();
}

#[tokio::test]
async fn the_end_of_the_server_is_the_end_of_its_connections() {
    let server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    stream.write_all(message("overlay-master", "1").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    server.task.abort();
    assert_eq!(rest(&mut stream).await, "");
    // And its port can be taken again at once.
    let again = Server::bind(server.address);
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn a_message_on_a_connection_of_a_browser_is_a_message() {
    let mut server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    let get = "GET /overlay-master/state HTTP/1.1\r\nHost: x\r\n\r\n";
    let all = [get.as_bytes(), &golden("RegisterAgentMessage.http"), get.as_bytes()].concat();
    stream.write_all(&all).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(matches!(server.told().await, Told::Request(..)));
    assert_eq!(server.message().await.body, golden_body(&golden("RegisterAgentMessage.http")));
    assert!(matches!(server.told().await, Told::Request(..)));
    assert_eq!(statuses_in(&rest(&mut stream).await), [200, 202, 200]);
}

#[tokio::test]
async fn half_a_message_before_the_end_is_counted() {
    let server = Running::start(ServerOptions::default());
    let mut stream = server.connect().await;
    stream.write_all(b"POST /overlay-master/N HT").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
    assert_eq!(server.host.refused.lock()[..], [Refusal::Truncated]);
}

#[tokio::test]
async fn all_unfinished_bodies_together_are_bounded() {
    let server = Running::start(ServerOptions::default());
    let head = format!(
        "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\nContent-Length: {BODY_MAX}\r\n\r\n"
    );
    let most = vec![b'x'; BODY_MAX - 1];
    let mut unfinished = Vec::new();
    while server.host.refused.lock().is_empty() {
        assert!(unfinished.len() < 40, "nobody was refused");
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // Whoever is refused in the middle of it cannot write all.
        let _ = stream.write_all(&most).await;
        unfinished.push(stream);
    }
    let expected = Refusal::Limit(Limit::RequestBytesPerAddress);
    assert!(server.host.refused.lock().iter().all(|refusal| *refusal == expected));
    drop(unfinished);
    let whole = [head.as_bytes(), &most, b"x"].concat();
    timeout(PATIENCE, async {
        while statuses_in(&server.ask(&whole).await) != [202] {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_server_ends_when_it_is_told_to() {
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let options = ServerOptions::default();
    let run = tokio::spawn(server.run(Host::new().0, options, async { drop(stopped.await) }));
    stream.write_all(message("overlay-master", "N").as_bytes()).await.unwrap();
    assert_eq!(statuses(&mut stream, 1).await, [202]);
    drop(stop);
    assert_eq!(rest(&mut stream).await, "");
    run.await.unwrap();
}

#[tokio::test]
async fn heads_that_wait_for_their_end_count_as_memory() {
    let limits = Limits::of_master().with(Limit::RequestBytesPerAddress, 200_000);
    let server = Running::start(ServerOptions { limits, ..ServerOptions::default() });
    let mut streams = Vec::new();
    let wait = async {
        while server.host.refused.lock().is_empty() {
            let mut stream = server.connect().await;
            let head = format!("POST /overlay-master/N HTTP/1.1\r\nX: {}", "x".repeat(30_000));
            let _ = stream.write_all(head.as_bytes()).await;
            streams.push(stream);
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
    let refused = server.host.refused.lock().clone();
    assert_eq!(refused[0], Refusal::Limit(Limit::RequestBytesPerAddress));
    drop(streams);
    // It is given back, and a message finds room again.
    let again = async {
        while statuses_in(&server.ask(message("overlay-master", "N")).await) != [202] {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn names_that_are_too_long_are_refused() {
    let server = Running::start(ServerOptions::default());
    let long = "n".repeat(1000);
    let reply = server.ask(message("overlay-master", &long)).await;
    assert_eq!(statuses_in(&reply), [400]);
    assert!(reply.len() < 500, "{reply}");
    let head = format!("POST /{long}/N HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\r\n");
    assert_eq!(statuses_in(&server.ask(head).await), [400]);
}

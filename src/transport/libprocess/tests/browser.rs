//! Plain HTTP beside the messages.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::{BODY_LIMIT, ServerOptions};
use super::{PATIENCE, Running, Told, message, rest_at_last, statuses, statuses_in};

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
    let request = post(BODY_LIMIT + 1);
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
async fn browsers_beyond_the_limit_are_told_so_and_messages_still_come_in() {
    let mut server = Running::start(ServerOptions::default());
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut browsers = Vec::new();
    for _ in 0..512 {
        let mut browser = server.connect().await;
        browser.write_all(get.as_bytes()).await.unwrap();
        server.told().await;
        browsers.push(browser);
    }
    assert_eq!(statuses_in(&server.ask(get).await), [503]);
    assert_eq!(statuses_in(&server.ask(message("overlay-master", "N")).await), [202]);
}

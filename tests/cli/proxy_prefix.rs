//! Every endpoint below the prefix of a proxy: no response has a link or a redirect that leaves the
//! prefix.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::thread::Builder;

use crate::support::{Master, TestDir, start_agent};

/// The path below which the proxy serves a program.
const PREFIX: &str = "/service/overlay";

/// Starts a proxy that removes the prefix of the path, as a browser's `Host` stays. Returns its
/// address.
fn start_proxy(target: SocketAddrV4) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let forward = move |mut client: TcpStream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        let request = String::from_utf8(request).unwrap().replacen(PREFIX, "", 1);
        let mut server = TcpStream::connect(target).unwrap();
        server.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        server.read_to_end(&mut response).unwrap();
        client.write_all(&response).unwrap();
    };
    let serve = move || listener.incoming().for_each(|client| forward(client.unwrap()));
    // The thread is detached: it ends with the test process.
    Builder::new().spawn(serve).unwrap();
    address
}

/// Fetches a path below the prefix. Returns the head in lower case, and the body.
fn fetch(proxy: &str, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    let request = format!(
        "{method} {PREFIX}{path} HTTP/1.1\r\nHost: {proxy}\r\nConnection: close\r\n\
         Content-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[track_caller]
fn assert_relative(proxy: &str, server: SocketAddrV4, paths: &[&str]) {
    for path in paths {
        for path in [(*path).to_owned(), format!("{path}/"), format!("{path}/none?x=1")] {
            for method in ["GET", "HEAD", "POST", "OPTIONS"] {
                let (head, body) = fetch(proxy, method, &path);
                let request = format!("{method} {path}: {head}\n\n{body}");
                for header in ["location", "content-location", "refresh", "link"] {
                    assert!(!head.contains(&format!("\r\n{header}:")), "{request}");
                }
                assert!(!head.starts_with("http/1.1 3"), "{request}");
                for absolute in ["/overlay-master", "/overlay-agent", "=\"/", "='/"] {
                    assert!(!body.contains(absolute), "{absolute} in {request}");
                }
                assert!(!body.contains(&format!("//{server}")), "{request}");
            }
        }
    }
}

#[test]
fn responses_of_master_stay_below_prefix() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    master.wait_for_state(&dir, |_| true);
    let proxy = start_proxy(master.address);
    let (head, _) = fetch(&proxy, "GET", "/overlay-master/state");
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let paths = ["state", "health", "metrics", "history", "agents/delete", "preview", "reload"];
    let paths = paths.map(|path| format!("/overlay-master/{path}"));
    let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    paths.extend(["", "/overlay-master", "/overlay-master/agents", "/help", "/favicon.ico"]);
    assert_relative(&proxy, master.address, &paths);
}

#[test]
fn responses_of_agent_stay_below_prefix() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let mut agent = start_agent(&dir, master.address, "127.0.0.1");
    let rest = agent.expect_log("overlay agent at ");
    let address = rest.split(',').next().unwrap().parse().unwrap();
    let proxy = start_proxy(address);
    let (head, _) = fetch(&proxy, "GET", "/overlay-agent/overlay");
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let paths = ["overlay", "health", "metrics"].map(|path| format!("/overlay-agent/{path}"));
    let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    paths.extend(["", "/overlay-agent", "/help", "/favicon.ico"]);
    assert_relative(&proxy, address, &paths);
}

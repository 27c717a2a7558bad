//! Who may read and write over HTTP: credentials, lists of principals, local clients and the Unix
//! socket.

use std::fs;
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::thread::park_timeout;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;

use crate::support::{NETWORK, POLL_INTERVAL, RunningProcess, TIMEOUT, TestDir, start_agent};

/// Starts a master with these arguments. Returns the process and the address.
fn start(dir: &TestDir, arguments: &str) -> (RunningProcess, SocketAddrV4) {
    let arguments =
        format!("master --config master.json --listen 127.0.0.1:0 --work-dir work {arguments}");
    let mut process = RunningProcess::start(dir, &arguments);
    let address = process.expect_log("overlay master at ");
    let address = address.split(':').take(2).collect::<Vec<_>>().join(":").parse().unwrap();
    wait_until_ready(address);
    (process, address)
}

/// Waits until the master at this address has read its state: it refuses changes before.
fn wait_until_ready(address: SocketAddrV4) {
    let request = request("GET", "/overlay-master/state", "Host: localhost\r\n");
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        if !exchange(TcpStream::connect(address).unwrap(), &request).starts_with("HTTP/1.1 503 ") {
            return;
        }
        park_timeout(POLL_INTERVAL);
    }
    panic!("the master at {address} does not read its state");
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n")
}

/// Returns the head and the body of the response.
fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn basic(principal_and_secret: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(principal_and_secret))
}

#[test]
fn credentials_and_acls_decide_and_changes_are_audited() {
    let dir = TestDir::new();
    let acls = r#"{"read":"ANY","write":["ops"]}"#;
    dir.write("master.json", format!(r#"{{"network":{NETWORK},"acls":{acls}}}"#));
    dir.write("credentials", "ops first\nviewer x\n");
    fs::set_permissions(dir.path("credentials"), fs::Permissions::from_mode(0o640)).unwrap();
    let (mut master, address) = start(&dir, "--credentials credentials");
    let send = |method: &str, path: &str, headers: &str| {
        let request = request(method, path, headers);
        exchange(TcpStream::connect(address).unwrap(), &request)
    };
    let reload = |headers: &str| send("POST", "/overlay-master/reload", headers);
    let status = |response: &str| response.split(' ').nth(1).unwrap().to_owned();

    let challenged = reload("Host: localhost\r\n");
    assert_eq!(status(&challenged), "401");
    let challenge = "\r\nwww-authenticate: Basic realm=\"mesos-master-readwrite\"\r\n";
    assert!(challenged.contains(challenge), "{challenged}");
    assert_eq!(status(&reload(&basic("ops:wrong"))), "401");
    let reason = master.expect_log("audit: refused POST /overlay-master/reload of ");
    assert!(reason.contains(": wrong principal or secret: "), "{reason}");
    assert_eq!(status(&reload(&basic("viewer:x"))), "403");
    let health = send("GET", "/overlay-master/health", "Host: localhost\r\n");
    assert_eq!(status(&health), "200");
    assert!(health.contains("its mode 0640 is wider than 0600"), "{health}");

    // The network changes, so that the history has an entry.
    let changed = NETWORK.replace("192.168.128.0/17", "192.168.128.0/18");
    dir.write("master.json", format!(r#"{{"network":{changed},"acls":{acls}}}"#));
    assert_eq!(status(&reload(&basic("ops:first"))), "200");
    let audit = master.expect_log("audit: ops from 127.0.0.1:");
    assert!(audit.ends_with(": read the configuration again: 200 OK"), "{audit}");
    let history = send("GET", "/overlay-master/history", "Host: localhost\r\n");
    assert!(history.contains(r#""principal":"ops","client":"127.0.0.1:"#), "{history}");
    let table = dir.run(&format!("history --master {address}")).success();
    assert!(table.contains(" (by ops from 127.0.0.1:"), "{table}");

    dir.write("credentials", "ops second\n");
    fs::set_permissions(dir.path("credentials"), fs::Permissions::from_mode(0o600)).unwrap();
    master.send_sighup();
    master.expect_log("applied acls, hostnames and credentials");
    assert_eq!(status(&reload(&basic("ops:first"))), "401");
    assert_eq!(status(&reload(&basic("ops:second"))), "200");
    // A malformed file leaves the credentials as they are, and no message repeats it.
    dir.write("credentials", "ops hunter2 x\n");
    let refused = reload(&basic("ops:second"));
    assert_eq!(status(&refused), "422");
    assert!(refused.contains("line 1: it is not a principal and a secret"), "{refused}");
    assert_eq!(status(&reload(&basic("ops:second"))), "422");
    let metrics = send("GET", "/overlay-master/metrics", "Host: localhost\r\n");
    assert!(metrics.contains("\nmesos_overlay_master_authentication_failures_total 2\n"));
    assert!(metrics.contains("\nmesos_overlay_master_forbidden_requests_total 1\n"));
    let (_, log) = master.terminate();
    assert!(!log.contains("hunter2") && !log.contains("second"), "{log}");
}

/// Returns the status of a reload.
fn reload(address: SocketAddrV4, headers: &str) -> u16 {
    let request = request("POST", "/overlay-master/reload", headers);
    let response = exchange(TcpStream::connect(address).unwrap(), &request);
    response.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn reload_applies_all_or_nothing() {
    let dir = TestDir::new();
    let write = |network: &str, writers: &str| {
        let acls = format!(r#"{{"read":"ANY","write":{writers}}}"#);
        dir.write("master.json", format!(r#"{{"network":{network},"acls":{acls}}}"#));
    };
    write(NETWORK, r#"["ops"]"#);
    dir.write("credentials", "ops first\nnext other\n");
    fs::set_permissions(dir.path("credentials"), fs::Permissions::from_mode(0o600)).unwrap();
    let (mut master, address) = start(&dir, "--credentials credentials");
    let _agent = start_agent(&dir, address, "127.0.0.7");
    let health = request("GET", "/overlay-master/health", "Host: localhost\r\n");
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        let health = exchange(TcpStream::connect(address).unwrap(), &health);
        if health.contains(r#""agents":{"total":1,"#) {
            break;
        }
        park_timeout(POLL_INTERVAL);
    }
    // The network would take the addresses of the agent, so lists and credentials stay too.
    let moved = NETWORK.replace("192.168.128.0/17", "172.20.0.0/17");
    assert_ne!(moved, NETWORK);
    write(&moved, r#"["next"]"#);
    dir.write("credentials", "ops second\nnext other\n");
    assert_eq!(reload(address, &basic("ops:first")), 409);
    assert_eq!(reload(address, &basic("ops:first")), 409, "the former secret");
    assert_eq!(reload(address, &basic("next:other")), 403, "the former list");
    master.send_sighup();
    master.expect_log("audit: ops from ");
    assert_eq!(reload(address, &basic("ops:first")), 409, "after SIGHUP");
    // The credentials are wrong, so the network stays too.
    write(&NETWORK.replace("192.168.128.0/17", "192.168.128.0/16"), r#"["next"]"#);
    dir.write("credentials", "ops\n");
    assert_eq!(reload(address, &basic("ops:first")), 422);
    // Everything is right.
    write(NETWORK, r#"["next"]"#);
    dir.write("credentials", "ops second\nnext other\n");
    assert_eq!(reload(address, &basic("ops:first")), 200);
    assert_eq!(reload(address, &basic("ops:second")), 403);
    assert_eq!(reload(address, &basic("next:other")), 200);
}

#[test]
fn failed_logins_beyond_limit_are_refused_without_check() {
    let dir = TestDir::new();
    dir.write("master.json", NETWORK);
    dir.write("credentials", "ops right\n");
    let (mut master, address) = start(&dir, "--credentials credentials");
    let failures: Vec<_> = (0..40).map(|_| reload(address, &basic("ops:wrong"))).collect();
    let checked = failures.iter().filter(|status| **status == 401).count();
    assert!((10..20).contains(&checked), "{failures:?}");
    assert!(failures.iter().all(|status| matches!(status, 401 | 429)), "{failures:?}");
    assert_eq!(reload(address, &basic("ops:right")), 429);
    let line = master.expect_log("peer 127.0.0.1:");
    assert!(line.contains(": too many requests of this address had wrong credentials: "), "{line}");
    // Requests without credentials, and the Unix socket, are not affected.
    assert_eq!(reload(address, "Host: localhost\r\n"), 401);
    let socket = UnixStream::connect(dir.path("work").join("http.sock")).unwrap();
    let right = request("POST", "/overlay-master/reload", &basic("ops:right"));
    assert!(exchange(socket, &right).starts_with("HTTP/1.1 200 "));
    // A second later, one more login is checked.
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        if reload(address, &basic("ops:right")) == 200 {
            return;
        }
        park_timeout(POLL_INTERVAL);
    }
    panic!("the address stays refused");
}

#[test]
fn without_credentials_local_clients_and_unix_socket_write() {
    let dir = TestDir::new();
    dir.write("master.json", NETWORK);
    let (master, address) = start(&dir, "");
    let reload = |headers: &str| {
        let request = request("POST", "/overlay-master/reload", headers);
        let response = exchange(TcpStream::connect(address).unwrap(), &request);
        response.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(reload("Host: localhost\r\n"), "200");
    assert_eq!(reload("Host: localhost\r\nX-Forwarded-For: 10.0.0.9\r\n"), "403");
    assert_eq!(reload("Host: evil.example\r\nOrigin: http://evil.example\r\n"), "403");

    let socket = dir.path("work").join("http.sock");
    assert_eq!(fs::symlink_metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let connect = || UnixStream::connect(&socket).unwrap();
    let response = exchange(connect(), &request("POST", "/overlay-master/reload", "Host: any\r\n"));
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let message = "POST /overlay-master/x HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\
                   Content-Length: 0\r\n\r\n";
    let response = exchange(connect(), message);
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    let (status, _) = master.terminate();
    assert!(status.success() && !socket.exists());

    let (_master, address) = start(&dir, "--insecure-writes --hostnames overlay.example.com");
    let headers = "Host: Overlay.example.com:80\r\nX-Forwarded-For: 10.0.0.9\r\n";
    let request = request("POST", "/overlay-master/reload", headers);
    let response = exchange(TcpStream::connect(address).unwrap(), &request);
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[test]
fn unusable_credentials_are_refused_at_start() {
    let dir = TestDir::new();
    dir.write("master.json", format!(r#"{{"network":{NETWORK},"acls":{{"write":["ops"]}}}}"#));
    dir.write("credentials", "hunter2\n");
    let start = |arguments: &str| {
        dir.run(&format!("master --config master.json --store memory {arguments}")).failure()
    };
    let error = start("");
    assert!(error.contains("acls: no principal can authenticate: give --credentials"), "{error}");
    let error = start("--credentials credentials");
    assert!(error.contains("credentials: line 1: it is not a principal and a secret"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    assert!(start("--credentials /dev/null").contains("it is no regular file"));
    assert!(start("--credentials missing").contains("No such file"));
}

//! A master whose stderr nobody reads: it serves, and it ends.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{TestDir, program};

/// Interval and number of polls of an awaited condition.
const POLL: (Duration, usize) = (Duration::from_millis(50), 600);

/// Polls until `found` returns a value.
fn poll_until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..POLL.1 {
        if let Some(found) = found() {
            return found;
        }
        park_timeout(POLL.0);
    }
    panic!("timeout")
}

/// Returns the ends of a pipe that is full.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(writer.as_fd()).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    while writer.write(b"\n").is_ok() {}
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

/// Sends a request, and returns the response.
fn request(master: SocketAddrV4, request: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(master)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {master}\r\nConnection: close\r\nContent-Length: {length}\r\n\
         \r\n{body}"
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

#[test]
fn master_serves_and_stops_while_nobody_reads_stderr() {
    let dir = TestDir::with_network();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    drop(listener);
    let (mut reader, writer) = full_pipe();
    let mut master = Command::new(program())
        .args(["master", "--config", "network.json", "--store", "memory", "--log", "trace"])
        .args(["--listen", &address.to_string()])
        .current_dir(dir.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    let health = || request(address, "GET /overlay-master/health", "");
    poll_until(|| health().ok().filter(|health| health.contains("\"status\":\"ok\"")));
    // Each request logs lines of the maximum length, so that the queue becomes full.
    let agent = |n| format!("\"10.9.{}.{}\"", n / 250, n % 250);
    let agents: Vec<String> = (0..500).map(agent).collect();
    let body = format!("{{\"agents\":[{}]}}", agents.join(","));
    let degraded = poll_until(|| {
        for _ in 0..100 {
            request(address, "POST /overlay-master/agents/delete", &body).unwrap();
        }
        health().ok().filter(|health| health.contains("\"status\":\"degraded\""))
    });
    assert!(degraded.contains("the log loses lines, "), "{degraded}");
    assert!(degraded.contains("\"log\":{\"lines_left_out\":"), "{degraded}");
    let metrics = request(address, "GET /overlay-master/metrics", "").unwrap();
    let count = "\nmesos_overlay_master_log_lines_dropped_total ";
    let (_, rest) = metrics.split_once(count).unwrap();
    assert_ne!(rest.lines().next(), Some("0"));

    // The reader is back. The log says where lines are missing, and health is good again.
    let mut log = Vec::new();
    let mut buffer = [0; 65536];
    let has_note = |log: &[u8]| String::from_utf8_lossy(log).contains("WARN ] dropped ");
    while !has_note(&log) {
        let length = reader.read(&mut buffer).unwrap();
        log.extend_from_slice(&buffer[..length]);
    }
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(log.contains(" of the log here: nothing read stderr"), "{log}");

    // Nobody reads again until the queue is full. The process ends nevertheless.
    for _ in 0..700 {
        request(address, "POST /overlay-master/agents/delete", &body).unwrap();
    }
    kill_process(Pid::from_child(&master), Signal::TERM).unwrap();
    let status = poll_until(|| master.try_wait().unwrap());
    assert!(status.success(), "{status}");
    drop(reader);
}

/// Runs the program while nobody reads stderr. Returns the exit code.
fn code_without_reader(arguments: &[&str]) -> Option<i32> {
    let dir = TestDir::new();
    dir.write("network.json", "{");
    let (_reader, writer) = full_pipe();
    let mut child = Command::new(program())
        .args(arguments)
        .current_dir(dir.path("."))
        .stdin(Stdio::null())
        .stdout(File::create("/dev/null").unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    poll_until(|| child.try_wait().unwrap()).code()
}

#[test]
fn refused_start_ends_while_nobody_reads_stderr() {
    let configuration = ["master", "--config", "network.json", "--store", "memory"];
    assert_eq!(code_without_reader(&configuration), Some(1));
    for wrong in [&["master", "--wrong"][..], &["agent"], &["master", "--config"]] {
        assert_eq!(code_without_reader(wrong), Some(2), "{wrong:?}");
    }
}

//! Floods of requests: what reaches the log.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use crate::support::{Master, Place};

/// Deletes agents, as soon as the master has read its state.
fn delete(master: SocketAddrV4, agents: &[String]) {
    let body = serde_json::json!({ "agents": agents }).to_string();
    loop {
        let mut stream = TcpStream::connect(master).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /overlay-master/agents/delete HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if answer.starts_with("HTTP/1.1 200 ") {
            return;
        }
        assert!(answer.contains("the state is being read"), "{answer}");
    }
}

fn get(master: SocketAddrV4, path: &str) -> String {
    let mut stream = TcpStream::connect(master).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn flood_of_requests_does_not_fill_the_log() {
    const REQUESTS: usize = 600;
    let place = Place::with_network();
    let mut master = Master::start(&place);
    for _ in 0..REQUESTS {
        delete(master.address, &["10.9.9.9".to_owned()]);
    }
    // It is said while the master runs, soon after the flood.
    master.running.expect("like this one: nothing to delete");
    let metrics = get(master.address, "/overlay-master/metrics");
    let metric = "\nmesos_overlay_master_log_lines_left_out_total ";
    let (_, rest) = metrics.split_once(metric).unwrap();
    let counted: usize = rest.lines().next().unwrap().parse().unwrap();
    let (status, log) = master.running.terminate();
    assert!(status.success(), "{log}");

    let line = "nothing to delete of 1 unknown agent: 10.9.9.9";
    let written = log.lines().filter(|it| it.contains(line) && !it.contains("left out ")).count();
    assert!((100..REQUESTS).contains(&written), "{written}:\n{log}");
    // However the flood was slowed down, each line is written or counted.
    let number = |text: &str| text.split(' ').next().unwrap().parse::<usize>().unwrap();
    let (mut noted, mut left_out) = (0, 0);
    for line in log.lines() {
        if let Some((rest, _)) = line.split_once(" like this left out before)") {
            noted += 1;
            left_out += number(rest.rsplit_once('(').unwrap().1);
        } else if line.contains("like this one: ") {
            left_out += number(line.split_once("left out ").unwrap().1);
        }
    }
    assert_eq!((left_out, written + noted + left_out), (counted, REQUESTS), "{log}");
}

#[test]
fn request_with_many_agents_is_one_line_of_the_log() {
    let place = Place::with_network();
    let master = Master::start(&place);
    let ip = |number: u32| Ipv4Addr::from(0x0a00_0000 + number).to_string();
    let agents: Vec<String> = (0..20_000).map(ip).collect();
    delete(master.address, &agents);
    let (_, log) = master.running.terminate();
    let line = "nothing to delete of 20000 unknown agents: 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, \
                10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, 10.0.0.8, 10.0.0.9 and 19990 more";
    assert_eq!(count(&log, line), 1, "{log}");
    assert_eq!(count(&log, "unknown agent"), 1, "{log}");
}

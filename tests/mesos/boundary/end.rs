//! The end of the process: as mesos-agent has it, with libprocess finalized, and as mesos-master
//! has it, without.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use super::agent::{load_agent, load_agent_of_own_master, make_program};
use super::host::{AGENT, Build, Host, text};
use super::master::{NETWORK, golden};
use super::peer::{Peer, Update, connect, deliver, read_response, wait_for};

/// What Mesos may have to wait for us, in milliseconds.
const END_MAX: u64 = 6_000;
/// They come in one piece, which libprocess reads at once.
const REQUESTS: usize = 500;
const MESSAGES: &str = "5000";

/// Both parts at work. libprocess itself does not survive requests that come when it ends (it uses
/// the process of a connection that it has just deleted), so all of this is in it by then: messages
/// that wait for us, ours on their way out, and requests that are not answered.
fn at_work(build: Build) -> (Host, TcpStream) {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    load_agent_of_own_master(&mut host);
    wait_for("a healthy agent", || (host.get("/overlay-agent/health").status == 200).then_some(()));
    assert!(host.own_threads() > 0);

    let mut stream = connect(host.address);
    let get = "GET /overlay-master/state HTTP/1.1\r\nHost: host\r\n\r\n";
    stream.write_all(get.repeat(REQUESTS).as_bytes()).expect("it is sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    assert_eq!(read_response(&mut reader).expect("the first answer").status, 200);

    let register = golden!("RegisterAgentMessage");
    for last in 1..=100 {
        // Some of them listen nowhere.
        let from = format!("overlay-agent@127.0.1.{last}:1");
        let status = deliver(host.address, &register.to, &register.name, &from, &register.body);
        assert_eq!(status, 202);
    }
    host.tell(&[
        "spawn",
        "other-agent",
        "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage",
    ]);
    let body: String = register.body.iter().map(|byte| format!("{byte:02x}")).collect();
    let master = format!("overlay-master@{}", host.address);
    host.tell(&["send", "other-agent", &master, &register.name, &body, MESSAGES]);
    (host, stream)
}

/// libprocess ends while there is much to do, and then the program.
pub(crate) fn an_end_at_work(build: Build) -> String {
    let (mut host, _requests) = at_work(build);
    let took: u64 = host.tell(&["finalize"])[0].parse().expect("milliseconds");
    assert!(took < END_MAX, "{took} ms: {}", host.log());
    wait_for("the end of our threads", || (host.own_threads() == 0).then_some(()));
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
    log
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn libprocess_ends_while_there_is_much_to_do() {
    an_end_at_work(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn libprocess_ends_with_nothing_to_do() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    let took: u64 = host.tell(&["finalize"])[0].parse().expect("milliseconds");
    assert!(took < 2_000, "{took} ms: {}", host.log());
    assert_eq!(host.own_threads(), 0);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn the_program_may_end_without_a_word() {
    let (host, _requests) = at_work(Build::release());
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn an_agent_that_is_at_work_ends_too() {
    let mut host = Host::start(Build::release());
    let master = Peer::listen("overlay-master", Ipv4Addr::LOCALHOST);
    // Its docker never answers.
    let (cni, docker) = (host.path("cni"), host.path("docker"));
    make_program(&docker, "echo $$ > $0.pid; exec sleep 60");
    let address = master.address().to_string();
    let parameters = [
        ("master", &*address),
        ("cni_dir", text(&cni)),
        ("docker", text(&docker)),
        ("dataplane", "external"),
        ("refuse_collisions", "false"),
    ];
    assert!(host.load(AGENT, &parameters), "{}", host.log());
    master.receive();
    let update = golden!("UpdateAgentOverlaysMessage").read::<Update>();
    master.send(host.address, "overlay-agent", &update);
    let child = wait_for("its docker", || {
        let pid = fs::read_to_string(host.path("docker.pid")).ok()?;
        pid.strip_suffix('\n').map(|pid| Path::new("/proc").join(pid))
    });
    // Our threads block all signals; programs must not inherit that.
    let status = wait_for("sleep", || {
        let status = fs::read_to_string(child.join("status")).expect("it runs");
        status.starts_with("Name:\tsleep\n").then_some(status)
    });
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a mask");
    assert_eq!(mask.trim(), "0000000000000000");
    let took: u64 = host.tell(&["finalize"])[0].parse().expect("milliseconds");
    assert!(took < END_MAX, "{took} ms: {}", host.log());
    wait_for("the end of its docker", || (!child.exists()).then_some(()));
    assert!(host.exit().0.success());
}

//! Leadership follows progress: another master leads within the session timeout after the leader is
//! killed, stopped, or hangs in part. A log that nobody reads does not stop the leader.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use zookeeper_client::{Acls, Client, CreateMode};

use super::failover::{Cluster, FAILOVER_MARGIN, Process};
use super::{SESSION, TICK, now, sleep, suspend};

/// Stopped threads of a process. Dropping this value lets them continue.
struct StoppedThreads(Vec<Pid>);

impl StoppedThreads {
    /// Stops the threads of `process` whose name begins with `name`. The other threads continue, as
    /// with a system call that hangs.
    fn stop(process: &Process, name: &str) -> Self {
        let tasks = format!("/proc/{}/task", process.child.id());
        let mut stopped = Vec::new();
        for task in fs::read_dir(tasks).expect("a running process") {
            let path = task.expect("a thread").path();
            let thread = fs::read_to_string(path.join("comm")).unwrap_or_default();
            if thread.starts_with(name) {
                let number = path.file_name().and_then(|number| number.to_str()?.parse().ok());
                let pid = Pid::from_raw(number.expect("a number"));
                ptrace::seize(pid, ptrace::Options::empty()).expect("a thread to trace");
                ptrace::interrupt(pid).expect("a traced thread");
                waitpid(pid, Some(WaitPidFlag::__WALL)).expect("a stopped thread");
                stopped.push(pid);
            }
        }
        assert!(!stopped.is_empty(), "no thread {name}");
        Self(stopped)
    }
}

impl Drop for StoppedThreads {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = ptrace::detach(*pid, None);
        }
    }
}

/// Waits until another master leads and serves agents. Prints and checks the time since `fault`.
fn expect_failover(cluster: &Cluster, fault: &str, start: std::time::Instant, agents: usize) {
    cluster.wait_for_leader();
    cluster.wait_for_agents(agents);
    let elapsed = start.elapsed();
    println!("failover after {fault}: {elapsed:?}, session timeout {SESSION:?}");
    assert!(elapsed < SESSION + FAILOVER_MARGIN, "{fault}: {elapsed:?}");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn killed_and_stopped_leader_is_replaced() {
    let mut cluster = Cluster::start(3);
    let agents = [cluster.start_agent(1), cluster.start_agent(2)];
    cluster.wait_for_agents(2);
    let leader = cluster.masters.swap_remove(cluster.wait_for_leader());
    let start = now();
    leader.kill();
    expect_failover(&cluster, "a kill", start, 2);
    let stopped = cluster.masters.swap_remove(cluster.wait_for_leader());
    let start = now();
    stopped.signal(Signal::STOP);
    expect_failover(&cluster, "SIGSTOP", start, 2);
    drop((stopped, agents));
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn hung_leader_is_replaced_and_says_why() {
    let mut cluster = Cluster::start(3);
    let agents = [cluster.start_agent(1)];
    cluster.wait_for_agents(1);
    for (threads, fault) in
        [("overlay-store", "a hung store"), ("tokio-", "a runtime whose threads are all blocked")]
    {
        let hung = cluster.masters.swap_remove(cluster.wait_for_leader());
        let start = now();
        let stopped = StoppedThreads::stop(&hung, threads);
        expect_failover(&cluster, fault, start, 1);
        if threads == "overlay-store" {
            let health = cluster.wait_until("the hung master is not failed", || {
                hung.get("/overlay-master/health").filter(|health| health["status"] == "failed")
            });
            let problem = health["problems"][0].as_str().expect("a problem");
            assert!(problem.starts_with("the store has not answered for more than "), "{problem}");
        }
        // The former leader is a candidate again when it answers.
        drop(stopped);
        cluster.masters.push(hung);
        cluster.wait_until("the former leader is not on standby", || {
            (cluster.masters.last()?.status() == "standby").then_some(())
        });
    }
    drop(agents);
}

/// A process that continues after SIGCONT runs whatever its threads were about to do. Requests that
/// waited in its sockets are answered by a master that does not lead.
#[test]
#[ignore = "needs packages: tests/run host"]
fn resumed_leader_answers_and_stores_nothing() {
    let mut cluster = Cluster::start(2);
    let agents = [cluster.start_agent(1)];
    for _ in 0..3 {
        cluster.wait_for_agents(1);
        let former = cluster.masters.swap_remove(cluster.wait_for_leader());
        former.signal(Signal::STOP);
        cluster.wait_for_leader();
        cluster.wait_for_agents(1);
        let epoch =
            || cluster.masters[0].get("/overlay-master/health").expect("health")["epoch"].clone();
        let before = epoch();
        assert!(before.is_u64(), "{before}");
        let mut waiting: Vec<TcpStream> = (0..50)
            .map(|_| {
                let mut stream = TcpStream::connect(former.address).expect("a connection");
                let path = "/overlay-master/state";
                let request =
                    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).expect("a request");
                stream
            })
            .collect();
        former.signal(Signal::CONT);
        let answered_as_leader = waiting.iter_mut().filter_map(|stream| {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer.starts_with("HTTP/1.1 200 ").then_some(answer)
        });
        assert_eq!(answered_as_leader.count(), 0, "a former leader answers with its state");
        cluster.masters.push(former);
        cluster.wait_until("the former leader is not on standby", || {
            (cluster.masters.last()?.status() == "standby").then_some(())
        });
        let epoch =
            cluster.masters[0].get("/overlay-master/health").expect("health")["epoch"].clone();
        assert_eq!(epoch, before, "the former leader has begun an epoch");
    }
    drop(agents);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn session_that_expires_twice_is_reported_twice() {
    let mut cluster = Cluster::start(1);
    let agents = [cluster.start_agent(1)];
    cluster.wait_for_agents(1);
    for round in 1..=2 {
        // The agent requests the default timeout, and reports after nine tenths of it.
        suspend(&cluster.servers, SESSION * 3);
        let expected =
            [("master-1.log", "stand for election at"), ("agent-1.log", "find the master at")];
        for (name, action) in expected {
            cluster.wait_until("the end of the outage is not logged", || {
                let log = fs::read_to_string(cluster.dir.path().join(name)).ok()?;
                let is_logged = |level: &str, text: &str| {
                    let has_text = |line: &&str| line.contains(level) && line.contains(text);
                    log.lines().filter(has_text).count() >= round
                };
                let resolved = format!("resolved: {action}");
                (is_logged("ERROR", action) && is_logged("INFO", &resolved)).then_some(())
            });
        }
        cluster.wait_for_leader();
        cluster.wait_for_agents(1);
    }
    cluster.masters.clear();
    drop(agents);
}

/// The servers grant at most 20 ticks. The probes must be more frequent than a deadline that the
/// servers have shortened.
#[test]
#[ignore = "needs packages: tests/run host"]
fn leader_with_shortened_session_timeout_keeps_leading() {
    let mut cluster = Cluster::start(0);
    cluster.session = Duration::from_secs(600);
    cluster.start_master();
    cluster.wait_for_leader();
    sleep(TICK * 20 * 3 / 5 + SESSION);
    let log = fs::read_to_string(cluster.dir.path().join("master-1.log")).expect("a log");
    assert!(!log.contains("withdrew from the election"), "{log}");
    assert_eq!(cluster.wait_for_leader(), 0);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn leader_with_full_log_pipe_serves_and_resigns() {
    let mut cluster = Cluster::start(0);
    let (_reader, mut writer) = io::pipe().expect("a pipe");
    let flags = fcntl_getfl(writer.as_fd()).expect("flags");
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).expect("a non-blocking pipe");
    while writer.write(b"\n").is_ok() {}
    fcntl_setfl(writer.as_fd(), flags).expect("a blocking pipe");
    cluster.start_master_with_log(writer.into());
    cluster.wait_for_leader();
    cluster.start_master();
    let start = now();
    let agent = cluster.start_agent(1);
    cluster.wait_for_agents(1);
    println!("an agent is served after {:?} while the log pipe is full", start.elapsed());
    sleep(SESSION);
    assert_eq!(cluster.wait_for_leader(), 0, "the leader continues to lead");
    let leader = cluster.masters.swap_remove(0);
    let start = now();
    leader.terminate();
    cluster.wait_for_leader();
    println!("failover after SIGTERM with a full log pipe: {:?}", start.elapsed());
    assert!(start.elapsed() < FAILOVER_MARGIN, "{:?}", start.elapsed());
    drop(agent);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn wrong_credentials_are_a_failure() {
    let mut cluster = Cluster::start(1);
    cluster.wait_for_leader();
    let address = format!("zk://overlay:wrong@{}/overlay", cluster.servers.addresses());
    fs::write(cluster.dir.path().join("zk"), address).expect("an address");
    cluster.start_master();
    let health = cluster.wait_until("the master does not report its credentials", || {
        let health = cluster.masters[1].get("/overlay-master/health")?;
        (health["status"] == "failed").then_some(health)
    });
    let problem = health["problems"][0].as_str().expect("a problem");
    assert!(problem.contains("may not be used with this user and password"), "{problem}");
    assert!(!problem.contains("wrong"), "{problem}");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn leader_without_access_to_state_withdraws() {
    let mut cluster = Cluster::start(0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let addresses = cluster.servers.addresses();
    runtime.block_on(async {
        let client = Client::connect(&addresses).await.expect("a client");
        client.auth("digest", b"other:secret").await.expect("accepted credentials");
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.create("/overlay", b"", &open).await.expect("created");
        let foreign = CreateMode::Persistent.with_acls(Acls::creator_all());
        client.create("/overlay/state", b"", &foreign).await.expect("created");
        client.create("/overlay/state/epoch", b"1", &foreign).await.expect("created");
    });
    cluster.start_master();
    let log = cluster.dir.path().join("master-1.log");
    cluster.wait_until("the leader does not withdraw", || {
        let log = fs::read_to_string(&log).expect("a log");
        log.contains("withdrew from the election: standing behind").then_some(())
    });
    let health = cluster.wait_until("the master is not failed", || {
        let health = cluster.masters[0].get("/overlay-master/health")?;
        (health["status"] == "failed").then_some(health)
    });
    assert!(health["problems"].to_string().contains("may not be used"), "{health}");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn foreign_client_in_first_place_is_a_failure_until_it_ends() {
    let mut cluster = Cluster::start(0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let addresses = cluster.servers.addresses();
    let client = runtime.block_on(async {
        let client = Client::connect(&addresses).await.expect("a client");
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.create("/overlay", b"", &open).await.expect("created");
        let foreign = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
        client.create("/overlay/x_", b"garbage", &foreign).await.expect("created");
        client
    });
    cluster.start_master();
    let agent = cluster.start_agent(1);
    for (running, path) in
        [(&cluster.masters[0], "/overlay-master/health"), (&agent, "/overlay-agent/health")]
    {
        let problems = cluster.wait_until("the foreign client is not named", || {
            let health = running.get(path).filter(|health| health["status"] == "failed")?;
            Some(health["problems"].to_string())
        });
        assert!(
            problems.contains("/overlay/x_0000000000 in the election is no master"),
            "{problems}"
        );
    }
    // The znode ends with the session of its client.
    drop(client);
    sleep(Duration::from_millis(100));
    cluster.wait_for_leader();
    cluster.wait_for_agents(1);
    drop(runtime);
}

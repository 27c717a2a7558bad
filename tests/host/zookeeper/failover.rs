//! Failover of the program: three masters on an ensemble of three servers, agents that know only
//! the ensemble's address, and kills.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{SERVERS, SESSION, TICK, now, sleep};
use crate::ensemble::Servers;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
const NETWORK: &str = include_str!("../../../docs/network.json");

/// Maximum failover time beyond the session timeout.
pub(super) const FAILOVER_MARGIN: Duration = Duration::from_secs(3);
/// Time limit for all other events.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

fn free_address(ip: Ipv4Addr) -> SocketAddrV4 {
    let listener = TcpListener::bind((ip, 0)).expect("a port");
    SocketAddrV4::new(ip, listener.local_addr().expect("a bound address").port())
}

/// A running subcommand. Dropping this value kills the process.
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) address: SocketAddrV4,
}

impl Process {
    fn start(dir: &Path, name: &str, ip: Ipv4Addr, arguments: &[&str]) -> Self {
        let address = free_address(ip);
        let log = File::create(dir.join(format!("{name}.log"))).expect("a log");
        Self::start_with_log(dir, address, arguments, log.into())
    }

    fn start_with_log(dir: &Path, address: SocketAddrV4, arguments: &[&str], log: Stdio) -> Self {
        let child = Command::new(PROGRAM)
            .args(arguments)
            .args(["--listen", &address.to_string()])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        Self { child, address }
    }

    /// Kills the process with SIGKILL, as a crash would end it.
    pub(super) fn kill(mut self) {
        self.child.kill().expect("a running process");
        self.child.wait().expect("an exit status");
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a running process");
    }

    /// Stops the process with SIGTERM, and asserts that the exit code is 0.
    pub(super) fn terminate(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().expect("an exit status").success());
    }

    /// Sends a GET request. Returns the body of a 200 answer, and health of any status.
    pub(super) fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let host = self.address;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let is_health = path.ends_with("/health");
        (is_health || head.starts_with("HTTP/1.1 200 ")).then(|| serde_json::from_str(body).ok())?
    }

    pub(super) fn status(&self) -> String {
        let health = self.get("/overlay-master/health");
        health.and_then(|health| Some(health["status"].as_str()?.to_owned())).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Masters and agents on an ensemble.
pub(super) struct Cluster {
    pub(super) servers: Servers,
    pub(super) dir: tempfile::TempDir,
    pub(super) masters: Vec<Process>,
    /// The session timeout that the next master requests.
    pub(super) session: Duration,
    started: usize,
}

impl Cluster {
    pub(super) fn start(masters: usize) -> Self {
        let servers = Servers::start(SERVERS, TICK);
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("network.json"), NETWORK).expect("a network file");
        let address = format!("zk://overlay:secret@{}/overlay", servers.addresses());
        fs::write(dir.path().join("zk"), address).expect("an address");
        let masters_started = Vec::new();
        let mut cluster =
            Self { servers, dir, masters: masters_started, session: SESSION, started: 0 };
        (0..masters).for_each(|_| cluster.start_master());
        cluster
    }

    pub(super) fn start_master(&mut self) {
        let log = self.dir.path().join(format!("master-{}.log", self.started + 1));
        self.start_master_with_log(File::create(log).expect("a log").into());
    }

    pub(super) fn start_master_with_log(&mut self, log: Stdio) {
        self.started += 1;
        let store = format!("file://{}", self.dir.path().join("zk").display());
        let session = format!("{}s", self.session.as_secs());
        let arguments = [
            &["master", "--config", "network.json", "--store", &store][..],
            &["--zk-session-timeout", &session],
        ];
        let address = free_address(Ipv4Addr::LOCALHOST);
        let arguments = arguments.concat();
        let master = Process::start_with_log(self.dir.path(), address, &arguments, log);
        self.masters.push(master);
    }

    /// Starts an agent. Its ensemble address has no credentials, because agents only read.
    pub(super) fn start_agent(&self, number: u8) -> Process {
        let name = format!("agent-{number}");
        let config = serde_json::json!({
            "cni_dir": self.dir.path().join(&name),
            "master": format!("zk://{}/overlay", self.servers.addresses()),
            "network_config": { "docker_bridge": false },
            "dataplane": "external",
            "refuse_collisions": false,
        });
        let file = format!("{name}.json");
        fs::write(self.dir.path().join(&file), config.to_string()).expect("an agent_config");
        let ip = Ipv4Addr::new(127, 0, 1, number);
        Process::start(self.dir.path(), &name, ip, &["agent", "--config", &file])
    }

    pub(super) fn wait_until<T>(&self, failure: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let start = now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            if start.elapsed() > TIMEOUT {
                let entries = fs::read_dir(self.dir.path()).expect("a directory");
                for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                    if path.extension().is_some_and(|extension| extension == "log") {
                        let log = fs::read_to_string(&path).unwrap_or_default();
                        println!("{}:\n{log}", path.display());
                    }
                }
                panic!("{failure}");
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Waits for a leader, and returns its index. Fails if several masters lead.
    pub(super) fn wait_for_leader(&self) -> usize {
        self.wait_until("there is no leader", || {
            let leads = |master: &Process| matches!(&*master.status(), "ok" | "degraded");
            let leaders: Vec<usize> =
                (0..self.masters.len()).filter(|index| leads(&self.masters[*index])).collect();
            assert!(leaders.len() < 2, "several masters lead: {leaders:?}");
            leaders.first().copied()
        })
    }

    /// Waits until a master shows `count` agents with overlays that are ready. Returns address and
    /// subnets of each agent.
    pub(super) fn wait_for_agents(&self, count: usize) -> Vec<(String, String)> {
        self.wait_until("not every agent is ready", || {
            let state =
                self.masters.iter().find_map(|master| master.get("/overlay-master/state"))?;
            let agents = state["agents"].as_array()?.iter();
            let mut agents: Vec<(String, String)> = agents
                .filter(|agent| {
                    let mut overlays = agent["overlays"].as_array().into_iter().flatten();
                    overlays.all(|overlay| overlay["state"]["status"] == "STATUS_OK")
                })
                .map(|agent| {
                    let overlays = agent["overlays"].as_array().into_iter().flatten();
                    let subnets: Vec<String> =
                        overlays.map(|overlay| overlay["subnet"].to_string()).collect();
                    (agent["ip"].to_string(), subnets.join(" "))
                })
                .collect();
            agents.sort();
            (agents.len() == count).then_some(agents)
        })
    }
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn failover_keeps_allocations_within_time_limit() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let mut agents: Vec<Process> = (1..=3).map(|number| cluster.start_agent(number)).collect();
    let before = cluster.wait_for_agents(3);
    let standby_count =
        cluster.masters.iter().filter(|master| master.status() == "standby").count();
    assert_eq!(standby_count, 2, "masters on standby");
    let leader_address = cluster.masters[leader].address.to_string();
    for master in cluster.masters.iter().filter(|master| master.status() == "standby") {
        let health = master.get("/overlay-master/health").expect("an answer");
        assert_eq!(health["leader"]["address"], leader_address, "{health}");
        let id = health["leader"]["id"].as_str().expect("an id");
        assert!(id.starts_with("mesos-overlay-"), "{health}");
    }

    // The leader crashes, and another agent registers during the failover.
    cluster.masters.swap_remove(leader).kill();
    let start = now();
    agents.push(cluster.start_agent(4));
    let after = cluster.wait_for_agents(4);
    let elapsed = start.elapsed();
    println!("failover after a crash: {elapsed:?}, of which the session timeout is {SESSION:?}");
    assert!(elapsed < SESSION + FAILOVER_MARGIN, "{elapsed:?}");
    assert!(before.iter().all(|agent| after.contains(agent)), "{before:?} {after:?}");

    // The leader stops on SIGTERM, and the next master leads at once.
    cluster.start_master();
    let leader = cluster.wait_for_leader();
    cluster.masters.swap_remove(leader).terminate();
    let start = now();
    assert_eq!(cluster.wait_for_agents(4), after);
    let elapsed = start.elapsed();
    println!("failover after SIGTERM: {elapsed:?}");
    assert!(elapsed < FAILOVER_MARGIN, "{elapsed:?}");
    drop(agents);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn resumed_former_leader_changes_no_allocation() {
    let mut cluster = Cluster::start(2);
    let mut agents: Vec<Process> = (1..=2).map(|number| cluster.start_agent(number)).collect();
    let before = cluster.wait_for_agents(2);
    for number in 3..=4 {
        let suspended = cluster.masters.swap_remove(cluster.wait_for_leader());
        suspended.signal(Signal::STOP);
        agents.push(cluster.start_agent(number));
        let after = cluster.wait_for_agents(number.into());
        suspended.signal(Signal::CONT);
        // The resumed master still has queued registrations, and believes that it leads.
        cluster.masters.push(suspended);
        cluster.wait_until("the former leader is not on standby", || {
            (cluster.masters.last()?.status() == "standby").then_some(())
        });
        assert_eq!(cluster.wait_for_agents(number.into()), after);
        assert!(before.iter().all(|agent| after.contains(agent)), "{before:?} {after:?}");
    }
    drop(agents);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn zookeeper_outage_keeps_allocations() {
    let mut cluster = Cluster::start(2);
    let agents: Vec<Process> = (1..=2).map(|number| cluster.start_agent(number)).collect();
    let before = cluster.wait_for_agents(2);
    // Restart one server after another, as in a rolling upgrade.
    for server in 0..SERVERS {
        cluster.servers.kill(server);
        sleep(Duration::from_secs(1));
        cluster.servers.restart(server);
        cluster.servers.wait_until_serving();
        assert_eq!(cluster.wait_for_agents(2), before);
    }
    // Stop all servers for longer than the session timeout.
    (0..SERVERS).for_each(|server| cluster.servers.kill(server));
    sleep(SESSION * 2);
    // No master leads, and masters and agents say why.
    for master in &cluster.masters {
        let health = master.get("/overlay-master/health").expect("an answer");
        assert_eq!(health["status"], "failed", "{health}");
        assert_names_outage(&health);
    }
    // Registered agents serve their containers, but would not find a new leader.
    for agent in &agents {
        let health = agent.get("/overlay-agent/health").expect("an answer");
        assert_ne!(health["status"], "ok", "{health}");
        assert_names_outage(&health);
    }
    (0..SERVERS).for_each(|server| cluster.servers.restart(server));
    cluster.servers.wait_until_serving();
    let start = now();
    assert_eq!(cluster.wait_for_agents(2), before);
    println!("served again {:?} after the ensemble", start.elapsed());
    drop(agents);
}

/// Asserts that the first problem names the servers that do not answer, and the remedy.
fn assert_names_outage(health: &Value) {
    let problem = health["problems"][0].as_str().expect("a problem");
    assert!(problem.contains("check that most of them run"), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn open_path_and_absurd_version_are_reported() {
    let mut cluster = Cluster::start(0);
    let store_address = format!("zk://{}/overlay", cluster.servers.addresses());
    fs::write(cluster.dir.path().join("zk"), &store_address).expect("an address");
    cluster.start_master();
    let agent = cluster.start_agent(1);
    for (running, path) in
        [(&cluster.masters[0], "/overlay-master/health"), (&agent, "/overlay-agent/health")]
    {
        let health = cluster.wait_until("health shows no warning", || {
            running.get(path).filter(|health| health["status"] == "degraded")
        });
        let problem = health["problems"][0].as_str().expect("a problem");
        assert!(problem.starts_with("ZooKeeper: anybody (world:anyone) may "), "{problem}");
        let log = if path.contains("master") { "master-1.log" } else { "agent-1.log" };
        let log = fs::read_to_string(cluster.dir.path().join(log)).expect("a log");
        assert_eq!(log.matches("ZooKeeper: anybody").count(), 1, "{log}");
    }
    drop(agent);
    cluster.masters.pop().expect("a running master").terminate();
    // Another client writes a version that no store can reach.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let head = format!(r#"{{"format":1,"version":{},"pending":0}}"#, i64::MAX);
    runtime.block_on(async {
        let servers = cluster.servers.addresses();
        let client = zookeeper_client::Client::connect(&servers).await.expect("a client");
        let written = client.set_data("/overlay/state/head", head.as_bytes(), None).await;
        written.expect("written");
    });
    cluster.start_master();
    let log = cluster.dir.path().join("master-2.log");
    cluster.wait_until("the log does not name the version", || {
        let log = fs::read_to_string(&log).expect("a log");
        let name = "/overlay/state/head: impossible version 9223372036854775807";
        (log.contains(name) && log.contains("--replace`")).then_some(())
    });
    cluster.masters.pop().expect("a running master").terminate();
    // Run the commands from the message.
    for arguments in [
        ["export", "--from", &store_address, "--output", "state.json", "--log", "error"],
        ["import", "state.json", "--to", &store_address, "--replace", "--log", "error"],
    ] {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(cluster.dir.path());
        let result = command.output().expect("the program starts");
        let errors = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.success(), "{errors}");
    }
    cluster.start_master();
    let leads = || (cluster.masters[0].status() == "degraded").then_some(());
    cluster.wait_until("no master leads", leads);
}

//! The reports to the service manager: readiness, status, watchdog and stop.

use std::os::unix::net::UnixDatagram;

use crate::support::{Master, RunningProcess, TIMEOUT, TestDir, start_agent_with_env};

/// Most reports before an expected one.
const REPORTS_MAX: u32 = 300;

/// The socket of a service manager, as systemd has one.
struct ServiceManager {
    socket: UnixDatagram,
    environment: [(&'static str, String); 2],
    /// The received lines that were not awaited yet.
    lines: Vec<String>,
}

impl ServiceManager {
    fn listen(dir: &TestDir) -> Self {
        let path = dir.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let path = path.display().to_string();
        // A short timeout, so that reports of progress follow each other closely.
        let environment = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "300000".to_owned())];
        Self { socket, environment, lines: Vec::new() }
    }

    /// Waits for a report with this line, unless an earlier one had it and was not awaited. Returns
    /// the other lines so far.
    #[track_caller]
    fn expect(&mut self, line: &str) -> &[String] {
        // A service that reports progress ten times a second would never time out.
        for _ in 0..REPORTS_MAX {
            if let Some(index) = self.lines.iter().position(|found| found == line) {
                self.lines.remove(index);
                return &self.lines;
            }
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).expect("the service reports");
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
        }
        self.lines.retain(|line| line != "WATCHDOG=1");
        panic!("no {line} in {:?}", self.lines);
    }
}

#[test]
fn master_reports_readiness_progress_and_stop() {
    let dir = TestDir::with_network();
    let mut manager = ServiceManager::listen(&dir);
    let arguments = "master --config network.json --listen 127.0.0.1:0 --work-dir work";
    let mut master = RunningProcess::start_with_env(&dir, arguments, &manager.environment);
    let rest = master.expect_log("overlay master at ");
    let (address, _) = rest.split_once(": ").unwrap();
    manager.expect("READY=1");
    manager.expect(&format!("STATUS=ok: at {address}"));
    manager.expect("WATCHDOG=1");
    manager.expect("WATCHDOG=1");
    let (status, _) = master.terminate();
    assert!(status.success());
    manager.expect("STOPPING=1");
}

#[test]
fn master_without_result_of_election_is_not_ready() {
    let dir = TestDir::with_network();
    let mut manager = ServiceManager::listen(&dir);
    // Nothing listens at the port of discard.
    let arguments = "master --config network.json --listen 127.0.0.1:0 \
                     --store zk://127.0.0.1:9/mesos-overlay";
    let master = RunningProcess::start_with_env(&dir, arguments, &manager.environment);
    manager.expect("STATUS=standby: no leader is known");
    // 20 reports of progress take two seconds.
    for _ in 0..20 {
        manager.expect("WATCHDOG=1");
    }
    let others = manager.expect("WATCHDOG=1");
    assert!(!others.contains(&"READY=1".to_owned()), "{others:?}");
    drop(master);
}

#[test]
fn agent_is_ready_before_and_reports_when_it_has_a_master() {
    let dir = TestDir::with_network();
    let mut manager = ServiceManager::listen(&dir);
    let master = Master::start(&dir);
    let name = master.address;
    let agent = start_agent_with_env(&dir, name, "127.0.0.2", &manager.environment);
    manager.expect("READY=1");
    manager.expect(&format!("STATUS=ok: master {name}"));
    manager.expect("WATCHDOG=1");
    let (status, _) = agent.terminate();
    assert!(status.success());
    manager.expect("STOPPING=1");
}

#[test]
fn agent_without_master_is_ready() {
    let dir = TestDir::new();
    let mut manager = ServiceManager::listen(&dir);
    let nobody = "127.0.0.1:9".parse().unwrap();
    let _agent = start_agent_with_env(&dir, nobody, "127.0.0.2", &manager.environment);
    manager.expect("READY=1");
}

#[test]
fn missing_service_manager_is_logged_and_the_master_serves() {
    let dir = TestDir::with_network();
    let environment = [("NOTIFY_SOCKET", dir.path("none").display().to_string())];
    let arguments = "master --config network.json --listen 127.0.0.1:0 --work-dir work";
    let mut master = RunningProcess::start_with_env(&dir, arguments, &environment);
    assert_eq!(
        master.expect_log("report to the service manager at NOTIFY_SOCKET: "),
        "No such file or directory (os error 2) (1 since the start): see whether systemd runs, or \
         restart the service"
    );
    assert!(master.terminate().0.success());
}

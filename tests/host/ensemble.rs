//! ZooKeeper servers of the Debian package `zookeeper` on loopback ports. The servers are processes
//! of the test, which can kill and restart them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Directory of the package's Java classes.
const CLASSES: &str = "/usr/share/java";
const MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// Time limit for an ensemble to start, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Ports outside of the kernel's range of ephemeral ports: a restarted server needs its old port.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// An ensemble of servers. Dropping this value kills the servers.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) servers: Vec<Server>,
    _dir: tempfile::TempDir,
}

/// A server of an ensemble.
#[derive(Debug)]
pub(crate) struct Server {
    dir: PathBuf,
    port: u16,
    /// `None` after the server was killed.
    pub(crate) child: Option<Child>,
}

impl Servers {
    /// Starts `count` servers, and waits until they serve. `tick` is ZooKeeper's unit of time: a
    /// session timeout is between 2 and 20 ticks.
    pub(crate) fn start(count: usize, tick: Duration) -> Self {
        assert!(
            Path::new(CLASSES).join("zookeeper.jar").exists(),
            "the Debian package zookeeper is missing: run 'tests/run host' as root"
        );
        // /tmp may be in memory, where durable writes are cheaper than on a disk. The build
        // directory is on a disk.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let ports = free_ports(count * 3);
        let peers: String = (0..count)
            .map(|n| {
                format!(
                    "server.{}=127.0.0.1:{}:{}\n",
                    n + 1,
                    ports[count + n],
                    ports[2 * count + n]
                )
            })
            .collect();
        let make_server = |n: usize| {
            let (dir, port) = (dir.path().join(format!("server-{}", n + 1)), ports[n]);
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join("myid"), (n + 1).to_string()).expect("an id");
            let config = format!(
                "dataDir={}\nclientPortAddress=127.0.0.1\nclientPort={port}\ntickTime={}\n\
                 initLimit=20\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n\
                 4lw.commands.whitelist=*\n{}",
                dir.display(),
                tick.as_millis(),
                if count > 1 { peers.as_str() } else { "" }
            );
            fs::write(dir.join("zoo.cfg"), config).expect("a configuration");
            Server { dir, port, child: None }
        };
        let mut servers = Self { servers: (0..count).map(make_server).collect(), _dir: dir };
        (0..count).for_each(|n| servers.restart(n));
        servers.wait_until_serving();
        servers
    }

    /// Lists the addresses of all servers, as in a `zk://` address.
    pub(crate) fn addresses(&self) -> String {
        let servers = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port));
        servers.collect::<Vec<_>>().join(",")
    }

    /// Kills a server with SIGKILL, which simulates a power failure.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.servers[n].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a killed server again, with its old data.
    pub(crate) fn restart(&mut self, n: usize) {
        let server = &mut self.servers[n];
        let log = File::options().create(true).append(true).open(server.dir.join("log"));
        let log = log.expect("a log");
        let child = Command::new("java")
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-cp", &format!("{CLASSES}/*"), MAIN])
            .arg(server.dir.join("zoo.cfg"))
            .current_dir(&server.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("java starts");
        server.child = Some(child);
    }

    /// Waits until every running server belongs to an ensemble with a leader.
    pub(crate) fn wait_until_serving(&self) {
        for server in self.servers.iter().filter(|server| server.child.is_some()) {
            let mut waited = Duration::ZERO;
            while !send_command(server.port, "srvr").contains("Mode: ") {
                assert!(
                    waited < TIMEOUT,
                    "{}",
                    fs::read_to_string(server.dir.join("log")).unwrap_or_default()
                );
                sleep(POLL_INTERVAL);
                waited += POLL_INTERVAL;
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        (0..self.servers.len()).for_each(|n| self.kill(n));
    }
}

/// Sends a four-letter command. Returns the answer, or an empty string if there is no answer.
fn send_command(port: u16, command: &str) -> String {
    let mut answer = String::new();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.write_all(command.as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, fastrand::u16(PORTS));
        held.extend(TcpListener::bind(address).map(|listener| (listener, address.port())));
    }
    held.into_iter().map(|(_, port)| port).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test waits for another process")]
fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

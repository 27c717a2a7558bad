//! A master under attack, measurements of its resources, and connections from chosen addresses.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use overlay_types::addr::{agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, Message};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::agents::Agents;
use crate::libprocess::request;
use crate::master_process::{MasterProcess, NETWORK, free_address};
use crate::usage::Usage;

/// Maximum number of connections that the master accepts.
const CONNECTIONS: usize = 12_000;
/// Maximum growth of the master's memory in an attack, in MiB.
const MEMORY_MAX: f64 = 200.0;
/// Time limit for a health request from an address that does not attack.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for honest agents to receive their addresses.
const AGENTS_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for all other events.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Source address of health requests. No attack uses this address.
const OPERATOR: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);

/// A master with honest agents.
pub(crate) struct Victim {
    pub(crate) master: MasterProcess,
    agents: Arc<Agents>,
    dir: TempDir,
}

impl Victim {
    #[expect(clippy::disallowed_methods, reason = "this process is our own")]
    pub(crate) async fn start(agents: usize) -> Self {
        let limit = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let address = free_address();
        // Fewer connections than by default, since both ends are on this machine.
        let config = format!(r#"{{"network":{NETWORK},"limits":{{"connections":{CONNECTIONS}}}}}"#);
        let network = dir.path().join("master.json");
        fs::write(&network, config).unwrap();
        let command =
            MasterProcess::command_with_log("info", "file", &network, dir.path(), address);
        let master = MasterProcess::launch(command, dir.path(), address).await.unwrap();
        let agents = Agents::start(watch::channel(Some(address)).1, agents, None).unwrap();
        agents.all_acknowledged(AGENTS_TIMEOUT).await.unwrap();
        Self { master, agents, dir }
    }

    pub(crate) const fn address(&self) -> SocketAddrV4 {
        self.master.address
    }

    /// Runs an attack, and measures the master meanwhile. Fails if an honest agent loses its
    /// connection.
    pub(crate) async fn measure_attack<T>(
        &self,
        attack: &str,
        future: impl Future<Output = T>,
    ) -> T {
        let pid = self.master.child.id();
        let registrations = self.agents.registrations.load(Ordering::Relaxed);
        let idle = Usage::of(pid).unwrap().resident;
        // Resets the kernel's record of peak memory (proc(5)).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let mut slowest = Duration::ZERO;
        let poll_health = async {
            loop {
                slowest = slowest.max(self.health_time().await);
                sleep(Duration::from_millis(50)).await;
            }
        };
        let begin = Instant::now();
        let result = tokio::select! {
            result = future => result,
            () = poll_health => unreachable!("the loop has no end"),
        };
        let elapsed = begin.elapsed();
        slowest = slowest.max(self.health_time().await);
        let cost = Usage::of(pid).unwrap().peak - idle;
        println!(
            "{attack}: {elapsed:.1?}; memory {idle:.0} MiB and {cost:.0} MiB more; health within \
             {slowest:.2?}"
        );
        assert!(cost < MEMORY_MAX, "{attack}: {cost:.0} MiB more than {idle:.0} MiB");
        assert!(slowest < HEALTH_TIMEOUT, "{attack}: health took {slowest:.2?}");
        self.agents.all_acknowledged(Duration::from_secs(1)).await.unwrap();
        let later = self.agents.registrations.load(Ordering::Relaxed);
        assert_eq!(later, registrations, "{attack}: an honest agent lost its link");
        result
    }

    async fn health_time(&self) -> Duration {
        let begin = Instant::now();
        let reply = self.get_from(OPERATOR, "/overlay-master/health").await;
        let reply = reply.unwrap_or_else(|error| panic!("{error}: {}", self.master.log()));
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply:?}: {}", self.master.log());
        begin.elapsed()
    }

    /// Sends a GET request from an address, and returns the answer.
    pub(crate) async fn get_from(&self, from: Ipv4Addr, path: &str) -> io::Result<String> {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let exchange = async {
            let mut stream = connect(from, self.address()).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Registers an agent at an address, and waits for its assignment.
    pub(crate) async fn register_agent(&self, ip: Ipv4Addr) {
        let listener = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
        let SocketAddr::V4(own) = listener.local_addr().unwrap() else { unreachable!() };
        let register = Message::RegisterAgent(AgentOptions::default());
        let register = request(&agent_upid(own), &master_upid(self.address()), &register, |_| None);
        let served = async {
            let mut link = connect(ip, self.address()).await.unwrap();
            link.write_all(&register).await.unwrap();
            let (mut answer, _) = listener.accept().await.unwrap();
            let mut start = [0; 19];
            answer.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"POST /overlay-agent");
        };
        let served = timeout(Duration::from_secs(10), served).await;
        served.unwrap_or_else(|_| panic!("{ip} was not served: {}", self.master.log()));
    }

    /// Returns the number of refusals by a limit, from the master's metrics.
    pub(crate) async fn refusals(&self, limit: &str) -> u64 {
        let metrics = self.get_from(OPERATOR, "/overlay-master/metrics").await.unwrap();
        let sample = format!("mesos_overlay_master_limit_refusals_total{{limit=\"{limit}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
        line.unwrap_or_else(|| panic!("no {sample}in {metrics}")).trim().parse().unwrap()
    }

    pub(crate) async fn health(&self) -> Value {
        self.master.health().await.unwrap()
    }

    /// Returns the size of the log in bytes.
    pub(crate) fn log_size(&self) -> u64 {
        fs::metadata(self.dir.path().join("master.log")).unwrap().len()
    }
}

/// Connects from an address. The address needs no interface: Linux accepts all of 127/8.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.connect(to.into()).await
}

/// Returns the address of an attacker.
pub(crate) fn attacker(index: usize) -> Ipv4Addr {
    let first = Ipv4Addr::new(127, 66, 0, 1).to_bits();
    Ipv4Addr::from_bits(first + u32::try_from(index).unwrap())
}

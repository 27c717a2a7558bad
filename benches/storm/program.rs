//! A master in a process of its own, with its state on a real disk: the built program, or whatever
//! else serves the same.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesos_network_overlay::protocol::State;
use mesos_network_overlay::wire;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Room for 32,768 agents.
pub(crate) const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16",
    "vtep_mac_oui": "70:B3:D5:00:00:00",
    "overlays": [
        { "name": "vxlan-1", "subnet": "10.0.0.0/9", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "10.128.0.0/9", "prefix": 24 }
    ]
}"#;

/// Ports that the system gives to nobody by itself: between a kill and a restart the port must stay
/// free.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A master that runs. Dropped, it is killed.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) address: SocketAddrV4,
    log: PathBuf,
}

impl Program {
    /// Starts the built program with its state in `store`, or in `dir` if that is `file`, and waits
    /// until it has read that.
    pub(crate) async fn start(
        store: &str,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Result<Self, String> {
        let command = Self::command(store, &write_network(dir)?, dir, address);
        Self::launch(command, dir, address).await
    }

    /// What starts the built program with the network in a file.
    pub(crate) fn command(
        store: &str,
        network: &Path,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Command {
        Self::command_with_log("warn", store, network, dir, address)
    }

    /// The same, with lines of this level and above in its log.
    pub(crate) fn command_with_log(
        level: &str,
        store: &str,
        network: &Path,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesos-overlay"));
        command
            .args(["master", "--log", level, "--store", store])
            .args(["--listen".to_owned(), address.to_string()])
            .args(["--config".as_ref(), network.as_os_str()])
            .args(["--work-dir".as_ref(), dir.join("state").as_os_str()]);
        command
    }

    /// Starts a master by `command`, and waits until it serves at `address`.
    pub(crate) async fn launch(
        command: Command,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Result<Self, String> {
        let mut program = Self::spawn(command, dir, address)?;
        program.ready().await?;
        Ok(program)
    }

    /// Starts a master by `command`, whose log is in `dir`.
    pub(crate) fn spawn(
        mut command: Command,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Result<Self, String> {
        let failure = |error: io::Error| format!("start a master in {}: {error}", dir.display());
        let log = dir.join("master.log");
        let output = File::options().create(true).append(true).open(&log).map_err(failure)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().map_err(failure)?;
        Ok(Self { child, address, log })
    }

    /// What `/overlay-master/health` says.
    pub(crate) async fn health(&self) -> Result<Value, String> {
        health(self.address).await
    }

    /// What `/overlay-master/state` says.
    pub(crate) async fn state(&self) -> Result<State, String> {
        state(self.address).await
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// Kills it at once, and waits until the system has closed its connections.
    pub(crate) fn kill(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn ready(&mut self) -> Result<(), String> {
        let wait = async {
            // One that waits to be elected is well, and not ready.
            while self.health().await.map_or(true, |health| health["status"] == "standby") {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return Err(format!("the master ended: {status}: {}", self.log()));
                }
                sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err("the master is not ready".to_owned()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The network file of all masters here, in `dir`.
pub(crate) fn write_network(dir: &Path) -> Result<PathBuf, String> {
    let path = dir.join("network.json");
    fs::write(&path, NETWORK).map_err(|error| format!("write {}: {error}", path.display()))?;
    Ok(path)
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddrV4 {
    loop {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, fastrand::u16(PORTS));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// What `/overlay-master/health` of the master at `address` says.
pub(crate) async fn health(address: SocketAddrV4) -> Result<Value, String> {
    let body = ask(address, "GET /overlay-master/health", "application/json", "").await?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// What `/overlay-master/state` of the master at `address` says.
pub(crate) async fn state(address: SocketAddrV4) -> Result<State, String> {
    let body = ask(address, "GET /overlay-master/state", "application/x-protobuf", "").await?;
    let state = wire::decode(&body).map_err(|error| error.to_string())?;
    wire::decode_state(&state).map_err(|error| error.to_string())
}

/// The body of the answer to a request, which must be a 200.
pub(crate) async fn ask(
    address: SocketAddrV4,
    what: &str,
    accept: &str,
    body: &str,
) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::V4(address)).await?;
        let request = format!(
            "{what} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange)
        .await
        .map_err(|_| format!("{what}: no answer within {PATIENCE:?}"))?
        .map_err(|error| format!("{what}: {error}"))?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.ok_or("no answer")? + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&answer)));
    }
    Ok(body.to_vec())
}

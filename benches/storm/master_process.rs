//! A master in a separate process with its state on a real disk: the built binary, or another
//! program with the same endpoints.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use overlay_types::protocol::State;
use overlay_wire as wire;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A network for at most 32,768 agents.
pub(crate) const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16",
    "vtep_mac_oui": "70:B3:D5:00:00:00",
    "overlays": [
        { "name": "vxlan-1", "subnet": "10.0.0.0/9", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "10.128.0.0/9", "prefix": 24 }
    ]
}"#;

/// Ports outside the ephemeral range of the kernel: the port of a killed master must stay free
/// until the restart.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Timeout of a request, and of the start of a master.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A running master. Dropping it kills the process.
pub(crate) struct MasterProcess {
    pub(crate) child: Child,
    pub(crate) address: SocketAddrV4,
    log: PathBuf,
}

impl MasterProcess {
    /// Starts the built binary with this `--store`, and waits until it has loaded its state. A file
    /// store is in `dir`.
    pub(crate) async fn start(
        store: &str,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Result<Self, String> {
        let command = Self::command(store, &write_network(dir)?, dir, address);
        Self::launch(command, dir, address).await
    }

    /// Returns the command that starts the built binary with a network file.
    pub(crate) fn command(
        store: &str,
        network: &Path,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Command {
        Self::command_with_log("warn", store, network, dir, address)
    }

    /// Returns the command that starts the built binary with this log level.
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

    /// Starts a master with `command`, and waits until it serves at `address`.
    pub(crate) async fn launch(
        command: Command,
        dir: &Path,
        address: SocketAddrV4,
    ) -> Result<Self, String> {
        let mut program = Self::spawn(command, dir, address)?;
        program.ready().await?;
        Ok(program)
    }

    /// Starts a master with `command`. Its log is in `dir`.
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

    /// Requests `/overlay-master/health`.
    pub(crate) async fn health(&self) -> Result<Value, String> {
        health(self.address).await
    }

    /// Requests `/overlay-master/state`.
    pub(crate) async fn state(&self) -> Result<State, String> {
        state(self.address).await
    }

    /// Returns the log of the master.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// Kills the master, and waits until the kernel has closed its connections.
    pub(crate) fn kill(&mut self) {
        // Both calls fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn ready(&mut self) -> Result<(), String> {
        let wait = async {
            // A standby master is healthy, but does not serve.
            while self.health().await.map_or(true, |health| health["status"] == "standby") {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return Err(format!("the master ended: {status}: {}", self.log()));
                }
                sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        timeout(TIMEOUT, wait).await.unwrap_or_else(|_| Err("the master is not ready".to_owned()))
    }
}

impl Drop for MasterProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes `NETWORK` into a file in `dir`. Returns its path.
pub(crate) fn write_network(dir: &Path) -> Result<PathBuf, String> {
    let path = dir.join("network.json");
    fs::write(&path, NETWORK).map_err(|error| format!("write {}: {error}", path.display()))?;
    Ok(path)
}

/// Returns a loopback address on which nothing listens.
pub(crate) fn free_address() -> SocketAddrV4 {
    loop {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, fastrand::u16(PORTS));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Requests `/overlay-master/health` of the master at `address`.
pub(crate) async fn health(address: SocketAddrV4) -> Result<Value, String> {
    let body = send_request(address, "GET /overlay-master/health", "application/json", "").await?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Requests `/overlay-master/state` of the master at `address`.
pub(crate) async fn state(address: SocketAddrV4) -> Result<State, String> {
    let body =
        send_request(address, "GET /overlay-master/state", "application/x-protobuf", "").await?;
    let state = wire::decode(&body).map_err(|error| error.to_string())?;
    wire::decode_state(&state).map_err(|error| error.to_string())
}

/// Sends a request. Returns the body of the response, which must have the status 200.
pub(crate) async fn send_request(
    address: SocketAddrV4,
    request_line: &str,
    accept: &str,
    body: &str,
) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::V4(address)).await?;
        let request = format!(
            "{request_line} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        io::Result::Ok(response)
    };
    let response = timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| format!("{request_line}: no response within {TIMEOUT:?}"))?
        .map_err(|error| format!("{request_line}: {error}"))?;
    let end = response.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = response.split_at(end.ok_or("no response")? + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("{request_line}: {}", String::from_utf8_lossy(&response)));
    }
    Ok(body.to_vec())
}

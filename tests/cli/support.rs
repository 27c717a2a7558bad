//! Runs the built binary: once, or as a process that lives as long as a test.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle, park_timeout};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

/// The example of the C++ modules.
pub(crate) const NETWORK: &str = include_str!("../golden/network.json");

/// Upper bound for any step on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between two polls of an awaited condition.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The exit code and the output of a finished run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Returns stdout, stderr and the exit code, as a transcript shows them.
    pub(crate) fn transcript(&self) -> String {
        format!("{}{}exit code {}\n", self.stdout, self.stderr, self.code.unwrap_or(-1))
    }

    /// Returns stdout of a run that succeeded and wrote nothing to stderr.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// Returns stdout of a successful run, parsed as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.success()).expect("stdout is JSON")
    }

    /// Returns stderr of a run that failed with exit code 1.
    #[track_caller]
    pub(crate) fn failure(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.stderr
    }

    /// Returns stderr of a run that ended with exit code 2, wrong usage.
    #[track_caller]
    pub(crate) fn usage_error(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:?}");
        self.stderr
    }
}

/// The temporary directory of a test. The binary runs in this directory.
pub(crate) struct TestDir(TempDir);

impl TestDir {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn with_network() -> Self {
        let dir = Self::new();
        dir.write("network.json", NETWORK);
        dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Runs the binary with space-separated arguments.
    pub(crate) fn run(&self, arguments: &str) -> Outcome {
        self.run_with(arguments, &[], "")
    }

    /// Runs the binary with additional environment variables and with `stdin` as its input.
    pub(crate) fn run_with(
        &self,
        arguments: &str,
        environment: &[(&str, &str)],
        stdin: &str,
    ) -> Outcome {
        let output = assert_cmd::Command::from_std(self.command(arguments))
            .envs(environment.iter().copied())
            .write_stdin(stdin)
            .timeout(TIMEOUT)
            .output()
            .unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs the binary with stdout and stderr on a terminal of this width. Returns what the terminal
    /// received, with the line ends of a file.
    pub(crate) fn run_on_terminal(
        &self,
        arguments: &str,
        environment: &[(&str, &str)],
        columns: u16,
    ) -> (Option<i32>, String) {
        let (mut controller, terminal) = open_terminal(columns);
        let mut command = self.command(arguments);
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm").envs(environment.iter().copied());
        command.stdout(terminal.try_clone().unwrap()).stderr(terminal);
        let mut child = command.spawn().unwrap();
        // The end of the child is the end of the terminal's last user.
        drop(command);
        let mut shown = Vec::new();
        // A terminal without users reports an error instead of the end.
        let _ = controller.read_to_end(&mut shown);
        let code = child.wait().unwrap().code();
        (code, String::from_utf8(shown).unwrap().replace("\r\n", "\n"))
    }

    /// Runs the binary with a stdout pipe whose reading end is closed.
    pub(crate) fn run_into_closed_pipe(&self, arguments: &str) -> Outcome {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Outcome { code: output.status.code(), stdout: String::new(), stderr }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(program());
        command.current_dir(self.0.path()).args(arguments.split_whitespace());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MESOS_OVERLAY_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// Opens a pseudo-terminal. Returns the end that shows what programs write, and that of programs.
fn open_terminal(columns: u16) -> (File, File) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let path = ptsname(&controller, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).unwrap();
    (File::from(controller), terminal)
}

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mesos-overlay"))
}

/// A running master or agent process. Dropping it kills the process.
pub(crate) struct RunningProcess {
    child: Child,
    lines: Receiver<String>,
    log: String,
    reader: Option<JoinHandle<()>>,
}

impl RunningProcess {
    pub(crate) fn start(dir: &TestDir, arguments: &str) -> Self {
        Self::start_with_env(dir, arguments, &[])
    }

    /// Starts a process with additional environment variables.
    pub(crate) fn start_with_env(
        dir: &TestDir,
        arguments: &str,
        environment: &[(&str, String)],
    ) -> Self {
        let mut command = dir.command(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let forward =
            move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        let reader = Builder::new().spawn(move || drop(forward())).unwrap();
        Self { child, lines, log: String::new(), reader: Some(reader) }
    }

    /// Waits for the next log line that contains `text`, and returns the part after `text`.
    #[track_caller]
    pub(crate) fn expect_log(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(TIMEOUT) {
                Ok(line) => {
                    self.log += &format!("{line}\n");
                    if let Some((_, rest)) = line.split_once(text) {
                        return rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line with {text:?} in the log:\n{}", self.log)
                }
            }
        }
    }

    /// Sends SIGHUP, on which the process reloads its configuration.
    pub(crate) fn send_sighup(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// Sends SIGTERM and waits. Returns the exit status and the complete log.
    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        self.log.extend(self.lines.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.log))
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A running master and the address on which it listens.
pub(crate) struct Master {
    pub(crate) process: RunningProcess,
    pub(crate) address: SocketAddrV4,
}

impl Master {
    /// Starts a master with `network.json` on a port that the kernel chooses. The work directory is
    /// `work`.
    pub(crate) fn start(dir: &TestDir) -> Self {
        Self::start_at(dir, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), "network.json")
    }

    pub(crate) fn start_at(dir: &TestDir, listen: SocketAddrV4, file: &str) -> Self {
        let arguments = format!("master --config {file} --listen {listen} --work-dir work");
        let mut process = RunningProcess::start(dir, &arguments);
        let rest = process.expect_log("overlay master at ");
        let address = rest.split(':').take(2).collect::<Vec<_>>().join(":").parse().unwrap();
        Self { process, address }
    }

    /// Runs `state` until its output satisfies `is_expected`. Returns that output.
    #[track_caller]
    pub(crate) fn wait_for_state(
        &self,
        dir: &TestDir,
        is_expected: impl Fn(&str) -> bool,
    ) -> String {
        for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
            let outcome = dir.run(&format!("state -o wide --master {}", self.address));
            if outcome.code == Some(0) && is_expected(&outcome.stdout) {
                let shown = outcome.stdout.replace(&self.address.to_string(), "MASTER");
                return mask_times(&shown);
            }
            park_timeout(POLL_INTERVAL);
        }
        panic!("{}", dir.run(&format!("state -o wide --master {}", self.address)).transcript())
    }
}

/// Starts an agent on a loopback address, without Docker and without a dataplane.
pub(crate) fn start_agent(dir: &TestDir, master: SocketAddrV4, ip: &str) -> RunningProcess {
    start_agent_with_env(dir, master, ip, &[])
}

/// As [`start_agent`], with additional environment variables.
pub(crate) fn start_agent_with_env(
    dir: &TestDir,
    master: SocketAddrV4,
    ip: &str,
    environment: &[(&str, String)],
) -> RunningProcess {
    let cni_dir = dir.path(&format!("cni-{ip}"));
    let config = serde_json::json!({
        "cni_dir": cni_dir,
        "dataplane": "external",
        "refuse_collisions": false,
        "network_config": { "docker_bridge": false }
    });
    dir.write(&format!("agent-{ip}.json"), config.to_string());
    let arguments = format!("agent --config agent-{ip}.json --master {master} --listen {ip}:0");
    RunningProcess::start_with_env(dir, &arguments, environment)
}

/// An HTTP server with a fixed response for each path. Any other path gets a 404. A key may be
/// `PATH TEXT`: the response then applies only to requests that contain `TEXT`.
pub(crate) struct FakeMaster {
    pub(crate) address: String,
}

impl FakeMaster {
    pub(crate) fn start(responses: Vec<(&'static str, String)>) -> Self {
        Self::start_at("127.0.0.1:0", responses)
    }

    /// Starts a server at an address.
    pub(crate) fn start_at(address: &str, responses: Vec<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // The thread is detached: it ends with the test process.
        let serve = move || {
            listener.incoming().for_each(|stream| respond(stream.unwrap(), &responses));
        };
        Builder::new().spawn(serve).unwrap();
        Self { address }
    }

    /// Starts a server on a Unix socket.
    pub(crate) fn start_on_socket(path: &Path, responses: Vec<(&'static str, String)>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let serve = move || {
            listener.incoming().for_each(|stream| respond(stream.unwrap(), &responses));
        };
        Builder::new().spawn(serve).unwrap();
        Self { address: format!("unix:{}", path.display()) }
    }

    /// Starts a server that responds only to `/overlay-master/state`.
    pub(crate) fn with_state(response: String) -> Self {
        Self::start(vec![("/overlay-master/state", response)])
    }
}

/// Reads one request and sends its response.
fn respond(mut stream: impl Read + Write, responses: &[(&str, String)]) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !is_complete_request(&request) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let response = responses.iter().find(|(key, _)| {
        let (expected_path, text) = key.split_once(' ').unwrap_or((key, ""));
        expected_path == path && request.contains(text)
    });
    let not_found = http_response("404 Not Found", "");
    let response = response.map_or(&not_found, |(_, response)| response);
    let _ = stream.write_all(response.as_bytes());
}

/// Whether `request` contains a complete head and body.
fn is_complete_request(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|end| end == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    request.len() - end - 4 >= length.map_or(0, |length| length.parse().unwrap())
}

/// Formats an HTTP response.
pub(crate) fn http_response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Replaces every time such as `2026-11-29T08:00:00Z` by `TIME`, padded to the same width.
pub(crate) fn mask_times(text: &str) -> String {
    let is_time = |word: &str| word.len() == 20 && word.ends_with('Z') && word.contains("-");
    let mut masked = text.to_owned();
    for word in text.split_whitespace().filter(|word| is_time(word)) {
        masked = masked.replace(word, &format!("{:<20}", "TIME"));
    }
    masked
}

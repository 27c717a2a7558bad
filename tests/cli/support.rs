//! Running the program, once or for as long as a test takes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle, park_timeout};
use std::time::Duration;

use tempfile::TempDir;

/// The network file of the README.
pub(crate) const NETWORK: &str = include_str!("../../docs/network.json");

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(50);

/// What a run of the program left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Both outputs and the code as a transcript has them.
    pub(crate) fn transcript(&self) -> String {
        format!("{}{}exit code {}\n", self.stdout, self.stderr, self.code.unwrap_or(-1))
    }

    /// The output of a run that succeeded and had nothing to say on stderr.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// The same, as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.success()).expect("the output is JSON")
    }

    /// The line on stderr of a run that failed.
    #[track_caller]
    pub(crate) fn failure(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.stderr
    }

    /// What is on stderr after a wrong usage.
    #[track_caller]
    pub(crate) fn usage(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:?}");
        self.stderr
    }
}

/// A directory for the files of a test, in which the program is run.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn with_network() -> Self {
        let place = Self::new();
        place.write("network.json", NETWORK);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Runs the program with arguments that spaces separate.
    pub(crate) fn run(&self, arguments: &str) -> Outcome {
        self.run_with(arguments, &[], "")
    }

    /// The same with an environment and a text on stdin.
    pub(crate) fn run_with(
        &self,
        arguments: &str,
        environment: &[(&str, &str)],
        stdin: &str,
    ) -> Outcome {
        let output = assert_cmd::Command::from_std(self.command(arguments))
            .envs(environment.iter().copied())
            .write_stdin(stdin)
            .timeout(PATIENCE)
            .output()
            .unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs the program with a stdout that nobody reads.
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

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mesos-overlay"))
}

/// A master or an agent that runs. It is killed when the test is done with it.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    log: String,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(place: &Place, arguments: &str) -> Self {
        Self::start_with(place, arguments, &[])
    }

    /// The same with an environment.
    pub(crate) fn start_with(
        place: &Place,
        arguments: &str,
        environment: &[(&str, String)],
    ) -> Self {
        let mut command = place.command(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let read = move || stderr.lines().map_while(Result::ok).try_for_each(|it| sender.send(it));
        let reader = Builder::new().spawn(move || drop(read())).unwrap();
        Self { child, lines, log: String::new(), reader: Some(reader) }
    }

    /// The rest of the next log line that contains `text`.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
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

    /// Has it read its configuration again.
    pub(crate) fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// Sends SIGTERM and waits; the exit status and the whole log.
    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        self.log.extend(self.lines.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A master on a port that the kernel chose, or on the one that it had before.
pub(crate) struct Master {
    pub(crate) running: Running,
    pub(crate) address: SocketAddrV4,
}

impl Master {
    /// With the network file, and its state in `work` of the place.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_at(place, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), "network.json")
    }

    pub(crate) fn start_at(place: &Place, listen: SocketAddrV4, file: &str) -> Self {
        let arguments = format!("master --config {file} --listen {listen} --work-dir work");
        let mut running = Running::start(place, &arguments);
        let rest = running.expect("overlay master at ");
        let address = rest.split(':').take(2).collect::<Vec<_>>().join(":").parse().unwrap();
        Self { running, address }
    }

    /// Runs `state` until its output satisfies `is_it`.
    #[track_caller]
    pub(crate) fn state_when(&self, place: &Place, is_it: impl Fn(&str) -> bool) -> String {
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            let outcome = place.run(&format!("state --master {}", self.address));
            if outcome.code == Some(0) && is_it(&outcome.stdout) {
                return outcome.stdout.replace(&self.address.to_string(), "MASTER");
            }
            park_timeout(PAUSE);
        }
        panic!("{}", place.run(&format!("state --master {}", self.address)).transcript())
    }
}

/// An agent at this loopback address that has nothing to do with Docker.
pub(crate) fn start_agent(place: &Place, master: SocketAddrV4, ip: &str) -> Running {
    let cni_dir = place.path(&format!("cni-{ip}"));
    let config = serde_json::json!({
        "cni_dir": cni_dir,
        "dataplane": "external",
        "refuse_collisions": false,
        "network_config": { "docker_bridge": false }
    });
    place.write(&format!("agent-{ip}.json"), config.to_string());
    let arguments = format!("agent --config agent-{ip}.json --master {master} --listen {ip}:0");
    Running::start(place, &arguments)
}

/// A server that answers each path with these bytes, and everything else with 404. Behind a path
/// there may be a space and a text: then the request has to contain that.
pub(crate) struct FakeMaster {
    pub(crate) address: String,
}

impl FakeMaster {
    pub(crate) fn start(answers: Vec<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // The thread ends with the test's process: nobody waits for it.
        let serve = move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut buffer = [0; 1024];
                while !is_whole(&request) {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(length) => request.extend_from_slice(&buffer[..length]),
                    }
                }
                let request = String::from_utf8_lossy(&request);
                let path = request.split(' ').nth(1).unwrap_or_default();
                let answer = answers.iter().find(|(known, _)| {
                    let (known, text) = known.split_once(' ').unwrap_or((known, ""));
                    known == path && request.contains(text)
                });
                let not_found = http("404 Not Found", "");
                let answer = answer.map_or(&not_found, |(_, answer)| answer);
                let _ = stream.write_all(answer.as_bytes());
            }
        };
        Builder::new().spawn(serve).unwrap();
        Self { address }
    }

    /// With one answer to the question for the state.
    pub(crate) fn with_state(answer: String) -> Self {
        Self::start(vec![("/overlay-master/state", answer)])
    }
}

/// Whether the head and the body of a request are there.
fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|end| end == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    request.len() - end - 4 >= length.map_or(0, |length| length.parse().unwrap())
}

/// An answer in HTTP.
pub(crate) fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

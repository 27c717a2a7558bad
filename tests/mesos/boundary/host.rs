//! Starts the host program, sends commands to it, and observes it. It ends with its test.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::Builder;

use tempfile::TempDir;

use super::peer::{Response, TIMEOUT, get, wait_for};
use crate::library;

pub(crate) const MASTER: &str = "com_mesosphere_mesos_MasterOverlayHelper";
pub(crate) const AGENT: &str = "com_mesosphere_mesos_AgentOverlayHelper";
/// The names of the C++ modules.
pub(crate) const CPP_MASTER: &str = "com_mesosphere_mesos_OverlayMasterManager";
pub(crate) const CPP_AGENT: &str = "com_mesosphere_mesos_OverlayAgentManager";

/// A build of the host program and a build of the library.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    pub(crate) program: &'static Path,
    pub(crate) library: &'static Path,
}

impl Build {
    pub(crate) fn release() -> Self {
        Self { program: library::host_program(), library: library::release_library() }
    }

    pub(crate) fn with_fault_injection() -> Self {
        Self { program: library::host_program(), library: library::fault_injection_library() }
    }

    pub(crate) fn sanitized() -> Self {
        Self { program: library::sanitized_host_program(), library: library::sanitized_library() }
    }
}

/// A running host program. Dropping it kills the process.
pub(crate) struct Host {
    child: Child,
    commands: Option<ChildStdin>,
    replies: Receiver<String>,
    build: Build,
    directory: TempDir,
    pub(crate) address: SocketAddr,
}

impl Host {
    pub(crate) fn start(build: Build) -> Self {
        Self::start_with_env(build, &[])
    }

    /// Starts a host with more environment variables.
    pub(crate) fn start_with_env(build: Build, environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        let mut command = Command::new(build.program);
        command.current_dir(directory.path());
        // These variables would also configure the modules.
        for name in ["MESOS_MASTER", "MESOS_ZK", "MESOS_QUORUM"] {
            command.env_remove(name);
        }
        command.env("LIBPROCESS_IP", "127.0.0.1").env("LIBPROCESS_PORT", "0");
        command.env("GLOG_logtostderr", "1");
        command.envs(environment.iter().copied());
        // Mesos never frees its singletons, so leak detection is off. libmesos is not instrumented,
        // so its containers have no annotations for overflow detection.
        command.env("ASAN_OPTIONS", "detect_leaks=0:detect_container_overflow=0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the host program starts");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, replies) = mpsc::channel();
        let read = move || {
            for line in output.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        Builder::new().name("replies".to_owned()).spawn(read).expect("a thread");
        let commands = child.stdin.take();
        let address = SocketAddr::from(([0; 4], 0));
        let mut host = Self { child, commands, replies, build, directory, address };
        let advertised = host.command(&["address"]).remove(0);
        let port = advertised.rsplit(':').next().and_then(|port| port.parse().ok());
        // The host always listens on this address, whatever it advertises.
        host.address = SocketAddr::from(([127, 0, 0, 1], port.expect("a port")));
        host
    }

    /// Executes a command. Returns the fields of its reply, or its error.
    pub(crate) fn try_command(&mut self, fields: &[&str]) -> Result<Vec<String>, String> {
        let commands = self.commands.as_mut().expect("the host is running");
        let sent = writeln!(commands, "{}", fields.join("\t"));
        // The host program waits less than this time for any event of libprocess.
        let reply = self.replies.recv_timeout(2 * TIMEOUT);
        let reply =
            reply.unwrap_or_else(|error| panic!("{fields:?}: {error} {sent:?}: {}", self.log()));
        let mut reply = reply.split('\t').map(str::to_owned);
        match reply.next().as_deref() {
            Some("ok") => Ok(reply.collect()),
            _ => Err(reply.collect::<Vec<_>>().join(" ")),
        }
    }

    /// Executes a command that must succeed. Returns the fields of its reply.
    pub(crate) fn command(&mut self, fields: &[&str]) -> Vec<String> {
        self.try_command(fields)
            .unwrap_or_else(|error| panic!("{fields:?}: {error}: {}", self.log()))
    }

    /// Loads a module from a library. Returns whether Mesos got a module.
    pub(crate) fn load_from(
        &mut self,
        library: &Path,
        symbol: &str,
        parameters: &[(&str, &str)],
    ) -> bool {
        let pairs: Vec<_> =
            parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut fields = vec!["load", text(library), symbol];
        fields.extend(pairs.iter().map(String::as_str));
        self.command(&fields)[0] == "made"
    }

    /// Loads a module from the library of the build. Returns whether Mesos got a module.
    pub(crate) fn load(&mut self, symbol: &str, parameters: &[(&str, &str)]) -> bool {
        self.load_from(self.build.library, symbol, parameters)
    }

    /// Loads the master module with this network, and waits until it serves its state.
    pub(crate) fn load_master(&mut self, network: &str) {
        let (file, work_dir) = (self.write("network.json", network), self.path("work"));
        let parameters = [("overlays", text(&file)), ("work_dir", text(&work_dir))];
        assert!(self.load(MASTER, &parameters), "{}", self.log());
        self.wait_for_state();
    }

    /// Waits until the master serves its state. Returns the state.
    pub(crate) fn wait_for_state(&self) -> serde_json::Value {
        wait_for("state of the master", || {
            let response = get(self.address, "/overlay-master/state", &[]);
            (response.status == 200).then(|| response.json())
        })
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        get(self.address, target, &[])
    }

    /// Returns all metrics of Mesos.
    pub(crate) fn metrics(&self) -> serde_json::Map<String, serde_json::Value> {
        // Mesos limits the rate of this request, and waits at most this long for each metric.
        let response = self.get("/metrics/snapshot?timeout=10secs");
        assert_eq!(response.status, 200, "{response:?}");
        response.json().as_object().expect("the metrics are an object").clone()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).and_then(serde_json::Value::as_f64).expect("the metric exists")
    }

    /// Returns a path in the directory of the host.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Returns the complete log.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// Returns the lines of the log that contain `text`.
    pub(crate) fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_for(text, || (!self.log_lines(text).is_empty()).then_some(()));
    }

    /// Returns the path of a file in `/proc/PID` of the host.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Returns the name and the TID of each thread.
    pub(crate) fn threads(&self) -> Vec<(String, String)> {
        let tasks = fs::read_dir(self.proc("task")).expect("the host runs");
        let name = |task: fs::DirEntry| {
            // A thread may end during this iteration.
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((name.trim().to_owned(), task.file_name().into_string().ok()?))
        };
        tasks.flatten().filter_map(name).collect()
    }

    /// Returns the number of threads of the modules, without the thread of the log: it serves both
    /// modules, and runs until the process ends.
    pub(crate) fn module_thread_count(&self) -> usize {
        let threads = self.threads();
        let names = threads.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.starts_with("overlay-") && *name != "overlay-log").count()
    }

    /// Returns the resident memory, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the host runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("the kernel shows the value")
    }

    /// Makes the host return from `main`. Returns its exit status and its complete log.
    pub(crate) fn exit(mut self) -> (ExitStatus, String) {
        drop(self.commands.take());
        let status = wait_for("end of the host", || self.child.try_wait().expect("a child"));
        (status, self.log())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths are text")
}

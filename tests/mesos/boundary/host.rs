//! The host program: started, told what to do, looked at, and gone at the end of its test.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::Builder;

use tempfile::TempDir;

use super::peer::{PATIENCE, Response, get, wait_for};
use crate::library;

pub(crate) const MASTER: &str = "com_mesosphere_mesos_MasterOverlayHelper";
pub(crate) const AGENT: &str = "com_mesosphere_mesos_AgentOverlayHelper";
/// The names that the C++ modules had.
pub(crate) const OLD_MASTER: &str = "com_mesosphere_mesos_OverlayMasterManager";
pub(crate) const OLD_AGENT: &str = "com_mesosphere_mesos_OverlayAgentManager";

/// A program and a library for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    pub(crate) program: &'static Path,
    pub(crate) library: &'static Path,
}

impl Build {
    pub(crate) fn release() -> Self {
        Self { program: library::host_program(), library: library::release_library() }
    }

    pub(crate) fn with_faults() -> Self {
        Self { program: library::host_program(), library: library::library_with_faults() }
    }

    pub(crate) fn sanitized() -> Self {
        Self { program: library::sanitized_host_program(), library: library::sanitized_library() }
    }
}

/// A host program that runs. It ends when it is dropped.
pub(crate) struct Host {
    child: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    build: Build,
    directory: TempDir,
    pub(crate) address: SocketAddr,
}

impl Host {
    pub(crate) fn start(build: Build) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        let mut command = Command::new(build.program);
        command.current_dir(directory.path());
        // Each would configure a module as well.
        for name in ["MESOS_MASTER", "MESOS_ZK", "MESOS_QUORUM"] {
            command.env_remove(name);
        }
        command.env("LIBPROCESS_IP", "127.0.0.1").env("LIBPROCESS_PORT", "0");
        command.env("GLOG_logtostderr", "1");
        // What lives as long as the program, as everything that Mesos makes once, is no leak. And
        // a container that libmesos, which is not instrumented, has made has no marks around it.
        command.env("ASAN_OPTIONS", "detect_leaks=0:detect_container_overflow=0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the host program starts");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (sender, answers) = mpsc::channel();
        let read = move || {
            for line in output.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        Builder::new().name("answers".to_owned()).spawn(read).expect("a thread");
        let commands = child.stdin.take();
        let address = SocketAddr::from(([0; 4], 0));
        let mut host = Self { child, commands, answers, build, directory, address };
        host.address = host.tell(&["address"])[0].parse().expect("an address");
        host
    }

    /// Has a command done, whatever comes of it.
    pub(crate) fn attempt(&mut self, fields: &[&str]) -> Result<Vec<String>, String> {
        let commands = self.commands.as_mut().expect("it has not been told to end");
        let sent = writeln!(commands, "{}", fields.join("\t"));
        // It waits for less than this for anything in libprocess.
        let answer = self.answers.recv_timeout(2 * PATIENCE);
        let answer =
            answer.unwrap_or_else(|error| panic!("{fields:?}: {error} {sent:?}: {}", self.log()));
        let mut answers = answer.split('\t').map(str::to_owned);
        match answers.next().as_deref() {
            Some("ok") => Ok(answers.collect()),
            _ => Err(answers.collect::<Vec<_>>().join(" ")),
        }
    }

    /// Has a command done that must succeed.
    pub(crate) fn tell(&mut self, fields: &[&str]) -> Vec<String> {
        self.attempt(fields).unwrap_or_else(|error| panic!("{fields:?}: {error}: {}", self.log()))
    }

    /// Whether a module of this library could be made.
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
        self.tell(&fields)[0] == "made"
    }

    pub(crate) fn load(&mut self, symbol: &str, parameters: &[(&str, &str)]) -> bool {
        self.load_from(self.build.library, symbol, parameters)
    }

    /// Loads the master with this network, and waits until it answers.
    pub(crate) fn load_master(&mut self, network: &str) {
        let (file, work_dir) = (self.write("network.json", network), self.path("work"));
        let parameters = [("overlays", text(&file)), ("work_dir", text(&work_dir))];
        assert!(self.load(MASTER, &parameters), "{}", self.log());
        self.wait_for_state();
    }

    /// What the master shows, as soon as it shows something.
    pub(crate) fn wait_for_state(&self) -> serde_json::Value {
        wait_for("the master's state", || {
            let response = get(self.address, "/overlay-master/state", &[]);
            (response.status == 200).then(|| response.json())
        })
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        get(self.address, target, &[])
    }

    /// All that Mesos counts.
    pub(crate) fn metrics(&self) -> serde_json::Map<String, serde_json::Value> {
        // Mesos answers few of these in a second, and is not to wait for one that hangs.
        let response = self.get("/metrics/snapshot?timeout=10secs");
        assert_eq!(response.status, 200, "{response:?}");
        response.json().as_object().expect("it is an object").clone()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).and_then(serde_json::Value::as_f64).expect("it is counted")
    }

    /// Something in its own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// All that it logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// The lines of the log that hold `text`.
    pub(crate) fn logged(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_for(text, || (!self.logged(text).is_empty()).then_some(()));
    }

    /// Something that the kernel says of it.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Names of its threads, with their numbers.
    pub(crate) fn threads(&self) -> Vec<(String, String)> {
        let tasks = fs::read_dir(self.proc("task")).expect("it runs");
        let name = |task: fs::DirEntry| {
            // A thread may end while we look.
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((name.trim().to_owned(), task.file_name().into_string().ok()?))
        };
        tasks.flatten().filter_map(name).collect()
    }

    /// How many threads of the modules it has.
    pub(crate) fn own_threads(&self) -> usize {
        self.threads().iter().filter(|(name, _)| name.starts_with("overlay-")).count()
    }

    /// Memory that it holds, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("the kernel says it")
    }

    /// Lets it return from `main`, and gives how it ended and all that it logged.
    pub(crate) fn exit(mut self) -> (ExitStatus, String) {
        drop(self.commands.take());
        let status = wait_for("the end of the host", || self.child.try_wait().expect("a child"));
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
    path.to_str().expect("it is text")
}

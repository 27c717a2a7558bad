//! The program as operators run it, as processes of a test's own.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::Namespace;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");

/// A subcommand that is running; killed at the end.
pub(crate) struct Running(Child);

impl Running {
    /// Runs on a host, with the Docker daemon at `docker`; what it logs is added to `log`.
    pub(crate) fn start(host: &Namespace, log: &Path, docker: &str, arguments: &[&str]) -> Self {
        let mut command = host.command(PROGRAM);
        command.args(arguments).env("DOCKER_HOST", docker);
        Self::spawn(command, log)
    }

    /// A command that becomes the program.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("the program starts"))
    }

    /// As a crash does.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("it is still there");
        self.0.wait().expect("it has ended");
    }

    /// As an operator does; whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        self.signal(Signal::TERM);
        self.0.wait().expect("it has ended").success()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("it is a process");
        kill_process(pid, signal).expect("it is still there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

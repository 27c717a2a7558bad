//! Processes of the built program, started as an operator starts them.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::Namespace;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");

/// A running subcommand. Dropping this value kills the process.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a subcommand on a host, with the Docker daemon at `docker`. Appends its output to
    /// `log`.
    pub(crate) fn start(host: &Namespace, log: &Path, docker: &str, arguments: &[&str]) -> Self {
        let mut command = host.command(PROGRAM);
        command.args(arguments).env("DOCKER_HOST", docker);
        Self::spawn(command, log)
    }

    /// Starts a command that runs, or execs, the program.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("the program starts"))
    }

    /// Kills the process with SIGKILL, as a crash would end it.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("a running process");
        self.0.wait().expect("an exit status");
    }

    /// Stops the process with SIGTERM. Returns whether the exit code is 0.
    pub(crate) fn stop(mut self) -> bool {
        self.signal(Signal::TERM);
        self.0.wait().expect("an exit status").success()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process ID");
        kill_process(pid, signal).expect("a running process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

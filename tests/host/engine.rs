//! A Docker daemon of a test's own, in a network namespace of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesos_network_overlay::docker::Docker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::namespace::{BUSYBOX, Namespace, demand, run, succeed};

const DOCKERD: &str = "/usr/sbin/dockerd";
/// That of the package docker.io: another `docker` may come first in `PATH`.
pub(crate) const DOCKER: &str = "/usr/bin/docker";
pub(crate) const IMAGE: &str = "mesos-overlay-test";
/// How long the daemon may take to start or to stop, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A Docker daemon of the test's own.
pub(crate) struct Engine {
    /// `None` before it was started.
    daemon: Option<Child>,
    directory: tempfile::TempDir,
    pub(crate) namespace: Namespace,
}

impl Engine {
    /// A daemon that answers.
    pub(crate) fn start() -> Self {
        let mut engine = Self::down();
        engine.bring_up();
        engine
    }

    /// A daemon that is not there yet.
    pub(crate) fn down() -> Self {
        demand(&[DOCKERD, DOCKER, BUSYBOX, "/usr/sbin/iptables"]);
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { daemon: None, directory, namespace: Namespace::new() }
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn bring_up(&mut self) {
        let log = fs::File::create(self.path("log")).expect("a log");
        let mut command = self.namespace.command(DOCKERD);
        // Of its own, so that the machine's /etc/docker/daemon.json does not matter.
        fs::write(self.path("daemon.json"), "{}").expect("a configuration");
        command.arg("--config-file").arg(self.path("daemon.json"));
        // Control groups of its own, which can be removed afterwards, and by dockerd itself:
        // systemd need not be there.
        command.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent"]);
        command.arg(self.namespace.path().file_name().expect("it has a name"));
        // vfs, since the others ask for something of the file system below.
        command.args(["--storage-driver=vfs", "--data-root"]);
        command.arg(self.path("data")).arg("--exec-root").arg(self.path("exec"));
        command.arg("--pidfile").arg(self.path("pid")).arg("--host").arg(self.socket());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.daemon = Some(command.spawn().expect("dockerd starts"));

        let mut waited = Duration::ZERO;
        while !self.answers() {
            assert!(!self.has_ended() && waited < PATIENCE, "dockerd: {}", self.log());
            waited += pause();
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// Whether there is no daemon, or none any more.
    fn has_ended(&mut self) -> bool {
        self.daemon.as_mut().is_none_or(|daemon| !matches!(daemon.try_wait(), Ok(None)))
    }

    /// Stops the daemon and says whether it stopped by itself.
    pub(crate) fn stop(&mut self) -> bool {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if self.has_ended() {
                return true;
            }
            waited += pause();
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        false
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        // Once it was waited for, its number may be somebody else's.
        if self.has_ended() {
            return;
        }
        let id = self.daemon.as_ref().map(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What is tested.
    pub(crate) fn docker(&self) -> Docker {
        Docker::new(DOCKER, PATIENCE).with_host(&self.socket())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg("--host").arg(self.socket()).args(arguments);
        command
    }

    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    fn answers(&self) -> bool {
        run(&mut self.command(&["version"]), "").status.success()
    }

    pub(crate) fn inspect(&self, name: &str) -> Value {
        let networks = self.succeed(&["network", "inspect", name]);
        let mut networks: Value = serde_json::from_str(&networks).expect("docker prints JSON");
        networks[0].take()
    }

    /// An image with nothing but busybox.
    pub(crate) fn import_image(&self) {
        fs::create_dir_all(self.path("image/bin")).expect("a directory");
        fs::copy(BUSYBOX, self.path("image/bin/busybox")).expect("busybox is copied");
        let tar = self.path("image.tar");
        succeed(
            Command::new("tar").arg("-C").arg(self.path("image")).arg("-cf").arg(&tar).arg("."),
        );
        self.succeed(&["import", tar.to_str().expect("it is text"), IMAGE]);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.has_ended() && !self.stop() {
            // A daemon that had to be killed leaves its containerd and its mounts.
            let pid = fs::read_to_string(self.path("exec/containerd/containerd.pid"));
            let pid = pid.ok().and_then(|pid| pid.trim().parse().ok()).and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            for name in ["exec", "data"] {
                let _ = Command::new("umount").args(["-R", "-l"]).arg(self.path(name)).output();
            }
        }
        // One in each hierarchy of version 1, or one in all of version 2. Removed only if empty.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            if let Some(name) = self.namespace.path().file_name() {
                let _ = fs::remove_dir(hierarchy.join(name));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test waits for a daemon on a thread of its own")]
pub(crate) fn pause() -> Duration {
    let pause = Duration::from_millis(50);
    std::thread::sleep(pause);
    pause
}

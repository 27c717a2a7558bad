//! A Docker daemon that belongs to one test, in a network namespace of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use overlay_linux::docker::Docker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::namespace::{BUSYBOX, Namespace, require_root_and_files, run, succeed};
use crate::traffic::poll_interval;

pub(crate) const DOCKERD: &str = "/usr/sbin/dockerd";
/// The client of the package docker.io: `PATH` may have another `docker` first.
pub(crate) const DOCKER: &str = "/usr/bin/docker";
pub(crate) const IMAGE: &str = "mesos-overlay-test";
/// Time limit for the daemon to start or stop, on a machine that is busy with other things.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A Docker daemon that belongs to one test. Dropping this value stops the daemon.
pub(crate) struct DockerDaemon {
    /// `None` before the first start.
    child: Option<Child>,
    /// The content of the daemon's configuration file.
    pub(crate) config: String,
    dir: tempfile::TempDir,
    pub(crate) namespace: Namespace,
}

impl DockerDaemon {
    /// Starts a daemon, and waits until the daemon is ready.
    pub(crate) fn started() -> Self {
        let mut daemon = Self::stopped();
        daemon.start();
        daemon
    }

    /// Prepares namespace and directory of a daemon without starting the daemon.
    pub(crate) fn stopped() -> Self {
        require_root_and_files(&[BUSYBOX]);
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { child: None, config: "{}".to_owned(), dir, namespace: Namespace::new() }
    }

    /// Starts the daemon, and waits until the daemon is ready.
    pub(crate) fn start(&mut self) {
        require_root_and_files(&[DOCKERD, DOCKER, "/usr/sbin/iptables"]);
        let log = fs::File::create(self.path("log")).expect("a log");
        let mut command = self.namespace.command(DOCKERD);
        // The machine's /etc/docker/daemon.json must not have an effect on the test.
        fs::write(self.path("daemon.json"), &self.config).expect("a configuration");
        command.arg("--config-file").arg(self.path("daemon.json"));
        // The test removes its control groups afterwards. The driver cgroupfs works without
        // systemd.
        command.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent"]);
        command.arg(self.namespace.path().file_name().expect("a path with a file name"));
        // The driver vfs works on every file system; the other drivers do not.
        command.args(["--storage-driver=vfs", "--data-root"]);
        command.arg(self.path("data")).arg("--exec-root").arg(self.path("exec"));
        command.arg("--pidfile").arg(self.path("pid")).arg("--host").arg(self.socket());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("dockerd starts"));

        let mut waited = Duration::ZERO;
        while !self.is_ready() {
            assert!(!self.has_ended() && waited < TIMEOUT, "dockerd: {}", self.log());
            waited += sleep_poll_interval();
        }
    }

    /// Returns the address of the daemon's socket, as in `DOCKER_HOST`.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// Returns whether no daemon process runs.
    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Stops the daemon. Returns whether the daemon stopped on SIGTERM in time.
    pub(crate) fn stop(&mut self) -> bool {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let mut waited = Duration::ZERO;
        while waited < TIMEOUT {
            if self.has_ended() {
                return true;
            }
            waited += sleep_poll_interval();
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        false
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        // After the process was reaped, another process may have its ID.
        if self.has_ended() {
            return;
        }
        let id = self.child.as_ref().map(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the Docker client under test.
    pub(crate) fn client(&self) -> Docker {
        Docker::new(DOCKER, TIMEOUT).with_host(&self.socket())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg("--host").arg(self.socket()).args(arguments);
        command
    }

    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    fn is_ready(&self) -> bool {
        run(&mut self.command(&["version"]), "").status.success()
    }

    pub(crate) fn inspect(&self, name: &str) -> Value {
        let networks = self.succeed(&["network", "inspect", name]);
        let mut networks: Value = serde_json::from_str(&networks).expect("docker prints JSON");
        networks[0].take()
    }

    /// Imports an image that contains only busybox.
    pub(crate) fn import_image(&self) {
        fs::create_dir_all(self.path("image/bin")).expect("a directory");
        fs::copy(BUSYBOX, self.path("image/bin/busybox")).expect("busybox is copied");
        let tar = self.path("image.tar");
        succeed(
            Command::new("tar").arg("-C").arg(self.path("image")).arg("-cf").arg(&tar).arg("."),
        );
        self.succeed(&["import", tar.to_str().expect("a UTF-8 path"), IMAGE]);
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        if !self.has_ended() && !self.stop() {
            // A killed daemon leaves its containerd and its mounts behind.
            let pid = fs::read_to_string(self.path("exec/containerd/containerd.pid"));
            let pid = pid.ok().and_then(|pid| pid.trim().parse().ok()).and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            for name in ["exec", "data"] {
                let _ = Command::new("umount").args(["-R", "-l"]).arg(self.path(name)).output();
            }
        }
        // Control groups v1 have a directory in each hierarchy, v2 has a single one. `remove_dir`
        // removes only empty directories.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            if let Some(name) = self.namespace.path().file_name() {
                let _ = fs::remove_dir(hierarchy.join(name));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test blocks its own thread only")]
/// Sleeps between two polls. Returns the interval, which callers add to their waiting time.
pub(crate) fn sleep_poll_interval() -> Duration {
    let interval = poll_interval(Duration::from_millis(50));
    std::thread::sleep(interval);
    interval
}

//! A Debian system whose systemd runs the units of the package, with their own namespaces and
//! control groups. So a test has each restriction of the units, as on a host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::system::{System, succeed, transcript};

const POLL_INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(60);

/// A system that runs. Dropping this value kills its processes.
pub(crate) struct BootedSystem {
    system: System,
    /// The process that waits for systemd.
    parent: Child,
    control_group: PathBuf,
}

impl BootedSystem {
    /// Boots a system of this number, which distinguishes its machine ID and its control group.
    pub(crate) fn new(number: u8) -> Self {
        let system = System::offline();
        // systemd enables all units when it boots for the first time, without a machine ID.
        system.write("etc/machine-id", &format!("{number:032x}\n"));
        let name = format!("mesos-overlay-test-{}-{number}", std::process::id());
        let control_group = control_group_root().join(name);
        fs::create_dir(&control_group).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net"]);
        command.args(["sh", "tests/packages/boot"]).arg(system.path("")).arg(&control_group);
        let log = fs::File::create(system.path("boot.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let parent = command.spawn().unwrap();
        let booted = Self { system, parent, control_group };
        booted.wait_for("the system has booted", || {
            let output = booted.command("systemctl is-system-running").output().unwrap();
            transcript(&output).trim() == "running"
        });
        booted
    }

    /// Returns the number of the system's first process.
    fn first_process(&self) -> String {
        let parent = self.parent.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        children.unwrap_or_default().trim().to_owned()
    }

    /// Connects this system to another one, as hosts of one L2 segment.
    pub(crate) fn connect(&self, other: &Self) {
        let others = other.first_process();
        let mut command = self.in_network("ip");
        command.args(["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns"]);
        succeed(command.arg(others));
    }

    /// Sets the address of the system, with a default route.
    pub(crate) fn set_address(&self, address: &str) {
        self.run(&format!(
            "ip address add {address}/24 dev eth0; ip link set eth0 up; \
             ip route add default via 10.0.0.254"
        ));
    }

    /// Builds a command that runs a program of the machine in the network of the system.
    fn in_network(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first_process(), "--net", program]);
        command
    }

    pub(crate) fn system(&self) -> &System {
        &self.system
    }

    /// Builds a command that runs a script of the shell in the system.
    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first_process(), "--all", "env", "--ignore-environment"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", script]);
        command
    }

    /// Runs a script of the shell, which must succeed. Returns its output.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        succeed(&mut self.command(script))
    }

    /// Returns whether a script of the shell succeeds.
    pub(crate) fn succeeds(&self, script: &str) -> bool {
        self.command(script).output().unwrap().status.success()
    }

    /// Returns the log of a service.
    pub(crate) fn log(&self, service: &str) -> String {
        self.run(&format!("journalctl --no-pager --output=cat --unit={service}"))
    }

    /// Waits until `condition` holds. After a timeout, panics with its name and the log.
    #[track_caller]
    pub(crate) fn wait_for(&self, condition_name: &str, condition: impl Fn() -> bool) {
        let mut waited = Duration::ZERO;
        while !condition() {
            if waited > TIMEOUT {
                let output = self.command("journalctl --no-pager --lines=60").output().unwrap();
                let boot_log = self.system.read("boot.log");
                panic!("timeout: {condition_name}\n{boot_log}\n{}", transcript(&output));
            }
            waited += sleep_poll_interval();
        }
    }
}

impl Drop for BootedSystem {
    fn drop(&mut self) {
        // The kernel ends all processes of the system together with its first one.
        let _ = Command::new("kill").args(["-KILL", &self.first_process()]).output();
        let _ = self.parent.wait();
        let mut waited = Duration::ZERO;
        while remove_control_groups(&self.control_group).is_err() && waited < TIMEOUT {
            waited += sleep_poll_interval();
        }
    }
}

/// Sleeps between two polls. Returns the interval, which callers add to their waiting time.
#[expect(clippy::disallowed_methods, reason = "a test blocks its own thread only")]
fn sleep_poll_interval() -> Duration {
    std::thread::sleep(POLL_INTERVAL);
    POLL_INTERVAL
}

/// Returns the mount of the control groups of version 2.
fn control_group_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let path = mount.and_then(|line| line.split(' ').nth(1));
    path.expect("control groups of version 2").into()
}

/// Removes a control group with those below it.
fn remove_control_groups(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_control_groups(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

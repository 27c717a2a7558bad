//! Simulated hosts on one machine. Each host has its own network, mount and PID namespaces. All
//! hosts share one Ethernet. When a test ends or fails, its hosts end with all their processes.

use std::cell::Cell;
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Upper bound for any awaited event on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The search path of Debian, since the tests may run with a different one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The busybox of the package busybox-static.
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// Number of lines of each log that a failed test prints.
const LOG_LINES: usize = 60;

/// Hosts with the addresses 10.0.0.1, 10.0.0.2, and so on.
pub(crate) struct Cluster {
    hosts: Vec<Rc<Host>>,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Creates a cluster with one host.
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test creates namespaces, which needs root: run 'tests/run mesos' as root"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let hub = Host::new(directory.path(), 1);
        hub.run_ok("ip", &["link", "add", "ether", "type", "bridge"]);
        hub.run_ok("ip", &["address", "add", "10.0.0.1/24", "dev", "ether"]);
        hub.run_ok("ip", &["link", "set", "ether", "up"]);
        Self { hosts: vec![Rc::new(hub)], directory }
    }

    /// Returns the first host, 10.0.0.1. The switch of the cluster runs on this host.
    pub(crate) fn hub(&self) -> &Rc<Host> {
        &self.hosts[0]
    }

    /// Adds a host.
    pub(crate) fn add_host(&mut self) -> Rc<Host> {
        let number = u8::try_from(self.hosts.len() + 1).expect("a few hosts");
        let host = Host::new(self.directory.path(), number);
        let port = format!("port{number}");
        let add =
            ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.pid];
        // The PID of the new host is valid only in the PID namespace of the tests.
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.hub().pid, "--net", "ip"]).args(add);
        run_ok(&mut command);
        self.hub().run_ok("ip", &["link", "set", &port, "master", "ether", "up"]);
        host.run_ok("ip", &["address", "add", &format!("{}/24", host.ip), "dev", "eth0"]);
        host.run_ok("ip", &["link", "set", "eth0", "up"]);
        let host = Rc::new(host);
        self.hosts.push(Rc::clone(&host));
        host
    }

    fn print_logs(&self) {
        let logs = self.hosts.iter().flat_map(|host| files(&host.directory));
        for path in logs.filter(|path| path.extension().is_some_and(|kind| kind == "log")) {
            let log = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            println!("---- {}\n{}", path.display(), last.join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.hosts.clear();
    }
}

/// A simulated host.
pub(crate) struct Host {
    pub(crate) ip: Ipv4Addr,
    /// Keeps the namespaces alive. It ends when its input is closed, which ends all processes.
    keeper: Child,
    input: Option<ChildStdin>,
    /// The PID of the first process of the host, in the PID namespace of the tests.
    pid: String,
    directory: PathBuf,
    name: String,
    logs: Cell<u32>,
}

impl Host {
    fn new(cluster: &Path, number: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = cluster.join(format!("host{number}"));
        fs::create_dir(&directory).expect("a directory");
        let mut keeper = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            // The shell is the init process of the namespace: it reaps orphans while it waits.
            .args([BUSYBOX, "sh", "-c", "echo; busybox cat >/dev/null; exit 0"])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut stdout = keeper.stdout.take().expect("stdout is piped");
        stdout.read_exact(&mut [0]).expect("the namespaces are ready");
        let host = Self {
            ip: Ipv4Addr::new(10, 0, 0, number),
            input: keeper.stdin.take(),
            pid: child_of(keeper.id()).expect("unshare has a child"),
            keeper,
            directory,
            name: format!("mesos-overlay-{}-{count}", std::process::id()),
            logs: Cell::new(0),
        };
        host.run_ok("ip", &["link", "set", "lo", "up"]);
        // The agent writes to /etc, so the host gets a copy.
        let etc = host.text("etc");
        host.run_ok("cp", &["-a", "/etc", &etc]);
        host.run_ok("mount", &["--bind", &etc, "/etc"]);
        // Mesos 1.12 fails if version 2 of the control groups is mounted beside version 1.
        output(host.command("umount").arg("/sys/fs/cgroup/unified"));
        host
    }

    /// Returns a name that is unique on this machine.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns a path in the directory of this host.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns a path in the directory of this host, as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("paths are text")
    }

    /// Writes a file into the directory of this host. Returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("the file is written");
        self.text(name)
    }

    /// Returns a new path for the log of a process.
    pub(crate) fn new_log(&self, name: &str) -> PathBuf {
        self.logs.set(self.logs.get() + 1);
        self.path(&format!("{}-{name}.log", self.logs.get()))
    }

    /// Returns the path of the network namespace.
    pub(crate) fn network(&self) -> PathBuf {
        Path::new("/proc").join(&self.pid).join("ns/net")
    }

    /// Returns a command that runs on this host.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--net", "--mount", "--pid", "--"]);
        command.arg(program.as_ref()).env_clear().env("PATH", PATH).env("HOME", &self.directory);
        command
    }

    /// Runs a program that must succeed. Returns its stdout.
    pub(crate) fn run_ok(&self, program: &str, arguments: &[&str]) -> String {
        run_ok(self.command(program).args(arguments))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Closing the input ends the shell, and with it every process of the PID namespace.
        self.input = None;
        let _ = self.keeper.wait();
        remove_control_groups(&self.name);
    }
}

/// Removes the empty control groups of Mesos: below one directory in each hierarchy of version 1,
/// or in the hierarchy of version 2.
fn remove_control_groups(name: &str) {
    fn remove(directory: &Path) {
        for path in files(directory).filter(|path| path.is_dir()) {
            remove(&path);
        }
        let _ = fs::remove_dir(directory);
    }
    let root = Path::new("/sys/fs/cgroup");
    for hierarchy in files(root).chain([root.to_owned()]) {
        remove(&hierarchy.join(name));
    }
}

/// Returns the entries of a directory sorted by name. There are none if it is not a directory.
pub(crate) fn files(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter()
}

/// Returns the PID of the first child of the process `parent`.
pub(crate) fn child_of(parent: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next().map(str::to_owned)
}

/// Runs a command that must succeed. Returns its stdout.
pub(crate) fn run_ok(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command. Returns its output and exit status.
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Polls until `poll` returns a value.
pub(crate) fn wait_for<T>(event: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "{event}: not within {TIMEOUT:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Polls until the value of `poll` satisfies `is_done`. A timeout prints the last value.
pub(crate) fn wait_until<T: std::fmt::Debug>(
    event: &str,
    mut poll: impl FnMut() -> T,
    is_done: impl Fn(&T) -> bool,
) -> T {
    let end = Instant::now() + TIMEOUT;
    loop {
        let value = poll();
        if is_done(&value) {
            return value;
        }
        assert!(Instant::now() < end, "{event}: not within {TIMEOUT:?}: {value:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

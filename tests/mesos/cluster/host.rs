//! Hosts of a cluster on one machine: each has network, mounts and processes of its own, and all of
//! them one Ethernet. A host ends with everything on it when its test ends, however that ends.

use std::cell::Cell;
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that has to happen, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Where Debian has programs: that of a test may not be the machine's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The busybox of the package busybox-static.
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// How much of each log a failed test shows.
const LOG_LINES: usize = 60;

/// Hosts with the addresses 10.0.0.1, 10.0.0.2 and so on.
pub(crate) struct Cluster {
    hosts: Vec<Rc<Host>>,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// A cluster of one host.
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes hosts, which needs root: run 'tests/run mesos' as root"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let hub = Host::new(directory.path(), 1);
        hub.succeed("ip", &["link", "add", "ether", "type", "bridge"]);
        hub.succeed("ip", &["address", "add", "10.0.0.1/24", "dev", "ether"]);
        hub.succeed("ip", &["link", "set", "ether", "up"]);
        Self { hosts: vec![Rc::new(hub)], directory }
    }

    /// The first host, 10.0.0.1.
    pub(crate) fn hub(&self) -> &Rc<Host> {
        &self.hosts[0]
    }

    /// One more host.
    pub(crate) fn host(&mut self) -> Rc<Host> {
        let number = u8::try_from(self.hosts.len() + 1).expect("a few hosts");
        let host = Host::new(self.directory.path(), number);
        let port = format!("port{number}");
        let add =
            ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.pid];
        // A process of this number is only known to who is in no namespace of processes.
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.hub().pid, "--net", "ip"]).args(add);
        succeed(&mut command);
        self.hub().succeed("ip", &["link", "set", &port, "master", "ether", "up"]);
        host.succeed("ip", &["address", "add", &format!("{}/24", host.ip), "dev", "eth0"]);
        host.succeed("ip", &["link", "set", "eth0", "up"]);
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

/// A host.
pub(crate) struct Host {
    pub(crate) ip: Ipv4Addr,
    /// Holds the namespaces. When its input ends it ends, and with it every process of the host.
    keeper: Child,
    input: Option<ChildStdin>,
    /// The first process of the host, by the number that it has outside.
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
            // The shell, as the first process, takes care of orphans while it waits.
            .args([BUSYBOX, "sh", "-c", "echo; busybox cat >/dev/null; exit 0"])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut signs = keeper.stdout.take().expect("it was asked for");
        signs.read_exact(&mut [0]).expect("the namespaces are there");
        let host = Self {
            ip: Ipv4Addr::new(10, 0, 0, number),
            input: keeper.stdin.take(),
            pid: child_of(keeper.id()).expect("it has a child"),
            keeper,
            directory,
            name: format!("mesos-overlay-{}-{count}", std::process::id()),
            logs: Cell::new(0),
        };
        host.succeed("ip", &["link", "set", "lo", "up"]);
        // The agent takes what is the first process there for the host's own, and writes files.
        let etc = host.text("etc");
        host.succeed("cp", &["-a", "/etc", &etc]);
        host.succeed("mount", &["--bind", &etc, "/etc"]);
        // Mesos 1.12 takes control groups of version 2 beside those of version 1 for an error.
        output(host.command("umount").arg("/sys/fs/cgroup/unified"));
        host
    }

    /// A name that no other host of this machine has.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A path in the directory that is this host's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("paths are text")
    }

    /// Writes a file into that directory, and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("the file is written");
        self.text(name)
    }

    /// A file for what a process has to say.
    pub(crate) fn new_log(&self, name: &str) -> PathBuf {
        self.logs.set(self.logs.get() + 1);
        self.path(&format!("{}-{name}.log", self.logs.get()))
    }

    /// Where its network is to be entered.
    pub(crate) fn network(&self) -> PathBuf {
        Path::new("/proc").join(&self.pid).join("ns/net")
    }

    /// A command on this host.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--net", "--mount", "--pid", "--"]);
        command.arg(program.as_ref()).env_clear().env("PATH", PATH).env("HOME", &self.directory);
        command
    }

    /// Output of a program that must succeed.
    pub(crate) fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its end is the end of the shell, which waits for that of every other process.
        self.input = None;
        let _ = self.keeper.wait();
        remove_control_groups(&self.name);
    }
}

/// The groups that Mesos made: below one directory in each hierarchy of version 1, or in all of
/// version 2. Removed only if they are empty.
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

/// What is in a directory, in the order of the names; nothing if it is none.
pub(crate) fn files(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter()
}

/// The number of the process that the process `parent` has started.
pub(crate) fn child_of(parent: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next().map(str::to_owned)
}

/// Output of a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command says and how it ends.
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Looks again and again until there is something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}

/// The same for something that is there and is not as it should be yet, which it shows in the end.
pub(crate) fn wait_until<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    is_so: impl Fn(&T) -> bool,
) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = look();
        if is_so(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}: {found:?}");
        std::thread::sleep(PAUSE);
    }
}

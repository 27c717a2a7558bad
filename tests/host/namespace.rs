//! Network namespaces and programs in them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::CloneFlags;

/// The busybox of the package busybox-static, which has ping and runs in a container without
/// libraries.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Fails unless we are root and `files` exist.
pub(crate) fn demand(files: &[&str]) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces, which needs root: run 'tests/run host' as root"
    );
    for file in files {
        assert!(
            Path::new(file).exists(),
            "{file} is missing: run 'tests/run host' as root, which installs it"
        );
    }
}

/// A network namespace. One that the test made is removed with all its devices at its end.
pub(crate) struct Namespace {
    path: PathBuf,
    /// Its name, if it is the test's own.
    name: Option<String>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesos-overlay-{}-{count}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { path: Path::new("/run/netns").join(&name), name: Some(name) };
        namespace.succeed("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// That of a process that runs, such as the first of a container.
    pub(crate) fn of_process(pid: &str) -> Self {
        Self { path: Path::new("/proc").join(pid).join("ns/net"), name: None }
    }

    /// Switches IPv6 on, which is off in a namespace where it is off in that of the machine.
    pub(crate) fn enable_ipv6(&self) {
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        self.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        // A bridge does not ask for neighbours while it makes sure of its own address.
        self.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// A command in this namespace. By nsenter, since `ip netns exec` gives the program a view of
    /// /sys of its own, in which dockerd finds no control groups.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// What `act` returns, done by a thread of this process that is in this namespace.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let namespace = std::fs::File::open(self.path()).expect("it is there");
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
            act()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new();
            let thread = thread.spawn_scoped(scope, enter).expect("there is room for a thread");
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs the words of `line` as a command that must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.succeed(words[0], &words[1..])
    }

    /// Output of a program that must succeed.
    pub(crate) fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }

    /// Whether `address` answers.
    pub(crate) fn can_reach(&self, address: &str) -> bool {
        let ping = ["ping", "-c", "1", "-W", "5", address];
        run(self.command(BUSYBOX).args(ping), "").status.success()
    }

    /// Names of the devices, the loopback device left out.
    pub(crate) fn devices(&self) -> Vec<String> {
        let links = self.succeed("ip", &["-json", "link", "show"]);
        let links: serde_json::Value = serde_json::from_str(&links).expect("ip prints JSON");
        let links = links.as_array().expect("ip prints a list").iter();
        links
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs `command` to its end with `input`.
pub(crate) fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that does not read its input has closed it by now.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Output of a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command, "");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

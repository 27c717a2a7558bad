//! Network namespaces, and commands that run in them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::CloneFlags;

/// The program of the package busybox-static. It has ping, and runs in a container without
/// libraries.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Fails unless the test runs as root and all of `files` exist.
pub(crate) fn require_root_and_files(files: &[&str]) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test creates network namespaces, which needs root: run 'tests/run host' as root"
    );
    for file in files {
        assert!(
            Path::new(file).exists(),
            "{file} is missing: 'tests/run host', run as root, installs it"
        );
    }
}

/// A network namespace. Dropping a namespace that the test created removes it with all its devices.
pub(crate) struct Namespace {
    path: PathBuf,
    /// The name, if the test created the namespace.
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

    /// Returns an existing namespace, which dropping this value keeps.
    pub(crate) const fn of_path(path: PathBuf) -> Self {
        Self { path, name: None }
    }

    /// Returns the namespace of a running process, such as the first process of a container.
    pub(crate) fn of_process(pid: &str) -> Self {
        Self { path: Path::new("/proc").join(pid).join("ns/net"), name: None }
    }

    /// Enables IPv6. IPv6 is disabled in a new namespace if the machine disables it.
    pub(crate) fn enable_ipv6(&self) {
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        self.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        // A bridge resolves no neighbors during duplicate address detection of its own address.
        self.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Builds a command that runs in this namespace. The command uses nsenter: `ip netns exec`
    /// mounts another /sys, in which dockerd finds no control groups.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `act` on a new thread of this process in this namespace, and returns the result.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let namespace = std::fs::File::open(self.path()).expect("an existing namespace");
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET)
                .expect("permission to enter the namespace");
            act()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new();
            let thread = thread.spawn_scoped(scope, enter).expect("a thread");
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs the words of `line` as a command that must succeed. Returns its output.
    pub(crate) fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.succeed(words[0], &words[1..])
    }

    /// Runs a program that must succeed. Returns its output.
    pub(crate) fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }

    /// Returns whether `address` answers a ping.
    pub(crate) fn can_reach(&self, address: &str) -> bool {
        let ping = ["ping", "-c", "1", "-W", "5", address];
        run(self.command(BUSYBOX).args(ping), "").status.success()
    }

    /// Lists the names of the devices, without the loopback device.
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

/// Runs `command` to its end with `input` as standard input.
pub(crate) fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // The write fails if the program has closed its standard input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed. Returns its output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command, "");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

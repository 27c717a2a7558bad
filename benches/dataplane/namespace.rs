//! Network namespaces, which are the hosts of a benchmark.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::CloneFlags;

/// A network namespace. Dropping it deletes the namespace.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let namespace = Self(format!("mesos-overlay-bench-{}-{name}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &namespace.0]));
        for line in ["ip link set lo up", "sysctl -qw net.ipv6.conf.all.disable_ipv6=0"] {
            namespace.run(line);
        }
        namespace.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        namespace
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(crate) fn run(&self, line: &str) {
        self.run_words(&line.split(' ').collect::<Vec<_>>());
    }

    pub(crate) fn run_words(&self, words: &[&str]) {
        let namespace = format!("--net={}", self.path().display());
        run(Command::new("nsenter").arg(namespace).arg("--").args(words));
    }

    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                let namespace = std::fs::File::open(self.path()).expect("the namespace exists");
                nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
                act()
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, enter);
            thread.expect("a thread").join().expect("the thread does not panic")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

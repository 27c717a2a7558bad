//! `demo` with hosts: real CNI plugins, nftables and VXLAN, as root and as somebody who may do
//! nothing; and that nothing is left of it, however it ends.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::engine::{PATIENCE, pause};
use crate::namespace::{Namespace, demand, run};

/// Where the package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";
/// Somebody who may do nothing.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Where a demo is run: a network with nothing in it, and a directory for temporary files.
struct Stage {
    network: Namespace,
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Stage {
    fn new() -> Self {
        demand(&["/usr/lib/cni/bridge", "/usr/lib/cni/host-local", "/usr/sbin/nft"]);
        let folder = tempfile::tempdir().expect("a temporary directory");
        let everybody = |path: &Path, mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(path, permissions).expect("it is ours");
        };
        everybody(folder.path(), 0o755);
        // The build may be where only its owner may look.
        let program = folder.path().join("mesos-overlay");
        fs::copy(env!("CARGO_BIN_EXE_mesos-overlay"), &program).expect("a copy");
        everybody(&program, 0o755);
        fs::create_dir(folder.path().join("tmp")).expect("it is new");
        everybody(&folder.path().join("tmp"), 0o777);
        Self { network: Namespace::new(), folder, program }
    }

    fn tmp(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Runs `demo` by what `before` is, the program that has it run with its arguments.
    fn command(&self, before: &[&str], arguments: &[&str]) -> Command {
        let mut command = match before.split_first() {
            None => self.network.command(&self.program),
            Some((first, rest)) => {
                let mut command = self.network.command(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        command.arg("demo").args(arguments).env("TMPDIR", self.tmp());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn output(&self, before: &[&str], arguments: &[&str]) -> Output {
        let output = run(&mut self.command(before, arguments), "");
        self.assert_all_is_gone();
        output
    }

    fn json(&self, before: &[&str], code: i32) -> Value {
        let output = self.output(before, &["--json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    }

    /// Processes first: the rest goes with them.
    fn assert_all_is_gone(&self) {
        let mut waited = Duration::ZERO;
        while !self.processes().is_empty() {
            assert!(waited < PATIENCE, "{:?} are left", self.processes());
            waited += pause();
        }
        let files: Vec<_> = fs::read_dir(self.tmp()).expect("it is there").collect();
        assert!(files.is_empty(), "{files:?} are left");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("it can be read");
        assert!(!mounts.contains("mesos-overlay-demo"), "{mounts}");
        assert_eq!(self.network.devices(), [""; 0]);
    }

    /// Whoever has our directory for temporary files in the environment.
    fn processes(&self) -> Vec<String> {
        let mark = format!("TMPDIR={}\0", self.tmp().display());
        let has_mark = |process: &PathBuf| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|window| window == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").expect("it can be read").flatten();
        let ours = all.map(|entry| entry.path()).filter(has_mark);
        ours.map(|process| process.display().to_string()).collect()
    }
}

/// Six containers with the second addresses of their subnets, and all of them reach each other.
#[track_caller]
fn assert_is_whole(shown: &Value) {
    assert_eq!(shown["loopback"], Value::Null);
    let containers = shown["containers"].as_array().expect("there are containers");
    assert_eq!(containers.len(), 6);
    for container in containers {
        let (agent, overlay) = (&container["agent"], &container["overlay"]);
        let file = format!("{}.conf", overlay.as_str().expect("a name"));
        let file = shown["cni"][agent.as_str().expect("an address")][file].as_str();
        let file: Value = serde_json::from_str(file.expect("a file")).expect("it is JSON");
        let subnet = file["ipam"]["subnet"].as_str().expect("a subnet");
        let second = subnet.replace(".0/25", ".2");
        assert_eq!(container["address"], second.as_str(), "{container}");
        assert_eq!(container["mtu"], 1420);
    }
    let pings = shown["pings"].as_array().expect("there are pings");
    for bytes in [84, 1420] {
        let of_size = pings.iter().filter(|ping| ping["bytes"] == bytes);
        assert_eq!(of_size.filter(|ping| ping["microseconds"].is_u64()).count(), 30, "{pings:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn the_demo_of_root_shows_a_picture_and_a_matrix_and_is_gone() {
    let stage = Stage::new();
    let output = stage.output(&[], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "\n┌ host 10.0.0.1 ───────────────┐ ┌ host 10.0.0.2 ───────────────┐ ┌ host 10.0.0.3 ",
        "\n│   m-vxlan-1      m-vxlan-2   │ │   m-vxlan-1      m-vxlan-2   │ │   m-vxlan-1 ",
        "\n│           vtep1024           │ │           vtep1024           │ │           vtep1024 ",
        "\nunderlay, with the master at 10.0.0.254:5050\n",
        "\nContainers made by the CNI plugins bridge and host-local in /usr/lib/cni.\n",
        "\nfrom \\ to          c1   c2   c3   c4   c5   c6\n",
        "\n60 of 60 pings were answered, with 84 and 1420 bytes, ",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("Without firewall rules"), "{text}");
    let widest = text.lines().skip_while(|line| !line.is_empty()).map(|line| line.chars().count());
    assert!(widest.max().is_some_and(|widest| widest <= 100), "{text}");
    assert_is_whole(&stage.json(&[], 0));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn the_demo_of_anybody_is_the_same_where_user_namespaces_are_permitted() {
    let stage = Stage::new();
    let nobody = [&["setpriv"], &NOBODY[..]].concat();
    let shown = stage.json(&nobody, 0);
    let mut other = Command::new("setpriv");
    other.args(NOBODY).args(["unshare", "--user", "--map-root-user", "--net", "--mount", "true"]);
    if run(&mut other, "").status.success() {
        assert_is_whole(&shown);
    } else {
        let why = shown["loopback"].as_str().expect("a reason");
        assert!(why.contains(": run it as root, or after 'sysctl -w "), "{why}");
        assert_eq!(shown["state"]["agents"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn the_demo_without_plugins_gives_containers_the_same_addresses() {
    let stage = Stage::new();
    let hide = format!("mount -t tmpfs none {PLUGINS} && exec \"$0\" \"$@\"");
    let before = ["unshare", "--mount", "sh", "-c", &hide];
    assert_is_whole(&stage.json(&before, 0));
    let output = stage.output(&before, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let said = "Containers made without CNI plugins: there are none in /usr/lib/cni, ";
    assert!(text.contains(said), "{text}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn what_does_not_reach_is_shown_and_the_demo_has_failed() {
    let stage = Stage::new();
    let plugins = stage.folder.path().join("plugins");
    fs::create_dir(&plugins).expect("it is new");
    let install = |script: &str| {
        for name in ["bridge", "host-local"] {
            fs::write(plugins.join(name), format!("#!/bin/sh\n{script}\n")).expect("it is ours");
            let permissions = fs::Permissions::from_mode(0o755);
            fs::set_permissions(plugins.join(name), permissions).expect("it is ours");
        }
    };
    let cover = format!("mount --bind {} {PLUGINS} && exec \"$0\" \"$@\"", plugins.display());
    let before = ["unshare", "--mount", "sh", "-c", &cover];
    // One that says that it has made something, and has not.
    install("cat >/dev/null; echo '{\"ip4\":{\"ip\":\"192.168.77.2/25\"}}'");
    let output = stage.output(&before, &[]);
    let (text, said) = (output.stdout, output.stderr);
    let (text, said) = (String::from_utf8_lossy(&text), String::from_utf8_lossy(&said));
    assert_eq!(output.status.code(), Some(1), "{text}{said}");
    assert!(text.contains("c1 192.168.77.2    · lost lost lost lost lost\n"), "{text}");
    assert!(text.contains("\n0 of 60 pings were answered, "), "{text}");
    assert!(text.contains("\nc6 to c5, 1420 bytes: "), "{text}");
    let last = "mesos-overlay: 60 of 60 pings had no answer: see which above, or run it with --log \
                debug\n";
    assert!(said.ends_with(last), "{said}");
    // And one that says why it could not.
    install("cat >/dev/null; echo '{\"code\":11,\"msg\":\"it rains\"}'; exit 1");
    let output = stage.output(&before, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = "mesos-overlay: container c1 on 10.0.0.1 by vxlan-1.conf: /usr/lib/cni/bridge: it \
                rains\n";
    assert!(said.ends_with(last), "{said}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn where_namespaces_are_refused_the_demo_says_why_and_goes_on() {
    let stage = Stage::new();
    let forbid = "echo 0 >/proc/sys/user/max_net_namespaces && exec \"$0\" \"$@\"";
    let before = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid];
    let shown = stage.json(&before, 0);
    assert_eq!(
        shown["loopback"],
        "make a network namespace: No space left on device (os error 28): run it as root, or after \
         'sysctl -w user.max_net_namespaces=10000'"
    );
    assert_eq!(shown["state"]["agents"].as_array().map(Vec::len), Some(3));
    assert_eq!(shown["pings"].as_array().map(Vec::len), Some(0));
}

/// A demo that is under way.
struct Started(Child);

impl Started {
    fn new(stage: &Stage, before: &[&str]) -> Self {
        let mut command = stage.command(before, &[]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    /// Waits until it says so.
    fn expect(&mut self, text: &str) {
        let stderr = self.0.stderr.as_mut().expect("it was asked for");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(text)), "it did not say {text}");
    }

    fn end(mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        // It may have been done already.
        let _ = rustix::process::kill_process(pid, signal);
        self.0.wait().expect("it is a child")
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn a_signal_at_any_moment_leaves_nothing() {
    use rustix::process::Signal;
    let stage = Stage::new();
    let nobody = [&["setpriv"], &NOBODY[..]].concat();
    let moments = ["master at", "assigned", "registered: ok", "containers on 10.0.0.1"];
    for before in [&[][..], &nobody[..]] {
        for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
            for moment in moments {
                let mut started = Started::new(&stage, before);
                started.expect(moment);
                let status = started.end(signal);
                let is_killed = status.signal() == Some(signal.as_raw());
                // Whoever came too late has met a demo that was done.
                let is_told = matches!(status.code(), Some(0 | 1));
                assert!(if signal == Signal::KILL { is_killed } else { is_told }, "{status:?}");
                stage.assert_all_is_gone();
            }
            // While it tries out what it may, and a little later.
            for milliseconds in [0, 20, 60, 120, 240] {
                let started = Started::new(&stage, before);
                std::thread::park_timeout(Duration::from_millis(milliseconds));
                started.end(signal);
                stage.assert_all_is_gone();
            }
        }
    }
}

//! `demo` in network namespaces, with real CNI plugins, nftables and VXLAN, as root and as an
//! unprivileged user. The demo leaves nothing behind, however it ends.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::docker_daemon::{TIMEOUT, sleep_poll_interval};
use crate::namespace::{Namespace, require_root_and_files, run};

/// Directory of the CNI plugins of the package containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Options of setpriv for a user without privileges.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// The environment of a demo: an empty network namespace, and a directory for temporary files.
struct DemoEnvironment {
    network: Namespace,
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl DemoEnvironment {
    fn new() -> Self {
        require_root_and_files(&[
            "/usr/lib/cni/bridge",
            "/usr/lib/cni/host-local",
            "/usr/sbin/nft",
        ]);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let set_mode = |path: &Path, mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(path, permissions).expect("permission to change the file");
        };
        set_mode(dir.path(), 0o755);
        // The build directory may be unreadable for other users.
        let program = dir.path().join("mesos-overlay");
        fs::copy(env!("CARGO_BIN_EXE_mesos-overlay"), &program).expect("a copy");
        set_mode(&program, 0o755);
        fs::create_dir(dir.path().join("tmp")).expect("a new directory");
        set_mode(&dir.path().join("tmp"), 0o777);
        Self { network: Namespace::new(), dir, program }
    }

    fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    /// Builds the command that runs `demo`. `before` is a command line that runs the program, such
    /// as `setpriv` with its options.
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
        self.assert_nothing_remains();
        output
    }

    fn json(&self, before: &[&str], code: i32) -> Value {
        let output = self.output(before, &["--json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("valid JSON")
    }

    /// Waits for the end of all processes, then checks that no file, mount and device remains.
    fn assert_nothing_remains(&self) {
        let mut waited = Duration::ZERO;
        while !self.processes().is_empty() {
            assert!(waited < TIMEOUT, "processes remain: {:?}", self.processes());
            waited += sleep_poll_interval();
        }
        let files: Vec<_> = fs::read_dir(self.tmp()).expect("a readable directory").collect();
        assert!(files.is_empty(), "files remain: {files:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("readable /proc");
        assert!(!mounts.contains("mesos-overlay-demo"), "{mounts}");
        assert_eq!(self.network.devices(), [""; 0]);
    }

    /// Lists the processes that have the directory for temporary files in their environment.
    fn processes(&self) -> Vec<String> {
        let mark = format!("TMPDIR={}\0", self.tmp().display());
        let has_mark = |process: &PathBuf| {
            let variables = fs::read(process.join("environ")).unwrap_or_default();
            variables.windows(mark.len()).any(|window| window == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").expect("readable /proc").flatten();
        let marked = all.map(|entry| entry.path()).filter(has_mark);
        marked.map(|process| process.display().to_string()).collect()
    }
}

/// Checks that six containers have the second addresses of their subnets, and that all pings
/// between them were answered.
#[track_caller]
fn assert_full_connectivity(shown: &Value) {
    assert_eq!(shown["loopback"], Value::Null);
    let containers = shown["containers"].as_array().expect("a list of containers");
    assert_eq!(containers.len(), 6);
    for container in containers {
        let (agent, overlay) = (&container["agent"], &container["overlay"]);
        let file = format!("{}.conf", overlay.as_str().expect("a name"));
        let file = shown["cni"][agent.as_str().expect("an address")][file].as_str();
        let file: Value = serde_json::from_str(file.expect("a file")).expect("valid JSON");
        let subnet = file["ipam"]["subnet"].as_str().expect("a subnet");
        let second = subnet.replace(".0/25", ".2");
        assert_eq!(container["address"], second.as_str(), "{container}");
        assert_eq!(container["mtu"], 1420);
    }
    let pings = shown["pings"].as_array().expect("a list of pings");
    for bytes in [84, 1420] {
        let of_size = pings.iter().filter(|ping| ping["bytes"] == bytes);
        assert_eq!(of_size.filter(|ping| ping["microseconds"].is_u64()).count(), 30, "{pings:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_as_root_shows_diagram_and_matrix_and_cleans_up() {
    let environment = DemoEnvironment::new();
    let output = environment.output(&[], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "\n┌ host 10.0.0.1 ───────────────┐ ┌ host 10.0.0.2 ───────────────┐\n",
        "\n│   m-vxlan-1      m-vxlan-2   │ │   m-vxlan-1      m-vxlan-2   │\n",
        "\n│           vtep1024           │ │           vtep1024           │\n",
        "\nunderlay, with the master at 10.0.0.254:5050\nand one more host like these\n",
        "\nContainers attached by the CNI plugins bridge and host-local in /usr/lib/cni.\n",
        "\nfrom \\ to         c1   c2   c3   c4   c5   c6\n",
        "\n60 of 60 pings had a reply, with unfragmented packets of 84 and 1420 bytes\n",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("Without firewall rules"), "{text}");
    let lines = text.lines().filter(|line| !line.contains("PATH="));
    let widest = lines.map(|line| line.chars().count());
    assert!(widest.max().is_some_and(|widest| widest <= 80), "{text}");
    assert_full_connectivity(&environment.json(&[], 0));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_as_unprivileged_user_works_with_user_namespaces() {
    let environment = DemoEnvironment::new();
    let nobody = [&["setpriv"], &NOBODY[..]].concat();
    let shown = environment.json(&nobody, 0);
    let mut probe = Command::new("setpriv");
    probe.args(NOBODY).args(["unshare", "--user", "--map-root-user", "--net", "--mount", "true"]);
    if run(&mut probe, "").status.success() {
        assert_full_connectivity(&shown);
    } else {
        let reason = shown["loopback"].as_str().expect("a reason");
        assert!(reason.contains(": run it as root, or after 'sysctl -w "), "{reason}");
        assert_eq!(shown["state"]["agents"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_without_plugins_gives_same_container_addresses() {
    let environment = DemoEnvironment::new();
    let hide = format!("mount -t tmpfs none {PLUGINS} && exec \"$0\" \"$@\"");
    let before = ["unshare", "--mount", "sh", "-c", &hide];
    assert_full_connectivity(&environment.json(&before, 0));
    let output = environment.output(&before, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = "Containers attached without CNI plugins: there are none in /usr/lib/cni,\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_with_lost_pings_shows_them_and_fails() {
    let environment = DemoEnvironment::new();
    let plugins = environment.dir.path().join("plugins");
    fs::create_dir(&plugins).expect("a new directory");
    let install = |script: &str| {
        for name in ["bridge", "host-local"] {
            fs::write(plugins.join(name), format!("#!/bin/sh\n{script}\n"))
                .expect("permission to change the file");
            let permissions = fs::Permissions::from_mode(0o755);
            fs::set_permissions(plugins.join(name), permissions)
                .expect("permission to change the file");
        }
    };
    let cover = format!("mount --bind {} {PLUGINS} && exec \"$0\" \"$@\"", plugins.display());
    let before = ["unshare", "--mount", "sh", "-c", &cover];
    // A plugin that reports success without doing anything.
    install("cat >/dev/null; echo '{\"ip4\":{\"ip\":\"198.18.77.2/25\"}}'");
    let output = environment.output(&before, &[]);
    let (text, errors) = (output.stdout, output.stderr);
    let (text, errors) = (String::from_utf8_lossy(&text), String::from_utf8_lossy(&errors));
    assert_eq!(output.status.code(), Some(1), "{text}{errors}");
    assert!(text.contains("c1 198.18.77.2    · lost lost lost lost lost\n"), "{text}");
    assert!(text.contains("\n0 of 60 pings had a reply, "), "{text}");
    assert!(text.contains("\nc6 to c5, 1420 bytes: "), "{text}");
    let last = "mesos-overlay: 60 of 60 pings had no reply: see the lines above, or run it with \
                --log debug\n";
    assert!(errors.ends_with(last), "{errors}");
    // A plugin that reports the reason of its failure.
    install("cat >/dev/null; echo '{\"code\":11,\"msg\":\"it rains\"}'; exit 1");
    let output = environment.output(&before, &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let last = "mesos-overlay: container c1 on 10.0.0.1 by vxlan-1.conf: /usr/lib/cni/bridge: it \
                rains\n";
    assert!(errors.ends_with(last), "{errors}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_without_namespaces_reports_reason_and_continues() {
    let environment = DemoEnvironment::new();
    let forbid = "echo 0 >/proc/sys/user/max_net_namespaces && exec \"$0\" \"$@\"";
    let before = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid];
    let shown = environment.json(&before, 0);
    assert_eq!(
        shown["loopback"],
        "create a network namespace: No space left on device (os error 28): run it as root, or after \
         'sysctl -w user.max_net_namespaces=10000'"
    );
    assert_eq!(shown["state"]["agents"].as_array().map(Vec::len), Some(3));
    assert_eq!(shown["pings"].as_array().map(Vec::len), Some(0));
}

/// A demo that is running.
struct RunningDemo(Child);

impl RunningDemo {
    fn new(environment: &DemoEnvironment, before: &[&str]) -> Self {
        let mut command = environment.command(before, &[]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    /// Reads standard error until a line contains `text`.
    fn wait_for_line(&mut self, text: &str) {
        let stderr = self.0.stderr.as_mut().expect("a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(text)), "demo did not log {text}");
    }

    fn end(mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        // The demo may have ended already.
        let _ = rustix::process::kill_process(pid, signal);
        self.0.wait().expect("an exit status")
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn demo_killed_at_any_stage_leaves_nothing() {
    use rustix::process::Signal;
    let environment = DemoEnvironment::new();
    let nobody = [&["setpriv"], &NOBODY[..]].concat();
    let stages = ["master at", "assigned", "registered: ok", "containers on 10.0.0.1"];
    for before in [&[][..], &nobody[..]] {
        for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
            for stage in stages {
                let mut demo = RunningDemo::new(&environment, before);
                demo.wait_for_line(stage);
                let status = demo.end(signal);
                let is_killed = status.signal() == Some(signal.as_raw());
                // The signal may come after the end of the demo.
                let has_exit_code = matches!(status.code(), Some(0 | 1));
                assert!(
                    if signal == Signal::KILL { is_killed } else { has_exit_code },
                    "{status:?}"
                );
                environment.assert_nothing_remains();
            }
            // While the demo probes its privileges, and slightly later.
            for milliseconds in [0, 20, 60, 120, 240] {
                let demo = RunningDemo::new(&environment, before);
                std::thread::park_timeout(Duration::from_millis(milliseconds));
                demo.end(signal);
                environment.assert_nothing_remains();
            }
        }
    }
}

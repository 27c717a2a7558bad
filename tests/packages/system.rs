//! A Debian system that is made for a test, with the packages of two releases.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

pub(crate) const SERVICES: &str = "mesos-overlay-master.service mesos-overlay-agent.service";
pub(crate) const STATE: &str = "var/lib/mesos-overlay/master/overlay-master.redb";
/// A file of the agent that an uninstalled agent must not leave: it lets the host forward packets.
pub(crate) const DROP_IN: &str = "etc/sysctl.d/99-zz-mesos-overlay.conf";
/// Files that belong to Mesos and to the operator, which no package removes.
pub(crate) const FOREIGN: [&str; 3] = [
    "var/lib/mesos/cni/vxlan-1.conf",
    "etc/mesos-overlay/network.json",
    "etc/systemd/network/00-mesos-overlay.network",
];

/// The packages of two releases, and a Debian system without them.
///
/// The directory stays until the next run replaces it: nothing drops a static value.
struct Fixture {
    dir: PathBuf,
}

impl Fixture {
    fn get() -> &'static Self {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| {
            let fixture = Self { dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages") };
            let _ = fs::remove_dir_all(&fixture.dir);
            fs::create_dir_all(&fixture.dir).unwrap();
            for release in ["1", "2"] {
                fixture.build_packages(release);
            }
            make_system(&fixture.dir.join("system"));
            fixture
        })
    }

    fn build_packages(&self, release: &str) {
        // The profile changes nothing about the packages, and Cargo has built the program with it.
        let arguments = ["--profile", "dev", "--no-build", "--release", release];
        succeed(Command::new("packaging/build").args(arguments));
        for kind in ["deb", "rpm"] {
            let built = format!("target/package/mesos-overlay.{kind}");
            fs::copy(built, self.dir.join(format!("{release}.{kind}"))).unwrap();
        }
    }
}

/// Makes a Debian system of the machine's release, with the machine's sources and options of apt.
fn make_system(directory: &Path) {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let sources = ["/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"];
    let sources: Vec<&str> = sources.into_iter().filter(|path| Path::new(path).exists()).collect();
    assert!(!sources.is_empty(), "apt has no sources of Debian");
    let options = fs::read_dir("/etc/apt/apt.conf.d").unwrap();
    let options = options
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("Acquire")));
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase"]);
    command.args(options.map(|path| format!("--aptopt={}", path.display())));
    let packages = [
        "bash-completion",
        "busybox-static",
        "containernetworking-plugins",
        "dbus",
        "docker.io",
        "iproute2",
        "ipset",
        "iptables",
        "nftables",
        "procps",
        "rpm",
        "systemd-sysv",
    ];
    command.arg(format!("--include={}", packages.join(",")));
    succeed(command.arg(suite.unwrap()).arg(directory).args(sources));
}

#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = transcript(&output);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

pub(crate) fn transcript(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{}{stderr}", String::from_utf8_lossy(&output.stdout))
}

/// A copy of the Debian system. Programs run in it with their own mounts and processes.
pub(crate) struct System {
    dir: TempDir,
    /// The systemctl of the system writes its arguments into this file.
    calls: PathBuf,
}

impl System {
    /// Makes a system in which the scripts of the packages see a systemd that runs.
    pub(crate) fn new() -> Self {
        let system = Self::offline();
        system.pretend_to_run_systemd();
        system
    }

    /// Makes a system in which nothing runs.
    pub(crate) fn offline() -> Self {
        let fixture = Fixture::get();
        let dir = tempfile::Builder::new().tempdir_in(&fixture.dir).unwrap();
        let base = fixture.dir.join("system/.");
        succeed(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(base).arg(dir.path()));
        for release in ["1.deb", "2.deb", "1.rpm", "2.rpm"] {
            fs::copy(fixture.dir.join(release), dir.path().join(release)).unwrap();
        }
        Self { calls: dir.path().join("systemctl.calls"), dir }
    }

    /// Makes the scripts of the packages believe that systemd runs, and records what they request.
    fn pretend_to_run_systemd(&self) {
        fs::create_dir_all(self.path("run/systemd/system")).unwrap();
        // rpm runs scripts with a PATH of its own.
        let systemctl = self.path("usr/bin/systemctl");
        fs::write(&systemctl, "#!/bin/sh\necho \"$*\" >>/systemctl.calls\n").unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
        command.arg("mount -t proc proc \"$0/proc\" && exec chroot \"$0\" sh -c \"$1\"");
        command.arg(self.dir.path()).arg(script);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a script of the shell in the system. Returns its output.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        succeed(&mut self.command(script))
    }

    /// Returns the calls of systemctl since the last call of this function.
    pub(crate) fn systemctl_calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(&self.calls).unwrap_or_default();
        let _ = fs::remove_file(&self.calls);
        calls.lines().map(str::to_owned).collect()
    }

    /// Checks what either package installs.
    pub(crate) fn check_installed(&self) {
        let version = self.run("mesos-overlay --version");
        assert_eq!(version, format!("mesos-overlay {}\n", env!("CARGO_PKG_VERSION")));
        let user = self.run("getent passwd mesos-overlay");
        assert!(user.ends_with(":/var/lib/mesos-overlay:/usr/sbin/nologin\n"), "{user}");
        let state = fs::metadata(self.path("var/lib/mesos-overlay")).unwrap();
        assert_eq!((state.uid(), state.mode() & 0o7777), (0, 0o755));
        for file in ["network", "agent"] {
            let check = format!("mesos-overlay check /etc/mesos-overlay/{file}.json.example");
            let text = self.run(&check);
            assert!(text.contains(": ok: "), "{text}");
        }
        let help = self.run("mesos-overlay --help");
        let (_, subcommands) = help.split_once("\nCommands:\n").unwrap();
        let (subcommands, _) = subcommands.split_once("\n\n").unwrap();
        let names = subcommands.lines().filter_map(|line| line.split_whitespace().next());
        let names: Vec<&str> = names.filter(|name| *name != "help").collect();
        assert!(names.len() > 10, "{help}");
        for name in names {
            assert!(
                self.exists(&format!("usr/share/man/man8/mesos-overlay-{name}.8.gz")),
                "{name}"
            );
        }
        let completion = self.run(
            "bash -c '. /usr/share/bash-completion/bash_completion; \
             _completion_loader mesos-overlay; complete -p mesos-overlay'",
        );
        assert!(completion.ends_with(" mesos-overlay\n"), "{completion}");
    }

    /// Adds what a master and an agent, Mesos and the operator write.
    pub(crate) fn use_it(&self) {
        self.write(STATE, "state");
        self.write("var/lib/mesos-overlay/agent.lock", "");
        let mark = "# Written by the agent of mesos-overlay. 'mesos-overlay clean' removes it.\n";
        self.write(DROP_IN, mark);
        for name in FOREIGN {
            self.write(name, "foreign");
        }
        self.write("etc/mesos-overlay/agent.env", "MESOS_OVERLAY_LISTEN=10.0.0.7:5061\n");
    }

    #[track_caller]
    pub(crate) fn check_use_is_kept(&self) {
        assert_eq!(self.read(STATE), "state");
        for name in FOREIGN {
            assert_eq!(self.read(name), "foreign");
        }
    }
}

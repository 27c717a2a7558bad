//! Discovery in invented `/proc` file systems.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};

use super::*;

/// A host with invented processes.
struct FakeHost {
    dir: tempfile::TempDir,
}

impl FakeHost {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir };
        host.write("proc/self/x", "");
        host.write("proc/stat", "cpu 1 2\nbtime 1000\n");
        host.write("usr/bin/mesos-overlay", "");
        host.write("usr/bin/mesos-agent", "");
        host.write("usr/bin/mesos-slave", "");
        host.write("work/x", "");
        host.add_namespaces("self");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the absolute path as text.
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file that others cannot change, whatever the umask is.
    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        let directory = path.parent().unwrap();
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).unwrap();
        fs::write(&path, text).unwrap();
        self.set_mode(name, 0o644);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    fn add_namespaces(&self, process: &str) {
        for (namespace, target) in [("net", "net:[1]"), ("mnt", "mnt:[1]"), ("user", "user:[1]")] {
            self.link(target, &format!("proc/{process}/ns/{namespace}"));
        }
        self.link("/", &format!("proc/{process}/root"));
    }

    /// Adds a process that started at `start`, in seconds since 1970. The user of the tests runs
    /// it, and its program is the one in `usr/bin`.
    fn add_process(&self, pid: u32, command: &str, environment: &str, start: u64) {
        let folder = format!("proc/{pid}");
        self.write(&format!("{folder}/cmdline"), &(command.replace(' ', "\0") + "\0"));
        self.write(&format!("{folder}/environ"), &environment.replace(' ', "\0"));
        let ticks = (start - 1000) * 100;
        let stat = format!("{pid} (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0");
        self.write(&format!("{folder}/stat"), &stat);
        self.set_users(pid, [own_user(); 4]);
        self.add_namespaces(&pid.to_string());
        self.link(self.path("work"), &format!("{folder}/cwd"));
        let program = Path::new(command.split(' ').next().unwrap()).file_name().unwrap();
        self.link(self.path("usr/bin").join(program), &format!("{folder}/exe"));
    }

    fn set_users(&self, pid: u32, users: [u32; 4]) {
        let users = users.map(|user| user.to_string()).join("\t");
        self.write(&format!("proc/{pid}/status"), &format!("Name:\ta\nUid:\t{users}\nGid:\t0\n"));
    }

    fn discover(&self) -> Discovery {
        let directories = vec![self.path("etc/mesos-overlay")];
        let files = TrustedFiles::strict();
        SearchPaths { proc: self.path("proc"), directories, files }.discover(None)
    }

    /// Asserts that nothing of the only process is used, and that the reason names it.
    #[track_caller]
    fn assert_distrusted(&self, reason: &str) {
        let found = self.discover();
        let [agent] = &found.configuration.agents[..] else { panic!("{found:?}") };
        let distrust = agent.distrust.as_deref().unwrap_or_default();
        assert_eq!(distrust.replace(&self.text(""), "/"), reason);
        assert_eq!(found.configuration.source, None);
        assert_eq!(found.configuration.problems, [""; 0]);
        assert_eq!(found.address, None);
        assert_eq!(found.config, AgentConfig::new(PathBuf::new()));
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

const CONFIG: &str = r#"{ "cni_dir": "/cni", "docker": "/opt/docker" }"#;
const NEVER: u64 = 1_000_000_000_000;

fn agent_source(pid: u32, file: Option<&str>, is_edited: bool) -> Option<ConfigSource> {
    Some(ConfigSource::Agent { pid, file: file.map(str::to_owned), is_edited })
}

#[test]
fn configuration_of_running_program_is_found() {
    let host = FakeHost::new();
    host.write("work/agent.json", CONFIG);
    let command = "/usr/bin/mesos-overlay agent --config agent.json --listen=10.0.0.7:5061";
    host.add_process(7, command, "", NEVER);
    let found = host.discover();
    assert_eq!(found.config.docker, Path::new("/opt/docker"));
    assert_eq!(found.configuration.source, agent_source(7, Some("agent.json"), false));
    assert_eq!(found.address, "10.0.0.7:5061".parse().ok());
}

#[test]
fn flags_in_environment_of_program_are_found() {
    let host = FakeHost::new();
    host.write("etc/agent.json", CONFIG);
    let file = host.text("etc/agent.json");
    let environment = format!(
        "MESOS_OVERLAY_CONFIG={file} MESOS_OVERLAY_DATAPLANE=external \
         MESOS_OVERLAY_LISTEN=0.0.0.0:5061 MESOS_OVERLAY_MASTER= MESOS_OVERLAY_NO_DOCKER=yes \
         MESOS_OVERLAY_DOCKER=podman"
    );
    let command = "mesos-overlay --log info agent --cni-dir /other --state-dir state";
    host.add_process(7, command, &environment, NEVER);
    let found = host.discover();
    assert_eq!(found.config.cni_dir, Path::new("/other"));
    assert_eq!(found.config.dataplane.kind, DataplaneKind::External);
    assert_eq!(found.config.dataplane.state_dir, Path::new(&host.text("work/state")));
    assert_eq!(found.config.docker, Path::new("podman"));
    assert!(!found.config.options.docker_bridge);
    assert_eq!(found.configuration.source, agent_source(7, Some(&file), false));
    assert_eq!(found.address, "127.0.0.1:5061".parse().ok());
}

#[test]
fn file_changed_after_start_is_noted() {
    let host = FakeHost::new();
    host.write("work/agent.json", CONFIG);
    host.add_process(7, "mesos-overlay agent --config agent.json", "", 2000);
    assert_eq!(host.discover().configuration.source, agent_source(7, Some("agent.json"), true));
}

#[test]
fn configuration_of_mesos_agent_is_found() {
    let modules = r#"{ "libraries": [ { "file": "/l.so", "modules": [
        { "name": "com_mesosphere_mesos_MasterOverlayHelper" },
        { "name": "com_mesosphere_mesos_OverlayAgentManager", "parameters": [
            { "key": "cni_dir", "value": "/cni" }, { "key": "docker", "value": "/opt/docker" } ] }
    ] } ] }"#;
    for (command, environment) in [
        ("mesos-agent --modules=file://DIR/m/agent.json --port=5052", "MESOS_MASTER=10.0.0.1:5050"),
        (
            "/usr/sbin/mesos-slave --port=5052 --master=10.0.0.1:5050",
            "MESOS_MODULES=DIR/m/agent.json",
        ),
        ("mesos-agent --modules_dir=DIR/m --master=10.0.0.1:5050 --port=5052", ""),
    ] {
        let host = FakeHost::new();
        host.write("m/agent.json", modules);
        host.write("m/other.json", "no JSON");
        let dir = host.dir.path().display().to_string();
        let [command, environment] = [command, environment].map(|text| text.replace("DIR", &dir));
        host.add_process(7, &command, &environment, NEVER);
        let found = host.discover();
        assert_eq!(found.configuration.problems, [""; 0], "{command}");
        assert_eq!(found.config.docker, Path::new("/opt/docker"), "{command}");
        let file = host.text("m/agent.json");
        assert_eq!(found.configuration.source, agent_source(7, Some(&file), false));
        assert_eq!(found.address, "127.0.0.1:5052".parse().ok());
    }
}

#[test]
fn mesos_agent_without_modules_is_ignored() {
    let host = FakeHost::new();
    host.add_process(7, "mesos-agent --master=10.0.0.1:5050", "", NEVER);
    host.add_process(8, "mesos-overlay doctor", "", NEVER);
    host.add_process(9, "vi mesos-overlay agent", "", NEVER);
    let found = host.discover();
    assert_eq!(found.configuration, Configuration::default());
    assert_eq!(found.address, None);
}

#[test]
fn agent_of_other_network_namespace_is_not_used() {
    let host = FakeHost::new();
    host.write("work/agent.json", CONFIG);
    host.add_process(7, "mesos-overlay agent --config agent.json", "", NEVER);
    host.link("net:[2]", "proc/7/ns/net");
    host.write("etc/mesos-overlay/agent.json", CONFIG);
    let found = host.discover();
    let path = host.path("etc/mesos-overlay/agent.json").display().to_string();
    assert_eq!(found.configuration.source, Some(ConfigSource::DefaultPath(path)));
    let name = "mesos-overlay".to_owned();
    let elsewhere = AgentProcess { pid: 7, name, is_here: false, distrust: None };
    assert_eq!(found.configuration.agents, [elsewhere]);
}

#[test]
fn two_agents_are_both_named() {
    let host = FakeHost::new();
    host.write("work/agent.json", CONFIG);
    host.add_process(9, "mesos-overlay agent --cni-dir /cni", "", NEVER);
    host.add_process(8, "mesos-overlay agent --config agent.json", "", NEVER);
    let found = host.discover();
    assert_eq!(found.configuration.source, agent_source(8, Some("agent.json"), false));
    assert_eq!(found.address, "127.0.0.1:5051".parse().ok());
    let pids: Vec<u32> = found.configuration.agents.iter().map(|agent| agent.pid).collect();
    assert_eq!(pids, [8, 9]);
}

#[test]
fn broken_configuration_of_running_agent_is_a_problem() {
    let host = FakeHost::new();
    host.write("work/agent.json", r#"{ "cni_dir": "relative", "unknown": 1 }"#);
    host.add_process(8, "mesos-overlay agent --config agent.json", "", NEVER);
    let found = host.discover();
    assert_eq!(found.configuration.source, None);
    let problem = &found.configuration.problems[0];
    assert!(problem.starts_with("the configuration has 2 problems: "), "{problem}");
    assert_eq!(problem.lines().count(), 1);
}

#[test]
fn missing_proc_is_a_problem() {
    let host = FakeHost::new();
    let files = TrustedFiles::strict();
    let found =
        SearchPaths { proc: host.path("none"), directories: Vec::new(), files }.discover(None);
    let problem = &found.configuration.problems[0];
    assert!(problem.starts_with("list the processes in /proc: "), "{problem}");
}

/// A host with a process that looks like an agent, with a configuration that names a program.
fn host_with_agent() -> FakeHost {
    let host = FakeHost::new();
    host.write("work/agent.json", CONFIG);
    let command = "mesos-overlay agent --config=agent.json --listen=127.0.0.1:6666";
    host.add_process(666, command, "", NEVER);
    host
}

#[test]
fn process_of_another_user_is_named_and_not_used() {
    let own = own_user();
    let other = 4_000_000_000;
    // The real user of a program with the bit setuid is another one than the effective user.
    for users in [[other; 4], [other, own, own, own], [own, own, other, own]] {
        let host = host_with_agent();
        assert_eq!(
            host.discover().configuration.source,
            agent_source(666, Some("agent.json"), false)
        );
        host.set_users(666, users);
        host.assert_distrusted("it runs as user 4000000000");
    }
    let host = host_with_agent();
    host.write("proc/666/status", "Name:\ta\n");
    host.assert_distrusted("it cannot be examined: its user is unknown");
}

#[test]
fn process_of_a_container_is_named_and_not_used() {
    for (namespace, name) in [("mnt", "mount"), ("user", "user")] {
        let host = host_with_agent();
        host.link(format!("{namespace}:[2]"), &format!("proc/666/ns/{namespace}"));
        let reason = format!("it runs in another {name} namespace, as in a container");
        host.assert_distrusted(&reason);
    }
    let host = host_with_agent();
    host.link(host.path("work"), "proc/666/root");
    host.assert_distrusted("it has another root directory");
}

#[test]
fn agent_of_unit_is_used_with_its_own_mounts() {
    let unit = "/system.slice/mesos-overlay-agent.service";
    let host = host_with_agent();
    host.link("mnt:[2]", "proc/666/ns/mnt");
    for line in ["0::", "3:cpu:/\n1:name=systemd:"] {
        host.write("proc/666/cgroup", &format!("{line}{unit}\n"));
        let source = host.discover().configuration.source;
        assert_eq!(source, agent_source(666, Some("agent.json"), false));
    }
    let container = "/system.slice/docker-1.scope";
    for line in [format!("0::{container}{unit}"), format!("3:cpu:{unit}"), format!("0::{unit}/a")] {
        host.write("proc/666/cgroup", &format!("{line}\n"));
        host.assert_distrusted("it runs in another mount namespace, as in a container");
    }
    host.write("proc/666/cgroup", &format!("0::{unit}\n"));
    host.link(host.path("work"), "proc/666/root");
    host.assert_distrusted("it has another root directory");
}

#[test]
fn program_of_another_name_is_named_and_not_used() {
    let host = host_with_agent();
    host.write("usr/bin/sudo", "");
    host.link(host.path("usr/bin/sudo"), "proc/666/exe");
    host.assert_distrusted("its program is /usr/bin/sudo");
    host.link(host.path("usr/bin/mesos-agent"), "proc/666/exe");
    host.assert_distrusted("its program is /usr/bin/mesos-agent");
}

#[test]
fn program_that_others_can_replace_is_named_and_not_used() {
    let host = host_with_agent();
    host.set_mode("usr/bin/mesos-overlay", 0o775);
    let reason = "its program is /usr/bin/mesos-overlay: other users can write to \
                  /usr/bin/mesos-overlay";
    host.assert_distrusted(reason);
    host.set_mode("usr/bin/mesos-overlay", 0o755);
    // A link to any program of root, in a directory like /tmp.
    for mode in [0o777, 0o1777] {
        host.set_mode("usr/bin", mode);
        let reason = "its program is /usr/bin/mesos-overlay: other users can write to /usr/bin";
        host.assert_distrusted(reason);
    }
}

#[test]
fn configuration_that_others_can_replace_is_a_problem() {
    for (name, mode) in [("work/agent.json", 0o666), ("work", 0o777), ("work", 0o1777)] {
        let host = host_with_agent();
        host.set_mode(name, mode);
        let found = host.discover();
        assert_eq!(found.configuration.source, None);
        assert_eq!(found.config, AgentConfig::new(PathBuf::new()));
        let problem = format!(
            "{} is not trusted: other users can write to {}: if it is right, name the file with \
             --config",
            host.text("work/agent.json"),
            host.text(name)
        );
        assert_eq!(found.configuration.problems, [problem]);
    }
}

#[test]
fn module_files_that_others_can_replace_are_a_problem() {
    let host = FakeHost::new();
    host.write("m/agent.json", "{}");
    let command = format!("mesos-agent --modules_dir={}", host.text("m"));
    host.add_process(7, &command, "", NEVER);
    host.set_mode("m", 0o777);
    let problem = &host.discover().configuration.problems[0];
    let start = format!("{} is not trusted: other users can write to ", host.text("m"));
    assert!(problem.starts_with(&start), "{problem}");
}

#[test]
fn default_file_that_others_can_replace_is_a_problem() {
    for name in ["etc/mesos-overlay/agent.json", "etc/mesos-overlay/agent_modules.json"] {
        let host = FakeHost::new();
        host.write(name, CONFIG);
        host.set_mode(name, 0o666);
        let found = host.discover();
        assert_eq!(found.configuration.source, None);
        let problem = &found.configuration.problems[0];
        let start = format!("{} is not trusted: other users can write to ", host.text(name));
        assert!(problem.starts_with(&start), "{problem}");
    }
}

#[test]
fn trusted_agent_precedes_untrusted_ones() {
    let host = host_with_agent();
    host.set_users(666, [4_000_000_000; 4]);
    host.add_process(900, "mesos-overlay agent --config agent.json", "", NEVER);
    host.add_process(800, "mesos-overlay agent --config agent.json", "", NEVER);
    let found = host.discover();
    assert_eq!(found.configuration.source, agent_source(800, Some("agent.json"), false));
    let pids: Vec<u32> = found.configuration.agents.iter().map(|agent| agent.pid).collect();
    assert_eq!(pids, [800, 900, 666]);
    assert_eq!(found.address, "127.0.0.1:5051".parse().ok());
}

#[test]
fn removed_program_of_running_agent_is_accepted() {
    let host = host_with_agent();
    // After an upgrade. The link of the kernel still leads to the file.
    host.write("usr/bin/mesos-overlay (deleted)", "");
    host.link(host.path("usr/bin/mesos-overlay (deleted)"), "proc/666/exe");
    assert_eq!(host.discover().configuration.source, agent_source(666, Some("agent.json"), false));
}

#[test]
fn name_of_untrusted_process_is_bounded() {
    let host = FakeHost::new();
    let name = format!("mesos-overlay{}", "x".repeat(4000));
    host.add_process(7, &format!("{name} agent"), "", NEVER);
    let found = host.discover();
    let agent = &found.configuration.agents[0];
    assert!(agent.distrust.is_some() && agent.name.chars().count() == 64, "{agent:?}");
}

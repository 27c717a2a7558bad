//! Discovery in invented `/proc` file systems.

use std::os::unix::fs::symlink;

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
        host.link("net:[1]", "proc/self/ns/net");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Adds a process that started at `start`, in seconds since 1970.
    fn add_process(&self, pid: u32, command: &str, environment: &str, start: u64) {
        let folder = format!("proc/{pid}");
        self.write(&format!("{folder}/cmdline"), &(command.replace(' ', "\0") + "\0"));
        self.write(&format!("{folder}/environ"), &environment.replace(' ', "\0"));
        let ticks = (start - 1000) * 100;
        let stat = format!("{pid} (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0");
        self.write(&format!("{folder}/stat"), &stat);
        self.link("net:[1]", &format!("{folder}/ns/net"));
        self.link(self.dir.path(), &format!("{folder}/root"));
        self.link(self.path("work"), &format!("{folder}/cwd"));
    }

    fn discover(&self) -> Discovery {
        let directories = vec![self.path("etc/mesos-overlay")];
        SearchPaths { proc: self.path("proc"), directories }.discover(None)
    }
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
    let environment = "MESOS_OVERLAY_CONFIG=/etc/agent.json MESOS_OVERLAY_DATAPLANE=external \
                       MESOS_OVERLAY_LISTEN=0.0.0.0:5061 MESOS_OVERLAY_MASTER=";
    host.add_process(7, "mesos-overlay --log info agent --cni-dir /other", environment, NEVER);
    let found = host.discover();
    assert_eq!(found.config.cni_dir, Path::new("/other"));
    assert_eq!(found.config.dataplane.kind, DataplaneKind::External);
    assert_eq!(found.configuration.source, agent_source(7, Some("/etc/agent.json"), false));
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
        ("mesos-agent --modules=file:///m/agent.json --port=5052", "MESOS_MASTER=10.0.0.1:5050"),
        ("/usr/sbin/mesos-slave --port=5052 --master=10.0.0.1:5050", "MESOS_MODULES=/m/agent.json"),
        ("mesos-agent --modules_dir=/m --master=10.0.0.1:5050 --port=5052", ""),
    ] {
        let host = FakeHost::new();
        host.write("m/agent.json", modules);
        host.write("m/other.json", "no JSON");
        host.add_process(7, command, environment, NEVER);
        let found = host.discover();
        assert_eq!(found.configuration.problems, [""; 0], "{command}");
        assert_eq!(found.config.docker, Path::new("/opt/docker"), "{command}");
        assert_eq!(found.configuration.source, agent_source(7, Some("/m/agent.json"), false));
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
    fs::remove_file(host.path("proc/7/ns/net")).unwrap();
    host.link("net:[2]", "proc/7/ns/net");
    host.write("etc/mesos-overlay/agent.json", CONFIG);
    let found = host.discover();
    let path = host.path("etc/mesos-overlay/agent.json").display().to_string();
    assert_eq!(found.configuration.source, Some(ConfigSource::DefaultPath(path)));
    let elsewhere = AgentProcess { pid: 7, name: "mesos-overlay".to_owned(), is_here: false };
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
    let found = SearchPaths { proc: host.path("none"), directories: Vec::new() }.discover(None);
    let problem = &found.configuration.problems[0];
    assert!(problem.starts_with("list the processes in /proc: "), "{problem}");
}

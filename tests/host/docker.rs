//! Docker networks on a real daemon, which each test starts in a network namespace of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesos_network_overlay::addr::{Mtu, OverlayName};
use mesos_network_overlay::agent::DockerNetwork;
use mesos_network_overlay::docker::{Docker, Outcome, Reason};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::namespace::{BUSYBOX, Namespace, demand, run, succeed};

const DOCKERD: &str = "/usr/sbin/dockerd";
/// That of the package docker.io: another `docker` may come first in `PATH`.
const DOCKER: &str = "/usr/bin/docker";
const GOLDEN: &str = include_str!("../golden/docker-network-inspect.json");
const IMAGE: &str = "mesos-overlay-test";
/// How long the daemon may take to start or to stop, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Docker daemon of the test's own.
struct Engine {
    daemon: Child,
    directory: tempfile::TempDir,
    namespace: Namespace,
}

impl Engine {
    fn start() -> Self {
        demand(&[DOCKERD, DOCKER, BUSYBOX, "/usr/sbin/iptables"]);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let namespace = Namespace::new();
        let path = |name: &str| directory.path().join(name);
        let log = fs::File::create(path("log")).expect("a log");
        let mut command = namespace.command(DOCKERD);
        // Of its own, so that the machine's /etc/docker/daemon.json does not matter.
        fs::write(path("daemon.json"), "{}").expect("a configuration");
        command.arg("--config-file").arg(path("daemon.json"));
        // Control groups of its own, which can be removed afterwards, and by dockerd itself:
        // systemd need not be there.
        command.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent"]);
        command.arg(namespace.path().file_name().expect("it has a name"));
        // vfs, since the others ask for something of the file system below.
        command.args(["--storage-driver=vfs", "--data-root"]);
        command.arg(path("data")).arg("--exec-root").arg(path("exec"));
        command.arg("--pidfile").arg(path("pid")).arg("--host").arg(Self::socket(&directory));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let daemon = command.spawn().expect("dockerd starts");
        let mut engine = Self { daemon, directory, namespace };

        let mut waited = Duration::ZERO;
        while !engine.answers() {
            let ended = engine.daemon.try_wait().expect("its state is known");
            assert!(ended.is_none() && waited < PATIENCE, "dockerd: {}", engine.log());
            waited += pause();
        }
        engine
    }

    fn socket(directory: &tempfile::TempDir) -> String {
        format!("unix://{}", directory.path().join("docker.sock").display())
    }

    /// Stops the daemon and says whether it stopped by itself.
    fn stop(&mut self) -> bool {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if matches!(self.daemon.try_wait(), Ok(Some(_))) {
                return true;
            }
            waited += pause();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        false
    }

    fn signal(&mut self, signal: Signal) {
        // Once it was waited for, its number may be somebody else's.
        let is_ours = matches!(self.daemon.try_wait(), Ok(None));
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| is_ours) {
            let _ = kill_process(pid, signal);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What is tested.
    fn docker(&self) -> Docker {
        Docker::new(DOCKER, PATIENCE).with_host(&Self::socket(&self.directory))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg("--host").arg(Self::socket(&self.directory)).args(arguments);
        command
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    fn answers(&self) -> bool {
        run(&mut self.command(&["version"]), "").status.success()
    }

    fn inspect(&self, name: &str) -> Value {
        let networks = self.succeed(&["network", "inspect", name]);
        let mut networks: Value = serde_json::from_str(&networks).expect("docker prints JSON");
        networks[0].take()
    }

    /// An image with nothing but busybox.
    fn import_image(&self) {
        fs::create_dir_all(self.path("image/bin")).expect("a directory");
        fs::copy(BUSYBOX, self.path("image/bin/busybox")).expect("busybox is copied");
        let tar = self.path("image.tar");
        succeed(
            Command::new("tar").arg("-C").arg(self.path("image")).arg("-cf").arg(&tar).arg("."),
        );
        self.succeed(&["import", tar.to_str().expect("it is text"), IMAGE]);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let has_ended = matches!(self.daemon.try_wait(), Ok(Some(_)));
        if !has_ended && !self.stop() {
            // A daemon that had to be killed leaves its containerd and its mounts.
            let pid = fs::read_to_string(self.path("exec/containerd/containerd.pid"));
            let pid = pid.ok().and_then(|pid| pid.trim().parse().ok()).and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            for name in ["exec", "data"] {
                let _ = Command::new("umount").args(["-R", "-l"]).arg(self.path(name)).output();
            }
        }
        // One in each hierarchy of version 1, or one in all of version 2. Removed only if empty.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            if let Some(name) = self.namespace.path().file_name() {
                let _ = fs::remove_dir(hierarchy.join(name));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test waits for a daemon on a thread of its own")]
fn pause() -> Duration {
    let pause = Duration::from_millis(50);
    std::thread::sleep(pause);
    pause
}

fn network(name: &str, subnets: &[&str]) -> DockerNetwork {
    let name: OverlayName = name.parse().expect("it is a name");
    let subnet = |is_v6: bool| {
        let text = subnets.iter().find(|text| text.contains(':') == is_v6);
        text.map(|text| text.parse().expect("it is a subnet"))
    };
    DockerNetwork {
        bridge: name.docker_bridge(),
        name,
        subnet: subnet(false),
        subnet6: subnet(true),
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

fn vxlan_1() -> DockerNetwork {
    network("vxlan-1", &["192.168.0.128/25"])
}

fn vxlan_2() -> DockerNetwork {
    network("vxlan-2", &["192.168.128.128/25", "fd01:b::8000:0:0/81"])
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn networks_are_those_of_the_cpp_modules() {
    let engine = Engine::start();
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    for (network, golden) in [vxlan_1(), vxlan_2()].iter().zip(golden) {
        assert_eq!(engine.docker().ensure(network).await, Ok(Outcome::Created));
        let found = engine.inspect(network.name.as_str());
        for field in
            ["Name", "Scope", "Driver", "EnableIPv6", "Internal", "ConfigOnly", "Containers"]
        {
            assert_eq!(found[field], golden[field], "{field}");
        }
        let pools = |network: &Value| {
            let pools = network["IPAM"]["Config"].as_array().unwrap().iter();
            pools.map(|pool| pool["Subnet"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(pools(&found), pools(&golden));
        for (option, value) in golden["Options"].as_object().unwrap() {
            assert_eq!(&found["Options"][option], value, "{option}");
        }
        assert_eq!(found["Labels"]["org.apache.mesos.overlay"], "1");

        assert_eq!(engine.docker().ensure(network).await, Ok(Outcome::Unchanged));
        assert_eq!(engine.inspect(network.name.as_str())["Id"], found["Id"]);
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_container_has_an_address_of_the_subnet_and_reaches_the_gateway() {
    let engine = Engine::start();
    engine.import_image();
    engine.docker().ensure(&vxlan_2()).await.unwrap();
    let script = "busybox ip -o addr show dev eth0; busybox cat /sys/class/net/eth0/mtu; \
                  busybox ping -c 1 -W 5 192.168.128.129 && busybox ping -6 -c 3 -W 5 \
                  fd01:b::8000:0:1 && busybox echo reached both";
    let said = engine.succeed(&[
        "run",
        "--rm",
        "--net",
        "vxlan-2",
        IMAGE,
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ]);
    for expected in
        [" 192.168.128.130/25 ", " fd01:b::8000:0:2/81 ", "\n1420\n", "\nreached both\n"]
    {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_with_a_container_stays_and_an_empty_one_is_removed() {
    let engine = Engine::start();
    engine.import_image();
    let network = vxlan_1();
    engine.docker().ensure(&network).await.unwrap();
    let run =
        ["run", "--detach", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "sleep", "900"];
    engine.succeed(&run);
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(
        engine.docker().remove(&network.name).await.unwrap_err().to_string(),
        "docker network vxlan-1: has containers and cannot be removed: end them (web)"
    );
    engine.succeed(&["rm", "--force", "web"]);
    assert_eq!(engine.docker().remove(&network.name).await, Ok(true));
    assert_eq!(engine.docker().remove(&network.name).await, Ok(false));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_that_differs_is_let_be_and_the_difference_named() {
    let engine = Engine::start();
    let arguments = [
        "network",
        "create",
        "--subnet=192.168.0.0/24",
        "--opt=com.docker.network.bridge.enable_ip_masquerade=false",
        "vxlan-1",
    ];
    let id = engine.succeed(&arguments);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: exists, but bridge is one that Docker named instead of d-vxlan-1, \
         subnet is 192.168.0.0/24 instead of 192.168.0.128/25, mtu is 1500 instead of 1420: end \
         its containers and run 'docker network rm vxlan-1', then the agent makes it anew"
    );
    assert_eq!(
        engine.docker().remove(&vxlan_1().name).await.unwrap_err().to_string(),
        "docker network vxlan-1: is not the agent's: it is left alone"
    );
    assert_eq!(engine.inspect("vxlan-1")["Id"], id.trim());
    engine.succeed(&["network", "rm", "vxlan-1"]);
    assert_eq!(engine.docker().ensure(&vxlan_1()).await, Ok(Outcome::Created));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn another_network_with_our_subnet_or_our_bridge_is_named() {
    let engine = Engine::start();
    engine.succeed(&["network", "create", "--subnet=192.168.0.0/24", "lab"]);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: subnet 192.168.0.128/25 overlaps 192.168.0.0/24 of the Docker \
         network lab: run 'docker network rm lab' if it is not in use, or give the overlay another \
         subnet"
    );
    engine.succeed(&["network", "rm", "lab"]);

    engine.succeed(&["network", "create", "--opt=com.docker.network.bridge.name=d-vxlan-1", "lab"]);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: bridge d-vxlan-1 belongs to the Docker network lab: run 'docker \
         network rm lab' if it is not in use, or rename the overlay"
    );
    let default = network("vxlan-3", &["172.17.128.0/24"]);
    assert_eq!(
        engine.docker().ensure(&default).await.unwrap_err().to_string(),
        "docker network vxlan-3: subnet 172.17.128.0/24 overlaps 172.17.0.0/16 of Docker's default \
         network: set another 'bip' in Docker's daemon.json, or give the overlay another subnet"
    );
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_of_ipv6_only_is_made_and_found_equal() {
    let engine = Engine::start();
    let network = network("vxlan-6", &["fd01:c::/81"]);
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Created));
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(engine.docker().remove(&network.name).await, Ok(true));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_daemon_that_hangs_or_is_stopped_is_told_in_time() {
    let mut engine = Engine::start();
    engine.signal(Signal::STOP);
    let timeout = Duration::from_secs(3);
    let docker = Docker::new(DOCKER, timeout).with_host(&Engine::socket(&engine.directory));
    let begin = tokio::time::Instant::now();
    let error = docker.ensure(&vxlan_1()).await.unwrap_err();
    assert!(begin.elapsed() < 2 * timeout);
    assert_eq!(
        error.to_string(),
        "docker network vxlan-1: docker did not answer within 3s, 'docker version' was killed: \
         look into the Docker daemon's log, restart it if it hangs"
    );
    assert_eq!(clients(&Engine::socket(&engine.directory)), [""; 0]);

    engine.signal(Signal::CONT);
    assert_eq!(engine.docker().ensure(&vxlan_1()).await, Ok(Outcome::Created));

    assert!(engine.stop(), "dockerd: {}", engine.log());
    let error = engine.docker().ensure(&vxlan_1()).await.unwrap_err();
    assert!(matches!(error.reason, Reason::NotRunning { .. }), "{error:?}");
    let expected = "docker network vxlan-1: the Docker daemon is not running: start it, or set \
                    docker_bridge to false: ";
    assert!(error.to_string().starts_with(expected), "{error}");
}

/// Command lines of the `docker` programs that talk to `socket`.
fn clients(socket: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("there is /proc").flatten();
    let lines = processes.flat_map(|entry| fs::read(entry.path().join("cmdline")));
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.starts_with(DOCKER) && line.contains(socket))
        .collect()
}

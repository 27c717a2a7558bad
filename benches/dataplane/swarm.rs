//! Docker Swarm as the measure: two engines on two hosts, and a container of each in an attachable
//! overlay.

use std::net::IpAddr;
use std::path::Path;

use crate::docker_daemon::{DOCKER, DOCKERD, DockerDaemon, IMAGE};
use crate::namespace::{BUSYBOX, Namespace};
use crate::pair::connect_hosts;

const NETWORK: &str = "bench";

/// The engines with their containers.
pub(crate) struct Swarm {
    engines: [DockerDaemon; 2],
    pub(crate) containers: [Namespace; 2],
    /// The address of the second container.
    pub(crate) address: IpAddr,
}

/// Returns the programs that are missing on this machine.
pub(crate) fn missing_programs() -> Vec<&'static str> {
    [DOCKERD, DOCKER, BUSYBOX].into_iter().filter(|path| !Path::new(path).exists()).collect()
}

impl Swarm {
    /// Starts the engines, and waits until the containers run.
    pub(crate) fn start() -> Self {
        let mut engines = [DockerDaemon::stopped(), DockerDaemon::stopped()];
        connect_hosts([&engines[0].namespace, &engines[1].namespace]);
        for engine in &mut engines {
            engine.start();
            engine.import_image();
        }
        let [manager, worker] = &engines;
        let [one, two] = ["10.0.0.1", "10.0.0.2"];
        manager.succeed(&["swarm", "init", "--advertise-addr", one]);
        let token = manager.succeed(&["swarm", "join-token", "-q", "worker"]);
        let leader = format!("{one}:2377");
        worker.succeed(&[
            "swarm",
            "join",
            "--token",
            token.trim(),
            "--advertise-addr",
            two,
            &leader,
        ]);
        let create = ["network", "create", "--driver=overlay", "--attachable"];
        manager.succeed(&[&create[..], &["--subnet=10.200.0.0/24", NETWORK]].concat());
        let containers = [manager, worker].map(|engine| {
            let run = ["run", "--detach", "--name=end", "--network", NETWORK, IMAGE];
            engine.succeed(&[&run[..], &[BUSYBOX, "sleep", "1000000"]].concat());
            let pid = engine.succeed(&["inspect", "--format={{.State.Pid}}", "end"]);
            Namespace::of_process(pid.trim())
        });
        let format = format!("--format={{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}");
        let address = worker.succeed(&["inspect", &format, "end"]);
        let address = address.trim().parse().expect("an address");
        Self { engines, containers, address }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for engine in &self.engines {
            engine.succeed(&["rm", "--force", "end"]);
            engine.succeed(&["swarm", "leave", "--force"]);
        }
    }
}

//! Creates and removes the container networks of an agent, and sends the result of each attempt.
//!
//! One task executes all jobs in the CNI directory, in the order of the commands. Concurrent jobs
//! could write the file of a dropped overlay after the removal of dropped overlays, and the file
//! would stay. Calls of `docker` are independent; only their number is limited.

use std::collections::BTreeSet;
use std::sync::Arc;

use overlay_engine::agent::{Agent, Event};
use overlay_linux::cni::{self, CniDirectory};
use overlay_linux::docker::{self, Docker};
use overlay_types::addr::OverlayName;
use overlay_types::container_network::{CniNetwork, ContainerNetwork, DockerNetwork, NetworkKind};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::inbox::Inbox;

/// Number of concurrent calls of `docker`. The agent verifies all networks at the same moment, each
/// call is a process of some tens of MB, and the Docker daemon creates networks one by one. The
/// timeout of a call starts when the call starts, not while it is queued.
const DOCKER_CALLS: usize = 4;

/// A job in the CNI directory. The number of queued jobs is bounded by the number of networks,
/// because the agent starts one attempt of a network at a time.
enum CniJob {
    Write { attempt: u64, network: CniNetwork },
    Retain(BTreeSet<OverlayName>),
}

/// The container networks of one agent.
pub(super) struct ContainerNetworks {
    inbox: Inbox<Agent>,
    cni_jobs: mpsc::UnboundedSender<CniJob>,
    docker: Arc<Docker>,
    docker_calls: Arc<Semaphore>,
    /// The running tasks, which end when this is dropped.
    tasks: JoinSet<()>,
}

impl ContainerNetworks {
    /// Starts the task of the CNI directory. Must be called within a tokio runtime.
    pub(super) fn new(cni: CniDirectory, docker: Docker, inbox: Inbox<Agent>) -> Self {
        let (cni_jobs, jobs) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(run_cni_jobs(Arc::new(cni), jobs, inbox.clone()));
        Self {
            inbox,
            cni_jobs,
            docker: Arc::new(docker),
            docker_calls: Arc::new(Semaphore::new(DOCKER_CALLS)),
            tasks,
        }
    }

    /// Frees the handles of ended tasks.
    pub(super) fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Starts an attempt. The result is an event.
    pub(super) fn apply(&mut self, attempt: u64, network: ContainerNetwork) {
        match network {
            ContainerNetwork::Cni(network) => self.queue(CniJob::Write { attempt, network }),
            ContainerNetwork::Docker(network) => self.apply_docker(attempt, network),
        }
    }

    /// Removes the managed CNI configurations of all other overlays.
    pub(super) fn retain_cni(&self, overlays: BTreeSet<OverlayName>) {
        self.queue(CniJob::Retain(overlays));
    }

    /// Removes the managed Docker networks of all other overlays, unless a container uses them. The
    /// result is an event.
    pub(super) fn retain_docker(&mut self, overlays: BTreeSet<OverlayName>) {
        let inbox = self.inbox.clone();
        let docker = Arc::clone(&self.docker);
        let calls = Arc::clone(&self.docker_calls);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = calls.acquire().await;
            let mut call = JoinSet::new();
            call.spawn(async move { remove_docker(&docker, &overlays).await });
            let result = match call.join_next().await {
                Some(Ok(result)) => result,
                Some(Err(error)) => Err(error.to_string()),
                None => return,
            };
            inbox.send(Event::Removed(result)).await;
        });
    }

    fn queue(&self, job: CniJob) {
        if self.cni_jobs.send(job).is_err() {
            log::error!(
                "the task of the CNI directory has ended, which is a defect: restart the agent"
            );
        }
    }

    fn apply_docker(&mut self, attempt: u64, network: DockerNetwork) {
        let inbox = self.inbox.clone();
        let docker = Arc::clone(&self.docker);
        let calls = Arc::clone(&self.docker_calls);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = calls.acquire().await;
            let overlay = network.name.clone();
            // A separate task, so that a panic becomes a result: the agent waits for a result. The
            // task and its `docker` process end when the set is dropped.
            let mut call = JoinSet::new();
            call.spawn(async move { ensure_docker(&docker, &network).await });
            let result = match call.join_next().await {
                Some(Ok(result)) => result,
                Some(Err(error)) => Err(format!("create the docker network: {error}")),
                None => return,
            };
            inbox
                .send(Event::Applied { attempt, overlay, kind: NetworkKind::Docker, result })
                .await;
        });
    }
}

async fn ensure_docker(docker: &Docker, network: &DockerNetwork) -> Result<(), String> {
    let outcome = docker.ensure(network).await.map_err(|error| error.to_string())?;
    if outcome != docker::Outcome::Unchanged {
        log::info!("overlay {}: created the docker network", network.name);
    }
    Ok(())
}

async fn remove_docker(
    docker: &Docker,
    overlays: &BTreeSet<OverlayName>,
) -> Result<Vec<String>, String> {
    let removal = docker.remove_stale(overlays).await.map_err(|reason| reason.to_string())?;
    for name in removal.removed {
        log::info!("removed the docker network of {name}: no longer assigned");
    }
    Ok(removal.kept.iter().map(ToString::to_string).collect())
}

async fn run_cni_jobs(
    cni: Arc<CniDirectory>,
    mut jobs: mpsc::UnboundedReceiver<CniJob>,
    inbox: Inbox<Agent>,
) {
    while let Some(job) = jobs.recv().await {
        let cni = Arc::clone(&cni);
        match job {
            CniJob::Write { attempt, network } => {
                let overlay = network.name.clone();
                let written = tokio::task::spawn_blocking(move || write_cni(&cni, &network)).await;
                let result = written
                    .unwrap_or_else(|error| Err(format!("write the cni configuration: {error}")));
                let kind = NetworkKind::Cni;
                inbox.send(Event::Applied { attempt, overlay, kind, result }).await;
            }
            CniJob::Retain(overlays) => {
                let removed =
                    tokio::task::spawn_blocking(move || remove_cni(&cni, &overlays)).await;
                if let Err(error) = removed {
                    log::error!("remove the cni configurations of other overlays: {error}");
                }
            }
        }
    }
}

fn write_cni(cni: &CniDirectory, network: &CniNetwork) -> Result<(), String> {
    let outcome = cni.write(network).map_err(|error| error.to_string())?;
    if outcome != cni::Outcome::Unchanged {
        log::info!("overlay {}: wrote the cni configuration", network.name);
    }
    Ok(())
}

fn remove_cni(cni: &CniDirectory, overlays: &BTreeSet<OverlayName>) {
    let removal = cni.remove_stale(overlays);
    for name in removal.removed {
        log::info!("removed the cni configuration of {name}: no longer assigned");
    }
    for error in removal.failed {
        log::warn!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::Duration;

    use overlay_types::addr::{DeviceName, Mtu};

    use super::super::Metrics;
    use super::super::inbox::Input;
    use super::*;

    /// Returns networks with files in `directory` and a shell script as `docker`, and the receiver
    /// of their events.
    fn networks(
        directory: &Path,
        script: &str,
    ) -> (ContainerNetworks, mpsc::Receiver<Input<Agent>>) {
        let program = directory.join("docker");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let cni = CniDirectory::new(directory.join("cni"), None, Vec::new(), true);
        let (inbox, receiver) = Inbox::new(Metrics::new());
        let docker = Docker::new(program, Duration::from_secs(20));
        (ContainerNetworks::new(cni, docker, inbox), receiver)
    }

    fn bridge() -> DeviceName {
        "m-a".parse().unwrap()
    }

    async fn applied(receiver: &mut mpsc::Receiver<Input<Agent>>) -> Result<(), String> {
        match receiver.recv().await {
            Some(Input::Event(Event::Applied { result, .. })) => result,
            _ => panic!("no result of an attempt"),
        }
    }

    #[tokio::test]
    async fn cni_jobs_run_in_order_of_commands() {
        let directory = tempfile::tempdir().unwrap();
        let (mut networks, mut receiver) = networks(directory.path(), "exit 1");
        let network = |name: &str| CniNetwork {
            name: name.parse().unwrap(),
            bridge: bridge(),
            subnet: "192.168.1.0/25".parse().unwrap(),
            mtu: Mtu::OVERLAY_DEFAULT,
        };
        // Two assignments in quick succession. The second assignment does not contain overlay a.
        networks.apply(1, ContainerNetwork::Cni(network("a")));
        networks.retain_cni(BTreeSet::from(["b".parse().unwrap()]));
        networks.apply(2, ContainerNetwork::Cni(network("b")));
        assert_eq!(applied(&mut receiver).await, Ok(()));
        assert_eq!(applied(&mut receiver).await, Ok(()));
        let files = fs::read_dir(directory.path().join("cni")).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names, ["b.conf"]);
    }

    #[tokio::test]
    async fn concurrent_docker_calls_are_limited() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let file = log.display();
        let script = format!("echo + >>{file}; sleep 0.05; echo - >>{file}; exit 1");
        let (mut networks, mut receiver) = networks(directory.path(), &script);
        for attempt in 1..=12 {
            networks.apply(
                attempt,
                ContainerNetwork::Docker(DockerNetwork {
                    name: "a".parse().unwrap(),
                    bridge: bridge(),
                    subnet: Some("192.168.1.128/25".parse().unwrap()),
                    subnet6: None,
                    mtu: Mtu::OVERLAY_DEFAULT,
                }),
            );
        }
        for _ in 1..=12 {
            assert!(applied(&mut receiver).await.is_err(), "the script always fails");
        }
        let (mut running, mut peak) = (0, 0);
        for line in fs::read_to_string(&log).unwrap().lines() {
            running = if line == "+" { running + 1 } else { running - 1 };
            peak = peak.max(running);
        }
        assert!(running == 0 && peak <= DOCKER_CALLS, "{peak} concurrent calls");
    }
}

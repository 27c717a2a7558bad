//! Makes the container networks of an agent, and tells it what became of each attempt.
//!
//! Everything in the CNI directory is done by one task in the order in which the agent wanted it.
//! Side by side, a file that was to be written before its overlay was dropped could appear after
//! the removal of all that is dropped, and stay. Calls of `docker` are independent of each other;
//! only their number is limited.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::inbox::Inbox;
use crate::addr::OverlayName;
use crate::agent::{Agent, CniNetwork, ContainerNetwork, DockerNetwork, Event, NetworkKind};
use crate::cni::{self, CniDirectory};
use crate::docker::{self, Docker};

/// Calls of `docker` at a time. The networks of an agent are verified at the same moment, and each
/// call is a process of some tens of MB in front of a daemon that makes one network after the
/// other. The time that a call may take begins when it is its turn.
const DOCKER_CALLS: usize = 4;

/// What is to be done in the CNI directory. There is no more of it than there are networks: a
/// network is tried once at a time.
enum CniJob {
    Write { attempt: u64, network: CniNetwork },
    Retain(BTreeSet<OverlayName>),
}

/// The container networks of one agent.
pub(super) struct Networks {
    inbox: Inbox<Agent>,
    cni_jobs: mpsc::UnboundedSender<CniJob>,
    docker: Arc<Docker>,
    docker_calls: Arc<Semaphore>,
    /// Whatever is under way; ends with this.
    tasks: JoinSet<()>,
}

impl Networks {
    /// To be called within a tokio runtime.
    pub(super) fn new(cni: CniDirectory, docker: Docker, inbox: Inbox<Agent>) -> Self {
        let (cni_jobs, jobs) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(work_on_cni(Arc::new(cni), jobs, inbox.clone()));
        Self {
            inbox,
            cni_jobs,
            docker: Arc::new(docker),
            docker_calls: Arc::new(Semaphore::new(DOCKER_CALLS)),
            tasks,
        }
    }

    /// Forgets what has ended.
    pub(super) fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Starts an attempt. Its end is an event.
    pub(super) fn apply(&mut self, attempt: u64, network: ContainerNetwork) {
        match network {
            ContainerNetwork::Cni(network) => self.queue(CniJob::Write { attempt, network }),
            ContainerNetwork::Docker(network) => self.apply_docker(attempt, network),
        }
    }

    /// Removes the CNI configurations that are ours and not of these overlays.
    pub(super) fn retain_cni(&self, wanted: BTreeSet<OverlayName>) {
        self.queue(CniJob::Retain(wanted));
    }

    /// Removes the Docker networks that are ours, not of these overlays, and of no container. Its
    /// end is an event.
    pub(super) fn retain_docker(&mut self, wanted: BTreeSet<OverlayName>) {
        let inbox = self.inbox.clone();
        let docker = Arc::clone(&self.docker);
        let calls = Arc::clone(&self.docker_calls);
        self.tasks.spawn(async move {
            let _turn = calls.acquire().await;
            let mut call = JoinSet::new();
            call.spawn(async move { remove_docker(&docker, &wanted).await });
            let result = match call.join_next().await {
                Some(Ok(result)) => result,
                Some(Err(error)) => Err(error.to_string()),
                None => return,
            };
            inbox.tell(Event::Removed(result)).await;
        });
    }

    fn queue(&self, job: CniJob) {
        if self.cni_jobs.send(job).is_err() {
            log::error!("nothing is done in the CNI directory any more: this is a defect");
        }
    }

    fn apply_docker(&mut self, attempt: u64, network: DockerNetwork) {
        let inbox = self.inbox.clone();
        let docker = Arc::clone(&self.docker);
        let calls = Arc::clone(&self.docker_calls);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let _turn = calls.acquire().await;
            let overlay = network.name.clone();
            // A task of its own, so that a panic is a result as well: the agent waits for one. It
            // ends with the set, and `docker` with it.
            let mut call = JoinSet::new();
            call.spawn(async move { ensure_docker(&docker, &network).await });
            let result = match call.join_next().await {
                Some(Ok(result)) => result,
                Some(Err(error)) => Err(format!("make the docker network: {error}")),
                None => return,
            };
            inbox
                .tell(Event::Applied { attempt, overlay, kind: NetworkKind::Docker, result })
                .await;
        });
    }
}

async fn ensure_docker(docker: &Docker, network: &DockerNetwork) -> Result<(), String> {
    let outcome = docker.ensure(network).await.map_err(|error| error.to_string())?;
    if outcome != docker::Outcome::Unchanged {
        log::info!("overlay {}: made the docker network", network.name);
    }
    Ok(())
}

async fn remove_docker(
    docker: &Docker,
    wanted: &BTreeSet<OverlayName>,
) -> Result<Vec<String>, String> {
    let removal = docker.remove_unwanted(wanted).await.map_err(|reason| reason.to_string())?;
    for name in removal.removed {
        log::info!("removed the docker network of {name}: no longer assigned");
    }
    Ok(removal.kept.iter().map(ToString::to_string).collect())
}

async fn work_on_cni(
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
                inbox.tell(Event::Applied { attempt, overlay, kind, result }).await;
            }
            CniJob::Retain(wanted) => {
                let removed = tokio::task::spawn_blocking(move || remove_cni(&cni, &wanted)).await;
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

fn remove_cni(cni: &CniDirectory, wanted: &BTreeSet<OverlayName>) {
    let removal = cni.remove_unwanted(wanted);
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

    use super::super::Metrics;
    use super::super::inbox::Input;
    use super::*;
    use crate::addr::{DeviceName, Mtu};

    /// The networks with files in `directory` and a `docker` that is a shell script, and what they
    /// tell.
    fn networks(directory: &Path, script: &str) -> (Networks, mpsc::Receiver<Input<Agent>>) {
        let program = directory.join("docker");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let cni = CniDirectory::new(directory.join("cni"), None, Vec::new(), true);
        let (inbox, receiver) = Inbox::new(Metrics::new());
        let docker = Docker::new(program, Duration::from_secs(20));
        (Networks::new(cni, docker, inbox), receiver)
    }

    fn bridge() -> DeviceName {
        "m-a".parse().unwrap()
    }

    async fn applied(receiver: &mut mpsc::Receiver<Input<Agent>>) -> Result<(), String> {
        match receiver.recv().await {
            Some(Input::Event(Event::Applied { result, .. })) => result,
            _ => panic!("no attempt has ended"),
        }
    }

    #[tokio::test]
    async fn a_configuration_is_removed_after_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let (mut networks, mut receiver) = networks(directory.path(), "exit 1");
        let network = |name: &str| CniNetwork {
            name: name.parse().unwrap(),
            bridge: bridge(),
            subnet: "192.168.1.0/25".parse().unwrap(),
            mtu: Mtu::OVERLAY_DEFAULT,
        };
        // Two assignments that follow each other at once: the second has no overlay a.
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
    async fn few_calls_of_docker_run_at_a_time() {
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
            assert!(applied(&mut receiver).await.is_err(), "the script succeeds in nothing");
        }
        let (mut now, mut most) = (0, 0);
        for line in fs::read_to_string(&log).unwrap().lines() {
            now = if line == "+" { now + 1 } else { now - 1 };
            most = most.max(now);
        }
        assert!(now == 0 && most <= DOCKER_CALLS, "{most} at a time");
    }
}

//! Creates and removes the container networks of an agent, and sends the result of each attempt.
//!
//! One task executes all jobs in the CNI directory, in the order of the commands. Concurrent jobs
//! could write the file of a dropped overlay after the removal of dropped overlays, and the file
//! would stay. Calls of `docker` are independent; only their number is limited.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlay_engine::agent::{Agent, Event, FoundNetworks, NetworkDetails, Scope, has_named_subnet};
use overlay_linux::cni::{self, CniDirectory};
use overlay_linux::dataplane::LinkBuilder;
use overlay_linux::docker::{self, Docker, DockerError, DockerFailure};
use overlay_types::addr::{DeviceName, OverlayName, Subnet};
use overlay_types::advice::Command;
use overlay_types::container_network::{CniNetwork, ContainerNetwork, DockerNetwork, NetworkKind};
use overlay_types::tunnel::Desired;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::address_counter::AddressCounter;
use super::inbox::Inbox;

/// Number of concurrent calls of `docker`. The agent verifies all networks at the same moment, each
/// call is a process of some tens of MB, and the Docker daemon creates networks one by one. The
/// timeout of a call starts when the call starts, not while it is queued.
const DOCKER_CALLS: usize = 4;

/// Interval of the connections to the socket of a Docker daemon that does not run.
const DOCKER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between two looks at a bridge that was added for a Docker network. The agent looks at
/// the host at most twice a second.
const BRIDGE_INTERVAL: Duration = Duration::from_millis(600);

/// A job in the CNI directory. The number of queued jobs is bounded by the number of networks,
/// because the agent starts one attempt of a network at a time.
enum CniJob {
    Write { attempt: u64, network: CniNetwork },
    Retain(BTreeSet<OverlayName>),
    Remove(FoundNetworks),
    Find,
}

/// The Docker networks that a removal removes.
enum DockerRemoval {
    /// All managed networks except those of these overlays.
    Except(BTreeSet<OverlayName>),
    /// The managed networks of these overlays with these subnets.
    Only(FoundNetworks),
}

/// The container networks of one agent.
pub(super) struct ContainerNetworks {
    inbox: Inbox<Agent>,
    cni_jobs: mpsc::UnboundedSender<CniJob>,
    docker: Arc<Docker>,
    docker_calls: Arc<Semaphore>,
    /// Whether the Docker networks of the host belong to this agent.
    manages_docker: bool,
    addresses: AddressCounter,
    /// Whether a task waits for the start of the Docker daemon.
    is_waiting_for_docker: Arc<AtomicBool>,
    /// The running tasks, which end when this is dropped.
    tasks: JoinSet<()>,
}

impl ContainerNetworks {
    /// Starts the task of the CNI directory. Must be called within a tokio runtime.
    pub(super) fn new(
        cni: CniDirectory,
        docker: Docker,
        manages_docker: bool,
        inbox: Inbox<Agent>,
    ) -> Self {
        let (cni_jobs, jobs) = mpsc::unbounded_channel();
        let own_docker = manages_docker.then(|| docker.clone());
        let addresses = AddressCounter::new(cni.leases(), own_docker, inbox.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(run_cni_jobs(Arc::new(cni), jobs, inbox.clone()));
        Self {
            inbox,
            cni_jobs,
            docker: Arc::new(docker),
            docker_calls: Arc::new(Semaphore::new(DOCKER_CALLS)),
            manages_docker,
            addresses,
            is_waiting_for_docker: Arc::default(),
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

    /// Counts the addresses of containers. The result is an event.
    pub(super) fn count_addresses(
        &mut self,
        attempt: u64,
        desired: Arc<Desired>,
        with_names: bool,
    ) {
        self.addresses.count(attempt, desired, with_names);
    }

    /// Removes the managed CNI configurations of all other overlays.
    pub(super) fn retain_cni(&self, overlays: BTreeSet<OverlayName>) {
        self.queue(CniJob::Retain(overlays));
    }

    /// Removes the managed CNI configurations of these overlays with these subnets, and lists the
    /// rest.
    pub(super) fn remove_cni(&self, overlays: FoundNetworks) {
        self.queue(CniJob::Remove(overlays));
    }

    /// Lists the managed networks. The results are events.
    pub(super) fn find(&mut self) {
        self.queue(CniJob::Find);
        if self.manages_docker {
            let (docker, inbox) = (Arc::clone(&self.docker), self.inbox.clone());
            let calls = Arc::clone(&self.docker_calls);
            self.tasks.spawn(async move {
                // The semaphore is never closed.
                let _permit = calls.acquire().await;
                find_docker(&docker, &inbox).await;
            });
        }
    }

    /// Removes the managed Docker networks of all other overlays, unless a container uses them. The
    /// result is an event.
    pub(super) fn retain_docker(&mut self, overlays: BTreeSet<OverlayName>) {
        self.remove_docker_networks(DockerRemoval::Except(overlays));
    }

    /// Removes the managed Docker networks of these overlays with these subnets, unless a container
    /// uses them, and lists the rest. The results are events.
    pub(super) fn remove_docker(&mut self, overlays: FoundNetworks) {
        self.remove_docker_networks(DockerRemoval::Only(overlays));
    }

    fn remove_docker_networks(&mut self, removal: DockerRemoval) {
        let inbox = self.inbox.clone();
        let docker = Arc::clone(&self.docker);
        let calls = Arc::clone(&self.docker_calls);
        let is_waiting = Arc::clone(&self.is_waiting_for_docker);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let permit = calls.acquire().await;
            let lists_rest = matches!(removal, DockerRemoval::Only(_));
            let mut call = JoinSet::new();
            let engine = Arc::clone(&docker);
            call.spawn(async move { remove_docker(&engine, &removal).await });
            let (result, is_down) = match call.join_next().await {
                Some(Ok(result)) => {
                    let is_down = matches!(result, Err(DockerFailure::NotRunning { .. }));
                    (result.map_err(|reason| reason.to_string()), is_down)
                }
                Some(Err(error)) => (Err(error.to_string()), false),
                None => return,
            };
            inbox.send(Event::Removed(result)).await;
            if lists_rest {
                find_docker(&docker, &inbox).await;
            }
            drop(permit);
            if is_down {
                wait_for_docker(&docker, &is_waiting, &inbox).await;
            }
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
        let is_waiting = Arc::clone(&self.is_waiting_for_docker);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let permit = calls.acquire().await;
            let overlay = network.name.clone();
            // A separate task, so that a panic becomes a result: the agent waits for a result. The
            // task and its `docker` process end when the set is dropped.
            let mut call = JoinSet::new();
            let engine = Arc::clone(&docker);
            let events = inbox.clone();
            call.spawn(async move { ensure_docker(&engine, &network, &events).await });
            let (result, is_down) = match call.join_next().await {
                Some(Ok(result)) => {
                    let reason = result.as_ref().err().map(|error| &error.reason);
                    let is_down = matches!(reason, Some(DockerFailure::NotRunning { .. }));
                    (result.map_err(|error| error.to_string()), is_down)
                }
                Some(Err(error)) => (Err(format!("create the docker network: {error}")), false),
                None => return,
            };
            let (note, result) = match result {
                Ok(note) => (note, Ok(())),
                Err(reason) => (None, Err(reason)),
            };
            let (kind, details) = (NetworkKind::Docker, NetworkDetails { note, plugin: None });
            inbox.send(Event::Applied { attempt, overlay, kind, details, result }).await;
            drop(permit);
            if is_down {
                wait_for_docker(&docker, &is_waiting, &inbox).await;
            }
        });
    }
}

/// Waits until the Docker daemon accepts connections, and sends an event. One task waits at a time.
async fn wait_for_docker(docker: &Docker, is_waiting: &AtomicBool, inbox: &Inbox<Agent>) {
    if is_waiting.swap(true, Ordering::SeqCst) {
        return;
    }
    // If a daemon listens already, the `docker` program uses another one, or the daemon accepts no
    // requests yet: the retries of the networks find it.
    if docker.is_listening().await == Some(false) {
        while docker.is_listening().await == Some(false) {
            tokio::time::sleep(DOCKER_CHECK_INTERVAL).await;
        }
        log::info!("the docker daemon has started: trying its networks again");
        is_waiting.store(false, Ordering::SeqCst);
        inbox.send(Event::DockerStarted).await;
    }
    is_waiting.store(false, Ordering::SeqCst);
}

/// Creates or compares a network. Returns what the operator should know about an existing one.
async fn ensure_docker(
    docker: &Docker,
    network: &DockerNetwork,
    inbox: &Inbox<Agent>,
) -> Result<Option<String>, DockerError> {
    let outcome = match docker.ensure(network).await {
        Err(DockerError { reason: DockerFailure::BridgeMissing { bridge, running }, .. })
            if running.is_empty() && add_bridge(&bridge).await =>
        {
            log::warn!(
                "overlay {}: added bridge {bridge} again: it was removed, and stopped containers \
                 use its docker network",
                network.name
            );
            configure_bridge(inbox).await;
            docker::Outcome::Recreated
        }
        outcome => {
            let outcome = outcome?;
            if matches!(outcome, docker::Outcome::Created | docker::Outcome::Recreated) {
                log::info!("overlay {}: created the docker network", network.name);
            }
            outcome
        }
    };
    match outcome {
        docker::Outcome::Unchanged => {}
        docker::Outcome::Created | docker::Outcome::Recreated => {
            report_remade(&network.name, NetworkKind::Docker, inbox).await;
        }
        docker::Outcome::SmallerMtu(found) => {
            let DockerNetwork { name, mtu, .. } = network;
            return Ok(Some(format!(
                "docker network {name} keeps an MTU of {found} instead of {mtu}: to change it, \
                 stop its containers and run {}, then the agent creates it again",
                Command::remove_docker_network(name)
            )));
        }
    }
    Ok(None)
}

/// Lets the dataplane configure a new bridge: its first look leaves the bridge to its maker.
async fn configure_bridge(inbox: &Inbox<Agent>) {
    for _ in 0..2 {
        tokio::time::sleep(BRIDGE_INTERVAL).await;
        inbox.send(Event::Drifted(Scope::Kernel)).await;
    }
}

/// Adds a bridge, which the dataplane configures. Returns whether that succeeded: the failure that
/// named the missing bridge stays otherwise.
async fn add_bridge(name: &DeviceName) -> bool {
    let name = name.clone();
    let added = tokio::task::spawn_blocking(move || LinkBuilder::open()?.add_bridge(&name)).await;
    match added {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            log::warn!("{error}");
            false
        }
        Err(error) => {
            log::error!("add a bridge: {error}");
            false
        }
    }
}

async fn report_remade(overlay: &OverlayName, kind: NetworkKind, inbox: &Inbox<Agent>) {
    inbox.send(Event::Remade { overlay: overlay.clone(), kind }).await;
}

async fn remove_docker(
    docker: &Docker,
    removal: &DockerRemoval,
) -> Result<Vec<String>, DockerFailure> {
    let (removal, reason) = match removal {
        DockerRemoval::Except(overlays) => {
            (docker.remove_stale(overlays).await?, "no longer assigned")
        }
        DockerRemoval::Only(overlays) => {
            let named = still_named(docker.subnets().await?, overlays);
            (docker.remove_overlays(&named).await?, "another agent has its subnet")
        }
    };
    for name in removal.removed {
        log::info!("removed the docker network of {name}: {reason}");
    }
    Ok(removal.kept.iter().map(ToString::to_string).collect())
}

/// Returns the overlays whose networks on the host have a named subnet. Since the agent ordered the
/// removal, an assignment may have replaced a network.
fn still_named(found: FoundNetworks, named: &FoundNetworks) -> BTreeSet<OverlayName> {
    let is_named = |overlay: &OverlayName, subnets: &[Subnet]| {
        named.get(overlay).is_some_and(|named| has_named_subnet(subnets, named))
    };
    let found = found.into_iter().filter(|(overlay, subnets)| is_named(overlay, subnets));
    found.map(|(overlay, _)| overlay).collect()
}

async fn find_docker(docker: &Docker, inbox: &Inbox<Agent>) {
    let networks = docker.subnets().await.map_err(|reason| reason.to_string());
    inbox.send(Event::FoundNetworks { kind: NetworkKind::Docker, networks }).await;
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
                let (is_written, details, result) = match result {
                    Ok((is_written, details)) => (is_written, details, Ok(())),
                    Err(reason) => (false, NetworkDetails::default(), Err(reason)),
                };
                if is_written {
                    report_remade(&overlay, kind, &inbox).await;
                }
                inbox.send(Event::Applied { attempt, overlay, kind, details, result }).await;
            }
            CniJob::Retain(overlays) => {
                let removed = run_cni_job(cni, move |cni| remove_other_cni(cni, &overlays)).await;
                inbox.send(Event::CniRemoved(removed.unwrap_or_else(|error| vec![error]))).await;
            }
            CniJob::Remove(overlays) => {
                let job = Arc::clone(&cni);
                let removed = run_cni_job(job, move |cni| remove_cni(cni, &overlays)).await;
                inbox.send(Event::CniRemoved(removed.unwrap_or_else(|error| vec![error]))).await;
                find_cni(cni, &inbox).await;
            }
            CniJob::Find => find_cni(cni, &inbox).await,
        }
    }
}

/// Runs a job on a thread for blocking work.
///
/// # Errors
/// A sentence if the job panicked, which is a defect.
async fn run_cni_job<T: Send + 'static>(
    cni: Arc<CniDirectory>,
    job: impl FnOnce(&CniDirectory) -> T + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(move || job(&cni)).await;
    done.map_err(|error| format!("work in the directory of CNI configurations: {error}"))
}

async fn find_cni(cni: Arc<CniDirectory>, inbox: &Inbox<Agent>) {
    let found = run_cni_job(cni, |cni| cni.subnets().map_err(|error| error.to_string())).await;
    let (kind, networks) = (NetworkKind::Cni, found.and_then(|networks| networks));
    inbox.send(Event::FoundNetworks { kind, networks }).await;
}

/// Writes a configuration unless it exists. Returns whether it was written, and what it names.
fn write_cni(cni: &CniDirectory, network: &CniNetwork) -> Result<(bool, NetworkDetails), String> {
    let outcome = cni.write(network).map_err(|error| error.to_string())?;
    let name = &network.name;
    let plugin = cni.plugin();
    let is_written = outcome != cni::Outcome::Unchanged;
    if is_written {
        log::info!("overlay {name}: wrote the cni configuration, which names the plugin {plugin}");
    }
    let note = cni.plugin_problem().map(|problem| format!("overlay {name}: {problem}"));
    Ok((is_written, NetworkDetails { note, plugin: Some(plugin) }))
}

/// Removes the managed configurations of all other overlays. Returns why some remain.
fn remove_other_cni(cni: &CniDirectory, overlays: &BTreeSet<OverlayName>) -> Vec<String> {
    let removal = cni.remove_stale(overlays);
    for name in removal.removed {
        log::info!("removed the cni configuration of {name}: no longer assigned");
    }
    removal.failed.iter().map(ToString::to_string).collect()
}

/// Removes the managed configurations of these overlays with these subnets. Returns why some remain.
fn remove_cni(cni: &CniDirectory, overlays: &FoundNetworks) -> Vec<String> {
    let found = match cni.subnets() {
        Ok(found) => found,
        Err(error) => return vec![error.to_string()],
    };
    let mut failures = Vec::new();
    for overlay in &still_named(found, overlays) {
        match cni.remove(overlay) {
            Ok(()) => log::info!(
                "removed the cni configuration of {overlay}: another agent has its subnet"
            ),
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use overlay_types::addr::Mtu;

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
        (ContainerNetworks::new(cni, docker, true, inbox), receiver)
    }

    fn bridge() -> DeviceName {
        "m-a".parse().unwrap()
    }

    async fn applied(receiver: &mut mpsc::Receiver<Input<Agent>>) -> Result<(), String> {
        loop {
            match receiver.recv().await {
                Some(Input::Event(Event::Applied { result, .. })) => return result,
                Some(_) => {}
                None => panic!("no result of an attempt"),
            }
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
            subnet6: None,
            docker_subnets: Vec::new(),
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

    async fn next_event(receiver: &mut mpsc::Receiver<Input<Agent>>) -> Event {
        match receiver.recv().await {
            Some(Input::Event(event)) => event,
            _ => panic!("no event"),
        }
    }

    #[tokio::test]
    async fn networks_of_other_agents_are_removed_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (mut networks, mut receiver) = networks(directory.path(), "exit 1");
        for (name, subnet) in [("a", "192.168.1.0/25"), ("b", "192.168.2.0/25")] {
            let network = CniNetwork {
                name: name.parse().unwrap(),
                bridge: format!("m-{name}").parse().unwrap(),
                subnet: subnet.parse().unwrap(),
                subnet6: None,
                docker_subnets: Vec::new(),
                mtu: Mtu::OVERLAY_DEFAULT,
            };
            networks.apply(1, ContainerNetwork::Cni(network));
            assert_eq!(applied(&mut receiver).await, Ok(()));
        }
        let named = |overlay: &str, subnet: &str| {
            FoundNetworks::from([(overlay.parse().unwrap(), vec![subnet.parse().unwrap()])])
        };
        // The network has another subnet by now.
        networks.remove_cni(named("a", "192.168.3.0/24"));
        assert_eq!(next_event(&mut receiver).await, Event::CniRemoved(Vec::new()));
        match next_event(&mut receiver).await {
            Event::FoundNetworks { networks: Ok(found), .. } => assert_eq!(found.len(), 2),
            other => panic!("{other}"),
        }
        // The name of an assigned subnet covers both of its halves.
        networks.remove_cni(named("a", "192.168.1.0/24"));
        assert_eq!(next_event(&mut receiver).await, Event::CniRemoved(Vec::new()));
        let found = [("b".parse().unwrap(), vec!["192.168.2.0/25".parse().unwrap()])];
        let (kind, expected) = (NetworkKind::Cni, Ok(found.into()));
        assert_eq!(
            next_event(&mut receiver).await,
            Event::FoundNetworks { kind, networks: expected }
        );
        // A directory that cannot be read is no empty directory.
        let cni = directory.path().join("cni");
        fs::remove_dir_all(&cni).unwrap();
        fs::write(&cni, "").unwrap();
        networks.retain_cni(BTreeSet::new());
        match next_event(&mut receiver).await {
            Event::CniRemoved(failures) => {
                assert!(failures[0].contains("Not a directory"), "{failures:?}");
            }
            other => panic!("{other}"),
        }
        networks.find();
        for _ in 0..2 {
            match next_event(&mut receiver).await {
                Event::FoundNetworks { networks: Err(_), .. } => {}
                other => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn started_docker_daemon_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let program = directory.path().join("docker");
        let message = "Cannot connect to the Docker daemon. Is the docker daemon running?";
        fs::write(&program, format!("#!/bin/sh\necho '{message}' >&2; exit 1\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let cni = CniDirectory::new(directory.path().join("cni"), None, Vec::new(), true);
        let (inbox, mut receiver) = Inbox::new(Metrics::new());
        let docker = Docker::new(program, Duration::from_secs(20));
        let docker = docker.with_host(&format!("unix://{}", socket.display()));
        let mut networks = ContainerNetworks::new(cni, docker, true, inbox);
        networks.retain_docker(BTreeSet::new());
        assert!(matches!(next_event(&mut receiver).await, Event::Removed(Err(_))));
        tokio::time::sleep(DOCKER_CHECK_INTERVAL / 2).await;
        let _daemon = tokio::net::UnixListener::bind(&socket).unwrap();
        let event = tokio::time::timeout(DOCKER_CHECK_INTERVAL * 5, next_event(&mut receiver));
        assert_eq!(event.await, Ok(Event::DockerStarted));
    }
}

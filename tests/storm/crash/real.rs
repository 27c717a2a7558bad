//! Real agent processes, which are killed and restarted, and the CNI files that they write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use overlay_types::protocol::{Assignment, State};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::super::assignment_checker::AssignmentChecker;
use super::super::master_process::send_request;

/// Network of the real agents. The simulated agents use addresses below.
const NETWORK: [u8; 3] = [127, 0, 7];
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The real agents. Dropping this value kills them.
pub(super) struct RealAgents {
    agents: Vec<RealAgent>,
    log: PathBuf,
}

struct RealAgent {
    address: SocketAddrV4,
    config: PathBuf,
    cni_dir: PathBuf,
    log: PathBuf,
    child: Child,
    /// The subnet of each overlay in the CNI files. A subnet never changes.
    subnets: BTreeMap<String, String>,
}

impl RealAgents {
    /// Starts `count` agents of a master. All of their files are in `dir`.
    pub(super) fn start(dir: &Path, master: &str, count: usize) -> Self {
        let log = dir.join("agents.log");
        let agent = |number: usize| {
            let [a, b, c] = NETWORK;
            let ip =
                Ipv4Addr::new(a, b, c, u8::try_from(number + 1).expect("fewer than 255 agents"));
            let port = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
            let port = port.expect("a port").port();
            let (address, cni_dir) = (SocketAddrV4::new(ip, port), dir.join(format!("cni-{ip}")));
            let config = dir.join(format!("agent-{ip}.json"));
            let content = json!({
                "master": master,
                "cni_dir": cni_dir,
                "network_config": { "docker_bridge": false },
                // All agents run on this host, so none may program its kernel.
                "dataplane": "external",
                "refuse_collisions": false,
            });
            fs::write(&config, content.to_string()).expect("a configuration");
            let child = spawn(&config, address, &log).expect("an agent starts");
            let (log, subnets) = (log.clone(), BTreeMap::new());
            RealAgent { address, config, cni_dir, log, child, subnets }
        };
        let agents = (0..count).map(agent).collect();
        Self { agents, log }
    }

    /// Kills an agent, and starts the agent again.
    pub(super) fn crash(&mut self, index: usize) -> Result<(), String> {
        let agent = &mut self.agents[index];
        agent.kill();
        agent.child = spawn(&agent.config, agent.address, &agent.log)?;
        Ok(())
    }

    /// Waits until the master has acknowledged all real agents.
    pub(super) async fn all_acknowledged(&self, limit: Duration) -> Result<(), String> {
        for agent in &self.agents {
            let mut last = Ok(Value::Null);
            let acknowledged = async {
                loop {
                    last = agent.health().await;
                    if last.as_ref().is_ok_and(|health| health["status"] == "ok") {
                        return;
                    }
                    sleep(POLL_INTERVAL).await;
                }
            };
            if timeout(limit, acknowledged).await.is_err() {
                return Err(format!(
                    "agent {} is not healthy after {limit:?}: {last:?}",
                    agent.address
                ));
            }
        }
        Ok(())
    }

    /// Records the assignments of the real agents that the master shows as sent.
    pub(super) fn record_assignments(&self, state: &State, checker: &mut AssignmentChecker) {
        let is_here = |ip| self.agents.iter().any(|agent| *agent.address.ip() == ip);
        for agent in state.agents.iter().filter(|agent| is_here(agent.ip)) {
            let overlays = agent.overlays.iter().cloned();
            let sent: Vec<_> =
                overlays.map(|overlay| Assignment { status: None, ..overlay }).collect();
            checker.check_assignment(agent.ip, &sent);
        }
    }

    /// Reads all CNI files. They must be complete, and no subnet may have changed.
    pub(super) fn check_files(&mut self) -> Result<(), String> {
        self.agents.iter_mut().try_for_each(RealAgent::check_files)
    }

    /// Checks that each agent has exactly the CNI files of the overlays that the master shows.
    pub(super) fn check_state(&mut self, state: &State) -> Result<(), String> {
        self.check_files()?;
        for agent in &self.agents {
            let ip = *agent.address.ip();
            let shown = state.agents.iter().find(|shown| shown.ip == ip);
            let shown = shown.ok_or_else(|| format!("the master does not show {ip}"))?;
            let subnets = shown.overlays.iter().filter_map(|overlay| {
                let subnet = overlay.mesos_bridge.as_ref()?.subnet?;
                Some((overlay.name().to_string(), subnet.to_string()))
            });
            let subnets: BTreeMap<_, _> = subnets.collect();
            if subnets.is_empty() || subnets != agent.subnets {
                let files = &agent.subnets;
                return Err(format!(
                    "{ip}: the master shows {subnets:?}, the files have {files:?}"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl RealAgent {
    async fn health(&self) -> Result<Value, String> {
        let body =
            send_request(self.address, "GET /overlay-agent/health", "application/json", "").await?;
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    fn check_files(&mut self) -> Result<(), String> {
        let Ok(entries) = fs::read_dir(&self.cni_dir) else { return Ok(()) };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut found = BTreeMap::new();
        for path in
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        {
            let fault = |reason: String| format!("{}: {reason}", path.display());
            let text = fs::read(&path).map_err(|error| fault(error.to_string()))?;
            let file: Value =
                serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
            // The delegate of the port mapper is a plain configuration as well.
            let bridge_config = file.get("delegate").unwrap_or(&file);
            match (file["name"].as_str(), bridge_config["ipam"]["subnet"].as_str()) {
                (Some(name), Some(subnet)) => found.insert(name.to_owned(), subnet.to_owned()),
                _ => return Err(fault(format!("{file} has no name or no subnet"))),
            };
        }
        if self.subnets.iter().any(|(name, subnet)| found.get(name) != Some(subnet)) {
            let (before, dir) = (&self.subnets, self.cni_dir.display());
            return Err(format!("{dir} had {before:?} and has {found:?}"));
        }
        self.subnets = found;
        Ok(())
    }

    fn kill(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(config: &Path, address: SocketAddrV4, log: &Path) -> Result<Child, String> {
    let failure = |error: std::io::Error| format!("start an agent: {error}");
    let log = File::options().create(true).append(true).open(log).map_err(failure)?;
    Command::new(env!("CARGO_BIN_EXE_mesos-overlay"))
        .args(["agent", "--log", "warn", "--listen", &address.to_string()])
        .args(["--config".as_ref(), config.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failure)
}

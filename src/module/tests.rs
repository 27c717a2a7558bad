//! A module as Mesos uses it, with a fake process that records sent messages.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use overlay_config::Environment;
use overlay_store::Log;
use overlay_types::addr::{Upid, master_upid};
use overlay_wire as wire;
use parking_lot::{Mutex, MutexGuard};
use tempfile::TempDir;

use super::http::RequestParts;
use super::parameters::Inputs;
use super::replicated_log::LogLocation;
use super::{Kind, Module};
use crate::http::MesosClient;
use crate::runtime::gateway::{Process, Responder};

/// Timeout for events that must happen.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
/// Limit of the time for which a module blocks a thread of Mesos at its end, on a busy machine.
const STOP_MAX: Duration = Duration::from_millis(250);
pub(super) const NETWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/network.json");

/// Serializes the tests: they share a process, which has one module of a kind.
pub(super) fn serialize() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock()
}

pub(super) fn inputs(parameters: &[(&str, &str)]) -> Inputs {
    let parameters =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Inputs { parameters, environment: Environment::default(), hostname: None }
}

pub(super) fn no_log(_: &LogLocation) -> Result<Arc<dyn Log>, String> {
    Err("no log".to_owned())
}

fn master(work_dir: &Path) -> Module {
    let inputs = inputs(&[("overlays", NETWORK), ("work_dir", work_dir.to_str().unwrap())]);
    Module::create(Kind::Master, &inputs, no_log).unwrap()
}

#[derive(Debug, PartialEq)]
pub(super) enum Sent {
    Message(Upid, &'static str, Vec<u8>),
    Link(Upid),
}

struct RecordingProcess(Sender<Sent>);

impl Process for RecordingProcess {
    fn send(&self, to: &Upid, name: &'static str, body: &[u8]) {
        self.0.send(Sent::Message(to.clone(), name, body.to_vec())).unwrap();
    }

    fn link(&self, to: &Upid) {
        self.0.send(Sent::Link(to.clone())).unwrap();
    }
}

pub(super) fn start(module: &Module) -> Receiver<Sent> {
    let (sender, sent) = mpsc::channel();
    module.start(Arc::new(RecordingProcess(sender)), "10.0.0.1:5050".parse().unwrap());
    sent
}

struct WaitingClient(Sender<Response<Bytes>>);

impl Responder for WaitingClient {
    fn respond(self: Box<Self>, response: Response<Bytes>) {
        self.0.send(response).unwrap();
    }
}

fn get_request(path: &str) -> RequestParts<'_> {
    RequestParts { method: "GET", path, query: Vec::new(), headers: Vec::new(), body: b"" }
}

fn client(principal: Option<&str>) -> MesosClient {
    let peer = "10.0.0.2:40000".parse().ok();
    MesosClient { peer, principal: principal.map(str::to_owned) }
}

pub(super) fn get(module: &Module, path: &str) -> Response<Bytes> {
    let (sender, answer) = mpsc::channel();
    module.request(get_request(path), client(None), Box::new(WaitingClient(sender)));
    answer.recv_timeout(TIMEOUT).unwrap()
}

/// Registers the agent 10.0.0.7, and returns the assignment from the master.
fn register(module: &Module, sent: &Receiver<Sent>) -> Vec<u8> {
    let agent = "overlay-agent@10.0.0.7:5051";
    let register = "mesos.modules.overlay.internal.RegisterAgentMessage";
    let options = overlay_types::protocol::AgentOptions::default();
    let (name, body) =
        wire::encode_message(&overlay_types::protocol::Message::RegisterAgent(options));
    assert_eq!(name, register);
    module.message(agent, name, &body);
    match sent.recv_timeout(TIMEOUT).unwrap() {
        Sent::Message(to, name, body) => {
            assert_eq!(to.to_string(), agent);
            assert_eq!(name, "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage");
            body
        }
        other @ Sent::Link(_) => panic!("the master does not link: {other:?}"),
    }
}

#[test]
fn restarted_master_sends_same_assignment() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    let sent = start(&module);
    let assignment = register(&module, &sent);
    let state = get(&module, "/overlay-master/state");
    assert_eq!(state.status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(state.body()).contains("10.0.0.7"));
    assert_eq!(get(&module, "/overlay-master/health").status(), StatusCode::OK);
    module.stop();
    drop(module);
    let module = master(directory.path());
    let sent = start(&module);
    assert_eq!(register(&module, &sent), assignment);
}

#[test]
fn stopped_module_sends_nothing() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    let sent = start(&module);
    register(&module, &sent);
    module.stop();
    module.message("overlay-agent@10.0.0.8:5051", wire::MESSAGE_NAMES[0], b"");
    module.exited("overlay-agent@10.0.0.7:5051");
    let (sender, answer) = mpsc::channel();
    let waiting = Box::new(WaitingClient(sender));
    module.request(get_request("/overlay-master/state"), client(None), waiting);
    assert!(answer.recv().is_err(), "the responder is dropped");
    assert!(sent.recv().is_err(), "the process is dropped");
    module.stop();
}

/// Blocks the thread of the module that responds, until the sender is dropped.
struct HangingClient(Sender<()>, Arc<Mutex<Receiver<()>>>);

impl Responder for HangingClient {
    fn respond(self: Box<Self>, _: Response<Bytes>) {
        let _ = self.0.send(());
        let _ = self.1.lock().recv_timeout(TIMEOUT);
    }
}

#[test]
fn stop_of_hanging_module_is_bounded() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    let sent = start(&module);
    register(&module, &sent);
    let (hung, hanging) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    // Both threads of the module hang, so that no timer of its runtime works.
    for _ in 0..2 {
        let responder = HangingClient(hung.clone(), Arc::clone(&released));
        let request = get_request("/overlay-master/state");
        module.request(request, client(None), Box::new(responder));
    }
    for _ in 0..2 {
        hanging.recv_timeout(TIMEOUT).unwrap();
    }
    let start = now();
    module.stop();
    let duration = start.elapsed();
    assert!(duration < STOP_MAX, "{duration:?}");
    // The process is released, although the threads of the module still hang.
    assert!(sent.try_iter().next().is_none());
    assert_eq!(sent.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    drop(release);
}

#[expect(clippy::disallowed_methods, reason = "the test measures a time limit")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[test]
fn module_without_ipv4_address_reports_failure() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    module.refuse_address("fd00::1");
    let is_attached = |module: &Module| {
        let mut is_attached = false;
        module.gateway().with_process(|_| is_attached = true);
        is_attached
    };
    assert!(is_attached(&module), "libprocess answers requests");
    let reason = "Mesos advertises fd00::1, which is no IPv4 address, and the overlay protocol \
                  has only IPv4 addresses: start Mesos with an IPv4 address as --advertise_ip or \
                  --ip";
    let health = get(&module, "/overlay-master/health");
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.headers()["content-type"], "application/json");
    let health: serde_json::Value = serde_json::from_slice(health.body()).unwrap();
    assert_eq!(health, serde_json::json!({ "status": "failed", "problems": [reason] }));
    let state = get(&module, "/overlay-master/state");
    assert_eq!(state.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(state.body(), &format!("{reason}\n"));
    // A later start has no effect.
    let sent = start(&module);
    assert_eq!(sent.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    assert_eq!(get(&module, "/overlay-master/health").status(), StatusCode::SERVICE_UNAVAILABLE);
    module.stop();
    assert!(!is_attached(&module), "libprocess has ended");
}

#[test]
fn acls_decide_by_principal_of_mesos_and_history_names_it() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let parameters = [
        ("overlays", NETWORK),
        ("work_dir", directory.path().to_str().unwrap()),
        ("acls", r#"{"write":["ops"]}"#),
        ("hostnames", r#"["overlay.example.com"]"#),
    ];
    let module = Module::create(Kind::Master, &inputs(&parameters), no_log).unwrap();
    let sent = start(&module);
    register(&module, &sent);
    let send = |method: &str, path: &str, host: &str, principal: Option<&str>| {
        let (sender, answer) = mpsc::channel();
        let parts = RequestParts {
            method,
            body: if method == "POST" { br#"{"agents":["10.0.0.7"]}"# } else { b"" },
            headers: vec![("Host".to_owned(), host.to_owned())],
            ..get_request(path)
        };
        module.request(parts, client(principal), Box::new(WaitingClient(sender)));
        answer.recv_timeout(TIMEOUT).unwrap()
    };
    let delete = |principal| send("POST", "/overlay-master/agents/delete", "10.0.0.1", principal);
    assert_eq!(delete(Some("viewer")).status(), StatusCode::FORBIDDEN);
    assert_eq!(delete(None).status(), StatusCode::FORBIDDEN);
    assert_eq!(delete(Some("ops")).status(), StatusCode::OK);
    let state = |host| send("GET", "/overlay-master/state", host, None).status();
    for host in ["10.0.0.1:5050", "leader.mesos", "overlay.example.com"] {
        assert_eq!(state(host), StatusCode::OK, "{host}");
    }
    assert_eq!(state("evil.example"), StatusCode::FORBIDDEN);
    let history = get(&module, "/overlay-master/history");
    let history: serde_json::Value = serde_json::from_slice(history.body()).unwrap();
    let released = &history["entries"][1];
    assert_eq!(
        (&released["event"], &released["principal"], &released["client"]),
        (&"released".into(), &"ops".into(), &"10.0.0.2:40000".into())
    );
    module.stop();
}

#[test]
fn second_module_of_same_kind_is_refused() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    let second =
        Module::create(Kind::Master, &inputs(&[("overlays", NETWORK)]), no_log).unwrap_err();
    assert_eq!(
        second,
        "overlay master: this process has one already: com_mesosphere_mesos_MasterOverlayHelper \
         and com_mesosphere_mesos_OverlayMasterManager are two names of one module: load one"
    );
    drop(module);
    drop(master(directory.path()));
}

#[test]
fn module_starts_without_usable_store() {
    let _guard = serialize();
    let module = master(Path::new("/dev/null/nowhere"));
    let _sent = start(&module);
    let answer = get(&module, "/overlay-master/health");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&module, "/overlay-master/state").status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn agent_follows_election() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let cni = directory.path().join("cni");
    let module = Module::create(
        Kind::Agent,
        &inputs(&[
            ("master", "zk://user:secret@10.0.0.1:2181/mesos"),
            ("cni_dir", cni.to_str().unwrap()),
            // The test must not change the network of this machine.
            ("dataplane", "external"),
        ]),
        no_log,
    )
    .unwrap();
    assert!(cni.is_dir(), "the containerizer reads it before the module is started");
    assert_eq!(module.election(), Some("zk://user:secret@10.0.0.1:2181/mesos"));
    let sent = start(&module);
    module.elected(Some("master@10.0.0.2:5050"));
    let second = master_upid("10.0.0.2:5050".parse().unwrap());
    assert_eq!(sent.recv_timeout(TIMEOUT), Ok(Sent::Link(second.clone())));
    assert!(matches!(sent.recv_timeout(TIMEOUT), Ok(Sent::Message(to, ..)) if to == second));
    module.elected(Some("no UPID"));
    module.elected(Some("master@10.0.0.3:5050"));
    let third = master_upid("10.0.0.3:5050".parse().unwrap());
    let mut after = std::iter::repeat_with(|| sent.recv_timeout(TIMEOUT).unwrap());
    assert!(after.any(|sent| sent == Sent::Link(third.clone())));
    module.stop();
}

#[test]
fn invalid_parameters_are_refused_with_reason() {
    let _guard = serialize();
    let refuse = |kind, parameters: &[(&str, &str)]| {
        Module::create(kind, &inputs(parameters), no_log).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        refuse(Kind::Master, &[("overlays", "/nowhere/network.json")]),
        "overlay master: parameter 'overlays': read /nowhere/network.json: No such file or \
         directory (os error 2): check the path"
    );
    assert_eq!(
        refuse(Kind::Master, &[("overlays", "/dev/zero")]),
        "overlay master: parameter 'overlays': read /dev/zero: not a regular file"
    );
    let overlays = r#"[{"name":"vxlan-1","subnet":"192.168.0.0/17","prefix":24}]"#;
    let shared = [
        ("vtep_subnet", "44.128.0.0/16"),
        ("vtep_mac_oui", "70:B3:D5:00:00:00"),
        ("overlays", overlays),
        ("store", "zk://user:secret@10.0.0.1:2181/overlay"),
    ];
    assert_eq!(
        refuse(Kind::Master, &shared),
        "overlay master: store: an address of ZooKeeper is for the program alone: in Mesos, write \
         replicated_log_dir for a state that several masters share"
    );
    assert_eq!(
        refuse(Kind::Agent, &[]),
        "overlay agent: not loaded: fix these problems of its configuration (above)"
    );
    assert_eq!(
        refuse(Kind::Agent, &[("master", "file:///nowhere"), ("cni_dir", "/tmp/cni")]),
        "overlay agent: master: read /nowhere: No such file or directory (os error 2): check the \
         path"
    );
    assert_eq!(
        refuse(Kind::Agent, &[("master", "10.0.0.1:5050"), ("cni_dir", "/dev/null/cni")]),
        "overlay agent: create directory /dev/null/cni: Not a directory (os error 20)"
    );
}

/// Returns the signals that a thread blocks. While a thread creates another, glibc blocks all
/// signals temporarily.
fn blocked_signals(status: &Path) -> Option<String> {
    const EVERYTHING: &str = "fffffffffffbfeff";
    let mut blocked = None;
    for _ in 0..100_000 {
        let text = std::fs::read_to_string(status).ok()?;
        blocked = text.lines().find_map(|line| Some(line.strip_prefix("SigBlk:\t")?.to_owned()));
        if blocked.as_deref() != Some(EVERYTHING) {
            break;
        }
        std::thread::yield_now();
    }
    blocked
}

#[test]
fn threads_of_module_block_signals() {
    let _guard = serialize();
    let directory = TempDir::new().unwrap();
    let module = master(directory.path());
    let _sent = start(&module);
    get(&module, "/overlay-master/health");
    let mut checked = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if !name.starts_with("overlay-") {
            continue;
        }
        if let Some(blocked) = blocked_signals(&path.join("status")) {
            // All signals but SIGKILL and SIGSTOP, two signals of glibc, and faults.
            assert_eq!(blocked, "fffffffe7ffbfa27", "thread {name}");
            checked += 1;
        }
    }
    assert!(checked >= 3, "only {checked} threads of the module");
}

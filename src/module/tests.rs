//! A part as Mesos would use it, with a process that only notes what it is asked to send.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use tempfile::TempDir;

use super::http::Parts;
use super::log_place::LogPlace;
use super::parameters::Inputs;
use super::{Kind, Part};
use crate::addr::Upid;
use crate::config::Environment;
use crate::store::Log;
use crate::transport::mesos::{Process, Responder};
use crate::wire;

/// No test waits longer for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/network.json");

/// A process has one part of a kind, and the tests are one process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

fn inputs(parameters: &[(&str, &str)]) -> Inputs {
    let parameters =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Inputs { parameters, environment: Environment::default() }
}

fn no_log(_: &LogPlace) -> Result<Arc<dyn Log>, String> {
    Err("there is none here".to_owned())
}

fn master(work_dir: &Path) -> Part {
    let inputs = inputs(&[("overlays", NETWORK), ("work_dir", work_dir.to_str().unwrap())]);
    Part::create(Kind::Master, &inputs, no_log).unwrap()
}

#[derive(Debug, PartialEq)]
enum Sent {
    Message(Upid, &'static str, Vec<u8>),
    Link(Upid),
}

struct Note(Sender<Sent>);

impl Process for Note {
    fn send(&self, to: &Upid, name: &'static str, body: &[u8]) {
        self.0.send(Sent::Message(to.clone(), name, body.to_vec())).unwrap();
    }

    fn link(&self, to: &Upid) {
        self.0.send(Sent::Link(to.clone())).unwrap();
    }
}

fn started(part: &Part) -> Receiver<Sent> {
    let (sender, sent) = mpsc::channel();
    part.start(Arc::new(Note(sender)), "10.0.0.1:5050".parse().unwrap());
    sent
}

struct Waiting(Sender<Response<Bytes>>);

impl Responder for Waiting {
    fn respond(self: Box<Self>, response: Response<Bytes>) {
        self.0.send(response).unwrap();
    }
}

fn question(path: &str) -> Parts<'_> {
    Parts { method: "GET", path, query: Vec::new(), headers: Vec::new(), body: b"" }
}

fn get(part: &Part, path: &str) -> Response<Bytes> {
    let (sender, answer) = mpsc::channel();
    part.request(question(path), "10.0.0.2:40000", Box::new(Waiting(sender)));
    answer.recv_timeout(PATIENCE).unwrap()
}

/// What the master tells the agent 10.0.0.7 that registers.
fn register(part: &Part, sent: &Receiver<Sent>) -> Vec<u8> {
    let agent = "overlay-agent@10.0.0.7:5051";
    let register = "mesos.modules.overlay.internal.RegisterAgentMessage";
    let options = crate::protocol::AgentOptions::default();
    let (name, body) = wire::encode_message(&crate::protocol::Message::RegisterAgent(options));
    assert_eq!(name, register);
    part.message(agent, name, &body);
    match sent.recv_timeout(PATIENCE).unwrap() {
        Sent::Message(to, name, body) => {
            assert_eq!(to.to_string(), agent);
            assert_eq!(name, "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage");
            body
        }
        other @ Sent::Link(_) => panic!("the master does not link: {other:?}"),
    }
}

#[test]
fn a_master_serves_and_keeps_what_it_promised() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let part = master(directory.path());
    let sent = started(&part);
    let promised = register(&part, &sent);
    let state = get(&part, "/overlay-master/state");
    assert_eq!(state.status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(state.body()).contains("10.0.0.7"));
    assert_eq!(get(&part, "/overlay-master/health").status(), StatusCode::OK);
    part.stop();
    drop(part);
    let part = master(directory.path());
    let sent = started(&part);
    assert_eq!(register(&part, &sent), promised);
}

#[test]
fn a_stopped_part_answers_and_calls_nobody() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let part = master(directory.path());
    let sent = started(&part);
    register(&part, &sent);
    part.stop();
    part.message("overlay-agent@10.0.0.8:5051", wire::MESSAGE_NAMES[0], b"");
    part.exited("overlay-agent@10.0.0.7:5051");
    let (sender, answer) = mpsc::channel();
    part.request(question("/overlay-master/state"), "10.0.0.2:40000", Box::new(Waiting(sender)));
    assert!(answer.recv().is_err(), "the responder is let go");
    assert!(sent.recv().is_err(), "the process is let go");
    part.stop();
}

#[test]
fn there_is_one_part_of_a_kind_in_a_process() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let part = master(directory.path());
    let second = Part::create(Kind::Master, &inputs(&[("overlays", NETWORK)]), no_log).unwrap_err();
    assert_eq!(
        second,
        "overlay master: this process has one already: com_mesosphere_mesos_MasterOverlayHelper \
         and com_mesosphere_mesos_OverlayMasterManager are two names of one module: load one"
    );
    drop(part);
    drop(master(directory.path()));
}

#[test]
fn a_store_that_cannot_be_opened_does_not_keep_mesos_from_starting() {
    let _alone = alone();
    let part = master(Path::new("/dev/null/nowhere"));
    let _sent = started(&part);
    let answer = get(&part, "/overlay-master/health");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&part, "/overlay-master/state").status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn an_agent_follows_the_election() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let cni = directory.path().join("cni");
    let part = Part::create(
        Kind::Agent,
        &inputs(&[
            ("master", "zk://user:secret@10.0.0.1:2181/mesos"),
            ("cni_dir", cni.to_str().unwrap()),
            // The network of the machine is not the test's.
            ("dataplane", "external"),
        ]),
        no_log,
    )
    .unwrap();
    assert!(cni.is_dir(), "the containerizer reads it before the part is started");
    assert_eq!(part.election(), Some("zk://user:secret@10.0.0.1:2181/mesos"));
    let sent = started(&part);
    part.elected(Some("master@10.0.0.2:5050"));
    let second = Upid::master("10.0.0.2:5050".parse().unwrap());
    assert_eq!(sent.recv_timeout(PATIENCE), Ok(Sent::Link(second.clone())));
    assert!(matches!(sent.recv_timeout(PATIENCE), Ok(Sent::Message(to, ..)) if to == second));
    part.elected(Some("no process at all"));
    part.elected(Some("master@10.0.0.3:5050"));
    let third = Upid::master("10.0.0.3:5050".parse().unwrap());
    let mut after = std::iter::repeat_with(|| sent.recv_timeout(PATIENCE).unwrap());
    assert!(after.any(|sent| sent == Sent::Link(third.clone())));
    part.stop();
}

#[test]
fn what_is_wrong_with_the_parameters_is_said() {
    let _alone = alone();
    let refused = |kind, parameters: &[(&str, &str)]| {
        Part::create(kind, &inputs(parameters), no_log).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        refused(Kind::Master, &[("overlays", "/nowhere/network.json")]),
        "overlay master: parameter 'overlays': read /nowhere/network.json: No such file or \
         directory (os error 2): check the path"
    );
    assert_eq!(
        refused(Kind::Master, &[("overlays", "/dev/zero")]),
        "overlay master: parameter 'overlays': read /dev/zero: it is no file"
    );
    let overlays = r#"[{"name":"vxlan-1","subnet":"192.168.0.0/17","prefix":24}]"#;
    let shared = [
        ("vtep_subnet", "44.128.0.0/16"),
        ("vtep_mac_oui", "70:B3:D5:00:00:00"),
        ("overlays", overlays),
        ("store", "zk://user:secret@10.0.0.1:2181/overlay"),
    ];
    assert_eq!(
        refused(Kind::Master, &shared),
        "overlay master: store: an address of ZooKeeper is for the program alone: in Mesos, write \
         replicated_log_dir for a state that several masters share"
    );
    assert_eq!(
        refused(Kind::Agent, &[]),
        "overlay agent: not loaded: mend these problems of its configuration (above)"
    );
    assert_eq!(
        refused(Kind::Agent, &[("master", "file:///nowhere"), ("cni_dir", "/tmp/cni")]),
        "overlay agent: master: read /nowhere: No such file or directory (os error 2): check the \
         path"
    );
    assert_eq!(
        refused(Kind::Agent, &[("master", "10.0.0.1:5050"), ("cni_dir", "/dev/null/cni")]),
        "overlay agent: create directory /dev/null/cni: Not a directory (os error 20)"
    );
}

/// What a thread blocks for good. While it makes another thread, glibc blocks everything in it.
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
fn no_signal_is_handled_on_our_threads() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let part = master(directory.path());
    let _sent = started(&part);
    get(&part, "/overlay-master/health");
    let mut checked = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if !name.starts_with("overlay-") {
            continue;
        }
        if let Some(blocked) = blocked_signals(&path.join("status")) {
            // All but SIGKILL and SIGSTOP, which cannot be, the two that glibc keeps, and faults.
            assert_eq!(blocked, "fffffffe7ffbfa27", "thread {name}");
            checked += 1;
        }
    }
    assert!(checked >= 3, "only {checked} threads are ours");
}

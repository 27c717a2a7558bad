//! A framework that launches tasks with the scheduler API of Mesos, version 1.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::rc::Rc;

use serde_json::{Value, json};

use super::host::{Host, TIMEOUT};
use super::mesos::MASTER_PORT;

const PATH: &str = "/api/v1/scheduler";

/// The last state of a task, and the addresses that it had while it was running.
#[derive(Debug, Default)]
pub(crate) struct TaskState {
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) addresses: Vec<String>,
}

/// A registered framework.
pub(crate) struct Scheduler {
    hub: Rc<Host>,
    events: BufReader<TcpStream>,
    /// Received bytes of an event that is incomplete.
    received: Vec<u8>,
    stream_id: String,
    framework: Value,
    /// The offers that are not used yet.
    offers: Vec<Value>,
    pub(crate) tasks: BTreeMap<String, TaskState>,
}

impl Scheduler {
    /// Registers a framework at the Mesos master of a host.
    pub(crate) fn new(hub: &Rc<Host>) -> Self {
        let mut stream = hub.connect(MASTER_PORT).expect("the master listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a time limit");
        let body = json!({"type": "SUBSCRIBE",
            "subscribe": {"framework_info": {"user": "root", "name": "test"}}})
        .to_string();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nContent-Length: {}\r\n\r\n",
            hub.ip,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("the master reads");
        let mut scheduler = Self {
            hub: Rc::clone(hub),
            events: BufReader::new(stream),
            received: Vec::new(),
            stream_id: String::new(),
            framework: Value::Null,
            offers: Vec::new(),
            tasks: BTreeMap::new(),
        };
        scheduler.read_head();
        while scheduler.framework.is_null() {
            scheduler.handle_event();
        }
        scheduler
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.events.read_line(&mut line).expect("the master answers");
        line.trim_end().to_owned()
    }

    fn read_head(&mut self) {
        let status = self.read_line();
        assert!(status.contains(" 200 "), "{status}");
        loop {
            let line = self.read_line();
            if line.is_empty() {
                break;
            }
            if let Some(id) = line.to_lowercase().strip_prefix("mesos-stream-id: ") {
                id.clone_into(&mut self.stream_id);
            }
        }
    }

    /// Reads one event: its length in a line, and the event as JSON. HTTP sends it in chunks.
    fn read_event(&mut self) -> Value {
        loop {
            let end = self.received.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let length = std::str::from_utf8(&self.received[..end]).expect("a length");
                let length: usize = length.parse().expect("a length");
                if self.received.len() > end + length {
                    let event = self.received.drain(..=end + length).skip(end + 1);
                    let event: Vec<u8> = event.collect();
                    return serde_json::from_slice(&event).expect("an event as JSON");
                }
            }
            let size = usize::from_str_radix(&self.read_line(), 16).expect("the size of a chunk");
            let mut chunk = vec![0; size + 2];
            self.events.read_exact(&mut chunk).expect("a chunk");
            self.received.extend(&chunk[..size]);
        }
    }

    fn handle_event(&mut self) {
        let event = self.read_event();
        match event["type"].as_str().expect("a type") {
            "SUBSCRIBED" => self.framework = event["subscribed"]["framework_id"].clone(),
            "OFFERS" => {
                let offers = event["offers"]["offers"].as_array().expect("a list").clone();
                self.offers.extend(offers);
            }
            "RESCIND" => self.offers.retain(|offer| offer["id"] != event["rescind"]["offer_id"]),
            "UPDATE" => self.handle_update(&event["update"]["status"]),
            _ => {}
        }
    }

    fn handle_update(&mut self, status: &Value) {
        let id = status["task_id"]["value"].as_str().expect("an ID").to_owned();
        let task = self.tasks.entry(id).or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (task.name, task.message) = (text(&status["state"]), text(&status["message"]));
        let networks = status["container_status"]["network_infos"].as_array();
        let networks = networks.into_iter().flatten();
        let addresses = networks.filter_map(|network| network["ip_addresses"].as_array()).flatten();
        let addresses: Vec<String> =
            addresses.map(|address| text(&address["ip_address"])).collect();
        if task.name == "TASK_RUNNING" {
            task.addresses = addresses;
        }
        if !status["uuid"].is_null() {
            let acknowledge = json!({"agent_id": status["agent_id"], "task_id": status["task_id"],
                "uuid": status["uuid"]});
            self.call("ACKNOWLEDGE", "acknowledge", &acknowledge);
        }
    }

    fn call(&self, kind: &str, key: &str, content: &Value) {
        let call = json!({"framework_id": self.framework, "type": kind, key: content});
        let headers =
            [("Content-Type", "application/json"), ("Mesos-Stream-Id", self.stream_id.as_str())];
        let response = self.hub.request(MASTER_PORT, "POST", PATH, &headers, &call.to_string());
        assert!(response.as_ref().is_some_and(|it| it.status == 202), "{kind}: {response:?}");
    }

    /// Launches tasks with one offer. Each has an ID, and the values of `TaskInfo` in `template`.
    pub(crate) fn launch(&mut self, ids: &[String], template: &Value) {
        while self.offers.is_empty() {
            self.handle_event();
        }
        let offer = self.offers.remove(0);
        let tasks: Vec<Value> = ids
            .iter()
            .map(|id| {
                self.tasks.insert(id.clone(), TaskState::default());
                let mut task = template.clone();
                task["name"] = id.as_str().into();
                task["task_id"] = json!({"value": id});
                task["agent_id"] = offer["agent_id"].clone();
                task["resources"] = json!([
                    {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.01}},
                    {"name": "mem", "type": "SCALAR", "scalar": {"value": 32}}
                ]);
                task
            })
            .collect();
        let operation = json!({"type": "LAUNCH", "launch": {"task_infos": tasks}});
        let accept = json!({"offer_ids": [offer["id"]], "operations": [operation],
            "filters": {"refuse_seconds": 0}});
        self.call("ACCEPT", "accept", &accept);
    }

    /// Waits until these tasks have a state. Fails if a task ends in another one.
    pub(crate) fn wait_for_state(&mut self, ids: &[String], state: &str) {
        const UNFINISHED: [&str; 4] = ["", "TASK_STAGING", "TASK_STARTING", "TASK_RUNNING"];
        loop {
            let mut waiting = ids.iter().filter(|id| self.tasks[*id].name != state);
            let Some(next) = waiting.next() else { return };
            let task = &self.tasks[next];
            assert!(UNFINISHED.contains(&task.name.as_str()), "{next}: {task:?}");
            self.handle_event();
        }
    }
}

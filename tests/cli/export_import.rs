//! `export` and `import`: every store as source and target, refused input, and interrupted imports.
//! `tests/host/zookeeper` tests them with ZooKeeper.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Master, TestDir, program, start_agent};

/// The network with which `golden/overlay_replicated_log` was recorded.
const NETWORK: &str = r#"{ "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
  "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
  "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
                { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
                  "subnet6": "fd01:b::/64", "prefix6": 80 } ] }"#;
const EXPORTED_STATE: &str = include_str!("../fuzz/corpus/state_file/ours");

fn golden_path(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Reads an exported state without the fields that describe the store.
fn records(dir: &TestDir, file: &str) -> Value {
    let text = fs::read_to_string(dir.path(file)).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    for store_field in ["from", "epoch", "version"] {
        state.as_object_mut().unwrap().remove(store_field).unwrap();
    }
    state
}

fn dir_with_state() -> TestDir {
    let dir = TestDir::with_network();
    dir.write("state.json", EXPORTED_STATE);
    dir.run("import state.json --to file --work-dir work").success();
    dir
}

#[test]
fn master_with_moved_state_keeps_all_assignments() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let agents = ["127.0.40.2", "127.0.40.1"].map(|ip| {
        let agent = start_agent(&dir, master.address, ip);
        master.wait_for_state(&dir, |state| state.lines().any(|line| line.starts_with(ip)));
        agent
    });
    let all_ok = |state: &str| state.matches("  ok\n").count() == 4;
    let before = master.wait_for_state(&dir, all_ok);
    drop(agents);
    let listen = master.address;
    master.process.terminate();
    dir.run("export --from file --work-dir work --output state.json").success();
    fs::remove_dir_all(dir.path("work")).unwrap();
    // Convert the state to the format of the C++ module and back.
    dir.run("import state.json --to log:log --config network.json").success();
    dir.run("export --from log:log --form cpp --output state.pb").success();
    dir.run("import state.pb --to file --work-dir work").success();
    let master = Master::start_at(&dir, listen, "network.json");
    // Start the agents in reverse order: without the imported state they would get other addresses.
    let _agents = ["127.0.40.1", "127.0.40.2"].map(|ip| {
        let agent = start_agent(&dir, master.address, ip);
        master.wait_for_state(&dir, |state| {
            state.lines().any(|line| line.starts_with(ip) && line.ends_with("  ok"))
        });
        agent
    });
    let table = |state: &str| state.split("\n\n").next().unwrap_or_default().to_owned();
    assert_eq!(table(&master.wait_for_state(&dir, all_ok)), table(&before));
}

#[test]
fn log_of_cpp_module_survives_import_and_export() {
    let dir = TestDir::new();
    dir.write("network.json", NETWORK);
    let log = golden_path("overlay_replicated_log");
    let report = dir.run(&format!("export --from log:{log} --output state.json")).success();
    assert_eq!(
        report,
        format!("state.json: 1 agent, 0 released, history of 0 of log:{log} (version 0)\n")
    );
    let report = dir.run("import state.json --to file --work-dir work").success();
    let file = "file:work/overlay-master.redb: 1 agent, 0 released, history of 0 (version 1)\n";
    assert_eq!(report, file);
    dir.run("export --from file --work-dir work --output file.json").success();
    let report = dir.run("import file.json --to log:log --config network.json").success();
    // The log continues with the version of the file.
    assert_eq!(report, "log:log: 1 agent, 0 released, history of 0 (version 2)\n");
    dir.run("export --from log:log --output log.json").success();
    for file in ["file.json", "log.json"] {
        assert_eq!(records(&dir, file), records(&dir, "state.json"), "{file}");
    }
    // Import the same state from the format of the C++ module and from the output of the master.
    dir.run(&format!("export --from log:{log} --form cpp --output state.pb")).success();
    let state_of_master = golden_path("overlay-master-state.json");
    for file in ["state.pb", &state_of_master] {
        dir.run(&format!("import {file} --to file --work-dir work --replace")).success();
        dir.run("export --from file --work-dir work --output file.json").success();
        assert_eq!(records(&dir, "file.json"), records(&dir, "state.json"), "{file}");
    }
}

#[test]
fn imported_json_of_master_keeps_principals() {
    let dir = TestDir::new();
    let text = fs::read_to_string(golden_path("overlay-master-state.json")).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    let ip = state["agents"][0]["ip"].clone();
    state["authenticated"] = json!([{ "ip": ip, "principal": "agents" }]);
    dir.write("state.json", state.to_string());
    dir.run("import state.json --to file --work-dir work").success();
    dir.run("export --from file --work-dir work --output file.json").success();
    assert_eq!(records(&dir, "file.json")["agents"][0]["authenticated"], "agents");
    state["authenticated"][0]["principal"] = json!("");
    dir.write("state.json", state.to_string());
    let error = dir.run("import state.json --to file --work-dir work --replace").failure();
    assert!(error.contains("authenticated.principal: the principal is empty"), "{error}");
}

#[test]
fn state_moved_through_all_stores_is_unchanged() {
    let dir = dir_with_state();
    for (from, to) in [("file", "log:one"), ("log:one", "log:two"), ("log:two", "file")] {
        let work_dir = if to == "file" { "other" } else { "work" };
        dir.run(&format!("export --from {from} --work-dir work --output moved.json")).success();
        let import =
            format!("import moved.json --to {to} --config network.json --work-dir {work_dir}");
        dir.run(&import).success();
    }
    dir.run("export --from file --work-dir other --output last.json").success();
    let last = records(&dir, "last.json");
    let first: Value = serde_json::from_str(EXPORTED_STATE).unwrap();
    for list in ["agents", "released", "history"] {
        assert_eq!(last[list], first[list], "{list}");
    }
    assert_eq!(last["bytes"][0]["bytes"], "ff00");
    let cpp =
        dir.run("export --from file --work-dir other --form cpp --config network.json --output a");
    cpp.success();
    dir.run("import a --to file --work-dir third").success();
    dir.run("export --from file --work-dir third --output third.json").success();
    assert_eq!(records(&dir, "third.json"), last);
}

#[test]
fn import_into_used_store_requires_replace() {
    let dir = dir_with_state();
    dir.write("other.json", EXPORTED_STATE.replace("10.0.0.8", "10.0.0.88"));
    let store = "file:work/overlay-master.redb";
    let inventory = "2 agents, 1 released, history of 3, 1 unreadable";
    let import = "import other.json --to file --work-dir work";
    assert_eq!(
        dir.run(import).failure(),
        format!(
            "mesos-overlay: {store}: holds a state: {inventory} (version 13): export it first, then \
             replace it with --replace\n"
        )
    );
    let warnings = "\
warning: agent 10.0.0.10 is unreadable: malformed mesos.modules.overlay.record.AgentRecord: failed to decode Protobuf message: invalid wire type value: 7
warning: agents 10.0.0.7 and 10.0.0.88 both have the VTEP address 44.128.0.1
warning: 192.168.0.0/25 of agent 10.0.0.88 overlaps 192.168.0.0/24 of agent 10.0.0.7
";
    assert_eq!(
        dir.run(&format!("{import} --replace --dry-run")).success(),
        format!("{warnings}{store}: would get {inventory} in the place of {inventory}\n")
    );
    dir.run("export --from file --work-dir work --output same.json").success();
    assert_eq!(
        records(&dir, "same.json")["agents"][1]["ip"],
        "10.0.0.8",
        "the dry run changed the store"
    );
    let report = dir.run(&format!("{import} --replace --json")).json();
    let counts = json!({ "agents": 2, "released": 1, "history": 3, "unreadable": 1 });
    assert_eq!(report["warnings"].as_array().unwrap().len(), 3);
    assert_eq!((&report["imported"], &report["replaced"]), (&counts, &counts));
    assert_eq!((&report["version"], &report["dry_run"]), (&json!(14), &json!(false)));
    dir.run("export --from file --work-dir work --output other2.json").success();
    assert_eq!(records(&dir, "other2.json")["agents"][1]["ip"], "10.0.0.88");

    let log = "--to log:log --config network.json";
    dir.run(&format!("import state.json {log}")).success();
    let report = dir.run(&format!("import other.json {log} --replace")).success();
    assert!(report.ends_with("(version 14)\nthe former directory is log.replaced-1\n"), "{report}");
    dir.run("export --from log:log.replaced-1 --output former.json").success();
    assert_eq!(records(&dir, "former.json"), records(&dir, "same.json"));
}

#[test]
fn export_and_import_of_locked_store_fail() {
    let dir = dir_with_state();
    let master = Master::start(&dir);
    let expected = |file: &str| {
        format!(
            "mesos-overlay: file:work/overlay-master.redb: open: another process has it open, such \
             as a running `mesos-overlay master` or mesos-master with this module (`fuser \
             work/overlay-master.{file}` shows it): stop that process, or use another work \
             directory\n"
        )
    };
    for (arguments, file) in [
        ("export --from file --output out.json", "redb"),
        ("import state.json --to file --replace", "redb"),
    ] {
        let error = dir.run(&format!("{arguments} --work-dir work")).failure();
        assert_eq!(error, expected(file));
    }
    assert!(!dir.path("out.json").exists());
    // The running master is not affected.
    master.wait_for_state(&dir, |state| state.contains(": degraded: 3 agents: "));
}

#[test]
fn records_of_later_version_are_kept() {
    let dir = dir_with_state();
    let file = redb::Database::open(dir.path("work/overlay-master.redb")).unwrap();
    let transaction = file.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8], &[u8]>::new("records");
    transaction.open_table(table).unwrap().insert(&[9][..], &[7][..]).unwrap();
    transaction.commit().unwrap();
    drop(file);
    dir.run("export --from file --work-dir work --output all.json").success();
    let unknown = json!([{ "key": "09", "bytes": "07" }]);
    assert_eq!(records(&dir, "all.json")["unknown"], unknown);
    let later = "a later version of mesos-overlay has written 1 record";
    assert_eq!(
        dir.run(
            "export --from file --work-dir work --form cpp --config network.json --output cpp.pb"
        )
        .failure(),
        format!(
            "mesos-overlay: file:work/overlay-master.redb: {later} that this version does not know: \
             export with that version, or with --form json, which keeps them\n"
        )
    );
    assert!(!dir.path("cpp.pb").exists());
    assert_eq!(
        dir.run("import all.json --to file --work-dir other").failure(),
        format!(
            "mesos-overlay: all.json: unknown: {later} that this version does not know: import the \
             file with the later version, or empty the list to omit them\n"
        )
    );
    assert!(!dir.path("other").exists());
    let report = dir.run("import state.json --to file --work-dir work --replace").success();
    let warning =
        format!("warning: {later} that this version does not know: they stay in the store\n");
    assert!(report.contains(&warning), "{report}");
    dir.run("export --from file --work-dir work --output again.json").success();
    assert_eq!(records(&dir, "again.json")["unknown"], unknown);
}

#[test]
fn invalid_store_or_file_fails_with_one_line() {
    let dir = TestDir::with_network();
    let usage_error = |arguments: &str| dir.run(arguments).usage_error();
    assert_eq!(
        usage_error("export --from redb"),
        "mesos-overlay: --from: is no store: write file, zk://HOST:PORT,…/PATH, file:///PATH of a file \
         that holds such an address, or log:DIR for a replicated log of Mesos\n"
    );
    assert_eq!(
        usage_error("import network.json --to memory"),
        "mesos-overlay: --to: the state in memory ends with its master: a running master shows it \
         at /overlay-master/state\n"
    );
    assert_eq!(
        usage_error("export --from log:"),
        "mesos-overlay: --from: log: names no directory: append it, as in \
         log:/var/lib/mesos/overlay_replicated_log\n"
    );
    assert_eq!(
        usage_error("export --from zk://user:secret@10.0.0.1:2181"),
        "mesos-overlay: --from: names no path in ZooKeeper: write one after the servers, as in \
         zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay\n"
    );
    assert_eq!(
        usage_error("export --from file --form cpp"),
        "mesos-overlay: --form cpp: the C++ modules need the network: give its file as \
         --config\n"
    );
    assert_eq!(
        usage_error("import network.json --to log:log"),
        "mesos-overlay: --to log: the C++ modules need the network: give its file as \
         --config\n"
    );
    for (from, name) in
        [("file --work-dir none", "file:none/overlay-master.redb"), ("log:none", "log:none")]
    {
        assert_eq!(
            dir.run(&format!("export --from {from}")).failure(),
            format!(
                "mesos-overlay: {name}: there is no state: no master has written one, or an \
                 import was not finished\n"
            )
        );
        assert!(!dir.path("none").exists(), "the failed command created a directory");
    }
    assert_eq!(
        dir.run("export --from log:.").failure(),
        "mesos-overlay: log:.: read: the directory has no file CURRENT, so it is no replicated log of \
         Mesos: name the directory overlay_replicated_log in the replicated_log_dir of the \
         master\n"
    );
    dir.write("empty", "");
    dir.write("text", "some text");
    let import =
        |file: &str| dir.run(&format!("import {file} --to file --work-dir none")).failure();
    assert_eq!(import("empty"), "mesos-overlay: empty: it is empty\n");
    dir.write("bytes", [0xff; 8]);
    for file in ["text", "bytes"] {
        let expected = format!(
            "mesos-overlay: {file}: it is neither an exported state, nor the JSON state of a \
             master, nor the state of the C++ modules: network-state: "
        );
        let error = import(file);
        assert!(error.starts_with(&expected), "{error}");
    }
    assert_eq!(
        import("network.json"),
        "mesos-overlay: network.json: it is neither an exported state nor the JSON state of a \
         master\n"
    );
    assert!(!dir.path("none").exists(), "the failed command created a directory");
}

#[test]
fn export_to_unwritable_path_names_directory() {
    let dir = TestDir::with_network();
    dir.write("state.json", EXPORTED_STATE);
    dir.run("import state.json --to file --work-dir work").success();
    let export = |path: &str| {
        dir.run(&format!("export --from file --work-dir work --output {path}")).failure()
    };
    assert_eq!(
        export("none/state.json"),
        "mesos-overlay: write none/state.json: none: no such directory: make it\n"
    );
    assert_eq!(
        export("state.json/copy"),
        "mesos-overlay: write state.json/copy: state.json: it is no directory: name one\n"
    );
    let error = export("work");
    assert!(error.starts_with("mesos-overlay: write work: "), "{error}");
    assert!(!error.contains(".mesos-overlay."), "{error}");
}

#[test]
fn import_of_implausible_epoch_is_refused() {
    let dir = TestDir::new();
    let count = u64::MAX / 4 + 1;
    dir.write("state.json", EXPORTED_STATE.replace("\"epoch\": 3", &format!("\"epoch\": {count}")));
    assert_eq!(
        dir.run("import state.json --to file --work-dir work").failure(),
        format!(
            "mesos-overlay: state.json: impossible epoch {count}: write the number from a \
             backup, or 0 to restart the count\n"
        )
    );
    assert!(!dir.path("work").exists());
}

#[test]
fn import_of_damaged_file_reports_every_problem() {
    let dir = TestDir::new();
    let damaged = EXPORTED_STATE.replace("44.128.0.1\",\"vtep_ip6", "44.128.0\",\"vtep_ip6");
    dir.write("state.json", damaged.replace("\"configured\"", "\"lost\""));
    let outcome = dir.run("import state.json --to file --work-dir work");
    assert_eq!(
        outcome.transcript(),
        "\
state.json: agents[0]: invalid IPv4 address syntax
state.json: history[1]: event: 'lost' is not an event
mesos-overlay: state.json: 2 problems: nothing was imported: fix them and try again
exit code 1
"
    );
    assert!(!dir.path("work").exists());
    dir.write("cut.json", &EXPORTED_STATE[..700]);
    let error = dir.run("import cut.json --to file --work-dir work").failure();
    let expected = "mesos-overlay: cut.json: it is neither an exported state nor the JSON state of \
                a master: json: EOF while parsing";
    assert!(error.starts_with(expected), "{error}");
}

/// Returns an exported state of `count` agents in the network `net`.0.0.0/8.
fn state_with_agents(net: u8, count: u32) -> String {
    let agent = |number: u32| {
        let [_, b, c, d] = number.to_be_bytes();
        json!({
            "ip": format!("{net}.{b}.{c}.{d}"),
            "vtep_ip": format!("44.{b}.{c}.{d}"),
            "overlays": [],
            "allocate_subnet": true, "mesos_bridge": true, "docker_bridge": true
        })
    };
    let agents: Vec<Value> = (1..=count).map(agent).collect();
    json!({
        "form": "mesos-overlay state", "form_version": 1,
        "agents": agents, "released": [], "history": [], "bytes": [], "unknown": []
    })
    .to_string()
}

#[test]
fn import_of_amplifying_json_is_refused_early() {
    let dir = TestDir::new();
    // Parsed as a generic JSON value, this file takes 100 times its 11 MiB.
    dir.write("hostile.json", format!("{{\"agents\":[{}0]}}", r#"{"":0},"#.repeat(1_600_000)));
    assert_eq!(
        dir.run("import hostile.json --to file --work-dir none").failure(),
        "mesos-overlay: hostile.json: reading it would take more than 1024 MiB of memory: it is no \
         state: is it the right file?\n"
    );
    assert!(!dir.path("none").exists(), "the failed command created a directory");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the process is killed at a random time")]
fn killed_import_leaves_complete_state_or_none() {
    const AGENTS: u32 = 3000;
    const ROUNDS: u32 = 12;
    let dir = TestDir::with_network();
    dir.write("old.json", state_with_agents(10, AGENTS / 2));
    dir.write("new.json", state_with_agents(11, AGENTS));
    for to in ["file", "log:log"] {
        let (mut counts, mut delay_max) = ([0; 3], 300);
        for round in 0..ROUNDS {
            let arguments = format!(
                "import new.json --to {to} --replace --work-dir work --config network.json"
            );
            let mut child = Command::new(program())
                .args(arguments.split(' '))
                .current_dir(dir.path("."))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..=delay_max)));
            child.kill().unwrap();
            child.wait().unwrap();
            let export = dir.run(&format!("export --from {to} --work-dir work --output out.json"));
            let agents = match export.code {
                Some(0) => records(&dir, "out.json")["agents"].as_array().unwrap().clone(),
                _ => {
                    assert!(export.stderr.contains("there is no state"), "{export:?}");
                    Vec::new()
                }
            };
            let nets: Vec<&str> = agents
                .iter()
                .map(|agent| agent["ip"].as_str().unwrap().split('.').next().unwrap())
                .collect();
            let all_in = |net: &str, count: u32| {
                nets.len() == count as usize && nets.iter().all(|agent_net| *agent_net == net)
            };
            // The possible states: none, old, new.
            let states = [nets.is_empty(), all_in("10", AGENTS / 2), all_in("11", AGENTS)];
            let state = states.iter().position(|matches| *matches);
            let state =
                state.unwrap_or_else(|| panic!("{to}: incomplete state: {} agents", nets.len()));
            assert!(state > 0 || round % 2 == 0, "{to}: the former state is lost");
            counts[state] += 1;
            // Adapt the delay, so that kills happen close to the end of the import on any machine.
            delay_max = if state == 2 { delay_max / 2 } else { delay_max * 3 / 2 + 10 };
            // Half of the rounds start without a state, the other half with an old state.
            remove_if_exists(&dir.path("work"));
            remove_if_exists(&dir.path("log"));
            if round % 2 == 0 {
                dir.run(&arguments.replace("new.json", "old.json")).success();
            }
        }
        println!("{to}: none {}, old {}, new {}", counts[0], counts[1], counts[2]);
        assert!(counts[2] < ROUNDS, "{to}: every import finished before the kill");
    }
}

fn remove_if_exists(path: &Path) {
    if path.exists() {
        fs::remove_dir_all(path).unwrap();
    }
}

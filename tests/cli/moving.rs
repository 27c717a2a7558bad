//! `export` and `import`: from every store to every other and back, what is refused, and what is
//! left when they are interrupted. ZooKeeper has tests of its own, in `tests/host/zookeeper`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Master, Place, program, start_agent};

/// The network of the recorded log.
const NETWORK: &str = r#"{ "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
  "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
  "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
                { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
                  "subnet6": "fd01:b::/64", "prefix6": 80 } ] }"#;
const EXPORTED: &str = include_str!("../fuzz/corpus/state_file/ours");

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What is in an exported state, whatever store it is of.
fn records(place: &Place, file: &str) -> Value {
    let text = fs::read_to_string(place.path(file)).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    for of_the_store in ["from", "epoch", "version"] {
        state.as_object_mut().unwrap().remove(of_the_store).unwrap();
    }
    state
}

fn with_state() -> Place {
    let place = Place::with_network();
    place.write("state.json", EXPORTED);
    place.run("import state.json --to file --work-dir work").success();
    place
}

#[test]
fn a_master_that_moves_gives_every_agent_what_it_had() {
    let place = Place::with_network();
    let master = Master::start(&place);
    let agents = ["127.0.40.2", "127.0.40.1"].map(|ip| {
        let agent = start_agent(&place, master.address, ip);
        master.state_when(&place, |state| state.lines().any(|it| it.starts_with(ip)));
        agent
    });
    let both = |state: &str| state.matches("  ok\n").count() == 4;
    let before = master.state_when(&place, both);
    drop(agents);
    let listen = master.address;
    master.running.terminate();
    place.run("export --from file --work-dir work -o state.json").success();
    fs::remove_dir_all(place.path("work")).unwrap();
    // By way of the form of the C++ module.
    place.run("import state.json --to log:log --config network.json").success();
    place.run("export --from log:log --form cpp -o state.pb").success();
    place.run("import state.pb --to file --work-dir work").success();
    let master = Master::start_at(&place, listen, "network.json");
    // In the other order, in which an empty plan would give them others.
    let _agents = ["127.0.40.1", "127.0.40.2"].map(|ip| {
        let agent = start_agent(&place, master.address, ip);
        master.state_when(&place, |state| {
            state.lines().any(|it| it.starts_with(ip) && it.ends_with("  ok"))
        });
        agent
    });
    let table = |state: &str| state.split("\n\n").next().unwrap_or_default().to_owned();
    assert_eq!(table(&master.state_when(&place, both)), table(&before));
}

#[test]
fn the_log_of_the_cpp_module_is_taken_over_and_handed_back() {
    let place = Place::new();
    place.write("network.json", NETWORK);
    let log = golden("overlay_replicated_log");
    let said = place.run(&format!("export --from log:{log} --output state.json")).success();
    assert_eq!(
        said,
        format!("state.json: 1 agent, 0 released, history of 0 of log:{log} (version 0)\n")
    );
    let said = place.run("import state.json --to file --work-dir work").success();
    let file = "file:work/overlay-master.redb: 1 agent, 0 released, history of 0 (version 1)\n";
    assert_eq!(said, file);
    place.run("export --from file --work-dir work --output file.json").success();
    let said = place.run("import file.json --to log:log --config network.json").success();
    // It counts on from the file.
    assert_eq!(said, "log:log: 1 agent, 0 released, history of 0 (version 2)\n");
    place.run("export --from log:log --output log.json").success();
    for file in ["file.json", "log.json"] {
        assert_eq!(records(&place, file), records(&place, "state.json"), "{file}");
    }
    // The same in the form of the C++ module, and as the master shows it.
    place.run(&format!("export --from log:{log} --form cpp --output state.pb")).success();
    let shown = golden("overlay-master-state.json");
    for file in ["state.pb", &shown] {
        place.run(&format!("import {file} --to file --work-dir work --replace")).success();
        place.run("export --from file --work-dir work --output file.json").success();
        assert_eq!(records(&place, "file.json"), records(&place, "state.json"), "{file}");
    }
}

#[test]
fn nothing_gets_lost_from_store_to_store() {
    let place = with_state();
    for (from, to) in [("file", "log:one"), ("log:one", "log:two"), ("log:two", "file")] {
        let work_dir = if to == "file" { "other" } else { "work" };
        place.run(&format!("export --from {from} --work-dir work -o moved.json")).success();
        let import =
            format!("import moved.json --to {to} --config network.json --work-dir {work_dir}");
        place.run(&import).success();
    }
    place.run("export --from file --work-dir other -o last.json").success();
    let last = records(&place, "last.json");
    let first: Value = serde_json::from_str(EXPORTED).unwrap();
    for list in ["agents", "released", "history"] {
        assert_eq!(last[list], first[list], "{list}");
    }
    assert_eq!(last["bytes"][0]["bytes"], "ff00");
    let cpp =
        place.run("export --from file --work-dir other --form cpp --config network.json -o a.pb");
    cpp.success();
    place.run("import a.pb --to file --work-dir third").success();
    place.run("export --from file --work-dir third -o third.json").success();
    assert_eq!(records(&place, "third.json"), last);
}

#[test]
fn a_store_that_holds_a_state_is_replaced_only_when_asked() {
    let place = with_state();
    place.write("other.json", EXPORTED.replace("10.0.0.8", "10.0.0.88"));
    let store = "file:work/overlay-master.redb";
    let what = "2 agents, 1 released, history of 3, 1 unreadable";
    let import = "import other.json --to file --work-dir work";
    assert_eq!(
        place.run(import).failure(),
        format!(
            "mesos-overlay: {store}: holds a state: {what} (version 13): export it first, then \
             --replace puts this one in its place\n"
        )
    );
    let warnings = "\
warning: agent 10.0.0.10 is unreadable: malformed mesos.modules.overlay.record.AgentRecord: failed to decode Protobuf message: invalid wire type value: 7
warning: agents 10.0.0.7 and 10.0.0.88 both have the VTEP address 44.128.0.1
warning: 192.168.0.0/25 of agent 10.0.0.88 overlaps 192.168.0.0/24 of agent 10.0.0.7
";
    assert_eq!(
        place.run(&format!("{import} --replace --dry-run")).success(),
        format!("{warnings}{store}: would get {what} in the place of {what}\n")
    );
    place.run("export --from file --work-dir work -o same.json").success();
    assert_eq!(records(&place, "same.json")["agents"][1]["ip"], "10.0.0.8", "nothing was done");
    let report = place.run(&format!("{import} --replace --json")).json();
    let inventory = json!({ "agents": 2, "released": 1, "history": 3, "unreadable": 1 });
    assert_eq!(report["warnings"].as_array().unwrap().len(), 3);
    assert_eq!((&report["imported"], &report["replaced"]), (&inventory, &inventory));
    assert_eq!((&report["version"], &report["dry_run"]), (&json!(14), &json!(false)));
    place.run("export --from file --work-dir work -o other2.json").success();
    assert_eq!(records(&place, "other2.json")["agents"][1]["ip"], "10.0.0.88");

    let log = "--to log:log --config network.json";
    place.run(&format!("import state.json {log}")).success();
    let said = place.run(&format!("import other.json {log} --replace")).success();
    assert!(said.ends_with("(version 14)\nthe former directory is log.replaced-1\n"), "{said}");
    place.run("export --from log:log.replaced-1 -o former.json").success();
    assert_eq!(records(&place, "former.json"), records(&place, "same.json"));
}

#[test]
fn a_running_master_refuses_both() {
    let place = with_state();
    let master = Master::start(&place);
    let expected = "mesos-overlay: file:work/overlay-master.redb: open: another process has it open, \
                    such as a running `mesos-overlay master` or mesos-master with this module \
                    (`fuser work/overlay-master.redb` shows which): stop that one, or use another work \
                    directory\n";
    for arguments in ["export --from file -o out.json", "import state.json --to file --replace"] {
        assert_eq!(place.run(&format!("{arguments} --work-dir work")).failure(), expected);
    }
    assert!(!place.path("out.json").exists());
    // It notices nothing.
    master.state_when(&place, |state| state.contains(": degraded: 3 agents: "));
}

#[test]
fn what_a_later_version_keeps_is_not_dropped() {
    let place = with_state();
    let file = redb::Database::open(place.path("work/overlay-master.redb")).unwrap();
    let transaction = file.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8], &[u8]>::new("records");
    transaction.open_table(table).unwrap().insert(&[9][..], &[7][..]).unwrap();
    transaction.commit().unwrap();
    drop(file);
    place.run("export --from file --work-dir work -o all.json").success();
    let unknown = json!([{ "key": "09", "bytes": "07" }]);
    assert_eq!(records(&place, "all.json")["unknown"], unknown);
    let later = "a later version of mesos-overlay has written 1 record";
    assert_eq!(
        place
            .run("export --from file --work-dir work --form cpp --config network.json -o cpp.pb")
            .failure(),
        format!(
            "mesos-overlay: file:work/overlay-master.redb: {later} that this one does not know: export \
             with that version, or with --form json, which keeps them\n"
        )
    );
    assert!(!place.path("cpp.pb").exists());
    assert_eq!(
        place.run("import all.json --to file --work-dir other").failure(),
        format!(
            "mesos-overlay: all.json: unknown: {later} that this one does not know: import it with \
             that version, or empty the list to go without\n"
        )
    );
    assert!(!place.path("other").exists());
    let said = place.run("import state.json --to file --work-dir work --replace").success();
    let warning =
        format!("warning: {later} there that this one does not know: what it wrote stays\n");
    assert!(said.contains(&warning), "{said}");
    place.run("export --from file --work-dir work -o again.json").success();
    assert_eq!(records(&place, "again.json")["unknown"], unknown);
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let place = Place::with_network();
    let usage = |arguments: &str| place.run(arguments).usage();
    assert_eq!(
        usage("export --from redb"),
        "mesos-overlay: --from: is no store: write file, zk://HOST:PORT,…/PATH, file:///PATH of a file \
         that holds such an address, or log:DIR for a replicated log of Mesos\n"
    );
    assert_eq!(
        usage("import network.json --to memory"),
        "mesos-overlay: --to: memory is gone with its master: a running one shows its state at \
         /overlay-master/state\n"
    );
    assert_eq!(
        usage("export --from log:"),
        "mesos-overlay: --from: log: names no directory: write it behind, as in \
         log:/var/lib/mesos/overlay_replicated_log\n"
    );
    assert_eq!(
        usage("export --from zk://user:secret@10.0.0.1:2181"),
        "mesos-overlay: --from: names no path in ZooKeeper: write one after the servers, as in \
         zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay\n"
    );
    assert_eq!(
        usage("export --from file --form cpp"),
        "mesos-overlay: --form cpp: the C++ modules want to know the network: give its file as \
         --config\n"
    );
    assert_eq!(
        usage("import network.json --to log:log"),
        "mesos-overlay: --to log: the C++ modules want to know the network: give its file as \
         --config\n"
    );
    for (from, name) in
        [("file --work-dir none", "file:none/overlay-master.redb"), ("log:none", "log:none")]
    {
        assert_eq!(
            place.run(&format!("export --from {from}")).failure(),
            format!(
                "mesos-overlay: {name}: there is no state: no master has begun one there, or an \
                 import was not finished\n"
            )
        );
        assert!(!place.path("none").exists(), "nothing is made");
    }
    assert_eq!(
        place.run("export --from log:.").failure(),
        "mesos-overlay: log:.: read: it has no file CURRENT and so is no replicated log of Mesos: name \
         the directory overlay_replicated_log in the replicated_log_dir of the master\n"
    );
    place.write("empty", "");
    place.write("text", "some text");
    let import =
        |file: &str| place.run(&format!("import {file} --to file --work-dir none")).failure();
    assert_eq!(import("empty"), "mesos-overlay: empty: it is empty\n");
    place.write("bytes", [0xff; 8]);
    for file in ["text", "bytes"] {
        let what = format!(
            "mesos-overlay: {file}: it is neither an exported state, nor JSON of a master, nor the \
             state of the C++ modules: network-state: "
        );
        let said = import(file);
        assert!(said.starts_with(&what), "{said}");
    }
    assert_eq!(
        import("network.json"),
        "mesos-overlay: network.json: it is neither an exported state nor what a master shows\n"
    );
    assert!(!place.path("none").exists(), "nothing is made");
}

#[test]
fn where_no_file_can_be_made_the_directory_is_named() {
    let place = Place::with_network();
    place.write("state.json", EXPORTED);
    place.run("import state.json --to file --work-dir work").success();
    let export =
        |path: &str| place.run(&format!("export --from file --work-dir work -o {path}")).failure();
    assert_eq!(
        export("none/state.json"),
        "mesos-overlay: write none/state.json: none: no such directory: make it\n"
    );
    assert_eq!(
        export("state.json/copy"),
        "mesos-overlay: write state.json/copy: state.json: it is no directory: name one\n"
    );
    let onto_directory = export("work");
    assert!(onto_directory.starts_with("mesos-overlay: write work: "), "{onto_directory}");
    assert!(!onto_directory.contains(".mesos-overlay."), "{onto_directory}");
}

#[test]
fn counts_from_which_no_store_could_go_on_are_refused() {
    let place = Place::new();
    let count = u64::MAX / 4 + 1;
    place.write("state.json", EXPORTED.replace("\"epoch\": 3", &format!("\"epoch\": {count}")));
    assert_eq!(
        place.run("import state.json --to file --work-dir work").failure(),
        format!(
            "mesos-overlay: state.json: no state has come to epoch {count}: put that of a backup in \
             its place, or 0, from which it is counted anew\n"
        )
    );
    assert!(!place.path("work").exists());
}

#[test]
fn a_damaged_file_is_refused_with_every_problem() {
    let place = Place::new();
    let damaged = EXPORTED.replace("44.128.0.1\",\"vtep_ip6", "44.128.0\",\"vtep_ip6");
    place.write("state.json", damaged.replace("\"configured\"", "\"lost\""));
    let outcome = place.run("import state.json --to file --work-dir work");
    assert_eq!(
        outcome.transcript(),
        "\
state.json: agents[0]: invalid IPv4 address syntax
state.json: history[1]: event: 'lost' is none
mesos-overlay: state.json: 2 problems: nothing was imported: mend them and try again
exit code 1
"
    );
    assert!(!place.path("work").exists());
    place.write("cut.json", &EXPORTED[..700]);
    let said = place.run("import cut.json --to file --work-dir work").failure();
    let what = "mesos-overlay: cut.json: it is neither an exported state nor what a master shows: \
                json: EOF while parsing";
    assert!(said.starts_with(what), "{said}");
}

/// An exported state of so many agents, all of which have an address that begins with `net`.
fn many(net: u8, count: u32) -> String {
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
fn import_of_hostile_json_is_refused_before_it_takes_memory() {
    let place = Place::new();
    // As a generic value it takes 100 times its 11 MiB.
    place.write("hostile.json", format!("{{\"agents\":[{}0]}}", r#"{"":0},"#.repeat(1_600_000)));
    assert_eq!(
        place.run("import hostile.json --to file --work-dir none").failure(),
        "mesos-overlay: hostile.json: reading it would take more than 1024 MiB of memory: it is no \
         state: is it the right file?\n"
    );
    assert!(!place.path("none").exists(), "nothing is made");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a kill at a random time")]
fn an_import_that_is_killed_leaves_a_whole_state_or_none() {
    const AGENTS: u32 = 3000;
    const ROUNDS: u32 = 12;
    let place = Place::with_network();
    place.write("old.json", many(10, AGENTS / 2));
    place.write("new.json", many(11, AGENTS));
    for to in ["file", "log:log"] {
        let (mut found, mut limit) = ([0; 3], 300);
        for round in 0..ROUNDS {
            let arguments = format!(
                "import new.json --to {to} --replace --work-dir work --config network.json"
            );
            let mut child = Command::new(program())
                .args(arguments.split(' '))
                .current_dir(place.path("."))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..=limit)));
            child.kill().unwrap();
            child.wait().unwrap();
            let export = place.run(&format!("export --from {to} --work-dir work -o out.json"));
            let agents = match export.code {
                Some(0) => records(&place, "out.json")["agents"].as_array().unwrap().clone(),
                _ => {
                    assert!(export.stderr.contains("there is no state"), "{export:?}");
                    Vec::new()
                }
            };
            let nets: Vec<&str> = agents
                .iter()
                .map(|agent| agent["ip"].as_str().unwrap().split('.').next().unwrap())
                .collect();
            let is_all = |net: &str, count: u32| {
                nets.len() == count as usize && nets.iter().all(|one| *one == net)
            };
            let which = [nets.is_empty(), is_all("10", AGENTS / 2), is_all("11", AGENTS)];
            let which = which.iter().position(|it| *it);
            let which = which.unwrap_or_else(|| panic!("{to}: {} of a state", nets.len()));
            assert!(which > 0 || round % 2 == 0, "{to}: the former state is lost");
            found[which] += 1;
            // So the kills come to be around the moment at which it is done, however fast that is.
            limit = if which == 2 { limit / 2 } else { limit * 3 / 2 + 10 };
            // In half of the rounds nothing was there before, in the others another state.
            clear(&place.path("work"));
            clear(&place.path("log"));
            if round % 2 == 0 {
                place.run(&arguments.replace("new.json", "old.json")).success();
            }
        }
        println!("{to}: none {}, old {}, new {}", found[0], found[1], found[2]);
        assert!(found[2] < ROUNDS, "none was killed in time");
    }
}

fn clear(path: &Path) {
    if path.exists() {
        fs::remove_dir_all(path).unwrap();
    }
}

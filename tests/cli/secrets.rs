//! A password in an address of ZooKeeper appears in no output, however the address is malformed and
//! wherever it is given.

use std::thread::park_timeout;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::state_file::get;
use crate::support::{Master, NETWORK, Outcome, RunningProcess, TestDir};

const SECRET: &str = "s3cr3tW0rd";

/// Addresses that are malformed, or that a parser of other values refuses.
fn malformed_addresses() -> Vec<String> {
    [
        "ZK://u:SECRET@127.0.0.1:1/overlay",
        "zk//u:SECRET@127.0.0.1:1/overlay",
        "zk:/u:SECRET@127.0.0.1:1/overlay",
        "'zk://u:SECRET@127.0.0.1:1/overlay'",
        "\"zk://u:SECRET@127.0.0.1:1/overlay\"",
        "\u{feff}zk://u:SECRET@127.0.0.1:1/overlay",
        "zk://u:se@SECRET@127.0.0.1:0/overlay",
        "zk://u:SECRET%40127.0.0.1:1/overlay",
        "zk%3A//u%3ASECRET%40127.0.0.1:1/overlay",
        "zk://u:12/SECRET@127.0.0.1:1/overlay",
        "zk://u:SECRET/x@127.0.0.1:1/overlay",
        "zk://u:SECRET@127.0.0.1:1",
        "zk://u:SECRET@[::1:1/overlay",
        "zk://uSECRET@127.0.0.1:1/overlay",
        "zk://u:SECRET127.0.0.1:1/overlay",
        "u:SECRET@127.0.0.1:1/overlay",
        "zookeeper://u:SECRET@127.0.0.1:1/overlay",
        "ZK=zk://u:SECRET@127.0.0.1:1/overlay",
        "zk://u：SECRET＠127.0.0.1:1/overlay",
    ]
    .map(|address| address.replace("SECRET", SECRET))
    .into()
}

#[track_caller]
fn assert_hidden(outcome: &Outcome, place: &str) {
    let Outcome { code, stdout, stderr } = outcome;
    assert_ne!(*code, Some(0), "{place} was accepted");
    assert!(!stdout.contains(SECRET) && !stderr.contains(SECRET), "{place}: {stdout}{stderr}");
}

/// Runs commands that take an address, with the address as every argument. Every command ends.
fn check_commands(dir: &TestDir, address: &str) {
    for command in [
        "master --config none.json --store ADDRESS",
        "master --config none.json --store=ADDRESS",
        "master --config ADDRESS",
        "master --config network.json --work-dir ADDRESS",
        "master --config network.json --listen ADDRESS",
        "master ADDRESS",
        "agent --cni-dir /dev/null/x --master ADDRESS",
        "agent --cni-dir ADDRESS --master 127.0.0.1:1",
        "agent --config ADDRESS",
        "import none.json --to ADDRESS",
        "import none.json --to log:ADDRESS --config network.json",
        "import ADDRESS --to file --work-dir work",
        "export --from log:ADDRESS --output none/out",
        "export --form ADDRESS --from file",
        "check ADDRESS",
        "check network.json --against ADDRESS",
        "plan ADDRESS",
        "clean --state-dir ADDRESS --dry-run",
        "--log ADDRESS check network.json",
    ] {
        assert_hidden(&dir.run(&command.replace("ADDRESS", address)), command);
    }
}

#[test]
fn malformed_address_as_argument_hides_password() {
    let dir = TestDir::with_network();
    for address in malformed_addresses() {
        check_commands(&dir, &address);
    }
}

#[test]
fn malformed_address_in_environment_hides_password() {
    let dir = TestDir::with_network();
    for address in malformed_addresses() {
        for (variable, command) in [
            ("MESOS_OVERLAY_STORE", "master --config none.json"),
            ("MESOS_OVERLAY_CONFIG", "master"),
            ("MESOS_OVERLAY_WORK_DIR", "master --config network.json"),
            ("MESOS_OVERLAY_LISTEN", "master --config network.json"),
            ("MESOS_OVERLAY_MASTER", "agent --cni-dir /dev/null/x"),
            ("MESOS_OVERLAY_TO", "import none.json"),
            ("MESOS_OVERLAY_REPLACE", "import none.json --to file"),
            ("MESOS_OVERLAY_LOG", "check network.json"),
        ] {
            let outcome = dir.run_with(command, &[(variable, &address)], "");
            assert_hidden(&outcome, variable);
        }
    }
}

#[test]
fn help_hides_password_of_any_variable() {
    let dir = TestDir::new();
    let address = format!("zk://u:{SECRET}@127.0.0.1:1/overlay");
    for subcommand in ["master", "agent", "doctor", "state", "export", "import", "clean"] {
        for variable in ["LISTEN", "WORK_DIR", "CONFIG", "MASTER", "STORE", "FROM", "TO"] {
            let variable = format!("MESOS_OVERLAY_{variable}");
            let help = dir.run_with(&format!("{subcommand} --help"), &[(&variable, &address)], "");
            assert!(!help.success().contains(SECRET), "{subcommand} {variable}");
        }
    }
}

/// Configurations that have the address in the place of each value, and as a key.
fn configurations(address: &str) -> Vec<String> {
    let quoted = serde_json::to_string(address).unwrap();
    let mut files: Vec<String> = ["store", "work_dir", "reuse_after", "replicated_log_dir", "zk"]
        .iter()
        .map(|key| format!("{{\n\"network\": {NETWORK},\n\"{key}\":\n{quoted} }}"))
        .collect();
    files.extend(["url", "quorum", "session_timeout"].map(|key| {
        format!("{{ \"network\": {NETWORK}, \"x\": 1, \"zk\": {{ \"{key}\": {quoted} }} }}")
    }));
    files.extend(
        ["master", "cni_dir", "docker", "port_mapper", "underlay", "limits"]
            .map(|key| format!("{{ \"cni_dir\": \"/cni\", \"y\": 1, \"{key}\": {quoted} }}")),
    );
    files.push(NETWORK.replace("\"44.128.0.0/16\"", &quoted));
    files.push(format!("{{ {quoted}: 1, \"cni_dir\": \"/cni\" }}"));
    // Malformed files: no quotes, no end, a line break within the password's address.
    files.push(format!("{{ \"cni_dir\": \"/cni\", \"master\": {address} }}"));
    files.push(format!("{{ \"cni_dir\": \"/cni\", \"master\": \"{address}"));
    files.push(format!("{{ \"master\": \"{}\" }}", address.replacen("u:", "u:\n", 1)));
    files.push(format!(
        "{{ \"master\": \"{}\" }}",
        address.replacen(SECRET, &format!("{SECRET}\n"), 1)
    ));
    files
}

#[test]
fn malformed_address_in_file_hides_password() {
    let dir = TestDir::with_network();
    for address in malformed_addresses() {
        for file in configurations(&address) {
            dir.write("config.json", &file);
            for command in ["check config.json", "check config.json --json"] {
                let Outcome { stdout, stderr, .. } = dir.run(command);
                assert!(!(stdout + &stderr).contains(SECRET), "{command}: {file}");
            }
        }
        dir.write("address", &address);
        let url = format!("file://{}", dir.path("address").display());
        for command in [
            format!("master --config network.json --store {url} --listen 127.0.0.1:0"),
            format!("agent --cni-dir /dev/null/x --master {url}"),
            format!("import none.json --to {url}"),
        ] {
            assert_hidden(&dir.run(&command), &command);
        }
    }
}

#[test]
fn randomly_damaged_address_hides_password() {
    let dir = TestDir::with_network();
    let letters = prop::sample::select(vec![':', '@', '/', '"', '\'', '%', 'z', '\\', '\u{feff}']);
    let damage = (any::<bool>(), 0_usize..60, letters);
    let strategy = prop::collection::vec(damage, 1..3);
    let mut runner = TestRunner::new(Config { cases: 12, ..Config::default() });
    let result = runner.run(&strategy, |damages| {
        let mut address = format!("zk://u:{SECRET}@127.0.0.1:1/overlay");
        for (is_removal, at, letter) in damages {
            let at = address.floor_char_boundary(at % address.len());
            let mut damaged = address.clone();
            if is_removal {
                damaged.remove(at);
            } else {
                damaged.insert(at, letter);
            }
            if damaged.contains(SECRET) {
                address = damaged;
            }
        }
        for command in [
            "master --config none.json --store ADDRESS",
            "agent --cni-dir /dev/null/x --master ADDRESS",
            "import none.json --to ADDRESS",
            "check ADDRESS",
            "plan network.json ADDRESS",
        ] {
            assert_hidden(&dir.run(&command.replace("ADDRESS", &address)), &address);
        }
        dir.write("config.json", configurations(&address).join("\n"));
        for file in configurations(&address) {
            dir.write("config.json", &file);
            let Outcome { stdout, stderr, .. } = dir.run("check config.json");
            prop_assert!(!(stdout + &stderr).contains(SECRET), "{file}");
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn running_master_and_agent_hide_password() {
    let dir = TestDir::with_network();
    let address = format!("zk://u:{SECRET}@127.0.0.1:1,[::1]:1/overlay");
    let config = serde_json::json!({ "cni_dir": dir.path("cni"), "dataplane": "external" });
    dir.write("agent.json", config.to_string());
    let listen = "--listen 127.0.0.1:0 --log trace";
    let arguments = format!("master --config network.json --store {address} {listen}");
    let mut process = RunningProcess::start(&dir, &arguments);
    let rest = process.expect_log("overlay master at ");
    let at = rest.split(": ").next().unwrap().parse().unwrap();
    let master = Master { process, address: at };
    let arguments = format!("agent --config agent.json --master {address} {listen}");
    let mut agent = RunningProcess::start(&dir, &arguments);
    let rest = agent.expect_log("overlay agent at ");
    let at = rest.split(',').next().unwrap().parse().unwrap();
    park_timeout(Duration::from_secs(4));
    for path in ["state", "health", "metrics", "history"] {
        assert!(!get(master.address, &format!("/overlay-master/{path}")).contains(SECRET));
    }
    for path in ["overlay", "health", "metrics"] {
        assert!(!get(at, &format!("/overlay-agent/{path}")).contains(SECRET));
    }
    for process in [master.process, agent] {
        let (_, log) = process.terminate();
        assert!(!log.contains(SECRET), "{log}");
        assert!(log.contains("[::1]:1"), "{log}");
    }
}

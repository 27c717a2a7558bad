//! Configuration errors make Mesos exit. The log of the module names the error.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::daemon::Daemon;
use super::host::{Cluster, Host, run_ok};
use super::mesos::{
    AGENT, CPP_AGENT, CPP_MASTER, MASTER, MASTER_ADDRESS, Parameters, module_file, modules,
    start_mesos_agent, start_mesos_master, wait_until_ready,
};
use crate::library::{daemon, release_library};

/// The page with a table of error messages of Mesos.
const DOCUMENTATION: &str = include_str!("../../../docs/troubleshooting.md");

/// Checks that the process ends with exit code 1, and that its log contains all of `texts`.
fn assert_startup_fails(mut daemon: Daemon, texts: &[&str]) {
    let status = daemon.wait_for_exit(Duration::from_secs(30));
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for text in texts {
        assert!(log.contains(text), "'{text}' is not in\n{log}");
    }
}

/// Returns the message of Mesos about a module that returned an error.
fn creation_failure(name: &str) -> String {
    format!("Failed to create anonymous module named '{name}'")
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn invalid_master_parameters_are_named() {
    let cluster = Cluster::new();
    let hub = cluster.hub();
    let creation_failure = creation_failure(MASTER);
    let master = |change: &[(&str, &str)], expected: &[&str]| {
        let parameters = Parameters::master(hub).with(change);
        let modules = modules(hub, &[(MASTER, &parameters)]);
        assert_startup_fails(
            start_mesos_master(hub, &modules, &[]),
            &[expected, &[&creation_failure]].concat(),
        );
    };
    master(
        &[("overlays", "/nowhere/overlays.json")],
        &[
            "] overlay: overlay master: parameter 'overlays': read /nowhere/overlays.json: No such file or \
           directory (os error 2): check the path",
        ],
    );
    let broken =
        hub.write("broken.json", "{ \"vtep_subnet\": \"44.128.0.0/16\",\n  \"overlays\": }");
    let problem = format!("] overlay master: {broken}:2:15: bad JSON: no value here");
    master(
        &[("overlays", &broken)],
        &[&problem, "] overlay: overlay master: not loaded: fix 1 problem of"],
    );
    let wrong = hub.write(
        "wrong.json",
        r#"{"vtep_subnet":"44.128.0.0/16","vtep_mac_oui":"71:B3:D5:00:00:00","overlays":[]}"#,
    );
    let problems = [
        format!("] overlay master: {wrong}:1:47: vtep_mac_oui: '71:B3:D5:00:00:00' is a multicast"),
        format!("] overlay master: {wrong}:1:78: overlays: is empty: write at least one overlay"),
    ];
    master(&[("overlays", &wrong)], &problems.each_ref().map(String::as_str));
    master(
        &[("workdir", "/var/lib/overlay")],
        &["] overlay master: parameter 'workdir': is no parameter: did you mean 'work_dir'?"],
    );
    master(&[("overlays", &hub.text("."))], &[": not a regular file"]);
    let binary = hub.write("binary.json", b"\xff\xfe{}");
    master(&[("overlays", &binary)], &["not UTF-8: save the file as UTF-8"]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn invalid_agent_parameters_are_named() {
    let cluster = Cluster::new();
    let hub = cluster.hub();
    let creation_failure = creation_failure(AGENT);
    let agent = |parameters: &Parameters, expected: &[&str]| {
        let modules = modules(hub, &[(AGENT, parameters)]);
        let daemon = start_mesos_agent(hub, MASTER_ADDRESS, &modules, &[]);
        assert_startup_fails(daemon, &[expected, &[&creation_failure]].concat());
    };
    let good = Parameters::agent(hub, MASTER_ADDRESS);
    agent(
        &good.clone().without("master"),
        &["] overlay agent: parameter 'master': is missing: write the address of the master"],
    );
    agent(
        &good.clone().with(&[("master", "10.0.0.1")]),
        &["parameter 'master': is no address of a master: write HOST:PORT"],
    );
    agent(
        &good.clone().with(&[("cni_dirs", "/var/lib/mesos/cni")]),
        &["parameter 'cni_dirs': is no parameter: did you mean 'cni_dir'?"],
    );
    let file = hub.write("file", "");
    agent(&good.clone().with(&[("cni_dir", &format!("{file}/cni"))]), &["Not a directory"]);
    let missing = format!("file://{}", hub.text("missing"));
    agent(&good.with(&[("master", &missing)]), &["No such file or directory (os error 2): check"]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn documentation_lists_startup_errors_of_mesos() {
    let cluster = Cluster::new();
    let hub = cluster.hub();
    let parameters = Parameters::master(hub);
    let master = |modules: &str, flags: &[&str], documented: &str, texts: &[&str]| {
        assert!(
            DOCUMENTATION.contains(&format!("\n| `{documented}")),
            "docs/troubleshooting.md has no row for '{documented}'"
        );
        let documented: Vec<&str> = documented.split('…').collect();
        assert_startup_fails(
            start_mesos_master(hub, modules, flags),
            &[&documented, texts].concat(),
        );
    };
    let unknown = "com_mesosphere_mesos_MasterOverlay";
    let modules_of = |library: &Path| module_file(hub, library, &[(MASTER, &parameters)]);
    let good = modules(hub, &[(MASTER, &parameters)]);
    let list = modules(hub, &[(unknown, &parameters)]);
    master(&list, &[], "Error loading module '…': Error looking up symbol", &[unknown]);
    let list = modules_of(&hub.path("libmissing.so"));
    let missing = "Error opening library: …: cannot open shared object file";
    master(&list, &[], missing, &["libmissing.so"]);
    let missing = format!("file://{}", hub.text("missing.json"));
    master(&missing, &[], "Failed to load flag 'modules'", &["missing.json"]);
    let directory = hub.path("modules.d");
    fs::create_dir(&directory).expect("a directory");
    let both = format!("--modules_dir={}", directory.display());
    let only = "Only one of --modules or --modules_dir should be specified";
    master(&good, &[&both], only, &[]);

    // Libraries that were built for another version of Mesos.
    let version = run_ok(hub.command(daemon("mesos-master")).arg("--version"));
    let version = version.trim().strip_prefix("mesos ").expect(&version);
    let (earlier, later) = ("0.9.9", "9.9.9");
    let message = "Minimum supported mesos version for 'Anonymous' is …, but module is compiled with \
                 version …";
    master(
        &modules_of(&library_for_mesos_version(hub, version, earlier)),
        &[],
        message,
        &[earlier],
    );
    let message = "Mesos has version …, but module is compiled with version …";
    master(&modules_of(&library_for_mesos_version(hub, version, later)), &[], message, &[later]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn both_names_of_one_module_together_are_refused() {
    let cluster = Cluster::new();
    let hub = cluster.hub();
    let parameters = Parameters::master(hub);
    let twice = modules(hub, &[(MASTER, &parameters), (CPP_MASTER, &parameters)]);
    let message = |kind: &str, one: &str, other: &str| {
        format!(
            "] overlay: overlay {kind}: this process has one already: {one} and {other} are two names \
             of one module: load one"
        )
    };
    assert_startup_fails(
        start_mesos_master(hub, &twice, &[]),
        &[&message("master", MASTER, CPP_MASTER)],
    );
    let parameters = Parameters::agent(hub, MASTER_ADDRESS);
    let twice = modules(hub, &[(AGENT, &parameters), (CPP_AGENT, &parameters)]);
    let daemon = start_mesos_agent(hub, MASTER_ADDRESS, &twice, &[]);
    assert_startup_fails(daemon, &[&message("agent", AGENT, CPP_AGENT)]);
}

/// Copies the library, and replaces the version of Mesos in the copy. The new version must not be
/// longer.
fn library_for_mesos_version(host: &Host, from: &str, to: &str) -> PathBuf {
    let from = format!("{from}\0");
    let to = format!("{to:\0<length$}", length = from.len());
    let mut bytes = fs::read(release_library()).expect("the library is there");
    let windows = bytes.windows(from.len()).enumerate();
    let offsets: Vec<usize> =
        windows.filter(|(_, window)| *window == from.as_bytes()).map(|(at, _)| at).collect();
    assert!(!offsets.is_empty(), "the library does not contain the version of Mesos");
    for at in offsets {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    PathBuf::from(host.write("librelabelled.so", bytes))
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn module_listed_twice_under_either_name_works() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let parameters = Parameters::master(&hub);
    let twice = modules(&hub, &[(CPP_MASTER, &parameters), (CPP_MASTER, &parameters)]);
    let _master = start_mesos_master(&hub, &twice, &[]);
    let list = modules(&host, &[(CPP_AGENT, &Parameters::agent(&host, MASTER_ADDRESS))]);
    let _agent = start_mesos_agent(&host, MASTER_ADDRESS, &list, &[]);
    wait_until_ready(&hub, &[&host]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn second_copy_of_library_is_refused() {
    let cluster = Cluster::new();
    let hub = cluster.hub();
    let copy = hub.path("libcopy.so");
    fs::copy(release_library(), &copy).expect("the library is copied");
    let parameters = Parameters::master(hub);
    let list = |library: &Path, name: &str| {
        let path = module_file(hub, library, &[(name, &parameters)]);
        let text = fs::read(path.trim_start_matches("file://")).expect("the module file exists");
        let mut file: serde_json::Value =
            serde_json::from_slice(&text).expect("the module file is JSON");
        file["libraries"][0].take()
    };
    let libraries = [list(release_library(), MASTER), list(&copy, CPP_MASTER)];
    let file = hub.write("both.json", serde_json::json!({"libraries": libraries}).to_string());
    let modules = format!("file://{file}");
    assert_startup_fails(
        start_mesos_master(hub, &modules, &[]),
        &["a process of this name runs already"],
    );
}

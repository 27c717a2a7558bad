//! The module files that are shipped: Mesos and the modules take them as they are. The page for
//! operators shows the same, and the errors of `configure` as they are.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

use mesos_network_overlay::config::{
    Environment, agent_from_parameters, master_file, master_from_parameters,
};
use serde_json::Value;

const MASTER: &str = include_str!("../cpp-shim/master_modules.json.in");
const AGENT: &str = include_str!("../cpp-shim/agent_modules.json.in");
const EXAMPLE: &str = include_str!("../modules.json.example");
const NETWORK: &str = include_str!("../docs/network.json");
const CONFIGURE: &str = include_str!("../configure.ac");
const PAGE: &str = include_str!("../docs/mesos.md");
/// Where `make install` puts things if it is not told otherwise.
const LIBRARY: &str = "/usr/local/lib/libmesos_network_overlay.so";
const NETWORK_FILE: &str = "/usr/local/etc/mesos-overlay/network.json";

/// A template as `make install` writes it.
fn installed(template: &str) -> String {
    template.replace("@library@", LIBRARY).replace("@network@", NETWORK_FILE)
}

/// The modules of the one library of a module file: the name and the parameters of each.
fn modules(file: &str) -> Vec<(String, Vec<(String, String)>)> {
    let file: Value = serde_json::from_str(file).unwrap();
    assert_eq!(file["libraries"].as_array().unwrap().len(), 1, "{file}");
    let library = &file["libraries"][0];
    assert_eq!(library["file"], LIBRARY);
    // Mesos takes nothing but strings.
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |parameter: &Value| (text(&parameter["key"]), text(&parameter["value"]));
    let module = |module: &Value| {
        let parameters = module["parameters"].as_array().unwrap();
        (text(&module["name"]), parameters.iter().map(pair).collect())
    };
    library["modules"].as_array().unwrap().iter().map(module).collect()
}

#[track_caller]
fn is_taken_by_the_master(parameters: &[(String, String)]) {
    let (parameter, path) = master_file(parameters).unwrap();
    assert_eq!((parameter.as_str(), path.to_str()), ("overlays", Some(NETWORK_FILE)));
    let file = Some((NETWORK_FILE, NETWORK));
    let (_, warnings) = master_from_parameters(parameters, file, &Environment::default()).unwrap();
    assert_eq!(warnings, []);
}

#[track_caller]
fn is_taken_by_the_agent(parameters: &[(String, String)]) {
    let (_, warnings) = agent_from_parameters(parameters, None, &Environment::default()).unwrap();
    assert_eq!(warnings, []);
}

#[test]
fn the_files_that_make_writes_are_taken() {
    let [(name, parameters)] = &modules(&installed(MASTER))[..] else { panic!("one module") };
    assert_eq!(name, "com_mesosphere_mesos_MasterOverlayHelper");
    is_taken_by_the_master(parameters);
    let [(name, parameters)] = &modules(&installed(AGENT))[..] else { panic!("one module") };
    assert_eq!(name, "com_mesosphere_mesos_AgentOverlayHelper");
    is_taken_by_the_agent(parameters);
}

#[test]
fn the_example_is_taken_and_explained() {
    let both = modules(EXAMPLE);
    let [(master, of_master), (agent, of_agent)] = &both[..] else { panic!("two modules") };
    assert_eq!(master, "com_mesosphere_mesos_MasterOverlayHelper");
    assert_eq!(agent, "com_mesosphere_mesos_AgentOverlayHelper");
    is_taken_by_the_master(of_master);
    is_taken_by_the_agent(of_agent);
    for (key, _) in of_master.iter().chain(of_agent) {
        assert!(PAGE.contains(&format!("\n| `{key}` |")), "{key} is in no table of the page");
    }
}

#[test]
fn the_page_shows_the_files_as_they_are_installed() {
    for template in [MASTER, AGENT] {
        let shown: String =
            installed(template).lines().map(|line| format!("    {line}\n")).collect();
        assert!(PAGE.contains(&shown), "{shown}");
    }
}

#[test]
fn the_page_explains_errors_that_configure_has() {
    let texts = CONFIGURE.replace("$rust_wanted", env!("CARGO_PKG_RUST_VERSION"));
    let texts = texts.replace("$1", "mesos");
    let (_, table) = PAGE.split_once("\n| `configure: error: …` |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let errors: Vec<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert!(errors.len() > 1, "{table}");
    for error in errors {
        let is_there = error.split('…').all(|piece| texts.contains(piece));
        assert!(is_there, "configure never says: {error}");
    }
}

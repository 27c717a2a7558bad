//! The shipped module files: Mesos and the modules accept them unchanged. `docs/mesos.md` shows the
//! same files, and `docs/troubleshooting.md` quotes error messages of `configure` exactly.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_config::{Environment, agent_from_parameters, master_file, master_from_parameters};
use serde_json::Value;

const MASTER: &str = include_str!("../cpp-shim/master_modules.json.in");
const AGENT: &str = include_str!("../cpp-shim/agent_modules.json.in");
const EXAMPLE: &str = include_str!("../modules.json.example");
const NETWORK: &str = include_str!("../docs/network.json");
const CONFIGURE: &str = include_str!("../configure.ac");
const PAGE: &str = include_str!("../docs/mesos.md");
const TROUBLESHOOTING_PAGE: &str = include_str!("../docs/troubleshooting.md");
/// Default paths of `make install`.
const LIBRARY: &str = "/usr/local/lib/libmesos_network_overlay.so";
const NETWORK_FILE: &str = "/usr/local/etc/mesos-overlay/network.json";

/// Fills a template in as `make install` does.
fn installed(template: &str) -> String {
    template.replace("@library@", LIBRARY).replace("@network@", NETWORK_FILE)
}

/// Returns name and parameters of each module in a module file with a single library.
fn modules(file: &str) -> Vec<(String, Vec<(String, String)>)> {
    let file: Value = serde_json::from_str(file).unwrap();
    assert_eq!(file["libraries"].as_array().unwrap().len(), 1, "{file}");
    let library = &file["libraries"][0];
    assert_eq!(library["file"], LIBRARY);
    // Mesos accepts only strings here.
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |parameter: &Value| (text(&parameter["key"]), text(&parameter["value"]));
    let module = |module: &Value| {
        let parameters = module["parameters"].as_array().unwrap();
        (text(&module["name"]), parameters.iter().map(pair).collect())
    };
    library["modules"].as_array().unwrap().iter().map(module).collect()
}

#[track_caller]
fn assert_master_accepts(parameters: &[(String, String)]) {
    let (parameter, path) = master_file(parameters).unwrap();
    assert_eq!((parameter.as_str(), path.to_str()), ("overlays", Some(NETWORK_FILE)));
    let file = Some((NETWORK_FILE, NETWORK));
    let (_, warnings) = master_from_parameters(parameters, file, &Environment::default()).unwrap();
    assert_eq!(warnings, []);
}

#[track_caller]
fn assert_agent_accepts(parameters: &[(String, String)]) {
    let (_, warnings) = agent_from_parameters(parameters, None, &Environment::default()).unwrap();
    assert_eq!(warnings, []);
}

#[test]
fn installed_module_files_are_valid() {
    let [(name, parameters)] = &modules(&installed(MASTER))[..] else { panic!("one module") };
    assert_eq!(name, "com_mesosphere_mesos_MasterOverlayHelper");
    assert_master_accepts(parameters);
    let [(name, parameters)] = &modules(&installed(AGENT))[..] else { panic!("one module") };
    assert_eq!(name, "com_mesosphere_mesos_AgentOverlayHelper");
    assert_agent_accepts(parameters);
}

#[test]
fn example_module_file_is_valid_and_documented() {
    let both = modules(EXAMPLE);
    let [(master, master_parameters), (agent, agent_parameters)] = &both[..] else {
        panic!("two modules")
    };
    assert_eq!(master, "com_mesosphere_mesos_MasterOverlayHelper");
    assert_eq!(agent, "com_mesosphere_mesos_AgentOverlayHelper");
    assert_master_accepts(master_parameters);
    assert_agent_accepts(agent_parameters);
    for (key, _) in master_parameters.iter().chain(agent_parameters) {
        assert!(
            PAGE.contains(&format!("\n| `{key}` |")),
            "parameter {key} is in no table of docs/mesos.md"
        );
    }
}

#[test]
fn docs_page_shows_installed_module_files() {
    for template in [MASTER, AGENT] {
        let shown: String =
            installed(template).lines().map(|line| format!("    {line}\n")).collect();
        assert!(PAGE.contains(&shown), "{shown}");
    }
}

#[test]
fn docs_page_quotes_existing_configure_errors() {
    let texts = CONFIGURE.replace("$rust_wanted", env!("CARGO_PKG_RUST_VERSION"));
    let texts = texts.replace("$1", "mesos");
    let (_, table) = TROUBLESHOOTING_PAGE.split_once("\n| `configure: error: …` |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let errors: Vec<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert!(errors.len() > 1, "{table}");
    for error in errors {
        let exists = error.split('…').all(|piece| texts.contains(piece));
        assert!(exists, "configure has no such error: {error}");
    }
}

//! The configuration of the agent module in the flags and module files of a Mesos agent.

use std::path::{Path, PathBuf};

use overlay_config::{AgentConfig, Environment, agent_file, agent_from_parameters};
use overlay_types::secret::show_path;
use serde::Deserialize;

use super::describe;
use super::processes::RunningAgent;
use super::trusted_files::TrustedFiles;

/// The names of the agent module: ours, and the one of the C++ modules.
const NAMES: [&str; 2] =
    ["com_mesosphere_mesos_AgentOverlayHelper", "com_mesosphere_mesos_OverlayAgentManager"];

/// The module files of Mesos, as far as they are read.
#[derive(Debug, Deserialize)]
struct Modules {
    #[serde(default)]
    libraries: Vec<Library>,
}

#[derive(Debug, Deserialize)]
struct Library {
    #[serde(default)]
    modules: Vec<Module>,
}

#[derive(Debug, Deserialize)]
struct Module {
    name: String,
    #[serde(default)]
    parameters: Vec<Parameter>,
}

#[derive(Debug, Deserialize)]
struct Parameter {
    key: String,
    value: String,
}

type Parameters = Vec<(String, String)>;

/// Returns the parameters of the agent module in a text with modules.
fn parameters(file: &str, text: &str) -> Result<Option<Parameters>, String> {
    let modules: Modules = serde_json::from_str(text)
        .map_err(|error| format!("{file}: line {}: no module file of Mesos", error.line()))?;
    let mut all = modules.libraries.into_iter().flat_map(|library| library.modules);
    let module = all.find(|module| NAMES.contains(&module.name.as_str()));
    Ok(module.map(|module| {
        module.parameters.into_iter().map(|Parameter { key, value }| (key, value)).collect()
    }))
}

/// Returns the configuration of the module, with the files of the environment.
fn configuration(
    parameters: &Parameters,
    environment: &Environment,
    read_text: impl Fn(&Path) -> Result<String, String>,
) -> Result<AgentConfig, String> {
    let file = agent_file(parameters);
    let file = file.map(|(_, path)| read_text(&path).map(|text| (show_path(&path), text)));
    let file = file.transpose()?;
    let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let config = agent_from_parameters(parameters, file, environment);
    config.map(|(config, _)| config).map_err(|problems| describe(&problems))
}

/// Reads the configuration in a module file.
pub(super) fn read_file(files: TrustedFiles, path: &Path) -> Result<AgentConfig, String> {
    let name = show_path(path);
    let found = parameters(&name, &files.read_text(path)?)?;
    let found = found.ok_or_else(|| format!("{name}: it has no overlay module for agents"))?;
    // The address of the master may be in the environment of the Mesos agent. The doctor does not
    // need it.
    let mesos_master = Some("127.0.0.1:5050".to_owned());
    let environment = Environment { mesos_master, ..Environment::default() };
    configuration(&found, &environment, |path| files.read_text(path))
}

/// Returns the configuration of a Mesos agent, and the module file.
pub(super) fn of_mesos_agent(
    agent: &RunningAgent,
) -> Result<(AgentConfig, Option<PathBuf>), String> {
    let mut files = Vec::new();
    let mut found = None;
    if let Some(modules) = agent.flag("modules", "MESOS_MODULES") {
        let path = modules.strip_prefix("file://").unwrap_or(&modules);
        if path.starts_with('/') {
            files.push(PathBuf::from(path));
        } else {
            found = parameters("--modules", &modules)?.map(|parameters| (parameters, None));
        }
    }
    if let Some(directory) = agent.flag("modules_dir", "MESOS_MODULES_DIR") {
        files.extend(agent.files.list(&agent.resolve(Path::new(&directory))?)?);
    }
    files.sort();
    let mut problem = format!("the Mesos agent of process {} has no overlay module", agent.pid);
    for file in files {
        let text = agent.read_text(&file);
        match text.and_then(|text| parameters(&show_path(&file), &text)) {
            Ok(Some(parameters)) if found.is_none() => found = Some((parameters, Some(file))),
            Ok(_) => {}
            Err(error) => problem = error,
        }
    }
    let (parameters, file) = found.ok_or(problem)?;
    let master = agent.flag("master", "MESOS_MASTER");
    let environment = Environment { mesos_master: master, ..Environment::default() };
    let config = configuration(&parameters, &environment, |path| agent.read_text(path))?;
    Ok((config, file))
}

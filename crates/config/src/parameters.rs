//! The configuration of the two Mesos modules: parameters, which are named texts, the file that one
//! of them may name, and the environment.
//!
//! Every key of the file is also a parameter. A parameter takes precedence over the file. The
//! environment applies if neither has the key. The caller reads the environment, and the file that
//! [`master_file`] or [`agent_file`] returns.

use std::path::PathBuf;

use super::agent::{self, AgentConfig};
use super::document::{Document, Member, Node};
use super::environment::{Environment, RunMode};
use super::keys::{AGENT_MODULE, MASTER_MODULE, Schema};
use super::master::{self, MasterConfig};
use super::problem::{Problem, Problems};

/// Returns the parameter of the master module that names a file, and the path of the file. Returns
/// `None` if the path is bad; [`master_from_parameters`] reports the reason.
#[must_use]
pub fn master_file(parameters: &[(String, String)]) -> Option<(String, PathBuf)> {
    find_file(parameters, &MASTER_MODULE)
}

/// Returns the parameter of the agent module that names a file, and the path of the file. Returns
/// `None` if the path is bad; [`agent_from_parameters`] reports the reason.
#[must_use]
pub fn agent_file(parameters: &[(String, String)]) -> Option<(String, PathBuf)> {
    find_file(parameters, &AGENT_MODULE)
}

/// Parses the configuration of the master module. `file` is the name and the content of the file
/// that [`master_file`] returns.
///
/// # Errors
/// Returns every problem of parameters, file and environment.
pub fn master_from_parameters(
    parameters: &[(String, String)],
    file: Option<(&str, &str)>,
    environment: &Environment,
) -> Result<(MasterConfig, Vec<Problem>), Problems> {
    let (mut document, root) = open_document(parameters, file, &MASTER_MODULE);
    let config = master::read(&mut document, &root, RunMode::MesosModule(environment));
    document.finish(config)
}

/// Parses the configuration of the agent module. `file` is the name and the content of the file
/// that [`agent_file`] returns. The result always has a master.
///
/// # Errors
/// Returns every problem of parameters, file and environment.
pub fn agent_from_parameters(
    parameters: &[(String, String)],
    file: Option<(&str, &str)>,
    environment: &Environment,
) -> Result<(AgentConfig, Vec<Problem>), Problems> {
    let (mut document, root) = open_document(parameters, file, &AGENT_MODULE);
    let config = agent::read(&mut document, &root, RunMode::MesosModule(environment));
    document.finish(config)
}

/// Creates the document of file and parameters. Returns the document and its root.
fn open_document<'a>(
    parameters: &'a [(String, String)],
    file: Option<(&'a str, &'a str)>,
    schema: &Schema,
) -> (Document<'a>, Node<'a>) {
    let (mut document, mut root) = match file {
        Some((name, text)) => Document::parse(name, text),
        None => {
            let (document, root) = Document::without_file();
            (document, Some(root))
        }
    };
    let Parameters { files, keys } = read_parameters(&mut document, parameters, schema);
    document.add_overrides(keys);
    let path = read_file_path(&mut document, &files);
    if let Some(member) = files.first().filter(|_| file.is_none()) {
        if path.is_some() {
            document.refuse(&member.value, "names a file that was not read: read it first");
        }
        root = None;
    }
    let root = root.unwrap_or_else(|| document.replace_unreadable_root());
    (document, root)
}

fn find_file(parameters: &[(String, String)], schema: &Schema) -> Option<(String, PathBuf)> {
    let (mut document, _) = Document::without_file();
    let Parameters { files, .. } = read_parameters(&mut document, parameters, schema);
    let path = read_file_path(&mut document, &files)?;
    files.into_iter().next().map(|member| (member.name, path))
}

/// The known parameters of a module.
struct Parameters<'a> {
    /// Parameters that name a file.
    files: Vec<Member<'a>>,
    /// Parameters that are keys of the configuration.
    keys: Vec<Member<'a>>,
}

fn read_parameters<'a>(
    document: &mut Document<'a>,
    parameters: &'a [(String, String)],
    schema: &Schema,
) -> Parameters<'a> {
    let members =
        parameters.iter().map(|(name, value)| document.add_parameter(name, value)).collect();
    let known = document.known_members(members, schema).into_iter();
    let (files, keys) = known.partition(|member| match member.name.as_str() {
        "master_config" | "agent_config" => true,
        // `overlays` is the documented name of both the file and the list in the file.
        "overlays" => !member.value.raw.trim_start().starts_with('['),
        _ => false,
    });
    Parameters { files, keys }
}

fn read_file_path<'a>(document: &mut Document<'a>, files: &[Member<'a>]) -> Option<PathBuf> {
    let first = files.first()?;
    for other in &files[1..] {
        let name = &first.name;
        let message = format!("is given beside '{name}', which names a file too: keep one of them");
        document.refuse(&other.value, message);
    }
    let node = &first.value;
    if node.raw.trim_start().starts_with(['{', '[']) {
        document.refuse(node, "is JSON: write the path of a file that holds it");
        return None;
    }
    document.read_path(node, "/etc/mesos/overlays.json")
}

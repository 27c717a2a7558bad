//! The configuration of the two Mesos modules: parameters, which are texts with names, the file
//! that one of them may name, and the environment.
//!
//! Every key of the file is a parameter too and wins over the file; the environment counts where
//! neither says anything. The caller reads file and environment, before and after [`master_file`]
//! or [`agent_file`] says which file.

use std::fmt;
use std::path::PathBuf;

use super::document::{Document, Member, Node};
use super::keys::{AGENT_MODULE, MASTER_MODULE, Schema};
use super::problem::{Problem, Problems};
use super::{AgentConfig, MasterConfig, agent, master, redacted};

/// Variables in which Mesos has flags of its own, as the modules read them. An empty one is as good
/// as none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `MESOS_MASTER`: where an agent finds the master.
    pub mesos_master: Option<String>,
    /// `MESOS_ZK`: the ZooKeeper of the masters.
    pub mesos_zk: Option<String>,
    /// `MESOS_QUORUM`: how many masters make a majority.
    pub mesos_quorum: Option<String>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("mesos_master", &self.mesos_master.as_deref().map(redacted))
            .field("mesos_zk", &self.mesos_zk.as_deref().map(redacted))
            .field("mesos_quorum", &self.mesos_quorum)
            .finish()
    }
}

/// Who runs the machine that is configured.
#[derive(Debug, Clone, Copy)]
pub(super) enum Host<'a> {
    /// The program, which has flags beside its file.
    Program,
    /// A Mesos process, in this environment.
    Module(&'a Environment),
}

/// The parameter of the master module that names a file, and the path of it. None where that is
/// bad, which [`master_from_parameters`] refuses.
#[must_use]
pub fn master_file(parameters: &[(String, String)]) -> Option<(String, PathBuf)> {
    file_of(parameters, &MASTER_MODULE)
}

/// The same for the agent module.
#[must_use]
pub fn agent_file(parameters: &[(String, String)]) -> Option<(String, PathBuf)> {
    file_of(parameters, &AGENT_MODULE)
}

/// The configuration of the master module: its `parameters`, and the name and the content of the
/// file that is [`master_file`] of them.
///
/// # Errors
/// With every problem of parameters, file and environment.
pub fn master_from_parameters(
    parameters: &[(String, String)],
    file: Option<(&str, &str)>,
    environment: &Environment,
) -> Result<(MasterConfig, Vec<Problem>), Problems> {
    let (mut document, root) = open(parameters, file, &MASTER_MODULE);
    let config = master::read(&mut document, &root, Host::Module(environment));
    document.close(config)
}

/// The configuration of the agent module: its `parameters`, and the name and the content of the
/// file that is [`agent_file`] of them. It has a master.
///
/// # Errors
/// With every problem of parameters, file and environment.
pub fn agent_from_parameters(
    parameters: &[(String, String)],
    file: Option<(&str, &str)>,
    environment: &Environment,
) -> Result<(AgentConfig, Vec<Problem>), Problems> {
    let (mut document, root) = open(parameters, file, &AGENT_MODULE);
    let config = agent::read(&mut document, &root, Host::Module(environment));
    document.close(config)
}

/// The document of file and parameters, and its root.
fn open<'a>(
    parameters: &'a [(String, String)],
    file: Option<(&'a str, &'a str)>,
    schema: &Schema,
) -> (Document<'a>, Node<'a>) {
    let (mut document, mut root) = match file {
        Some((name, text)) => Document::open(name, text),
        None => {
            let (document, root) = Document::without_file();
            (document, Some(root))
        }
    };
    let (files, keys) = read(&mut document, parameters, schema);
    document.override_with(keys);
    let path = path_of(&mut document, &files);
    if let Some(member) = files.first().filter(|_| file.is_none()) {
        if path.is_some() {
            document.refuse(&member.value, "names a file that was not read: read it first");
        }
        root = None;
    }
    let root = root.unwrap_or_else(|| document.root_of_unread());
    (document, root)
}

fn file_of(parameters: &[(String, String)], schema: &Schema) -> Option<(String, PathBuf)> {
    let (mut document, _) = Document::without_file();
    let (files, _) = read(&mut document, parameters, schema);
    let path = path_of(&mut document, &files)?;
    files.into_iter().next().map(|member| (member.name, path))
}

/// The parameters that name a file, and the others.
fn read<'a>(
    document: &mut Document<'a>,
    parameters: &'a [(String, String)],
    schema: &Schema,
) -> (Vec<Member<'a>>, Vec<Member<'a>>) {
    let members = parameters.iter().map(|(name, value)| document.parameter(name, value)).collect();
    document.known(members, schema).into_iter().partition(|member| match member.name.as_str() {
        "master_config" | "agent_config" => true,
        // The documented name of the file is also the name of the list in it.
        "overlays" => !member.value.raw.trim_start().starts_with('['),
        _ => false,
    })
}

fn path_of<'a>(document: &mut Document<'a>, files: &[Member<'a>]) -> Option<PathBuf> {
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
    document.path(node, "/etc/mesos/overlays.json")
}

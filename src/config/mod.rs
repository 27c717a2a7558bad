//! JSON text, or the parameters of a Mesos module, to checked configuration: whoever holds a
//! [`MasterConfig`] or an [`AgentConfig`] need not check it again, and whoever wrote a bad one is
//! told all of its problems at once, each with file, line, column, key and remedy.
//!
//! Why no derived `Deserialize`: it stops at the first problem and does not know where that is.
//! Here the text is first located JSON (`document`), of which the readers of single values
//! (`value`) and of the objects (`overlay`, `network`, `master`, `agent`) take what they know
//! (`keys`), noting every problem on the way. Legal but unwise is `advice`. Parameters and the
//! environment (`parameters`) are further members of the same objects, so that nothing is read
//! twice; `source` tells them apart in messages. The page for operators is
//! `docs/configuration.md`.
//!
//! Never reads a file or the environment and never stops: every text gives a configuration or
//! problems.

mod advice;
mod agent;
mod dataplane;
mod document;
mod keys;
mod limits;
mod master;
mod network;
mod overlay;
mod parameters;
mod problem;
mod source;
mod space;
mod value;
mod vxlan;

pub use agent::{AgentConfig, parse_agent};
pub use dataplane::{DataplaneConfig, DataplaneKind, FirewallKind};
pub use master::{
    EnsembleSource, MasterConfig, StoreKind, StoreKindError, ZooKeeper, parse_master,
};
pub use parameters::{
    Environment, agent_file, agent_from_parameters, master_file, master_from_parameters,
};
pub use problem::{Place, Problem, Problems};

use document::Document;

/// The configuration of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// A network file or `master_config`.
    Master(MasterConfig),
    /// `agent_config`.
    Agent(AgentConfig),
}

/// Reads the content of `file`, whichever configuration it is: the one that more of its keys belong
/// to, else the master's.
///
/// # Errors
/// With every problem of the file.
pub fn parse(file: &str, text: &str) -> Result<(Config, Vec<Problem>), Problems> {
    let (mut document, root) = Document::open(file, text);
    let members = root.and_then(|root| document.members(&root)).unwrap_or_default();
    let count = |schemas: &[&keys::Schema]| {
        let is_known = |name: &str| schemas.iter().any(|schema| schema.has(name));
        members.iter().filter(|member| is_known(&member.name)).count()
    };
    if count(&[&keys::AGENT]) > count(&[&keys::MASTER, &keys::NETWORK]) {
        parse_agent(file, text).map(|(config, warnings)| (Config::Agent(config), warnings))
    } else {
        parse_master(file, text).map(|(config, warnings)| (Config::Master(config), warnings))
    }
}

/// `url` without the user and password that may be in it: configurations get logged.
fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod parameter_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod texts;

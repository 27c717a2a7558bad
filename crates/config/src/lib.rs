//! Converts JSON text, or the parameters of a Mesos module, into checked configuration.
//!
//! A [`MasterConfig`] or an [`AgentConfig`] needs no further checks. A refused configuration is
//! reported with all of its problems at once, each with file, line, column, key and remedy.
//!
//! Why no derived `Deserialize`: serde stops at the first problem and does not know its location.
//! Instead, `document` parses the text into JSON nodes that know their locations. The readers of
//! single values (`value`) and of objects (`overlay`, `network`, `master`, `agent`) consume the
//! keys that they know (`keys`) and note every problem on the way. `warnings` reports settings
//! that are legal but unwise. Parameters and the environment (`parameters`, `environment`) are
//! further members of the same objects, so each key has one reader; `source` tells the origins
//! apart in messages. The page for operators is `docs/configuration.md`. Files of credentials have
//! a format of their own (`credential`), whose messages never quote them.
//!
//! This crate never reads a file or the environment and never panics: every text results in a
//! configuration or in problems.

mod address_ranges;
mod agent;
mod authentication;
mod credential;
mod dataplane;
mod document;
mod environment;
mod http;
mod keys;
mod limits;
mod master;
mod network;
mod overlay;
mod parameters;
mod problem;
mod source;
mod text;
mod value;
mod vtep_subnets;
mod vxlan;
mod warnings;

pub use agent::{AgentConfig, CniPlugin, parse_agent};
pub use authentication::AuthenticationConfig;
pub use credential::{
    CREDENTIALS_FILE_MAX, Credential, CredentialError, Credentials, credential_mode_warning,
    credential_path, parse_agent_credential, parse_shared_secrets, secrets_of_credentials,
};
pub use dataplane::{DataplaneConfig, DataplaneKind, FirewallKind, ForwardingKind, OverlayIngress};
use document::{Document, Member};
pub use environment::Environment;
pub use http::{Acls, HttpConfig, Principals, normalize_hostname};
use keys::Schema;
pub use keys::nearest_key;
pub use master::{
    EnsembleSource, MasterConfig, StoreKind, StoreKindError, ZooKeeper, parse_master,
};
pub use parameters::{agent_file, agent_from_parameters, master_file, master_from_parameters};
pub use problem::{Problem, Problems, SourceLocation};
pub use value::RelativePathError;

/// The configuration of a master or of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// A network file or `master_config`.
    Master(MasterConfig),
    /// `agent_config`.
    Agent(AgentConfig),
}

/// Parses the content of `file` as the kind of configuration to which most of its keys belong. On
/// a tie, the file is a configuration of the master.
///
/// # Errors
/// Returns every problem of the file.
pub fn parse(file: &str, text: &str) -> Result<(Config, Vec<Problem>), Problems> {
    let (mut document, root) = Document::parse(file, text);
    let members = root.and_then(|root| document.read_members(&root)).unwrap_or_default();
    let agent_keys = count_known(&members, &[&keys::AGENT]);
    if agent_keys > count_known(&members, &[&keys::MASTER, &keys::NETWORK]) {
        parse_agent(file, text).map(|(config, warnings)| (Config::Agent(config), warnings))
    } else {
        parse_master(file, text).map(|(config, warnings)| (Config::Master(config), warnings))
    }
}

/// Counts the members that one of the schemas knows.
fn count_known(members: &[Member<'_>], schemas: &[&Schema]) -> usize {
    let is_known = |member: &&Member<'_>| schemas.iter().any(|schema| schema.has(&member.name));
    members.iter().filter(is_known).count()
}

#[cfg(test)]
mod credential_tests;
#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod parameter_tests;
#[cfg(test)]
mod tests;

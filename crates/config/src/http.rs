//! `acls` and `hostnames` of `master_config` and of `agent_config`: who may use the HTTP endpoints,
//! and under which names.

use std::collections::BTreeSet;

use super::document::{Document, Node, Object};
use super::keys::ACLS;

/// The word that stands for every client in `acls`.
const ANY: &str = "ANY";
/// Maximum length of a principal in characters, as in a credentials file.
const PRINCIPAL_MAX: usize = 256;
/// Maximum length of a name in DNS.
const HOSTNAME_MAX: usize = 253;

/// Who may use the HTTP endpoints, and under which names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpConfig {
    /// The principals that may read and write.
    pub acls: Acls,
    /// The names of this server besides those of its host, in lower case.
    pub hostnames: BTreeSet<String>,
}

/// The principals that may read and write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acls {
    /// Who may read.
    pub read: Principals,
    /// Who may change the state. Never [`Principals::Any`].
    pub write: Principals,
}

/// A set of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Principals {
    /// Every client that has authenticated.
    #[default]
    Authenticated,
    /// Every client, also without authentication.
    Any,
    /// These principals.
    Listed(BTreeSet<String>),
}

impl Principals {
    /// Whether an authenticated client is in the set. `principal` is empty if the client has no
    /// name.
    #[must_use]
    pub fn contains(&self, principal: &str) -> bool {
        match self {
            Self::Authenticated | Self::Any => true,
            Self::Listed(principals) => principals.contains(principal),
        }
    }
}

impl Acls {
    /// Whether a principal is listed, which only authenticated clients can be.
    #[must_use]
    pub const fn lists_principals(&self) -> bool {
        matches!(self.read, Principals::Listed(_)) || matches!(self.write, Principals::Listed(_))
    }
}

/// Reads `acls` and `hostnames`, if given.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>) -> HttpConfig {
    let hostnames = object.value("hostnames");
    let hostnames = hostnames.and_then(|node| read_hostnames(document, &node));
    let mut acls = Acls::default();
    if let Some(object) = document.nested_object(object, "acls", &ACLS) {
        if let Some(node) = object.value("read") {
            acls.read = read_principals(document, &node).unwrap_or_default();
        }
        if let Some(node) = object.value("write") {
            acls.write = read_principals(document, &node).unwrap_or_default();
            if acls.write == Principals::Any {
                let message = "is \"ANY\", which would let strangers release agents: write a list \
                               of principals";
                document.refuse(&node, message);
            }
        }
    }
    HttpConfig { acls, hostnames: hostnames.unwrap_or_default() }
}

/// Reads a list of principals, or `"ANY"`.
fn read_principals<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Principals> {
    if node.raw == "\"ANY\"" || node.plain() == Some(ANY) {
        return Some(Principals::Any);
    }
    let expected = "a principal such as \"ops\"";
    let mut principals = BTreeSet::new();
    for element in document.read_list(node)? {
        let principal = document.read_text(&element, PRINCIPAL_MAX, expected)?;
        if principal.is_empty() || principal == ANY {
            let message = "is no principal: write a principal such as \"ops\", or \"ANY\" in the \
                           place of the list";
            document.refuse(&element, message);
            return None;
        }
        principals.insert(principal);
    }
    Some(Principals::Listed(principals))
}

fn read_hostnames<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for element in document.read_list(node)? {
        let expected = "a name such as \"overlay.example.com\"";
        let name = document.read_text(&element, HOSTNAME_MAX, expected)?;
        match normalize_hostname(&name) {
            Some(name) => names.insert(name),
            None => {
                let message = format!("is no host name: write {expected}, without port");
                document.refuse(&element, message);
                return None;
            }
        };
    }
    Some(names)
}

/// Returns a host name in lower case and without the final dot; `None` if it is no host name.
#[must_use]
pub fn normalize_hostname(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let is_valid = name.len() <= HOSTNAME_MAX
        && name.chars().all(is_allowed)
        && name.split('.').all(|label| !label.is_empty() && label.len() <= 63);
    is_valid.then_some(name)
}

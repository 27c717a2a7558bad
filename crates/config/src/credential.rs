//! Credentials in the formats of Mesos: one for a client, a list for a server.
//!
//! No message repeats any part of a file: a malformed file may have its secret in any place.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use overlay_types::advice::Command;
use overlay_types::protocol::{
    AgentCredential, Principal, PrincipalError, SharedSecret, SharedSecrets,
};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Longest file of credentials, in bytes: thousands of principals.
pub const CREDENTIALS_FILE_MAX: u64 = 1024 * 1024;

/// Permission bits that a file with secrets must not have: those of the group, of others, and the
/// right to execute.
const EXCESS_MODE: u32 = 0o177;
const PERMISSION_BITS: u32 = 0o7777;

/// Most characters of a principal or a secret.
pub(super) const WORD_MAX: usize = 1024;

/// The scheme of basic authentication, with the space after it.
const BASIC: &str = "Basic ";

pub(super) const ONE: &str = r#"{"principal": "NAME", "secret": "SECRET"}"#;
pub(super) const LIST: &str = r#"{"credentials": [{"principal": "NAME", "secret": "SECRET"}, …]}"#;

/// A principal and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub(super) principal: String,
    pub(super) secret: String,
}

/// A SHA-256 digest.
pub(super) type SecretDigest = [u8; 32];

/// The credentials that a server accepts. There is at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The digest of each principal's secret. Digests have one length, so their comparison does not
    /// reveal the length of a secret.
    pub(super) digests: BTreeMap<String, SecretDigest>,
}

/// Why a text holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The text has no content.
    #[error("it is empty: write {expected}")]
    Empty {
        /// The format.
        expected: &'static str,
    },
    /// The text begins like JSON, and is none.
    #[error("line {line}, column {column}: invalid JSON: write {expected}")]
    Json {
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
        /// The format.
        expected: &'static str,
    },
    /// A key occurs twice in one object. Of two lists or secrets, one would not count.
    #[error("line {line}, column {column}: a key is given more than once: keep one of them")]
    RepeatedKey {
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
    },
    /// A list where one credential is expected, or the other way round.
    #[error("it holds {found}: write {expected}")]
    OtherFormat {
        /// The content.
        found: &'static str,
        /// The format.
        expected: &'static str,
    },
    /// One of the credentials is invalid.
    #[error("{place}: {reason}")]
    Invalid {
        /// The position in the file.
        place: String,
        /// The fault and the remedy.
        reason: &'static str,
    },
}

impl Credential {
    /// Parses the content of a file for `--credential`: JSON, or a line with principal and secret.
    ///
    /// # Errors
    /// Returns the first fault.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let text = trim(text);
        let first = if is_json(text) {
            let json = parse_json(text, ONE)?;
            if json.get("credentials").is_some() {
                let found = "a list of credentials, as a master reads it";
                return Err(CredentialError::OtherFormat { found, expected: ONE });
            }
            from_json(&json, || "credential".to_owned())?
        } else {
            let mut lines = text_lines(text);
            let first = lines.next().ok_or(CredentialError::Empty { expected: ONE })??;
            if lines.next().is_some() {
                let found = "several lines";
                return Err(CredentialError::OtherFormat { found, expected: ONE });
            }
            first.1
        };
        Ok(first)
    }

    /// The name.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Returns the value of the header `Authorization` for basic authentication. It contains the
    /// secret.
    #[must_use]
    pub fn basic_authorization(&self) -> String {
        let pair = format!("{}:{}", self.principal, self.secret);
        format!("{BASIC}{}", BASE64_STANDARD.encode(pair))
    }

    /// Returns the secret as agents and masters share it.
    fn shared_secret(&self) -> SharedSecret {
        SharedSecret::from_digest(digest(&self.secret))
    }

    /// Checks that basic authentication can carry the values (RFC 7617, section 2).
    fn checked(
        principal: &str,
        secret: &str,
        place: impl FnOnce() -> String,
    ) -> Result<Self, CredentialError> {
        let is_valid = |text: &str| !text.chars().any(char::is_control);
        let reason = if principal.is_empty() {
            "the principal is empty: write a name"
        } else if secret.is_empty() {
            "the secret is empty: choose one"
        } else if principal.contains(':') {
            "the principal contains a colon, which basic authentication does not allow: choose \
             another name"
        } else if !is_valid(principal) || !is_valid(secret) {
            "it contains a control character, which basic authentication does not allow: choose \
             others"
        } else if principal.chars().count().max(secret.chars().count()) > WORD_MAX {
            "it has more than 1024 characters: choose shorter ones"
        } else {
            return Ok(Self { principal: principal.to_owned(), secret: secret.to_owned() });
        };
        Err(CredentialError::Invalid { place: place(), reason })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("principal", &self.principal).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Parses the content of a file for `--credentials`: JSON, or a line with principal and secret
    /// for each credential.
    ///
    /// # Errors
    /// Returns the first fault.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let mut digests = BTreeMap::new();
        for (Credential { principal, secret }, place) in parse_list(text)? {
            if digests.insert(principal, digest(&secret)).is_some() {
                let reason = "another credential has the same principal: remove one of them";
                return Err(CredentialError::Invalid { place, reason });
            }
        }
        Ok(Self { digests })
    }

    /// The names, in their order.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        self.digests.keys().map(String::as_str)
    }

    /// Returns the principal whose credential the header `Authorization` of a request contains;
    /// `None` if the header has another scheme or an unknown principal, or if the secret is wrong.
    ///
    /// The time depends on the length of the given secret only, also for an unknown principal.
    #[must_use]
    pub fn authenticate(&self, authorization: &str) -> Option<&str> {
        let scheme = authorization.get(..BASIC.len())?;
        let encoded = authorization.get(BASIC.len()..)?.trim();
        if !scheme.eq_ignore_ascii_case(BASIC) {
            return None;
        }
        let pair = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
        let (principal, secret) = pair.split_once(':')?;
        let known = self.digests.get_key_value(principal);
        let expected = known.map_or(&UNKNOWN, |(_, expected)| expected);
        let is_equal = bool::from(digest(secret).ct_eq(expected));
        known.filter(|_| is_equal).map(|(principal, _)| principal.as_str())
    }
}

/// Returns the secrets of a file with one or several credentials, so that other texts can be shown
/// without them. An invalid file has none.
#[must_use]
pub fn secrets_of_credentials(text: &str) -> Vec<String> {
    let one = Credential::parse(text).ok().map(|credential| vec![credential.secret]);
    let several = || {
        let list = parse_list(text).ok()?;
        Some(list.into_iter().map(|(credential, _)| credential.secret).collect())
    };
    one.or_else(several).unwrap_or_default()
}

/// Parses the content of the file with the credential of an agent.
///
/// # Errors
/// Returns the first fault, without any part of the content.
pub fn parse_agent_credential(text: &str) -> Result<AgentCredential, CredentialError> {
    let credential = Credential::parse(text)?;
    let principal = to_principal(&credential, || "credential".to_owned())?;
    Ok(AgentCredential { principal, secret: credential.shared_secret() })
}

/// Parses the content of the file with the credentials that a master accepts from agents. A
/// principal may have two secrets.
///
/// # Errors
/// Returns the first fault, without any part of the content.
pub fn parse_shared_secrets(text: &str) -> Result<SharedSecrets, CredentialError> {
    let mut secrets = SharedSecrets::default();
    for (credential, place) in parse_list(text)? {
        let principal = to_principal(&credential, || place.clone())?;
        if !secrets.insert(principal, credential.shared_secret()) {
            let reason = "the principal has more than two secrets: keep the former and the new one";
            return Err(CredentialError::Invalid { place, reason });
        }
    }
    Ok(secrets)
}

fn to_principal(
    credential: &Credential,
    place: impl FnOnce() -> String,
) -> Result<Principal, CredentialError> {
    let reason = "the principal of an agent has more than 255 bytes: choose a shorter one";
    let principal = credential.principal.parse();
    principal.map_err(|_: PrincipalError| CredentialError::Invalid { place: place(), reason })
}

/// Is compared with the secret of an unknown principal.
const UNKNOWN: SecretDigest = [0; 32];

pub(super) fn digest(secret: &str) -> SecretDigest {
    Sha256::digest(secret).into()
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let principals: Vec<&str> = self.principals().collect();
        f.debug_struct("Credentials").field("principals", &principals).finish_non_exhaustive()
    }
}

/// Returns the path of a file of credentials. Mesos also writes it as a `file://` URL.
#[must_use]
pub fn credential_path(flag: &Path) -> &Path {
    flag.to_str().and_then(|text| text.strip_prefix("file://")).map_or(flag, Path::new)
}

/// Returns a warning if `mode`, the mode of the file `name`, lets other users read it.
#[must_use]
pub fn credential_mode_warning(name: &str, mode: u32) -> Option<String> {
    let mode = mode & PERMISSION_BITS;
    (mode & EXCESS_MODE != 0).then(|| {
        format!(
            "{name}: the file holds secrets, and its mode {mode:04o} is wider than 0600: restrict \
             it with {}",
            Command::restrict_file(Path::new(name))
        )
    })
}

/// Parses the content of a file for `--credentials`. Returns at least one credential, each with its
/// position in the file.
fn parse_list(text: &str) -> Result<Vec<(Credential, String)>, CredentialError> {
    let text = trim(text);
    let list: Vec<(Credential, String)> = if is_json(text) {
        let json = parse_json(text, LIST)?;
        let Some(Value::Array(elements)) = json.get("credentials") else {
            let found = match json.get("principal") {
                Some(_) => "one credential, as a client reads it",
                None => "no list 'credentials'",
            };
            return Err(CredentialError::OtherFormat { found, expected: LIST });
        };
        let parse = |(index, element)| {
            let place = || format!("credentials[{index}]");
            Ok((from_json(element, place)?, place()))
        };
        elements.iter().enumerate().map(parse).collect::<Result<_, _>>()?
    } else {
        let parse = |line: Result<(usize, Credential), CredentialError>| {
            line.map(|(number, credential)| (credential, format!("line {number}")))
        };
        text_lines(text).map(parse).collect::<Result<_, _>>()?
    };
    if list.is_empty() {
        return Err(CredentialError::Empty { expected: LIST });
    }
    Ok(list)
}

/// Returns the text without the byte order mark that some editors write, and without outer space.
fn trim(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
}

fn is_json(text: &str) -> bool {
    text.starts_with(['{', '[', '"'])
}

fn parse_json(text: &str, expected: &'static str) -> Result<Value, CredentialError> {
    // Only the position of an error is used: its text can quote the file.
    let json = serde_json::from_str(text).map_err(|error| CredentialError::Json {
        line: error.line(),
        column: error.column(),
        expected,
    })?;
    serde_json::from_str::<UniqueKeys>(text).map_err(|error| CredentialError::RepeatedKey {
        line: error.line(),
        column: error.column(),
    })?;
    Ok(json)
}

/// JSON whose objects have each key once.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeysVisitor)
    }
}

struct UniqueKeysVisitor;

impl<'de> Visitor<'de> for UniqueKeysVisitor {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("repeated"));
            }
            map.next_value::<UniqueKeys>()?;
        }
        Ok(UniqueKeys)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<UniqueKeys, A::Error> {
        while elements.next_element::<UniqueKeys>()?.is_some() {}
        Ok(UniqueKeys)
    }

    fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }
}

fn from_json(json: &Value, place: impl Fn() -> String) -> Result<Credential, CredentialError> {
    let member = |key, reason| match json.get(key) {
        Some(Value::String(text)) => Ok(Cow::Borrowed(text.as_str())),
        _ => Err(CredentialError::Invalid { place: place(), reason }),
    };
    let principal = member("principal", "it has no text 'principal': write the name")?;
    let secret = member("secret", "it has no text 'secret': write the secret")?;
    Credential::checked(&principal, &secret, place)
}

/// Returns the credential of each line that is not empty, with the number of the line.
fn text_lines(text: &str) -> impl Iterator<Item = Result<(usize, Credential), CredentialError>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| {
        let number = index + 1;
        let place = || format!("line {number}");
        let mut words = line.split_whitespace();
        let (Some(principal), Some(secret), None) = (words.next(), words.next(), words.next())
        else {
            let reason = "it is not a principal and a secret, separated by a space: write these \
                          two, or use JSON for names with spaces";
            return Err(CredentialError::Invalid { place: place(), reason });
        };
        Ok((number, Credential::checked(principal, secret, place)?))
    })
}

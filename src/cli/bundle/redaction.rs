//! Removes secrets from the texts of a bundle.
//!
//! Two rules complement each other. The secrets of the credential files that this command reads are
//! removed wherever they occur. All other texts lose what looks like a secret: passwords in
//! addresses, values of keys whose name says so, credentials of HTTP, and private keys.

use std::borrow::Cow;
use std::path::Path;

use overlay_config::secrets_of_credentials;
use overlay_types::secret::HIDDEN;
use regex::Regex;

use super::files::read_regular_file;
use crate::cli::Failure;

/// Shorter secrets occur in other words. They are still removed where they look like secrets.
const SECRET_MIN: usize = 4;

/// What looks like a secret, with the text that replaces it. `$1` is the part that stays.
const PATTERNS: [(&str, &str); 5] = [
    // `zk://USER:PASSWORD@HOST`. A password may contain any character but a space and a quote.
    (r#"(://)[^\s"'<>]*@"#, "$1…@"),
    // `"secret": "VALUE"`, also within a JSON string.
    (
        r#"(?i)((?:\\?["'])[\w.-]*(?:secret|passw(?:or)?d|token|private_?key)[\w.-]*\\?["']\s*:\s*)(?:\\"(?:[^"\\]|\\[^"])*\\"|"(?:[^"\\]|\\.)*")"#,
        r#"$1"…""#,
    ),
    // `--secret=VALUE`, `PASSWORD='VALUE'`
    (
        r#"(?i)([\w.-]*(?:secret|passw(?:or)?d|token|private_?key)[\w.-]*=)(?:"[^"]*"|'[^']*'|[^\s"']+)"#,
        "$1…",
    ),
    // `Authorization: Basic VALUE`
    (r"(?i)(authorization\W+(?:basic|bearer|digest)\s+)[^\s\x22']+", "$1…"),
    (r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", "$1…"),
];

/// Removes secrets from texts.
#[derive(Debug)]
pub(super) struct Redaction {
    /// The known secrets, the longest first.
    secrets: Vec<String>,
    patterns: Vec<(Regex, &'static str)>,
}

impl Redaction {
    /// Creates the rules, without known secrets.
    ///
    /// # Errors
    /// If a pattern is wrong, which the tests exclude.
    pub(super) fn new() -> Result<Self, Failure> {
        let compile = |(pattern, replacement)| {
            Regex::new(pattern)
                .map(|regex| (regex, replacement))
                .map_err(|error| Failure::new(format!("bundle: redaction: {error}")))
        };
        let patterns = PATTERNS.into_iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { secrets: Vec::new(), patterns })
    }

    /// Learns the secrets of a file of credentials. A file that cannot be read has no secret that
    /// this command could write.
    pub(super) fn learn_file(&mut self, path: &Path) {
        if let Ok(text) = read_regular_file(path) {
            self.learn(&String::from_utf8_lossy(&text));
        }
    }

    fn learn(&mut self, credentials: &str) {
        let secrets = secrets_of_credentials(credentials);
        self.secrets.extend(secrets.into_iter().filter(|secret| secret.len() >= SECRET_MIN));
        self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// Returns the text without secrets.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in &self.secrets {
            if text.contains(secret) {
                text = text.replace(secret, HIDDEN).into();
            }
        }
        for (regex, replacement) in &self.patterns {
            if let Cow::Owned(replaced) = regex.replace_all(&text, *replacement) {
                text = replaced.into();
            }
        }
        text.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A secret of the tests. No message contains it by chance.
    const SECRET: &str = "s3cr3tW0rd";

    #[test]
    fn texts_like_secrets_are_removed() {
        let redaction = Redaction::new().unwrap();
        for text in [
            format!("zk://user:{SECRET}@10.0.0.1:2181,10.0.0.2:2181/mesos-overlay"),
            format!("--master=zk://user:a/b:{SECRET}@10.0.0.1:2181/path"),
            format!("proxy http://{SECRET}@proxy:3128"),
            format!(r#"{{"principal": "agents", "secret": "{SECRET}"}}"#),
            format!(r#"{{"aws_secret_access_key" : "{SECRET}\"{SECRET}"}}"#),
            format!(r#"log: "{{\"principal\": \"agents\", \"secret\":\"{SECRET}\"}}""#),
            format!("Environment=MESOS_PASSWORD={SECRET}"),
            format!("Environment=\"MESOS_HTTP_TOKEN={SECRET}\""),
            format!("password='{SECRET} {SECRET}'"),
            format!("GET / HTTP/1.1\r\nAuthorization: Basic {SECRET}\r\nHost: a"),
            format!("\"authorization\": \"Bearer {SECRET}\""),
            format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"),
            format!("-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n{SECRET}"),
        ] {
            let redacted = redaction.apply(&text);
            assert!(!redacted.contains(SECRET), "{redacted}");
            assert!(redacted.contains(HIDDEN), "{redacted}");
        }
    }

    #[test]
    fn harmless_text_is_unchanged() {
        let redaction = Redaction::new().unwrap();
        for text in [
            "agent 10.0.0.1: the secret of principal 'agents' is wrong: check the credential",
            r#"{"credential": "/etc/mesos-overlay/credential", "master": "zk://10.0.0.1:2181/a"}"#,
            "inet 10.0.0.1/24 scope global eth0@if7",
            "--credential=/etc/mesos-overlay/credential --listen=0.0.0.0:5061",
            "udp dport 4789 counter packets 7 bytes 1000 accept # handle 12",
        ] {
            assert_eq!(redaction.apply(text), text);
        }
    }

    #[test]
    fn secrets_of_credential_files_are_removed_everywhere() {
        let mut redaction = Redaction::new().unwrap();
        redaction.learn("agents hunter22hunter22\nothers abc\n");
        redaction.learn(r#"{"credentials": [{"principal": "p", "secret": "correct horse"}]}"#);
        let text = "a hunter22hunter22, 'correct horse' and an alphabet abc";
        assert_eq!(redaction.apply(text), "a …, '…' and an alphabet abc");
    }
}

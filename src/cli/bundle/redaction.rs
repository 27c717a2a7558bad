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

/// The name of a key, a variable, a flag or a setting of the kernel that is secret.
const NAME: &str = concat!(
    r"(?i:[\w.-]*(?:secret|passw(?:or)?d|passphrase|token|cookie|",
    r"(?:private|api|access|shared|fastopen|rss)[_ -]?key)[\w.-]*)",
);

/// What looks like a secret, with the text that replaces it, in the order of replacement. `$1` is
/// the part that stays, and `NAME` stands for [`NAME`]. No value is `…` alone, so that a pattern
/// does not extend what an earlier one has replaced.
const PATTERNS: [(&str, &str); 11] = [
    // A private key, up to the end of a text that was cut.
    (
        r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----).*?(?:-----END [A-Z ]*PRIVATE KEY[A-Z ]*-----|$)",
        "$1…",
    ),
    // `zk://USER:PASSWORD@HOST`. A password may contain any character but a space. A double quote
    // has a backslash, as in JSON.
    (r#"(?i)(\bzk:/*)(?:[^\s"<>\\]|\\.)*@"#, "$1…@"),
    (r#"(://)[^\s"'<>]*@"#, "$1…@"),
    // `"secret": "VALUE"`, also within a JSON string. A value may be a number or a list.
    (
        r#"(\\?["']NAME\\?["']\s*:\s*)(?:\\"(?:[^"\\]|\\[^"])*\\"|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\[[^\]]*\]|[^\s"'\[{},…\\]+)"#,
        r#"$1"…""#,
    ),
    // `"PASSWORD=VALUE"`, as in units of systemd and in lists of variables.
    (r#"("NAME=)(?:[^"\\…]|\\.)(?:[^"\\]|\\.)*"#, "$1…"),
    (r"('NAME=)[^'…][^']*", "$1…"),
    // A whole line `password: VALUE` or `password = VALUE`, and the indented lines of a YAML text.
    (
        r"(?m)^([ \t]*(?:-[ \t]+)?(?:export[ \t]+)?\bNAME[ \t]*(?::[ \t]|=)[ \t]*)(?:[|>][0-9+-]*[ \t]*(?:\r?\n[ \t]+[^\n]*)+|…?[^\s…][^\r\n]*)",
        "$1…",
    ),
    // `--secret=VALUE`, `PASSWORD='VALUE'`, `token: VALUE`. As in a shell, a part may be in quotes.
    (
        r#"(NAME[ \t]*(?:=[ \t]*|:[ \t]+))(?:"(?:[^"\\]|\\.)*"|'[^']*'|…?(?:[^\s"'\\…]|\\.)(?:[^\s"'\\]|\\.|["'][^\s"'\\,;:)}\]])*)"#,
        "$1…",
    ),
    // `--secret VALUE`
    (r#"(--NAME[ \t]+)(?:"[^"]*"|'[^']*'|[^\s"'…-][^\s"']*)"#, "$1…"),
    // `Authorization: Basic VALUE`
    (r#"(?i)(authorization["'\\]*\s*[:=]\s*["'\\]*(?:[a-z]+\s+)?)[^\s"'…][^\s"']*"#, "$1…"),
    // A JSON web token.
    (r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", "$1…"),
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
        let compile = |(pattern, replacement): (&str, _)| {
            Regex::new(&pattern.replace("NAME", NAME))
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
        for secret in secrets.into_iter().filter(|secret| secret.len() >= SECRET_MIN) {
            // JSON writes quotes and backslashes differently.
            let encoded = serde_json::Value::from(secret.as_str()).to_string();
            let encoded = encoded[1..encoded.len() - 1].to_owned();
            self.secrets.extend((encoded != secret).then_some(encoded));
            self.secrets.push(secret);
        }
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
            format!("zk:/user:it's@{SECRET}@10.0.0.1"),
            format!(r#"{{"master": "zk://user:a\"{SECRET}@10.0.0.1:2181/path"}}"#),
            format!("zk://user:p%40{SECRET}@10.0.0.1:2181"),
            format!("proxy http://{SECRET}@proxy:3128"),
            format!(r#"{{"principal": "agents", "secret": "{SECRET}"}}"#),
            format!(r#"{{"aws_secret_access_key" : "{SECRET}\"{SECRET}"}}"#),
            format!(r#"log: "{{\"principal\": \"agents\", \"secret\":\"{SECRET}\"}}""#),
            format!(r#"{{"password":{SECRET}}}"#),
            format!(r#"{{"tokens": ["a", "{SECRET}"], "a": 1}}"#),
            format!("{{'password': '{SECRET}'}}"),
            format!("Environment=MESOS_PASSWORD={SECRET}"),
            format!("Environment=\"MESOS_HTTP_TOKEN={SECRET}\""),
            format!("Environment=\"A_PASSWORD=a {SECRET}\" \"B=c\""),
            format!("Environment='A_PASSWORD=a {SECRET}'"),
            format!(r#""Env": ["A=b", "DB_PASSWORD=a\" {SECRET}"]"#),
            format!("password='{SECRET} {SECRET}'"),
            format!("run --password=a\\ {SECRET} --log=debug"),
            format!("run --password {SECRET} --log debug"),
            format!("run --http-token \"a {SECRET}\""),
            format!("  secret: {SECRET}"),
            format!("- password: a {SECRET} # comment"),
            format!("password: |\r\n  one\r\n  {SECRET}\r\nnext: 1"),
            format!("export A_TOKEN=a {SECRET}"),
            format!("[wireguard]\r\nPrivateKey = {SECRET}=\r\nListenPort = 1"),
            format!("agent: the Password = {SECRET}, wrong"),
            format!("net.ipv4.tcp_fastopen_key = {SECRET}"),
            format!("net.core.netdev_rss_key = {SECRET}:{SECRET}"),
            format!("net.ipv6.conf.all.stable_secret = {SECRET}"),
            format!("A=b\0A_TOKEN={SECRET}\0C=d"),
            format!("GET / HTTP/1.1\r\nAuthorization: Basic {SECRET}\r\nHost: a"),
            format!("Proxy-Authorization: {SECRET}"),
            format!("Set-Cookie: id={SECRET}; path=/"),
            format!("\"authorization\": \"Bearer {SECRET}\""),
            format!("bearer eyJhbGciOiJIUzI1NiJ9.eyJ{SECRET}.{SECRET}"),
            format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"),
            format!("-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n{SECRET}"),
            format!("-----BEGIN PGP PRIVATE KEY BLOCK-----\n{SECRET}"),
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
            "--master zk://10.0.0.1:2181,10.0.0.2:2181/a --listen 0.0.0.0:5050",
            "message from overlay-agent@10.0.0.1:5051 to slave(1)@10.0.0.2:5051",
            r#"{"zk": "zk://10.0.0.1/a", "pid": "overlay-agent@10.0.0.1:5051"}"#,
        ] {
            assert_eq!(redaction.apply(text), text);
        }
    }

    #[test]
    fn only_secret_is_removed() {
        let redaction = Redaction::new().unwrap();
        for (text, expected) in [
            ("--secret=a --log=b", "--secret=… --log=b"),
            ("--secret a --log b", "--secret … --log b"),
            ("\"A_TOKEN=a b\" \"C=d\"", "\"A_TOKEN=…\" \"C=d\""),
            ("A_SECRET=…tail\nlast a", "A_SECRET=…\nlast a"),
            ("run --token=…tail a", "run --token=… a"),
            ("first\npassword: a b\nlast: c", "first\npassword: …\nlast: c"),
            ("password: >-\n  a\n  b\nlast: c", "password: …\nlast: c"),
            ("zk://u:p@a:2181/b from agent@c", "zk://…@a:2181/b from agent@c"),
            (r#"{"password":1,"b":"c"}"#, r#"{"password":"…","b":"c"}"#),
            (r#"{"secret":"a","b":"c"}"#, r#"{"secret":"…","b":"c"}"#),
            ("Authorization: Basic a=\r\nHost: b", "Authorization: Basic …\r\nHost: b"),
        ] {
            assert_eq!(redaction.apply(text), expected);
        }
    }

    #[test]
    fn secrets_of_credential_files_are_removed_everywhere() {
        let mut redaction = Redaction::new().unwrap();
        redaction.learn("agents hunter22hunter22\nothers abc\n");
        redaction.learn(r#"{"credentials": [{"principal": "p", "secret": "correct horse"}]}"#);
        let text = "a hunter22hunter22, 'correct horse' and an alphabet abc";
        assert_eq!(redaction.apply(text), "a …, '…' and an alphabet abc");
        redaction.learn("\u{feff}agents a\"b\\c\r\n");
        assert_eq!(redaction.apply(r#"a"b\c, "note": "a\"b\\c""#), r#"…, "note": "…""#);
    }
}

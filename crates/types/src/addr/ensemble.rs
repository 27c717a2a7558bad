//! The address of a ZooKeeper ensemble and a path in it, in the syntax of Mesos:
//! `zk://user:password@host:port,host:port/path`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Default port of a ZooKeeper server.
const PORT_DEFAULT: u16 = 2181;

/// URI scheme of the address.
const SCHEME: &str = "zk://";

/// ZooKeeper servers, a path, and optional credentials. `Display` hides the credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Ensemble {
    servers: Vec<(String, u16)>,
    path: String,
    credentials: Option<String>,
}

impl Ensemble {
    /// Example for help texts and error messages.
    pub const EXAMPLE: &'static str = "zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay";

    /// Returns the servers as a connect string of ZooKeeper: `host:port,host:port`.
    #[must_use]
    pub fn servers(&self) -> String {
        let servers: Vec<String> =
            self.servers.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        servers.join(",")
    }

    /// Returns the path: absolute, without a trailing slash, and never the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns `user:password` for the authentication scheme `digest`.
    #[must_use]
    pub fn credentials(&self) -> Option<&str> {
        self.credentials.as_deref()
    }
}

impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let userinfo = if self.credentials.is_some() { "…@" } else { "" };
        write!(f, "{SCHEME}{userinfo}{}{}", self.servers(), self.path)
    }
}

impl fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an ensemble address. Messages omit the text: it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnsembleError {
    /// The scheme is missing or is not `zk`.
    #[error("is no zk:// address: write it as in {example}", example = Ensemble::EXAMPLE)]
    Scheme,
    /// The path is missing or is the root, which all clients share.
    #[error(
        "names no path in ZooKeeper: write one after the servers, as in {example}",
        example = Ensemble::EXAMPLE
    )]
    NoPath,
    /// ZooKeeper rejects the path.
    #[error("has an unusable path: write names between slashes, none of them empty, '.' or '..'")]
    Path,
    /// A part of the credentials may follow the first slash.
    #[error("the path contains '@': a user or a password must not contain '/' or '@' after it")]
    SlashBeforeAt,
    /// A server is malformed. Servers are numbered from 1.
    #[error(
        "server {0} is not HOST:PORT: write the servers as in {example}",
        example = Ensemble::EXAMPLE
    )]
    Server(usize),
    /// The text before the `@` is not `USER:PASSWORD`.
    #[error("the text before '@' is not USER:PASSWORD: write both, or remove the '@'")]
    Credentials,
}

impl FromStr for Ensemble {
    type Err = EnsembleError;

    fn from_str(text: &str) -> Result<Self, EnsembleError> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(EnsembleError::Scheme)?;
        let (rest, path) = rest.split_at(rest.find('/').ok_or(EnsembleError::NoPath)?);
        // Otherwise messages would show the end of a password as a part of the path.
        if path.contains('@') || path.to_ascii_lowercase().contains("%40") {
            return Err(EnsembleError::SlashBeforeAt);
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Err(EnsembleError::NoPath);
        }
        let is_usable = |name: &str| !matches!(name, "" | "." | "..");
        if path.chars().any(char::is_control) || !path[1..].split('/').all(is_usable) {
            return Err(EnsembleError::Path);
        }
        let (credentials, servers) = match rest.rsplit_once('@') {
            Some((credentials, servers)) => (Some(credentials), servers),
            None => (None, rest),
        };
        let is_pair = |pair: &str| {
            pair.split_once(':')
                .is_some_and(|(user, password)| !user.is_empty() && !password.is_empty())
        };
        if credentials.is_some_and(|credentials| !is_pair(credentials)) {
            return Err(EnsembleError::Credentials);
        }
        let servers = servers.split(',').enumerate();
        let servers = servers
            .map(|(index, server)| parse_server(server).ok_or(EnsembleError::Server(index + 1)))
            .collect::<Result<_, _>>()?;
        Ok(Self { servers, path: path.to_owned(), credentials: credentials.map(str::to_owned) })
    }
}

fn parse_server(text: &str) -> Option<(String, u16)> {
    if let Some(text) = text.strip_prefix('[') {
        return parse_ipv6_server(text);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, PORT_DEFAULT),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let is_usable = !host.is_empty() && port > 0 && host.bytes().all(is_host);
    is_usable.then(|| (host.to_owned(), port))
}

/// Parses `IPv6]:PORT` or `IPv6]`. The host keeps its brackets, as connect strings have them.
fn parse_ipv6_server(text: &str) -> Option<(String, u16)> {
    let (host, rest) = text.split_once(']')?;
    let host: Ipv6Addr = host.parse().ok()?;
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
        None if rest.is_empty() => PORT_DEFAULT,
        None => return None,
    };
    Some((format!("[{host}]"), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Ensemble, EnsembleError> {
        text.parse()
    }

    #[test]
    fn parse_accepts_mesos_syntax() {
        let plain = parse(" zk://10.0.0.1:2181,zk-2.example:2182,zk3/mesos/overlay/\n").unwrap();
        assert_eq!(plain.servers(), "10.0.0.1:2181,zk-2.example:2182,zk3:2181");
        assert_eq!((plain.path(), plain.credentials()), ("/mesos/overlay", None));
        assert_eq!(
            plain.to_string(),
            "zk://10.0.0.1:2181,zk-2.example:2182,zk3:2181/mesos/overlay"
        );
        let v6 = parse("zk://u:p@[::1]:2182,[fd00:0:0::A],h/p").unwrap();
        assert_eq!(v6.servers(), "[::1]:2182,[fd00::a]:2181,h:2181");
        let secret = parse("zk://overlay:s3:cr@t@a:1/p").unwrap();
        assert_eq!(secret.credentials(), Some("overlay:s3:cr@t"));
        assert_eq!(format!("{secret} {secret:?}"), "zk://…@a:1/p zk://…@a:1/p");
    }

    #[test]
    fn parse_error_hides_password() {
        let cases = [
            ("", EnsembleError::Scheme),
            ("10.0.0.1:2181/mesos", EnsembleError::Scheme),
            ("zk://a:2181", EnsembleError::NoPath),
            ("zk://a:2181/", EnsembleError::NoPath),
            ("zk://a:2181//b", EnsembleError::Path),
            ("zk://a:2181/a/../b", EnsembleError::Path),
            ("zk://a:2181/a\u{7}", EnsembleError::Path),
            ("zk:///mesos", EnsembleError::Server(1)),
            ("zk://a:1,b:0/mesos", EnsembleError::Server(2)),
            ("zk://a:1,,b:1/mesos", EnsembleError::Server(2)),
            ("zk://user:secret,a:1/mesos", EnsembleError::Server(1)),
            ("zk://u:12/secret@a:1/mesos", EnsembleError::SlashBeforeAt),
            ("zk://u/:secret%40a:1/mesos", EnsembleError::SlashBeforeAt),
            ("zk://[::1/mesos", EnsembleError::Server(1)),
            ("zk://[::1]2181/mesos", EnsembleError::Server(1)),
            ("zk://[::1]:0/mesos", EnsembleError::Server(1)),
            ("zk://[secret]:2181/mesos", EnsembleError::Server(1)),
            ("zk://::1:2181/mesos", EnsembleError::Server(1)),
            ("zk://secret@a:1/mesos", EnsembleError::Credentials),
            ("zk://:secret@a:1/mesos", EnsembleError::Credentials),
            ("zk://user:@a:1/mesos", EnsembleError::Credentials),
        ];
        for (text, error) in cases {
            assert!(!error.to_string().contains("secret"), "{error}");
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert_eq!(
            parse("zk://a:1,b/c:1/d").map(|ensemble| ensemble.path().to_owned()),
            Ok("/c:1/d".to_owned()),
            "the path begins at the first slash"
        );
        assert_eq!(
            EnsembleError::NoPath.to_string(),
            "names no path in ZooKeeper: write one after the servers, as in \
             zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay"
        );
    }
}

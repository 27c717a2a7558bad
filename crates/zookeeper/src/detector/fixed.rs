//! A master that the configuration names: `10.0.0.1:5050` or `master.example:5050`. A name is
//! resolved each time, because its address may change.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::str::FromStr;

use overlay_types::secret::quote;

/// Default port: the port of a Mesos master.
const PORT_DEFAULT: u16 = 5050;

/// Largest number of addresses of a name. A cluster has fewer masters.
const ADDRESSES_MAX: usize = 64;

/// The host name or address of a master, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedMaster {
    host: String,
    port: u16,
}

impl FixedMaster {
    /// Resolves the current address of the master.
    ///
    /// # Errors
    /// When the name cannot be resolved to an IPv4 address.
    pub async fn resolve(&self) -> Result<SocketAddrV4, ResolveError> {
        self.resolve_all().await.map(|(first, _)| first)
    }

    /// Resolves the current address of the master, the first of all addresses of its name. Returns
    /// also all addresses.
    ///
    /// # Errors
    /// When the name cannot be resolved to an IPv4 address.
    pub async fn resolve_all(
        &self,
    ) -> Result<(SocketAddrV4, BTreeSet<SocketAddrV4>), ResolveError> {
        let host = || self.host.clone();
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = found
            .map_err(|error| ResolveError::Failed { host: host(), reason: error.to_string() })?;
        let v4 = addresses.filter_map(|address| match address {
            SocketAddr::V4(v4) => Some(v4),
            SocketAddr::V6(_) => None,
        });
        let v4: Vec<_> = v4.take(ADDRESSES_MAX).collect();
        let first = v4.first().copied();
        let first = first.ok_or_else(|| ResolveError::NoIpv4Address { host: host() })?;
        Ok((first, v4.into_iter().collect()))
    }
}

impl fmt::Display for FixedMaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why the name of a master cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The resolver failed.
    #[error("resolve master '{host}': {reason}: check the name and the resolver")]
    Failed {
        /// The name of the master.
        host: String,
        /// The error of the resolver.
        reason: String,
    },
    /// The name has no IPv4 address.
    #[error("resolve master '{host}': it has no IPv4 address")]
    NoIpv4Address {
        /// The name of the master.
        host: String,
    },
}

/// Why a text is no address of a master.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FixedMasterError {
    /// The text is a URL of this scheme, which names an election or a file. The error omits the
    /// rest, which may contain a password.
    #[error(
        "a {0} URL is not the address of one master: write IP:PORT or NAME:PORT, as in \
         10.0.0.1:5050"
    )]
    Url(&'static str),
    /// The text is no host and port.
    #[error("{} is no master: write IP:PORT or NAME:PORT, as in 10.0.0.1:5050", quote(.0))]
    Malformed(String),
}

impl FromStr for FixedMaster {
    type Err = FixedMasterError;

    fn from_str(text: &str) -> Result<Self, FixedMasterError> {
        for scheme in ["zk://", "file://"] {
            if text.starts_with(scheme) {
                return Err(FixedMasterError::Url(scheme));
            }
        }
        let malformed = || FixedMasterError::Malformed(text.to_owned());
        // Mesos also accepts a process address.
        let text_after_id = text.strip_prefix("master@").unwrap_or(text);
        let (host, port) = match text_after_id.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| malformed())?),
            None => (text_after_id, PORT_DEFAULT),
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || port == 0 || !host.bytes().all(is_host) {
            return Err(malformed());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn master_is_parsed_as_host_and_port() {
        let printed = |text: &str| text.parse::<FixedMaster>().unwrap().to_string();
        assert_eq!(printed("10.0.0.1:5050"), "10.0.0.1:5050");
        assert_eq!(printed("localhost"), "localhost:5050");
        assert_eq!(printed("master@10.0.0.1:5060"), "10.0.0.1:5060");
        for text in ["", ":5050", "a:", "a:0", "a:99999", "a b:1", "http://a:1", "[::1]:5050"] {
            let error = text.parse::<FixedMaster>().unwrap_err();
            assert_eq!(error, FixedMasterError::Malformed(text.to_owned()));
        }
        assert_eq!(
            "zk://user:secret@a:2181/mesos".parse::<FixedMaster>().unwrap_err().to_string(),
            "a zk:// URL is not the address of one master: write IP:PORT or NAME:PORT, as in \
             10.0.0.1:5050"
        );
    }

    #[test]
    fn malformed_address_with_password_is_not_repeated() {
        for text in ["ZK://u:secret@a:1/p", "\"zk://u:secret@a:1/p\"", "\u{feff}zk://u:secret@a/p"]
        {
            let error = text.parse::<FixedMaster>().unwrap_err().to_string();
            let expected = "the given text is no master: write IP:PORT or NAME:PORT, as in \
                            10.0.0.1:5050";
            assert_eq!(error, expected);
        }
    }

    #[tokio::test]
    async fn name_is_resolved_to_ipv4() {
        let master: FixedMaster = "localhost:7".parse().unwrap();
        assert_eq!(master.resolve().await, Ok("127.0.0.1:7".parse().unwrap()));
        let unknown: FixedMaster = "no-such-host.invalid:7".parse().unwrap();
        let error = unknown.resolve().await.unwrap_err().to_string();
        assert!(error.starts_with("resolve master 'no-such-host.invalid': "), "{error}");
    }
}

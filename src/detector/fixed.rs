//! A master that the configuration names: `10.0.0.1:5050` or `master.example:5050`. A name is
//! resolved anew each time, since it may have moved to another address.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::str::FromStr;

/// Port of a Mesos master, where none is given.
const PORT_DEFAULT: u16 = 5050;

/// The name or address of a master, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedMaster {
    host: String,
    port: u16,
}

impl FixedMaster {
    /// Its address now.
    ///
    /// # Errors
    /// When the name cannot be resolved to an IPv4 address.
    pub async fn resolve(&self) -> Result<SocketAddrV4, String> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let mut addresses = found.map_err(|error| {
            format!("resolve master '{}': {error}: check the name and the resolver", self.host)
        })?;
        let v4 = addresses.find_map(|address| match address {
            SocketAddr::V4(v4) => Some(v4),
            SocketAddr::V6(_) => None,
        });
        v4.ok_or_else(|| format!("resolve master '{}': it has no IPv4 address", self.host))
    }
}

impl fmt::Display for FixedMaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a text names no master.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FixedMasterError {
    /// A way of finding masters that there is not yet. The rest is not repeated: it may hold a
    /// password.
    #[error("{0} is not supported yet: write the master's address as IP:PORT")]
    Unsupported(&'static str),
    /// No host and port.
    #[error("'{0}' is no master: write IP:PORT or NAME:PORT, as in 10.0.0.1:5050")]
    Malformed(String),
}

impl FromStr for FixedMaster {
    type Err = FixedMasterError;

    fn from_str(text: &str) -> Result<Self, FixedMasterError> {
        for scheme in ["zk://", "file://"] {
            if text.starts_with(scheme) {
                return Err(FixedMasterError::Unsupported(scheme));
            }
        }
        let malformed = || FixedMasterError::Malformed(text.to_owned());
        // Mesos also takes a whole process address.
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
    fn a_master_is_a_host_and_a_port() {
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
            "zk:// is not supported yet: write the master's address as IP:PORT"
        );
    }

    #[tokio::test]
    async fn a_name_is_resolved_to_ipv4() {
        let master: FixedMaster = "localhost:7".parse().unwrap();
        assert_eq!(master.resolve().await, Ok("127.0.0.1:7".parse().unwrap()));
        let nowhere: FixedMaster = "no-such-host.invalid:7".parse().unwrap();
        let error = nowhere.resolve().await.unwrap_err();
        assert!(error.starts_with("resolve master 'no-such-host.invalid': "), "{error}");
    }
}

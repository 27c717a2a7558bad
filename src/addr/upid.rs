//! The address of a libprocess process: `overlay-master@10.0.0.1:5050`.

use std::fmt;
use std::net::SocketAddrV4;
use std::str::FromStr;

/// A libprocess process and the address of the program that it lives in. IPv4 only, as in Mesos.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Upid {
    /// Name of the process within its program.
    pub id: String,
    /// Where the program accepts connections.
    pub address: SocketAddrV4,
}

impl Upid {
    /// Process id of the master part, fixed by the C++ modules.
    pub const MASTER: &'static str = "overlay-master";
    /// Process id of the agent part, fixed by the C++ modules.
    pub const AGENT: &'static str = "overlay-agent";

    /// The master part of the program at `address`.
    #[must_use]
    pub fn master(address: SocketAddrV4) -> Self {
        Self { id: Self::MASTER.to_owned(), address }
    }

    /// The agent part of the program at `address`.
    #[must_use]
    pub fn agent(address: SocketAddrV4) -> Self {
        Self { id: Self::AGENT.to_owned(), address }
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.address)
    }
}

impl fmt::Debug for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no UPID that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no process address: expected id@ip:port", text = .0.escape_debug())]
pub struct UpidError(String);

impl FromStr for Upid {
    type Err = UpidError;

    /// Names of hosts are not taken: libprocess itself always writes the numeric address, and
    /// resolving a stranger's name would let it hold up the receiver.
    fn from_str(text: &str) -> Result<Self, UpidError> {
        let error = || UpidError(text.chars().take(80).collect());
        let (id, address) = text.split_once('@').ok_or_else(error)?;
        let address: SocketAddrV4 = address.parse().map_err(|_| error())?;
        // It is in many a line of the log.
        let is_name = !id.is_empty() && !id.contains(char::is_control);
        if !is_name || address.port() == 0 || address.ip().is_unspecified() {
            return Err(error());
        }
        Ok(Self { id: id.to_owned(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_upid_reads_what_it_prints() {
        let upid = Upid::agent("127.0.0.1:5051".parse().unwrap());
        assert_eq!(upid.to_string(), "overlay-agent@127.0.0.1:5051");
        assert_eq!(upid.to_string().parse(), Ok(upid));
    }

    #[test]
    fn an_address_that_cannot_be_answered_is_refused() {
        let addresses =
            ["", "@1.2.3.4:5", "a@", "a@0.0.0.0:5", "a@1.2.3.4:0", "a@host:5", "a@[::1]:5"];
        for text in addresses.into_iter().chain(["a\nb@1.2.3.4:5", "a\u{9b}b@1.2.3.4:5"]) {
            assert!(text.parse::<Upid>().is_err(), "{text:?} was accepted");
        }
    }
}

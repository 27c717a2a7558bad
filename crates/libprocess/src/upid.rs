//! The address of a libprocess process: `master@10.0.0.1:5050`.

use std::fmt;
use std::net::SocketAddrV4;
use std::str::FromStr;

/// The id of a process and the address of its program. IPv4 only, as in Mesos.
///
/// ```
/// use libprocess::Upid;
///
/// let upid: Upid = "master@10.0.0.1:5050".parse()?;
/// assert_eq!(upid.id, "master");
/// assert_eq!(upid.address.port(), 5050);
/// # Ok::<(), libprocess::UpidError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Upid {
    /// Id of the process, unique in its program.
    pub id: String,
    /// Address at which the program accepts connections.
    pub address: SocketAddrV4,
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

/// The text is not a UPID to which an answer can be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no process address: expected id@ip:port", text = .0.escape_debug())]
pub struct UpidError(String);

impl FromStr for Upid {
    type Err = UpidError;

    /// Parses a UPID with a numeric address. libprocess always writes the numeric address, and the
    /// lookup of a host name would let an untrusted sender delay the receiver.
    fn from_str(text: &str) -> Result<Self, UpidError> {
        let error = || UpidError(text.chars().take(80).collect());
        let (id, address) = text.split_once('@').ok_or_else(error)?;
        let address: SocketAddrV4 = address.parse().map_err(|_| error())?;
        // Log lines contain the id.
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
    fn parse_inverts_display() {
        let upid = Upid { id: "agent".to_owned(), address: "127.0.0.1:5051".parse().unwrap() };
        assert_eq!(upid.to_string(), "agent@127.0.0.1:5051");
        assert_eq!(upid.to_string().parse(), Ok(upid));
    }

    #[test]
    fn parse_unanswerable_address_is_refused() {
        let addresses =
            ["", "@1.2.3.4:5", "a@", "a@0.0.0.0:5", "a@1.2.3.4:0", "a@host:5", "a@[::1]:5"];
        for text in addresses.into_iter().chain(["a\nb@1.2.3.4:5", "a\u{9b}b@1.2.3.4:5"]) {
            assert!(text.parse::<Upid>().is_err(), "{text:?} was accepted");
        }
    }
}

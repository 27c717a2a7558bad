//! Explains errors of the ZooKeeper client to operators: the operation, the znode, the reason and
//! the remedy.

use std::time::Duration;

use overlay_types::addr::Ensemble;
use zookeeper_client::Error;

/// An explained error of ZooKeeper, with a remedy. The text contains no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SessionError(String);

impl SessionError {
    /// Explains why no session could be opened.
    pub(super) fn connect(ensemble: &Ensemble, timeout: Duration, error: &Error) -> Self {
        let servers = ensemble.servers();
        Self(match error {
            Error::AuthFailed => {
                "the servers refuse the user or the password: fix them in the zk:// address"
                    .to_owned()
            }
            Error::Timeout
            | Error::NoHosts
            | Error::ConnectionLoss
            | Error::SessionExpired
            | Error::Custom(_) => format!(
                "no server of {servers} answers within {timeout:?}: check that most of them run \
                 and are reachable from this host, or fix the zk:// address"
            ),
            error => format!("connect to {servers}: {error}"),
        })
    }

    /// Explains that no server has answered yet.
    pub(crate) fn unanswered(ensemble: &Ensemble) -> Self {
        let servers = ensemble.servers();
        Self(format!(
            "no server of {servers} answers yet: check that most of them run and are reachable \
             from this host"
        ))
    }

    /// Explains that the servers completed no heartbeat for `silence`.
    pub(crate) fn no_quorum(ensemble: &Ensemble, silence: Duration) -> Self {
        let servers = ensemble.servers();
        Self(format!(
            "the servers {servers} have completed no heartbeat for {silence:?}: check that most of \
             them run, reach each other, and are reachable from this host"
        ))
    }

    /// Explains why a request for the znode at `path` failed.
    pub(super) fn request(
        ensemble: &Ensemble,
        timeout: Duration,
        path: &str,
        error: &Error,
    ) -> Self {
        let servers = ensemble.servers();
        Self(match error {
            Error::NoAuth if ensemble.credentials().is_none() => format!(
                "{path} may not be used without credentials: write the user and the password that \
                 created it, as in zk://USER:PASSWORD@HOST:PORT/PATH"
            ),
            Error::NoAuth => format!(
                "{path} may not be used with this user and password: write those that created it, \
                 or let its owner change its access list (setAcl)"
            ),
            Error::AuthFailed => {
                "the servers refuse the user or the password: fix them in the zk:// address"
                    .to_owned()
            }
            Error::InvalidAcl => format!(
                "the servers accept no access list for {path}: they must allow the scheme 'digest'"
            ),
            Error::QuotaExceeded => {
                format!(
                    "the quota of {path} is used up: raise it (setquota), or choose another path"
                )
            }
            Error::NoNode => format!("{path} is missing"),
            Error::Timeout => format!("no reply of {servers} within {timeout:?}"),
            Error::ConnectionLoss | Error::Custom(_) => format!(
                "the connection to {servers} was lost before the answer came: if this repeats, \
                 check the logs of the servers; they need the default jute.maxbuffer or a higher \
                 one"
            ),
            Error::SessionExpired => {
                format!("the session with {servers} has expired: they received no heartbeat")
            }
            Error::Unimplemented => {
                format!("the servers {servers} are too old: ZooKeeper 3.5 or later is needed")
            }
            error => format!("{path}: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn ensemble(text: &str) -> Ensemble {
        text.parse().unwrap()
    }

    #[test]
    fn errors_have_remedy_and_no_password() {
        let open = ensemble("zk://a:1,b:2/p");
        let owned = ensemble("zk://user:secret@a:1,b:2/p");
        let connect = |error| SessionError::connect(&owned, TIMEOUT, &error).to_string();
        let request = |ensemble, error| {
            SessionError::request(ensemble, TIMEOUT, "/p/state", &error).to_string()
        };
        let texts = [
            (
                connect(Error::Timeout),
                "no server of a:1,b:2 answers within 10s: check that most of them run and are \
                 reachable from this host, or fix the zk:// address",
            ),
            (
                connect(Error::AuthFailed),
                "the servers refuse the user or the password: fix them in the zk:// address",
            ),
            (
                request(&open, Error::NoAuth),
                "/p/state may not be used without credentials: write the user and the password \
                 that created it, as in zk://USER:PASSWORD@HOST:PORT/PATH",
            ),
            (
                request(&owned, Error::NoAuth),
                "/p/state may not be used with this user and password: write those that created \
                 it, or let its owner change its access list (setAcl)",
            ),
            (
                request(&owned, Error::QuotaExceeded),
                "the quota of /p/state is used up: raise it (setquota), or choose another path",
            ),
            (request(&owned, Error::Timeout), "no reply of a:1,b:2 within 10s"),
            (
                request(&owned, Error::ConnectionLoss),
                "the connection to a:1,b:2 was lost before the answer came: if this repeats, check \
                 the logs of the servers; they need the default jute.maxbuffer or a higher one",
            ),
            (
                request(&owned, Error::Unimplemented),
                "the servers a:1,b:2 are too old: ZooKeeper 3.5 or later is needed",
            ),
        ];
        for (text, expected) in texts {
            assert_eq!(text, expected);
            assert!(!text.contains("secret"), "{text}");
        }
    }
}

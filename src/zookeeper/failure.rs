//! Errors of the ZooKeeper client, as an operator wants them: what, where, why, and what to do.

use std::time::Duration;

use zookeeper_client::Error;

use crate::addr::Ensemble;

/// Why ZooKeeper did not do as asked, with a remedy; without any password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl Failure {
    /// There is no session.
    pub(super) fn connect(ensemble: &Ensemble, patience: Duration, error: &Error) -> Self {
        let servers = ensemble.servers();
        Self(match error {
            Error::AuthFailed => {
                "the servers refuse the user or the password: mend them in the zk:// address"
                    .to_owned()
            }
            Error::Timeout
            | Error::NoHosts
            | Error::ConnectionLoss
            | Error::SessionExpired
            | Error::Custom(_) => format!(
                "no server of {servers} answers within {patience:?}: see that most of them run and \
                 are reached from here, or mend the zk:// address"
            ),
            error => format!("connect to {servers}: {error}"),
        })
    }

    /// A request about the znode at `path` has failed.
    pub(super) fn request(
        ensemble: &Ensemble,
        patience: Duration,
        path: &str,
        error: &Error,
    ) -> Self {
        let servers = ensemble.servers();
        Self(match error {
            Error::NoAuth if ensemble.credentials().is_none() => format!(
                "{path} may not be used by everybody: write the user and the password that it was \
                 made with, as in zk://USER:PASSWORD@HOST:PORT/PATH"
            ),
            Error::NoAuth => format!(
                "{path} may not be used with this user and password: write those that it was made \
                 with, or have its owner change its access list (setAcl)"
            ),
            Error::AuthFailed => {
                "the servers refuse the user or the password: mend them in the zk:// address"
                    .to_owned()
            }
            Error::InvalidAcl => format!(
                "the servers take no access list for {path}: they must allow the scheme 'digest'"
            ),
            Error::QuotaExceeded => {
                format!(
                    "the quota of {path} is used up: raise it (setquota), or choose another path"
                )
            }
            Error::NoNode => format!("{path} is missing"),
            Error::Timeout => format!("no answer of {servers} within {patience:?}"),
            Error::ConnectionLoss | Error::Custom(_) => format!(
                "the connection to {servers} was lost before the answer came: if that goes on, see \
                 the servers' logs; they need the default jute.maxbuffer, or more"
            ),
            Error::SessionExpired => {
                format!("the session with {servers} has expired: they did not hear of this host")
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

    const PATIENCE: Duration = Duration::from_secs(10);

    fn ensemble(text: &str) -> Ensemble {
        text.parse().unwrap()
    }

    #[test]
    fn every_text_says_what_to_do_and_none_tells_the_password() {
        let open = ensemble("zk://a:1,b:2/p");
        let owned = ensemble("zk://user:secret@a:1,b:2/p");
        let connect = |error| Failure::connect(&owned, PATIENCE, &error).to_string();
        let request =
            |ensemble, error| Failure::request(ensemble, PATIENCE, "/p/state", &error).to_string();
        let texts = [
            (
                connect(Error::Timeout),
                "no server of a:1,b:2 answers within 10s: see that most of them run and are reached \
                 from here, or mend the zk:// address",
            ),
            (
                connect(Error::AuthFailed),
                "the servers refuse the user or the password: mend them in the zk:// address",
            ),
            (
                request(&open, Error::NoAuth),
                "/p/state may not be used by everybody: write the user and the password that it was \
                 made with, as in zk://USER:PASSWORD@HOST:PORT/PATH",
            ),
            (
                request(&owned, Error::NoAuth),
                "/p/state may not be used with this user and password: write those that it was made \
                 with, or have its owner change its access list (setAcl)",
            ),
            (
                request(&owned, Error::QuotaExceeded),
                "the quota of /p/state is used up: raise it (setquota), or choose another path",
            ),
            (request(&owned, Error::Timeout), "no answer of a:1,b:2 within 10s"),
            (
                request(&owned, Error::ConnectionLoss),
                "the connection to a:1,b:2 was lost before the answer came: if that goes on, see \
                 the servers' logs; they need the default jute.maxbuffer, or more",
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

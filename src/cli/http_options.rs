//! Flags of the HTTP endpoints of a master or an agent: who may use them, and where.

use std::path::{Path, PathBuf};

use clap::Args;
use libprocess::{TcpTransport, UnixServer};
use overlay_config::{Credentials, HttpConfig, credential_path, normalize_hostname};
use overlay_types::warnings::Warnings;

use super::Failure;
use crate::http::{AccessRules, Authentication, Realms};
use crate::runtime::{AccessControl, CredentialFile, ReadCredentials};

/// Key of the warning that other users can read the credentials.
const CREDENTIALS_WARNING: &str = "credentials";

/// Flags of the HTTP endpoints.
#[derive(Debug, Clone, Args)]
pub(super) struct HttpOptions {
    /// Require HTTP basic authentication with a principal and its secret from this file, in the
    /// format of Mesos: JSON, or a line 'PRINCIPAL SECRET' for each principal. SIGHUP reads it
    /// again
    #[arg(long, env = "MESOS_OVERLAY_CREDENTIALS", value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Further names under which clients reach this process, for example through a proxy. IP
    /// addresses, localhost and the names of the host always work
    #[arg(
        long,
        env = "MESOS_OVERLAY_HOSTNAMES",
        value_name = "NAME,…",
        value_delimiter = ',',
        value_parser = parse_hostname
    )]
    hostnames: Vec<String>,
    /// A Unix socket for HTTP requests, which only the user of this process can use and which needs
    /// no credentials
    #[arg(long, env = "MESOS_OVERLAY_HTTP_SOCKET", value_name = "PATH")]
    http_socket: Option<PathBuf>,
}

/// Who may use the endpoints, as read from the configuration, the flags and the credentials.
pub(super) struct HttpAccess {
    config: HttpConfig,
    credentials: Option<Credentials>,
    /// Whether other users can read the credentials.
    mode_warning: Option<String>,
}

impl HttpAccess {
    /// Replaces the rules of a running server.
    pub(super) fn apply(self, control: &AccessControl, warnings: &Warnings) {
        warnings.set(CREDENTIALS_WARNING, self.mode_warning);
        control.replace(self.config, self.credentials);
        log::info!("applied acls, hostnames and credentials");
    }
}

fn parse_hostname(text: &str) -> Result<String, &'static str> {
    normalize_hostname(text).ok_or("is no host name: write a name without port")
}

impl HttpOptions {
    /// Returns the access control of a process with these realms.
    pub(super) fn access(
        &self,
        config: &HttpConfig,
        realms: Realms,
        insecure_writes: bool,
        warnings: &Warnings,
    ) -> Result<AccessControl, Failure> {
        let HttpAccess { config, credentials, mode_warning } =
            self.read(config).map_err(Failure::new)?;
        warnings.set(CREDENTIALS_WARNING, mode_warning);
        let authentication = match credentials {
            Some(credentials) => Authentication::Basic { credentials, realms },
            None => {
                if insecure_writes {
                    log::warn!(
                        "--insecure-writes: every client that reaches this process may change its \
                         state"
                    );
                }
                Authentication::None { insecure_writes }
            }
        };
        let rules = AccessRules { config, authentication, ..AccessRules::default() };
        Ok(AccessControl::new(rules))
    }

    /// Reads the credentials, and adds the flags to `config`.
    pub(super) fn read(&self, config: &HttpConfig) -> Result<HttpAccess, String> {
        let mut config = config.clone();
        config.hostnames.extend(self.hostnames.iter().cloned());
        let Some(path) = self.credentials.as_deref().map(credential_path) else {
            if config.acls.lists_principals() {
                return Err("acls: no principal can authenticate: give --credentials FILE, or \
                            remove 'acls'"
                    .to_owned());
            }
            return Ok(HttpAccess { config, credentials: None, mode_warning: None });
        };
        let file = CredentialFile::new(path, "credentials", Credentials::parse);
        let ReadCredentials { content, mode_warning } = file.read()?;
        Ok(HttpAccess { config, credentials: Some(content), mode_warning })
    }

    /// Serves HTTP on the Unix socket as well. Without the flag, the socket is at `default`, which
    /// is not necessary for the process to work.
    pub(super) fn listen_on_unix(
        &self,
        transport: &mut TcpTransport,
        default: Option<&Path>,
    ) -> Result<(), Failure> {
        let Some(path) = self.http_socket.as_deref().or(default) else { return Ok(()) };
        match UnixServer::bind(path) {
            Ok(unix) => {
                transport.server.add_unix(unix);
                Ok(())
            }
            Err(error) => {
                let reason = format!(
                    "listen on {}: {error}: --http-socket chooses another path",
                    path.display()
                );
                if self.http_socket.is_some() {
                    return Err(Failure::new(reason));
                }
                log::warn!("{reason}");
                Ok(())
            }
        }
    }
}

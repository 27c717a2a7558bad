//! The addresses of masters and agents on the command line, and the credential for them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use http::HeaderValue;
use overlay_config::{CREDENTIALS_FILE_MAX, Credential, credential_mode_warning, credential_path};
use overlay_types::addr::{Ensemble, EnsembleError};
use overlay_zookeeper::detector::FixedMaster;

use super::Failure;
use super::http_client::{MasterClient, block_on};
use super::http_exchange::Endpoint;
use super::output::print_error;
use super::process::read_text;

/// Prefix of the path of a Unix socket.
const UNIX: &str = "unix:";
const FILE: &str = "file://";
const ZOOKEEPER: &str = "zk://";
/// Omits the text, which may contain a password.
const NO_MASTER: &str = "it is no address of a master: write IP:PORT, NAME:PORT, or \
                         zk://USER:PASSWORD@HOST:PORT,…/PATH in lower case and without quotes";
/// The default port of an agent.
pub(super) const AGENT_PORT_DEFAULT: u16 = 5051;

/// The flags that name a running master and log in to it.
#[derive(Debug, Args)]
pub(super) struct MasterAddress {
    /// The running master: IP:PORT; or zk://[USER:PASSWORD@]HOST:PORT,…/PATH of the masters'
    /// election; or unix:PATH of the master's --http-socket; or file:///PATH of a file with one of
    /// these addresses
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: String,
    #[command(flatten)]
    credential: CredentialFile,
}

impl MasterAddress {
    /// Finds the master, and reads the credential.
    pub(super) fn client(&self) -> Result<MasterClient, Failure> {
        let source = MasterSource::from_flag("--master", &self.master)?;
        let credential = self.credential.read()?;
        block_on(MasterClient::find(&source, credential.as_ref()))
    }
}

/// The flag that names the file of a credential.
#[derive(Debug, Args)]
pub(super) struct CredentialFile {
    /// The file of the credential for a server that requires one: {"principal": …, "secret": …}, as
    /// for mesos-agent
    #[arg(long, env = "MESOS_OVERLAY_CREDENTIAL", value_name = "FILE")]
    credential: Option<PathBuf>,
}

/// A credential, ready for requests.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    /// The header. Its `Debug` output omits the value.
    pub(super) header: HeaderValue,
    /// The name of the file for messages.
    pub(super) file: String,
}

impl CredentialFile {
    /// Returns the path of the file, if one was given.
    pub(super) fn path(&self) -> Option<&Path> {
        self.credential.as_deref().map(credential_path)
    }

    /// Reads the file, if one was given. Warns on stderr if other users can read it.
    pub(super) fn read(&self) -> Result<Option<Authorization>, Failure> {
        let path = self.credential.as_deref();
        path.map(|path| read_credential("--credential", path)).transpose()
    }
}

/// Reads the file of a credential that `flag` names. Warns on stderr if other users can read it.
pub(super) fn read_credential(flag: &str, path: &Path) -> Result<Authorization, Failure> {
    let path = credential_path(path);
    let name = path.display().to_string();
    let failure =
        |reason: &dyn fmt::Display| Failure::new(format!("{flag}: read {name}: {reason}"));
    let (text, warning) = read_secret(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failure(&format_args!("{error}: check the path")),
        io::ErrorKind::InvalidData => failure(&"it is not UTF-8 text: save it as UTF-8"),
        _ => failure(&error),
    })?;
    if let Some(warning) = warning {
        print_error(format_args!("mesos-overlay: warning: {warning}"));
    }
    let credential = Credential::parse(&text).map_err(|error| failure(&error))?;
    let header = HeaderValue::try_from(credential.basic_authorization());
    // Base64 is valid in a header.
    let mut header = header.map_err(|_| failure(&"it fits into no header"))?;
    header.set_sensitive(true);
    Ok(Authorization { header, file: name })
}

/// Reads a file with a secret. Also returns a warning if other users can read the file.
fn read_secret(path: &Path) -> io::Result<(String, Option<String>)> {
    let mut text = String::new();
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if file.take(CREDENTIALS_FILE_MAX + 1).read_to_string(&mut text)? as u64 > CREDENTIALS_FILE_MAX
    {
        return Err(io::Error::other("it has more than 1 MiB: is it the right file?"));
    }
    // The mode of a pipe, as of `<(command)` in bash, says nothing.
    let mode = metadata.is_file().then(|| metadata.permissions().mode());
    let warning = mode.and_then(|mode| credential_mode_warning(&path.display().to_string(), mode));
    Ok((text, warning))
}

/// Where a master is found. `Display` hides passwords.
#[derive(Debug)]
pub(super) enum MasterSource {
    /// The address of one master.
    Fixed(FixedMaster),
    /// The election of several masters.
    Elected(Ensemble),
    /// The Unix socket of a master on this host.
    Socket(PathBuf),
}

impl MasterSource {
    /// Parses the value of `flag`.
    pub(super) fn from_flag(flag: &str, text: &str) -> Result<Self, Failure> {
        let failure =
            |failure: Failure| Failure { message: format!("{flag}: {failure}"), ..failure };
        Self::read(text).map_err(failure)
    }

    /// Parses an address. Reads the file, if the address names one.
    pub(super) fn read(text: &str) -> Result<Self, Failure> {
        let Some(path) = text.strip_prefix(FILE) else { return Self::parse(text) };
        let content = read_text(Path::new(path))?;
        let parsed = Self::parse(content.trim());
        parsed.map_err(|failure| Failure::new(format!("{path}: {failure}")))
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with(FILE) {
            let message = "it names another file: write zk://… or IP:PORT into it";
            return Err(Failure::usage(message));
        }
        if text.starts_with(ZOOKEEPER) {
            let ensemble = text.parse().map_err(|error: EnsembleError| error.to_string());
            return ensemble.map(Self::Elected).map_err(Failure::usage);
        }
        if let Some(path) = text.strip_prefix(UNIX) {
            return Ok(Self::Socket(parse_socket(path).map_err(Failure::usage)?));
        }
        text.parse().map(Self::Fixed).map_err(|error| {
            // A mistyped zk:// address may contain a password, also in a file.
            let has_password = text.contains('@');
            let message = if has_password { NO_MASTER.to_owned() } else { format!("{error}") };
            Failure::usage(message)
        })
    }
}

/// Parses the path of a Unix socket. `unix:///PATH` is accepted too.
fn parse_socket(path: &str) -> Result<PathBuf, String> {
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err("unix: names no socket: append the path of --http-socket, as in \
                    unix:/run/mesos-overlay/http.sock"
            .to_owned());
    }
    Ok(PathBuf::from(path))
}

impl fmt::Display for MasterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(master) => master.fmt(f),
            Self::Elected(ensemble) => ensemble.fmt(f),
            Self::Socket(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// The address of an agent.
#[derive(Debug, Clone)]
pub(super) enum AgentAddress {
    Tcp(SocketAddrV4),
    Socket(PathBuf),
}

impl FromStr for AgentAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return parse_socket(path).map(Self::Socket);
        }
        text.parse().map(Self::Tcp).map_err(|error| format!("{error}: write IP:PORT or unix:PATH"))
    }
}

impl AgentAddress {
    /// Returns the address of the agent of this host, which may have been `found`.
    pub(super) fn local(found: Option<SocketAddrV4>) -> Self {
        Self::Tcp(found.unwrap_or(SocketAddrV4::new(Ipv4Addr::LOCALHOST, AGENT_PORT_DEFAULT)))
    }

    /// Returns the port on which the agents of peers are asked, if they use the same port.
    pub(super) const fn port_of_peers(&self) -> u16 {
        match self {
            Self::Tcp(address) => address.port(),
            Self::Socket(_) => AGENT_PORT_DEFAULT,
        }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Tcp(address) => Endpoint::Tcp(*address),
            Self::Socket(path) => Endpoint::Socket(path.clone()),
        }
    }
}

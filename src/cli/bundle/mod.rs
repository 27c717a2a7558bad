//! `mesos-overlay bundle`: collects what a maintainer needs to find a fault.
//!
//! Nothing is necessary: what cannot be collected is listed with the reason. The bundle changes
//! nothing and sends no packets but requests to the agent and the master.

mod archive;
mod commands;
mod files;
mod redaction;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use overlay_doctor::observation::ConfigSource;
use overlay_types::protocol::Assignment;
use overlay_types::secret::{self, show_path};
use overlay_wire::{decode_agent, parse_json};

use self::archive::{Archive, Item, TEXT_MAX};
use self::redaction::Redaction;
use super::agent_options::LocalAgentOptions;
use super::doctor::discovery::{self, Discovery};
use super::http_client::{MasterClient, block_on};
use super::http_exchange::{Endpoint, get_bounded_from_agent};
use super::master_address::{AgentAddress, Authorization, CredentialFile, MasterSource};
use super::output::Output;
use super::output_file;
use super::process::pluralize;
use super::{Failure, PROGRAM};

/// The name of the agent's configuration in the archive.
const CONFIG: &str = "agent/agent.json";
const OVERLAY: &str = "/overlay-agent/overlay";
/// Most overlays whose files and Docker networks are collected: as many as a network has.
const OVERLAYS_MAX: usize = 128;
/// The endpoints, with their names in the archive.
const AGENT_ENDPOINTS: [(&str, &str); 3] = [
    ("agent/overlay.json", OVERLAY),
    ("agent/health.json", "/overlay-agent/health"),
    ("agent/metrics.txt", "/overlay-agent/metrics"),
];
const MASTER_ENDPOINTS: [(&str, &str); 4] = [
    ("master/state.json", "/overlay-master/state"),
    ("master/health.json", "/overlay-master/health"),
    ("master/history.json", "/overlay-master/history"),
    ("master/metrics.txt", "/overlay-master/metrics"),
];

/// Collect what a maintainer needs to find a fault into one archive, without secrets.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay bundle                                     on the host of an agent
  mesos-overlay bundle --master 10.0.0.1:5050              the master's state and history too
  mesos-overlay bundle --file network.json --file mesos-agent.INFO

Run it as root. It reads the agent, the master, the doctor's findings, the network of the kernel,
the rules of all firewalls, the Docker networks, the journal, and the files that you name. Passwords
and secrets are removed. Addresses, routes and rules are not: look through the archive before you
send it. What cannot be collected is listed, and no failure.")]
pub(super) struct BundleCommand {
    /// The file to write, atomically and readable by its owner only; - is stdout; otherwise
    /// mesos-overlay-bundle-HOST-TIME.tar.gz in the current directory
    #[arg(long, env = "MESOS_OVERLAY_OUTPUT", value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    local: LocalAgentOptions,
    /// The running master: as for `state`. Its state and history are collected too
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    credential: CredentialFile,
    /// A further file, such as a log or the network file; of a long one, the last 8 MiB. Repeat the
    /// flag for several files
    #[arg(long, env = "MESOS_OVERLAY_FILE", value_name = "FILE", value_delimiter = ',')]
    file: Vec<PathBuf>,
    /// The systemd units whose journal is collected
    #[arg(
        long,
        env = "MESOS_OVERLAY_UNITS",
        value_name = "UNIT,…",
        value_delimiter = ',',
        default_value = "mesos-overlay-agent,mesos-overlay-master"
    )]
    units: Vec<String>,
    /// How many lines of the journal are collected
    #[arg(long, env = "MESOS_OVERLAY_LINES", value_name = "NUMBER", default_value_t = 10_000)]
    lines: u32,
}

impl BundleCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let now = now();
        let directory = directory_name(now);
        let credential = self.credential.read()?;
        // A configuration that cannot be read is a reason for a bundle.
        let discovery = discovery::discover(self.local.config.as_deref());
        let mut archive = Archive::new(self.redaction(discovery.as_ref().ok())?);
        self.add_agent(&mut archive, discovery, credential.as_ref());
        self.add_master(&mut archive, credential.as_ref());
        files::host_files().chain(commands::host()).for_each(|item| archive.add(item));
        let journal = commands::journal(&self.units, self.lines).into_iter();
        journal.chain(files::named_files(&self.file)).for_each(|item| archive.add(item));
        let bytes = archive.encode(&directory, now);
        let bytes = bytes.map_err(|error| Failure::new(format!("write the archive: {error}")))?;
        self.write(&directory, &archive, &bytes)
    }

    /// Learns the secrets that this host uses.
    fn redaction(&self, discovery: Option<&Discovery>) -> Result<Redaction, Failure> {
        let mut redaction = Redaction::new()?;
        let of_agent = discovery.and_then(|discovery| discovery.config.authentication.as_ref());
        let files = of_agent.map(|authentication| authentication.file.as_path());
        let is_credential = |path: &&Path| path.to_string_lossy().contains("credential");
        let named = self.file.iter().map(PathBuf::as_path).filter(is_credential);
        let files = files.into_iter().chain(self.credential.path()).chain(named);
        files.for_each(|path| redaction.learn_file(path));
        Ok(redaction)
    }

    /// Adds the agent of this host: what it answers, its files, the doctor's findings, and Docker.
    fn add_agent(
        &self,
        archive: &mut Archive,
        discovery: Result<Discovery, Failure>,
        credential: Option<&Authorization>,
    ) {
        let (address, discovery) = match discovery {
            Ok(discovery) => (discovery.address, Some(discovery)),
            Err(failure) => {
                // The doctor's text has the problems of the file.
                let file =
                    self.local.config.iter().map(|path| files::file(CONFIG.to_owned(), path));
                file.for_each(|item| archive.add(item));
                archive.add(Item {
                    name: "agent".to_owned(),
                    source: "the files of the agent".to_owned(),
                    content: Err(failure.to_string()),
                });
                (None, None)
            }
        };
        // Any user may serve a default address, and does not get the credential.
        let is_known = self.local.agent.is_some() || address.is_some();
        let address = self.local.agent.clone().unwrap_or_else(|| AgentAddress::local(address));
        let credential = credential.filter(|_| is_known);
        let mut overlays = Vec::new();
        for (name, path) in AGENT_ENDPOINTS {
            let content = ask_agent(&address.endpoint(), path, credential);
            if let (OVERLAY, Ok(body)) = (path, &content) {
                overlays = overlay_names(body);
            }
            archive.add(response(name, &format!("agent {}{path}", address.endpoint()), content));
        }
        if let Some(Discovery { config, configuration, .. }) = &discovery {
            if let Some(path) = configuration.source.as_ref().and_then(path_of) {
                archive.add(files::file(CONFIG.to_owned(), Path::new(path)));
            }
            files::agent_files(config, &overlays).into_iter().for_each(|item| archive.add(item));
            let docker = commands::docker(&config.docker, &overlays);
            docker.into_iter().for_each(|item| archive.add(item));
        }
        archive.add(commands::own("doctor.txt", self.doctor_arguments()));
    }

    /// Returns the arguments of the doctor, which gets the same flags.
    fn doctor_arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("doctor")];
        let mut add = |flag: &str, value: Option<OsString>| {
            if let Some(value) = value {
                arguments.extend([flag.into(), value]);
            }
        };
        add("--config", self.local.config.as_ref().map(OsString::from));
        add("--agent", self.local.agent.as_ref().map(|agent| agent.endpoint().to_string().into()));
        // Others could see an argument with a password.
        let master = self.master.as_ref().filter(|address| !secret::may_contain(address));
        add("--master", master.map(OsString::from));
        add("--credential", self.credential.path().map(OsString::from));
        arguments
    }

    /// Adds what the master answers.
    fn add_master(&self, archive: &mut Archive, credential: Option<&Authorization>) {
        let address = self.master.as_deref().filter(|address| !address.is_empty());
        let Some(address) = address else {
            return archive.add(Item {
                name: "master".to_owned(),
                source: "the master".to_owned(),
                content: Err("--master names none".to_owned()),
            });
        };
        let found = MasterSource::from_flag("--master", address)
            .and_then(|source| block_on(MasterClient::find(&source, credential)));
        let master = match found {
            Ok(master) => master,
            Err(failure) => {
                return archive.add(Item {
                    name: "master".to_owned(),
                    source: "the master".to_owned(),
                    content: Err(failure.to_string()),
                });
            }
        };
        for (name, path) in MASTER_ENDPOINTS {
            let content = block_on(master.get(path, response_max()));
            let content = content.map_err(|failure| failure.to_string());
            archive.add(response(name, &format!("master {master}{path}"), content));
        }
    }

    fn write(&self, directory: &str, archive: &Archive, bytes: &[u8]) -> Result<(), Failure> {
        let default = PathBuf::from(format!("{directory}.tar.gz"));
        let path = self.output.as_ref().unwrap_or(&default);
        output_file::write(path, bytes)
            .map_err(|reason| Failure::new(format!("write {}: {reason}", show_path(path))))?;
        if output_file::is_stdout(path) {
            return Ok(());
        }
        let mut output = Output::new();
        let files = pluralize(archive.count() as u128, "file");
        let kilobytes = bytes.len().div_ceil(1000);
        output.line(format_args!("{}: {files}, {kilobytes} kB", show_path(path)))?;
        for (source, reason) in archive.missing() {
            output.line(format_args!("not collected: {source}: {reason}"))?;
        }
        output.line(
            "Secrets are removed. Addresses, routes, rules and logs are not: look through the \
             archive before you send it.",
        )?;
        output.finish()
    }
}

/// Returns the longest response that is collected.
fn response_max() -> usize {
    usize::try_from(TEXT_MAX).unwrap_or(usize::MAX)
}

/// Returns the response of an agent, or why there is none.
fn ask_agent(
    endpoint: &Endpoint,
    path: &str,
    credential: Option<&Authorization>,
) -> Result<Bytes, String> {
    let asked = block_on(async {
        Ok(get_bounded_from_agent(endpoint, path, credential, response_max()).await)
    });
    let (status, body) = asked.map_err(|failure| failure.to_string())??;
    // A failed agent answers with 503 and a health in the usual form.
    let is_answer = status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE;
    if is_answer { Ok(body) } else { Err(format!("the answer has the status {status}")) }
}

/// Returns a response as an item.
fn response(name: &str, source: &str, content: Result<Bytes, String>) -> Item {
    Item {
        name: name.to_owned(),
        source: source.to_owned(),
        content: content.map(|body| String::from_utf8_lossy(&body).into_owned()),
    }
}

/// Returns the names of the overlays in the answer of an agent, without names that could be flags
/// or paths.
fn overlay_names(body: &[u8]) -> Vec<String> {
    let agent = parse_json(body).ok().and_then(|json| decode_agent(&json).ok());
    let names = agent.iter().flat_map(|agent| &agent.overlays).map(Assignment::name);
    let names = names.take(OVERLAYS_MAX).map(ToString::to_string);
    names.filter(|name| !name.starts_with(['-', '.']) && !name.contains('/')).collect()
}

/// Returns the path of the configuration file.
fn path_of(source: &ConfigSource) -> Option<&str> {
    match source {
        ConfigSource::Flag(path) | ConfigSource::DefaultPath(path) => Some(path),
        ConfigSource::Agent { file, .. } => file.as_deref(),
    }
}

/// Returns the name of the archive's directory: host and time.
fn directory_name(now: SystemTime) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().filter(char::is_ascii_alphanumeric).collect();
    let time = humantime::format_rfc3339_seconds(now).to_string().replace([':', '-'], "");
    format!("{PROGRAM}-bundle-{host}-{time}")
}

#[expect(clippy::disallowed_methods, reason = "the command line may read the clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

//! The configuration of the master: a bare network file, or `master_config` around it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::document::{Document, Member, Node, Object};
use super::keys::{MASTER, NETWORK, ZOOKEEPER};
use super::limits::{self, Side};
use super::network;
use super::parameters::Host;
use super::problem::{Problem, Problems};
use super::redacted;
use crate::addr::{Ensemble, EnsembleError};
use crate::limits::Limits;
use crate::protocol::Network;

/// How the master runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// The network of the cluster.
    pub network: Network,
    /// Where the Mesos module's replicated log finds its peers.
    pub zk: Option<ZooKeeper>,
    /// Where the Mesos module keeps its replicated log.
    pub replicated_log_dir: Option<PathBuf>,
    /// How long the Mesos module waits for its replicated log.
    pub replicated_log_timeout: Option<Duration>,
    /// How long a freed address rests before another agent may get it.
    pub reuse_after: Duration,
    /// How the state is kept.
    pub store: StoreKind,
    /// Where it is kept, with the store [`StoreKind::File`].
    pub work_dir: PathBuf,
    /// What peers can make the master hold and do.
    pub limits: Limits,
    /// Variables of the environment of the Mesos module that `zk` was completed from.
    pub from_environment: Vec<&'static str>,
}

impl MasterConfig {
    /// Default of `reuse_after`: longer than the tables of any peer that missed the news.
    pub const REUSE_AFTER_DEFAULT: Duration = Duration::from_hours(1);
    /// Longest `reuse_after`, a year; so sums with it stay far from the end of the clock.
    pub const REUSE_AFTER_MAX: Duration = Duration::from_hours(8766);
    /// Longest `replicated_log_timeout`.
    pub const REPLICATED_LOG_TIMEOUT_MAX: Duration = Duration::from_hours(24);
    /// Default of `work_dir`.
    pub const WORK_DIR_DEFAULT: &'static str = "/var/lib/mesos-overlay";
}

/// How the master keeps its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// In one file, durable.
    #[default]
    File,
    /// Not at all: a restart forgets everything.
    Memory,
    /// In ZooKeeper, for several masters.
    ZooKeeper(EnsembleSource),
}

/// Where the address of a ZooKeeper ensemble is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnsembleSource {
    /// Here.
    Address(Ensemble),
    /// In this file, so that nobody sees the password among the arguments of a program.
    File(PathBuf),
}

impl StoreKind {
    /// What to write for one.
    const EXPECTED: &'static str =
        "file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds such an address";
}

/// Why a text is no store. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreKindError {
    /// Neither a known word nor an address.
    #[error("is no store: write {}", StoreKind::EXPECTED)]
    Unknown,
    /// An address that cannot be used.
    #[error(transparent)]
    Ensemble(#[from] EnsembleError),
}

impl FromStr for StoreKind {
    type Err = StoreKindError;

    fn from_str(text: &str) -> Result<Self, StoreKindError> {
        match text {
            "file" => Ok(Self::File),
            "memory" => Ok(Self::Memory),
            _ if text.starts_with("zk://") => {
                Ok(Self::ZooKeeper(EnsembleSource::Address(text.parse()?)))
            }
            _ => match text.strip_prefix("file://") {
                Some(path) if path.len() > 1 && path.starts_with('/') => {
                    Ok(Self::ZooKeeper(EnsembleSource::File(path.into())))
                }
                _ => Err(StoreKindError::Unknown),
            },
        }
    }
}

/// The ZooKeeper of `master_config`. What is not given there Mesos has in its own flags; the module
/// completes it from their variables.
#[derive(Clone, PartialEq, Eq)]
pub struct ZooKeeper {
    /// Hosts and path, `zk://host:port,…/path`, or `file:///path` of a file with that.
    pub url: Option<String>,
    /// How many masters make a majority.
    pub quorum: Option<u32>,
    /// After how long without a word ZooKeeper gives up a session.
    pub session_timeout: Duration,
}

impl ZooKeeper {
    /// Default of `session_timeout`.
    pub const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
    /// Longest `session_timeout` in seconds.
    pub const SESSION_TIMEOUT_MAX: u32 = 3600;
    /// Largest `quorum`: of twice as many masters, more than any ZooKeeper ever served.
    pub const QUORUM_MAX: u32 = 100;
}

impl fmt::Debug for ZooKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeper")
            .field("url", &self.url.as_deref().map(redacted))
            .field("quorum", &self.quorum)
            .field("session_timeout", &self.session_timeout)
            .finish()
    }
}

/// Reads the network file or `master_config` that is the content of `file`.
///
/// # Errors
/// With every problem of the file.
pub fn parse_master(file: &str, text: &str) -> Result<(MasterConfig, Vec<Problem>), Problems> {
    let (mut document, root) = Document::open(file, text);
    let config = root.and_then(|root| read(&mut document, &root, Host::Program));
    document.close(config)
}

pub(super) fn read<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
    host: Host<'a>,
) -> Option<MasterConfig> {
    let (object, network) = read_objects(document, root)?;
    let network = network.and_then(|network| network::read(document, &network));
    let replicated_log_dir = object.value("replicated_log_dir");
    match host {
        Host::Program => warn_of_unused(document, &object),
        // The log is all that needs ZooKeeper.
        Host::Module(environment) if replicated_log_dir.is_some() => {
            document.fall_back("url", "MESOS_ZK", environment.mesos_zk.as_deref());
            document.fall_back("quorum", "MESOS_QUORUM", environment.mesos_quorum.as_deref());
        }
        Host::Module(_) => {}
    }
    let zk = document.inner(&object, "zk", &ZOOKEEPER);
    let from_environment = zk.as_ref().map(|zk| document.variables_in(zk)).unwrap_or_default();
    let zk = zk.map(|zk| read_zookeeper(document, &zk));
    let replicated_log_dir = replicated_log_dir
        .and_then(|node| document.path(&node, "/var/lib/mesos/overlay_replicated_log"));
    let replicated_log_timeout = object.value("replicated_log_timeout").and_then(|node| {
        let range = Duration::from_nanos(1)..=MasterConfig::REPLICATED_LOG_TIMEOUT_MAX;
        document.duration(&node, range, "5mins")
    });
    let reuse_after = object.value("reuse_after");
    let reuse_after = reuse_after.and_then(|node| read_reuse_after(document, &node));
    let store = object.value("store").and_then(|node| read_store(document, &node));
    let work_dir = object
        .value("work_dir")
        .and_then(|node| document.absolute_path(&node, MasterConfig::WORK_DIR_DEFAULT));
    let limits = limits::read(document, &object, Side::Master);
    Some(MasterConfig {
        limits,
        network: network?,
        zk,
        replicated_log_dir,
        replicated_log_timeout,
        reuse_after: reuse_after.unwrap_or(MasterConfig::REUSE_AFTER_DEFAULT),
        store: store.unwrap_or_default(),
        work_dir: work_dir.unwrap_or_else(|| MasterConfig::WORK_DIR_DEFAULT.into()),
        from_environment,
    })
}

/// The `master_config` and the network in it. Beside a bare network, in a file or of parameters
/// alone, there may still be parameters that are keys of `master_config`.
fn read_objects<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
) -> Option<(Object<'a>, Option<Object<'a>>)> {
    let members = document.members(root)?;
    let (object, bare) = if document.has_no_file() || !is_master_config(&members) {
        let bare = document.object(root, members, &NETWORK);
        (document.object(root, Vec::new(), &MASTER), Some(bare))
    } else {
        (document.object(root, members, &MASTER), None)
    };
    if let Some(bare) = bare.filter(|_| object.value("network").is_none()) {
        if document.has_no_file() && bare.is_empty() {
            let remedy = "write the path of the network file, such as \"/etc/mesos/overlays.json\"";
            document.refuse_missing(&object, "overlays", remedy);
            return Some((object, None));
        }
        return Some((object, Some(bare)));
    }
    let network = document.inner(&object, "network", &NETWORK);
    if network.is_none() && object.value("network").is_none() {
        let remedy = "write the network in it, with vtep_subnet and overlays";
        document.refuse_missing(&object, "network", remedy);
    }
    Some((object, network))
}

fn warn_of_unused(document: &mut Document<'_>, object: &Object<'_>) {
    for key in ["zk", "replicated_log_dir", "replicated_log_timeout"] {
        if let Some(node) = object.value(key) {
            document.warn(&node, "is used by the Mesos module only: the program has --store");
        }
    }
}

fn read_store<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<StoreKind> {
    let text = document.word(node, StoreKind::EXPECTED)?;
    text.parse().map_err(|error: StoreKindError| document.refuse(node, error)).ok()
}

fn read_reuse_after<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Duration> {
    let range = Duration::ZERO..=MasterConfig::REUSE_AFTER_MAX;
    let duration = document.duration(node, range, "1h")?;
    if duration.is_zero() {
        document.warn(
            node,
            "0 lets a freed address go to another agent at once, while others still send to the \
             one that had it",
        );
    }
    Some(duration)
}

/// Whether these are the keys of `master_config` rather than of a network file. A lone misspelt
/// `network` counts as one, so that the right key is proposed.
fn is_master_config(members: &[Member<'_>]) -> bool {
    let names = || members.iter().map(|member| member.name.as_str());
    if names().any(|name| name == "network") {
        return true;
    }
    !names().any(|name| NETWORK.has(name))
        && names().any(|name| MASTER.has(name) || MASTER.nearest(name).is_some())
}

fn read_zookeeper<'a>(document: &mut Document<'a>, object: &Object<'a>) -> ZooKeeper {
    let expected = "the address of ZooKeeper, such as \"zk://10.0.0.1:2181/mesos\"";
    let url = object.value("url").and_then(|node| {
        let url = document.word(&node, expected)?;
        if !["zk://", "file://"].iter().any(|scheme| url.starts_with(scheme)) {
            document.refuse(&node, format_args!("is no zk:// address: write {expected}"));
            return None;
        }
        Some(url)
    });
    let quorum =
        object.value("quorum").and_then(|node| document.number(&node, 1..=ZooKeeper::QUORUM_MAX));
    let session_timeout = object
        .value("session_timeout")
        .and_then(|node| document.number(&node, 1..=ZooKeeper::SESSION_TIMEOUT_MAX))
        .map(|seconds| Duration::from_secs(seconds.into()));
    ZooKeeper {
        url,
        quorum,
        session_timeout: session_timeout.unwrap_or(ZooKeeper::SESSION_TIMEOUT_DEFAULT),
    }
}

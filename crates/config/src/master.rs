//! The configuration of the master: a network file, or a `master_config` that contains the network.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use libprocess::limits::Limits;
use overlay_types::addr::{Ensemble, EnsembleError};
use overlay_types::protocol::{AuthenticationMode, Network};

use super::authentication::{self, AuthenticationConfig};
use super::document::{Document, Member, Node, Object};
use super::environment::RunMode;
use super::http::{self, HttpConfig};
use super::keys::{MASTER, NETWORK, ZOOKEEPER};
use super::limits::{self, Side};
use super::network;
use super::problem::{Problem, Problems};
use super::text::redacted;

/// The configuration of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// The network of the cluster.
    pub network: Network,
    /// The ZooKeeper ensemble in which the replicated log of the Mesos module finds its peers.
    pub zk: Option<ZooKeeper>,
    /// The directory of the replicated log of the Mesos module.
    pub replicated_log_dir: Option<PathBuf>,
    /// The timeout of operations of the replicated log of the Mesos module.
    pub replicated_log_timeout: Option<Duration>,
    /// The cooldown of a released address before another agent can get it.
    pub reuse_after: Duration,
    /// The store of the state.
    pub store: StoreKind,
    /// The directory of the store [`StoreKind::File`].
    pub work_dir: PathBuf,
    /// Limits on the resources that peers can make the master use.
    pub limits: Limits,
    /// Who may use the HTTP endpoints, and under which names.
    pub http: HttpConfig,
    /// How the master and its agents authenticate each other. `None` without credentials.
    pub authentication: Option<AuthenticationConfig>,
    /// The environment variables of the Mesos module that supplied parts of `zk`.
    pub from_environment: Vec<&'static str>,
}

impl MasterConfig {
    /// Default of `reuse_after`. Longer than any peer that missed an update keeps an old peer
    /// table.
    pub const REUSE_AFTER_DEFAULT: Duration = Duration::from_hours(1);
    /// Maximum of `reuse_after`: a year, so that adding it to a time cannot overflow.
    pub(super) const REUSE_AFTER_MAX: Duration = Duration::from_hours(8766);
    /// Maximum of `replicated_log_timeout`.
    pub(super) const REPLICATED_LOG_TIMEOUT_MAX: Duration = Duration::from_hours(24);
    /// Default of `work_dir`.
    pub const WORK_DIR_DEFAULT: &'static str = "/var/lib/mesos-overlay";
}

/// The store in which the master keeps its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// A durable file.
    #[default]
    File,
    /// Memory only: a restart loses the state.
    Memory,
    /// ZooKeeper, for several masters.
    ZooKeeper(EnsembleSource),
}

/// The source of the address of a ZooKeeper ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnsembleSource {
    /// The address itself.
    Address(Ensemble),
    /// A file with the address, which keeps the password out of the process arguments.
    File(PathBuf),
}

impl StoreKind {
    /// The valid values, for messages.
    const EXPECTED: &'static str =
        "file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds such an address";
}

/// Why a text is not a store. The message does not repeat the text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreKindError {
    /// Neither a known keyword nor an address.
    #[error("is no store: write {}", StoreKind::EXPECTED)]
    Unknown,
    /// An invalid address.
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

/// The ZooKeeper ensemble of `master_config`. Mesos has flags for the values that are missing here;
/// the module reads them from the environment variables of these flags.
#[derive(Clone, PartialEq, Eq)]
pub struct ZooKeeper {
    /// `zk://host:port,…/path`, or `file:///path` of a file with such an address.
    pub url: Option<String>,
    /// How many masters are a majority.
    pub quorum: Option<u32>,
    /// The time without contact after which ZooKeeper expires a session.
    pub session_timeout: Duration,
}

impl ZooKeeper {
    /// Default of `session_timeout`.
    pub const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
    /// Maximum of `session_timeout` in seconds.
    pub(super) const SESSION_TIMEOUT_MAX: u32 = 3600;
    /// Maximum of `quorum`: half of more masters than any ensemble ever served.
    pub(super) const QUORUM_MAX: u32 = 100;
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

/// Parses `text`, the content of `file`, as a network file or as `master_config`.
///
/// # Errors
/// Returns every problem of the file.
pub fn parse_master(file: &str, text: &str) -> Result<(MasterConfig, Vec<Problem>), Problems> {
    let (mut document, root) = Document::parse(file, text);
    let config = root.and_then(|root| read(&mut document, &root, RunMode::Standalone));
    document.finish(config)
}

pub(super) fn read<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
    mode: RunMode<'a>,
) -> Option<MasterConfig> {
    let (object, network) = read_objects(document, root)?;
    let network = network.and_then(|network| network::read(document, &network));
    let replicated_log_dir = object.value("replicated_log_dir");
    match mode {
        RunMode::Standalone => warn_about_unused(document, &object),
        // Only the replicated log needs ZooKeeper.
        RunMode::MesosModule(environment) if replicated_log_dir.is_some() => {
            document.add_fallback("url", "MESOS_ZK", environment.mesos_zk.as_deref());
            document.add_fallback("quorum", "MESOS_QUORUM", environment.mesos_quorum.as_deref());
        }
        RunMode::MesosModule(_) => {}
    }
    let zk = document.nested_object(&object, "zk", &ZOOKEEPER);
    let from_environment = zk.as_ref().map(|zk| document.variables_in(zk)).unwrap_or_default();
    let zk = zk.map(|zk| read_zookeeper(document, &zk));
    let replicated_log_dir = replicated_log_dir
        .and_then(|node| document.read_path(&node, "/var/lib/mesos/overlay_replicated_log"));
    let replicated_log_timeout = object.value("replicated_log_timeout").and_then(|node| {
        let range = Duration::from_nanos(1)..=MasterConfig::REPLICATED_LOG_TIMEOUT_MAX;
        document.read_duration(&node, range, "5mins")
    });
    let reuse_after = object.value("reuse_after");
    let reuse_after = reuse_after.and_then(|node| read_reuse_after(document, &node));
    let store = object.value("store").and_then(|node| read_store(document, &node));
    let work_dir = object
        .value("work_dir")
        .and_then(|node| document.read_absolute_path(&node, MasterConfig::WORK_DIR_DEFAULT));
    let limits = limits::read(document, &object, Side::Master);
    let http = http::read(document, &object);
    // A master that gets credentials serves its agents until they have theirs.
    let authentication =
        authentication::read(document, &object, "credentials", AuthenticationMode::Permitted);
    Some(MasterConfig {
        limits,
        http,
        authentication,
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

/// Reads the `master_config` object and the network object. If the file is a bare network file, or
/// if there is no file, parameters may still supply keys of `master_config`.
fn read_objects<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
) -> Option<(Object<'a>, Option<Object<'a>>)> {
    let members = document.read_members(root)?;
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
    let network = document.nested_object(&object, "network", &NETWORK);
    if network.is_none() && object.value("network").is_none() {
        let remedy = "write an object with vtep_subnet and overlays";
        document.refuse_missing(&object, "network", remedy);
    }
    Some((object, network))
}

fn warn_about_unused(document: &mut Document<'_>, object: &Object<'_>) {
    for key in ["zk", "replicated_log_dir", "replicated_log_timeout"] {
        if let Some(node) = object.value(key) {
            document.warn(
                &node,
                "is used by the Mesos module only: the standalone program uses --store",
            );
        }
    }
}

fn read_store<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<StoreKind> {
    let text = document.read_word(node, StoreKind::EXPECTED)?;
    text.parse().map_err(|error: StoreKindError| document.refuse(node, error)).ok()
}

fn read_reuse_after<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Duration> {
    let range = Duration::ZERO..=MasterConfig::REUSE_AFTER_MAX;
    let duration = document.read_duration(node, range, "1h")?;
    if duration.is_zero() {
        document.warn(
            node,
            "0 allows another agent to get a released address at once, while peers still send to \
             the previous agent",
        );
    }
    Some(duration)
}

/// Whether `members` belong to `master_config` rather than to a network file. A single misspelled
/// `network` counts as a key of `master_config`, so that the message suggests the right key.
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
        let url = document.read_word(&node, expected)?;
        if !["zk://", "file://"].iter().any(|scheme| url.starts_with(scheme)) {
            document.refuse(&node, format_args!("is no zk:// address: write {expected}"));
            return None;
        }
        Some(url)
    });
    let quorum = object
        .value("quorum")
        .and_then(|node| document.read_number(&node, 1..=ZooKeeper::QUORUM_MAX));
    let session_timeout = object
        .value("session_timeout")
        .and_then(|node| document.read_number(&node, 1..=ZooKeeper::SESSION_TIMEOUT_MAX))
        .map(|seconds| Duration::from_secs(seconds.into()));
    ZooKeeper {
        url,
        quorum,
        session_timeout: session_timeout.unwrap_or(ZooKeeper::SESSION_TIMEOUT_DEFAULT),
    }
}

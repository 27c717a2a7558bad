//! The configuration of the master: a bare network file, or `master_config` around it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Document, Member, Node};
use super::keys::{MASTER, NETWORK, ZOOKEEPER};
use super::network;
use super::problem::{Problem, Problems};
use super::redacted;
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
}

impl MasterConfig {
    /// Default of `reuse_after`: longer than the tables of any peer that missed the news.
    pub const REUSE_AFTER_DEFAULT: Duration = Duration::from_hours(1);
    /// Longest `reuse_after`, a year; so sums with it stay far from the end of the clock.
    pub const REUSE_AFTER_MAX: Duration = Duration::from_hours(8766);
    /// Longest `replicated_log_timeout`.
    pub const REPLICATED_LOG_TIMEOUT_MAX: Duration = Duration::from_hours(24);
}

/// The ZooKeeper of `master_config`. What is not given here Mesos has in its own flags, from where
/// the C++ modules took it too.
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
    let (mut document, root) = Document::open(text);
    let config = root.and_then(|root| read(&mut document, &root));
    document.close(file, config)
}

fn read<'a>(document: &mut Document<'a>, root: &Node<'a>) -> Option<MasterConfig> {
    let members = document.members(root)?;
    if !is_master_config(&members) {
        let network = document.object(root, members, &NETWORK);
        return network::read(document, &network).map(|network| MasterConfig {
            network,
            zk: None,
            replicated_log_dir: None,
            replicated_log_timeout: None,
            reuse_after: MasterConfig::REUSE_AFTER_DEFAULT,
        });
    }
    let object = document.object(root, members, &MASTER);
    let network = document
        .required(&object, "network", "write the network in it, with vtep_subnet and overlays")
        .and_then(|node| document.read_object(&node, &NETWORK))
        .and_then(|network| network::read(document, &network));
    let zk = object.value("zk").and_then(|node| read_zookeeper(document, &node));
    let replicated_log_dir = object
        .value("replicated_log_dir")
        .and_then(|node| document.path(&node, "/var/lib/mesos/overlay_replicated_log"));
    let replicated_log_timeout = object.value("replicated_log_timeout").and_then(|node| {
        let range = Duration::from_nanos(1)..=MasterConfig::REPLICATED_LOG_TIMEOUT_MAX;
        document.duration(&node, range, "5mins")
    });
    let reuse_after = object.value("reuse_after").and_then(|node| {
        let range = Duration::ZERO..=MasterConfig::REUSE_AFTER_MAX;
        let duration = document.duration(&node, range, "1h")?;
        if duration.is_zero() {
            document.warn(
                &node,
                "0 lets a freed address go to another agent at once, while others still send to \
                 the one that had it",
            );
        }
        Some(duration)
    });
    for key in ["zk", "replicated_log_dir", "replicated_log_timeout"] {
        if let Some(node) = object.value(key) {
            document.warn(&node, "is used by the Mesos module only: the program has --store");
        }
    }
    Some(MasterConfig {
        network: network?,
        zk,
        replicated_log_dir,
        replicated_log_timeout,
        reuse_after: reuse_after.unwrap_or(MasterConfig::REUSE_AFTER_DEFAULT),
    })
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

fn read_zookeeper<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<ZooKeeper> {
    let object = document.read_object(node, &ZOOKEEPER)?;
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
    Some(ZooKeeper {
        url,
        quorum,
        session_timeout: session_timeout.unwrap_or(ZooKeeper::SESSION_TIMEOUT_DEFAULT),
    })
}

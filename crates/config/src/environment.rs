//! The process that the configuration is for: the standalone program, or a Mesos process with its
//! environment.

use std::fmt;

use super::text::redacted;

/// Environment variables that hold flags of Mesos. The modules use them as fallbacks. An empty
/// variable counts as unset.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `MESOS_MASTER`: where an agent finds the master.
    pub mesos_master: Option<String>,
    /// `MESOS_ZK`: the ZooKeeper ensemble of the masters.
    pub mesos_zk: Option<String>,
    /// `MESOS_QUORUM`: how many masters are a majority.
    pub mesos_quorum: Option<String>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("mesos_master", &self.mesos_master.as_deref().map(redacted))
            .field("mesos_zk", &self.mesos_zk.as_deref().map(redacted))
            .field("mesos_quorum", &self.mesos_quorum)
            .finish()
    }
}

/// The process that uses the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) enum RunMode<'a> {
    /// The standalone program, which has flags beside its file.
    Standalone,
    /// A Mesos process with this environment.
    MesosModule(&'a Environment),
}

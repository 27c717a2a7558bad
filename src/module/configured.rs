//! A configured module that has not been started.

use std::future::Future;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::Arc;

use overlay_engine::state_machine::StateMachine;
use tokio::sync::oneshot;

use crate::runtime::Metrics;
use crate::runtime::gateway::Gateway;

/// An HTTP route of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Path below the ID of the libprocess process.
    pub path: &'static str,
    /// Authentication realm of Mesos.
    pub realm: &'static str,
    /// Text of `/help` in Markdown.
    pub help: &'static str,
}

/// The task that runs the state machine until it is stopped.
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Creates the task. The address of the libprocess process is known only when Mesos starts that
/// process.
pub(super) type Start = Box<dyn FnOnce(SocketAddrV4, oneshot::Receiver<()>) -> Task + Send>;

/// A configured module.
pub(super) struct Configured {
    /// Connects the libprocess process with the state machine.
    pub(super) gateway: Arc<Gateway>,
    pub(super) start: Start,
    /// The `zk://` URL of the election that the module follows.
    pub(super) election: Option<String>,
    pub(super) gauges: Arc<dyn Gauges>,
}

/// Metrics for Mesos. Any thread can read them without blocking.
pub trait Gauges: Send + Sync {
    /// Returns the names in `/metrics/snapshot`.
    fn names(&self) -> Vec<String>;

    /// Returns the value of the metric at this index of the names.
    fn get(&self, index: usize) -> f64;
}

impl<M: StateMachine> Gauges for Metrics<M> {
    fn names(&self) -> Vec<String> {
        let catalogue = Self::catalogue();
        let name = |name| format!("{}{name}", catalogue.mesos_prefix);
        catalogue.metrics.iter().map(|metric| name(metric.name)).collect()
    }

    fn get(&self, index: usize) -> f64 {
        Self::get(self, index)
    }
}

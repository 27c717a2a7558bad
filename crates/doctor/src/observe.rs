//! Observes the host: the kernel, the settings, the firewall rules, and other programs.

use overlay_config::AgentConfig;
use overlay_linux::dataplane::DataplaneError;
use overlay_linux::docker::{DockerFailure, EngineReport};
use overlay_linux::firewall::foreign::Listing;

use super::observation::{AgentObservation, Configuration, MasterObservation, Observation};
use super::{kernel_support, local_checks, tunnel};

/// The answers to network queries, which the caller sends before the observation.
#[derive(Debug, Clone)]
pub struct QueryResults {
    /// The local agent.
    pub agent: AgentObservation,
    /// The master; `None` if the operator named no master.
    pub master: Option<MasterObservation>,
    /// The Docker engine; `None` if the agent does not use Docker.
    pub docker: Option<Result<EngineReport, DockerFailure>>,
}

/// Observes this host. The function runs other programs and waits for them, so it must not run on a
/// thread of an asynchronous runtime.
///
/// # Errors
/// When the kernel does not return the state of the overlays.
pub fn observe(
    config: AgentConfig,
    configuration: Configuration,
    results: QueryResults,
) -> Result<Observation, DataplaneError> {
    let QueryResults { agent, master, docker } = results;
    let is_root = rustix::process::geteuid().is_root();
    let info = agent.answer.as_ref().ok().map(|report| &report.info);
    let state = master.as_ref().and_then(|master| master.answer.as_ref().ok());
    let tunnel = tunnel::observe(&config, info, state)?;
    let ports = tunnel.ports();
    let kernel_support = if is_root {
        kernel_support::test(config.dataplane.firewall)
    } else {
        Err("the test needs root".to_owned())
    };
    Ok(Observation {
        is_root,
        kernel: local_checks::kernel_release(),
        kernel_support,
        settings: local_checks::settings(&tunnel),
        port_owners: local_checks::port_owners(&ports, is_root),
        managers: local_checks::network_management(&ports),
        rules: Listing::read(),
        plugins: local_checks::cni_plugins(&config),
        docker,
        offloads: local_checks::checksum_offloads(tunnel.devices()),
        tunnel,
        agent,
        master,
        config,
        configuration,
    })
}

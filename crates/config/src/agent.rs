//! The configuration of the agent: `agent_config`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libprocess::limits::Limits;
use overlay_types::addr::Mtu;
use overlay_types::protocol::{AgentOptions, AuthenticationMode};

use super::authentication::{self, AuthenticationConfig};
use super::dataplane::{self, DataplaneConfig, read_choice};
use super::document::{Document, Node, Object};
use super::environment::RunMode;
use super::http::{self, HttpConfig};
use super::keys::{AGENT, AGENT_NETWORK};
use super::limits::{self, Side};
use super::problem::{Problem, Problems};
use super::text::redacted;
use super::value::{RelativePathError, check_absolute};
use super::warnings::{ETHERNET_MTU, VXLAN_OVERHEAD};

/// The `cni_dir` of many Mesos agents.
const CNI_DIR_EXAMPLE: &str = "/var/lib/mesos/cni";

/// The CNI plugin that attaches the containers of Mesos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CniPlugin {
    /// The plugins bridge and host-local, as in the configurations of the C++ modules.
    Bridge,
    /// `mesos-overlay-cni`.
    Overlay,
}

/// The configuration of an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The address of the master: `HOST:PORT`, `zk://…` or `file:///…`.
    pub master: Option<String>,
    /// The directory from which Mesos reads the CNI configurations.
    pub cni_dir: PathBuf,
    /// The directory in which the CNI plugins keep their leases. If `None`, the plugins choose it.
    pub cni_data_dir: Option<PathBuf>,
    /// The directories with the CNI plugins. Empty if unknown.
    pub cni_plugins_dir: Vec<PathBuf>,
    /// The CNI plugin that attaches the containers of Mesos.
    pub cni_plugin: CniPlugin,
    /// Whether the CNI network is wrapped in `mesos-cni-port-mapper`.
    pub port_mapper: bool,
    /// The docker executable: a path, or a name to look up.
    pub docker: PathBuf,
    /// The options that the agent sends to the master.
    pub options: AgentOptions,
    /// The number of attempts to configure a network in quick succession. Later attempts follow at
    /// `verify_interval`.
    pub max_configuration_attempts: u32,
    /// The interval at which a configured network is verified.
    pub verify_interval: Duration,
    /// How the agent programs the network of its host.
    pub dataplane: DataplaneConfig,
    /// Limits on the resources that peers can make the agent use.
    pub limits: Limits,
    /// Who may use the HTTP endpoints, and under which names.
    pub http: HttpConfig,
    /// How the agent and its masters authenticate each other. `None` without a credential.
    pub authentication: Option<AuthenticationConfig>,
    /// The environment variables of the Mesos module that supplied `master`.
    pub from_environment: Vec<&'static str>,
}

impl AgentConfig {
    /// Returns the options that the agent registers with, including its underlay address.
    #[must_use]
    pub fn registered_options(&self) -> AgentOptions {
        AgentOptions { underlay: self.dataplane.underlay, ..self.options }
    }

    /// Default of `max_configuration_attempts`, as in the C++ modules.
    pub(super) const CONFIGURATION_ATTEMPTS_DEFAULT: u32 = 4;
    /// Maximum of `max_configuration_attempts`: that many attempts take hours.
    pub(super) const CONFIGURATION_ATTEMPTS_MAX: u32 = 1000;
    /// Default of `docker`.
    pub(super) const DOCKER_DEFAULT: &'static str = "docker";
    /// Default of `verify_interval`.
    pub(super) const VERIFY_INTERVAL_DEFAULT: Duration = Duration::from_mins(1);
    /// Minimum of `verify_interval`: one verification takes a large part of a second.
    pub(super) const VERIFY_INTERVAL_MIN: Duration = Duration::from_secs(1);
    /// Maximum of `verify_interval`: with a longer interval, drift stays for more than a day.
    pub(super) const VERIFY_INTERVAL_MAX: Duration = Duration::from_hours(24);
    /// Minimum of `command_timeout` in milliseconds. Docker never answers faster, so a smaller
    /// value was probably meant in seconds.
    pub(super) const COMMAND_TIMEOUT_MIN: u32 = 100;
    /// Maximum of `command_timeout` in milliseconds. A docker command that takes an hour hangs.
    pub(super) const COMMAND_TIMEOUT_MAX: u32 = 3_600_000;

    /// Creates a configuration with this `cni_dir` and defaults otherwise.
    #[must_use]
    pub fn new(cni_dir: PathBuf) -> Self {
        Self {
            master: None,
            cni_dir,
            cni_data_dir: None,
            cni_plugins_dir: Vec::new(),
            cni_plugin: CniPlugin::Bridge,
            port_mapper: true,
            docker: Self::DOCKER_DEFAULT.into(),
            options: AgentOptions::default(),
            max_configuration_attempts: Self::CONFIGURATION_ATTEMPTS_DEFAULT,
            verify_interval: Self::VERIFY_INTERVAL_DEFAULT,
            dataplane: DataplaneConfig::default(),
            limits: Limits::for_client(),
            http: HttpConfig::default(),
            authentication: None,
            from_environment: Vec::new(),
        }
    }

    /// Replaces `cni_dir`.
    ///
    /// # Errors
    /// If `cni_dir` is relative.
    pub fn set_cni_dir(&mut self, cni_dir: &Path) -> Result<(), RelativePathError> {
        check_absolute(cni_dir, CNI_DIR_EXAMPLE)?;
        cni_dir.clone_into(&mut self.cni_dir);
        Ok(())
    }
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("master", &self.master.as_deref().map(redacted))
            .field("cni_dir", &self.cni_dir)
            .field("cni_data_dir", &self.cni_data_dir)
            .field("cni_plugins_dir", &self.cni_plugins_dir)
            .field("cni_plugin", &self.cni_plugin)
            .field("port_mapper", &self.port_mapper)
            .field("docker", &self.docker)
            .field("options", &self.options)
            .field("max_configuration_attempts", &self.max_configuration_attempts)
            .field("verify_interval", &self.verify_interval)
            .field("dataplane", &self.dataplane)
            .field("limits", &self.limits)
            .field("http", &self.http)
            .field("authentication", &self.authentication)
            .field("from_environment", &self.from_environment)
            .finish()
    }
}

/// Parses `text`, the content of `file`, as `agent_config`.
///
/// # Errors
/// Returns every problem of the file.
pub fn parse_agent(file: &str, text: &str) -> Result<(AgentConfig, Vec<Problem>), Problems> {
    let (mut document, root) = Document::parse(file, text);
    let config = root.and_then(|root| read(&mut document, &root, RunMode::Standalone));
    document.finish(config)
}

pub(super) fn read<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
    mode: RunMode<'a>,
) -> Option<AgentConfig> {
    if let RunMode::MesosModule(environment) = mode {
        document.add_fallback("master", "MESOS_MASTER", environment.mesos_master.as_deref());
        document.add_fallback("master", "MESOS_ZK", environment.mesos_zk.as_deref());
    }
    let object = document.read_object(root, &AGENT)?;
    let master = read_required_master(document, &object, mode);
    let remedy =
        "write the directory where Mesos reads CNI networks, such as \"/var/lib/mesos/cni\"";
    let cni_dir = document
        .require(&object, "cni_dir", remedy)
        .and_then(|node| document.read_absolute_path(&node, CNI_DIR_EXAMPLE));
    let cni_data_dir = read_cni_data_dir(document, &object, cni_dir.as_deref());
    let port_mapper = document.read_boolean_or(&object, "port_mapper", true);
    let plugins = object.value("cni_plugins_dir");
    let has_plugins = plugins.is_some();
    let cni_plugins_dir = plugins.and_then(|node| read_search_path(document, &node));
    let cni_plugin = read_cni_plugin(document, &object, has_plugins);
    let docker = object.value("docker").and_then(|node| read_docker(document, &node));
    let options = document
        .nested_object(&object, "network_config", &AGENT_NETWORK)
        .map(|object| read_options(document, &object))
        .unwrap_or_default();
    let attempts = object
        .value("max_configuration_attempts")
        .and_then(|node| document.read_number(&node, 1..=AgentConfig::CONFIGURATION_ATTEMPTS_MAX));
    let verify_interval = object.value("verify_interval").and_then(|node| {
        let range = AgentConfig::VERIFY_INTERVAL_MIN..=AgentConfig::VERIFY_INTERVAL_MAX;
        document.read_duration(&node, range, "60s")
    });
    let dataplane = dataplane::read(document, &object, &options);
    let limits = limits::read(document, &object, Side::Agent);
    let http = http::read(document, &object);
    // Masters get their credentials first, so an agent that has one needs no other master.
    let authentication =
        authentication::read(document, &object, "credential", AuthenticationMode::Required);
    Some(AgentConfig {
        limits,
        http,
        authentication,
        master,
        cni_dir: cni_dir?,
        cni_data_dir,
        cni_plugins_dir: cni_plugins_dir.unwrap_or_default(),
        cni_plugin,
        port_mapper,
        docker: docker.unwrap_or_else(|| AgentConfig::DOCKER_DEFAULT.into()),
        options,
        max_configuration_attempts: attempts.unwrap_or(AgentConfig::CONFIGURATION_ATTEMPTS_DEFAULT),
        verify_interval: verify_interval.unwrap_or(AgentConfig::VERIFY_INTERVAL_DEFAULT),
        dataplane,
        from_environment: document.variables_in(&object),
    })
}

/// Reads `master`. The standalone program has a flag instead, so only a module requires the key.
fn read_required_master<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    mode: RunMode<'_>,
) -> Option<String> {
    let node = match mode {
        RunMode::Standalone => object.value("master"),
        RunMode::MesosModule(_) => document.require(
            object,
            "master",
            "write the address of the master as the parameter 'master', as the key 'master' of \
             agent_config or in the environment variable MESOS_MASTER, such as \
             \"zk://10.0.0.1:2181/mesos\"",
        ),
    };
    read_master(document, &node?)
}

/// Checks only the form of the address. The master detector parses the address in full. Mesos also
/// accepts `NAME@HOST:PORT`.
fn read_master<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<String> {
    let expected = "HOST:PORT, zk://HOST:PORT/PATH or file:///PATH";
    let text = document.read_word(node, expected)?;
    let is_master = if let Some(servers) = text.strip_prefix("zk://") {
        servers.split_once('/').is_some_and(|(hosts, path)| !hosts.is_empty() && !path.is_empty())
    } else if let Some(path) = text.strip_prefix("file://") {
        path.len() > 1 && path.starts_with('/')
    } else {
        let address = text.split_once('@').map_or(text.as_str(), |(_, address)| address);
        address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains('/') && port.parse().is_ok_and(|port: u16| port > 0)
        })
    };
    if is_master {
        return Some(text);
    }
    document.refuse(node, format_args!("is no address of a master: write {expected}"));
    None
}

fn read_cni_data_dir<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    cni_dir: Option<&Path>,
) -> Option<PathBuf> {
    let node = object.value("cni_data_dir")?;
    let directory = document.read_absolute_path(&node, "/var/run/cni/networks")?;
    if Some(directory.as_path()) == cni_dir {
        document.warn(
            &node,
            "is the same as cni_dir: Mesos would read leases as networks; write another directory",
        );
    }
    Some(directory)
}

/// Reads directories separated by colons, as in `--network_cni_plugins_dir` of Mesos.
fn read_search_path<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Vec<PathBuf>> {
    let path = document.read_path(node, "/usr/lib/cni:/opt/cni/bin")?;
    let text = path.to_str()?;
    let directories: Vec<PathBuf> = text.split(':').map(PathBuf::from).collect();
    if let Some(relative) = directories.iter().find(|directory| !directory.has_root()) {
        let message = format!(
            "contains the relative path '{}': write paths from / with ':' between them",
            relative.display()
        );
        document.refuse(node, message);
        return None;
    }
    Some(directories)
}

/// Reads `cni_plugin`. A configuration that names a missing plugin ends the Docker executor of
/// clusterd, so the agent has to know where the plugins are.
fn read_cni_plugin<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    has_plugins_dir: bool,
) -> CniPlugin {
    let choices = [("bridge", CniPlugin::Bridge), ("overlay", CniPlugin::Overlay)];
    let Some(node) = object.value("cni_plugin") else { return CniPlugin::Bridge };
    let plugin = read_choice(document, &node, &choices).unwrap_or(CniPlugin::Bridge);
    if plugin == CniPlugin::Overlay && !has_plugins_dir {
        document.refuse(
            &node,
            "needs 'cni_plugins_dir': write the directories of the Mesos agent's \
             --network_cni_plugins_dir",
        );
    }
    if let Some(port_mapper) = object.value("port_mapper").filter(|_| plugin == CniPlugin::Overlay)
    {
        document.warn(&port_mapper, "has no effect: 'cni_plugin' is overlay");
    }
    plugin
}

fn read_docker<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<PathBuf> {
    let path = document.read_path(node, "/usr/bin/docker")?;
    if path.has_root() || path.components().count() == 1 && path.file_name().is_some() {
        return Some(path);
    }
    let given = path.display();
    let message = format!("'{given}' is relative: write a path from /, or a name without '/'");
    document.refuse(node, message);
    None
}

fn read_options<'a>(document: &mut Document<'a>, object: &Object<'a>) -> AgentOptions {
    let defaults = AgentOptions::default();
    let mut options = AgentOptions {
        allocate_subnet: document.read_boolean_or(
            object,
            "allocate_subnet",
            defaults.allocate_subnet,
        ),
        mesos_bridge: document.read_boolean_or(object, "mesos_bridge", defaults.mesos_bridge),
        docker_bridge: document.read_boolean_or(object, "docker_bridge", defaults.docker_bridge),
        enable_ipv6: document.read_boolean_or(object, "enable_ipv6", defaults.enable_ipv6),
        ..defaults
    };
    if let Some(node) = object.value("overlay_mtu") {
        options.overlay_mtu = document.read_mtu(&node);
        warn_about_mtu(document, &node, &options);
    }
    if let Some(node) = object.value("command_timeout") {
        let timeout = read_command_timeout(document, &node);
        options.command_timeout = timeout.unwrap_or(options.command_timeout);
    }
    warn_about_bridges(document, object, &options);
    options
}

fn read_command_timeout<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Duration> {
    let range = AgentConfig::COMMAND_TIMEOUT_MIN..=AgentConfig::COMMAND_TIMEOUT_MAX;
    let expected = format!("{} to {} milliseconds", range.start(), range.end());
    let number = document.read_integer(node, &expected)?;
    if u32::try_from(number).is_ok_and(|number| range.contains(&number)) {
        return Some(Duration::from_millis(number));
    }
    document.refuse(node, format_args!("{number} is out of range: write {expected}"));
    None
}

fn warn_about_mtu(document: &mut Document<'_>, node: &Node<'_>, options: &AgentOptions) {
    let Some(mtu) = options.overlay_mtu else { return };
    let most = ETHERNET_MTU - VXLAN_OVERHEAD;
    if mtu.bytes() > most {
        document.warn(
            node,
            format_args!(
                "{mtu} is more than {most}: it needs an MTU of {} in the network between the \
                 agents and {mtu} or more for 'vtep_mtu'",
                mtu.bytes() + VXLAN_OVERHEAD
            ),
        );
    }
    if options.enable_ipv6 && mtu.bytes() < Mtu::MIN_IPV6 {
        let least = Mtu::MIN_IPV6;
        document.warn(
            node,
            format_args!(
                "{mtu} carries no IPv6: write at least {least}, or false for 'enable_ipv6'"
            ),
        );
    }
}

fn warn_about_bridges(document: &mut Document<'_>, object: &Object<'_>, options: &AgentOptions) {
    if options.allocate_subnet && !options.mesos_bridge && !options.docker_bridge {
        let message = "allocates subnets that no container can use: write false for \
                       'allocate_subnet' too";
        document.warn(&object.node, message);
    }
    for (key, is_enabled) in
        [("mesos_bridge", options.mesos_bridge), ("docker_bridge", options.docker_bridge)]
    {
        if let Some(node) = object.value(key).filter(|_| is_enabled && !options.allocate_subnet) {
            document.warn(&node, "has no effect: 'allocate_subnet' is false");
        }
    }
}

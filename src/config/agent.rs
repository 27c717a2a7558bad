//! The configuration of the agent: `agent_config`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DataplaneConfig;
use super::advice::{ETHERNET_MTU, VXLAN_OVERHEAD};
use super::dataplane;
use super::document::{Document, Node, Object};
use super::keys::{AGENT, AGENT_NETWORK};
use super::limits::{self, Side};
use super::parameters::Host;
use super::problem::{Problem, Problems};
use super::redacted;
use super::value::refuse_relative;
use crate::addr::Mtu;
use crate::limits::Limits;
use crate::protocol::AgentOptions;

/// Where many Mesos agents have it.
const CNI_DIR_EXAMPLE: &str = "/var/lib/mesos/cni";

/// How the agent runs.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Where the master is found: `HOST:PORT`, `zk://…` or `file:///…`.
    pub master: Option<String>,
    /// Where Mesos reads the CNI configurations.
    pub cni_dir: PathBuf,
    /// Where the CNI plugins keep their leases; their own choice where it is not given.
    pub cni_data_dir: Option<PathBuf>,
    /// Where the CNI plugins are; empty where that is not known.
    pub cni_plugins_dir: Vec<PathBuf>,
    /// Whether the CNI network is wrapped in `mesos-cni-port-mapper`.
    pub port_mapper: bool,
    /// The docker program: a path, or a name to look up.
    pub docker: PathBuf,
    /// What the agent asks of the master.
    pub options: AgentOptions,
    /// How many attempts at a network follow each other quickly; later ones come every
    /// `verify_interval`.
    pub max_configuration_attempts: u32,
    /// How often a success is verified.
    pub verify_interval: Duration,
    /// How it programs the network of its host.
    pub dataplane: DataplaneConfig,
    /// What peers can make the agent hold and do.
    pub limits: Limits,
    /// Variables of the environment of the Mesos module that gave `master`.
    pub from_environment: Vec<&'static str>,
}

impl AgentConfig {
    /// Default of `max_configuration_attempts`, that of the C++ modules.
    pub const CONFIGURATION_ATTEMPTS_DEFAULT: u32 = 4;
    /// Largest `max_configuration_attempts`: that many quick attempts take hours.
    pub const CONFIGURATION_ATTEMPTS_MAX: u32 = 1000;
    /// Default of `docker`.
    pub const DOCKER_DEFAULT: &'static str = "docker";
    /// Default of `verify_interval`.
    pub const VERIFY_INTERVAL_DEFAULT: Duration = Duration::from_mins(1);
    /// Shortest `verify_interval`: verifying takes a fair part of a second.
    pub const VERIFY_INTERVAL_MIN: Duration = Duration::from_secs(1);
    /// Longest `verify_interval`: drift that stays for longer is not repaired in any useful sense.
    pub const VERIFY_INTERVAL_MAX: Duration = Duration::from_hours(24);
    /// Shortest `command_timeout` in milliseconds: no docker answers faster, so less was meant in
    /// seconds.
    pub const COMMAND_TIMEOUT_MIN: u32 = 100;
    /// Longest `command_timeout` in milliseconds: a docker that takes an hour hangs.
    pub const COMMAND_TIMEOUT_MAX: u32 = 3_600_000;

    /// The defaults of everything but `cni_dir`.
    #[must_use]
    pub fn new(cni_dir: PathBuf) -> Self {
        Self {
            master: None,
            cni_dir,
            cni_data_dir: None,
            cni_plugins_dir: Vec::new(),
            port_mapper: true,
            docker: Self::DOCKER_DEFAULT.into(),
            options: AgentOptions::default(),
            max_configuration_attempts: Self::CONFIGURATION_ATTEMPTS_DEFAULT,
            verify_interval: Self::VERIFY_INTERVAL_DEFAULT,
            dataplane: DataplaneConfig::default(),
            limits: Limits::of_agent(),
            from_environment: Vec::new(),
        }
    }

    /// Puts another `cni_dir` in the place of the one that it has.
    ///
    /// # Errors
    /// With what is wrong with it, as it is said of the key.
    pub fn set_cni_dir(&mut self, cni_dir: &Path) -> Result<(), String> {
        refuse_relative(cni_dir, CNI_DIR_EXAMPLE)?;
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
            .field("port_mapper", &self.port_mapper)
            .field("docker", &self.docker)
            .field("options", &self.options)
            .field("max_configuration_attempts", &self.max_configuration_attempts)
            .field("verify_interval", &self.verify_interval)
            .field("dataplane", &self.dataplane)
            .field("limits", &self.limits)
            .field("from_environment", &self.from_environment)
            .finish()
    }
}

/// Reads the `agent_config` that is the content of `file`.
///
/// # Errors
/// With every problem of the file.
pub fn parse_agent(file: &str, text: &str) -> Result<(AgentConfig, Vec<Problem>), Problems> {
    let (mut document, root) = Document::open(file, text);
    let config = root.and_then(|root| read(&mut document, &root, Host::Program));
    document.close(config)
}

pub(super) fn read<'a>(
    document: &mut Document<'a>,
    root: &Node<'a>,
    host: Host<'a>,
) -> Option<AgentConfig> {
    if let Host::Module(environment) = host {
        document.fall_back("master", "MESOS_MASTER", environment.mesos_master.as_deref());
        document.fall_back("master", "MESOS_ZK", environment.mesos_zk.as_deref());
    }
    let object = document.read_object(root, &AGENT)?;
    let master = find_master(document, &object, host);
    let remedy =
        "write the directory where Mesos reads CNI networks, such as \"/var/lib/mesos/cni\"";
    let cni_dir = document
        .required(&object, "cni_dir", remedy)
        .and_then(|node| document.absolute_path(&node, CNI_DIR_EXAMPLE));
    let cni_data_dir = read_cni_data_dir(document, &object, cni_dir.as_deref());
    let port_mapper = object.value("port_mapper").and_then(|node| document.boolean(&node));
    let port_mapper = port_mapper.unwrap_or(true);
    let plugins = object.value("cni_plugins_dir");
    let cni_plugins_dir = plugins.and_then(|node| read_search_path(document, &node));
    let docker = object.value("docker").and_then(|node| read_program(document, &node));
    let options = document
        .inner(&object, "network_config", &AGENT_NETWORK)
        .map(|object| read_options(document, &object));
    let attempts = object
        .value("max_configuration_attempts")
        .and_then(|node| document.number(&node, 1..=AgentConfig::CONFIGURATION_ATTEMPTS_MAX));
    let verify_interval = object.value("verify_interval").and_then(|node| {
        let range = AgentConfig::VERIFY_INTERVAL_MIN..=AgentConfig::VERIFY_INTERVAL_MAX;
        document.duration(&node, range, "60s")
    });
    let dataplane = dataplane::read(document, &object);
    let limits = limits::read(document, &object, Side::Agent);
    Some(AgentConfig {
        limits,
        master,
        cni_dir: cni_dir?,
        cni_data_dir,
        cni_plugins_dir: cni_plugins_dir.unwrap_or_default(),
        port_mapper,
        docker: docker.unwrap_or_else(|| AgentConfig::DOCKER_DEFAULT.into()),
        options: options.unwrap_or_default(),
        max_configuration_attempts: attempts.unwrap_or(AgentConfig::CONFIGURATION_ATTEMPTS_DEFAULT),
        verify_interval: verify_interval.unwrap_or(AgentConfig::VERIFY_INTERVAL_DEFAULT),
        dataplane,
        from_environment: document.variables_in(&object),
    })
}

/// The program may have a flag instead.
fn find_master<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    host: Host<'_>,
) -> Option<String> {
    let node = match host {
        Host::Program => object.value("master"),
        Host::Module(_) => document.required(
            object,
            "master",
            "write the address of the master as the parameter 'master', as the key 'master' of \
             agent_config or in the environment variable MESOS_MASTER, such as \
             \"zk://10.0.0.1:2181/mesos\"",
        ),
    };
    read_master(document, &node?)
}

/// Only the form is checked: who finds the master reads it in full. Mesos itself takes
/// `NAME@HOST:PORT`.
fn read_master<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<String> {
    let expected = "HOST:PORT, zk://HOST:PORT/PATH or file:///PATH";
    let text = document.word(node, expected)?;
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
    let directory = document.absolute_path(&node, "/var/run/cni/networks")?;
    if Some(directory.as_path()) == cni_dir {
        document.warn(
            &node,
            "is the same as cni_dir: Mesos would take leases for networks; write another directory",
        );
    }
    Some(directory)
}

/// Directories with a colon between them, as in Mesos' `--network_cni_plugins_dir`.
fn read_search_path<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Vec<PathBuf>> {
    let path = document.path(node, "/usr/lib/cni:/opt/cni/bin")?;
    let text = path.to_str()?;
    let directories: Vec<PathBuf> = text.split(':').map(PathBuf::from).collect();
    if let Some(relative) = directories.iter().find(|directory| !directory.has_root()) {
        let message = format!(
            "'{}' in it is relative: write paths from / with ':' between them",
            relative.display()
        );
        document.refuse(node, message);
        return None;
    }
    Some(directories)
}

fn read_program<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<PathBuf> {
    let path = document.path(node, "/usr/bin/docker")?;
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
    let mut boolean = |key: &str, default: bool| {
        object.value(key).and_then(|node| document.boolean(&node)).unwrap_or(default)
    };
    let mut options = AgentOptions {
        allocate_subnet: boolean("allocate_subnet", defaults.allocate_subnet),
        mesos_bridge: boolean("mesos_bridge", defaults.mesos_bridge),
        docker_bridge: boolean("docker_bridge", defaults.docker_bridge),
        enable_ipv6: boolean("enable_ipv6", defaults.enable_ipv6),
        ..defaults
    };
    if let Some(node) = object.value("overlay_mtu") {
        options.overlay_mtu = document.mtu(&node).unwrap_or(options.overlay_mtu);
        warn_of_mtu(document, &node, &options);
    }
    if let Some(node) = object.value("command_timeout") {
        let timeout = read_command_timeout(document, &node);
        options.command_timeout = timeout.unwrap_or(options.command_timeout);
    }
    warn_of_bridges(document, object, &options);
    options
}

fn read_command_timeout<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Duration> {
    let range = AgentConfig::COMMAND_TIMEOUT_MIN..=AgentConfig::COMMAND_TIMEOUT_MAX;
    let expected = format!("{} to {} milliseconds", range.start(), range.end());
    let number = document.whole(node, &expected)?;
    if u32::try_from(number).is_ok_and(|number| range.contains(&number)) {
        return Some(Duration::from_millis(number));
    }
    document.refuse(node, format_args!("{number} is out of range: write {expected}"));
    None
}

fn warn_of_mtu(document: &mut Document<'_>, node: &Node<'_>, options: &AgentOptions) {
    let mtu = options.overlay_mtu;
    let most = ETHERNET_MTU - VXLAN_OVERHEAD;
    if mtu.bytes() > most {
        document.warn(
            node,
            format_args!(
                "{mtu} is more than {most}: it needs an MTU of {} in the network between the agents \
                 and {mtu} or more for 'vtep_mtu'",
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

fn warn_of_bridges(document: &mut Document<'_>, object: &Object<'_>, options: &AgentOptions) {
    if options.allocate_subnet && !options.mesos_bridge && !options.docker_bridge {
        let message = "takes a subnet of every overlay that no container can use: write false for \
                       'allocate_subnet' too";
        document.warn(&object.node, message);
    }
    for (key, is_wanted) in
        [("mesos_bridge", options.mesos_bridge), ("docker_bridge", options.docker_bridge)]
    {
        if let Some(node) = object.value(key).filter(|_| is_wanted && !options.allocate_subnet) {
            document.warn(&node, "has no effect: 'allocate_subnet' is false");
        }
    }
}

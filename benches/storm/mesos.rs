//! Runs mesos-master with the master module instead of the program.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::agents::allow_descriptors;
use super::master_process::{MasterProcess, write_network};

const FLAG: &str = "--mesos";
/// Selects the replicated log of Mesos, with one replica, as the store instead of a file.
const LOG_FLAG: &str = "--replicated-log";

/// A Mesos installation and the library with the modules.
pub(crate) struct Mesos {
    pub(crate) prefix: PathBuf,
    pub(crate) library: PathBuf,
    /// Whether the store is the replicated log.
    pub(crate) is_replicated: bool,
}

impl Mesos {
    /// Parses the values after `--mesos`. Returns `None` without this flag.
    pub(crate) fn from_arguments(arguments: &[String]) -> Result<Option<Self>, String> {
        let Some(at) = arguments.iter().position(|argument| argument == FLAG) else {
            return Ok(None);
        };
        let [prefix, library, ..] = &arguments[at + 1..] else {
            return Err(format!("{FLAG} needs the prefix of Mesos and the path of the library"));
        };
        let absolute = |path: &String| {
            std::fs::canonicalize(path).map_err(|error| format!("{FLAG}: {path}: {error}"))
        };
        let is_replicated = arguments.iter().any(|argument| argument == LOG_FLAG);
        Ok(Some(Self { prefix: absolute(prefix)?, library: absolute(library)?, is_replicated }))
    }

    /// Starts a mesos-master with enough descriptors for `agents`. All of its files are in `dir`.
    pub(crate) async fn start(
        &self,
        dir: &Path,
        address: SocketAddrV4,
        agents: usize,
    ) -> Result<MasterProcess, String> {
        // mesos-master inherits the limit of this process.
        allow_descriptors(agents).map_err(|error| error.to_string())?;
        let store_parameter = if self.is_replicated { "replicated_log_dir" } else { "work_dir" };
        let parameters = json!([
            {"key": "overlays", "value": write_network(dir)?},
            {"key": store_parameter, "value": dir.join("state")},
        ]);
        let name = "com_mesosphere_mesos_MasterOverlayHelper";
        let module = json!({"name": name, "parameters": parameters});
        let modules = json!({"libraries": [{"file": self.library, "modules": [module]}]});
        // Automake installs the daemons in `sbin`, CMake in `bin`.
        let programs = ["sbin", "bin"].map(|directory| self.prefix.join(directory));
        let mut programs = programs.into_iter().map(|directory| directory.join("mesos-master"));
        let program = programs.find(|program| program.exists()).ok_or_else(|| {
            format!("mesos-master: neither in sbin nor in bin of {}", self.prefix.display())
        })?;
        let mut command = Command::new(program);
        command
            .args([format!("--ip={}", address.ip()), format!("--hostname={}", address.ip())])
            .args([format!("--port={}", address.port()), format!("--modules={modules}")])
            .arg(format!("--work_dir={}", dir.join("mesos").display()))
            .args(["--registry=in_memory", "--logging_level=WARNING"]);
        MasterProcess::launch(command, dir, address).await
    }
}

/// Returns the lines of the module in a log of mesos-master.
pub(crate) fn module_lines(log: &str) -> String {
    log.lines().filter(|line| line.contains(" overlay")).map(|line| format!("{line}\n")).collect()
}

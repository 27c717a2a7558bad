//! The CNI plugin `mesos-overlay-cni`: gives a container exactly one address of an overlay. See
//! docs/cni-plugin.md for the design.

mod add;
mod check;
mod del;
mod existing;
mod failure;
mod gc;
mod leases;
mod ports;
mod removal;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use overlay_cni::config::{NetworkConfig, declared_version};
use overlay_cni::request::{Attachment, Command, namespace, required_namespace};
use overlay_cni::result::version_json;
use overlay_cni::{CniVersion, ErrorCode, PluginError};

/// Maximum length of the network configuration. With a thousand port mappings it has 100 kB.
const INPUT_MAX: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut version = CniVersion::V0_1_0;
    let (output, code) = match run(&mut version) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => {
            // Mesos logs the standard error of a plugin that fails.
            let _ = writeln!(io::stderr(), "mesos-overlay-cni: {error}");
            (error.to_json(version.as_str()), ExitCode::FAILURE)
        }
    };
    match io::stdout().write_all(output.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the command of the environment. Returns the standard output, and sets `version` to that of
/// the configuration.
fn run(version: &mut CniVersion) -> Result<String, PluginError> {
    let command = Command::from_environment(variable)?;
    if command == Command::Version {
        return Ok(version_json());
    }
    let input = read_input()?;
    *version = declared_version(&input)?;
    check_version(command, *version)?;
    let config = NetworkConfig::parse(&input)?;
    let attachment = || Attachment::from_environment(variable);
    match command {
        Command::Add => {
            let result = add::run(&config, &attachment()?, &required_namespace(variable)?)?;
            return result.to_json(config.version);
        }
        Command::Del => del::run(&config, &attachment()?, namespace(variable).as_deref())?,
        Command::Check => check::run(&config, &attachment()?, &required_namespace(variable)?)?,
        Command::Gc => gc::run(&config)?,
        Command::Status => leases::check_available(&config)?,
        Command::Version => {}
    }
    Ok(String::new())
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn read_input() -> Result<Vec<u8>, PluginError> {
    let mut input = Vec::new();
    io::stdin()
        .take(INPUT_MAX + 1)
        .read_to_end(&mut input)
        .map_err(|error| failure::io(&format!("read the standard input: {error}")))?;
    if input.len() as u64 > INPUT_MAX {
        let message = format!("the network configuration is longer than {INPUT_MAX} bytes");
        return Err(PluginError::new(ErrorCode::Decode, message));
    }
    Ok(input)
}

/// Refuses a command that the version of the configuration does not have.
fn check_version(command: Command, version: CniVersion) -> Result<(), PluginError> {
    let since = match command {
        Command::Check => CniVersion::V0_4_0,
        Command::Gc | Command::Status => CniVersion::V1_1_0,
        Command::Add | Command::Del | Command::Version => CniVersion::V0_1_0,
    };
    if version >= since {
        return Ok(());
    }
    let message =
        format!("the command needs cniVersion {since}, and the configuration has {version}");
    Err(PluginError::new(ErrorCode::IncompatibleVersion, message))
}

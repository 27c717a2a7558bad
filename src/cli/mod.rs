//! The program's face: one file for each subcommand, and what they share.
//!
//! Exit codes: 0 done, 1 failed with one line on stderr, 2 a usage that the help explains. Every
//! flag has an environment variable beside it. Results go to stdout, the log and errors to stderr.

mod agent;
mod answer;
mod check;
mod clean;
mod demo;
mod doctor;
mod echo;
mod export;
mod forget;
mod history;
mod host;
mod http_client;
mod import;
mod master;
mod output;
mod place;
mod plan;
mod reload;
mod room;
mod state;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::escape;
use crate::logging::LimitedLogger;
use output::complain;

const EXAMPLES: &str = "\
Examples:
  mesos-overlay demo                                   see it work, on this machine, in seconds
  mesos-overlay check network.json                     every problem of a configuration
  mesos-overlay plan network.json --agents 1000        who would get what, and what runs out first
  mesos-overlay master --config network.json
  mesos-overlay agent --master 10.0.0.1:5050 --cni-dir /var/lib/mesos/cni
  mesos-overlay state --master 10.0.0.1:5050
  mesos-overlay doctor --probe                         what is wrong on this host, and what mends it

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Overlay networks for Apache Mesos.
#[derive(Debug, Parser)]
#[command(name = "mesos-overlay", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// What to log to stderr: off, error, warn, info, debug or trace [default: info for master and
    /// agent, off for the others, whose errors are their result]
    #[arg(long, global = true, env = "MESOS_OVERLAY_LOG", value_name = "LEVEL")]
    log: Option<log::LevelFilter>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a master: it gives every agent its share of the overlays
    Master(master::MasterCommand),
    /// Run an agent: it makes the container networks of its share
    Agent(agent::AgentCommand),
    /// Remove everything that agents made on this host
    Clean(clean::CleanCommand),
    /// See it work: hosts and containers on this machine, and nothing left of them
    Demo(demo::DemoCommand),
    /// Find out what is wrong with this host, and what mends it
    Doctor(doctor::DoctorCommand),
    /// Show every problem of a configuration file
    Check(check::CheckCommand),
    /// Show who would get what, and what runs out first
    Plan(plan::PlanCommand),
    /// Show what the agents of a running master have, and how they are
    State(state::StateCommand),
    /// Free the addresses of agents that are gone
    Forget(forget::ForgetCommand),
    /// Have a running master read its configuration again
    Reload(reload::ReloadCommand),
    /// Show who had which addresses when, and why that changed
    History(history::HistoryCommand),
    /// Write the state of a store into a file
    Export(export::ExportCommand),
    /// Put the state of a file into a store
    Import(import::ImportCommand),
}

/// Runs the program with these arguments, the first being its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                // It quotes the arguments, and a script may have them from somebody else.
                complain(error.render().to_string().trim_end());
                return ExitCode::from(2);
            }
            // Help and version go to stdout. Printing fails only if nobody reads.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    let default = match cli.command {
        Command::Master(_) | Command::Agent(_) => log::LevelFilter::Info,
        _ => log::LevelFilter::Off,
    };
    let level = cli.log.unwrap_or(default);
    install_logger(level);
    let result = match cli.command {
        Command::Master(command) => command.run(),
        Command::Agent(command) => command.run(),
        Command::Clean(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::State(command) => command.run(),
        Command::Forget(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::History(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Import(command) => command.run(),
    };
    log::logger().flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(escape::one_line(&format!("mesos-overlay: {failure}")));
            ExitCode::from(if failure.is_usage { 2 } else { 1 })
        }
    }
}

/// Sends the log to stderr, within the limits of [`LimitedLogger`].
fn install_logger(level: log::LevelFilter) {
    let logger = env_logger::Builder::new().filter_level(level).format_target(false).build();
    let level = logger.filter();
    // Only a second run in one process fails here, and it has the logger of the first.
    if log::set_boxed_logger(Box::new(LimitedLogger::new(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// Why a subcommand failed, in one line: what, on which object, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Failure {
    message: String,
    is_usage: bool,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_usage: false }
    }

    /// Arguments that contradict each other in a way that clap cannot tell.
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_usage: true }
    }
}

//! The command line: one module for each subcommand, and the code that subcommands share.
//!
//! Exit codes: 0 done, 1 failed with one line on stderr, 2 wrong usage. Every flag has an
//! environment variable. Results go to stdout; the log and errors go to stderr.

mod agent;
mod agent_options;
mod agent_status;
mod bundle;
mod capacity;
mod check;
mod clean;
mod color;
mod completions;
mod connectivity;
mod demo;
mod doctor;
mod export;
mod forget;
mod history;
mod http_client;
mod http_exchange;
mod http_options;
mod import;
mod ipam;
mod man;
mod master;
mod master_address;
mod output;
mod output_file;
mod plan;
mod process;
mod progress;
mod reload;
mod response;
mod service_notifier;
mod state;
mod status;
mod store_uri;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overlay_types::addr::Ensemble;
use overlay_types::{escape, secret};

use crate::logging;
use output::print_error;

/// The name of the program.
const PROGRAM: &str = "mesos-overlay";

const EXAMPLES: &str = "\
Examples:
  mesos-overlay demo                                   run a cluster on this machine, in seconds
  mesos-overlay check network.json                     list every problem of a configuration
  mesos-overlay plan network.json --agents 1000        preview allocations and the first shortage
  mesos-overlay master --config network.json
  mesos-overlay agent --master 10.0.0.1:5050 --cni-dir /var/lib/mesos/cni
  mesos-overlay status --master 10.0.0.1:5050          show the problems of the cluster
  mesos-overlay state --master 10.0.0.1:5050           show all agents
  mesos-overlay doctor --probe                         find problems of this host, and remedies

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Overlay networks for Apache Mesos.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// What to log to stderr: off, error, warn, info, debug or trace [default: info for master and
    /// agent, off for the other subcommands, which report errors as their result]
    #[arg(long, global = true, env = "MESOS_OVERLAY_LOG", value_name = "LEVEL")]
    log: Option<log::LevelFilter>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a master, which allocates subnets of the overlays to agents
    Master(master::MasterCommand),
    /// Run an agent, which creates the container networks of its host
    Agent(agent::AgentCommand),
    /// Remove everything that agents created on this host
    Clean(clean::CleanCommand),
    /// Run a temporary cluster on this machine: hosts, containers, and pings between them
    Demo(demo::DemoCommand),
    /// Find problems of this host, and show their remedies
    Doctor(doctor::DoctorCommand),
    /// Collect what a maintainer needs to find a fault into one archive, without secrets
    Bundle(bundle::BundleCommand),
    /// Show every problem of a configuration file
    Check(check::CheckCommand),
    /// Preview the allocations of agents, and the pool that is exhausted first
    Plan(plan::PlanCommand),
    /// Show the problems of the cluster of a running master, or that it has none
    Status(status::StatusCommand),
    /// Show the allocations and the status of a running master's agents
    State(state::StateCommand),
    /// Show which agents do not reach each other, by the probes of all agents
    Connectivity(connectivity::ConnectivityCommand),
    /// Show the addresses that the containers of this host use, and find leaks and conflicts
    Ipam(ipam::IpamCommand),
    /// Release the addresses of agents that are gone
    Forget(forget::ForgetCommand),
    /// Make a running master read its configuration again
    Reload(reload::ReloadCommand),
    /// Show which agent had which addresses at which time, and why that changed
    History(history::HistoryCommand),
    /// Write the state of a store into a file
    Export(export::ExportCommand),
    /// Write the state of a file into a store
    Import(import::ImportCommand),
    /// Print the completions of a shell
    Completions(completions::CompletionsCommand),
    /// Write the manual pages
    Man(man::ManCommand),
}

/// Runs the program with these arguments. The first argument is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let given = given_texts(&arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return report_unparsed(&error, &given),
    };
    let default = match cli.command {
        Command::Master(_) | Command::Agent(_) => log::LevelFilter::Info,
        _ => log::LevelFilter::Off,
    };
    let level = cli.log.unwrap_or(default);
    // These subcommands serve, and must react to signals while nobody reads stderr. The others may
    // wait for their reader. The demo may not have a thread before it creates its user namespace.
    let is_service = matches!(cli.command, Command::Master(_) | Command::Agent(_));
    if let Err(failure) = install_logger(level, is_service) {
        print_error(format_args!("mesos-overlay: {failure}"));
        return ExitCode::from(1);
    }
    let result = match cli.command {
        Command::Master(command) => command.run(),
        Command::Agent(command) => command.run(),
        Command::Clean(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Bundle(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::State(command) => command.run(),
        Command::Connectivity(command) => command.run(),
        Command::Ipam(command) => command.run(),
        Command::Forget(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::History(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    log::logger().flush();
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A path may be an address with a password by mistake.
            let secrets = given
                .iter()
                .map(String::as_str)
                .filter(|text| secret::may_contain(text) && !is_address_without_password(text));
            let text = format!("mesos-overlay: {failure}");
            print_error(escape::one_line(&secret::redact(&text, secrets)));
            ExitCode::from(if failure.is_usage { 2 } else { 1 })
        }
    };
    logging::drain();
    code
}

/// Prints the error of wrong arguments, or the help or the version. Returns the exit code.
fn report_unparsed(error: &clap::Error, given: &[String]) -> ExitCode {
    // The error quotes arguments, which a script may pass on from an untrusted source, and of which
    // one may be an address with a password at a wrong place. Help shows values of variables.
    let text = error.render().to_string();
    let redacted = secret::redact(text.trim_end(), given.iter().map(String::as_str));
    if error.use_stderr() {
        // With the queue, a service with a wrong flag ends also if nobody reads stderr.
        if let Err(failure) = install_logger(log::LevelFilter::Off, true) {
            print_error(format_args!("mesos-overlay: {failure}"));
        }
        print_error(redacted);
        logging::drain();
        return ExitCode::from(2);
    }
    // Printing fails only if the reader has closed stdout.
    let _ = match redacted {
        Cow::Borrowed(_) => error.print(),
        Cow::Owned(text) => writeln!(std::io::stdout(), "{text}"),
    };
    ExitCode::SUCCESS
}

/// Returns the arguments, and the values of the variables that replace flags.
fn given_texts(arguments: &[OsString]) -> Vec<String> {
    let is_flag = |name: &OsString| name.to_string_lossy().starts_with("MESOS_OVERLAY_");
    let variables = std::env::vars_os().filter(|(name, _)| is_flag(name)).map(|(_, value)| value);
    let texts = arguments.iter().cloned().chain(variables);
    texts.map(|text| text.to_string_lossy().into_owned()).collect()
}

/// Whether an argument is a valid address of ZooKeeper without a user, also behind `--flag=`.
fn is_address_without_password(argument: &str) -> bool {
    let value = argument.split_once('=').filter(|(flag, _)| flag.starts_with("--"));
    let address = value.map_or(argument, |(_, value)| value).parse::<Ensemble>();
    address.is_ok_and(|address| address.credentials().is_none())
}

/// Sends the log to stderr. The log of a service never blocks.
fn install_logger(level: log::LevelFilter, is_service: bool) -> Result<(), Failure> {
    if is_service {
        logging::queue_log_to_stderr(level)
            .map_err(|error| Failure::new(format!("start the thread of the log: {error}")))
    } else {
        logging::log_to_stderr(level);
        Ok(())
    }
}

/// Why a subcommand failed, in one line: the action, its object, the reason and the remedy.
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

    /// Creates the failure for arguments that are wrong in a way that clap cannot detect.
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_usage: true }
    }
}

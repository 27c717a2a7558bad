//! The program `mesos-overlay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesos_network_overlay::cli::run(std::env::args_os())
}

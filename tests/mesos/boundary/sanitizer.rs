//! The main scenarios under AddressSanitizer, which checks the C++ half and its calls into Rust.

use std::process::Command;

use super::agent::check_agent_reregistration;
use super::host::Build;
use super::master::check_registration;
use super::shutdown::check_finalize_under_load;
use crate::library::run_ok;

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn scenarios_under_sanitizer_report_no_error() {
    let build = Build::sanitized();
    for file in [build.program, build.library] {
        let symbols = run_ok(Command::new("nm").args(["-D", "--undefined-only"]).arg(file));
        assert!(symbols.contains("__asan_report_load"), "{} is not instrumented", file.display());
    }
    for host in [check_registration(build), check_agent_reregistration(build)] {
        let (status, log) = host.exit();
        assert!(status.success() && !log.contains("Sanitizer"), "{status}: {log}");
    }
    let log = check_finalize_under_load(build);
    assert!(!log.contains("Sanitizer"), "{log}");
}

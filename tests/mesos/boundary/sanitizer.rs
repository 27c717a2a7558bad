//! The same again, under AddressSanitizer: the C++ half and what it is given by Rust.

use std::process::Command;

use super::agent::an_agent_and_its_master;
use super::end::an_end_at_work;
use super::host::Build;
use super::master::a_registration;
use crate::library::succeed;

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn memory_is_used_as_it_should() {
    let build = Build::sanitized();
    for file in [build.program, build.library] {
        let symbols = succeed(Command::new("nm").args(["-D", "--undefined-only"]).arg(file));
        assert!(symbols.contains("__asan_report_load"), "{} is not watched", file.display());
    }
    for host in [a_registration(build), an_agent_and_its_master(build)] {
        let (status, log) = host.exit();
        assert!(status.success() && !log.contains("Sanitizer"), "{status}: {log}");
    }
    let log = an_end_at_work(build);
    assert!(!log.contains("Sanitizer"), "{log}");
}

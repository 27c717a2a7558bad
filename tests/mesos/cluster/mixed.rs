//! Modules and programs replace each other in one cluster.

use rustix::process::Signal;

use super::host::Cluster;
use super::mesos::{
    MASTER_ADDRESS, start_module_agent, start_module_master, start_program_agent,
    start_program_master, wait_until_ready,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn modules_and_programs_are_interchangeable() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.add_host(), cluster.add_host(), cluster.add_host()];
    let agents = [&*hosts[0], &*hosts[1], &*hosts[2]];

    // The module is the master of a module agent and two program agents.
    let master = start_module_master(&hub);
    let module = start_module_agent(&hosts[0], MASTER_ADDRESS);
    let program = start_program_agent(&hosts[1], MASTER_ADDRESS);
    let _third = start_program_agent(&hosts[2], MASTER_ADDRESS);
    let assigned = wait_until_ready(&hub, &agents);

    // A program with the same state replaces the module.
    master.end(Signal::KILL);
    let master = start_program_master(&hub);
    assert_eq!(wait_until_ready(&hub, &agents), assigned, "after a program replaced the module");

    // On two hosts, the module and the program replace each other.
    module.end(Signal::KILL);
    program.end(Signal::KILL);
    let _program = start_program_agent(&hosts[0], MASTER_ADDRESS);
    let _module = start_module_agent(&hosts[1], MASTER_ADDRESS);
    assert_eq!(
        wait_until_ready(&hub, &agents),
        assigned,
        "after module agent and program agent replaced each other"
    );

    master.end(Signal::TERM);
    let _master = start_module_master(&hub);
    assert_eq!(wait_until_ready(&hub, &agents), assigned, "after a module replaced the program");
}

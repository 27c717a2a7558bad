//! Modules and programs in one cluster, in both directions.

use rustix::process::Signal;

use super::host::Cluster;
use super::mesos::{
    MASTER_ADDRESS, module_agent, module_master, program_agent, program_master, ready,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn modules_and_programs_are_interchangeable() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.host(), cluster.host(), cluster.host()];
    let agents = [&*hosts[0], &*hosts[1], &*hosts[2]];

    // Both kinds of agents at the module.
    let master = module_master(&hub);
    let module = module_agent(&hosts[0], MASTER_ADDRESS);
    let program = program_agent(&hosts[1], MASTER_ADDRESS);
    let _third = program_agent(&hosts[2], MASTER_ADDRESS);
    let assigned = ready(&hub, &agents);

    // Both kinds at the program, which reads the same state; and the other way.
    master.end(Signal::KILL);
    let master = program_master(&hub);
    assert_eq!(ready(&hub, &agents), assigned, "a program where a module was");

    // A host changes from one kind to the other.
    module.end(Signal::KILL);
    program.end(Signal::KILL);
    let _program = program_agent(&hosts[0], MASTER_ADDRESS);
    let _module = module_agent(&hosts[1], MASTER_ADDRESS);
    assert_eq!(ready(&hub, &agents), assigned, "agents of the other kind");

    master.end(Signal::TERM);
    let _master = module_master(&hub);
    assert_eq!(ready(&hub, &agents), assigned, "a module where a program was");
}

//! Restarts of masters and agents keep the addresses of the agents.

use std::fs;

use rustix::process::Signal;

use super::host::Cluster;
use super::mesos::{MASTER_ADDRESS, start_module_agent, start_module_master, wait_until_ready};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn restarted_master_or_agent_keeps_addresses() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let (first, second) = (cluster.add_host(), cluster.add_host());
    let mut master = start_module_master(&hub);
    // The second agent registers first, so that the order of addresses differs from the host order.
    let mut agent = start_module_agent(&second, MASTER_ADDRESS);
    wait_until_ready(&hub, &[&second]);
    let _other = start_module_agent(&first, MASTER_ADDRESS);
    let assigned = wait_until_ready(&hub, &[&first, &second]);
    let subnet = |agent: &str| assigned[agent][0]["subnet"].clone();
    assert_eq!(
        (subnet("10.0.0.3"), subnet("10.0.0.2")),
        ("192.168.0.0/24".into(), "192.168.1.0/24".into())
    );
    let cni_file = || {
        let path = second.path("cni/vxlan-1.conf");
        let time = fs::metadata(&path).and_then(|file| file.modified()).expect("the file exists");
        (time, fs::read(path).expect("the file exists"))
    };
    let initial = cni_file();

    for signal in [Signal::KILL, Signal::TERM] {
        master.end(signal);
        master = start_module_master(&hub);
        assert_eq!(
            wait_until_ready(&hub, &[&first, &second]),
            assigned,
            "after the master ended by {signal:?}"
        );
    }
    for signal in [Signal::KILL, Signal::TERM, Signal::USR1] {
        agent.end(signal);
        agent = start_module_agent(&second, MASTER_ADDRESS);
        agent.wait_for_log("registered with the master");
        assert_eq!(
            wait_until_ready(&hub, &[&first, &second]),
            assigned,
            "after the agent ended by {signal:?}"
        );
        assert_eq!(cni_file(), initial, "the CNI file was rewritten");
    }
}

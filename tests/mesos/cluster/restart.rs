//! Whoever is started again, agents keep their addresses.

use std::fs;

use rustix::process::Signal;

use super::host::Cluster;
use super::mesos::{MASTER_ADDRESS, module_agent, module_master, ready};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn restarts_of_either_side_keep_the_addresses() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let (first, second) = (cluster.host(), cluster.host());
    let mut master = module_master(&hub);
    // One after the other, so that the order of their addresses is not that of the last restart.
    let mut agent = module_agent(&second, MASTER_ADDRESS);
    ready(&hub, &[&second]);
    let _other = module_agent(&first, MASTER_ADDRESS);
    let assigned = ready(&hub, &[&first, &second]);
    let subnet = |agent: &str| assigned[agent][0]["subnet"].clone();
    assert_eq!(
        (subnet("10.0.0.3"), subnet("10.0.0.2")),
        ("192.168.0.0/24".into(), "192.168.1.0/24".into())
    );
    let files = || {
        let path = second.path("cni/vxlan-1.conf");
        let time = fs::metadata(&path).and_then(|file| file.modified()).expect("it is there");
        (time, fs::read(path).expect("it is there"))
    };
    let written = files();

    for signal in [Signal::KILL, Signal::TERM] {
        master.end(signal);
        master = module_master(&hub);
        assert_eq!(ready(&hub, &[&first, &second]), assigned, "the master ended by {signal:?}");
    }
    for signal in [Signal::KILL, Signal::TERM, Signal::USR1] {
        agent.end(signal);
        agent = module_agent(&second, MASTER_ADDRESS);
        agent.says("registered with the master");
        assert_eq!(ready(&hub, &[&first, &second]), assigned, "the agent ended by {signal:?}");
        assert_eq!(files(), written, "the CNI file was touched");
    }
}

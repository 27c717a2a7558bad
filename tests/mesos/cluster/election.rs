//! Leader election of Mesos masters in ZooKeeper, and the modules that follow it.

use std::process::Command;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_for};
use super::mesos::{
    MASTER, MASTER_PORT, Parameters, addresses, modules, start_mesos_master, start_module_agent,
    state, wait_until_ready,
};

const ELECTION: &str = "zk://10.0.0.1:2181/mesos";
/// The class path of the package zookeeper.
const CLASSES: &str = "/usr/share/java/*";
const SERVER: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

fn start_zookeeper(host: &Host) -> Daemon {
    let settings = format!(
        "tickTime=500\ndataDir={}\nclientPort=2181\nclientPortAddress={}\n\
         admin.enableServer=false\n",
        host.text("zookeeper"),
        host.ip
    );
    let mut command: Command = host.command("/usr/bin/java");
    command.args(["-Xmx128m", "-cp", CLASSES, SERVER, &host.write("zoo.cfg", settings)]);
    Daemon::start(host, "zookeeper", command)
}

fn start_master(host: &Host, parameters: &Parameters) -> Daemon {
    let list = modules(host, &[(MASTER, parameters)]);
    let zk = format!("--zk={ELECTION}");
    start_mesos_master(host, &list, &[&zk, "--zk_session_timeout=2secs"])
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn agent_registers_with_new_leader() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.add_host(), cluster.add_host()];
    let agent = cluster.add_host();
    let _zookeeper = start_zookeeper(&hub);
    let start = |host: &Host| Some(start_master(host, &Parameters::master(host)));
    let mut masters = [start(&hosts[0]), start(&hosts[1])];
    // Like the flag of Mesos, the parameter may refer to a file that contains the address.
    let election = format!("file://{}", agent.write("election", format!("{ELECTION}\n")));
    let _agent = start_module_agent(&agent, &election);

    // Each master has its own state, which shows whether the agent registered with it.
    let has_agent = |host: &Host| addresses(&state(host)).contains_key(&agent.ip.to_string());
    let leader = wait_for("registration with the elected master", || {
        hosts.iter().position(|host| has_agent(host))
    });
    let other = 1 - leader;
    assert!(!has_agent(&hosts[other]), "both masters have the agent");
    masters[leader].take().expect("the master runs").end(Signal::KILL);
    wait_for("registration with the other master", || has_agent(&hosts[other]).then_some(()));
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn new_leader_reads_addresses_from_replicated_log() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.add_host(), cluster.add_host(), cluster.add_host()];
    let agents = [cluster.add_host(), cluster.add_host()];
    let _zookeeper = start_zookeeper(&hub);
    let start = |host: &Host| {
        let zk = format!(r#"{{"url": "{ELECTION}", "quorum": 2, "session_timeout": 2}}"#);
        let directory = host.text("log");
        std::fs::create_dir_all(&directory).expect("a directory");
        let parameters = Parameters::master(host).without("work_dir");
        start_master(host, &parameters.with(&[("replicated_log_dir", &directory), ("zk", &zk)]))
    };
    let mut masters = hosts.each_ref().map(|host| Some(start(host)));
    let wait_for_leader = |previous: Option<usize>| {
        wait_for("a leading master", || {
            let serves = |at: &usize| Some(*at) != previous && !state(&hosts[*at]).is_null();
            (0..hosts.len()).find(serves)
        })
    };
    // The second agent registers first, so that the order of addresses differs from the host order.
    let first = wait_for_leader(None);
    let _second_agent = start_module_agent(&agents[1], ELECTION);
    wait_until_ready(&hosts[first], &[&agents[1]]);
    let _first_agent = start_module_agent(&agents[0], ELECTION);
    let both = [&*agents[0], &*agents[1]];
    let assigned = wait_until_ready(&hosts[first], &both);
    for (at, host) in hosts.iter().enumerate().filter(|(at, _)| *at != first) {
        let health = host.get(MASTER_PORT, "/overlay-master/health").expect("a response");
        assert!(health.text().contains("standby"), "{at}: {health:?}");
    }

    masters[first].take().expect("the master runs").end(Signal::KILL);
    let second = wait_for_leader(Some(first));
    assert_eq!(
        wait_until_ready(&hosts[second], &both),
        assigned,
        "after the first leader was killed"
    );
    // With one master down, the quorum needs the restarted master, which must catch up first.
    masters[first] = Some(start(&hosts[first]));
    masters[second].take().expect("the master runs").end(Signal::TERM);
    let third = wait_for_leader(Some(second));
    assert_eq!(
        wait_until_ready(&hosts[third], &both),
        assigned,
        "after the second leader was stopped"
    );
}

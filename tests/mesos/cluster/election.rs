//! The agent module follows the election of the Mesos master in ZooKeeper.

use std::process::Command;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_for};
use super::mesos::{
    MASTER, MASTER_PORT, Parameters, addresses, mesos_master, module_agent, modules, ready, state,
};

const ELECTION: &str = "zk://10.0.0.1:2181/mesos";
/// What the package zookeeper brings.
const CLASSES: &str = "/usr/share/java/*";
const SERVER: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

fn zookeeper(host: &Host) -> Daemon {
    let settings = format!(
        "tickTime=500\ndataDir={}\nclientPort=2181\nclientPortAddress={}\nadmin.enableServer=false\n",
        host.text("zookeeper"),
        host.ip
    );
    let mut command: Command = host.command("/usr/bin/java");
    command.args(["-Xmx128m", "-cp", CLASSES, SERVER, &host.write("zoo.cfg", settings)]);
    Daemon::start(host, "zookeeper", command)
}

fn master(host: &Host, parameters: &Parameters) -> Daemon {
    let list = modules(host, &[(MASTER, parameters)]);
    let zk = format!("--zk={ELECTION}");
    mesos_master(host, &list, &[&zk, "--zk_session_timeout=2secs"])
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn an_agent_registers_with_whoever_leads() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.host(), cluster.host()];
    let agent = cluster.host();
    let _zookeeper = zookeeper(&hub);
    let start = |host: &Host| Some(master(host, &Parameters::master(host)));
    let mut masters = [start(&hosts[0]), start(&hosts[1])];
    // As Mesos' own flag, the parameter may name a file that holds it.
    let election = format!("file://{}", agent.write("election", format!("{ELECTION}\n")));
    let _agent = module_agent(&agent, &election);

    // Each keeps its own state, so that it shows who was asked.
    let has_agent = |host: &Host| addresses(&state(host)).contains_key(&agent.ip.to_string());
    let leader = wait_for("one of the masters is elected and has the agent", || {
        hosts.iter().position(|host| has_agent(host))
    });
    let other = 1 - leader;
    assert!(!has_agent(&hosts[other]), "only one of them leads");
    masters[leader].take().expect("it runs").end(Signal::KILL);
    wait_for("the other one is elected and has it", || has_agent(&hosts[other]).then_some(()));
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn whoever_leads_next_has_the_same_addresses_by_the_replicated_log() {
    let mut cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let hosts = [cluster.host(), cluster.host(), cluster.host()];
    let agents = [cluster.host(), cluster.host()];
    let _zookeeper = zookeeper(&hub);
    let start = |host: &Host| {
        let zk = format!(r#"{{"url": "{ELECTION}", "quorum": 2, "session_timeout": 2}}"#);
        let directory = host.text("log");
        std::fs::create_dir_all(&directory).expect("a directory");
        let parameters = Parameters::master(host).without("work_dir");
        master(host, &parameters.with(&[("replicated_log_dir", &directory), ("zk", &zk)]))
    };
    let mut masters = hosts.each_ref().map(|host| Some(start(host)));
    let leader = |not: Option<usize>| {
        wait_for("one of the masters serves", || {
            let serves = |at: &usize| Some(*at) != not && !state(&hosts[*at]).is_null();
            (0..hosts.len()).find(serves)
        })
    };
    // The order of the addresses is not that of the agents.
    let first = leader(None);
    let _second_agent = module_agent(&agents[1], ELECTION);
    ready(&hosts[first], &[&agents[1]]);
    let _first_agent = module_agent(&agents[0], ELECTION);
    let both = [&*agents[0], &*agents[1]];
    let assigned = ready(&hosts[first], &both);
    for (at, host) in hosts.iter().enumerate().filter(|(at, _)| *at != first) {
        let health = host.get(MASTER_PORT, "/overlay-master/health").expect("an answer");
        assert!(health.text().contains("standby"), "{at}: {health:?}");
    }

    masters[first].take().expect("it runs").end(Signal::KILL);
    let second = leader(Some(first));
    assert_eq!(ready(&hosts[second], &both), assigned, "after the first leader was killed");
    // Of the three, the one that was away has to make up what it missed.
    masters[first] = Some(start(&hosts[first]));
    masters[second].take().expect("it runs").end(Signal::TERM);
    let third = leader(Some(second));
    assert_eq!(ready(&hosts[third], &both), assigned, "after the second leader was stopped");
}

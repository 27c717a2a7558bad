//! `master` and `agent` where they cannot start, or start with something to say.

use std::net::TcpListener;

use crate::support::{Master, NETWORK, Place, Running};

#[test]
fn a_second_master_on_the_same_state_is_refused() {
    let place = Place::with_network();
    let _master = Master::start(&place);
    let arguments = "master --config network.json --listen 127.0.0.1:0 --work-dir work";
    assert_eq!(
        place.run(arguments).failure(),
        "mesos-overlay: file:work/overlay-master.redb: open: another process has it open, such as a \
         running `mesos-overlay master` or mesos-master with this module (`fuser \
         work/overlay-master.redb` shows which): stop that one, or use another work directory\n"
    );
}

#[test]
fn an_address_that_is_taken_or_not_ours_is_refused() {
    let place = Place::with_network();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = |address: &str| {
        let arguments = "master --config network.json --store memory --log error --listen";
        place.run(&format!("{arguments} {address}")).failure()
    };
    let address = taken.local_addr().unwrap().to_string();
    assert_eq!(
        listen(&address),
        format!(
            "mesos-overlay: listen on {address}: Address already in use (os error 98): is another \
             one running? Mesos itself has 5050 and 5051: --listen chooses another address\n"
        )
    );
    assert_eq!(
        listen("192.0.2.1:0"),
        "mesos-overlay: listen on 192.0.2.1:0: Cannot assign requested address (os error 99): this \
         host has no such address: --listen chooses another address\n"
    );
}

#[test]
fn a_refused_configuration_is_told_with_every_problem() {
    let place = Place::new();
    place.write("bad.json", "{ \"cni_dir\": \"cni\",\n  \"portmapper\": 1 }");
    assert_eq!(
        place.run("agent --config bad.json --master 127.0.0.1:5050").transcript(),
        "\
bad.json:1:14: cni_dir: 'cni' is relative: write a path from /, such as \"/var/lib/mesos/cni\"
bad.json:2:3: portmapper: is no key: did you mean 'port_mapper'?
mesos-overlay: bad.json: 2 problems: mend them and try again
exit code 1
"
    );
    // As for the agent that ran with it.
    assert_eq!(
        place.run("clean --config bad.json --dry-run").failure(),
        place.run("agent --config bad.json --master 127.0.0.1:5050").failure()
    );
    assert_eq!(place.run("master --config bad.json").transcript(), "\
bad.json:1:1: vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as \"44.128.0.0/16\"
bad.json:1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as \"70:B3:D5:00:00:00\"
bad.json:1:1: overlays: is missing: write the list of overlay networks, each with name, subnet and prefix
bad.json:1:3: cni_dir: is no key here: it belongs in agent_config
bad.json:2:3: portmapper: is no key: the keys here are vtep_subnet, vtep_subnet6, vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays
mesos-overlay: bad.json: 5 problems: mend them and try again
exit code 1
");
    assert_eq!(
        place.run("master --config none.json").failure(),
        "mesos-overlay: read none.json: No such file or directory (os error 2): check the path\n"
    );
}

#[test]
fn an_agent_without_a_master_is_refused() {
    let place = Place::new();
    let cni_dir = place.path("cni").display().to_string();
    assert_eq!(
        place.run(&format!("agent --cni-dir {cni_dir}")).failure(),
        "mesos-overlay: no master: give --master IP:PORT or the key 'master'\n"
    );
    let cases = [
        (
            "zk://user:secret@10.0.0.1:2181",
            "names no path in ZooKeeper: write one after the servers, as in \
             zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay",
        ),
        ("file://none", "read none: No such file or directory (os error 2): check the path"),
        ("file://once", "once: it names a file again: write zk://… or IP:PORT into it"),
        ("file://bad", "bad: ' a b' is no master: write IP:PORT or NAME:PORT, as in 10.0.0.1:5050"),
    ];
    place.write("once", "file:///etc/master\n");
    place.write("bad", "[a b]\n");
    for (master, why) in cases {
        let why = why.replace("' a b'", "'[a b]'");
        assert_eq!(
            place.run(&format!("agent --cni-dir {cni_dir} --master {master}")).failure(),
            format!("mesos-overlay: master: {why}\n")
        );
    }
    assert!(!place.path("cni").exists(), "nothing is made");
}

#[test]
fn a_flag_is_refused_as_its_key_is() {
    let place = Place::new();
    place.write("agent.json", r#"{ "cni_dir": "/cni" }"#);
    for config in ["", " --config agent.json"] {
        let arguments = format!("agent --cni-dir cni --master 127.0.0.1:5050{config}");
        assert_eq!(
            place.run(&arguments).usage(),
            "mesos-overlay: --cni-dir: 'cni' is relative: write a path from /, such as \
             \"/var/lib/mesos/cni\"\n"
        );
    }
    assert!(!place.path("cni").exists(), "nothing is made");
}

#[test]
fn a_store_that_is_none_is_refused_without_the_password() {
    let place = Place::with_network();
    let cases = [
        (
            "tape",
            "is no store: write file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that \
             holds such an address",
        ),
        (
            "zk://user:secret@a:0/overlay",
            "server 1 is not HOST:PORT: write the servers as in \
             zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay",
        ),
    ];
    for (store, why) in cases {
        let said = place.run(&format!("master --config network.json --store {store}")).usage();
        assert_eq!(said, format!("mesos-overlay: --store: {why}\n"));
    }
    place.write("zk", "zk://user:secret@a:2181\n");
    let store = format!("file://{}", place.path("zk").display());
    assert_eq!(
        place.run(&format!("master --config network.json --store {store}")).failure(),
        format!(
            "mesos-overlay: store: {}: names no path in ZooKeeper: write one after the servers, as \
             in zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay\n",
            place.path("zk").display()
        )
    );
}

#[test]
fn warnings_of_the_configuration_go_to_the_log() {
    let place = Place::new();
    place.write("network.json", NETWORK.replace("44.128", "45.128"));
    let arguments = "master --config network.json --store memory --listen 127.0.0.1:0";
    let mut master = Running::start(&place, arguments);
    assert_eq!(
        master.expect("WARN ] "),
        "network.json:1:18: vtep_subnet: '45.128.0.0/16' is public space: hosts of its owner cannot be \
         reached from here; write private space, as in 10.0.0.0/8"
    );
    assert_eq!(
        master.expect("WARN ] "),
        "the state is kept in memory only: a restart forgets all allocations"
    );
}

#[test]
fn a_master_keeps_its_state_where_its_keys_say_and_flags_win() {
    let place = Place::new();
    let kept = place.path("kept");
    let config = format!(r#"{{"network":{NETWORK},"store":"memory","work_dir":{kept:?}}}"#);
    place.write("master.json", config);
    let start = |flags: &str| {
        let arguments = format!("master --config master.json --listen 127.0.0.1:0 {flags}");
        Running::start(&place, &arguments)
    };
    start("").expect("the state is kept in memory only");
    assert!(!kept.exists());
    start("--store file").expect("overlay master at ");
    assert!(kept.join("overlay-master.redb").exists());
    start("--store file --work-dir other").expect("overlay master at ");
    assert!(place.path("other").join("overlay-master.redb").exists());
}

#[test]
fn flags_of_the_long_running_have_twins_in_the_environment() {
    let place = Place::with_network();
    let environment = [
        ("MESOS_OVERLAY_CONFIG", "network.json"),
        ("MESOS_OVERLAY_LISTEN", "192.0.2.1:0"),
        ("MESOS_OVERLAY_STORE", "memory"),
        ("MESOS_OVERLAY_LOG", "off"),
    ];
    let said = place.run_with("master", &environment, "").failure();
    assert!(said.starts_with("mesos-overlay: listen on 192.0.2.1:0: "), "{said}");
    let cni_dir = place.path("cni").display().to_string();
    let environment = [
        ("MESOS_OVERLAY_CNI_DIR", cni_dir.as_str()),
        ("MESOS_OVERLAY_MASTER", "10.0.0.1:5050"),
        ("MESOS_OVERLAY_LISTEN", "192.0.2.1:0"),
    ];
    let said = place.run_with("agent", &environment, "").failure();
    assert!(said.starts_with("mesos-overlay: listen on 192.0.2.1:0: "), "{said}");
}

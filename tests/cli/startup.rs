//! Errors and warnings of `master` and `agent` at startup.

use std::net::TcpListener;

use crate::support::{Master, NETWORK, RunningProcess, TestDir};

#[test]
fn second_master_on_same_store_is_refused() {
    let dir = TestDir::with_network();
    let _master = Master::start(&dir);
    let arguments = "master --config network.json --listen 127.0.0.1:0 --work-dir work";
    assert_eq!(
        dir.run(arguments).failure(),
        "mesos-overlay: file:work/overlay-master.redb: open: another process has it open, such as a \
         running `mesos-overlay master` or mesos-master with this module (`fuser \
         work/overlay-master.lock` shows it): stop that process, or use another work directory\n"
    );
}

#[test]
fn unusable_listen_address_is_refused() {
    let dir = TestDir::with_network();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = |address: &str| {
        let arguments = "master --config network.json --store memory --log error --listen";
        dir.run(&format!("{arguments} {address}")).failure()
    };
    let address = listener.local_addr().unwrap().to_string();
    assert_eq!(
        listen(&address),
        format!(
            "mesos-overlay: listen on {address}: Address already in use (os error 98): is another \
             instance running? Mesos itself uses 5050 and 5051: --listen chooses another address\n"
        )
    );
    assert_eq!(
        listen("192.0.2.1:0"),
        "mesos-overlay: listen on 192.0.2.1:0: Cannot assign requested address (os error 99): this \
         host has no such address: --listen chooses another address\n"
    );
}

#[test]
fn invalid_config_is_refused_with_every_problem() {
    let dir = TestDir::new();
    dir.write("bad.json", "{ \"cni_dir\": \"cni\",\n  \"portmapper\": 1 }");
    assert_eq!(
        dir.run("agent --config bad.json --master 127.0.0.1:5050").transcript(),
        "\
bad.json:1:14: cni_dir: 'cni' is relative: write a path from /, such as \"/var/lib/mesos/cni\"
bad.json:2:3: portmapper: is no key: did you mean 'port_mapper'?
mesos-overlay: bad.json: 2 problems: fix them and try again
exit code 1
"
    );
    // `clean` reports the same errors as `agent`.
    assert_eq!(
        dir.run("clean --config bad.json --dry-run").failure(),
        dir.run("agent --config bad.json --master 127.0.0.1:5050").failure()
    );
    assert_eq!(dir.run("master --config bad.json").transcript(), "\
bad.json:1:1: vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as \"198.19.0.0/16\"
bad.json:1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as \"70:B3:D5:00:00:00\"
bad.json:1:1: overlays: is missing: write the list of overlay networks, each with name, subnet and prefix
bad.json:1:3: cni_dir: is no key here: it belongs in agent_config
bad.json:2:3: portmapper: is no key: the keys here are vtep_subnet, vtep_subnet6, vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays
mesos-overlay: bad.json: 5 problems: fix them and try again
exit code 1
");
    assert_eq!(
        dir.run("master --config none.json").failure(),
        "mesos-overlay: read none.json: No such file or directory (os error 2): check the path\n"
    );
}

#[test]
fn agent_without_usable_master_is_refused() {
    let dir = TestDir::new();
    let cni_dir = dir.path("cni").display().to_string();
    assert_eq!(
        dir.run(&format!("agent --cni-dir {cni_dir}")).failure(),
        "mesos-overlay: no master: give --master IP:PORT or the key 'master'\n"
    );
    let cases = [
        (
            "zk://user:secret@10.0.0.1:2181",
            "names no path in ZooKeeper: write one after the servers, as in \
             zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay",
        ),
        ("file://none", "read none: No such file or directory (os error 2): check the path"),
        ("file://once", "once: it names another file: write zk://… or IP:PORT into it"),
        ("file://bad", "bad: ' a b' is no master: write IP:PORT or NAME:PORT, as in 10.0.0.1:5050"),
    ];
    dir.write("once", "file:///etc/master\n");
    dir.write("bad", "[a b]\n");
    for (master, reason) in cases {
        let reason = reason.replace("' a b'", "'[a b]'");
        assert_eq!(
            dir.run(&format!("agent --cni-dir {cni_dir} --master {master}")).failure(),
            format!("mesos-overlay: master: {reason}\n")
        );
    }
    assert!(!dir.path("cni").exists(), "the failed command created a directory");
}

#[test]
fn invalid_flag_is_refused_like_its_key() {
    let dir = TestDir::new();
    dir.write("agent.json", r#"{ "cni_dir": "/cni" }"#);
    for config in ["", " --config agent.json"] {
        let arguments = format!("agent --cni-dir cni --master 127.0.0.1:5050{config}");
        assert_eq!(
            dir.run(&arguments).usage_error(),
            "mesos-overlay: --cni-dir: 'cni' is relative: write a path from /, such as \
             \"/var/lib/mesos/cni\"\n"
        );
    }
    assert!(!dir.path("cni").exists(), "the failed command created a directory");
}

#[test]
fn invalid_store_error_hides_password() {
    let dir = TestDir::with_network();
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
    for (store, reason) in cases {
        let error = dir.run(&format!("master --config network.json --store {store}")).usage_error();
        assert_eq!(error, format!("mesos-overlay: --store: {reason}\n"));
    }
    dir.write("zk", "zk://user:secret@a:2181\n");
    let store = format!("file://{}", dir.path("zk").display());
    assert_eq!(
        dir.run(&format!("master --config network.json --store {store}")).failure(),
        format!(
            "mesos-overlay: store: {}: names no path in ZooKeeper: write one after the servers, as \
             in zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay\n",
            dir.path("zk").display()
        )
    );
}

#[test]
fn config_warnings_are_logged() {
    let dir = TestDir::new();
    dir.write("network.json", NETWORK.replace("44.128", "45.128"));
    let arguments = "master --config network.json --store memory --listen 127.0.0.1:0";
    let mut master = RunningProcess::start(&dir, arguments);
    assert_eq!(
        master.expect_log("WARN ] "),
        "network.json:1:18: vtep_subnet: '45.128.0.0/16' is public space: hosts of its owner cannot be \
         reached from here; write private space, as in 10.0.0.0/8"
    );
    assert_eq!(
        master.expect_log("WARN ] "),
        "the state is in memory only: a restart loses all allocations"
    );
}

#[test]
fn flags_override_store_and_work_dir_keys() {
    let dir = TestDir::new();
    let work_dir = dir.path("configured");
    let config = format!(r#"{{"network":{NETWORK},"store":"memory","work_dir":{work_dir:?}}}"#);
    dir.write("master.json", config);
    let start = |flags: &str| {
        let arguments = format!("master --config master.json --listen 127.0.0.1:0 {flags}");
        RunningProcess::start(&dir, &arguments)
    };
    start("").expect_log("the state is in memory only");
    assert!(!work_dir.exists());
    start("--store file").expect_log("overlay master at ");
    assert!(work_dir.join("overlay-master.redb").exists());
    start("--store file --work-dir other").expect_log("overlay master at ");
    assert!(dir.path("other").join("overlay-master.redb").exists());
}

#[test]
fn master_and_agent_read_flags_from_environment() {
    let dir = TestDir::with_network();
    let environment = [
        ("MESOS_OVERLAY_CONFIG", "network.json"),
        ("MESOS_OVERLAY_LISTEN", "192.0.2.1:0"),
        ("MESOS_OVERLAY_STORE", "memory"),
        ("MESOS_OVERLAY_LOG", "off"),
    ];
    let error = dir.run_with("master", &environment, "").failure();
    assert!(error.starts_with("mesos-overlay: listen on 192.0.2.1:0: "), "{error}");
    let cni_dir = dir.path("cni").display().to_string();
    let environment = [
        ("MESOS_OVERLAY_CNI_DIR", cni_dir.as_str()),
        ("MESOS_OVERLAY_MASTER", "10.0.0.1:5050"),
        ("MESOS_OVERLAY_LISTEN", "192.0.2.1:0"),
    ];
    let error = dir.run_with("agent", &environment, "").failure();
    assert!(error.starts_with("mesos-overlay: listen on 192.0.2.1:0: "), "{error}");
}

//! Invalid parameters: Mesos gets a null pointer without a reason, and the log names the error.

use std::fs;
use std::path::Path;

use super::agent::load_agent;
use super::host::{AGENT, Build, CPP_AGENT, CPP_MASTER, Host, MASTER, text};
use super::master::{NETWORK, register_recorded_agent};

/// Loads a module that must fail. Returns the logged errors without time and source position.
fn load_errors(host: &mut Host, symbol: &str, parameters: &[(&str, &str)]) -> Vec<String> {
    let before = host.log().lines().count();
    assert!(!host.load(symbol, parameters), "the module accepted {parameters:?}");
    let log = host.log();
    let lines = log.lines().skip(before);
    // The format of glog: severity and date, time, thread, source position, text.
    let errors = lines.filter(|line| line.starts_with('E'));
    let text = |line: &str| line.split_once("] ").expect("a line of glog").1.to_owned();
    errors.map(text).collect()
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn invalid_parameters_are_named_and_can_be_fixed() {
    let mut host = Host::start(Build::release());
    let end = ": not loaded: fix 1 problem of its configuration (above)";
    let network = host.write("network.json", NETWORK);
    let broken = host.write("broken.json", "{\"vtep_subnet\": ");
    let unknown = host.write("unknown.json", &NETWORK.replacen("vtep_mtu", "vtep_mtuu", 1));
    let (network, broken, unknown) = (text(&network), text(&broken), text(&unknown));
    let missing = host.path("missing.json");
    let missing = text(&missing);

    let lines = load_errors(&mut host, MASTER, &[("overlays", missing)]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        lines[0],
        format!(
            "overlay: overlay master: parameter 'overlays': read {missing}: No such file or \
             directory (os error 2): check the path"
        )
    );
    let directory = host.path("");
    let lines = load_errors(&mut host, MASTER, &[("overlays", text(&directory))]);
    assert!(lines[0].ends_with(": not a regular file") && lines.len() == 1, "{lines:?}");

    let below = host.path("network.json/below");
    let lines = load_errors(&mut host, MASTER, &[("overlays", text(&below))]);
    assert!(lines[0].contains("Not a directory") && lines.len() == 1, "{lines:?}");

    let lines = load_errors(&mut host, MASTER, &[("overlays", broken)]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with(&format!("overlay master: {broken}:1:")), "{lines:?}");
    assert!(lines[1].ends_with(end), "{lines:?}");

    let lines = load_errors(&mut host, MASTER, &[("overlays", unknown)]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let expected = "vtep_mtuu: is no key: did you mean 'vtep_mtu'?";
    assert_eq!(lines[0], format!("overlay master: {unknown}:3:42: {expected}"));

    let lines =
        load_errors(&mut host, MASTER, &[("overlays", network), ("master_config", network)]);
    assert!(lines[0].contains("'overlays'") && lines[0].contains("'master_config'"), "{lines:?}");
    let lines = load_errors(&mut host, MASTER, &[]);
    assert!(lines[0].contains("overlays"), "{lines:?}");
    let lines = load_errors(&mut host, MASTER, &[("overlay", network)]);
    let expected = "parameter 'overlay': is no parameter: did you mean 'overlays'?";
    assert_eq!(lines[1], format!("overlay master: {expected}"));
    let lines =
        load_errors(&mut host, AGENT, &[("cni_dir", "relative"), ("master", "127.0.0.1:1")]);
    assert!(lines[0].contains("'relative' is relative"), "{lines:?}");
    let lines = load_errors(&mut host, AGENT, &[("cni_dir", missing)]);
    assert!(lines[0].contains("master"), "{lines:?}");
    let lines =
        load_errors(&mut host, AGENT, &[("cni_dir", missing), ("master", "file:///no/file")]);
    assert!(lines[0].contains("read /no/file: No such file or directory"), "{lines:?}");
    let lines = load_errors(&mut host, AGENT, &[("cni_dir", network), ("master", "127.0.0.1:1")]);
    assert!(lines[0].contains(network), "{lines:?}");
    let lines = load_errors(&mut host, AGENT, &[("cni_dir", missing), ("master", "zk://nobody")]);
    assert!(!lines.is_empty(), "{lines:?}");

    // Both modules can still be loaded after these errors.
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    register_recorded_agent(&host, &super::master::listen_as_agent());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn unprintable_parameters_are_escaped() {
    let mut host = Host::start(Build::release());
    for value in ["\u{0}", "\u{1b}[31m", "%s%n", "\u{202e}", &"x".repeat(1 << 20)] {
        let value = value.to_owned();
        for parameter in [("overlays", &*value), (&*value, "x")] {
            let lines = load_errors(&mut host, MASTER, &[parameter]);
            assert!(matches!(lines.len(), 1..=3), "{lines:?}");
            assert!(!lines.concat().contains(char::is_control), "{lines:?}");
            // glog truncates longer lines.
            assert!(lines.iter().all(|line| line.len() < 1000), "{lines:?}");
        }
    }
    host.load_master(NETWORK);
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn second_module_of_same_kind_is_refused() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    for (first, second) in [(MASTER, CPP_MASTER), (AGENT, CPP_AGENT)] {
        for symbol in [first, second] {
            let lines = load_errors(&mut host, symbol, &[]);
            assert_eq!(lines.len(), 1, "{lines:?}");
            let expected = format!("{first} and {second} are two names of one module: load one");
            assert!(lines[0].ends_with(&expected), "{lines:?}");
        }
    }
    // A copy of the library shares no state with the first, but libprocess knows the process name.
    let copy = host.path("copy.so");
    fs::copy(crate::library::release_library(), &copy).expect("a copy");
    let (file, work_dir) = (host.path("network.json"), host.path("work-2"));
    let parameters = [("overlays", text(&file)), ("work_dir", text(&work_dir))];
    assert!(!host.load_from(&copy, MASTER, &parameters));
    let expected = "a process of this name runs already";
    assert_eq!(host.log_lines(expected).len(), 1, "{}", host.log());
    assert!(
        !host.load_from(&copy, CPP_MASTER, &parameters),
        "the copy is refused under either name"
    );
    register_recorded_agent(&host, &super::master::listen_as_agent());
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn mesos_without_ipv4_address_gets_failed_modules() {
    let environment = [("LIBPROCESS_ADVERTISE_IP", "fd00::1")];
    let mut host = Host::start_with_env(Build::release(), &environment);
    let network = host.write("network.json", NETWORK);
    let work_dir = host.path("work");
    let parameters = [("overlays", text(&network)), ("work_dir", text(&work_dir))];
    assert!(host.load(MASTER, &parameters), "{}", host.log());
    let cni = host.path("cni");
    let parameters =
        [("master", "127.0.0.1:1"), ("cni_dir", text(&cni)), ("dataplane", "external")];
    assert!(host.load(AGENT, &parameters), "{}", host.log());
    for module in ["master", "agent"] {
        let health = host.get(&format!("/overlay-{module}/health"));
        assert_eq!(health.status, 503, "{health:?}");
        let health = health.json();
        assert_eq!(health["status"], "failed");
        let reason = health["problems"][0].as_str().expect("a problem");
        let start = "Mesos advertises fd00::1, which is no IPv4 address, and the overlay protocol";
        assert!(reason.starts_with(start), "{reason}");
        let lines = host.log_lines(&format!("overlay {module}: not started: {reason}"));
        assert_eq!(lines.len(), 1, "{}", host.log());
    }
    assert_eq!(host.get("/metrics/snapshot").status, 200);
    assert_eq!(host.module_thread_count(), 0);
    assert!(host.exit().0.success());
}

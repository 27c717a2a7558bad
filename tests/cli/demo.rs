//! `demo`: the whole main job, with nothing left of it. Hosts and containers need what not every
//! machine permits: they are in `tests/host/demo.rs`.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Place, Running};

/// An environment whose temporary directory can be looked into, and in which whoever asks Docker
/// leaves a trace.
fn environment(place: &Place) -> [(&'static str, String); 2] {
    for folder in ["tmp", "bin"] {
        std::fs::create_dir_all(place.path(folder)).unwrap();
    }
    let docker = place.path("bin/docker");
    let trace = place.path("docker-was-asked");
    place.write("bin/docker", format!("#!/bin/sh\n: >'{}'\n", trace.display()));
    std::fs::set_permissions(docker, std::fs::Permissions::from_mode(0o755)).unwrap();
    [
        ("TMPDIR", place.path("tmp").display().to_string()),
        ("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", place.path("bin").display())),
    ]
}

fn run(place: &Place, arguments: &str) -> crate::support::Outcome {
    let environment = environment(place);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let outcome = place.run_with(arguments, &environment, "");
    assert_nothing_is_left(place);
    outcome
}

fn assert_nothing_is_left(place: &Place) {
    let left: Vec<_> = std::fs::read_dir(place.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?} is left behind");
    assert!(
        !place.path("docker-was-asked").exists(),
        "this machine's Docker is none of the demo's"
    );
}

#[test]
fn the_demo_on_loopback_shows_who_got_what() {
    let place = Place::new();
    let outcome = run(&place, "demo --loopback");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for agent in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let rows: Vec<&str> =
            outcome.stdout.lines().filter(|line| line.starts_with(agent)).collect();
        assert_eq!(rows.len(), 2, "{}", outcome.stdout);
        assert!(rows[0].contains(" 44.128.0.") && rows[0].contains(" 70:b3:d5:80:00:0"));
        assert!(rows[0].contains(" vxlan-1 ") && rows[1].contains(" vxlan-2 "));
        assert!(rows.iter().all(|row| row.ends_with("  ok")), "{rows:?}");
        let wrote =
            format!("agent {agent} wrote the CNI configurations vxlan-1.conf, vxlan-2.conf");
        assert!(outcome.stdout.contains(&wrote), "{}", outcome.stdout);
        assert!(outcome.stderr.contains(&format!("  agent {agent} registered: ")));
    }
    let why = "\nOn loopback addresses, without hosts and containers: --loopback\n";
    assert!(outcome.stdout.contains(why), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("  mesos-overlay master --config docs/network.json"));
}

#[test]
fn the_demo_tells_programs_the_same() {
    let place = Place::new();
    let shown = run(&place, "demo --loopback --agents 5 --json").json();
    assert_eq!(shown["state"]["agents"].as_array().unwrap().len(), 5);
    assert_eq!(shown["state"]["network"]["vtep_subnet"], "44.128.0.0/16");
    let configuration = shown["cni"]["127.0.0.6"]["vxlan-2.conf"].as_str().unwrap();
    assert!(configuration.starts_with(r#"{"name":"vxlan-2","type":"mesos-cni-port-mapper","#));
    assert_eq!(shown["loopback"], "--loopback");
    let none = serde_json::json!([]);
    assert_eq!((&shown["containers"], &shown["pings"]), (&none, &none));
}

/// Which of both it is depends on the machine; that all of it works does not.
#[test]
fn the_demo_makes_hosts_or_says_what_would_let_it() {
    let place = Place::new();
    let shown = run(&place, "demo --json").json();
    let agents = shown["state"]["agents"].as_array().unwrap();
    assert_eq!(agents.len(), 3);
    for overlay in agents.iter().flat_map(|agent| agent["overlays"].as_array().unwrap()) {
        assert_eq!(overlay["state"]["status"], "STATUS_OK", "{overlay}");
    }
    let pings = shown["pings"].as_array().unwrap();
    match shown["loopback"].as_str() {
        None => {
            assert_eq!(pings.len(), 6 * 5 * 2, "each of six containers to each other, two sizes");
            assert!(pings.iter().all(|ping| ping["microseconds"].is_u64()), "{pings:?}");
        }
        Some(why) => {
            assert!(why.contains("run it as root") || why.contains("load "), "{why}");
            assert!(pings.is_empty());
        }
    }
}

#[test]
fn the_demo_leaves_nothing_behind_when_it_is_ended_early() {
    let place = Place::new();
    let variables = environment(&place);
    let mut running = Running::start_with(&place, "demo --loopback --agents 128", &variables);
    running.expect("master at ");
    let (status, log) = running.terminate();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.ends_with("mesos-overlay: ended before it was done\n"), "{log}");
    assert_nothing_is_left(&place);
}

#[test]
fn more_agents_than_the_network_has_room_for_are_refused() {
    let said = Place::new().run("demo --agents 129").usage();
    assert!(said.contains("129 is not in 1..=128"), "{said}");
}

#[test]
fn the_network_of_the_readme_is_that_of_the_demo() {
    let readme = include_str!("../../README.md");
    let network = include_str!("../../docs/network.json");
    let indented: String = network.lines().map(|line| format!("    {line}\n")).collect();
    assert!(readme.contains(&indented), "the README shows another network file");
    let configuration = include_str!("../../docs/configuration.md");
    assert!(configuration.contains(&indented), "docs/configuration.md shows another network file");
}

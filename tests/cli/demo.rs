//! `demo`: the whole main job, with nothing left of it.

use crate::support::{Place, Running};

/// An environment in which no Docker engine answers and whose temporary directory can be looked
/// into.
fn environment(place: &Place) -> [(&'static str, String); 2] {
    std::fs::create_dir_all(place.path("tmp")).unwrap();
    [
        ("TMPDIR", place.path("tmp").display().to_string()),
        ("DOCKER_HOST", format!("unix://{}", place.path("no.sock").display())),
    ]
}

fn run(place: &Place, arguments: &str) -> crate::support::Outcome {
    let environment = environment(place);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let outcome = place.run_with(arguments, &environment, "");
    let left: Vec<_> = std::fs::read_dir(place.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?} is left behind");
    outcome
}

#[test]
fn the_demo_shows_who_got_what_and_why_docker_failed() {
    let place = Place::new();
    let outcome = run(&place, "demo");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for agent in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let rows: Vec<&str> =
            outcome.stdout.lines().filter(|line| line.starts_with(agent)).collect();
        assert_eq!(rows.len(), 2, "{}", outcome.stdout);
        assert!(rows[0].contains(" 44.128.0.") && rows[0].contains(" 70:b3:d5:80:00:0"));
        assert!(rows[0].contains(" vxlan-1 ") && rows[1].contains(" vxlan-2 "));
        let status =
            if agent == "127.0.0.2" { "  failed: docker network vxlan-1: " } else { "  ok" };
        assert!(rows[0].contains(status), "{}", rows[0]);
        let wrote =
            format!("agent {agent} wrote the CNI configurations vxlan-1.conf, vxlan-2.conf");
        assert!(outcome.stdout.contains(&wrote), "{}", outcome.stdout);
        assert!(outcome.stderr.contains(&format!("  agent {agent} registered: ")));
    }
    assert!(outcome.stdout.contains("  mesos-overlay master --config docs/network.json"));
}

#[test]
fn the_demo_tells_programs_the_same() {
    let place = Place::new();
    let shown = run(&place, "demo --agents 5 --json").json();
    assert_eq!(shown["state"]["agents"].as_array().unwrap().len(), 5);
    assert_eq!(shown["state"]["network"]["vtep_subnet"], "44.128.0.0/16");
    let configuration = shown["cni"]["127.0.0.6"]["vxlan-2.conf"].as_str().unwrap();
    assert!(configuration.starts_with(r#"{"name":"vxlan-2","type":"mesos-cni-port-mapper","#));
}

#[test]
fn the_demo_leaves_nothing_behind_when_it_is_ended_early() {
    let place = Place::new();
    let variables = environment(&place);
    let mut running = Running::start_with(&place, "demo --agents 250", &variables);
    running.expect("master at ");
    let (status, log) = running.terminate();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.ends_with("mesos-overlay: ended before it was done\n"), "{log}");
    assert_eq!(std::fs::read_dir(place.path("tmp")).unwrap().count(), 0);
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

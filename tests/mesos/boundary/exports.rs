//! What the library looks like from outside: what it exports, what it needs, and its records.

use std::collections::BTreeSet;
use std::process::Command;

use super::host::{AGENT, Build, Host, MASTER, OLD_AGENT, OLD_MASTER, text};
use crate::library::{prefix, release_library, succeed};

const SYMBOLS: [&str; 4] = [MASTER, AGENT, OLD_MASTER, OLD_AGENT];

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn only_the_records_can_be_found_from_outside() {
    let list = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(release_library()));
    let symbols: Vec<(&str, &str)> = list
        .lines()
        .map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            (fields.next().expect("a kind"), fields.next().expect("a name"))
        })
        .collect();
    let records: BTreeSet<_> = symbols
        .iter()
        .filter(|(kind, _)| matches!(*kind, "B" | "D" | "R" | "V"))
        .map(|(_, name)| *name)
        .collect();
    assert_eq!(records, BTreeSet::from(SYMBOLS), "{list}");
    // cxx marks what C++ calls as public; it comes with its name and version in it.
    let others = symbols.iter().filter(|(_, name)| !records.contains(name));
    let strange: Vec<_> = others
        .filter(|(_, name)| {
            !name.starts_with("mesos_overlay$cxxbridge1$") && !name.starts_with("cxxbridge1$")
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn it_brings_no_mesos_and_no_protobuf_and_stays_loaded() {
    let dynamic = succeed(Command::new("readelf").args(["-d", "-W"]).arg(release_library()));
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    const EXPECTED: [&str; 5] = ["ld-linux", "libc.", "libgcc_s.", "libm.", "libstdc++."];
    for name in &needed {
        assert!(EXPECTED.iter().any(|start| name.starts_with(start)), "it needs {needed:?}");
    }
    assert!(dynamic.lines().any(|line| line.contains("FLAGS_1") && line.contains("NODELETE")));
    // An executable stack would be one for all of Mesos.
    let segments = succeed(Command::new("readelf").args(["-l", "-W"]).arg(release_library()));
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).expect("it says so");
    assert!(!stack.contains('E'), "{stack}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn the_records_pass_the_checks_of_mesos() {
    let header = std::fs::read_to_string(prefix().join("include/mesos/version.hpp"));
    let header = header.expect("Mesos is installed with its headers");
    let version = header.lines().find_map(|line| line.strip_prefix("#define MESOS_VERSION "));
    let version = version.expect("it has one").trim_matches('"');
    let mut host = Host::start(Build::release());
    for symbol in SYMBOLS {
        let fields = host.tell(&["manifest", text(release_library()), symbol]);
        let description = if symbol.contains("Master") {
            "Master of overlay networks"
        } else {
            "Agent of overlay networks"
        };
        assert_eq!(fields, ["2", version, "Anonymous", "mesos-overlay", "", description]);
    }
    let unknown = host.attempt(&["manifest", text(release_library()), "com_example_None"]);
    assert!(unknown.expect_err("it is not there").contains("undefined symbol"));
}

//! The exported symbols, the dependencies and the module records of the library.

use std::collections::BTreeSet;
use std::process::Command;

use super::host::{AGENT, Build, CPP_AGENT, CPP_MASTER, Host, MASTER, text};
use crate::library::{prefix, release_library, run_ok};

const SYMBOLS: [&str; 4] = [MASTER, AGENT, CPP_MASTER, CPP_AGENT];

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn library_exports_only_module_records() {
    let list = run_ok(Command::new("nm").args(["-D", "--defined-only"]).arg(release_library()));
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
    // cxx exports the functions that C++ calls. Their names contain the version of cxx.
    let others = symbols.iter().filter(|(_, name)| !records.contains(name));
    let unexpected: Vec<_> = others
        .filter(|(_, name)| {
            !name.starts_with("mesos_overlay$cxxbridge1$") && !name.starts_with("cxxbridge1$")
        })
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn library_links_no_mesos_and_stays_loaded() {
    let dynamic = run_ok(Command::new("readelf").args(["-d", "-W"]).arg(release_library()));
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    const EXPECTED: [&str; 5] = ["ld-linux", "libc.", "libgcc_s.", "libm.", "libstdc++."];
    for name in &needed {
        assert!(
            EXPECTED.iter().any(|start| name.starts_with(start)),
            "unexpected dependency in {needed:?}"
        );
    }
    assert!(dynamic.lines().any(|line| line.contains("FLAGS_1") && line.contains("NODELETE")));
    // An executable stack would apply to the whole Mesos process.
    let segments = run_ok(Command::new("readelf").args(["-l", "-W"]).arg(release_library()));
    let stack =
        segments.lines().find(|line| line.contains("GNU_STACK")).expect("a GNU_STACK segment");
    assert!(!stack.contains('E'), "{stack}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn module_records_match_installed_mesos() {
    let header = std::fs::read_to_string(prefix().join("include/mesos/version.hpp"));
    let header = header.expect("Mesos is installed with its headers");
    let version = header.lines().find_map(|line| line.strip_prefix("#define MESOS_VERSION "));
    let version = version.expect("the header defines the version").trim_matches('"');
    let mut host = Host::start(Build::release());
    for symbol in SYMBOLS {
        let fields = host.command(&["manifest", text(release_library()), symbol]);
        let description = if symbol.contains("Master") {
            "Master of overlay networks"
        } else {
            "Agent of overlay networks"
        };
        assert_eq!(fields, ["2", version, "Anonymous", "mesos-overlay", "", description]);
    }
    let unknown = host.try_command(&["manifest", text(release_library()), "com_example_None"]);
    assert!(unknown.expect_err("the symbol does not exist").contains("undefined symbol"));
}

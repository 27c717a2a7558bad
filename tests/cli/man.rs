//! The manual pages.

use std::collections::BTreeSet;
use std::fs;

use crate::help::{SUBCOMMANDS, all_subcommands};
use crate::support::TestDir;

#[test]
fn directory_gets_a_page_for_each_subcommand() {
    let dir = TestDir::new();
    assert_eq!(dir.run("man --directory man/man8").success(), "");
    let entries = fs::read_dir(dir.path("man/man8")).unwrap();
    let names: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let subcommands = all_subcommands();
    let mut expected: BTreeSet<String> =
        subcommands.map(|name| format!("mesos-overlay-{}.8", name.replace(' ', "-"))).collect();
    expected.insert("mesos-overlay.8".to_owned());
    assert_eq!(names, expected);
    let page = fs::read_to_string(dir.path("man/man8/mesos-overlay-reload.8")).unwrap();
    insta::assert_snapshot!("man_reload", page.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn page_of_program_is_printed_and_lists_every_subcommand() {
    let page = TestDir::new().run("man").success();
    assert!(page.contains("\n.TH mesos-overlay 8 "), "{page}");
    for subcommand in SUBCOMMANDS {
        let entry = format!("\nmesos\\-overlay\\-{subcommand}(8)\n");
        assert!(page.contains(&entry), "{subcommand}: {page}");
    }
}

#[test]
fn pages_hide_values_of_the_environment() {
    let dir = TestDir::new();
    let secret = "zk://user:password@10.0.0.1/mesos";
    let names = ["MASTER", "STORE", "FROM", "TO", "AGAINST", "LISTEN"];
    let environment = names.map(|name| (format!("MESOS_OVERLAY_{name}"), secret));
    let environment = environment.each_ref().map(|(name, value)| (name.as_str(), *value));
    dir.run_with("man --directory man", &environment, "").success();
    for entry in fs::read_dir(dir.path("man")).unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!page.contains("password@"), "{page}");
    }
}

#[test]
fn unusable_directory_is_an_error() {
    let dir = TestDir::new();
    dir.write("file", "");
    assert_eq!(
        dir.run("man --directory file").failure(),
        "mesos-overlay: write file: File exists (os error 17)\n"
    );
}

//! The files in `packaging` agree with each other, with the repository and with the pages. Tier
//! `packages` builds and installs the packages.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const MANIFEST: &str = include_str!("../Cargo.toml");
const CONTAINERFILE: &str = include_str!("../packaging/Containerfile");
const ALERTS: &str = include_str!("../monitoring/alerts.yml");
const INSTALL_PAGE: &str = include_str!("../docs/install.md");
const DATAPLANE_PAGE: &str = include_str!("../docs/dataplane.md");
const BUILD: &str = include_str!("../packaging/build");
const MASTER_UNIT: &str = include_str!("../packaging/systemd/mesos-overlay-master.service");
const AGENT_UNIT: &str = include_str!("../packaging/systemd/mesos-overlay-agent.service");
const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");

/// A file of a package: its source and its destination.
type Asset = (String, String);

/// Returns the files of the section `[package.metadata.NAME]`.
fn assets(section: &str) -> Vec<Asset> {
    let (_, text) = MANIFEST.split_once(&format!("[package.metadata.{section}]")).unwrap();
    let (text, _) = text.split_once("\n]\n").unwrap();
    let (_, text) = text.split_once("assets = [\n").unwrap();
    // The quoted strings: source, destination and mode.
    let quoted = |line: &str| line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let lines = text.lines().map(quoted).map(|strings: Vec<String>| {
        (strings[0].clone(), strings[1].trim_start_matches('/').to_owned())
    });
    lines.collect()
}

/// Returns whether a path of the repository exists, in which the last component may be a pattern.
fn exists(source: &str) -> bool {
    let Some((directory, pattern)) = source.split_once('*') else {
        return Path::new(source).is_file();
    };
    let mut entries = fs::read_dir(directory).unwrap();
    entries.any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(pattern))
}

#[test]
fn packages_contain_existing_files() {
    for section in ["deb", "generate-rpm"] {
        let assets = assets(section);
        assert!(assets.len() > 15, "{assets:?}");
        // packaging/build makes the files in target.
        let (built, stored): (Vec<Asset>, Vec<Asset>) =
            assets.into_iter().partition(|(source, _)| source.starts_with("target/"));
        for (source, _) in stored {
            assert!(exists(&source), "{section}: {source} is missing");
        }
        for (source, _) in built {
            let name = source.rsplit('/').next().unwrap().replace('*', "man");
            assert!(BUILD.contains(&name), "{section}: packaging/build does not make {source}");
        }
    }
}

#[test]
fn deb_and_rpm_contain_the_same_files() {
    // Debian has own directories for completions of zsh, and for CNI plugins.
    let places = |section: &str| {
        let places = assets(section).into_iter().map(|(source, destination)| {
            let destination = destination.replace("vendor-completions", "site-functions");
            (source, destination.replace("usr/lib/cni/", "usr/libexec/cni/"))
        });
        places.collect::<BTreeSet<_>>()
    };
    assert_eq!(places("deb"), places("generate-rpm"));
}

#[test]
fn scripts_of_packages_are_valid() {
    for directory in ["packaging/debian", "packaging/rpm"] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let output = Command::new("sh").arg("-n").arg(&path).output().unwrap();
            assert!(output.status.success(), "{path:?}: {output:?}");
        }
    }
}

#[test]
fn example_configurations_are_accepted() {
    for path in ["docs/network.json", "packaging/etc/agent.json.example"] {
        let output = Command::new(PROGRAM).args(["check", path]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// Each flag has a variable, which the pages list.
#[test]
fn variables_of_units_and_examples_are_flags() {
    let page = include_str!("../docs/command-line.md");
    let files = [
        MASTER_UNIT,
        AGENT_UNIT,
        include_str!("../packaging/etc/master.env"),
        include_str!("../packaging/etc/agent.env"),
    ];
    let words = files
        .iter()
        .flat_map(|file| file.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_'));
    let variables: BTreeSet<&str> =
        words.filter(|word| word.starts_with("MESOS_OVERLAY_")).collect();
    assert!(variables.len() > 4, "{variables:?}");
    for variable in variables {
        assert!(page.contains(&format!("`{variable}`")), "{variable} is no variable of a flag");
    }
}

#[test]
fn container_image_is_built_from_existing_files() {
    let copies = CONTAINERFILE.lines().filter_map(|line| line.strip_prefix("COPY "));
    let mut sources = Vec::new();
    for copy in copies.filter(|copy| !copy.starts_with("--from=")) {
        let mut words: Vec<&str> = copy.split(' ').collect();
        words.pop();
        sources.extend(words);
    }
    for source in &sources {
        assert!(Path::new(source).exists(), "{source} is missing");
    }
    // The manifest names the crates and the benchmarks, and the sources include files of docs.
    for needed in ["Cargo.toml", "Cargo.lock", "build.rs", "benches", "crates", "docs", "src"] {
        assert!(sources.contains(&needed), "{needed} is not copied");
    }
    let version = MANIFEST.lines().find_map(|line| line.strip_prefix("rust-version = \""));
    let image = format!("rust:{}-", version.unwrap().trim_end_matches('"'));
    assert!(CONTAINERFILE.contains(&image), "the image has another Rust than {image}");
}

/// Returns the words after `systemctl COMMAND` in the quoted commands of a text.
fn units_of_commands(text: &str) -> BTreeSet<&str> {
    let quoted = text.split(['\'', '`', '\n']).map(str::trim);
    let mut units = BTreeSet::new();
    for command in quoted.filter(|quoted| quoted.starts_with("systemctl ")) {
        let words = command.split_whitespace().skip(2).filter(|word| !word.starts_with('-'));
        units.extend(words);
    }
    units
}

#[test]
fn commands_name_units_of_the_packages() {
    let alerts = ALERTS.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [&alerts, INSTALL_PAGE] {
        let units = units_of_commands(text);
        assert!(units.len() > 1, "{units:?}");
        for unit in units.into_iter().filter(|unit| *unit != "prometheus") {
            let path = format!("packaging/systemd/{unit}.service");
            assert!(Path::new(&path).exists(), "{path}");
        }
    }
}

#[test]
fn agent_unit_grants_the_documented_capabilities() {
    let granted = AGENT_UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let granted: Vec<&str> = granted.unwrap().split(' ').collect();
    assert_eq!(granted, ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    let (_, section) = INSTALL_PAGE.split_once("\n### What the services may do\n").unwrap();
    for capability in granted {
        assert!(section.contains(&format!("`{capability}`")), "install.md: {capability}");
        assert!(DATAPLANE_PAGE.contains(&format!("| `{capability}`")), "{capability}");
    }
    assert!(MASTER_UNIT.contains("\nCapabilityBoundingSet=\n"));
}

/// Tier `packages` also verifies the installed units, on every machine.
#[test]
fn units_are_verified_where_systemd_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let verify = |service: &str, unit: &str| {
        let path = directory.path().join(format!("mesos-overlay-{service}.service"));
        fs::write(&path, unit.replace("/usr/bin/mesos-overlay", PROGRAM)).unwrap();
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(path).output()
    };
    for (service, unit) in [("master", MASTER_UNIT), ("agent", AGENT_UNIT)] {
        match verify(service, unit) {
            Ok(output) => {
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}")
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }
    let Ok(output) = verify("agent", &AGENT_UNIT.replace("WatchdogSec", "WatchdogSek")) else {
        return;
    };
    assert!(String::from_utf8_lossy(&output.stderr).contains("WatchdogSek"), "{output:?}");
}

//! The output of `--help` and `--version`, and the errors for wrong usage.

use std::collections::BTreeMap;

use crate::documentation::flags;
use crate::support::{TestDir, program};

pub(crate) const SUBCOMMANDS: [&str; 18] = [
    "master",
    "agent",
    "clean",
    "doctor",
    "bundle",
    "check",
    "plan",
    "status",
    "state",
    "connectivity",
    "ipam",
    "forget",
    "reload",
    "history",
    "export",
    "import",
    "completions",
    "man",
];

/// The subcommands of subcommands.
const NESTED: [&str; 2] = ["ipam show", "ipam check"];

#[test]
fn help_of_every_subcommand_matches_snapshot() {
    for subcommand in SUBCOMMANDS.into_iter().chain(NESTED) {
        let help = TestDir::new().run(&format!("{subcommand} --help")).success();
        // clap fills the lines between paragraphs with spaces.
        let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(format!("help_{}", subcommand.replace(' ', "_")), help);
    }
}

/// The subcommands that have flags, also those of subcommands.
pub(crate) fn all_subcommands() -> impl Iterator<Item = &'static str> {
    SUBCOMMANDS.into_iter().chain(NESTED).chain(["demo"])
}

/// The subcommands that read the configuration of an agent.
const AGENT_CONFIG: [&str; 6] = ["agent", "clean", "doctor", "bundle", "ipam show", "ipam check"];

/// Flags that differ between subcommands: the subcommands in which the flag has another meaning than
/// in the others, and the reason.
const EXCEPTIONS: [(&str, &[&str], &str); 4] = [
    ("--all", &["plan"], "it lists agents, not problems"),
    ("--config", &AGENT_CONFIG, "the file of an agent, not of a master"),
    ("--master", &["agent"], "the agent registers with this master, and sends no HTTP requests"),
    (
        "--agent",
        &["doctor", "bundle", "ipam show", "ipam check"],
        "the address of the agent on this host, not one of all agents",
    ),
];

#[test]
fn same_flag_means_the_same_in_every_subcommand() {
    let mut meanings: BTreeMap<(String, bool), Vec<(&str, Meaning)>> = BTreeMap::new();
    for subcommand in all_subcommands() {
        let help = TestDir::new().run(&format!("{subcommand} --help")).success();
        for (flag, description) in flags(&help) {
            let is_exception = EXCEPTIONS
                .iter()
                .any(|(name, others, _)| *name == flag && others.contains(&subcommand));
            let meaning = meaning(&flag, &description);
            meanings.entry((flag, is_exception)).or_default().push((subcommand, meaning));
        }
    }
    for ((flag, _), all) in &meanings {
        let (first, expected) = &all[0];
        for (subcommand, meaning) in all {
            assert_eq!(meaning, expected, "{flag} of {subcommand} and of {first}");
        }
    }
    let host = ["agent", "clean", "doctor"];
    let docker = ["agent", "clean", "doctor", "ipam show", "ipam check"];
    for (flag, expected) in
        [("--state-dir", &host[..]), ("--docker", &docker), ("--no-docker", &docker)]
    {
        let subcommands: Vec<&str> =
            meanings[&(flag.to_owned(), false)].iter().map(|(subcommand, _)| *subcommand).collect();
        assert_eq!(subcommands, expected, "{flag}");
    }
}

#[test]
fn every_exception_is_necessary() {
    let help = |subcommand: &str| TestDir::new().run(&format!("{subcommand} --help")).success();
    for (flag, subcommands, reason) in EXCEPTIONS {
        let is_listed = |name: &&str| subcommands.contains(name);
        let meaning_in = |subcommand: &str| {
            let all = flags(&help(subcommand)).into_iter();
            all.filter(|(name, _)| name == flag).map(|(name, about)| meaning(&name, &about)).next()
        };
        let others = all_subcommands().filter(|name| !is_listed(name));
        let others: Vec<_> = others.filter_map(meaning_in).collect();
        for subcommand in subcommands {
            let meaning = meaning_in(subcommand).expect(flag);
            assert!(!others.is_empty() && !others.contains(&meaning), "{flag}: {reason}");
        }
    }
}

/// The name of a flag's value, its environment variable, and its first sentence.
type Meaning = [String; 3];

fn meaning(flag: &str, description: &str) -> Meaning {
    let text = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.strip_prefix(flag).unwrap().trim_start_matches("...").trim_start();
    let (value, text) = match text.split_once('>') {
        Some((value, rest)) if text.starts_with(['<', '[']) => {
            (value, rest.trim_start_matches(']'))
        }
        _ => ("", text),
    };
    let (about, rest) = text.split_once(" [env: ").expect("every flag has a variable");
    let variable = rest.split(['=', ']']).next().unwrap();
    let sentence = about.split([';', '.', ':']).next().unwrap();
    [value, variable, sentence.trim()].map(str::to_owned)
}

#[test]
fn help_lists_every_subcommand() {
    let help = TestDir::new().run("--help").success();
    for subcommand in SUBCOMMANDS {
        assert!(help.contains(&format!("\n  {subcommand} ")), "{help}");
    }
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 wrong usage."), "{help}");
}

#[test]
fn version_matches_package() {
    let version = TestDir::new().run("--version").success();
    assert_eq!(version, format!("mesos-overlay {}\n", env!("CARGO_PKG_VERSION")));
    assert!(program().ends_with("mesos-overlay"));
}

#[test]
fn wrong_usage_reports_error_with_exit_code_2() {
    let first_error_line = |arguments: &str| {
        let stderr = TestDir::new().run(arguments).usage_error();
        stderr.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        first_error_line("plan network.json"),
        "error: the following required arguments were not provided:"
    );
    assert_eq!(
        first_error_line("plan network.json --agents 0"),
        "error: invalid value '0' for '--agents <N>': 0 is not in 1..=16777216"
    );
    assert_eq!(first_error_line("chekc network.json"), "error: unrecognized subcommand 'chekc'");
    assert_eq!(
        first_error_line("state --master http://10.0.0.1"),
        "mesos-overlay: --master: 'http://10.0.0.1' is no master: write IP:PORT or NAME:PORT, as in \
         10.0.0.1:5050"
    );
    assert_eq!(
        first_error_line("forget 10.0.0.7 --master zk://user:password@10.0.0.1"),
        "mesos-overlay: --master: names no path in ZooKeeper: write one after the servers, as in \
         zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay"
    );
    assert_eq!(
        first_error_line("clean"),
        "error: the following required arguments were not provided:"
    );
    assert_eq!(
        first_error_line("forget --master 10.0.0.1 10.0.0"),
        "error: invalid value '10.0.0' for '<IP>...': invalid IPv4 address syntax"
    );
    assert_eq!(
        first_error_line("forget --master 10.0.0.1 10.0.0.7 10.0.0.8 10.0.0.7"),
        "mesos-overlay: forget: 10.0.0.7 is given twice: give it once"
    );
}

#[test]
fn output_without_terminal_has_no_color() {
    let dir = TestDir::with_network();
    for arguments in ["--help", "check network.json", "plan network.json --agents 1", "check none"]
    {
        let outcome = dir.run(arguments);
        assert!(!outcome.transcript().contains('\u{1b}'), "{outcome:?}");
    }
}

#[test]
fn help_hides_passwords_from_environment() {
    const SECRET: &str = "zk://user:password@10.0.0.1/mesos";
    let environment = ["MASTER", "STORE", "FROM", "TO", "AGAINST"]
        .map(|name| (format!("MESOS_OVERLAY_{name}"), SECRET));
    let environment = environment.each_ref().map(|(name, secret)| (name.as_str(), *secret));
    for subcommand in SUBCOMMANDS.into_iter().chain(NESTED) {
        let help = TestDir::new().run_with(&format!("{subcommand} --help"), &environment, "");
        assert!(!help.success().contains("password"), "{subcommand}");
    }
}

//! The completions of the shells.

use std::process::Command;

use crate::help::SUBCOMMANDS;
use crate::support::TestDir;

/// Returns what bash offers for the last of these words.
fn bash_offers(script: &str, words: &str) -> String {
    let last = words.split_whitespace().count() - 1;
    let (_, function) = script.split_once(" complete -F ").unwrap();
    let function = function.split(' ').next().unwrap();
    let ask = format!(
        "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; \
         {function} mesos-overlay \"${{COMP_WORDS[{last}]}}\" \
         \"${{COMP_WORDS[{last} - 1]}}\"; echo \"${{COMPREPLY[*]}}\""
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn bash_completes_subcommands_flags_and_values() {
    let script = TestDir::new().run("completions bash").success();
    assert_eq!(bash_offers(&script, "mesos-overlay ma"), "master man");
    assert_eq!(bash_offers(&script, "mesos-overlay agent --cni"), "--cni-dir");
    assert_eq!(bash_offers(&script, "mesos-overlay agent --dataplane v"), "vxlan");
    assert_eq!(bash_offers(&script, "mesos-overlay completions f"), "fish");
}

#[test]
fn zsh_and_fish_complete_every_subcommand() {
    let dir = TestDir::new();
    let zsh = dir.run("completions zsh").success();
    assert!(zsh.starts_with("#compdef mesos-overlay\n"), "{zsh}");
    let fish = dir.run("completions fish").success();
    for subcommand in SUBCOMMANDS {
        assert!(zsh.contains(&format!("\n'{subcommand}:")), "{subcommand}: {zsh}");
        assert!(fish.contains(&format!(" -a \"{subcommand}\" ")), "{subcommand}: {fish}");
    }
}

#[test]
fn unknown_shell_is_wrong_usage() {
    let error = TestDir::new().run("completions tcsh").usage_error();
    assert!(error.contains("[possible values: bash, zsh, fish]"), "{error}");
}

#[test]
fn closed_pipe_is_no_error() {
    let outcome = TestDir::new().run_into_closed_pipe("completions bash");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

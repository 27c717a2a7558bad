//! `mesos-overlay completions`.

use clap::{Args, CommandFactory as _, ValueEnum};

use super::output::Output;
use super::{Cli, Failure, PROGRAM};

/// Print the completions of a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(mesos-overlay completions bash)
  mesos-overlay completions zsh > /usr/local/share/zsh/site-functions/_mesos-overlay
  mesos-overlay completions fish > ~/.config/fish/completions/mesos-overlay.fish

The packages install the completions of all three shells.")]
pub(super) struct CompletionsCommand {
    /// The shell
    shell: Shell,
}

/// A shell for which there are completions.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl CompletionsCommand {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
        let mut script = String::from_utf8(script).expect("clap's texts are UTF-8");
        if shell == clap_complete::Shell::Bash {
            // clap_complete 4.6.12 has two names for the state of a program whose name has a dash:
            // it sets one and compares with the other.
            script = script.replace("mesos__subcmd__overlay", "mesos__overlay");
        }
        let mut output = Output::new();
        output.generated(script.as_bytes())?;
        output.finish()
    }
}

//! `mesos-overlay check`.
//!
//! Problems go to stdout, since they are what was asked for; that there were any is the failure, on
//! stderr.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::host::{counted, name_of, read_text, refused};
use super::http_client::{EffectAnswer, MasterClient, block_on};
use super::output::{Form, Output};
use super::reload;
use super::room::describe;
use crate::config::{Config, Problem, Problems, parse};
use crate::master::Effect;

/// How much of a line is shown around a problem, in characters: a file may be one endless line.
const EXCERPT: usize = 100;
/// Most of it that stands before the problem.
const EXCERPT_BEFORE: usize = 90;

/// Show every problem of a configuration file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay check network.json
  mesos-overlay check agent.json --json
  ssh master cat /etc/mesos/network.json | mesos-overlay check -
  mesos-overlay check network.json --against 10.0.0.1:5050

Takes a network file, a master_config or an agent_config, whichever its keys make it. A warning is about
what is legal but unwise. With --against, a running master tells what the network would do to its agents,
and nothing changes. Exit code 0 without problems, 1 with problems.")]
pub(super) struct CheckCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show what it would do to the agents of this running master, and whether that would refuse it
    #[arg(long, env = "MESOS_OVERLAY_AGAINST", value_name = "IP:PORT")]
    against: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// With `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: &'a str,
    ok: bool,
    /// What the file configures, if it is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    problems: &'a [Problem],
    warnings: &'a [Problem],
}

impl CheckCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let name = name_of(&self.file);
        let text = read_text(&self.file)?;
        let parsed = parse(&name, &text);
        let mut output = Output::new();
        let (summary, problems, warnings) = match &parsed {
            Ok((config, warnings)) => (Some(summary(config)), [].as_slice(), warnings.as_slice()),
            Err(problems) => (None, problems.as_slice(), problems.warnings()),
        };
        let effect = self.effect(&text, &parsed)?;
        if let Some((_, effect)) = &effect
            && self.form.json
        {
            reload::show(&mut output, effect, &self.form)?;
        } else if self.form.json {
            let ok = summary.is_some();
            output.json(&Report { file: &name, ok, summary, problems, warnings })?;
        } else {
            show(&mut output, &text, "", problems)?;
            show(&mut output, &text, "warning: ", warnings)?;
            if let Some(summary) = summary {
                let count = match warnings.len() {
                    0 => String::new(),
                    number => format!("; {}", counted(number as u128, "warning")),
                };
                output.line(format_args!("{name}: ok: {summary}{count}"))?;
            }
        }
        match (&parsed, effect) {
            (Ok(_), None) => output.finish(),
            (Ok(_), Some((master, effect))) => {
                if !self.form.json {
                    reload::show(&mut output, &effect, &self.form)?;
                }
                verdict(output, &name, &master, &effect.effect, &self.form)
            }
            (Err(problems), _) => {
                output.finish()?;
                Err(refused(&name, problems))
            }
        }
    }

    /// What the master says to it, if one is to be asked and there is something to ask.
    fn effect(
        &self,
        text: &str,
        parsed: &Result<(Config, Vec<Problem>), Problems>,
    ) -> Result<Option<(MasterClient, EffectAnswer)>, Failure> {
        let Some(against) = &self.against else {
            return Ok(None);
        };
        let master = MasterClient::of(against, "--against")?;
        match parsed {
            Ok((Config::Master(_), _)) => {
                let effect = block_on(master.preview(text.to_owned()))?;
                Ok(Some((master, effect)))
            }
            Ok((Config::Agent(_), _)) => Err(Failure::usage(
                "check: --against is for a network file or a master_config: this is an agent_config",
            )),
            Err(_) => Ok(None),
        }
    }
}

/// What the master would do, in the last line.
fn verdict(
    mut output: Output,
    name: &str,
    master: &MasterClient,
    effect: &Effect,
    form: &Form,
) -> Result<(), Failure> {
    if !effect.accepted {
        output.finish()?;
        let problems = counted(effect.problems.len() as u128, "problem");
        return Err(Failure::new(format!(
            "{name}: master {master} would refuse it: {problems}: take the change back, or forget the \
             agents"
        )));
    }
    if !form.json {
        let agents = counted(effect.agents.len() as u128, "agent");
        output.line(format_args!("master {master} would take it, and tell {agents}"))?;
    }
    output.finish()
}

fn summary(config: &Config) -> String {
    match config {
        Config::Master(config) => describe(&config.network),
        Config::Agent(config) => {
            let options = &config.options;
            let networks = match (options.mesos_bridge, options.docker_bridge) {
                _ if !options.allocate_subnet => "no container networks",
                (true, true) => "container networks for Mesos and Docker",
                (true, false) => "container networks for Mesos",
                (false, true) => "container networks for Docker",
                (false, false) => "no container networks",
            };
            format!("an agent with {networks}")
        }
    }
}

/// Writes the problems, and under those of one place the line that they are about.
fn show(output: &mut Output, text: &str, mark: &str, problems: &[Problem]) -> Result<(), Failure> {
    let mut lines = text.lines().enumerate();
    let mut current = None;
    let mut problems = problems.iter().peekable();
    while let Some(problem) = problems.next() {
        output.line(Marked { mark, problem })?;
        let Some(place) = problem.place.position() else { continue };
        if problems.peek().is_some_and(|next| next.place == problem.place) {
            continue;
        }
        // Problems come in the order of their lines, so one walk finds them all.
        while current.is_none_or(|(index, _)| index + 1 < place.0) {
            let Some(line) = lines.next() else { break };
            current = Some(line);
        }
        let line = current.filter(|(index, _)| index + 1 == place.0);
        if let Some((_, line)) = line.filter(|(_, line)| !line.trim().is_empty()) {
            output.line(excerpt(line, place))?;
        }
    }
    Ok(())
}

/// A problem with the mark of a warning where compilers have it: behind the place.
struct Marked<'a> {
    mark: &'a str,
    problem: &'a Problem,
}

impl std::fmt::Display for Marked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { place, key, message } = self.problem;
        write!(f, "{place}: {}", self.mark)?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(message)
    }
}

/// The line around the column, harmless to a terminal, with a caret under the column.
fn excerpt(line: &str, (number, column): (usize, usize)) -> String {
    let caret = column.saturating_sub(1);
    let start = (caret + 1).saturating_sub(EXCERPT_BEFORE);
    // One for one, so that the caret stays under its character.
    let plain = |letter: char| match letter {
        '"' | '\'' | '\\' => letter,
        _ if letter.escape_debug().len() > 1 => ' ',
        _ => letter,
    };
    let mut excerpt: String = line.chars().skip(start).take(EXCERPT).map(plain).collect();
    if start > 0 {
        excerpt.insert(0, '…');
    }
    if line.chars().nth(start + EXCERPT).is_some() {
        excerpt.push('…');
    }
    let indent = caret - start + usize::from(start > 0);
    let margin = number.to_string();
    let mut shown = format!("  {margin} | {}\n", excerpt.trim_end());
    write!(shown, "  {:width$} | {:indent$}^", "", "", width = margin.len())
        .expect("a String takes all text");
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_problem() {
        assert_eq!(excerpt("{ \"a\":\t1 }", (12, 8)), "  12 | { \"a\": 1 }\n     |        ^");
    }

    #[test]
    fn of_an_endless_line_the_part_around_the_problem_is_shown() {
        let line = format!("{}X{}", "a".repeat(1000), "b".repeat(1000));
        let shown = excerpt(&line, (1, 1001));
        let (text, caret) = shown.split_once('\n').unwrap();
        let column = caret.chars().position(|letter| letter == '^').unwrap();
        assert_eq!(text.chars().nth(column), Some('X'));
        assert_eq!(text.chars().count(), "  1 | ".len() + EXCERPT + 2);
    }
}

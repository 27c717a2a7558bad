//! `mesos-overlay check`.
//!
//! Problems are the result of this subcommand, so they go to stdout. The failure on stderr only
//! counts them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use overlay_config::{Config, Problem, Problems, parse};
use overlay_engine::master::Effect;
use overlay_types::secret;
use serde::Serialize;

use super::Failure;
use super::capacity::describe;
use super::http_client::{EffectResponse, MasterClient, block_on};
use super::master_address::{CredentialFile, MasterSource};
use super::output::{Output, OutputFormat};
use super::process::{config_refused, display_name, pluralize, read_text};
use super::reload::print_effect;

/// Characters of a line that are shown around a problem: a file may be one endless line.
const EXCERPT: usize = 100;
/// Most characters of the excerpt before the problem.
const EXCERPT_BEFORE: usize = 90;

/// Show every problem of a configuration file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay check network.json
  mesos-overlay check agent.json --json
  ssh master cat /etc/mesos/network.json | mesos-overlay check -
  mesos-overlay check network.json --against 10.0.0.1:5050

Accepts a network file, a master_config or an agent_config, and tells them apart by their keys. A
warning concerns a legal but unwise setting. With --against, a running master reports the effect
of the network on its agents, and nothing changes. Exit code 0 without problems, 1 with problems.")]
pub(super) struct CheckCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show the effect on the agents of this running master, and whether the master would refuse
    /// the file. The value is that of `state --master`
    // The value may contain a password, which the help must not show.
    #[arg(long, env = "MESOS_OVERLAY_AGAINST", hide_env_values = true, value_name = "MASTER")]
    against: Option<String>,
    #[command(flatten)]
    credential: CredentialFile,
    #[command(flatten)]
    format: OutputFormat,
}

/// The output with `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: &'a str,
    ok: bool,
    /// Describes the configuration, if the file is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    problems: &'a [Problem],
    warnings: &'a [Problem],
}

impl CheckCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let name = display_name(&self.file);
        let text = read_text(&self.file)?;
        let parsed = parse(&name, &text);
        let mut output = Output::new();
        let (summary, problems, warnings) = match &parsed {
            Ok((config, warnings)) => (Some(summary(config)), [].as_slice(), warnings.as_slice()),
            Err(problems) => (None, problems.as_slice(), problems.warnings()),
        };
        let preview = self.preview(&text, &parsed)?;
        if let Some((_, response)) = &preview
            && self.format.json
        {
            output.json_text(&String::from_utf8_lossy(&response.body))?;
        } else if self.format.json {
            let ok = summary.is_some();
            output.json(&Report { file: &name, ok, summary, problems, warnings })?;
        } else {
            print_problems(&mut output, &text, "", problems)?;
            print_problems(&mut output, &text, "warning: ", warnings)?;
            if let Some(summary) = summary {
                let count = match warnings.len() {
                    0 => String::new(),
                    number => format!("; {}", pluralize(number as u128, "warning")),
                };
                output.line(format_args!("{name}: ok: {summary}{count}"))?;
            }
        }
        match (&parsed, preview) {
            (Ok(_), None) => output.finish(),
            (Ok(_), Some((master, response))) => {
                if !self.format.json {
                    print_effect(&mut output, &response.effect)?;
                }
                conclude(output, &name, &master, &response.effect, &self.format)
            }
            (Err(problems), _) => {
                output.finish()?;
                Err(config_refused(&name, problems))
            }
        }
    }

    /// Returns the master's preview of a valid network, if `--against` names a master.
    fn preview(
        &self,
        text: &str,
        parsed: &Result<(Config, Vec<Problem>), Problems>,
    ) -> Result<Option<(MasterClient, EffectResponse)>, Failure> {
        let Some(against) = &self.against else {
            return Ok(None);
        };
        let source = MasterSource::from_flag("--against", against)?;
        match parsed {
            Ok((Config::Master(_), _)) => {
                let credential = self.credential.read()?;
                block_on(async {
                    let master = MasterClient::find(&source, credential.as_ref()).await?;
                    let response = master.preview(text.to_owned()).await?;
                    Ok(Some((master, response)))
                })
            }
            Ok((Config::Agent(_), _)) => Err(Failure::usage(
                "check: --against is for a network file or a master_config: this is an \
                 agent_config",
            )),
            Err(_) => Ok(None),
        }
    }
}

/// Prints in the last line whether the master would accept the file.
fn conclude(
    mut output: Output,
    name: &str,
    master: &MasterClient,
    effect: &Effect,
    format: &OutputFormat,
) -> Result<(), Failure> {
    if !effect.accepted {
        output.finish()?;
        let problems = pluralize(effect.problems.len() as u128, "problem");
        return Err(Failure::new(format!(
            "{name}: master {master} would refuse it: {problems}: revert the change, or forget the \
             agents"
        )));
    }
    if !format.json {
        let agents = pluralize(effect.agents.len() as u128, "agent");
        output.line(format_args!("master {master} would accept it, and notify {agents}"))?;
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

/// Writes the problems, and after the last problem of a line the excerpt of that line.
fn print_problems(
    output: &mut Output,
    text: &str,
    severity: &str,
    problems: &[Problem],
) -> Result<(), Failure> {
    let secret_lines = find_secret_lines(text);
    let mut lines = text.lines().enumerate();
    let mut current = None;
    let mut problems = problems.iter().peekable();
    while let Some(problem) = problems.next() {
        output.line(ProblemLine { severity, problem })?;
        let Some(position) = problem.location.position() else { continue };
        if problems.peek().is_some_and(|next| next.location == problem.location) {
            continue;
        }
        // Problems are sorted by line, so one pass over the text finds all lines.
        while current.is_none_or(|(index, _)| index + 1 < position.0) {
            let Some(line) = lines.next() else { break };
            current = Some(line);
        }
        let line = current.filter(|(index, _)| index + 1 == position.0);
        if let Some((index, line)) = line.filter(|(_, line)| !line.trim().is_empty()) {
            if secret_lines.contains(&index) {
                output.line(format_args!(
                    "  {} | (not shown: it may contain a password)",
                    index + 1
                ))?;
            } else {
                output.line(excerpt(line, position))?;
            }
        }
    }
    Ok(())
}

/// Returns the indexes of the lines that may contain a password. A line break may divide an address,
/// so the lines next to a part of one count as well.
fn find_secret_lines(text: &str) -> HashSet<usize> {
    let lines = text.lines().enumerate();
    let found = lines.filter(|(_, line)| secret::may_contain_part(line));
    found.flat_map(|(index, _)| index.saturating_sub(1)..=index + 1).collect()
}

/// A problem with its severity after the position, as compilers print it.
struct ProblemLine<'a> {
    severity: &'a str,
    problem: &'a Problem,
}

impl std::fmt::Display for ProblemLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { location, key, message } = self.problem;
        write!(f, "{location}: {}", self.severity)?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(message)
    }
}

/// Returns the part of the line around the column, without control characters, and a caret under
/// the column.
fn excerpt(line: &str, (number, column): (usize, usize)) -> String {
    let caret = column.saturating_sub(1);
    let start = (caret + 1).saturating_sub(EXCERPT_BEFORE);
    // Replace one character by one, so that the caret stays in its column.
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
    fn excerpt_has_caret_under_problem() {
        assert_eq!(excerpt("{ \"a\":\t1 }", (12, 8)), "  12 | { \"a\": 1 }\n     |        ^");
    }

    #[test]
    fn excerpt_of_long_line_surrounds_problem() {
        let line = format!("{}X{}", "a".repeat(1000), "b".repeat(1000));
        let shown = excerpt(&line, (1, 1001));
        let (text, caret) = shown.split_once('\n').unwrap();
        let column = caret.chars().position(|letter| letter == '^').unwrap();
        assert_eq!(text.chars().nth(column), Some('X'));
        assert_eq!(text.chars().count(), "  1 | ".len() + EXCERPT + 2);
    }
}

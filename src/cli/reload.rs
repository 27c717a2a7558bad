//! `mesos-overlay reload`, and what it has in common with `check --against`: to show what another
//! configuration does.

use clap::Args;

use super::Failure;
use super::host::counted;
use super::http_client::{EffectAnswer, MasterAddress, block_on};
use super::output::{Form, Output, Table, harmless};
use crate::master::{AgentEffect, Effect};

/// Have a running master read its configuration again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay check network.json --against 10.0.0.1:5050
  mesos-overlay reload --master 10.0.0.1:5050

The master reads the file that it was started with, as it does at SIGHUP. If an agent would not be served
what it was promised, the master refuses all of it and goes on as it was. The Mesos module cannot do this:
restart its mesos-master.")]
pub(super) struct ReloadCommand {
    #[command(flatten)]
    master: MasterAddress,
    #[command(flatten)]
    form: Form,
}

impl ReloadCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        let answer = block_on(master.reload())?;
        let mut output = Output::new();
        show(&mut output, &answer, &self.form)?;
        let Effect { accepted, problems, agents, .. } = &answer.effect;
        if *accepted && !self.form.json {
            let agents = counted(agents.len() as u128, "agent");
            output.line(format_args!("master {master}: done: {agents} told"))?;
        }
        output.finish()?;
        if *accepted {
            return Ok(());
        }
        let problems = counted(problems.len() as u128, "problem");
        Err(Failure::new(format!(
            "reload: master {master} refused its configuration and goes on as it was: {problems}"
        )))
    }
}

/// Shows what another configuration does.
pub(super) fn show(output: &mut Output, answer: &EffectAnswer, form: &Form) -> Result<(), Failure> {
    if form.json {
        return output.json_text(&String::from_utf8_lossy(&answer.body));
    }
    let Effect { changes, problems, warnings, agents, .. } = &answer.effect;
    for change in changes {
        output.line(harmless(change))?;
    }
    if !agents.is_empty() {
        print(output, agents)?;
    }
    for warning in warnings {
        output.line(format_args!("warning: {}", harmless(warning)))?;
    }
    for problem in problems {
        output.line(format_args!("problem: {}", harmless(problem)))?;
    }
    Ok(())
}

fn print(output: &mut Output, agents: &[AgentEffect]) -> Result<(), Failure> {
    let mut table = Table::new(&["AGENT", "OF", "BEFORE", "AFTER", "WHEN"]);
    let listed =
        |list: &[String]| list.iter().map(|text| harmless(text)).collect::<Vec<_>>().join("\n");
    for AgentEffect { ip, at_once, addresses } in agents {
        let when = if *at_once { "at once" } else { "when it registers" };
        for one in addresses {
            let (before, after) = (listed(&one.before), listed(&one.after));
            let cells = [ip.to_string(), harmless(&one.of), before, after, when.to_owned()];
            table.row(output, cells)?;
        }
        if addresses.is_empty() {
            let same = "same addresses".to_owned();
            let cells = [ip.to_string(), String::new(), same.clone(), same, when.to_owned()];
            table.row(output, cells)?;
        }
    }
    table.finish(output)
}

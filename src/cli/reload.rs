//! `mesos-overlay reload`, and the output that it shares with `check --against`: the effect of a
//! changed configuration.

use clap::Args;
use overlay_engine::master::{AgentEffect, Effect};

use super::Failure;
use super::http_client::block_on;
use super::master_address::MasterAddress;
use super::output::{Output, OutputFormat, Table, sanitize, sanitize_lines};
use super::process::pluralize;

/// Make a running master read its configuration again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay check network.json --against 10.0.0.1:5050
  mesos-overlay reload --master 10.0.0.1:5050

The master reads the file that it was started with, as at SIGHUP. If an agent would lose
addresses, the master refuses the whole file and continues unchanged. The Mesos module cannot
reload: restart its mesos-master.")]
pub(super) struct ReloadCommand {
    #[command(flatten)]
    master: MasterAddress,
    #[command(flatten)]
    format: OutputFormat,
}

impl ReloadCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        let response = block_on(master.reload())?;
        let effect = &response.effect;
        self.format.print_body(&response.body, |output| {
            print_effect(output, effect)?;
            if effect.accepted {
                let agents = pluralize(effect.agents.len() as u128, "agent");
                output
                    .line(format_args!("master {master}: done: assignments queued for {agents}"))?;
            }
            Ok(())
        })?;
        if effect.accepted {
            return Ok(());
        }
        let problems = pluralize(effect.problems.len() as u128, "problem");
        Err(Failure::new(format!(
            "reload: master {master} refused its configuration and continues unchanged: {problems}"
        )))
    }
}

/// Prints the effect of a changed configuration.
pub(super) fn print_effect(output: &mut Output, effect: &Effect) -> Result<(), Failure> {
    let Effect { changes, problems, warnings, agents, .. } = effect;
    for change in changes {
        output.line(sanitize(change))?;
    }
    if !agents.is_empty() {
        print_agents(output, agents)?;
    }
    output.labelled_lines("warning", warnings)?;
    output.labelled_lines("problem", problems)
}

fn print_agents(output: &mut Output, agents: &[AgentEffect]) -> Result<(), Failure> {
    let mut table = Table::new(&["AGENT", "OF", "BEFORE", "AFTER", "WHEN"]);
    for AgentEffect { ip, at_once, addresses } in agents {
        let when = if *at_once { "at once" } else { "when it registers" };
        for change in addresses {
            let before = sanitize_lines(&change.before);
            let after = sanitize_lines(&change.after);
            let cells = [ip.to_string(), sanitize(&change.of), before, after, when.to_owned()];
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

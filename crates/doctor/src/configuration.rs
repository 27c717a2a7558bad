//! The check of the agent's configuration: which one the other checks use, and which agents run.

use overlay_types::advice::Command;

use super::cause::Topic;
use super::finding::Finding;
use super::observation::{AgentProcess, ConfigSource, Configuration, Observation};

const CHECK: &str = "configuration";

pub(crate) fn check(observation: &Observation) -> Vec<Finding> {
    let Configuration { source, agents, problems } = &observation.configuration;
    let mut findings = vec![match source {
        Some(source) => found(source),
        None => not_found(),
    }];
    for problem in problems {
        let explanation = "the other checks use the defaults instead";
        findings.push(Finding::warning(CHECK, problem, explanation).about(Topic::Configuration));
    }
    findings.extend(ambiguous(source.as_ref(), agents));
    let elsewhere = agents.iter().filter(|agent| !agent.is_here);
    findings.extend(elsewhere.map(|AgentProcess { pid, name, .. }| {
        let summary =
            format!("the agent of process {pid} ({name}) runs in another network namespace");
        let finding = Finding::note(CHECK, summary);
        finding
            .with_advice(format!("to check it, run {}", Command::run_doctor_in_namespace_of(*pid)))
    }));
    findings
}

fn found(source: &ConfigSource) -> Finding {
    match source {
        ConfigSource::Flag(file) | ConfigSource::DefaultPath(file) => Finding::ok(CHECK, file),
        ConfigSource::Agent { pid, file, is_edited: true } => {
            let file = file.as_deref().unwrap_or_default();
            let summary = format!("{file} was changed after the agent of process {pid} started");
            let explanation = "the checks use the file, and the agent its former content";
            let finding = Finding::warning(CHECK, summary, explanation);
            finding.with_advice("restart the agent to apply the file: its containers keep running")
        }
        ConfigSource::Agent { pid, file, is_edited: false } => {
            let file = file.as_deref().unwrap_or("the command line");
            Finding::ok(CHECK, format!("{file}, of the agent of process {pid}"))
        }
    }
}

fn not_found() -> Finding {
    let summary = "no configuration of an agent found: the checks use the defaults";
    let finding = Finding::note(CHECK, summary).about(Topic::Configuration);
    finding.with_advice("name the agent's configuration with --config")
}

/// Returns the finding for several agents in one network namespace.
fn ambiguous(source: Option<&ConfigSource>, agents: &[AgentProcess]) -> Option<Finding> {
    let here: Vec<String> = agents
        .iter()
        .filter(|agent| agent.is_here)
        .map(|agent| format!("{} ({})", agent.pid, agent.name))
        .collect();
    if here.len() < 2 {
        return None;
    }
    let summary = format!("several agents run on this host: processes {}", here.join(", "));
    let finding = Finding::warning(CHECK, summary, "one agent at a time programs a host");
    let examined = match source {
        Some(ConfigSource::Agent { pid, .. }) => format!("process {pid} is checked: "),
        _ => String::new(),
    };
    Some(finding.with_advice(format!(
        "{examined}name another one with --config and --agent, and stop the agents that this host \
         does not need"
    )))
}

//! The check of the agent's configuration: which one the other checks use, and which agents run.

use overlay_types::advice::Command;
use overlay_types::text::pluralize;

use super::cause::Topic;
use super::finding::Finding;
use super::observation::{AgentProcess, ConfigSource, Configuration, Observation};

const CHECK: &str = "configuration";
/// Most processes that are named. Every user can start any number.
const NAMED_MAX: usize = 8;

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
    findings.extend(untrusted(source.as_ref(), agents));
    let elsewhere: Vec<_> = agents.iter().filter(|agent| !agent.is_here).collect();
    findings.extend(elsewhere.iter().take(NAMED_MAX).map(|AgentProcess { pid, name, .. }| {
        let summary =
            format!("the agent of process {pid} ({name}) runs in another network namespace");
        let finding = Finding::note(CHECK, summary);
        finding
            .with_advice(format!("to check it, run {}", Command::run_doctor_in_namespace_of(*pid)))
    }));
    if let Some(more) = more_than_named(elsewhere.len()) {
        let summary = format!("{more} in other network namespaces");
        findings.push(Finding::note(CHECK, summary));
    }
    findings
}

/// Names the processes that look like an agent of this host and are not trusted.
fn untrusted(source: Option<&ConfigSource>, agents: &[AgentProcess]) -> Vec<Finding> {
    const EXPLANATION: &str = "the checks use neither its configuration nor its address";

    // The operator knows the agent.
    let is_named = matches!(source, Some(ConfigSource::Flag(_)));
    let finding = |summary: String| match is_named {
        true => Finding::note(CHECK, summary),
        false => Finding::warning(CHECK, summary, EXPLANATION),
    };
    let untrusted = agents.iter().filter(|agent| agent.is_here);
    let untrusted: Vec<_> = untrusted
        .filter_map(|agent| agent.distrust.as_ref().map(|reason| (agent, reason)))
        .collect();
    let named = untrusted.iter().take(NAMED_MAX).map(|(AgentProcess { pid, name, .. }, reason)| {
        let summary =
            format!("process {pid} ({name}) looks like an agent and is not trusted: {reason}");
        finding(summary).with_advice(
            "if it is the agent of this host, name its configuration with --config and its \
             address with --agent",
        )
    });
    let mut findings: Vec<Finding> = named.collect();
    if let Some(more) = more_than_named(untrusted.len()) {
        findings.push(finding(format!("{more} that are not trusted")));
    }
    findings
}

/// Counts the processes that are not named; `None` if all are.
fn more_than_named(count: usize) -> Option<String> {
    let more = count.checked_sub(NAMED_MAX).filter(|more| *more > 0)?;
    Some(pluralize(more as u128, "more agent"))
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
        .filter(|agent| agent.is_agent_here())
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

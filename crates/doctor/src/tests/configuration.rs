//! Tests of processes that look like an agent.

use super::*;

#[test]
fn untrusted_process_is_named_with_flags_for_agent() {
    let reason = "it runs as user 1000";
    let summary =
        format!("process 666 (mesos-overlay) looks like an agent and is not trusted: {reason}");
    let advice = [(
        "do",
        "if it is the agent of this host, name its configuration with --config and its address \
         with --agent",
    )];
    let source = Some(ConfigSource::Agent { pid: 7, file: None, is_edited: false });
    let with_source = |source: Option<ConfigSource>| {
        findings_after(|observation| {
            observation.configuration = Configuration {
                source,
                agents: vec![
                    process(7, "mesos-overlay", true, None),
                    process(666, "mesos-overlay", true, Some(reason)),
                ],
                problems: Vec::new(),
            };
        })
    };
    let unused = "the checks use neither its configuration nor its address";
    let expected = lines("warning", "configuration", &format!("{summary}: {unused}"), &advice);
    let found = with_source(source);
    assert!(found.ends_with(&expected), "{found}");
    // The operator has named the configuration.
    let source = Some(ConfigSource::Flag("agent.json".to_owned()));
    assert_eq!(with_source(source), lines("note", "configuration", &summary, &advice));
}

#[test]
fn many_untrusted_processes_are_counted() {
    let mut observation = fresh_host();
    let untrusted = (1..=500).map(|pid| process(pid, "mesos-overlay", true, Some("x")));
    let elsewhere = (501..=1000).map(|pid| process(pid, "mesos-overlay", false, Some("x")));
    observation.configuration.agents = untrusted.chain(elsewhere).collect();
    let report = Report::new(check(&observation), &observation);
    let text = report.lines().join("\n");
    assert_eq!(text.matches("is not trusted: x").count(), 8, "{text}");
    assert!(text.contains("492 more agents that are not trusted"), "{text}");
    assert_eq!(text.matches("runs in another network namespace").count(), 8, "{text}");
    assert!(text.contains("492 more agents in other network namespaces"), "{text}");
    assert!(!text.contains("several agents"), "{text}");
}

#[test]
fn withheld_credential_is_explained() {
    let text = findings_after(|observation| {
        let status = "401 Unauthorized".to_owned();
        observation.agent.answer = Err(AgentQueryError::CredentialWithheld(status));
    });
    let summary = "the server at 127.0.0.1:5051 requires a credential (401 Unauthorized): it did \
                   not get the credential, since no trusted agent runs with this address";
    let advice = "if it is the agent of this host, give the address as --agent";
    assert!(text.starts_with(&lines("warning", "agent", summary, &[("do", advice)])), "{text}");
}

//! The summary of made-up answers.

use std::net::Ipv4Addr;

use super::query::{AgentQuery, Answers, Cause, NamedPeer, RoundTrips};
use super::summary::{Summary, Totals};

fn agent(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

/// The answer of an agent with so many peers, of which these fail.
fn answer(peers: u64, failing: &[u32]) -> AgentQuery {
    let named = failing.iter().map(|number| NamedPeer {
        agent: agent(*number).into(),
        cause: Some(Cause("no answer")),
        lost: 8,
    });
    let count = failing.len() as u64;
    AgentQuery {
        status: "ok".to_owned(),
        peers,
        ok: peers - count,
        failing: count,
        named: named.collect(),
        round_trip_microseconds: Some(RoundTrips { min: 100, median: 2_000, max: 30_450 }),
        ..AgentQuery::default()
    }
}

fn summary(answers: &Answers) -> Summary {
    let agents: Vec<Ipv4Addr> = answers.keys().copied().collect();
    Summary::new(&agents, answers)
}

fn lines(summary: &Summary) -> Vec<String> {
    summary.broken.iter().map(ToString::to_string).collect()
}

#[test]
fn connected_cluster_has_only_ok_pairs() {
    let answers: Answers = (1..=3).map(|number| (agent(number), Ok(answer(2, &[])))).collect();
    let summary = summary(&answers);
    assert_eq!(summary.pairs, Totals { ok: 6, ..Totals::default() });
    assert_eq!(summary.latency_microseconds.map(|times| times.median), Some(2_000));
    assert_eq!((summary.answered, lines(&summary)), (3, Vec::new()));
}

#[test]
fn agent_that_nobody_reaches_is_one_line() {
    let mut answers: Answers =
        (1..=12).map(|number| (agent(number), Ok(answer(12, &[13])))).collect();
    let all: Vec<u32> = (1..=12).collect();
    answers.insert(agent(13), Ok(answer(12, &all)));
    let both = summary(&answers);
    assert_eq!(
        lines(&both),
        ["10.0.0.13: unreachable from 12 of 12, does not reach 12 of 12: no answer"]
    );
    assert_eq!(both.pairs, Totals { ok: 132, broken: 24, ..Totals::default() });
    answers.insert(agent(13), Err("connection refused".to_owned()));
    let unasked = summary(&answers);
    assert_eq!(lines(&unasked), ["10.0.0.13: unreachable from 12 of 12: no answer"]);
    assert_eq!(unasked.pairs.unknown, 12);
    assert_eq!(unasked.unasked[0].agents, [agent(13)]);
    answers.insert(agent(13), Ok(answer(12, &[])));
    assert_eq!(lines(&summary(&answers)), ["10.0.0.13: unreachable from 12 of 12: no answer"]);
    let mut silent: Answers = (1..=12).map(|number| (agent(number), Ok(answer(12, &[])))).collect();
    silent.insert(agent(13), Ok(answer(12, &all)));
    assert_eq!(lines(&summary(&silent)), ["10.0.0.13: does not reach 12 of 12: no answer"]);
}

#[test]
fn single_pairs_and_lossy_pairs_are_named() {
    let mut answers: Answers = (1..=4).map(|number| (agent(number), Ok(answer(3, &[])))).collect();
    answers.insert(agent(1), Ok(answer(3, &[2])));
    let mut lossy = answer(3, &[]);
    let peer = |number, lost| NamedPeer { agent: agent(number).into(), cause: None, lost };
    (lossy.ok, lossy.lossy, lossy.named) = (1, 2, vec![peer(3, 1), peer(1, 4)]);
    answers.insert(agent(4), Ok(lossy));
    let summary = summary(&answers);
    assert_eq!(lines(&summary), ["10.0.0.1 -> 10.0.0.2: no answer (8 of the last 8 probes lost)"]);
    let lossy: Vec<String> = summary.lossy.iter().map(ToString::to_string).collect();
    assert_eq!(
        lossy,
        [
            "10.0.0.4 -> 10.0.0.1: lossy (4 of the last 8 probes lost)",
            "10.0.0.4 -> 10.0.0.3: lossy (1 of the last 8 probes lost)",
        ]
    );
    assert_eq!(summary.pairs, Totals { ok: 9, lossy: 2, broken: 1, unknown: 0 });
}

#[test]
fn agents_of_large_cluster_are_grouped_although_lists_are_short() {
    // The first 500 agents reach nobody. Each agent names 256 of those that it does not reach.
    let mut answers = Answers::new();
    for number in 0..1000 {
        let is_broken = number < 500;
        let failing: Vec<u32> = (0..300).filter(|other| *other != number).take(256).collect();
        let mut found = answer(999, &failing);
        found.failing = if is_broken { 999 } else { 500 };
        found.ok = 999 - found.failing;
        answers.insert(agent(number), Ok(found));
    }
    let summary = summary(&answers);
    assert_eq!(summary.pairs.broken, 500 * 999 + 500 * 500);
    assert_eq!(summary.broken.len(), 500, "one line for each broken agent");
    assert!(lines(&summary)[0].starts_with("10.0.0.0: unreachable from 999 of 999"));
}

#[test]
fn latency_is_shown_in_milliseconds() {
    assert_eq!(super::milliseconds(87), "0.08 ms");
    assert_eq!(super::milliseconds(30_450), "30.45 ms");
}

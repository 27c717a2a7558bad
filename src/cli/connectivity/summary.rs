//! Counts the pairs of agents, and groups those that are broken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::query::{AgentQuery, Answers, Cause, RoundTrips};

/// The connectivity of a cluster, and the output with `--json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) agents: usize,
    pub(super) answered: usize,
    pub(super) pairs: Totals,
    /// The smallest time of all pairs, the median of the agents' medians, and the largest time.
    pub(super) latency_microseconds: Option<RoundTrips>,
    /// The broken pairs: first agents with many of them, then single pairs.
    pub(super) broken: Vec<Broken>,
    pub(super) lossy: Vec<LossyPair>,
    /// The agents without an answer, by the reason.
    pub(super) unasked: Vec<Unasked>,
}

/// Numbers of ordered pairs: an agent, and one of its peers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    pub(super) ok: u64,
    /// Pairs that answer, but did not at one of the last 8 probes.
    pub(super) lossy: u64,
    /// Pairs whose probes fail, as a whole or in part.
    pub(super) broken: u64,
    /// Pairs that were not probed, or whose agent was not asked.
    pub(super) unknown: u64,
}

/// Broken pairs that are shown in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Broken {
    /// An agent with several broken pairs.
    Agent {
        agent: IpAddr,
        /// The agents that do not reach it, of `probed_by` that answered.
        unreachable_from: u64,
        probed_by: u64,
        /// The peers that it does not reach, of `peers`. `None` if it was not asked.
        does_not_reach: Option<u64>,
        peers: u64,
        /// The most frequent cause.
        cause: String,
    },
    /// One pair.
    Pair { from: Ipv4Addr, to: IpAddr, cause: String, lost: u32 },
}

/// A pair that answers, but not always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct LossyPair {
    pub(super) from: Ipv4Addr,
    pub(super) to: IpAddr,
    /// Unanswered visits of the last 8.
    pub(super) lost: u32,
}

/// Agents that did not answer for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Unasked {
    pub(super) reason: String,
    pub(super) agents: Vec<Ipv4Addr>,
}

/// A broken pair.
#[derive(Debug, Clone)]
struct Pair {
    from: Ipv4Addr,
    to: IpAddr,
    cause: &'static str,
    lost: u32,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { agent, unreachable_from, probed_by, does_not_reach, peers, cause } => {
                let from = format!("unreachable from {unreachable_from} of {probed_by}");
                let to = does_not_reach.map(|count| format!("does not reach {count} of {peers}"));
                match (unreachable_from, to) {
                    (0, Some(to)) => write!(f, "{agent}: {to}: {cause}"),
                    (_, Some(to)) if *does_not_reach != Some(0) => {
                        write!(f, "{agent}: {from}, {to}: {cause}")
                    }
                    _ => write!(f, "{agent}: {from}: {cause}"),
                }
            }
            Self::Pair { from, to, cause, lost } => {
                write!(f, "{from} -> {to}: {cause} ({lost} of the last 8 probes lost)")
            }
        }
    }
}

impl fmt::Display for LossyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, lost } = self;
        write!(f, "{from} -> {to}: lossy ({lost} of the last 8 probes lost)")
    }
}

impl Summary {
    pub(super) fn new(agents: &[Ipv4Addr], answers: &Answers) -> Self {
        let answered =
            || answers.iter().filter_map(|(ip, answer)| Some((*ip, answer.as_ref().ok()?)));
        let expected = agents.len().saturating_sub(1) as u64;
        let mut pairs = Totals::default();
        for (_, answer) in answered() {
            let AgentQuery { ok, lossy, failing, .. } = answer;
            pairs.ok += ok;
            pairs.lossy += lossy;
            pairs.broken += failing;
        }
        let all = expected * agents.len() as u64;
        pairs.unknown = all.saturating_sub(pairs.ok + pairs.lossy + pairs.broken);
        Self {
            agents: agents.len(),
            answered: answered().count(),
            pairs,
            latency_microseconds: latency(answered().map(|(_, answer)| answer)),
            broken: group(answers),
            lossy: lossy_pairs(answers),
            unasked: unasked(answers),
        }
    }
}

fn latency<'a>(answers: impl Iterator<Item = &'a AgentQuery>) -> Option<RoundTrips> {
    let times: Vec<RoundTrips> =
        answers.filter_map(|answer| answer.round_trip_microseconds).collect();
    let mut medians: Vec<u64> = times.iter().map(|times| times.median).collect();
    medians.sort_unstable();
    Some(RoundTrips {
        min: times.iter().map(|times| times.min).min()?,
        median: *medians.get(medians.len() / 2)?,
        max: times.iter().map(|times| times.max).max()?,
    })
}

fn lossy_pairs(answers: &Answers) -> Vec<LossyPair> {
    let mut pairs = Vec::new();
    for (from, answer) in answers {
        let named = answer.iter().flat_map(|answer| &answer.named);
        let lossy = named.filter(|peer| peer.cause.is_none());
        pairs.extend(lossy.map(|peer| LossyPair { from: *from, to: peer.agent, lost: peer.lost }));
    }
    pairs.sort_by_key(|pair| Reverse(pair.lost));
    pairs
}

fn unasked(answers: &Answers) -> Vec<Unasked> {
    let mut by_reason: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
    for (agent, answer) in answers {
        if let Err(reason) = answer {
            by_reason.entry(reason).or_default().push(*agent);
        }
    }
    let unasked =
        by_reason.into_iter().map(|(reason, agents)| Unasked { reason: reason.to_owned(), agents });
    let mut unasked: Vec<Unasked> = unasked.collect();
    unasked.sort_by_key(|unasked| Reverse(unasked.agents.len()));
    unasked
}

/// The broken pairs of one agent that no line shows yet.
#[derive(Debug, Default)]
struct Degree {
    /// Indices of the pairs that begin or end at the agent.
    pairs: Vec<usize>,
    /// Number of them that no line shows.
    open: u64,
    /// Number of the peers that the agent does not reach and does not name.
    unnamed: u64,
}

/// Groups the broken pairs: the agent with the most pairs gets a line, and its pairs count for no
/// other agent, until each remaining agent has one pair at most.
fn group(answers: &Answers) -> Vec<Broken> {
    let pairs = broken_pairs(answers);
    let mut degrees: BTreeMap<IpAddr, Degree> = BTreeMap::new();
    for (index, pair) in pairs.iter().enumerate() {
        for agent in BTreeSet::from([IpAddr::V4(pair.from), pair.to]) {
            let degree = degrees.entry(agent).or_default();
            degree.pairs.push(index);
            degree.open += 1;
        }
    }
    // The pairs that an agent does not name count too.
    for (agent, answer) in answers.iter().filter_map(|(ip, it)| Some((ip, it.as_ref().ok()?))) {
        let named = answer.named.iter().filter(|peer| peer.cause.is_some()).count() as u64;
        if let Some(degree) = degrees.get_mut(&IpAddr::V4(*agent)) {
            degree.unnamed = answer.failing.saturating_sub(named);
        }
    }
    let mut is_shown = vec![false; pairs.len()];
    let mut broken = Vec::new();
    let rank = |(ip, degree): &(&IpAddr, &Degree)| (degree.open + degree.unnamed, Reverse(**ip));
    while let Some((&agent, degree)) = degrees.iter().max_by_key(rank) {
        if degree.open + degree.unnamed < 2 {
            break;
        }
        let Some(degree) = degrees.remove(&agent) else { break };
        let of_agent = degree.pairs.iter().map(|index| &pairs[*index]);
        broken.push(line_of(agent, of_agent, answers));
        // A broken agent is probably one of those that the others do not name.
        degrees.values_mut().for_each(|other| other.unnamed = other.unnamed.saturating_sub(1));
        for index in degree.pairs {
            if !std::mem::replace(&mut is_shown[index], true) {
                let Pair { from, to, .. } = &pairs[index];
                for other in [IpAddr::V4(*from), *to] {
                    if let Some(other) = degrees.get_mut(&other) {
                        other.open = other.open.saturating_sub(1);
                    }
                }
            }
        }
    }
    let single = pairs.into_iter().zip(is_shown).filter(|(_, is_shown)| !is_shown);
    broken.extend(single.map(|(Pair { from, to, cause, lost }, _)| Broken::Pair {
        from,
        to,
        cause: cause.to_owned(),
        lost,
    }));
    broken
}

fn broken_pairs(answers: &Answers) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (from, answer) in answers {
        for peer in answer.iter().flat_map(|answer| &answer.named) {
            if let Some(Cause(cause)) = peer.cause {
                pairs.push(Pair { from: *from, to: peer.agent, cause, lost: peer.lost });
            }
        }
    }
    pairs
}

fn line_of<'a>(agent: IpAddr, pairs: impl Iterator<Item = &'a Pair>, answers: &Answers) -> Broken {
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unreachable_from = 0;
    for pair in pairs {
        *causes.entry(pair.cause).or_default() += 1;
        unreachable_from += u64::from(pair.to == agent);
    }
    let own = match agent {
        IpAddr::V4(ip) => answers.get(&ip).and_then(|answer| answer.as_ref().ok()),
        IpAddr::V6(_) => None,
    };
    let all = answers.values().filter(|answer| answer.is_ok()).count() as u64;
    let cause = causes.into_iter().max_by_key(|(_, count)| *count).map(|(cause, _)| cause);
    Broken::Agent {
        agent,
        unreachable_from,
        probed_by: all.saturating_sub(u64::from(own.is_some())),
        does_not_reach: own.map(|own| own.failing),
        peers: own.map(|own| own.peers).unwrap_or_default(),
        cause: cause.unwrap_or_default().to_owned(),
    }
}

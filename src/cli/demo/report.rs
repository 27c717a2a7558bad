//! The output of the demo, as text and as JSON.

use std::net::Ipv4Addr;

use overlay_types::protocol::{State, Status};
use overlay_wire as wire;
use serde::Serialize;
use serde_json::value::RawValue;

use super::cluster::CniFiles;
use super::containers::Container;
use super::diagram::COLUMNS_MAX;
use super::hosts::UPLINK;
use super::matrix::{self, Ping};
use super::{DemoResult, diagram};
use crate::cli::output::Output;
use crate::cli::process::pluralize;
use crate::cli::state::{print_agents, unix_now};
use crate::cli::{Failure, color};

/// The output with `--json`.
#[derive(Serialize)]
pub(super) struct Json<'a> {
    /// The state that the master shows.
    state: Box<RawValue>,
    /// The CNI configurations of each agent, by the names of their files.
    cni: &'a CniFiles,
    /// Why the agents are on loopback addresses; `None` if each has a host.
    loopback: Option<&'a str>,
    containers: &'a [Container],
    pings: &'a [Ping],
}

/// Returns the report for `--json`.
pub(super) fn json(result: &DemoResult) -> Result<Json<'_>, Failure> {
    let state = wire::print_json(&wire::encode_state(&result.state));
    let state = RawValue::from_string(state)
        .map_err(|error| Failure::new(format!("print the state: {error}")))?;
    Ok(Json {
        state,
        cni: &result.cni,
        loopback: result.environment.obstacle.as_deref(),
        containers: &result.containers,
        pings: &result.pings,
    })
}

pub(super) fn print(output: &mut Output, result: &DemoResult) -> Result<(), Failure> {
    print_agents(output, &result.state, None, unix_now())?;
    output.line("")?;
    match &result.environment.obstacle {
        None => print_hosts(output, result)?,
        Some(reason) => print_loopback(output, result, reason)?,
    }
    output.line(&result.environment.next_steps)
}

fn print_hosts(output: &mut Output, result: &DemoResult) -> Result<(), Failure> {
    let mut hosts = Vec::new();
    for agent in &result.state.agents {
        let containers = result.containers.iter().filter(|container| container.agent == agent.ip);
        let containers: Vec<&Container> = containers.collect();
        if let Some(vtep) = agent.overlays.first().map(|overlay| &overlay.vtep)
            && !containers.is_empty()
        {
            let (vtep, vtep_ip) = (vtep.device.to_string(), vtep.ip.to_string());
            hosts.push(diagram::Host { ip: agent.ip, uplink: UPLINK, vtep, vtep_ip, containers });
        }
    }
    let omitted = result.state.agents.len() - hosts.len();
    for line in diagram::draw(&hosts, result.master, omitted) {
        output.line(line)?;
    }
    output.line("")?;
    output.line(wrap(&format!("Containers {}.", result.network_setup.describe())))?;
    if !result.environment.has_firewall {
        output.line("Without firewall rules: there is no nft, or this kernel has no nftables.")?;
    }
    output.line("Round-trip times in ms, the slower of a small and a full-size ping:\n")?;
    let containers = result.containers.iter();
    let addresses: Vec<(&str, Ipv4Addr)> =
        containers.map(|container| (container.name.as_str(), container.address)).collect();
    for line in matrix::draw(&addresses, &result.pings) {
        output.painted_line(line, |line| color::paint_word(line, matrix::LOST))?;
    }
    output.line("")?;
    matrix::summary(&result.pings).iter().try_for_each(|line| output.line(wrap(line)))
}

fn print_loopback(output: &mut Output, result: &DemoResult, reason: &str) -> Result<(), Failure> {
    for (ip, files) in &result.cni {
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        let names = names.join(", ");
        output.line(wrap(&format!("agent {ip} wrote the CNI configurations {names}")))?;
    }
    if let Some((name, content)) = result.cni.values().flatten().next() {
        output.line(format_args!("\n{name} of the first agent:\n{}\n", wrap_json(content)))?;
    }
    output.line(wrap(&format!("On loopback addresses, without hosts and containers: {reason}")))
}

/// Wraps a text after words, for a terminal of 80 columns. A command in quotes stays on one line, so
/// that it can be copied.
fn wrap(text: &str) -> String {
    let mut quotes = 0;
    let words = text.split_inclusive(|letter| {
        quotes += u8::from(letter == '\'');
        letter == ' ' && quotes % 2 == 0
    });
    fill(words)
}

/// Wraps JSON after commas. Strings with commas would be wrapped too: CNI configurations have none.
fn wrap_json(text: &str) -> String {
    fill(text.split_inclusive(','))
}

/// Joins pieces into lines of at most 80 columns.
fn fill<'a>(pieces: impl Iterator<Item = &'a str>) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for piece in pieces {
        let width = piece.trim_end().chars().count();
        if column > 0 && column + width > COLUMNS_MAX {
            text.truncate(text.trim_end().len());
            text.push('\n');
            column = 0;
        }
        text += piece;
        column += piece.chars().count();
    }
    text
}

/// Fails if an overlay failed or a ping had no reply.
pub(super) fn require_success(state: &State, pings: &[Ping]) -> Result<(), Failure> {
    let overlays = state.agents.iter().flat_map(|agent| &agent.overlays);
    let failed =
        overlays.filter(|overlay| matches!(overlay.status, Some(Status::Failed(_)))).count();
    if failed > 0 {
        let failed = pluralize(failed as u128, "overlay");
        return Err(Failure::new(format!(
            "{failed} of agents failed: see the column STATUS, or 'state' of --json"
        )));
    }
    let lost = pings.iter().filter(|ping| ping.error.is_some()).count();
    if lost > 0 {
        return Err(Failure::new(format!(
            "{lost} of {} pings had no reply: see the lines above, or run it with --log debug",
            pings.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::NETWORK;
    use super::*;

    #[test]
    fn wrapped_text_keeps_quoted_command_on_one_line() {
        let reason = "On loopback addresses, without hosts and containers: create a network \
                      namespace: denied: run it as root, or after 'sysctl -w user.max=10000'";
        assert_eq!(
            wrap(reason),
            "On loopback addresses, without hosts and containers: create a network namespace:\n\
             denied: run it as root, or after 'sysctl -w user.max=10000'"
        );
    }

    #[test]
    fn lost_ping_fails_demo() {
        let ping = |error: Option<&str>| Ping {
            from: "c1".to_owned(),
            to: "c2".to_owned(),
            bytes: 1420,
            microseconds: error.is_none().then_some(50),
            error: error.map(str::to_owned),
        };
        let (config, _) = overlay_config::parse_master("network.json", NETWORK).unwrap();
        let state = State {
            network: config.network.into(),
            agents: Vec::new(),
            contacts: BTreeMap::new(),
            peer_failures: BTreeMap::new(),
            address_counts: BTreeMap::new(),
            principals: BTreeMap::new(),
        };
        assert!(require_success(&state, &[ping(None), ping(None)]).is_ok());
        let failure = require_success(&state, &[ping(None), ping(Some("no reply within 1s"))]);
        assert_eq!(
            failure.unwrap_err().to_string(),
            "1 of 2 pings had no reply: see the lines above, or run it with --log debug"
        );
    }
}

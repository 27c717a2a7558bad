//! What the demo came to, for people and for programs.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::value::RawValue;

use super::Shown;
use super::cluster::CniFiles;
use super::containers::Container;
use super::hosts::UPLINK;
use super::matrix::{self, Ping};
use super::picture;
use crate::cli::Failure;
use crate::cli::output::Output;
use crate::cli::state::print_agents;
use crate::protocol::{State, Status};
use crate::wire;

#[derive(Serialize)]
struct Json<'a> {
    /// As the master shows it.
    state: Box<RawValue>,
    /// The CNI configurations of each agent, by the names of their files.
    cni: &'a CniFiles,
    /// Why the agents are on loopback addresses; nothing if each has a host.
    loopback: Option<&'a str>,
    containers: &'a [Container],
    pings: &'a [Ping],
}

pub(super) fn print_json(output: &mut Output, shown: &Shown) -> Result<(), Failure> {
    let state = wire::print_json(&wire::encode_state(&shown.state));
    let state = RawValue::from_string(state)
        .map_err(|error| Failure::new(format!("print the state: {error}")))?;
    output.json(&Json {
        state,
        cni: &shown.cni,
        loopback: shown.ground.obstacle.as_deref(),
        containers: &shown.containers,
        pings: &shown.pings,
    })
}

pub(super) fn print(output: &mut Output, shown: &Shown) -> Result<(), Failure> {
    print_agents(output, &shown.state, false, None)?;
    output.line("")?;
    match &shown.ground.obstacle {
        None => print_hosts(output, shown)?,
        Some(why) => print_loopback(output, shown, why)?,
    }
    output.line(FOR_REAL)
}

fn print_hosts(output: &mut Output, shown: &Shown) -> Result<(), Failure> {
    let mut hosts = Vec::new();
    for agent in &shown.state.agents {
        let on_it = shown.containers.iter().filter(|container| container.agent == agent.ip);
        let containers: Vec<&Container> = on_it.collect();
        if let Some(vtep) = agent.overlays.first().map(|overlay| &overlay.vtep)
            && !containers.is_empty()
        {
            let (vtep, vtep_ip) = (vtep.device.to_string(), vtep.ip.to_string());
            hosts.push(picture::Host { ip: agent.ip, uplink: UPLINK, vtep, vtep_ip, containers });
        }
    }
    let others = shown.state.agents.len() - hosts.len();
    for line in picture::draw(&hosts, shown.master, others) {
        output.line(line)?;
    }
    output.line(format_args!("\nContainers {}.", shown.maker.describe()))?;
    if !shown.ground.has_firewall {
        output.line("Without firewall rules: there is no nft, or this kernel has no nftables.")?;
    }
    output.line("How long a ping takes, in ms, of a small and a full-size one the slower:\n")?;
    let named: Vec<(&str, Ipv4Addr)> =
        shown.containers.iter().map(|it| (it.name.as_str(), it.address)).collect();
    for line in matrix::draw(&named, &shown.pings) {
        output.line(line)?;
    }
    output.line("")?;
    matrix::summary(&shown.pings).into_iter().try_for_each(|line| output.line(line))
}

fn print_loopback(output: &mut Output, shown: &Shown, why: &str) -> Result<(), Failure> {
    for (ip, files) in &shown.cni {
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        output
            .line(format_args!("agent {ip} wrote the CNI configurations {}", names.join(", ")))?;
    }
    if let Some((name, content)) = shown.cni.values().flatten().next() {
        output.line(format_args!("\n{name} of the first agent:\n{content}\n"))?;
    }
    output.line(format_args!("On loopback addresses, without hosts and containers: {why}"))
}

/// A failure if not everything works.
pub(super) fn verdict(state: &State, pings: &[Ping]) -> Result<(), Failure> {
    let overlays = state.agents.iter().flat_map(|agent| &agent.overlays);
    let failed = overlays.filter(|it| matches!(it.status, Some(Status::Failed(_)))).count();
    if failed > 0 {
        return Err(Failure::new(format!(
            "{failed} overlays of agents failed: see the column STATUS, or 'state' of --json"
        )));
    }
    let lost = pings.iter().filter(|ping| ping.error.is_some()).count();
    if lost > 0 {
        return Err(Failure::new(format!(
            "{lost} of {} pings had no answer: see which above, or run it with --log debug",
            pings.len()
        )));
    }
    Ok(())
}

const FOR_REAL: &str = "
All of it is gone again. To run it for real:
  mesos-overlay master --config docs/network.json              on a master
  mesos-overlay agent --master 10.0.0.1:5050 \\
                      --cni-dir /var/lib/mesos/cni             on every agent
  mesos-overlay state --master 10.0.0.1:5050                   to see who has what";

#[cfg(test)]
mod tests {
    use super::super::NETWORK;
    use super::*;

    #[test]
    fn one_lost_ping_is_a_failure() {
        let ping = |error: Option<&str>| Ping {
            from: "c1".to_owned(),
            to: "c2".to_owned(),
            bytes: 1420,
            microseconds: error.is_none().then_some(50),
            error: error.map(str::to_owned),
        };
        let (config, _) = crate::config::parse_master("network.json", NETWORK).unwrap();
        let state = State { network: config.network.into(), agents: Vec::new() };
        assert!(verdict(&state, &[ping(None), ping(None)]).is_ok());
        let failure = verdict(&state, &[ping(None), ping(Some("no answer within 1s"))]);
        assert_eq!(
            failure.unwrap_err().to_string(),
            "1 of 2 pings had no answer: see which above, or run it with --log debug"
        );
    }
}

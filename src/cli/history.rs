//! `mesos-overlay history`.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::answer::each_element;
use super::http_client::{HISTORY, MasterAddress, block_on};
use super::output::{Form, Output, Table, harmless};
use crate::addr::Subnet;

/// Show who had which addresses when, and why that changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay history --master 10.0.0.1:5050 --agent 10.0.0.7
  mesos-overlay history --master 10.0.0.1:5050 --address 192.168.5.17

The master keeps the last 30,000 changes or so. Times are in UTC.")]
pub(super) struct HistoryCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Show what happened to this agent only
    #[arg(long, env = "MESOS_OVERLAY_AGENT", value_name = "IP")]
    agent: Option<Ipv4Addr>,
    /// Show what happened to this address only: that of a VTEP, or one in a subnet
    #[arg(long, env = "MESOS_OVERLAY_ADDRESS", value_name = "IP", conflicts_with = "json")]
    address: Option<IpAddr>,
    #[command(flatten)]
    form: Form,
}

/// What a master answers.
#[derive(Debug, Deserialize)]
struct History<'a> {
    #[serde(borrow)]
    entries: &'a RawValue,
    #[serde(default)]
    unreadable_parts: usize,
}

#[derive(Debug, Deserialize)]
struct Entry {
    time: String,
    agent: Option<String>,
    event: String,
    vtep_ip: Option<String>,
    vtep_ip6: Option<String>,
    #[serde(default)]
    overlays: Vec<Share>,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Share {
    name: String,
    subnet: Option<String>,
    subnet6: Option<String>,
}

impl HistoryCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        let body = block_on(master.history(self.agent))?;
        let mut output = Output::new();
        let history: History<'_> =
            serde_json::from_slice(&body).map_err(|error| master.unexpected(HISTORY, &error))?;
        if self.form.json {
            output.json_text(&String::from_utf8_lossy(&body))?;
            return output.finish();
        }
        let mut table =
            Table::with_sentences(&["TIME", "AGENT", "EVENT", "OF", "ADDRESSES", "WHY"]);
        let mut failed = None;
        let shown = each_element("entries", history.entries, |entry| {
            let entry: Entry = serde_json::from_str(entry).map_err(|error| error.to_string())?;
            let added = self.add(&mut table, &mut output, &entry);
            added.map_err(|failure| failed.insert(failure).to_string())
        });
        if let Err(reason) = shown {
            return Err(failed.unwrap_or_else(|| master.unexpected(HISTORY, &reason)));
        }
        table.finish(&mut output)?;
        output.finish()?;
        if history.unreadable_parts > 0 {
            return Err(Failure::new(format!(
                "history: {} parts of it cannot be read: the rest is complete",
                history.unreadable_parts
            )));
        }
        Ok(())
    }

    /// A row for each thing that the agent got or lost, or one for what has no addresses.
    fn add(&self, table: &mut Table, output: &mut Output, entry: &Entry) -> Result<(), Failure> {
        let both = |one: &Option<String>, other: &Option<String>| {
            one.iter().chain(other).map(|text| harmless(text)).collect::<Vec<_>>()
        };
        let mut rows = vec![("vtep".to_owned(), both(&entry.vtep_ip, &entry.vtep_ip6))];
        for Share { name, subnet, subnet6 } in &entry.overlays {
            rows.push((harmless(name), both(subnet, subnet6)));
        }
        rows.retain(|(_, addresses)| !addresses.is_empty());
        if rows.is_empty() {
            rows.push((String::new(), Vec::new()));
        }
        let is_wanted = |addresses: &[String]| match self.address {
            None => true,
            Some(wanted) => addresses.iter().any(|text| is_in(wanted, text)),
        };
        for (of, addresses) in rows.into_iter().filter(|(_, addresses)| is_wanted(addresses)) {
            let cells = [
                harmless(&entry.time),
                entry.agent.as_deref().map(harmless).unwrap_or_default(),
                harmless(&entry.event),
                of,
                addresses.join("\n"),
                harmless(&entry.reason),
            ];
            table.row(output, cells)?;
        }
        Ok(())
    }
}

/// Whether `address` is `text`, an address, or in it, a subnet.
fn is_in(address: IpAddr, text: &str) -> bool {
    match text.parse::<Subnet>() {
        Ok(subnet) => subnet.contains(address),
        Err(_) => text.parse() == Ok(address),
    }
}

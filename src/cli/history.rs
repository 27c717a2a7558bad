//! `mesos-overlay history`.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use overlay_types::addr::Subnet;
use overlay_types::protocol::Author;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::http_client::{HISTORY, MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{Output, OutputFormat, Table, sanitize, sanitize_lines};
use super::process::pluralize;
use super::response::for_each_element;

/// Show which agent had which addresses at which time, and why that changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay history --master 10.0.0.1:5050 --agent 10.0.0.7
  mesos-overlay history --master 10.0.0.1:5050 --address 198.18.5.17

The master keeps about the last 30,000 changes. Times are in UTC.")]
pub(super) struct HistoryCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Show this agent only
    #[arg(long, env = "MESOS_OVERLAY_AGENT", value_name = "IP")]
    agent: Option<Ipv4Addr>,
    /// Show the changes of this address only: of a VTEP, or of a subnet that contains the address
    #[arg(long, env = "MESOS_OVERLAY_ADDRESS", value_name = "IP", conflicts_with = "json")]
    address: Option<IpAddr>,
    #[command(flatten)]
    format: OutputFormat,
}

/// A master's response.
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
    overlays: Vec<OverlayAddresses>,
    reason: String,
    principal: Option<String>,
    client: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OverlayAddresses {
    name: String,
    subnet: Option<String>,
    subnet6: Option<String>,
}

impl HistoryCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        let body = block_on(master.history(self.agent))?;
        let history: History<'_> =
            serde_json::from_slice(&body).map_err(|error| master.unexpected(HISTORY, &error))?;
        self.format.print_body(&body, |output| self.print(output, &master, &history))?;
        if history.unreadable_parts > 0 && !self.format.json {
            let parts = pluralize(history.unreadable_parts as u128, "part");
            return Err(Failure::new(format!(
                "history: {parts} of it cannot be read: the rest is complete"
            )));
        }
        Ok(())
    }

    fn print(
        &self,
        output: &mut Output,
        master: &MasterClient,
        history: &History<'_>,
    ) -> Result<(), Failure> {
        let mut table =
            Table::with_sentences(&["TIME", "AGENT", "EVENT", "OF", "ADDRESSES", "WHY"]);
        let mut write_failure = None;
        let read = for_each_element("entries", history.entries, |entry| {
            let entry: Entry = serde_json::from_str(entry).map_err(|error| error.to_string())?;
            let added = self.add_entry(&mut table, output, &entry);
            added.map_err(|failure| write_failure.insert(failure).to_string())
        });
        if let Err(reason) = read {
            return Err(write_failure.unwrap_or_else(|| master.unexpected(HISTORY, &reason)));
        }
        table.finish(output)
    }

    /// Adds a row for the VTEP and each overlay of the entry, or one row if it has no addresses.
    fn add_entry(
        &self,
        table: &mut Table,
        output: &mut Output,
        entry: &Entry,
    ) -> Result<(), Failure> {
        let address_pair = |v4: &Option<String>, v6: &Option<String>| {
            v4.iter().chain(v6).cloned().collect::<Vec<_>>()
        };
        let mut rows = vec![("vtep".to_owned(), address_pair(&entry.vtep_ip, &entry.vtep_ip6))];
        for OverlayAddresses { name, subnet, subnet6 } in &entry.overlays {
            rows.push((sanitize(name), address_pair(subnet, subnet6)));
        }
        rows.retain(|(_, addresses)| !addresses.is_empty());
        if rows.is_empty() {
            rows.push((String::new(), Vec::new()));
        }
        let matches_flag = |addresses: &[String]| match self.address {
            None => true,
            Some(address) => addresses.iter().any(|text| is_address_or_in_subnet(address, text)),
        };
        for (of, addresses) in rows.into_iter().filter(|(_, addresses)| matches_flag(addresses)) {
            let cells = [
                sanitize(&entry.time),
                entry.agent.as_deref().map(sanitize).unwrap_or_default(),
                sanitize(&entry.event),
                of,
                sanitize_lines(&addresses),
                sanitize(&entry.reason) + &by_author(entry),
            ];
            table.row(output, cells)?;
        }
        Ok(())
    }
}

/// Returns who requested the change, as an addition to its reason.
fn by_author(entry: &Entry) -> String {
    let author = Author { principal: entry.principal.clone(), client: entry.client.clone() };
    if author == Author::default() {
        return String::new();
    }
    format!(" (by {})", sanitize(&author.to_string()))
}

/// Returns whether `text` is `address`, or a subnet that contains it.
fn is_address_or_in_subnet(address: IpAddr, text: &str) -> bool {
    match text.parse::<Subnet>() {
        Ok(subnet) => subnet.contains(address),
        Err(_) => text.parse() == Ok(address),
    }
}

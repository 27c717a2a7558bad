//! Lists and removes the managed nftables tables of this host.

use super::command::{FirewallError, Tools};
use super::{nftables, shortcut};

/// The managed tables with their families.
const TABLES: [&str; 2] = [shortcut::TABLE, nftables::TABLE];

/// Returns the managed tables that exist.
///
/// # Errors
/// When nft fails: then it is unknown which tables exist.
fn existing(tools: &dyn Tools) -> Result<Vec<&'static str>, FirewallError> {
    let names = names(tools)?;
    Ok(TABLES.into_iter().filter(|own| names.iter().any(|name| name == own)).collect())
}

/// Returns the families and names of all tables. Without nft there are none.
///
/// # Errors
/// When nft fails: then it is unknown which tables exist.
pub(super) fn names(tools: &dyn Tools) -> Result<Vec<String>, FirewallError> {
    if !tools.has("nft") {
        return Ok(Vec::new());
    }
    // `list table` fails in the same way for a missing table and for every other reason.
    match tools.run("nft", &["list", "tables"], "") {
        Ok(tables) => {
            let names = tables.lines().filter_map(|line| line.trim_end().strip_prefix("table "));
            Ok(names.map(str::to_owned).collect())
        }
        Err(error) if error.is_unsupported() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Lists the table of the rules without counters. Returns an empty listing if it does not exist.
pub(super) fn list(tools: &dyn Tools) -> Result<String, FirewallError> {
    list_table(tools, nftables::TABLE)
}

/// Lists the table of the shortcut. Returns an empty listing if it does not exist.
pub(super) fn list_shortcut(tools: &dyn Tools) -> Result<String, FirewallError> {
    list_table(tools, shortcut::TABLE)
}

fn list_table(tools: &dyn Tools, table: &str) -> Result<String, FirewallError> {
    if !existing(tools)?.contains(&table) {
        return Ok(String::new());
    }
    let mut arguments = vec!["-s", "list", "table"];
    arguments.extend(table.split(' '));
    tools.run("nft", &arguments, "")
}

/// Removes the tables that exist.
pub(super) fn remove(tools: &dyn Tools) -> Result<(), FirewallError> {
    remove_existing(tools, |_| true).map(drop)
}

/// Removes the table of the shortcut. Returns whether it existed.
pub(super) fn remove_shortcut(tools: &dyn Tools) -> Result<bool, FirewallError> {
    remove_existing(tools, |table| table == shortcut::TABLE)
}

fn remove_existing(
    tools: &dyn Tools,
    is_removed: impl Fn(&str) -> bool,
) -> Result<bool, FirewallError> {
    let existing = existing(tools)?;
    let removed = existing.into_iter().filter(|table| is_removed(table));
    let input: String = removed.map(removal).collect();
    if !input.is_empty() {
        tools.run("nft", &["-f", "-"], &input)?;
    }
    Ok(!input.is_empty())
}

/// Returns the input of nft that removes a table. It succeeds without the table as well.
pub(super) fn removal(table: &str) -> String {
    format!("table {table}\ndelete table {table}\n")
}

/// Describes the tables for an operator.
pub(super) fn describe(tools: &dyn Tools) -> Result<Vec<String>, FirewallError> {
    let tables = existing(tools)?.into_iter();
    Ok(tables.map(|table| format!("nftables table {table}")).collect())
}

//! Lists and removes the managed nftables table of this host.

use super::command::{FirewallError, Tools};
use super::nftables;

/// Returns whether the table exists.
///
/// # Errors
/// When nft fails: then it is unknown whether the table exists.
fn exists(tools: &dyn Tools) -> Result<bool, FirewallError> {
    if !tools.has("nft") {
        return Ok(false);
    }
    // `list table` fails in the same way for a missing table and for every other reason.
    match tools.run("nft", &["list", "tables"], "") {
        Ok(tables) => {
            let own = format!("table {}", nftables::TABLE);
            Ok(tables.lines().any(|table| table.trim_end() == own))
        }
        Err(error) if error.is_unsupported() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lists the table without counters. Returns an empty listing if the table does not exist.
pub(super) fn list(tools: &dyn Tools) -> Result<String, FirewallError> {
    if !exists(tools)? {
        return Ok(String::new());
    }
    let mut arguments = vec!["-s", "list", "table"];
    arguments.extend(nftables::TABLE.split(' '));
    tools.run("nft", &arguments, "")
}

/// Removes the table, if it exists.
pub(super) fn remove(tools: &dyn Tools) -> Result<(), FirewallError> {
    if exists(tools)? {
        tools.run("nft", &["-f", "-"], &nftables::remove())?;
    }
    Ok(())
}

/// Describes the table for an operator, if it exists.
pub(super) fn describe(tools: &dyn Tools) -> Result<Option<String>, FirewallError> {
    Ok(exists(tools)?.then(|| format!("nftables table {}", nftables::TABLE)))
}

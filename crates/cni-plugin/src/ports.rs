//! Maps ports of the host to containers, with nft.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::time::Duration;

use overlay_cni::config::NetworkConfig;
use overlay_cni::mesos::PortMapping;
use overlay_cni::ports::{
    PortChanges, PortElement, TABLE, add_script, elements, parse_listing, remove_script,
};
use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::cni::Lease;
use overlay_linux::subprocess::{find_system_program, run_blocking};

use crate::{failure, leases};

/// Timeout of nft.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maps the ports of a container. Replaces mappings of the same address.
///
/// # Errors
/// When another container has a port, or nft fails or is missing.
pub(crate) fn map(
    config: &NetworkConfig,
    mappings: &[PortMapping],
    addresses: &[IpAddr],
) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    let taken = leases::all(config)?.taken();
    // Leases of other networks are not known here, so their mappings stay.
    let is_stale =
        |address| config.ranges.iter().any(|range| range.has(address)) && !taken.contains(&address);
    let desired = elements(mappings, addresses);
    let changes = PortChanges::plan(&desired, addresses, &listed()?, is_stale)?;
    nft(&["-f", "-"], &add_script(&config.bridge, &changes)).map(drop)
}

/// Removes the mappings to the addresses of leases. A missing table or a missing nft is no error:
/// then there are none.
///
/// # Errors
/// When nft fails.
pub(crate) fn unmap(leases: &[Lease]) -> Result<(), PluginError> {
    if leases.is_empty() || find_system_program("nft").is_none() {
        return Ok(());
    }
    let is_own = |element: &PortElement| leases.iter().any(|it| it.address == element.address);
    let own: BTreeSet<PortElement> = listed()?.into_iter().filter(is_own).collect();
    if own.is_empty() {
        return Ok(());
    }
    nft(&["-f", "-"], &remove_script(&own)).map(drop)
}

/// Lists the mappings of all containers.
fn listed() -> Result<BTreeSet<PortElement>, PluginError> {
    let mut arguments = vec!["-j", "list", "table"];
    arguments.extend(TABLE.split(' '));
    match nft(&arguments, "")? {
        Some(output) => parse_listing(&output),
        None => Ok(BTreeSet::new()),
    }
}

/// Runs nft. Returns its output, or `None` if the object does not exist.
fn nft(arguments: &[&str], input: &str) -> Result<Option<Vec<u8>>, PluginError> {
    let failed = |message: String| PluginError::new(ErrorCode::PortMapping, message);
    let Some(program) = find_system_program("nft") else {
        return Err(failed("port mappings need nft".to_owned()).with_details("install nftables"));
    };
    let words = arguments.iter().map(OsStr::new);
    let output = run_blocking(&program, words, input.as_bytes(), TIMEOUT)
        .map_err(|error| failure::io(&format!("run nft: {error:?}")))?;
    if output.success {
        return Ok(Some(output.stdout));
    }
    let line = output.error_line(&["Error: "]);
    if input.is_empty() && line.contains("No such file or directory") {
        return Ok(None);
    }
    Err(failed(format!("nft {}: {line}", arguments.join(" "))))
}

//! Tests of port mappings without programs.

use parking_lot::Mutex;

use super::*;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns the mapping of a port to port 80 of an address.
pub(super) fn to(host_port: u16, address: &str) -> Mapped {
    Mapped { mapping: mapping(host_port), address: ip(address) }
}

fn mapping(host_port: u16) -> PortMapping {
    PortMapping { protocol: PortProtocol::Tcp, host_port, container_port: 80 }
}

/// A host on which only some programs are installed. Records the scripts.
#[derive(Debug, Default)]
struct Host {
    programs: &'static [&'static str],
    /// The error of `nft -f -`, and how many calls fail with it.
    nft_error: Option<&'static str>,
    failures: Mutex<Option<u32>>,
    /// The output of `nft list tables`.
    tables: &'static str,
    scripts: Mutex<Vec<(&'static str, String)>>,
}

impl Tools for Host {
    fn has(&self, program: &str) -> bool {
        self.programs.contains(&program)
    }

    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, FirewallError> {
        if arguments == ["list", "tables"] {
            return Ok(self.tables.to_owned());
        }
        if arguments.first() == Some(&"-j") {
            return Ok("{}".to_owned());
        }
        let is_change = program == "nft" && !input.is_empty();
        if let Some(error) = self.nft_error.filter(|_| is_change && self.has_failure()) {
            let command = format!("nft {}", arguments.join(" "));
            return Err(FirewallError::Refused { command, message: error.to_owned() });
        }
        if !input.is_empty() {
            self.scripts.lock().push((program, input.to_owned()));
        }
        Ok(String::new())
    }
}

impl Host {
    /// Returns whether the next change fails. Without a number every change does.
    fn has_failure(&self) -> bool {
        let mut failures = self.failures.lock();
        let is_failing = failures.is_none_or(|left| left > 0);
        *failures = failures.map(|left| left.saturating_sub(1));
        is_failing
    }
}

const IPTABLES: &[&str] = &["iptables-save", "iptables-restore", "ip6tables-save"];
const BOTH: &[&str] = &["nft", "iptables-save", "iptables-restore"];

/// Maps port 8080 on a host. Returns the programs that got a script.
fn programs_used(host: &Host) -> Result<Vec<&'static str>, PortMappingError> {
    let bridge = "m-vxlan-1".parse().unwrap();
    let addresses = [ip("192.168.0.2")];
    map(host, &Request::new(&bridge, &[mapping(8080)], &addresses), &|_| false)?;
    Ok(host.scripts.lock().iter().map(|(program, _)| *program).collect())
}

#[test]
fn plan_replaces_own_and_stale_mappings() {
    let bridge = "m-vxlan-1".parse().unwrap();
    let addresses = [ip("192.168.0.2"), ip("fd01:b::2")];
    let request = Request::new(&bridge, &[mapping(8080)], &addresses);
    assert_eq!(request.desired.len(), 2);
    let found = [to(8080, "192.168.0.9"), to(9090, "192.168.0.2"), to(1, "192.168.0.7")].into();
    let changes = request.plan(&found, &|_| true).unwrap();
    let removed = [to(8080, "192.168.0.9"), to(9090, "192.168.0.2")].into();
    assert_eq!(changes, Changes { removed, added: request.desired.clone() });
    let error = request.plan(&found, &|_| false).unwrap_err();
    assert_eq!(error.to_string(), "port 8080/tcp of the host leads to 192.168.0.9 already");
    let changes = request.plan(&request.desired, &|_| false).unwrap();
    assert_eq!(changes, Changes { removed: BTreeSet::new(), added: BTreeSet::new() });
}

#[test]
fn nft_is_used_before_iptables() {
    let host = |programs| Host { programs, ..Host::default() };
    assert_eq!(programs_used(&host(BOTH)), Ok(vec!["nft"]));
    assert_eq!(programs_used(&host(IPTABLES)), Ok(vec!["iptables-restore"]));
    assert_eq!(programs_used(&host(&[])), Err(PortMappingError::NoProgram));
    // A kernel without nftables.
    let nft_error = Some("Could not process rule: Operation not supported");
    let host = Host { programs: BOTH, nft_error, ..Host::default() };
    assert_eq!(programs_used(&host), Ok(vec!["iptables-restore"]));
    let host = Host { programs: &["nft"], nft_error, ..Host::default() };
    assert!(matches!(programs_used(&host), Err(PortMappingError::Firewall(_))));
    let nft_error = Some("Could not process rule: File exists");
    let host = Host { programs: BOTH, nft_error, ..Host::default() };
    assert!(programs_used(&host).is_err(), "another container has the port");
}

/// An element that another process removed after it was listed.
#[test]
fn refused_transaction_is_repeated_and_stays_with_nft() {
    let nft_error = Some("Could not process rule: No such file or directory");
    let tables = "table inet mesos_overlay_ports";
    let host = |failures| Host {
        programs: BOTH,
        nft_error,
        failures: Mutex::new(failures),
        tables,
        ..Host::default()
    };
    assert_eq!(programs_used(&host(Some(1))), Ok(vec!["nft"]));
    let lasting = host(None);
    let error = programs_used(&lasting).unwrap_err().to_string();
    assert_eq!(
        error,
        "port mappings: 'nft -f -' failed: Could not process rule: No such file or directory"
    );
    assert_eq!(*lasting.scripts.lock(), []);
}

#[test]
fn host_without_programs_has_no_mappings() {
    let host = Host::default();
    assert_eq!(unmap(&host, &[ip("192.168.0.2")].into()), Ok(()));
    assert_eq!(describe(&host), Ok(Vec::new()));
    assert_eq!(remove_all(&host), Ok(()));
}

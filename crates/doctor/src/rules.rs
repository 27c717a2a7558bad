//! Checks of the host's firewall rules, as nftables and iptables list them. The checks are pure
//! functions of the observation.
//!
//! A rule is `wrong` only if it drops all packets to the port of the tunnels and no rule accepts
//! some of them. Every other rule that may drop such packets is a warning, since the parser does
//! not know the meaning of all rules.

use overlay_config::FirewallKind;
use overlay_linux::firewall::{IPTABLES_CHAIN as OWN_CHAIN, NFTABLES_TABLE as OWN_TABLE};

use super::finding::Finding;
use super::observation::Observation;

const UDP_RULES: &str = "udp-rules";
const FORWARD_POLICY: &str = "forward-policy";
const PEER_PACKETS_DROPPED: &str = "the packets of peers are dropped";
const FORWARDED_PACKETS_DROPPED: &str =
    "packets between the tunnels and the containers are dropped";
/// Words besides numbers and the verdict that do not restrict a listed rule for a UDP port.
const NON_CONDITIONS: [&str; 15] = [
    "-m", "-p", "--dport", "bytes", "counter", "dport", "ip", "ip6", "l4proto", "meta", "nexthdr",
    "packets", "protocol", "th", "udp",
];

/// A rule of nftables with its position. The hook of a base chain is listed as a rule with an empty
/// text.
struct Rule<'a> {
    table: &'a str,
    chain: &'a str,
    /// The listed hook of the chain.
    hook: &'a str,
    text: &'a str,
    handle: &'a str,
}

/// Parses the output of `nft -a list ruleset`.
fn parse_nft(listing: &str) -> Vec<Rule<'_>> {
    let mut rules = Vec::new();
    let (mut table, mut chain, mut hook) = ("", "", "");
    for line in listing.lines().map(str::trim) {
        let (text, handle) = line.split_once(" # handle ").unwrap_or((line, ""));
        let block = text.strip_suffix(" {");
        if let Some(name) = block.and_then(|text| text.strip_prefix("table ")) {
            (table, chain, hook) = (name, "", "");
        } else if let Some(name) = block.and_then(|text| text.strip_prefix("chain ")) {
            (chain, hook) = (name, "");
        } else if text.starts_with("type ") && text.contains(" hook ") {
            hook = text;
            rules.push(Rule { table, chain, hook, text: "", handle: "" });
        } else if !chain.is_empty() && !handle.is_empty() {
            rules.push(Rule { table, chain, hook, text, handle });
        }
    }
    rules
}

/// Returns whether the words contain a verdict that drops.
fn drops(words: &[&str]) -> bool {
    words.iter().any(|word| ["drop", "reject", "DROP", "REJECT"].contains(word))
}

/// Returns whether a rule matches this port and no other port.
fn matches_only_port(words: &[&str], port: u16) -> bool {
    let port = port.to_string();
    words.windows(2).any(|pair| ["dport", "--dport"].contains(&pair[0]) && pair[1] == port)
}

/// Returns whether the port, a list or a range of a rule contains this port.
fn matches_port(words: &[&str], port: u16) -> bool {
    let mut words = words.iter().skip_while(|word| !word.contains("dport"));
    words.any(|word| word.split(',').any(|part| contains_port(part, port)))
}

fn contains_port(part: &str, port: u16) -> bool {
    match part.split_once(['-', ':']) {
        None => part.parse() == Ok(port),
        Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        },
    }
}

/// Returns whether a rule matches all packets to its port, for any sender and interface. `words`
/// are the words before the verdict.
fn is_unconditional(words: &[&str]) -> bool {
    words.iter().all(|word| NON_CONDITIONS.contains(word) || word.parse::<u64>().is_ok())
}

/// Returns the finding for a rule that drops packets to the port of the tunnels.
fn dropping_rule(rule: &str, removal: String, port: u16, is_certain: bool) -> Finding {
    if is_certain {
        let explanation = format!("VXLAN packets to UDP port {port} are dropped on this host");
        return Finding::wrong(UDP_RULES, rule, explanation).with_command(removal);
    }
    let explanation =
        format!("VXLAN packets to UDP port {port} are dropped unless other rules accept them");
    Finding::warning(UDP_RULES, rule, explanation).with_advice(format!(
        "check that the packets of every agent are accepted, or remove the rule: {removal}"
    ))
}

/// Returns the finding for a host without problems, or for rules that could not be read.
fn no_problem(observation: &Observation, check: &'static str, summary: &str) -> Finding {
    let rules = &observation.rules;
    if rules.nft.is_some() || rules.iptables.is_some() {
        return Finding::ok(check, summary);
    }
    let finding = Finding::note(check, "no firewall rules could be read");
    if observation.is_root {
        finding
    } else {
        finding.with_advice("run 'mesos-overlay doctor' as root")
    }
}

/// Checks whether rules drop VXLAN packets from peers.
pub(super) fn udp_rules(observation: &Observation) -> Vec<Finding> {
    let mut findings = Vec::new();
    let vxlan_devices = &observation.tunnel.desired.vxlan_devices;
    let (program, listing) = if vxlan_devices.iter().any(|local| local.underlay.is_ipv6()) {
        ("ip6tables", observation.rules.ip6tables.as_deref())
    } else {
        ("iptables", observation.rules.iptables.as_deref())
    };
    for port in observation.tunnel.ports() {
        findings.extend(udp_findings_of_nft(observation, port));
        findings.extend(udp_findings_of_iptables(program, listing.unwrap_or_default(), port));
    }
    if findings.is_empty() {
        findings.push(no_problem(observation, UDP_RULES, "no rule drops the packets of peers"));
    }
    findings
}

/// Returns the rules of nftables that process packets of the given families. The agent's own table
/// is excluded, and its chains in tables of iptables, which current versions make in nftables. The
/// table `filter` of iptables is excluded if iptables lists it itself.
fn foreign_nft_rules(observation: &Observation, has_v4: bool, has_v6: bool) -> Vec<Rule<'_>> {
    let is_of_iptables = |table: &str| {
        observation.rules.iptables.is_some() && ["ip filter", "ip6 filter"].contains(&table)
    };
    let processes_family = |table: &str| match table.split(' ').next() {
        Some("ip") => has_v4,
        Some("ip6") => has_v6,
        Some("arp" | "bridge") => false,
        _ => true,
    };
    let mut rules = parse_nft(observation.rules.nft.as_deref().unwrap_or(""));
    rules.retain(|Rule { table, chain, .. }| {
        let is_own = *table == OWN_TABLE || chain.starts_with(OWN_CHAIN);
        !is_own && !is_of_iptables(table) && processes_family(table)
    });
    rules
}

/// Returns whether a rule in this table names the port and does not drop. Such a rule probably
/// accepts packets to the port.
fn nft_table_may_accept(rules: &[Rule<'_>], table: &str, port: u16) -> bool {
    rules.iter().filter(|rule| rule.table == table).any(|rule| {
        let words: Vec<&str> = rule.text.split_whitespace().collect();
        matches_port(&words, port) && !drops(&words)
    })
}

fn udp_findings_of_nft(observation: &Observation, port: u16) -> Vec<Finding> {
    let mut underlays = observation.tunnel.desired.vxlan_devices.iter().map(|local| local.underlay);
    let has_v4 = underlays.clone().any(|underlay| underlay.is_ipv4());
    let rules =
        foreign_nft_rules(observation, has_v4, underlays.any(|underlay| underlay.is_ipv6()));
    let mut findings = Vec::new();
    for rule in &rules {
        let Rule { table, chain, hook, text, handle } = rule;
        let words: Vec<&str> = text.split_whitespace().collect();
        if matches_only_port(&words, port) && drops(&words) && !hook.contains("hook forward") {
            let verdict = words.iter().position(|word| drops(&[word])).unwrap_or(0);
            let is_certain =
                is_unconditional(&words[..verdict]) && !nft_table_may_accept(&rules, table, port);
            let summary = format!("a rule of nftables in table {table}, chain {chain}: '{text}'");
            let removal = format!("nft delete rule {table} {chain} handle {handle}");
            findings.push(dropping_rule(&summary, removal, port, is_certain));
        }
        let has_drop_policy = hook.contains("hook input") && hook.contains("policy drop");
        if text.is_empty() && has_drop_policy && !nft_table_may_accept(&rules, table, port) {
            let summary = format!(
                "chain {chain} of nftables table {table} drops packets that no rule accepts, and \
                 no rule names UDP port {port}"
            );
            findings.push(
                Finding::warning(UDP_RULES, summary, PEER_PACKETS_DROPPED).with_command(format!(
                    "nft insert rule {table} {chain} udp dport {port} accept"
                )),
            );
        }
    }
    findings
}

fn udp_findings_of_iptables(program: &str, listing: &str, port: u16) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_accepted = listing.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches_port(&words, port) && words.contains(&"ACCEPT")
    });
    for line in listing.lines().filter(|line| !line.contains(OWN_CHAIN)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if matches_only_port(&words, port) && drops(&words) {
            let rule = line.strip_prefix("-A ").unwrap_or(line);
            let verdict = words.iter().position(|word| *word == "-j").unwrap_or(words.len());
            // The first two words are -A and the chain.
            let conditions = words.get(2..verdict).unwrap_or_default();
            let is_certain = is_unconditional(conditions) && !is_accepted;
            let summary = format!("a rule of {program}: '{rule}'");
            let removal = format!("{program} -D {rule}");
            findings.push(dropping_rule(&summary, removal, port, is_certain));
        }
    }
    if listing.lines().any(|line| line == "-P INPUT DROP") && !is_accepted {
        let summary = format!(
            "chain INPUT of {program} drops packets that no rule accepts, and no rule names UDP \
             port {port}"
        );
        findings.push(
            Finding::warning(UDP_RULES, summary, PEER_PACKETS_DROPPED)
                .with_command(format!("{program} -I INPUT -p udp --dport {port} -j ACCEPT")),
        );
    }
    findings
}

/// Returns whether the FORWARD chain of iptables drops the packets of the overlays.
pub(super) fn forward_chain_drops(observation: &Observation) -> bool {
    observation.rules.iptables.as_deref().is_some_and(|rules| drops_forwarded(observation, rules))
}

/// Returns whether the FORWARD chain of a listing has the policy DROP and no rule that accepts the
/// packets of the overlays.
fn drops_forwarded(observation: &Observation, listing: &str) -> bool {
    listing.lines().any(|line| line == "-P FORWARD DROP")
        && !listing.lines().any(|line| accepts_forwarded(observation, line))
}

/// Returns whether a listed rule accepts the forwarded packets of the overlays.
fn accepts_forwarded(observation: &Observation, line: &str) -> bool {
    // DC/OS creates the second rule for dcos-net.
    if line == format!("-A FORWARD -j {OWN_CHAIN}") || line == "-A FORWARD -j ACCEPT" {
        return true;
    }
    let mut devices = observation.tunnel.devices();
    line.starts_with("-A FORWARD ")
        && line.ends_with(" -j ACCEPT")
        && devices.any(|device| line.contains(&format!(" {device} ")))
}

/// Checks whether rules drop forwarded packets of the overlays.
pub(super) fn forward_policy(observation: &Observation) -> Vec<Finding> {
    let mut listings = vec![("iptables", &observation.rules.iptables)];
    if observation.needs_ipv6() {
        listings.push(("ip6tables", &observation.rules.ip6tables));
    }
    let mut findings = Vec::new();
    for (program, listing) in listings {
        if listing.as_deref().is_some_and(|listing| drops_forwarded(observation, listing)) {
            findings.push(forward_chain_finding(observation, program));
        }
    }
    findings.extend(forward_findings_of_nft(observation));
    if findings.is_empty() {
        let summary = "no chain drops packets that are forwarded for the overlays";
        findings.push(no_problem(observation, FORWARD_POLICY, summary));
    }
    findings
}

fn forward_chain_finding(observation: &Observation, program: &str) -> Finding {
    let summary = format!("chain FORWARD of {program} drops packets that no rule accepts");
    let has_firewall = observation.config.dataplane.firewall != FirewallKind::None;
    if observation.is_before_first_run() && has_firewall {
        return Finding::note(FORWARD_POLICY, summary)
            .with_advice("no action: the agent creates rules that accept them");
    }
    let mut commands = Vec::new();
    for device in observation.tunnel.devices() {
        for flag in ["-i", "-o"] {
            commands.push(format!("{program} -I FORWARD {flag} {device} -j ACCEPT"));
        }
    }
    Finding::wrong(
        FORWARD_POLICY,
        format!("{summary}, and the agent's rules are missing"),
        FORWARDED_PACKETS_DROPPED,
    )
    .with_command(commands.join(" && "))
}

/// Returns a finding for each chain of nftables that drops forwarded packets by policy. A rule in
/// another table cannot override that policy.
fn forward_findings_of_nft(observation: &Observation) -> Vec<Finding> {
    let rules = foreign_nft_rules(observation, true, observation.needs_ipv6());
    let devices: Vec<String> = observation.tunnel.devices().collect();
    let mut findings = Vec::new();
    for Rule { table, chain, hook, text, .. } in &rules {
        let has_drop_policy = hook.contains("hook forward") && hook.contains("policy drop");
        let mut table_rules = rules.iter().filter(|rule| rule.table == *table);
        if !text.is_empty()
            || !has_drop_policy
            || table_rules.any(|rule| accepts_devices(rule, &devices))
        {
            continue;
        }
        let summary = format!(
            "chain {chain} of nftables table {table} drops packets that no rule accepts, and no \
             rule names device {}",
            devices.join(" or ")
        );
        let mut commands = Vec::new();
        for device in &devices {
            for key in ["iifname", "oifname"] {
                commands.push(format!("nft insert rule {table} {chain} {key} {device} accept"));
            }
        }
        findings.push(
            Finding::warning(FORWARD_POLICY, summary, FORWARDED_PACKETS_DROPPED)
                .with_command(commands.join(" && ")),
        );
    }
    findings
}

/// Returns whether a rule accepts packets of one of the devices, or jumps to the agent's chain.
fn accepts_devices(rule: &Rule<'_>, devices: &[String]) -> bool {
    if rule.text.contains(OWN_CHAIN) {
        return true;
    }
    let names_device = rule.text.contains("\"vtep*\"")
        || devices.iter().any(|device| rule.text.contains(&format!("\"{device}\"")));
    rule.text.contains("accept") && names_device
}

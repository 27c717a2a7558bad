//! What of the host's firewalls stands in the way: read from how they list their rules. A rule that
//! drops the tunnels' port by name is certain; a chain that drops what nobody accepts is a warning,
//! since whether something accepts it cannot be told without all of its rules' meaning. Pure.

use super::finding::Finding;
use super::observed::Observed;
use crate::config::FirewallKind;

/// Our own table, whose rule on the port is wanted.
const OWN_TABLE: &str = "inet mesos_overlay";
/// Our own chain of iptables.
const OWN_CHAIN: &str = "MESOS-OVERLAY";
const UNHEARD: &str = "the tunnels of peers end there unheard";

/// A rule of nftables, and where it is.
struct Rule<'a> {
    table: &'a str,
    chain: &'a str,
    /// How its chain is hooked in, as it is listed.
    hook: &'a str,
    text: &'a str,
    handle: &'a str,
}

/// The rules of `nft -a list ruleset`.
fn nft_rules(listing: &str) -> Vec<Rule<'_>> {
    let mut rules = Vec::new();
    let (mut table, mut chain, mut hook) = ("", "", "");
    for line in listing.lines().map(str::trim) {
        let (text, handle) = line.split_once(" # handle ").unwrap_or((line, ""));
        let opened = text.strip_suffix(" {");
        if let Some(name) = opened.and_then(|text| text.strip_prefix("table ")) {
            (table, chain, hook) = (name, "", "");
        } else if let Some(name) = opened.and_then(|text| text.strip_prefix("chain ")) {
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

fn drops(words: &[&str]) -> bool {
    words.iter().any(|word| ["drop", "reject", "DROP", "REJECT"].contains(word))
}

/// Whether a rule is about one of the ports, not about others as well.
fn names(words: &[&str], port: u16) -> bool {
    let port = port.to_string();
    words.windows(2).any(|pair| ["dport", "--dport"].contains(&pair[0]) && pair[1] == port)
}

/// What becomes of VXLAN packets that arrive.
pub(super) fn udp_rules(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "udp-rules";
    let mut findings = Vec::new();
    for port in observed.tunnel.ports() {
        findings.extend(of_nft(observed, port));
        let listed =
            [("iptables", &observed.rules.iptables), ("ip6tables", &observed.rules.ip6tables)];
        let underlays = observed.tunnel.desired.locals.iter().map(|local| local.underlay.is_ipv6());
        let is_v6 = underlays.clone().any(|is_v6| is_v6);
        for (program, listing) in listed {
            if (program == "ip6tables") == is_v6 {
                findings.extend(of_iptables(program, listing.as_deref().unwrap_or(""), port));
            }
        }
    }
    if findings.is_empty() {
        let rules = &observed.rules;
        findings.push(match (&rules.nft, &rules.iptables) {
            (None, None) => Finding::note(CHECK, "no rules of a firewall could be read"),
            _ => Finding::ok(CHECK, "no rule drops the packets of peers"),
        });
    }
    findings
}

fn of_nft(observed: &Observed, port: u16) -> Vec<Finding> {
    const CHECK: &str = "udp-rules";
    let listing = observed.rules.nft.as_deref().unwrap_or("");
    // Those of iptables it lists itself, with other names.
    let is_of_iptables = |table: &str| {
        observed.rules.iptables.is_some() && ["ip filter", "ip6 filter"].contains(&table)
    };
    let rules = nft_rules(listing);
    let rules: Vec<&Rule<'_>> = rules
        .iter()
        .filter(|rule| rule.table != OWN_TABLE && !is_of_iptables(rule.table))
        .collect();
    let mut findings = Vec::new();
    for rule in &rules {
        let Rule { table, chain, hook, text, handle } = rule;
        let words: Vec<&str> = text.split_whitespace().collect();
        if names(&words, port) && drops(&words) {
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!("a rule of nftables in table {table}, chain {chain}: '{text}'"),
                    format!("VXLAN packets to UDP port {port} are dropped on this host"),
                )
                .mend(format!("nft delete rule {table} {chain} handle {handle}")),
            );
        }
        let is_strict = hook.contains("hook input") && hook.contains("policy drop");
        let is_open = rules.iter().any(|other| {
            let words: Vec<&str> = other.text.split_whitespace().collect();
            other.table == *table && names(&words, port) && !drops(&words)
        });
        if text.is_empty() && is_strict && !is_open {
            let what = format!(
                "chain {chain} of nftables table {table} drops what no rule accepts, and none names \
                 UDP port {port}"
            );
            findings.push(
                Finding::warning(CHECK, what, UNHEARD)
                    .mend(format!("nft insert rule {table} {chain} udp dport {port} accept")),
            );
        }
    }
    findings
}

fn of_iptables(program: &str, listing: &str, port: u16) -> Vec<Finding> {
    const CHECK: &str = "udp-rules";
    let mut findings = Vec::new();
    let mut is_open = false;
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_own = line.contains(OWN_CHAIN);
        is_open |= names(&words, port) && words.contains(&"ACCEPT");
        if !is_own && names(&words, port) && drops(&words) {
            let rule = line.strip_prefix("-A ").unwrap_or(line);
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!("a rule of {program}: '{rule}'"),
                    format!("VXLAN packets to UDP port {port} are dropped on this host"),
                )
                .mend(format!("{program} -D {rule}")),
            );
        }
    }
    if listing.lines().any(|line| line == "-P INPUT DROP") && !is_open {
        let what = format!(
            "chain INPUT of {program} drops what no rule accepts, and none names UDP port {port}"
        );
        findings.push(
            Finding::warning(CHECK, what, UNHEARD)
                .mend(format!("{program} -I INPUT -p udp --dport {port} -j ACCEPT")),
        );
    }
    findings
}

/// Whether iptables drops what is forwarded unless somebody accepts it, and we do not.
pub(super) fn drops_unasked(observed: &Observed) -> bool {
    observed.rules.iptables.as_deref().is_some_and(|listing| is_unaccepted(observed, listing))
}

fn is_unaccepted(observed: &Observed, listing: &str) -> bool {
    let own = format!("-A FORWARD -j {OWN_CHAIN}");
    let accepts = |line: &str| {
        // The second is what dcos-net is started with.
        let is_ours = line == own || line == "-A FORWARD -j ACCEPT";
        let is_of_operator = line.starts_with("-A FORWARD ") && line.ends_with(" -j ACCEPT");
        let mut devices = observed.tunnel.devices();
        is_ours || is_of_operator && devices.any(|device| line.contains(&format!(" {device} ")))
    };
    listing.lines().any(|line| line == "-P FORWARD DROP") && !listing.lines().any(accepts)
}

/// What becomes of what this host forwards.
pub(super) fn forward_policy(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "forward-policy";
    let mut programs = vec![("iptables", &observed.rules.iptables)];
    if observed.wants_ipv6() {
        programs.push(("ip6tables", &observed.rules.ip6tables));
    }
    let mut findings = Vec::new();
    for (program, listing) in programs {
        if !listing.as_deref().is_some_and(|listing| is_unaccepted(observed, listing)) {
            continue;
        }
        let what = format!("chain FORWARD of {program} drops what no rule accepts");
        let is_ours = observed.config.dataplane.firewall != FirewallKind::None;
        if observed.is_before() && is_ours {
            let finding = Finding::note(CHECK, what);
            findings.push(finding.advise("nothing: the agent makes rules that accept"));
            continue;
        }
        let accept = |(side, device): (&str, String)| {
            format!("{program} -I FORWARD {side} {device} -j ACCEPT")
        };
        let sides = |device: String| [("-i", device.clone()), ("-o", device)];
        let accepts: Vec<_> = observed.tunnel.devices().flat_map(sides).map(accept).collect();
        findings.push(
            Finding::wrong(
                CHECK,
                format!("{what}, and the agent's are not there"),
                "packets between the tunnels and the containers are dropped",
            )
            .mend(accepts.join(" && ")),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "what is forwarded for the overlays passes iptables"));
    }
    findings
}

//! What of the host's firewalls stands in the way: read from how they list their rules. Certain is
//! only a rule that drops all packets to the tunnels' port while none accepts some of them;
//! whatever else may drop them is a warning, since not all that rules mean is known here. Pure.

use super::finding::Finding;
use super::observed::Observed;
use crate::config::FirewallKind;
use crate::firewall::{IPTABLES_CHAIN as OWN_CHAIN, NFTABLES_TABLE as OWN_TABLE};

const UNHEARD: &str = "the tunnels of peers end there unheard";
const UNREAD: &str = "no rules of a firewall could be read";
/// What the listing of a rule may have beside port and verdict without being a condition.
const NO_CONDITIONS: [&str; 15] = [
    "-m", "-p", "--dport", "bytes", "counter", "dport", "ip", "ip6", "l4proto", "meta", "nexthdr",
    "packets", "protocol", "th", "udp",
];

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

/// Whether a rule is about this port, and no other.
fn names(words: &[&str], port: u16) -> bool {
    let port = port.to_string();
    words.windows(2).any(|pair| ["dport", "--dport"].contains(&pair[0]) && pair[1] == port)
}

/// Whether a rule is about this port, be it among others.
fn covers(words: &[&str], port: u16) -> bool {
    let has = |part: &str| match part.split_once(['-', ':']) {
        None => part.parse() == Ok(port),
        Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        },
    };
    let mut words = words.iter().skip_while(|word| !word.contains("dport"));
    words.any(|word| word.split(',').any(has))
}

/// Whether a rule takes all packets to its port, whoever sent them and wherever they came in.
/// `words` end before the verdict.
fn is_unconditional(words: &[&str]) -> bool {
    words.iter().all(|word| NO_CONDITIONS.contains(word) || word.parse::<u64>().is_ok())
}

/// A rule that drops packets to our port: what it is, and what removes it.
fn dropping(rule: &str, removal: String, port: u16, is_certain: bool) -> Finding {
    const CHECK: &str = "udp-rules";
    if is_certain {
        let why = format!("VXLAN packets to UDP port {port} are dropped on this host");
        return Finding::wrong(CHECK, rule, why).mend(removal);
    }
    let why = format!("VXLAN packets to UDP port {port} are dropped unless others accept them");
    Finding::warning(CHECK, rule, why)
        .advise(format!("see that those of every agent pass, or remove it: {removal}"))
}

fn unread(observed: &Observed, check: &'static str) -> Finding {
    let finding = Finding::note(check, UNREAD);
    if observed.is_root { finding } else { finding.advise("run 'mesos-overlay doctor' as root") }
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
            (None, None) => unread(observed, CHECK),
            _ => Finding::ok(CHECK, "no rule drops the packets of peers"),
        });
    }
    findings
}

/// The rules of nftables that are not ours, nor made by iptables, which lists its own with other
/// names; as far as packets of the families meet them.
fn nft_of_others(observed: &Observed, has_v4: bool, has_v6: bool) -> Vec<Rule<'_>> {
    let is_of_iptables = |table: &str| {
        observed.rules.iptables.is_some() && ["ip filter", "ip6 filter"].contains(&table)
    };
    let mut rules = nft_rules(observed.rules.nft.as_deref().unwrap_or(""));
    let is_met = |table: &str| match table.split(' ').next() {
        Some("ip") => has_v4,
        Some("ip6") => has_v6,
        Some("arp" | "bridge") => false,
        _ => true,
    };
    rules.retain(|Rule { table, .. }| {
        *table != OWN_TABLE && !is_of_iptables(table) && is_met(table)
    });
    rules
}

fn of_nft(observed: &Observed, port: u16) -> Vec<Finding> {
    let mut underlays = observed.tunnel.desired.locals.iter().map(|local| local.underlay);
    let has_v4 = underlays.clone().any(|underlay| underlay.is_ipv4());
    let rules = nft_of_others(observed, has_v4, underlays.any(|underlay| underlay.is_ipv6()));
    let mut findings = Vec::new();
    for rule in &rules {
        let Rule { table, chain, hook, text, handle } = rule;
        let is_open = || {
            rules.iter().filter(|other| other.table == *table).any(|other| {
                let words: Vec<&str> = other.text.split_whitespace().collect();
                covers(&words, port) && !drops(&words)
            })
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        if names(&words, port) && drops(&words) && !hook.contains("hook forward") {
            let verdict = words.iter().position(|word| drops(&[word])).unwrap_or(0);
            let is_certain = is_unconditional(&words[..verdict]) && !is_open();
            let what = format!("a rule of nftables in table {table}, chain {chain}: '{text}'");
            let removal = format!("nft delete rule {table} {chain} handle {handle}");
            findings.push(dropping(&what, removal, port, is_certain));
        }
        let is_strict = hook.contains("hook input") && hook.contains("policy drop");
        if text.is_empty() && is_strict && !is_open() {
            let what = format!(
                "chain {chain} of nftables table {table} drops what no rule accepts, and none names \
                 UDP port {port}"
            );
            findings.push(
                Finding::warning("udp-rules", what, UNHEARD)
                    .mend(format!("nft insert rule {table} {chain} udp dport {port} accept")),
            );
        }
    }
    findings
}

fn of_iptables(program: &str, listing: &str, port: u16) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_open = listing.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        covers(&words, port) && words.contains(&"ACCEPT")
    });
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_own = line.contains(OWN_CHAIN);
        if !is_own && names(&words, port) && drops(&words) {
            let rule = line.strip_prefix("-A ").unwrap_or(line);
            let verdict = words.iter().position(|word| *word == "-j").unwrap_or(words.len());
            // Before them are -A and the chain.
            let conditions = words.get(2..verdict).unwrap_or_default();
            let is_certain = is_unconditional(conditions) && !is_open;
            let what = format!("a rule of {program}: '{rule}'");
            findings.push(dropping(&what, format!("{program} -D {rule}"), port, is_certain));
        }
    }
    if listing.lines().any(|line| line == "-P INPUT DROP") && !is_open {
        let what = format!(
            "chain INPUT of {program} drops what no rule accepts, and none names UDP port {port}"
        );
        findings.push(
            Finding::warning("udp-rules", what, UNHEARD)
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
    findings.extend(nft_forwarding(observed));
    if findings.is_empty() {
        let rules = &observed.rules;
        findings.push(match (&rules.nft, &rules.iptables) {
            (None, None) => unread(observed, CHECK),
            _ => Finding::ok(CHECK, "no chain drops what is forwarded for the overlays"),
        });
    }
    findings
}

/// Chains of nftables that drop what is forwarded unless somebody accepts it, which no table but
/// their own can.
fn nft_forwarding(observed: &Observed) -> Vec<Finding> {
    let rules = nft_of_others(observed, true, observed.wants_ipv6());
    let strict = rules.iter().filter(|rule| {
        let is_strict = rule.hook.contains("hook forward") && rule.hook.contains("policy drop");
        let is_open = || {
            let mut others = rules.iter().filter(|other| other.table == rule.table);
            others.any(|other| {
                let accepts = other.text.contains("accept");
                let has = |device: String| other.text.contains(&format!("\"{device}\""));
                other.text.contains(OWN_CHAIN)
                    || accepts
                        && (other.text.contains("\"vtep*\"") || observed.tunnel.devices().any(has))
            })
        };
        rule.text.is_empty() && is_strict && !is_open()
    });
    let finding = |Rule { table, chain, .. }: &Rule<'_>| {
        let devices: Vec<String> = observed.tunnel.devices().collect();
        let what = format!(
            "chain {chain} of nftables table {table} drops what no rule accepts, and none names \
             device {}",
            devices.join(" or ")
        );
        let why = "packets between the tunnels and the containers are dropped";
        let accept = |device: String| {
            ["iifname", "oifname"]
                .map(|side| format!("nft insert rule {table} {chain} {side} {device} accept"))
        };
        let accepts: Vec<_> = devices.into_iter().flat_map(accept).collect();
        Finding::warning("forward-policy", what, why).mend(accepts.join(" && "))
    };
    strict.map(finding).collect()
}

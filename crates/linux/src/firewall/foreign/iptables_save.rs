//! Parses the output of `iptables-save`. What the parser does not know becomes an unclear
//! condition or verdict, so it is never the cause of a definite result.

use std::collections::HashMap;
use std::iter::Peekable;
use std::net::IpAddr;
use std::sync::Arc;
use std::vec::IntoIter;

use overlay_types::addr::Family;

use super::model::{
    Base, Chain, Condition, Field, Hook, IS_BRIDGED, Item, Key, MarkChange, OTHER, Rule,
    RuleBackend, STATUS_DNAT, Step, TYPE_UNICAST, Table, TableFamily, Values, Verdict,
    address_number, address_type, prefix_span, protocol, state, tcp_flag,
};

/// Modules whose options are parsed, or that do not restrict a rule.
const MODULES: [&str; 12] = [
    "iprange",
    "addrtype",
    "comment",
    "conntrack",
    "mark",
    "multiport",
    "nfacct",
    "physdev",
    "pkttype",
    "state",
    "tcp",
    "udp",
];

/// Parses a listing. `program` changes its rules.
pub(super) fn tables(
    listing: &str,
    family: Family,
    backend: RuleBackend,
    program: &'static str,
) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut chains = HashMap::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                backend,
                program,
                family: TableFamily::of(family),
                name: name.to_owned(),
                chains: Vec::new(),
            });
            chains.clear();
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(declaration) = line.strip_prefix(':') {
            let chain = chain(&table.name, declaration);
            chains.insert(chain.name.clone(), table.chains.len());
            table.chains.push(chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let name = rule.split(' ').next().unwrap_or_default();
            let chain = chains.get(name).and_then(|index| table.chains.get_mut(*index));
            if let Some(chain) = chain {
                let steps = Parser::new(rule, family, &chains).steps();
                let number = chain.rules.len() as u64 + 1;
                chain.rules.push(Rule { steps, number, text: rule.to_owned() });
            }
        }
    }
    tables
}

fn chain(table: &str, declaration: &str) -> Chain {
    let mut words = declaration.split(' ');
    let name = words.next().unwrap_or_default();
    let drops_by_policy = words.next() == Some("DROP");
    let base = Hook::parse(name).filter(|_| name.chars().all(char::is_uppercase));
    let base = base.map(|hook| Base {
        is_nat: table == "nat",
        hook,
        priority: match (table, hook) {
            ("raw", _) => -300,
            ("mangle", _) => -150,
            ("nat", Hook::Prerouting | Hook::Output) => -100,
            ("nat", _) => 100,
            ("security", _) => 50,
            _ => 0,
        },
        drops_by_policy,
        devices: Vec::new(),
    });
    Chain { name: name.to_owned(), base, rules: Vec::new() }
}

/// The words of a rule.
struct Parser<'a> {
    words: Peekable<IntoIter<String>>,
    family: Family,
    /// The chains of the table.
    chains: &'a HashMap<String, usize>,
}

/// Splits a rule into words. Words with spaces are in double quotes.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut is_quoted, mut is_escaped, mut has_word) = (false, false, false);
    for letter in rule.chars() {
        match letter {
            _ if is_escaped => {
                word.push(letter);
                is_escaped = false;
            }
            '\\' if is_quoted => is_escaped = true,
            '"' => (is_quoted, has_word) = (!is_quoted, true),
            ' ' if !is_quoted => {
                if has_word {
                    words.push(std::mem::take(&mut word));
                }
                has_word = false;
            }
            letter => {
                word.push(letter);
                has_word = true;
            }
        }
    }
    if has_word {
        words.push(word);
    }
    words
}

impl<'a> Parser<'a> {
    fn new(rule: &str, family: Family, chains: &'a HashMap<String, usize>) -> Self {
        let mut words = words(rule).into_iter().peekable();
        // The chain.
        let _ = words.next();
        Self { words, family, chains }
    }

    fn steps(mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut is_negated = false;
        while let Some(option) = self.words.next() {
            match option.as_str() {
                "!" => {
                    is_negated = true;
                    continue;
                }
                "-j" => {
                    steps.extend(self.target());
                    return steps;
                }
                "-g" => {
                    steps.push(Step::Verdict(Verdict::Goto(self.word())));
                    return steps;
                }
                option => steps.extend(self.condition(option, is_negated)),
            }
            is_negated = false;
        }
        steps
    }

    fn word(&mut self) -> String {
        self.words.next().unwrap_or_default()
    }

    /// Skips the values of an unknown option.
    fn skip_values(&mut self) {
        while self.words.next_if(|word| !word.starts_with('-') && word != "!").is_some() {}
    }

    /// Parses an option with its values. Returns `None` if it does not restrict the rule.
    fn condition(&mut self, option: &str, is_negated: bool) -> Option<Step> {
        let family = self.family;
        let (field, items) = match option {
            "-m" => {
                if MODULES.contains(&self.word().as_str()) {
                    return None;
                }
                // The options of a module follow its name.
                let is_option = |word: &String| !matches!(word.as_str(), "-m" | "-j" | "-g");
                while self.words.next_if(is_option).is_some() {}
                return Some(Step::Unclear);
            }
            "--comment" | "--nfacct-name" => {
                self.word();
                return None;
            }
            "-s" => (Field::Source(family), vec![addresses(&self.word())]),
            "-d" => (Field::Destination(family), vec![addresses(&self.word())]),
            "--src-range" => (Field::Source(family), vec![address_range(&self.word())]),
            "--dst-range" => (Field::Destination(family), vec![address_range(&self.word())]),
            "-i" => (Field::Input, vec![device(&self.word())]),
            "-o" => (Field::Output, vec![device(&self.word())]),
            "-p" => {
                let name = self.word();
                if matches!(name.as_str(), "all" | "0") {
                    return None;
                }
                (Field::Protocol, vec![number(protocol(&name))])
            }
            "--sport" | "--source-port" | "--sports" => {
                (Field::SourcePort(None), ports(&self.word()))
            }
            "--dport" | "--destination-port" | "--dports" => {
                (Field::DestinationPort(None), ports(&self.word()))
            }
            "--ctstate" | "--state" => return Some(states(&self.word(), is_negated)),
            "--mark" => return Some(mark(&self.word(), is_negated)),
            "--tcp-flags" => return Some(tcp_flags(&self.word(), &self.word(), is_negated)),
            "--src-type" => (Field::SourceType, types(&self.word())),
            "--dst-type" => (Field::DestinationType, types(&self.word())),
            "--pkt-type" => {
                let is_unicast = self.word() == "unicast";
                let kind = if is_unicast { TYPE_UNICAST } else { OTHER };
                (Field::PacketType, vec![number(kind)])
            }
            "--physdev-is-bridged" => (Field::Bridged, vec![number(IS_BRIDGED)]),
            // The evaluated packets are not fragments.
            "-f" => (Field::PacketType, vec![number(OTHER)]),
            _ => {
                self.skip_values();
                return Some(Step::Unclear);
            }
        };
        Some(matching(Key::of(field), items, is_negated))
    }

    /// Parses the options of the target MARK.
    fn mark_change(&mut self) -> MarkChange {
        let (option, value) = (self.word(), self.word());
        let Some((value, mask)) = mark_with_mask(&value) else { return MarkChange::UNKNOWN };
        match option.as_str() {
            "--set-xmark" => MarkChange::new(mask, value),
            "--set-mark" => MarkChange::new(mask | value, value),
            "--and-mark" => MarkChange::new(!value, 0),
            "--or-mark" => MarkChange::new(value, value),
            "--xor-mark" => MarkChange::new(0, value),
            _ => MarkChange::UNKNOWN,
        }
    }

    /// Parses the options of the target NFQUEUE.
    fn queue(&mut self) -> Verdict {
        let words: Vec<_> = self.words.by_ref().collect();
        if words.iter().any(|word| word == "--queue-bypass") {
            return Verdict::Unclear;
        }
        let value = |option: &str| {
            let at = words.iter().position(|word| word == option)?;
            words.get(at + 1).map(String::as_str)
        };
        let numbers = value("--queue-num").or_else(|| value("--queue-balance")).unwrap_or("0");
        let (first, last) = numbers.split_once(':').unwrap_or((numbers, numbers));
        Verdict::queue(first, last)
    }

    /// Parses the target with its options.
    fn target(&mut self) -> Vec<Step> {
        let target = self.word();
        let verdict = match target.as_str() {
            "ACCEPT" | "MASQUERADE" => Verdict::Accept,
            "SNAT" => Verdict::Translate,
            "NFQUEUE" => self.queue(),
            "DROP" | "REJECT" => Verdict::Drop,
            "RETURN" => Verdict::Return,
            "DNAT" | "REDIRECT" | "NETMAP" | "TPROXY" => {
                return vec![Step::Divert, Step::Verdict(Verdict::Accept)];
            }
            "MARK" => return vec![Step::Mark(self.mark_change())],
            // Other options change the mark of the connection only.
            "CONNMARK" if self.words.any(|word| word == "--restore-mark") => {
                return vec![Step::Mark(MarkChange::UNKNOWN)];
            }
            "CONNMARK" => Verdict::Continue,
            "CT" | "NOTRACK" => return vec![Step::Untrack],
            "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPMSS" | "CHECKSUM" | "AUDIT" | "CLASSIFY"
            | "DSCP" | "TOS" | "TTL" | "HL" | "SET" | "TEE" | "ECN" | "SECMARK" | "CONNSECMARK"
            | "RATEEST" | "TCPOPTSTRIP" => Verdict::Continue,
            chain if self.chains.contains_key(chain) => Verdict::Jump(chain.to_owned()),
            _ => Verdict::Unclear,
        };
        vec![Step::Verdict(verdict)]
    }
}

fn matching(key: Key, items: Vec<Item>, is_negated: bool) -> Step {
    let items = items.into_iter().map(|item| vec![item]).collect();
    let values = Arc::new(Values { items, is_complete: true });
    Step::Match(Condition { keys: vec![key], is_negated, values })
}

const fn number(number: u128) -> Item {
    Item::Span(number, number)
}

/// Parses an address with a prefix length or a mask.
fn addresses(text: &str) -> Item {
    let (address, mask) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else { return Item::Unclear };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match (mask, mask.parse::<IpAddr>()) {
        ("", _) => Some(bits),
        (_, Ok(mask)) => {
            let ones = address_number(mask).count_ones();
            let is_prefix = prefix_span(mask, u8::try_from(ones).unwrap_or_default()).is_some_and(
                |span| matches!(span, Item::Span(first, _) if first == address_number(mask)),
            );
            u8::try_from(ones).ok().filter(|_| is_prefix)
        }
        (length, _) => length.parse().ok(),
    };
    length.and_then(|length| prefix_span(address, length)).unwrap_or(Item::Unclear)
}

/// Parses two addresses with a hyphen.
fn address_range(text: &str) -> Item {
    let ends = text.split_once('-').and_then(|(first, last)| {
        let number = |text: &str| text.parse().ok().map(address_number);
        Some((number(first)?, number(last)?))
    });
    ends.map_or(Item::Unclear, |(first, last)| Item::Span(first, last))
}

fn device(name: &str) -> Item {
    match name.strip_suffix('+') {
        Some("") => Item::Any,
        Some(start) => Item::Name(format!("{start}*")),
        None => Item::Name(name.to_owned()),
    }
}

/// Parses a list of ports and of ranges of ports.
fn ports(text: &str) -> Vec<Item> {
    let port = |text: &str| text.parse::<u16>().map(u128::from);
    let item = |part: &str| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        match (port(first), port(last)) {
            (Ok(first), Ok(last)) => Item::Span(first, last),
            _ => Item::Unclear,
        }
    };
    text.split(',').map(item).collect()
}

fn states(text: &str, is_negated: bool) -> Step {
    let names: Vec<_> = text.split(',').map(str::to_lowercase).collect();
    let is_translation = |name: &&String| matches!(name.as_str(), "dnat" | "snat");
    let items = names.iter().map(|name| match state(name) {
        Some(bit) => number(bit),
        // Packets between agents and between containers are not translated.
        None if is_translation(&name) => number(OTHER),
        None => Item::Unclear,
    });
    let mut step = matching(Key::of(Field::State), items.collect(), is_negated);
    if let Step::Match(condition) = &mut step
        && names.iter().all(|name| is_translation(&name))
    {
        let values = vec![vec![number(STATUS_DNAT)]];
        condition.keys = vec![Key::of(Field::Translations)];
        condition.values = Arc::new(Values { items: values, is_complete: true });
    }
    step
}

fn mark(text: &str, is_negated: bool) -> Step {
    match mark_with_mask(text) {
        Some((value, mask)) => {
            let key = Key { field: Field::Mark, mask: Some(mask.into()) };
            matching(key, vec![number(value.into())], is_negated)
        }
        None => Step::Unclear,
    }
}

/// Parses a mark, with its mask if there is one.
fn mark_with_mask(text: &str) -> Option<(u32, u32)> {
    let parse = |text: &str| {
        let hexadecimal = text.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16));
        hexadecimal.unwrap_or_else(|| text.parse()).ok()
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((parse(value)?, parse(mask)?)),
        None => Some((parse(text)?, u32::MAX)),
    }
}

fn tcp_flags(mask: &str, set: &str, is_negated: bool) -> Step {
    let bits = |names: &str| match names {
        "NONE" => Some(0),
        "ALL" => Some(63),
        names => names
            .split(',')
            .map(|name| tcp_flag(&name.to_lowercase()))
            .try_fold(0, |bits, bit| Some(bits | bit?)),
    };
    match (bits(mask), bits(set)) {
        (Some(mask), Some(set)) => {
            let key = Key { field: Field::TcpFlags, mask: Some(mask) };
            matching(key, vec![number(set)], is_negated)
        }
        _ => Step::Unclear,
    }
}

fn types(text: &str) -> Vec<Item> {
    text.split(',').map(|name| number(address_type(&name.to_lowercase()))).collect()
}

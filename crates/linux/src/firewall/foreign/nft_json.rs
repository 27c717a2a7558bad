//! Parses the output of `nft -j list ruleset`. What the parser does not know becomes an unclear
//! condition or verdict, so it is never the cause of a definite result.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::model::{
    Base, Chain, Condition, Hook, Item, MarkChange, Rule, RuleBackend, Step, Table, TableFamily,
    Values, Verdict,
};
use super::nft_values::{items, key_of, keys_of, pairs};
use super::packet::Untracked;
use crate::firewall::{nft_untracked, nftables, port_mappings, shortcut};

/// A set or a map by table family, table and name.
type SetKey = (String, String, String);

/// The elements of the named sets and maps.
#[derive(Debug, Default)]
pub(super) struct NamedSets {
    sets: BTreeMap<SetKey, Arc<Values>>,
    maps: BTreeMap<SetKey, Vec<(Vec<Item>, Verdict)>>,
}

/// Returns the objects of a listing. An unreadable listing has none.
fn objects(listing: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    objects
        .filter_map(|object| object.as_object()?.iter().next())
        .map(|(kind, object)| (kind.as_str(), object))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// Returns whether a table is a managed table.
fn is_own(family: TableFamily, name: &str) -> bool {
    [nftables::TABLE, shortcut::TABLE, port_mappings::TABLE]
        .iter()
        .any(|table| table.split_once(' ') == Some((family.name(), name)))
}

/// Returns family and name of each foreign table that has a set or a map. A listing without
/// elements has their names only.
pub(super) fn tables_with_sets(listing: &Value) -> Vec<(String, String)> {
    let mut tables = Vec::new();
    for (kind, object) in objects(listing) {
        let Some(family) = TableFamily::parse(text(object, "family")) else { continue };
        let table = (family.name().to_owned(), text(object, "table").to_owned());
        if matches!(kind, "set" | "map") && !is_own(family, &table.1) && !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
}

/// Removes the elements of the sets of the managed table. Returns whether there were any.
pub(super) fn remove_own_elements(listing: &mut Value) -> bool {
    let objects = listing["nftables"].as_array_mut().into_iter().flatten();
    let mut has_elements = false;
    for object in objects.filter_map(Value::as_object_mut).flat_map(|object| object.values_mut()) {
        let family = TableFamily::parse(text(object, "family"));
        if family.is_some_and(|family| is_own(family, text(object, "table")))
            && let Some(object) = object.as_object_mut()
        {
            has_elements |= object.remove("elem").is_some();
        }
    }
    has_elements
}

/// Returns whether a listing has a table that iptables may have made.
pub(super) fn has_iptables_table(listing: &Value) -> bool {
    objects(listing).any(|(kind, table)| {
        kind == "table"
            && matches!(text(table, "family"), "ip" | "ip6")
            && matches!(text(table, "name"), "filter" | "nat" | "mangle" | "raw" | "security")
    })
}

/// Returns whether a listing does not show the device of a chain. nft shows it in JSON since a
/// version after 1.0.6.
pub(super) fn lacks_devices(listing: &Value) -> bool {
    objects(listing).any(|(kind, chain)| {
        let is_on_device = matches!(text(chain, "hook"), "ingress" | "egress");
        let family = TableFamily::parse(text(chain, "family"));
        let is_own = family.is_some_and(|family| is_own(family, text(chain, "table")));
        kind == "chain" && is_on_device && !is_own && chain.get("dev").is_none()
    })
}

/// Returns which packets the managed rules keep out of connection tracking.
pub(super) fn untracked(listing: &Value) -> Untracked {
    let has_rule = |chain: &str| {
        objects(listing).any(|(kind, rule)| {
            let family = TableFamily::parse(text(rule, "family"));
            kind == "rule"
                && text(rule, "chain") == chain
                && family.is_some_and(|family| is_own(family, text(rule, "table")))
        })
    };
    Untracked {
        of_containers: has_rule(nft_untracked::CHAIN),
        of_tunnels: has_rule(nft_untracked::OUTPUT_CHAIN),
    }
}

/// Adds the elements of a listing.
pub(super) fn add_sets(sets: &mut NamedSets, listing: &Value) {
    for (kind, object) in objects(listing) {
        let key = (
            text(object, "family").to_owned(),
            text(object, "table").to_owned(),
            text(object, "name").to_owned(),
        );
        let elements = &object["elem"];
        match kind {
            "set" => {
                let values = Values { items: items(elements), is_complete: true };
                sets.sets.insert(key, Arc::new(values));
            }
            "map" => {
                let entries = pairs(elements).map(|(key, value)| (key, verdict_of(value)));
                sets.maps.insert(key, entries.collect());
            }
            _ => {}
        }
    }
}

/// Parses the foreign tables of a listing. `sets` has the elements of their sets.
pub(super) fn tables(listing: &Value, sets: &NamedSets) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    // Index of each chain in its table.
    let mut chains = HashMap::new();
    for (kind, object) in objects(listing) {
        let name = text(object, if kind == "table" { "name" } else { "table" });
        let Some(family) = TableFamily::parse(text(object, "family")) else { continue };
        if is_own(family, name) {
            continue;
        }
        let position =
            tables.iter().position(|table| (table.family, &*table.name) == (family, name));
        match (kind, position) {
            ("table", None) => tables.push(Table {
                backend: RuleBackend::Nftables,
                program: "nft",
                family,
                name: name.to_owned(),
                chains: Vec::new(),
            }),
            ("chain", Some(position)) => {
                let table = &mut tables[position];
                chains.insert((position, text(object, "name")), table.chains.len());
                table.chains.push(chain(object));
            }
            ("rule", Some(position)) => {
                let table = &mut tables[position];
                let scope = Scope { sets, family: family.name(), table: name };
                let chain = chains.get(&(position, text(object, "chain")));
                if let Some(chain) = chain.and_then(|index| table.chains.get_mut(*index)) {
                    chain.rules.push(scope.rule(object));
                }
            }
            _ => {}
        }
    }
    tables
}

fn chain(object: &Value) -> Chain {
    let base = Hook::parse(text(object, "hook")).map(|hook| Base {
        is_nat: text(object, "type") == "nat",
        hook,
        priority: object["prio"].as_i64().unwrap_or_default(),
        drops_by_policy: text(object, "policy") == "drop",
        devices: match &object["dev"] {
            Value::String(device) => vec![device.clone()],
            Value::Array(devices) => {
                devices.iter().filter_map(|device| Some(device.as_str()?.to_owned())).collect()
            }
            _ => Vec::new(),
        },
    });
    Chain { name: text(object, "name").to_owned(), base, rules: Vec::new() }
}

/// The table of a rule, for its named sets.
struct Scope<'a> {
    sets: &'a NamedSets,
    family: &'a str,
    table: &'a str,
}

impl Scope<'_> {
    fn rule(&self, object: &Value) -> Rule {
        let statements = object["expr"].as_array().into_iter().flatten();
        let steps = statements.filter_map(|statement| {
            let (kind, value) = statement.as_object()?.iter().next()?;
            self.step(kind, value)
        });
        let steps = steps.collect();
        Rule { steps, number: object["handle"].as_u64().unwrap_or_default(), text: String::new() }
    }

    /// Returns a statement. `None` if it does not matter.
    fn step(&self, kind: &str, value: &Value) -> Option<Step> {
        Some(match kind {
            "counter" | "log" | "comment" | "last" | "ct helper" | "ct timeout" | "flow"
            | "secmark" => return None,
            "match" => self.condition(value),
            "vmap" => self.map(value),
            "mangle" => match text(&value["key"]["meta"], "key") {
                "mark" => Step::Mark(mark_change(&value["value"])),
                // Another part of the packet or of its state changes.
                _ => return None,
            },
            "notrack" => Step::Untrack,
            "dnat" | "redirect" | "tproxy" | "fwd" => Step::Divert,
            "accept" | "drop" | "reject" | "return" | "continue" | "jump" | "goto" => {
                Step::Verdict(verdict(kind, value))
            }
            "masquerade" => Step::Verdict(Verdict::Accept),
            // An address from a map or a range is not known.
            "snat" if value["addr"].is_string() => Step::Verdict(Verdict::Translate),
            "snat" => Step::Verdict(Verdict::Accept),
            "queue" => Step::Verdict(queue(value)),
            "synproxy" => Step::Verdict(Verdict::Unclear),
            "xt" if text(value, "type") == "target" => Step::Verdict(Verdict::Unclear),
            _ => Step::Unclear,
        })
    }

    fn set_key(&self, name: &str) -> SetKey {
        (self.family.to_owned(), self.table.to_owned(), name.to_owned())
    }

    fn condition(&self, value: &Value) -> Step {
        let (left, right, operator) = (&value["left"], &value["right"], text(value, "op"));
        if let Some(name) = right.as_str().and_then(|right| right.strip_prefix('@')) {
            let Some(values) = self.sets.sets.get(&self.set_key(name)) else {
                return Step::Unclear;
            };
            let (keys, values) = (keys_of(left), Arc::clone(values));
            return Step::Match(Condition { keys, is_negated: operator == "!=", values });
        }
        let mut keys = keys_of(left);
        let mut is_negated = operator == "!=";
        let mut found = items_of(right);
        match (operator, &mut keys[..]) {
            ("==" | "!=", _) => {}
            // The condition holds if one of the bits is set.
            ("in", [key]) if key.mask.is_none() && is_bit_mask(left) => {
                let bits = found.iter().flatten().map(|item| match item {
                    Item::Span(bit, last) if bit == last => Some(*bit),
                    _ => None,
                });
                let Some(mask) = bits.collect::<Option<Vec<_>>>() else { return Step::Unclear };
                key.mask = Some(mask.into_iter().fold(0, |mask, bit| mask | bit));
                (found, is_negated) = (vec![vec![Item::Span(0, 0)]], true);
            }
            ("<" | "<=" | ">" | ">=", [_]) => {
                let [[Item::Span(first, last)]] =
                    found.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
                else {
                    return Step::Unclear;
                };
                let span = match operator {
                    "<" => first.checked_sub(1).map(|last| Item::Span(0, last)),
                    "<=" => Some(Item::Span(0, *last)),
                    ">" => last.checked_add(1).map(|first| Item::Span(first, u128::MAX)),
                    _ => Some(Item::Span(*first, u128::MAX)),
                };
                found = vec![vec![span.unwrap_or(Item::Unclear)]];
            }
            _ => return Step::Unclear,
        }
        let values = Arc::new(Values { items: found, is_complete: true });
        Step::Match(Condition { keys, is_negated, values })
    }

    fn map(&self, value: &Value) -> Step {
        let keys = keys_of(&value["key"]);
        if let Some(name) = value["data"].as_str().and_then(|data| data.strip_prefix('@')) {
            let entries = self.sets.maps.get(&self.set_key(name)).cloned();
            let is_complete = entries.is_some();
            return Step::Map { keys, entries: entries.unwrap_or_default(), is_complete };
        }
        let entries = pairs(&value["data"]["set"]);
        let entries = entries.map(|(key, value)| (key, verdict_of(value))).collect();
        Step::Map { keys, entries, is_complete: true }
    }
}

/// Returns the change of a mark: a number, or bits that are set, cleared or flipped.
fn mark_change(value: &Value) -> MarkChange {
    let bits = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let operation = |name: &str| {
        let [mark, operand] = value[name].as_array()?.as_slice() else { return None };
        bits(operand).filter(|_| text(&mark["meta"], "key") == "mark")
    };
    let all = || bits(value).map(|number| MarkChange::new(u32::MAX, number));
    let set = || operation("|").map(|bits| MarkChange::new(bits, bits));
    let kept = || operation("&").map(|bits| MarkChange::new(!bits, 0));
    let flipped = || operation("^").map(|bits| MarkChange::new(0, bits));
    all().or_else(set).or_else(kept).or_else(flipped).unwrap_or(MarkChange::UNKNOWN)
}

/// Returns the values on the right side of a comparison.
fn items_of(right: &Value) -> Vec<Vec<Item>> {
    match right {
        Value::Array(_) => items(right),
        right if right.get("set").is_some() => items(&right["set"]),
        right => items(&Value::Array(vec![right.clone()])),
    }
}

/// Returns whether the values of a part are bits.
fn is_bit_mask(left: &Value) -> bool {
    let is_connection = matches!(text(&left["ct"], "key"), "state" | "status");
    is_connection || (text(&left["payload"], "field") == "flags" && key_of(left).mask.is_none())
}

/// Returns the verdict of a queue: a number or a range, and flags.
fn queue(value: &Value) -> Verdict {
    let flags = &value["flags"];
    let has_flag = |flag: &str| {
        flags.as_str() == Some(flag)
            || flags.as_array().is_some_and(|flags| flags.iter().any(|found| found == flag))
    };
    let number = match &value["num"] {
        _ if has_flag("bypass") => return Verdict::Unclear,
        Value::Null => [&Value::from(0), &Value::from(0)].map(ToString::to_string),
        number @ Value::Number(_) => [number.to_string(), number.to_string()],
        number => [&number["range"][0], &number["range"][1]].map(ToString::to_string),
    };
    Verdict::queue(&number[0], &number[1])
}

fn verdict_of(value: &Value) -> Verdict {
    let entry = value.as_object().and_then(|object| object.iter().next());
    entry.map_or(Verdict::Unclear, |(kind, value)| verdict(kind, value))
}

fn verdict(kind: &str, value: &Value) -> Verdict {
    let target = || text(value, "target").to_owned();
    match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        _ => Verdict::Unclear,
    }
}

//! Reads the rules of all programs on this host, in every backend that the kernel consults.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use overlay_types::addr::Family;
use serde_json::Value;
use tokio::time::Instant;

use super::model::{RuleBackend, Step, Table, TableFamily};
use super::packet::Untracked;
use super::{iptables_save, nft_json};
use crate::firewall::command::{FirewallError, SystemTools, Tools};
use crate::subprocess::find_system_program;

/// The rules of a host, as the programs list them without counters. The default has no rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Listing {
    /// `nft -j list ruleset` without the elements of sets. `None` if there is no nft.
    pub nft: Option<String>,
    /// `nft -j list table` for each table that has sets.
    pub nft_sets: Vec<String>,
    /// `nft -a list ruleset` without the elements of sets. It has the text of the rules, so it is
    /// read only if a rule is shown.
    pub nft_text: String,
    /// `iptables-save` of each backend and family that has rules.
    pub iptables: Vec<SavedTables>,
    /// The queues of packets that programs read. `None` if it is unknown.
    pub read_queues: Option<BTreeSet<u16>>,
    /// Why rules could not be read.
    pub errors: Vec<ListingError>,
    /// The rules that could not be read.
    pub unread: BTreeSet<UnreadRules>,
}

/// Rules that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnreadRules {
    /// All tables of nftables.
    Nftables,
    /// The elements of the sets of a table of nftables: its family and its name.
    Sets(String, String),
    /// The tables of iptables of a family. The backend is `None` if the default program, whose
    /// backend is unknown, failed.
    Iptables(Family, Option<RuleBackend>),
}

/// Why rules could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListingError {
    /// Whether the rules are those of iptables.
    pub is_iptables: bool,
    /// The error with its remedy.
    pub reason: String,
}

/// The tables of iptables of one backend and family.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SavedTables {
    /// The address family.
    pub family: Family,
    /// The output of `iptables-save`, `ip6tables-save` and their variants.
    pub text: String,
    /// Whether the program of the host's default changes the tables.
    pub is_default: bool,
}

/// Time for which the rules of a known generation are not listed again. The kernel changes rules
/// without a transaction too: it removes the chains of a device that ends, and the tables of an owner
/// that ends.
const RULESET_MAX: Duration = Duration::from_mins(2);
/// Files of netfilter, of the network namespace of this process.
const NETFILTER: &str = "/proc/net/netfilter";
/// Maximum size of a listing. The evaluation needs about ten times as much memory.
const BYTES_MAX: usize = 8 << 20;
/// Size of a listing of sets for which it is kept for a second. Listing a set with 100,000 elements
/// takes about a second of CPU.
const BYTES_PER_SECOND: usize = 32 << 10;

/// What was read before.
#[derive(Debug, Default)]
pub(super) struct KnownListings {
    ruleset: Option<Ruleset>,
    /// The listings of the tables that have sets, each with its time.
    sets: BTreeMap<(String, String), (Instant, String)>,
}

/// The rules of nftables at a generation. Packets change elements of sets, and no rules.
#[derive(Debug, Clone)]
struct Ruleset {
    /// `None` if it is unknown.
    generation: Option<u32>,
    listed: Instant,
    listing: String,
    tables_with_sets: Vec<(String, String)>,
    has_iptables_table: bool,
    lacks_devices: bool,
}

impl Ruleset {
    /// Parses a listing. The elements of our sets, which change with the peers, are left out.
    fn parse(generation: Option<u32>, listed: Instant, listing: String) -> Option<Self> {
        let mut ruleset = parse(&listing)?;
        let has_own = nft_json::remove_own_elements(&mut ruleset);
        Some(Self {
            generation,
            listed,
            listing: if has_own { ruleset.to_string() } else { listing },
            tables_with_sets: nft_json::tables_with_sets(&ruleset),
            has_iptables_table: nft_json::has_iptables_table(&ruleset),
            lacks_devices: nft_json::lacks_devices(&ruleset),
        })
    }
}

impl KnownListings {
    /// Lists the rules of nftables again at the next time, whatever their generation is.
    pub(super) fn forget_ruleset(&mut self) {
        self.ruleset = None;
    }

    /// Returns the kept listing of a table. A larger listing is kept for longer, so that listing
    /// the sets takes about one percent of a CPU at most.
    fn kept(&self, table: &(String, String), now: Instant) -> Option<&String> {
        let (at, listing) = self.sets.get(table)?;
        let seconds = u64::try_from(listing.len() / BYTES_PER_SECOND).unwrap_or(u64::MAX);
        let is_kept = now.saturating_duration_since(*at) < Duration::from_secs(seconds);
        is_kept.then_some(listing)
    }
}

/// Returns the numbers of the queues that programs read.
pub(super) fn read_queues(netfilter: &Path) -> Option<BTreeSet<u16>> {
    match fs::read_to_string(netfilter.join("nfnetlink_queue")) {
        Ok(text) => {
            let number = |line: &str| line.split_whitespace().next()?.parse().ok();
            Some(text.lines().filter_map(number).collect())
        }
        // The file is that of the module nfnetlink_queue, as in Debian's 6.1 and 6.12. The first
        // program that reads a queue loads the module.
        Err(error) if error.kind() == ErrorKind::NotFound && netfilter.is_dir() => {
            Some(BTreeSet::new())
        }
        Err(_) => None,
    }
}

/// The programs that list the tables of a family: the default, and those of one backend.
const fn save_programs(family: Family) -> [&'static str; 3] {
    match family {
        Family::V4 => ["iptables-save", "iptables-nft-save", "iptables-legacy-save"],
        Family::V6 => ["ip6tables-save", "ip6tables-nft-save", "ip6tables-legacy-save"],
    }
}

impl Listing {
    /// Reads the rules of this host, with the text of the rules of nftables.
    #[must_use]
    pub fn read() -> Self {
        let mut listing =
            Self::read_with(&SystemTools::default(), &mut KnownListings::default(), Instant::now());
        listing.read_text(&SystemTools::default());
        listing
    }

    /// Returns whether rules of some backend were read, or the host has no backend.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.nft.is_some() || !self.iptables.is_empty()
    }

    /// Reads the rules, without those that `known` has.
    pub(super) fn read_with(tools: &dyn Tools, known: &mut KnownListings, now: Instant) -> Self {
        let mut listing =
            Self { read_queues: read_queues(Path::new(NETFILTER)), ..Self::default() };
        if tools.has("nft") {
            listing.read_ruleset(tools, known, now);
        }
        let ruleset = known.ruleset.clone();
        let tables = ruleset.as_ref().map(|ruleset| ruleset.tables_with_sets.clone());
        let tables = tables.unwrap_or_default();
        known.sets.retain(|table, _| tables.contains(table));
        for table in tables {
            listing.read_sets(tools, known, table, now);
        }
        if ruleset.as_ref().is_some_and(|ruleset| ruleset.lacks_devices) {
            listing.read_text(tools);
        }
        // Without a list of the tables of nftables, iptables may have some of them.
        let has_nft_tables = ruleset.is_none_or(|ruleset| ruleset.has_iptables_table);
        for family in [Family::V4, Family::V6] {
            listing.read_iptables(tools, family, has_nft_tables);
        }
        listing
    }

    /// Reads the rules of nftables, unless no program has changed them since they were read.
    fn read_ruleset(&mut self, tools: &dyn Tools, known: &mut KnownListings, now: Instant) {
        let generation = tools.generation();
        let is_known = |known: &Ruleset| {
            generation.is_some()
                && known.generation == generation
                && now.saturating_duration_since(known.listed) < RULESET_MAX
        };
        if !known.ruleset.as_ref().is_some_and(is_known) {
            known.ruleset = None;
            match list_ruleset(tools) {
                Ok(text) => {
                    let Some(text) = self.bounded(text, UnreadRules::Nftables) else { return };
                    self.nft = Some(text.clone());
                    // A change while nft lists the rules may be in the listing, or not.
                    let generation = generation.filter(|_| tools.generation() == generation);
                    known.ruleset = Ruleset::parse(generation, now, text);
                }
                Err(error) => return self.note(&error, UnreadRules::Nftables),
            }
        }
        if let Some(ruleset) = &known.ruleset {
            self.nft = Some(ruleset.listing.clone());
        }
    }

    /// Reads the elements of the sets of a table.
    fn read_sets(
        &mut self,
        tools: &dyn Tools,
        known: &mut KnownListings,
        table: (String, String),
        now: Instant,
    ) {
        if let Some(kept) = known.kept(&table, now) {
            self.nft_sets.push(kept.clone());
            return;
        }
        let unread = UnreadRules::Sets(table.0.clone(), table.1.clone());
        match tools.run("nft", &["-j", "-s", "list", "table", &table.0, &table.1], "") {
            Ok(listing) => {
                if let Some(listing) = self.bounded(listing, unread) {
                    self.nft_sets.push(listing.clone());
                    known.sets.insert(table, (now, listing));
                }
            }
            Err(error) => self.note(&error, unread),
        }
    }

    /// Returns a listing, unless it is too large to be evaluated.
    fn bounded(&mut self, text: String, unread: UnreadRules) -> Option<String> {
        if text.len() <= BYTES_MAX {
            return Some(text);
        }
        let (size, max) = (text.len() >> 20, BYTES_MAX >> 20);
        let reason = format!(
            "the listing of {unread} has {size} MiB, of which the agent evaluates {max}: use sets \
             with fewer elements, or fewer rules"
        );
        self.errors.push(ListingError { is_iptables: unread.is_iptables(), reason });
        self.unread.insert(unread);
        None
    }

    /// Notes an error. A kernel without a backend has no rules of the backend.
    fn note(&mut self, error: &FirewallError, unread: UnreadRules) {
        if !error.is_unsupported() {
            let reason = match error {
                FirewallError::Refused { message, .. } if message.contains("JSON") => format!(
                    "nft cannot list rules as JSON ({message}): install an nft with support for \
                     JSON"
                ),
                error => error.to_string(),
            };
            self.errors.push(ListingError { is_iptables: unread.is_iptables(), reason });
            self.unread.insert(unread);
        }
    }

    /// Reads the tables of iptables. The variant for legacy tables creates tables, so it runs only
    /// if the kernel has some.
    fn read_iptables(&mut self, tools: &dyn Tools, family: Family, has_nft_tables: bool) {
        let [default, nft, legacy] = save_programs(family);
        let mut programs = Vec::new();
        if has_nft_tables {
            programs.push(if tools.has(nft) { nft } else { default });
        }
        if has_legacy_tables(family) {
            programs.push(if tools.has(legacy) { legacy } else { default });
        }
        programs.dedup();
        let unread = |program| {
            let backends = [(nft, RuleBackend::IptablesNft), (legacy, RuleBackend::IptablesLegacy)];
            let backend = backends.into_iter().find(|(name, _)| *name == program);
            UnreadRules::Iptables(family, backend.map(|(_, backend)| backend))
        };
        for program in programs.into_iter().filter(|program| tools.has(program)) {
            match tools.run(program, &[], "") {
                Ok(text) if text.is_empty() => {}
                Ok(text) => {
                    let Some(text) = self.bounded(text, unread(program)) else { continue };
                    let is_default = is_nft(&text) == is_default_nft(default);
                    let text = without_counters(&text);
                    self.iptables.push(SavedTables { family, text, is_default });
                }
                Err(error) => self.note(&error, unread(program)),
            }
        }
    }

    /// Reads the text of the rules of nftables.
    pub(super) fn read_text(&mut self, tools: &dyn Tools) {
        if self.nft.is_none() || !self.nft_text.is_empty() {
            return;
        }
        match tools.run("nft", &["-a", "-s", "-t", "list", "ruleset"], "") {
            Ok(text) => self.nft_text = text,
            // The rules are known, only their text is not.
            Err(error) => {
                let reason = error.to_string();
                self.errors.push(ListingError { is_iptables: false, reason });
            }
        }
    }

    /// Returns all tables except the managed table. Tables that iptables lists are not taken from
    /// nftables: nft does not show the conditions of iptables.
    pub(super) fn tables(&self) -> Vec<Table> {
        let mut tables = self.tables_with_queues();
        let chains = tables.iter_mut().flat_map(|table| &mut table.chains);
        for step in chains.flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.steps) {
            if let Step::Verdict(verdict) = step {
                verdict.resolve_queue(self.read_queues.as_ref());
            }
        }
        tables
    }

    /// Returns which packets the managed rules keep out of connection tracking.
    pub(super) fn untracked(&self) -> Untracked {
        let ruleset = self.nft.as_deref().and_then(parse);
        ruleset.map(|ruleset| nft_json::untracked(&ruleset)).unwrap_or_default()
    }

    fn tables_with_queues(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        for saved in &self.iptables {
            let (backend, program) = saved.backend();
            tables.extend(iptables_save::tables(&saved.text, saved.family, backend, program));
        }
        let Some(ruleset) = self.nft.as_deref().and_then(parse) else { return tables };
        let mut sets = nft_json::NamedSets::default();
        for listing in self.nft_sets.iter().filter_map(|listing| parse(listing)) {
            nft_json::add_sets(&mut sets, &listing);
        }
        let is_saved = |table: &Table| {
            tables.iter().any(|saved| {
                saved.backend == RuleBackend::IptablesNft
                    && (saved.family, &saved.name) == (table.family, &table.name)
            })
        };
        let mut native = nft_json::tables(&ruleset, &sets);
        native.retain(|table| !is_saved(table));
        self.add_devices(&mut native);
        tables.extend(native);
        tables
    }

    /// Adds the devices of chains whose devices are only in the text.
    fn add_devices(&self, tables: &mut [Table]) {
        for table in tables {
            let lines: Vec<_> = self.lines_of(table.family, &table.name).collect();
            for chain in &mut table.chains {
                let Some(base) = chain.base.as_mut().filter(|base| base.devices.is_empty()) else {
                    continue;
                };
                let start = format!("chain {} {{", chain.name);
                let mut lines = lines.iter().skip_while(|line| !line.trim().starts_with(&start));
                // The line after the name has type, hook and device.
                let devices = lines.nth(1).and_then(|line| line.split_once(" device"));
                let devices = devices.and_then(|(_, rest)| rest.split_once(" priority "));
                // Every second part is between quotes.
                let names =
                    devices.iter().flat_map(|(names, _)| names.split('"').skip(1).step_by(2));
                base.devices.extend(names.map(str::to_owned));
            }
        }
    }

    /// Returns the lines of a table in the text of the rules of nftables.
    fn lines_of(&self, family: TableFamily, name: &str) -> impl Iterator<Item = &str> {
        let block = format!("table {} {name} {{", family.name());
        let lines = self.nft_text.lines().skip_while(move |line| !line.starts_with(&block));
        lines.take_while(|line| *line != "}")
    }

    /// Returns the text of a rule of nftables.
    pub(super) fn rule_text(&self, table: &Table, handle: u64) -> Option<&str> {
        let mut lines = self.lines_of(table.family, &table.name);
        let end = format!(" # handle {handle}");
        // Chains and sets have handles too.
        let rule = lines.find_map(|line| line.strip_suffix(&end).filter(|line| !is_block(line)));
        rule.map(str::trim)
    }
}

fn is_block(line: &str) -> bool {
    line.ends_with('{')
}

impl UnreadRules {
    const fn is_iptables(&self) -> bool {
        matches!(self, Self::Iptables(..))
    }
}

impl fmt::Display for UnreadRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Sets(family, table) => write!(f, "the sets of table {family} {table}"),
            Self::Iptables(family, _) => f.write_str(save_programs(*family)[0]),
        }
    }
}

impl SavedTables {
    /// Returns the backend, and the program that changes the tables.
    fn backend(&self) -> (RuleBackend, &'static str) {
        let names = match self.family {
            Family::V4 => ["iptables", "iptables-nft", "iptables-legacy"],
            Family::V6 => ["ip6tables", "ip6tables-nft", "ip6tables-legacy"],
        };
        let [default, nft, legacy] = names;
        let (backend, program) = if is_nft(&self.text) {
            (RuleBackend::IptablesNft, nft)
        } else {
            (RuleBackend::IptablesLegacy, legacy)
        };
        (backend, if self.is_default { default } else { program })
    }
}

/// Lists all tables of nftables without the elements of sets. nft before 0.9.1 does not know the
/// option, and nft before 1.0.1 ignores it for JSON: both list the elements too.
fn list_ruleset(tools: &dyn Tools) -> Result<String, FirewallError> {
    match tools.run("nft", &["-j", "-s", "-t", "list", "ruleset"], "") {
        Err(FirewallError::Refused { message, .. }) if message.contains("option") => {
            tools.run("nft", &["-j", "-s", "list", "ruleset"], "")
        }
        result => result,
    }
}

fn parse(listing: &str) -> Option<Value> {
    serde_json::from_str(listing).ok()
}

/// Returns whether the first line of a listing names nftables.
fn is_nft(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    first.contains("nf_tables") || first.contains("-nft-save")
}

/// Returns whether the default program uses nftables: it is a link to the program of its backend.
fn is_default_nft(default: &str) -> bool {
    let target = find_system_program(default).and_then(|path| fs::canonicalize(path).ok());
    let name = target.as_ref().and_then(|path| path.file_name());
    name.is_some_and(|name| name.to_string_lossy().contains("nft"))
}

/// Returns whether the kernel has tables of the former backend in this network namespace.
fn has_legacy_tables(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).is_ok_and(|names| !names.trim().is_empty())
}

/// Removes the counters of the chains, and the times in the comments.
fn without_counters(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with(':') {
            lines.push(line.split(" [").next().unwrap_or(line));
        } else if line.starts_with('#') {
            lines.push(line.split(" on ").next().unwrap_or(line));
        } else {
            lines.push(line);
        }
    }
    lines.join("\n")
}

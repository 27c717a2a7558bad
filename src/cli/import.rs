//! `mesos-overlay import`.
//!
//! All checks run before the first write. The new state takes effect as a whole or not at all: see
//! [`overlay_store::Archive`].

use std::path::PathBuf;

use clap::Args;
use overlay_store::{ImportedState, Snapshot, parse_state};
use overlay_wire::Inventory;
use serde::Serialize;

use super::Failure;
use super::output::{DryRun, Output, OutputFormat, print_error, sanitize};
use super::process::{display_name, pluralize, read_bytes};
use super::progress::Progress;
use super::response::is_json_within;
use super::store_uri::{StoreOptions, StoreUri, network_required, store_failure};

/// Longest file. A state of 20,000 agents with a full history has 15 MiB in the form of `export`,
/// and 120 MiB as the JSON of a master with ten overlays.
const FILE_MAX: u64 = 256 * 1024 * 1024;
/// Most memory that parsed JSON may take. The state of a master takes 10 times the length of its
/// text, which reaches this limit at 100 MiB. Hostile JSON takes 90 times its length.
const MEMORY_MAX: usize = 1024 * 1024 * 1024;

/// Write the state of a file into a store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay import state.json --to zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay --dry-run
  mesos-overlay import state.json --to zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay
  mesos-overlay import state.json --to file --work-dir /var/lib/mesos-overlay --replace
  mesos-overlay import state.pb --to log:/var/lib/mesos/overlay_replicated_log --config network.json
  curl 10.0.0.1:5050/overlay-master/state | mesos-overlay import - --to file

Accepts the files of `export`, in either form, and the JSON state of a master, of mesos-overlay or
of the C++ module. Stop all masters of the store first. Start them afterwards: every agent keeps its
addresses. An interrupted import leaves the former state, or the whole new state, or a store that
masters refuse until the import is repeated.")]
pub(super) struct ImportCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The store: 'file', in the work directory; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, or
    /// file:///PATH of a file with such an address; log:DIR, a replicated log of Mesos, to be
    /// copied to every master of the cluster
    // The value may contain a password, which neither the help nor the errors of clap may show.
    #[arg(long, env = "MESOS_OVERLAY_TO", value_name = "STORE", hide_env_values = true)]
    to: String,
    /// Replace the state that is in the store
    #[arg(
        long,
        env = "MESOS_OVERLAY_REPLACE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    replace: bool,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    format: OutputFormat,
}

/// The output with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    dry_run: bool,
    imported: Inventory,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Inventory>,
    /// The version of the store after the import.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// The directory of the former state, if the store keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<PathBuf>,
    warnings: Vec<String>,
}

impl ImportCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let uri = StoreUri::from_flag("--to", &self.to)?;
        let network = self.store.network()?;
        if matches!(uri, StoreUri::ReplicatedLog(_)) && network.is_none() {
            return Err(network_required("--to log"));
        }
        let ImportedState { records, counts, mut warnings } = self.read()?;
        let progress = Progress::start("opening the store");
        let mut store = self.store.open(&uri, network)?;
        self.store.refuse_running_masters(&store)?;
        let former = store.archive.read_snapshot().map_err(store_failure)?;
        let former = former.filter(|former| !former.is_empty());
        if let Some(former) = &former {
            self.require_replace_flag(&store.name, former)?;
            warnings.extend(unknown_records_warning(former));
        }
        let mut report = Report {
            store: store.name,
            dry_run: self.dry_run.dry_run,
            imported: Inventory::of(&records),
            replaced: former.map(|former| Inventory::of(&former.records)),
            version: None,
            kept: None,
            warnings,
        };
        if !report.dry_run {
            progress.describe("writing the state into the store");
            let replaced = store.archive.replace(&records, counts).map_err(store_failure)?;
            report.version = Some(replaced.version.0);
            report.kept = replaced.kept;
        }
        drop(progress);
        self.format.print(&report, |output| print(output, &report))
    }

    fn read(&self) -> Result<ImportedState, Failure> {
        let name = display_name(&self.file);
        let bytes = read_bytes(&self.file, FILE_MAX)?;
        if bytes.trim_ascii_start().starts_with(b"{") && !is_json_within(&bytes, MEMORY_MAX) {
            return Err(Failure::new(format!(
                "{name}: reading it would take more than {} MiB of memory: it is no state: is it \
                 the right file?",
                MEMORY_MAX / (1024 * 1024)
            )));
        }
        let problems = match parse_state(&bytes) {
            Ok(content) => return Ok(content),
            Err(problems) => problems,
        };
        if let [problem] = &*problems {
            return Err(Failure::new(format!("{name}: {}", sanitize(problem))));
        }
        for problem in &problems {
            print_error(format_args!("{name}: {}", sanitize(problem)));
        }
        let count = pluralize(problems.len() as u128, "problem");
        Err(Failure::new(format!("{name}: {count}: nothing was imported: fix them and try again")))
    }

    fn require_replace_flag(&self, name: &str, former: &Snapshot) -> Result<(), Failure> {
        if self.replace {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{name}: holds a state: {} (version {}): export it first, then replace it with \
             --replace",
            Inventory::of(&former.records),
            former.counts.version
        )))
    }
}

fn print(output: &mut Output, report: &Report) -> Result<(), Failure> {
    output.labelled_lines("warning", &report.warnings)?;
    let Report { store, imported, .. } = report;
    let replaced = report.replaced.map(|former| format!(" in the place of {former}"));
    let replaced = replaced.unwrap_or_default();
    match report.version {
        None => output.line(format_args!("{store}: would get {imported}{replaced}"))?,
        Some(version) => {
            output.line(format_args!("{store}: {imported}{replaced} (version {version})"))?;
        }
    }
    if let Some(kept) = &report.kept {
        output.line(format_args!("the former directory is {}", kept.display()))?;
    }
    Ok(())
}

/// Returns a warning if the import does not replace all records.
fn unknown_records_warning(former: &Snapshot) -> Option<String> {
    let count = former.unknown.len();
    (count > 0).then(|| {
        format!(
            "a later version of mesos-overlay has written {} that this version does not know: they \
             stay in the store",
            pluralize(count as u128, "record")
        )
    })
}

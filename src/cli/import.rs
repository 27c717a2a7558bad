//! `mesos-overlay import`.
//!
//! Everything that can be refused is refused before anything is written. What is written counts as
//! a whole or not at all: see [`crate::store::Archive`].

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::answer::is_json_within;
use super::host::{counted, name_of, read_bytes};
use super::output::{Form, Output, complain, harmless};
use super::place::{Place, StoreOptions, failure};
use crate::store::{Content, Snapshot, read_form};
use crate::wire::Inventory;

/// Longest file. A state of 20,000 agents with a full history has 15 MiB in the form of `export`,
/// and 120 MiB in that of a master with ten overlays.
const FILE_MAX: u64 = 256 * 1024 * 1024;
/// Most memory that JSON may take when it is read. The state of a master takes 10 times the length
/// of its text, and no more than this at 100 MiB; hostile JSON takes 90 times its length.
const MEMORY_MAX: usize = 1024 * 1024 * 1024;

/// Put the state of a file into a store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay import state.json --to zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay --dry-run
  mesos-overlay import state.json --to zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay
  mesos-overlay import state.json --to file --work-dir /var/lib/mesos-overlay --replace
  mesos-overlay import state.pb --to log:/var/lib/mesos/overlay_replicated_log --config network.json
  curl 10.0.0.1:5050/overlay-master/state | mesos-overlay import - --to file

Takes what `export` has written, in either form, and the JSON that a master shows, ours or the C++ module.
Stop all masters of the store first. A master that is started on it afterwards gives every agent what it
had. What is interrupted leaves the store as it was, or with all of the new state, or such that no master
takes it before the import is done again.")]
pub(super) struct ImportCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The store: 'file', in the work directory; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, or
    /// file:///PATH of a file with such an address; log:DIR, a replicated log of Mesos, to be
    /// copied to every master of the cluster
    // It may hold a password, which neither the help nor clap's own errors are to show.
    #[arg(long, env = "MESOS_OVERLAY_TO", value_name = "STORE", hide_env_values = true)]
    to: String,
    /// Put it in the place of the state that is there
    #[arg(
        long,
        env = "MESOS_OVERLAY_REPLACE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    replace: bool,
    /// Show what would be done, and do nothing
    #[arg(
        long,
        env = "MESOS_OVERLAY_DRY_RUN",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    dry_run: bool,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    form: Form,
}

/// With `--json`.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    dry_run: bool,
    imported: Inventory,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Inventory>,
    /// Of the store, if it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// Where the former state is, if it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<PathBuf>,
    warnings: Vec<String>,
}

impl ImportCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let place = self.to.parse::<Place>();
        let place = place.map_err(|error| Failure::usage(format!("--to: {error}")))?;
        let network = self.store.network()?;
        if matches!(place, Place::Log(_)) && network.is_none() {
            return Err(Failure::usage(
                "--to log: the C++ modules want to know the network: give its file as --config",
            ));
        }
        let Content { records, counts, doubts: mut warnings } = self.read()?;
        let mut store = self.store.open(&place, network)?;
        self.store.refuse_running_masters(&store)?;
        let former = store.archive.look().map_err(failure)?.filter(|former| !former.is_empty());
        if let Some(former) = &former {
            self.refuse_former(&store.name, former)?;
            warnings.extend(stays(former));
        }
        let mut report = Report {
            store: store.name,
            dry_run: self.dry_run,
            imported: Inventory::of(&records),
            replaced: former.map(|former| Inventory::of(&former.records)),
            version: None,
            kept: None,
            warnings,
        };
        if !self.dry_run {
            let replaced = store.archive.replace(&records, counts).map_err(failure)?;
            report.version = Some(replaced.version.0);
            report.kept = replaced.kept;
        }
        self.show(&report)
    }

    fn read(&self) -> Result<Content, Failure> {
        let name = name_of(&self.file);
        let bytes = read_bytes(&self.file, FILE_MAX)?;
        if bytes.trim_ascii_start().starts_with(b"{") && !is_json_within(&bytes, MEMORY_MAX) {
            return Err(Failure::new(format!(
                "{name}: reading it would take more than {} MiB of memory: it is no state: is it the \
                 right file?",
                MEMORY_MAX / (1024 * 1024)
            )));
        }
        let problems = match read_form(&bytes) {
            Ok(content) => return Ok(content),
            Err(problems) => problems,
        };
        if let [problem] = &*problems {
            return Err(Failure::new(format!("{name}: {}", harmless(problem))));
        }
        for problem in &problems {
            complain(format_args!("{name}: {}", harmless(problem)));
        }
        let count = counted(problems.len() as u128, "problem");
        Err(Failure::new(format!("{name}: {count}: nothing was imported: mend them and try again")))
    }

    fn refuse_former(&self, name: &str, former: &Snapshot) -> Result<(), Failure> {
        if self.replace {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{name}: holds a state: {} (version {}): export it first, then --replace puts this one in \
             its place",
            Inventory::of(&former.records),
            former.counts.version
        )))
    }

    fn show(&self, report: &Report) -> Result<(), Failure> {
        let mut output = Output::new();
        if self.form.json {
            output.json(report)?;
            return output.finish();
        }
        for warning in &report.warnings {
            output.line(format_args!("warning: {}", harmless(warning)))?;
        }
        let Report { store, imported, .. } = report;
        let instead = report.replaced.map(|former| format!(" in the place of {former}"));
        let instead = instead.unwrap_or_default();
        match report.version {
            None => output.line(format_args!("{store}: would get {imported}{instead}"))?,
            Some(version) => {
                output.line(format_args!("{store}: {imported}{instead} (version {version})"))?;
            }
        }
        if let Some(kept) = &report.kept {
            output.line(format_args!("the former directory is {}", kept.display()))?;
        }
        output.finish()
    }
}

/// What is not replaced.
fn stays(former: &Snapshot) -> Option<String> {
    let count = former.unknown.len();
    (count > 0).then(|| {
        format!(
            "a later version of mesos-overlay has written {} there that this one does not know: what \
             it wrote stays",
            counted(count as u128, "record")
        )
    })
}

//! `mesos-overlay export`.
//!
//! The command only reads the store: the leading master is not affected.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use overlay_store::{LogDirectory, Snapshot, encode_cpp_state};
use overlay_types::protocol::Network;
use overlay_types::secret::show_path;
use overlay_wire::{Inventory, StateFile};

use super::Failure;
use super::output::{Output, print_error, sanitize};
use super::output_file;
use super::process::pluralize;
use super::progress::Progress;
use super::store_uri::{OpenedArchive, StoreOptions, StoreUri, network_required, store_failure};

/// Write the state of a store into a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay export --from file --output state.json
  mesos-overlay export --from zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay --output state.json
  mesos-overlay export --from log:/var/lib/mesos/overlay_replicated_log --output state.json
  mesos-overlay export --from file --form cpp --config network.json --output state.pb

The store does not change. With ZooKeeper, masters may continue to run. With the stores file and
log, stop the master first, since it holds a lock. `import` writes the file into any store.")]
pub(super) struct ExportCommand {
    /// The store: 'file', in the work directory; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, or
    /// file:///PATH of a file with such an address; log:DIR, a replicated log of Mesos, the
    /// directory overlay_replicated_log of a master that is stopped
    // The value may contain a password, which neither the help nor the errors of clap may show.
    #[arg(long, env = "MESOS_OVERLAY_FROM", value_name = "STORE", hide_env_values = true)]
    from: String,
    /// The form of the file: json, with the complete state of any store; cpp, the state of the C++
    /// modules as their replicated log stores it
    #[arg(long, env = "MESOS_OVERLAY_FORM", default_value = "json", hide_possible_values = true)]
    form: FileForm,
    /// The file to write, atomically and readable by its owner only; - is stdout
    #[arg(long, env = "MESOS_OVERLAY_OUTPUT", value_name = "FILE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    store: StoreOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FileForm {
    Json,
    Cpp,
}

impl ExportCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let uri = StoreUri::from_flag("--from", &self.from)?;
        let network = self.store.network()?;
        let content = self.content(&uri, network.as_ref())?;
        let progress = Progress::start("reading the state of the store");
        let OpenedArchive { mut archive, name, .. } = self.store.open(&uri, network.clone())?;
        let snapshot = archive.read_snapshot().map_err(store_failure)?.ok_or_else(|| {
            Failure::new(format!(
                "{name}: there is no state: no master has written one, or an import was not \
                 finished"
            ))
        })?;
        let content = content.encode(&name, &snapshot)?;
        drop(progress);
        for warning in &snapshot.warnings {
            print_error(format_args!("{name}: warning: {}", sanitize(warning)));
        }
        output_file::write(&self.output, &content)
            .map_err(|reason| Failure::new(format!("write {}: {reason}", self.output.display())))?;
        if output_file::is_stdout(&self.output) {
            return Ok(());
        }
        let mut output = Output::new();
        output.line(format_args!(
            "{}: {} of {name} (version {})",
            show_path(&self.output),
            Inventory::of(&snapshot.records),
            snapshot.counts.version
        ))?;
        output.finish()
    }

    fn content(&self, uri: &StoreUri, network: Option<&Arc<Network>>) -> Result<Content, Failure> {
        match (self.form, network, uri) {
            (FileForm::Json, ..) => Ok(Content::Json),
            (FileForm::Cpp, Some(network), _) => Ok(Content::Cpp(Arc::clone(network))),
            (FileForm::Cpp, None, StoreUri::ReplicatedLog(directory)) => {
                Ok(Content::LogValue(directory.clone()))
            }
            (FileForm::Cpp, None, _) => Err(network_required("--form cpp")),
        }
    }
}

/// The content of the written file.
enum Content {
    Json,
    /// The form of the C++ modules, which contains the network.
    Cpp(Arc<Network>),
    /// The value of the replicated log in this directory, byte for byte.
    LogValue(PathBuf),
}

impl Content {
    fn encode(&self, name: &str, snapshot: &Snapshot) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Json => Ok(state_file(name, snapshot).print().into_bytes()),
            Self::Cpp(network) => {
                refuse_unknown_records(name, snapshot)?;
                let network = Arc::clone(network);
                encode_cpp_state(&snapshot.records, snapshot.counts, network).map_err(store_failure)
            }
            Self::LogValue(directory) => {
                let log = LogDirectory::new(directory.clone(), None);
                let value = log.value().map_err(store_failure)?;
                Ok(value.unwrap_or_default())
            }
        }
    }
}

fn state_file(name: &str, snapshot: &Snapshot) -> StateFile {
    let Snapshot { counts, records, unknown, warnings: _ } = snapshot.clone();
    StateFile { from: name.to_owned(), counts, records, unknown }
}

/// Fails if the snapshot has unknown records, which the form of the C++ modules cannot hold.
fn refuse_unknown_records(name: &str, snapshot: &Snapshot) -> Result<(), Failure> {
    if snapshot.unknown.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{name}: a later version of mesos-overlay has written {} that this version does not know: \
         export with that version, or with --form json, which keeps them",
        pluralize(snapshot.unknown.len() as u128, "record")
    )))
}

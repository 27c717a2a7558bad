//! `mesos-overlay export`.
//!
//! The store is looked at and not taken: a master that leads notices nothing of it.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use tempfile::NamedTempFile;

use super::Failure;
use super::host::{counted, is_stdin};
use super::output::{Output, complain, harmless};
use super::place::{Opened, Place, StoreOptions, failure};
use crate::protocol::Network;
use crate::store::{LogDirectory, Snapshot, write_cpp_form};
use crate::wire::{Inventory, StateFile};

/// Write the state of a store into a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay export --from file -o state.json
  mesos-overlay export --from zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay -o state.json
  mesos-overlay export --from log:/var/lib/mesos/overlay_replicated_log -o state.json
  mesos-overlay export --from file --form cpp --config network.json -o state.pb

Nothing in the store changes. With ZooKeeper masters may go on; with the stores file and log the master that
has it has to be stopped, since it holds a lock. `import` puts the file into any store.")]
pub(super) struct ExportCommand {
    /// The store: 'file', in the work directory; zk://[USER:PASSWORD@]HOST:PORT,…/PATH, or
    /// file:///PATH of a file with such an address; log:DIR, a replicated log of Mesos, the
    /// directory overlay_replicated_log of a master that is stopped
    // It may hold a password, which neither the help nor clap's own errors are to show.
    #[arg(long, env = "MESOS_OVERLAY_FROM", value_name = "STORE", hide_env_values = true)]
    from: String,
    /// The form of the file: json, of every store and with all that is known; cpp, the state of the
    /// C++ modules as it stands in their replicated log
    #[arg(long, env = "MESOS_OVERLAY_FORM", default_value = "json", hide_possible_values = true)]
    form: FileForm,
    /// Where to write it, in one piece, for the owner only; - is stdout
    #[arg(short, long, env = "MESOS_OVERLAY_OUTPUT", value_name = "FILE", default_value = "-")]
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
        let place = self.from.parse::<Place>();
        let place = place.map_err(|error| Failure::usage(format!("--from: {error}")))?;
        let network = self.store.network()?;
        let form = self.form(&place, network.as_ref())?;
        let Opened { mut archive, name, .. } = self.store.open(&place, network.clone())?;
        let snapshot = archive.look().map_err(failure)?.ok_or_else(|| {
            Failure::new(format!(
                "{name}: there is no state: no master has begun one there, or an import was not \
                 finished"
            ))
        })?;
        let content = form.content(&name, &snapshot)?;
        for doubt in &snapshot.doubts {
            complain(format_args!("{name}: warning: {}", harmless(doubt)));
        }
        if is_stdin(&self.output) {
            return to_stdout(&content);
        }
        write(&self.output, &content)
            .map_err(|reason| Failure::new(format!("write {}: {reason}", self.output.display())))?;
        let mut output = Output::new();
        output.line(format_args!(
            "{}: {} of {name} (version {})",
            self.output.display(),
            Inventory::of(&snapshot.records),
            snapshot.counts.version
        ))?;
        output.finish()
    }

    fn form(&self, place: &Place, network: Option<&Arc<Network>>) -> Result<Content, Failure> {
        match (self.form, network, place) {
            (FileForm::Json, ..) => Ok(Content::Own),
            (FileForm::Cpp, Some(network), _) => Ok(Content::Cpp(Arc::clone(network))),
            (FileForm::Cpp, None, Place::Log(directory)) => Ok(Content::Value(directory.clone())),
            (FileForm::Cpp, None, _) => Err(Failure::usage(
                "--form cpp: the C++ modules want to know the network: give its file as --config",
            )),
        }
    }
}

/// What is written.
enum Content {
    Own,
    /// The form of the C++ modules, with what agents have of this network.
    Cpp(Arc<Network>),
    /// What stands in this log, byte for byte.
    Value(PathBuf),
}

impl Content {
    fn content(&self, name: &str, snapshot: &Snapshot) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Own => Ok(state_file(name, snapshot).print().into_bytes()),
            Self::Cpp(network) => {
                refuse_unknown(name, snapshot)?;
                let network = Arc::clone(network);
                write_cpp_form(&snapshot.records, snapshot.counts, network).map_err(failure)
            }
            Self::Value(directory) => {
                let value = LogDirectory::new(directory.clone(), None).value().map_err(failure)?;
                Ok(value.unwrap_or_default())
            }
        }
    }
}

fn state_file(name: &str, snapshot: &Snapshot) -> StateFile {
    let Snapshot { counts, records, unknown, doubts: _ } = snapshot.clone();
    StateFile { from: name.to_owned(), counts, records, unknown }
}

/// What has no place in the form of the C++ modules.
fn refuse_unknown(name: &str, snapshot: &Snapshot) -> Result<(), Failure> {
    if snapshot.unknown.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{name}: a later version of mesos-overlay has written {} that this one does not know: export \
         with that version, or with --form json, which keeps them",
        counted(snapshot.unknown.len() as u128, "record")
    )))
}

fn to_stdout(content: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(content).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Half a backup must not stand where a whole one was.
fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let file = tempfile::Builder::new().prefix(".mesos-overlay.").tempfile_in(parent);
    let file = file.map_err(|error| {
        // Not the error itself, which tells a hidden name that nobody has heard of.
        let why = match error.kind() {
            ErrorKind::NotFound => "no such directory: make it".to_owned(),
            ErrorKind::NotADirectory => "it is no directory: name one".to_owned(),
            ErrorKind::PermissionDenied => {
                "permission denied: run it as its owner, or name another directory".to_owned()
            }
            kind => kind.to_string(),
        };
        format!("{}: {why}", parent.display())
    })?;
    fill(file, path, content)
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| error.to_string())
}

/// Gives the file its content, and then its name.
fn fill(mut file: NamedTempFile, path: &Path, content: &[u8]) -> io::Result<()> {
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.as_file_mut().write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

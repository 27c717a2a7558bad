//! The replicated log of the master module. `master_config` and the environment configure its
//! location by the rules of the C++ module.

use std::fmt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overlay_config::{MasterConfig, ZooKeeper};
use overlay_store::{FileId, Log};
use overlay_types::addr::Ensemble;
use parking_lot::{Condvar, Mutex};

use super::panic::guarded;
use super::parameters::read_text;

/// Name of the log's directory in `replicated_log_dir`, as in the C++ module.
const DIRECTORY: &str = "overlay_replicated_log";
/// The lock file in the directory of a LevelDB database.
const LEVELDB_LOCK: &str = "LOCK";
/// Default timeout of an operation, as in the C++ module.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// The location and the parameters of a replicated log.
#[derive(Clone, PartialEq, Eq)]
pub struct LogLocation {
    /// Directory of this replica.
    pub directory: PathBuf,
    /// Number of replicas that form a majority.
    pub quorum: u32,
    /// The `zk://` URL where the replicas find each other; `None` for a log of one replica.
    pub url: Option<String>,
    /// Session timeout of ZooKeeper.
    pub session_timeout: Duration,
    /// Timeout of an operation.
    pub timeout: Duration,
}

impl fmt::Debug for LogLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL is omitted, since it may contain a password.
        f.debug_struct("LogLocation").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Opens a log through Mesos.
pub type OpenLog = fn(&LogLocation) -> Result<Arc<dyn Log>, String>;

impl LogLocation {
    /// Returns the configured log, if there is one, and creates its directory.
    pub(super) fn from_config(config: &MasterConfig) -> Result<Option<Self>, String> {
        let Some(parent) = &config.replicated_log_dir else { return Ok(None) };
        let zk = config.zk.as_ref();
        let url = zk.and_then(|zk| zk.url.as_deref()).map(resolve).transpose()?;
        let quorum = match (&url, zk.and_then(|zk| zk.quorum)) {
            (Some(_), None) => {
                return Err(
                    "zk.quorum: missing: write how many masters make a majority, such as 2 \
                            of 3, or set MESOS_QUORUM"
                        .to_owned(),
                );
            }
            (Some(_), Some(quorum)) => quorum,
            (None, _) => 1,
        };
        create_directory(parent)?;
        Ok(Some(Self {
            directory: parent.join(DIRECTORY),
            quorum,
            url,
            session_timeout: zk.map_or(ZooKeeper::SESSION_TIMEOUT_DEFAULT, |zk| zk.session_timeout),
            timeout: config.replicated_log_timeout.unwrap_or(TIMEOUT_DEFAULT),
        }))
    }
}

/// Returns the `zk://` URL. A `file://` URL names a file that contains it.
pub(super) fn resolve(url: &str) -> Result<String, String> {
    // Mesos would repeat an address that it cannot parse, with the password.
    let check = |url: &str| url.parse::<Ensemble>().map(drop);
    let Some(path) = url.strip_prefix("file://") else {
        check(url).map_err(|error| format!("zk.url: {error}"))?;
        return Ok(url.to_owned());
    };
    let text = read_text(Path::new(path)).map_err(|reason| format!("zk.url: {reason}"))?;
    let text = text.trim();
    if text.starts_with("zk://") {
        check(text).map_err(|error| format!("zk.url: {path}: {error}"))?;
        return Ok(text.to_owned());
    }
    Err(format!(
        "zk.url: {path}: holds no zk:// address: write an address such as zk://10.0.0.1:2181/mesos"
    ))
}

/// Creates the directory and checks that it is writable. Mesos would end the process if it is not.
fn create_directory(directory: &Path) -> Result<(), String> {
    let attempt = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| tempfile::Builder::new().prefix(".overlay-").tempfile_in(directory));
    match attempt {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "replicated_log_dir: write to {}: {error}: let the user of Mesos write there, or give \
             another directory",
            directory.display()
        )),
    }
}

/// A log that a separate thread opens, since a slow disk delays the opening. The process opens the
/// log once: Mesos cannot open a log twice.
pub(super) struct OpeningLog {
    opened: Arc<(Mutex<Option<Opened>>, Condvar)>,
    timeout: Duration,
}

type Opened = Result<CheckedLog, String>;

/// An open log, and the files by which its directory is recognized.
#[derive(Clone)]
struct CheckedLog {
    log: Arc<dyn Log>,
    files: Vec<(PathBuf, FileId)>,
}

impl CheckedLog {
    fn new(log: Arc<dyn Log>, directory: &Path) -> Self {
        let paths = [directory.to_owned(), directory.join(LEVELDB_LOCK)];
        let identify = |path: PathBuf| FileId::at(&path).ok().map(|id| (path, id));
        Self { log, files: paths.into_iter().filter_map(identify).collect() }
    }

    /// Checks that the directory is still the one that LevelDB has open. LevelDB would write to a
    /// removed directory without an error.
    fn check(&self) -> Result<(), String> {
        self.files.iter().try_for_each(|(path, id)| {
            id.check_path(path).map_err(|difference| {
                format!(
                    "{} {difference}: this master assigns no addresses until it is back; otherwise \
                     restore the directory, or that of another master, and restart mesos-master",
                    path.display()
                )
            })
        })
    }
}

impl OpeningLog {
    /// Opens the log on a new thread.
    pub(super) fn start(location: LogLocation, open: OpenLog) -> Self {
        let opened: Arc<(Mutex<Option<Opened>>, Condvar)> = Arc::default();
        let (cell, timeout) = (Arc::clone(&opened), location.timeout);
        let work = move || {
            let panicked = Err("it panicked, which is a defect".to_owned());
            let log = guarded("open the replicated log", panicked, || open(&location));
            let log = log.map(|log| CheckedLog::new(log, &location.directory));
            *cell.0.lock() = Some(log);
            cell.1.notify_all();
        };
        let thread = std::thread::Builder::new().name("overlay-log".to_owned()).spawn(work);
        if let Err(reason) = thread {
            *opened.0.lock() = Some(Err(format!("start a thread: {reason}")));
        }
        Self { opened, timeout }
    }

    fn wait(&self) -> Opened {
        let (cell, changed) = &*self.opened;
        let mut opened = cell.lock();
        changed.wait_while_for(&mut opened, |opened| opened.is_none(), self.timeout);
        let timeout = || Err("the log is still being opened: check its disk".to_owned());
        opened.clone().unwrap_or_else(timeout)
    }
}

impl Log for OpeningLog {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        let opened = self.wait()?;
        opened.check()?;
        opened.log.fetch()
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        let opened = self.wait()?;
        opened.check()?;
        let is_stored = opened.log.store(value)?;
        opened.check()?;
        Ok(is_stored)
    }

    fn check(&self) -> Result<(), String> {
        match &*self.opened.0.lock() {
            Some(Ok(opened)) => opened.check(),
            // A fetch reports the error.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_config::{Environment, master_from_parameters};

    use super::*;

    fn location_of(parameters: &[(&str, &str)]) -> Result<Option<LogLocation>, String> {
        let network = include_str!("../../docs/network.json");
        let mut all = vec![("overlays".to_owned(), "network.json".to_owned())];
        all.extend(parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let file = Some(("network.json", network));
        let (config, _) = master_from_parameters(&all, file, &Environment::default()).unwrap();
        LogLocation::from_config(&config)
    }

    #[test]
    fn location_matches_cpp_module() {
        assert_eq!(location_of(&[]), Ok(None));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("log");
        let text = path.to_str().unwrap();
        let alone = location_of(&[("replicated_log_dir", text)]).unwrap().unwrap();
        assert_eq!(alone.directory, path.join("overlay_replicated_log"));
        assert_eq!((alone.quorum, alone.url.as_deref()), (1, None));
        assert_eq!(alone.timeout, Duration::from_secs(300));
        assert!(path.is_dir());
        let url = "zk://10.0.0.1:2181/mesos";
        let shared = [("replicated_log_dir", text), ("url", url), ("quorum", "2")];
        let shared = location_of(&shared).unwrap().unwrap();
        assert_eq!((shared.quorum, shared.url.as_deref()), (2, Some(url)));
    }

    #[test]
    fn store_into_removed_directory_fails() {
        struct Accepting;
        impl Log for Accepting {
            fn fetch(&self) -> Result<Vec<u8>, String> {
                Ok(Vec::new())
            }

            fn store(&self, _: &[u8]) -> Result<bool, String> {
                Ok(true)
            }
        }
        let parent = tempfile::tempdir().unwrap();
        let (directory, away) = (parent.path().join("log"), parent.path().join("away"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(LEVELDB_LOCK), "").unwrap();
        let log = CheckedLog::new(Arc::new(Accepting), &directory);
        let opened = Arc::new((Mutex::new(Some(Ok(log))), Condvar::new()));
        let log = OpeningLog { opened, timeout: Duration::from_secs(1) };
        assert_eq!((log.store(b"value"), log.check()), (Ok(true), Ok(())));
        std::fs::rename(&directory, &away).unwrap();
        for error in [log.check(), log.store(b"value").map(drop), log.fetch().map(drop)] {
            let error = error.unwrap_err();
            assert!(error.contains("/log was removed or moved away, or its"), "{error}");
        }
        std::fs::rename(&away, &directory).unwrap();
        std::fs::rename(directory.join(LEVELDB_LOCK), directory.join("old")).unwrap();
        std::fs::write(directory.join(LEVELDB_LOCK), "").unwrap();
        let error = log.store(b"value").unwrap_err();
        assert!(error.contains("/log/LOCK was replaced: another file has its path: "), "{error}");
    }

    #[test]
    fn invalid_location_is_refused_with_reason() {
        let refuse = |parameters: &[(&str, &str)]| location_of(parameters).unwrap_err();
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().to_str().unwrap();
        assert_eq!(
            refuse(&[("replicated_log_dir", text), ("url", "zk://10.0.0.1:2181/mesos")]),
            "zk.quorum: missing: write how many masters make a majority, such as 2 of 3, or set \
             MESOS_QUORUM"
        );
        assert_eq!(
            refuse(&[("replicated_log_dir", "/dev/null/log")]),
            "replicated_log_dir: write to /dev/null/log: Not a directory (os error 20): let the \
             user of Mesos write there, or give another directory"
        );
        assert_eq!(
            refuse(&[("replicated_log_dir", text), ("url", "file:///nowhere"), ("quorum", "1")]),
            "zk.url: read /nowhere: No such file or directory (os error 2): check the path"
        );
    }
}

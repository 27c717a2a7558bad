//! Where the replicated log of the master module is: what `master_config` and the environment say,
//! by the rules of the C++ module.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::guard::guarded;
use super::parameters::read_text;
use crate::config::{MasterConfig, ZooKeeper};
use crate::store::Log;

/// Name of the log in `replicated_log_dir`, as in the C++ module.
const DIRECTORY: &str = "overlay_replicated_log";
/// How long an operation may take if the configuration does not say; the C++ module's.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// A replicated log.
#[derive(Clone, PartialEq, Eq)]
pub struct LogPlace {
    /// Where this replica keeps it.
    pub directory: PathBuf,
    /// How many replicas make a majority.
    pub quorum: u32,
    /// The `zk://` URL where replicas find each other; `None` for a log of one replica.
    pub url: Option<String>,
    /// After how long without a word ZooKeeper gives this replica up.
    pub session_timeout: Duration,
    /// How long one operation may take.
    pub timeout: Duration,
}

impl fmt::Debug for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may hold a password.
        f.debug_struct("LogPlace").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// A way to open a log, for Mesos knows how.
pub type OpenLog = fn(&LogPlace) -> Result<Arc<dyn Log>, String>;

impl LogPlace {
    /// The log that `config` asks for, if it does. Its directory is made.
    pub(super) fn of(config: &MasterConfig) -> Result<Option<Self>, String> {
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
        make(parent)?;
        Ok(Some(Self {
            directory: parent.join(DIRECTORY),
            quorum,
            url,
            session_timeout: zk.map_or(ZooKeeper::SESSION_TIMEOUT_DEFAULT, |zk| zk.session_timeout),
            timeout: config.replicated_log_timeout.unwrap_or(TIMEOUT_DEFAULT),
        }))
    }
}

/// The `zk://` URL, which may be in a file.
pub(super) fn resolve(url: &str) -> Result<String, String> {
    let Some(path) = url.strip_prefix("file://") else { return Ok(url.to_owned()) };
    let text = read_text(Path::new(path)).map_err(|reason| format!("zk.url: {reason}"))?;
    let text = text.trim();
    if text.starts_with("zk://") {
        return Ok(text.to_owned());
    }
    Err(format!("zk.url: {path}: holds no zk:// address: write such as zk://10.0.0.1:2181/mesos"))
}

/// Makes the directory and sees whether files can be made in it: Mesos would end the process later.
fn make(directory: &Path) -> Result<(), String> {
    let attempt = std::fs::create_dir_all(directory)
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

/// A log that is being opened, which takes as long as the disk does. It is opened once in a
/// process: Mesos cannot open it twice.
pub(super) struct OpeningLog {
    opened: Arc<(Mutex<Option<Opened>>, Condvar)>,
    timeout: Duration,
}

type Opened = Result<Arc<dyn Log>, String>;

impl OpeningLog {
    /// Opens the log on a thread of its own.
    pub(super) fn start(place: LogPlace, open: OpenLog) -> Self {
        let opened: Arc<(Mutex<Option<Opened>>, Condvar)> = Arc::default();
        let (cell, timeout) = (Arc::clone(&opened), place.timeout);
        let work = move || {
            let panicked = Err("it panicked, which is a defect".to_owned());
            let log = guarded("open the replicated log", panicked, || open(&place));
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
        let late = || Err("it is still being opened: see whether its disk hangs".to_owned());
        opened.clone().unwrap_or_else(late)
    }
}

impl Log for OpeningLog {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        self.wait()?.fetch()
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        self.wait()?.store(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, master_from_parameters};

    fn place(parameters: &[(&str, &str)]) -> Result<Option<LogPlace>, String> {
        let network = include_str!("../../docs/network.json");
        let mut all = vec![("overlays".to_owned(), "network.json".to_owned())];
        all.extend(parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let file = Some(("network.json", network));
        let (config, _) = master_from_parameters(&all, file, &Environment::default()).unwrap();
        LogPlace::of(&config)
    }

    #[test]
    fn a_log_is_where_the_cpp_module_has_it() {
        assert_eq!(place(&[]), Ok(None));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("log");
        let text = path.to_str().unwrap();
        let alone = place(&[("replicated_log_dir", text)]).unwrap().unwrap();
        assert_eq!(alone.directory, path.join("overlay_replicated_log"));
        assert_eq!((alone.quorum, alone.url.as_deref()), (1, None));
        assert_eq!(alone.timeout, Duration::from_secs(300));
        assert!(path.is_dir());
        let url = "zk://10.0.0.1:2181/mesos";
        let shared = [("replicated_log_dir", text), ("url", url), ("quorum", "2")];
        let shared = place(&shared).unwrap().unwrap();
        assert_eq!((shared.quorum, shared.url.as_deref()), (2, Some(url)));
    }

    #[test]
    fn what_is_wrong_with_it_is_said() {
        let refused = |parameters: &[(&str, &str)]| place(parameters).unwrap_err();
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().to_str().unwrap();
        assert_eq!(
            refused(&[("replicated_log_dir", text), ("url", "zk://10.0.0.1:2181/mesos")]),
            "zk.quorum: missing: write how many masters make a majority, such as 2 of 3, or set \
             MESOS_QUORUM"
        );
        assert_eq!(
            refused(&[("replicated_log_dir", "/dev/null/log")]),
            "replicated_log_dir: write to /dev/null/log: Not a directory (os error 20): let the \
             user of Mesos write there, or give another directory"
        );
        assert_eq!(
            refused(&[("replicated_log_dir", text), ("url", "file:///nowhere"), ("quorum", "1")]),
            "zk.url: read /nowhere: No such file or directory (os error 2): check the path"
        );
    }
}

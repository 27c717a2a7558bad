//! Our log lines become those of Mesos: glog, with file and line.

use log::{Level, LevelFilter, Log, Metadata, Record};
use once_cell::sync::OnceCell;

use crate::logging::LimitedLogger;

/// Targets of our own records begin with this.
const OWN: &str = "mesos_network_overlay";

/// Where the lines go.
pub trait Sink: Send + Sync + 'static {
    /// What is wanted now: operators raise it for a while with Mesos' `/logging/toggle`.
    fn verbosity(&self) -> LevelFilter;

    /// Writes a line.
    fn write(&self, level: Level, file: &str, line: u32, text: &str);
}

struct Logger<S>(S);

impl<S: Sink> Log for Logger<S> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries speak of their own matters below warnings.
        let is_ours = metadata.target().starts_with(OWN);
        let limit =
            if is_ours { self.0.verbosity() } else { LevelFilter::Warn.min(self.0.verbosity()) };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            let file = place(record.file().unwrap_or("unknown"));
            self.0.write(record.level(), &file, record.line().unwrap_or(0), &text);
        }
    }

    fn flush(&self) {}
}

/// The name of a file of ours as glog should show it, which cuts it off at the last slash: with its
/// room, for there are many `mod.rs`, and with ours, since Mesos has a `master.cpp` too.
fn place(file: &str) -> String {
    match file.strip_prefix("src/") {
        Some(path) => format!("overlay.{}", path.replace('/', ".")),
        None => file.to_owned(),
    }
}

/// Sends the log to `sink`, within the limits of [`LimitedLogger`]. Only the first call does
/// something: both modules may live in one process, and they share this library.
///
/// # Errors
/// When something else in this library has installed a logger, so that there would be no log.
pub fn install(sink: impl Sink) -> Result<(), log::SetLoggerError> {
    static INSTALLED: OnceCell<()> = OnceCell::new();
    INSTALLED.get_or_try_init(|| {
        log::set_boxed_logger(Box::new(LimitedLogger::new(Logger(sink))))?;
        log::set_max_level(LevelFilter::Trace);
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    struct Lines(LevelFilter, Arc<Mutex<Vec<String>>>);

    impl Sink for Lines {
        fn verbosity(&self) -> LevelFilter {
            self.0
        }

        fn write(&self, level: Level, file: &str, line: u32, text: &str) {
            self.1.lock().push(format!("{level} {file}:{line} {text}"));
        }
    }

    fn lines(verbosity: LevelFilter, target: &str, level: Level) -> Vec<String> {
        let lines = Arc::default();
        let logger = LimitedLogger::new(Logger(Lines(verbosity, Arc::clone(&lines))));
        logger.log(
            &Record::builder()
                .level(level)
                .target(target)
                .file(Some("src/master/mod.rs"))
                .line(Some(7))
                .args(format_args!("ignored \u{1b}[0m\nof \u{202e}10.0.0.1"))
                .build(),
        );
        let mut lines = lines.lock();
        std::mem::take(&mut *lines)
    }

    #[test]
    fn a_record_is_one_line_with_its_place() {
        assert_eq!(
            lines(LevelFilter::Info, "mesos_network_overlay::master", Level::Warn),
            [r"WARN overlay.master.mod.rs:7 ignored \u{1b}[0m\nof \u{202e}10.0.0.1"]
        );
    }

    #[test]
    fn flood_of_a_stranger_does_not_fill_the_log_of_mesos() {
        let lines = Arc::default();
        let logger = LimitedLogger::new(Logger(Lines(LevelFilter::Info, Arc::clone(&lines))));
        for _ in 0..10_000 {
            let mut record = Record::builder();
            record.level(Level::Info).target("mesos_network_overlay::master");
            record.module_path_static(Some("mesos_network_overlay::master"));
            record.file_static(Some("src/master/mod.rs")).line(Some(7));
            logger.log(&record.args(format_args!("agent registered")).build());
        }
        logger.flush();
        let lines = lines.lock();
        assert!(lines.len() < 1000, "{}", lines.len());
        let last = lines.last().unwrap();
        let told = "INFO overlay.master.mod.rs:7 left out ";
        assert!(
            last.starts_with(told) && last.ends_with("like this one: agent registered"),
            "{last}"
        );
    }

    #[test]
    fn more_is_said_of_ourselves_than_of_libraries() {
        let ours = "mesos_network_overlay::runtime";
        assert!(lines(LevelFilter::Info, ours, Level::Debug).is_empty());
        assert_eq!(lines(LevelFilter::Trace, ours, Level::Debug).len(), 1);
        assert!(lines(LevelFilter::Trace, "redb", Level::Info).is_empty());
        assert_eq!(lines(LevelFilter::Info, "redb", Level::Warn).len(), 1);
    }
}

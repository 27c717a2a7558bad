//! Our log lines become those of Mesos: glog, with file and line.

use log::{Level, LevelFilter, Log, Metadata, Record};
use once_cell::sync::OnceCell;

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
            let text = one_line(&record.args().to_string());
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

/// Control characters, which strangers' names may hold, become visible: a line stays a line.
fn one_line(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut line, letter| {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
        line
    })
}

/// Sends the log to `sink`. Only the first call does something: both modules may live in one
/// process, and they share this library.
///
/// # Errors
/// When something else in this library has installed a logger, so that there would be no log.
pub fn install(sink: impl Sink) -> Result<(), log::SetLoggerError> {
    static INSTALLED: OnceCell<()> = OnceCell::new();
    INSTALLED.get_or_try_init(|| {
        log::set_boxed_logger(Box::new(Logger(sink)))?;
        log::set_max_level(LevelFilter::Trace);
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    struct Lines(LevelFilter, Mutex<Vec<String>>);

    impl Sink for Lines {
        fn verbosity(&self) -> LevelFilter {
            self.0
        }

        fn write(&self, level: Level, file: &str, line: u32, text: &str) {
            self.1.lock().push(format!("{level} {file}:{line} {text}"));
        }
    }

    fn lines(verbosity: LevelFilter, target: &str, level: Level) -> Vec<String> {
        let logger = Logger(Lines(verbosity, Mutex::default()));
        logger.log(
            &Record::builder()
                .level(level)
                .target(target)
                .file(Some("src/master/mod.rs"))
                .line(Some(7))
                .args(format_args!("ignored \u{1b}[0m\nof 10.0.0.1"))
                .build(),
        );
        logger.0.1.into_inner()
    }

    #[test]
    fn a_record_is_one_line_with_its_place() {
        assert_eq!(
            lines(LevelFilter::Info, "mesos_network_overlay::master", Level::Warn),
            [r"WARN overlay.master.mod.rs:7 ignored \u{1b}[0m\nof 10.0.0.1"]
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

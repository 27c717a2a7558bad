//! Sends the log of the module to the log of Mesos: glog, with file and line.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use once_cell::sync::OnceCell;
use overlay_types::text::pluralize;

use super::instance::with_signals_blocked;
use crate::logging::{LimitedLogger, LineQueue, LineWriter};

/// Prefixes of the targets of this project's crates.
const OWN: [&str; 3] = ["mesos_network_overlay", "overlay_", "libprocess"];

/// The destination of the lines.
pub trait Sink: Send + Sync + 'static {
    /// Returns the current verbosity, which operators raise temporarily with `/logging/toggle` of
    /// Mesos.
    fn verbosity(&self) -> LevelFilter;

    /// Writes a line.
    fn write(&self, level: Level, file: &str, line: u32, text: &str);
}

struct Logger<S>(S);

impl<S: Sink> Log for Logger<S> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Below warnings, lines of third-party libraries do not concern the operator.
        let is_own = OWN.iter().any(|prefix| metadata.target().starts_with(prefix));
        let limit =
            if is_own { self.0.verbosity() } else { LevelFilter::Warn.min(self.0.verbosity()) };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            let file = shown_name(record.file().unwrap_or("unknown"));
            self.0.write(record.level(), &file, record.line().unwrap_or(0), &text);
        }
    }

    fn flush(&self) {}
}

/// Returns the name of a source file for glog, which truncates the name at the last slash. The name
/// includes crate and module, since there are many `mod.rs`, and a prefix, since Mesos has a
/// `master.cpp` too.
fn shown_name(file: &str) -> String {
    let path = match file.strip_prefix("crates/").and_then(|path| path.split_once("/src/")) {
        Some((name, path)) => format!("{name}.{path}"),
        None => match file.strip_prefix("src/") {
            Some(path) => path.to_owned(),
            None => return file.to_owned(),
        },
    };
    format!("overlay.{}", path.replace('/', "."))
}

/// The lines on their way to the log of Mesos.
static QUEUE: OnceCell<LineQueue<Line>> = OnceCell::new();

/// Longest wait for the log of Mesos.
const DRAIN_MAX: Duration = Duration::from_millis(200);

/// A line for a [`Sink`].
struct Line {
    level: Level,
    file: String,
    line: u32,
    text: String,
}

/// A sink that writes on a thread of its own. glog writes on the thread that logs, and holds one
/// lock for the whole process meanwhile: while nobody reads the stderr of Mesos, a line would block
/// the state machine, or a thread of libprocess.
struct QueuedSink<S>(Arc<S>, LineQueue<Line>);

impl<S: Sink> Sink for QueuedSink<S> {
    fn verbosity(&self) -> LevelFilter {
        self.0.verbosity()
    }

    fn write(&self, level: Level, file: &str, line: u32, text: &str) {
        let bytes = file.len() + text.len();
        let line = Line { level, file: file.to_owned(), line, text: text.to_owned() };
        self.1.push(line, bytes, level > Level::Info);
    }
}

/// Writes the lines of the queue to a sink.
struct SinkWriter<S>(Arc<S>);

impl<S: Sink> LineWriter<Line> for SinkWriter<S> {
    fn write(&mut self, line: Line) -> io::Result<()> {
        self.0.write(line.level, &line.file, line.line, &line.text);
        Ok(())
    }

    fn write_dropped(&mut self, count: u64) -> io::Result<()> {
        let count = pluralize(count, "line");
        let text = format!("dropped {count} of the overlay module here: the log of Mesos hung");
        self.0.write(Level::Warn, &shown_name(file!()), line!(), &text);
        Ok(())
    }
}

/// Sends the log to `sink`, within the limits of [`LimitedLogger`]. Only the first call has an
/// effect: both modules may run in one process, where they share this library.
///
/// # Errors
/// When another logger is installed in this library, so that `sink` would get no lines, or when the
/// thread that writes cannot be created.
pub fn install(sink: impl Sink) -> Result<(), String> {
    QUEUE
        .get_or_try_init(|| {
            let sink = Arc::new(sink);
            let writer = SinkWriter(Arc::clone(&sink));
            let queue = with_signals_blocked(|| LineQueue::start("overlay-log", writer))
                .map_err(|error| format!("start the thread of the log: {error}"))?;
            let logger = Logger(QueuedSink(sink, queue.clone()));
            log::set_boxed_logger(Box::new(LimitedLogger::new(logger)))
                .map_err(|error| error.to_string())?;
            log::set_max_level(LevelFilter::Trace);
            Ok(queue)
        })
        .map(drop)
}

/// Waits for the log of Mesos, but not long: Mesos may end soon, and a log that hangs must not hold
/// it up.
pub fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(DRAIN_MAX);
    }
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
                .file(Some("crates/engine/src/master/mod.rs"))
                .line(Some(7))
                .args(format_args!("ignored \u{1b}[0m\nof \u{202e}10.0.0.1"))
                .build(),
        );
        let mut lines = lines.lock();
        std::mem::take(&mut *lines)
    }

    #[test]
    fn record_is_one_line_with_file_and_line() {
        assert_eq!(
            lines(LevelFilter::Info, "overlay_engine::master", Level::Warn),
            [r"WARN overlay.engine.master.mod.rs:7 ignored \u{1b}[0m\nof \u{202e}10.0.0.1"]
        );
    }

    #[test]
    fn flood_does_not_fill_log_of_mesos() {
        let lines = Arc::default();
        let logger = LimitedLogger::new(Logger(Lines(LevelFilter::Info, Arc::clone(&lines))));
        for _ in 0..10_000 {
            let mut record = Record::builder();
            record.level(Level::Info).target("overlay_engine::master");
            record.module_path_static(Some("overlay_engine::master"));
            record.file_static(Some("crates/engine/src/master/mod.rs")).line(Some(7));
            logger.log(&record.args(format_args!("agent registered")).build());
        }
        logger.flush();
        let lines = lines.lock();
        assert!(lines.len() < 1000, "{}", lines.len());
        let last = lines.last().unwrap();
        let start = "INFO overlay.engine.master.mod.rs:7 left out ";
        assert!(
            last.starts_with(start) && last.ends_with("like this one: agent registered"),
            "{last}"
        );
    }

    #[test]
    fn libraries_are_logged_from_warnings_on() {
        let own = "mesos_network_overlay::runtime";
        assert!(lines(LevelFilter::Info, own, Level::Debug).is_empty());
        assert_eq!(lines(LevelFilter::Trace, own, Level::Debug).len(), 1);
        assert!(lines(LevelFilter::Trace, "redb", Level::Info).is_empty());
        assert_eq!(lines(LevelFilter::Info, "redb", Level::Warn).len(), 1);
    }
}

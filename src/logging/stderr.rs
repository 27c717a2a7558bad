//! The log of the program on stderr. A service writes it through a [`LineQueue`], so that it
//! continues, and ends, while nobody reads stderr.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use env_logger::{Builder, Logger, Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use overlay_types::text::pluralize;

use super::queue::{LineQueue, LineWriter};
use super::{LimitedLogger, log_panics};

/// Longest wait for the reader of stderr at the end of the process.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The queue of a service.
static QUEUE: OnceLock<LineQueue<Vec<u8>>> = OnceLock::new();

/// Sends the log to stderr, within the limits of [`LimitedLogger`]. Each line is written when it is
/// logged.
pub fn log_to_stderr(level: LevelFilter) {
    let logger = builder(level).build();
    let level = logger.filter();
    // This fails only at a second run in one process, which keeps the logger of the first.
    if log::set_boxed_logger(Box::new(LimitedLogger::new(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// Sends the log and panics to stderr through a queue, within the limits of [`LimitedLogger`].
///
/// # Errors
/// When the thread that writes cannot be created.
pub fn queue_log_to_stderr(level: LevelFilter) -> io::Result<()> {
    let queue = match QUEUE.get() {
        Some(queue) => queue.clone(),
        None => {
            let notes = builder(LevelFilter::Warn).build();
            let queue = LineQueue::start("overlay-log", StderrWriter { notes })?;
            QUEUE.get_or_init(|| queue).clone()
        }
    };
    let queued = |is_verbose| {
        let pipe = Pipe(queue.clone(), is_verbose);
        builder(level).target(Target::Pipe(Box::new(pipe))).build()
    };
    let logger = QueuedLogger { important: queued(false), verbose: queued(true) };
    if log::set_boxed_logger(Box::new(LimitedLogger::new(logger))).is_ok() {
        log::set_max_level(level);
    }
    log_panics();
    Ok(())
}

fn builder(level: LevelFilter) -> Builder {
    // The style of a queue would be that of a file.
    let style: WriteStyle = anstream::AutoStream::choice(&io::stderr()).into();
    let mut builder = Builder::new();
    builder.filter_level(level).format_target(false).write_style(style);
    builder
}

/// Writes lines that are no part of the log to stderr, through the queue of a service if there is
/// one. Errors are ignored: they mean that the reader has closed stderr.
pub fn print_to_stderr(lines: &str) {
    let text = format!("{lines}\n").into_bytes();
    match QUEUE.get() {
        Some(queue) => {
            let length = text.len();
            queue.push(text, length, false);
        }
        None => {
            let _ = io::stderr().write_all(&text);
        }
    }
}

/// Waits for the reader of stderr, at the end of the process. A reader that hangs does not hold up
/// the end.
pub fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(DRAIN_MAX);
    }
}

/// Writes the lines of the queue, and notes about dropped lines in the format of the log.
struct StderrWriter {
    notes: Logger,
}

impl LineWriter<Vec<u8>> for StderrWriter {
    fn write(&mut self, line: Vec<u8>) -> io::Result<()> {
        io::stderr().write_all(&line)
    }

    fn write_dropped(&mut self, count: u64) -> io::Result<()> {
        let count = pluralize(count, "line");
        let text = format_args!("dropped {count} of the log here: nothing read stderr");
        self.notes.log(&Record::builder().level(Level::Warn).args(text).build());
        Ok(())
    }
}

/// Formats lines and queues them.
struct QueuedLogger {
    important: Logger,
    verbose: Logger,
}

impl Log for QueuedLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.important.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() > Level::Info {
            self.verbose.log(record);
        } else {
            self.important.log(record);
        }
    }

    /// Does not wait for the reader.
    fn flush(&self) {}
}

/// Queues each line that the formatter writes, and whether the line is verbose.
struct Pipe(LineQueue<Vec<u8>>, bool);

impl Write for Pipe {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec(), line.len(), self.1);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

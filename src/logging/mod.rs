//! The limits of the log: every line is printable text of bounded length, and no call site can fill
//! a disk.
//!
//! Unauthenticated peers can trigger a line with every message. So each call site has a rate limit,
//! and all call sites together have one. The number of omitted lines is logged with the next line
//! of the call site, or by the next flush. The levels debug and trace are not limited, since an
//! operator must enable them.
//!
//! The logger also runs on threads of Mesos: it takes no lock, starts no thread, and allocates only
//! when it omits a line. The code that installs the logger must call [`log::Log::flush`]
//! periodically.
//!
//! Writing may block, so the module `queue` has a thread that writes the lines of a service.

mod panics;
mod queue;
mod sites;
mod stderr;

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};
use overlay_types::escape::Escaper;
use overlay_types::text::pluralize;

pub use panics::log_panics;
pub use queue::{LineQueue, LineWriter, lines_dropped, reader_problem};
use sites::{Omitted, RateLimit, Site, Sites};
pub use stderr::{drain, log_to_stderr, print_to_stderr, queue_log_to_stderr};

/// Interval of the calls of [`log::Log::flush`], which log the number of omitted lines after a
/// flood.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum length of a line in characters. The longest messages have a few hundred.
const LINE_MAX: usize = 4096;
/// Burst of one call site in lines. The agents of a rack register at the same time.
const SITE_BURST: u64 = 100;
/// Interval after which a call site may write another line. With lines of 150 bytes, a flood that
/// lasts a day writes 130 MB.
const SITE_INTERVAL: Duration = Duration::from_millis(100);
/// Burst of all call sites in bytes.
const TOTAL_BURST: u64 = 1024 * 1024;
/// Interval after which all call sites may write another byte: 16 KiB per second, 1.4 GB per day.
const TOTAL_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / (16 * 1024));
/// A call site that was silent for this time writes one line even if the total limit is reached, so
/// that a flood does not hide another error.
const SILENCE: Duration = Duration::from_secs(10);

/// Number of lines that this process has omitted.
static OMITTED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines that this process has omitted.
#[must_use]
pub fn lines_left_out() -> u64 {
    OMITTED.load(Ordering::Relaxed)
}

/// Forwards the lines within the limits to another logger, escaped and truncated.
pub struct LimitedLogger<L> {
    inner: L,
    sites: Sites,
    total: RateLimit,
    /// Returns the nanoseconds since the creation of the logger.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl<L: Log> LimitedLogger<L> {
    /// Creates a logger that forwards to `inner`.
    pub fn new(inner: L) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a call site has no other clock")]
        let start = Instant::now();
        let elapsed = move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Self::with_clock(inner, elapsed)
    }

    fn with_clock(inner: L, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let total = RateLimit::new(TOTAL_INTERVAL, TOTAL_BURST);
        Self { inner, sites: Sites::new(SITE_INTERVAL, SITE_BURST), total, clock: Box::new(clock) }
    }

    /// Writes the line with the number of lines omitted before. Returns the length of the line in
    /// bytes.
    fn write(&self, record: &Record<'_>, omitted: u64) -> u64 {
        let line = Line { text: record.args(), omitted, bytes: Cell::new(0) };
        let mut bounded = Record::builder();
        bounded.metadata(record.metadata().clone()).line(record.line());
        bounded.module_path(record.module_path()).file(record.file());
        self.inner.log(&bounded.args(format_args!("{line}")).build());
        line.bytes.get()
    }
}

impl<L: Log> Log for LimitedLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if record.level() > Level::Info {
            self.write(record, 0);
            return;
        }
        let now = (self.clock)();
        let site = self.sites.of(record);
        let may_write = self.total.has(now) || site.is_silent(now, SILENCE);
        if !may_write || !site.limit.take(now) {
            site.omit(record);
            OMITTED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let bytes = self.write(record, site.begin_line(now));
        self.total.charge(now, bytes);
    }

    /// Logs the number of omitted lines of every call site, and flushes the inner logger.
    fn flush(&self) {
        for Omitted { location, count, example } in self.sites.all().filter_map(Site::take_omitted)
        {
            let metadata =
                Metadata::builder().level(location.level).target(location.module).build();
            if !self.enabled(&metadata) {
                continue;
            }
            let mut record = Record::builder();
            record.metadata(metadata).line(location.line);
            record.module_path_static(Some(location.module)).file_static(location.file);
            let count = pluralize(count, "line");
            let text = format_args!("left out {count} like this one: {example}");
            let bytes = self.write(&record.args(text).build(), 0);
            self.total.charge((self.clock)(), bytes);
        }
        self.inner.flush();
    }
}

impl<L> fmt::Debug for LimitedLogger<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sites, total, .. } = self;
        f.debug_struct("LimitedLogger").field("sites", sites).field("total", total).finish()
    }
}

/// A line that is formatted while it is written, without a buffer.
struct Line<'a> {
    text: &'a fmt::Arguments<'a>,
    omitted: u64,
    bytes: Cell<u64>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escaper = Escaper::one_line(&mut *f, LINE_MAX);
        let result = escaper.write_fmt(*self.text);
        if !escaper.is_cut() {
            result?;
        }
        let bytes = escaper.finish()?;
        self.bytes.set(u64::try_from(bytes).unwrap_or(u64::MAX));
        if self.omitted > 0 {
            write!(f, " ({} like this left out before)", pluralize(self.omitted, "line"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

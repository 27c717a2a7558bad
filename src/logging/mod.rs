//! The limits of the log: every line is visible text of bounded length, and no call site can fill a
//! disk.
//!
//! A stranger triggers lines as fast as messages arrive. So each call site has an allowance, all
//! call sites have one together, and how many lines were left out is said as soon as the call site
//! writes again, or at the next flush. Levels debug and trace are not limited: an operator asked
//! for them.
//!
//! This also runs in a thread of Mesos: it takes no lock, starts no thread, and does not allocate
//! unless a line is left out. Who installs the logger calls [`log::Log::flush`] from time to time.

mod sites;

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};

use crate::escape::Escaper;
use crate::words::counted;
use sites::{Allowance, LeftOut, Site, Sites};

/// How often [`log::Log::flush`] is to be called, so that lines that were left out are told soon
/// after a flood.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// Longest line, in characters. The longest sentences of ours have a few hundred.
const LINE_MAX: usize = 4096;
/// Lines of one call site at once: the agents of a rack register together.
const SITE_BURST: u64 = 100;
/// Time in which a call site regains one line. With lines of 150 bytes, a flood that lasts a day
/// writes 130 MB.
const SITE_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of all call sites at once.
const TOTAL_BURST: u64 = 1024 * 1024;
/// Time in which all call sites regain one byte: 16 KiB in a second, 1.4 GB in a day.
const TOTAL_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / (16 * 1024));
/// A call site that was silent for so long writes one line although all together may not: a flood
/// does not hide another error.
const SILENCE: Duration = Duration::from_secs(10);

/// Lines that this process has left out.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Returns how many lines this process has left out.
#[must_use]
pub fn lines_left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Passes the lines on to another logger that the limits allow, escaped and cut.
pub struct LimitedLogger<L> {
    inner: L,
    sites: Sites,
    total: Allowance,
    /// Nanoseconds since the logger was made.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl<L: Log> LimitedLogger<L> {
    /// Limits what reaches `inner`.
    pub fn new(inner: L) -> Self {
        #[expect(clippy::disallowed_methods, reason = "there is no other clock at a call site")]
        let start = Instant::now();
        let elapsed = move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Self::with_clock(inner, elapsed)
    }

    fn with_clock(inner: L, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let total = Allowance::new(TOTAL_INTERVAL, TOTAL_BURST);
        Self { inner, sites: Sites::new(SITE_INTERVAL, SITE_BURST), total, clock: Box::new(clock) }
    }

    /// Writes the line, and how many of its kind were left out before. Returns its bytes.
    fn write(&self, record: &Record<'_>, left_out: u64) -> u64 {
        let line = Line { text: record.args(), left_out, bytes: Cell::new(0) };
        let mut same = Record::builder();
        same.metadata(record.metadata().clone()).line(record.line());
        same.module_path(record.module_path()).file(record.file());
        self.inner.log(&same.args(format_args!("{line}")).build());
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
        if !may_write || !site.allowance.take(now) {
            site.leave_out(record);
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let bytes = self.write(record, site.begin_line(now));
        self.total.charge(now, bytes);
    }

    /// Says of every call site that has left out lines how many, and flushes the other logger.
    fn flush(&self) {
        for LeftOut { place, count, example } in self.sites.all().filter_map(Site::take_left_out) {
            let metadata = Metadata::builder().level(place.level).target(place.module).build();
            if !self.enabled(&metadata) {
                continue;
            }
            let mut record = Record::builder();
            record.metadata(metadata).line(place.line);
            record.module_path_static(Some(place.module)).file_static(place.file);
            let count = counted(count, "line");
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

/// A line as it is written. Nothing of it is held in memory.
struct Line<'a> {
    text: &'a fmt::Arguments<'a>,
    left_out: u64,
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
        if self.left_out > 0 {
            write!(f, " ({} like this left out before)", counted(self.left_out, "line"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

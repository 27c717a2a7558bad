//! Rate limit and counters of each call site. The memory has a fixed size: a remote sender can
//! choose the text of a line, but not the call site.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::{Level, Record};
use overlay_types::escape;

/// Maximum number of call sites with their own limit, which is several times the number of call
/// sites in the program and its libraries. All further call sites share one limit.
const SITES_MAX: usize = 1024;
/// Maximum length of the logged example of the omitted lines, in characters.
const EXAMPLE_MAX: usize = 160;

/// A rate limit by the generic cell rate algorithm: a burst, and then a unit in each interval.
#[derive(Debug)]
pub(super) struct RateLimit {
    interval: u64,
    burst: u64,
    /// Time at which the whole burst is available again.
    full_at: AtomicU64,
}

impl RateLimit {
    pub(super) fn new(interval: Duration, burst: u64) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self { interval, burst: interval.saturating_mul(burst), full_at: AtomicU64::new(0) }
    }

    /// Returns whether a unit is left at `now`, in nanoseconds.
    pub(super) fn has(&self, now: u64) -> bool {
        self.allows(self.full_at.load(Ordering::Relaxed), now)
    }

    fn allows(&self, full_at: u64, now: u64) -> bool {
        full_at.saturating_sub(now).saturating_add(self.interval) <= self.burst
    }

    /// Takes a unit. Returns whether a unit was left.
    pub(super) fn take(&self, now: u64) -> bool {
        let next = |full_at: u64| self.allows(full_at, now).then(|| self.after(full_at, now, 1));
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Takes used units, even if fewer units are left.
    pub(super) fn charge(&self, now: u64, units: u64) {
        let next = |full_at: u64| Some(self.after(full_at, now, units));
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn after(&self, full_at: u64, now: u64, units: u64) -> u64 {
        full_at.max(now).saturating_add(self.interval.saturating_mul(units))
    }
}

/// The source location of a call site.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceLocation {
    pub(super) level: Level,
    pub(super) module: &'static str,
    pub(super) file: Option<&'static str>,
    pub(super) line: Option<u32>,
}

/// The location of the shared call site.
const SHARED: SourceLocation = SourceLocation {
    level: Level::Warn,
    module: module_path!(),
    file: Some(file!()),
    line: Some(line!()),
};

impl SourceLocation {
    /// Returns `None` for a record that was not created by a macro of `log`.
    fn of(record: &Record<'_>) -> Option<Self> {
        Some(Self {
            level: record.level(),
            module: record.module_path_static()?,
            file: record.file_static(),
            line: record.line(),
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        self.line == other.line && self.module == other.module && self.file == other.file
    }

    fn index(&self) -> usize {
        let mut hasher = DefaultHasher::new();
        (self.module, self.line).hash(&mut hasher);
        // The remainder is below SITES_MAX.
        usize::try_from(hasher.finish() % SITES_MAX as u64).unwrap_or_default()
    }
}

/// Rate limit and counters of one call site.
#[derive(Debug)]
pub(super) struct Site {
    location: OnceLock<SourceLocation>,
    pub(super) limit: RateLimit,
    /// Time of the last written line; 0 if no line was written.
    written_at: AtomicU64,
    /// Number of omitted lines that is not logged yet.
    omitted: AtomicU64,
    /// The first omitted line.
    example: OnceLock<String>,
}

/// The omitted lines of one call site.
#[derive(Debug)]
pub(super) struct Omitted<'a> {
    pub(super) location: &'a SourceLocation,
    pub(super) count: u64,
    pub(super) example: &'a str,
}

impl Site {
    fn new(interval: Duration, burst: u64) -> Self {
        Self {
            location: OnceLock::new(),
            limit: RateLimit::new(interval, burst),
            written_at: AtomicU64::new(0),
            omitted: AtomicU64::new(0),
            example: OnceLock::new(),
        }
    }

    /// Returns whether the call site has written no line for `silence`.
    pub(super) fn is_silent(&self, now: u64, silence: Duration) -> bool {
        let written_at = self.written_at.load(Ordering::Relaxed);
        let elapsed = Duration::from_nanos(now.saturating_sub(written_at));
        written_at == 0 || elapsed >= silence
    }

    /// Records a written line. Returns the number of lines omitted before.
    pub(super) fn begin_line(&self, now: u64) -> u64 {
        self.written_at.store(now.max(1), Ordering::Relaxed);
        self.omitted.swap(0, Ordering::Relaxed)
    }

    /// Counts an omitted line.
    pub(super) fn omit(&self, record: &Record<'_>) {
        self.example.get_or_init(|| escape::bounded_args(*record.args(), EXAMPLE_MAX));
        self.omitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns and resets the number of omitted lines; `None` if it is 0.
    pub(super) fn take_omitted(&self) -> Option<Omitted<'_>> {
        let count = self.omitted.swap(0, Ordering::Relaxed);
        let location = self.location.get().unwrap_or(&SHARED);
        let example = self.example.get().map_or("", String::as_str);
        (count > 0).then_some(Omitted { location, count, example })
    }
}

/// The call sites of the process.
#[derive(Debug)]
pub(super) struct Sites {
    sites: Box<[Site]>,
    shared: Site,
}

impl Sites {
    pub(super) fn new(interval: Duration, burst: u64) -> Self {
        let sites = (0..SITES_MAX).map(|_| Site::new(interval, burst)).collect();
        Self { sites, shared: Site::new(interval, burst) }
    }

    /// Returns the call site of the record.
    pub(super) fn of(&self, record: &Record<'_>) -> &Site {
        let Some(location) = SourceLocation::of(record) else {
            return &self.shared;
        };
        let (before, from) = self.sites.split_at(location.index());
        let mut probed = from.iter().chain(before);
        // The first free slot becomes the slot of this call site.
        let owner = probed.find(|site| site.location.get_or_init(|| location).is_same(&location));
        owner.unwrap_or(&self.shared)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().chain([&self.shared])
    }
}

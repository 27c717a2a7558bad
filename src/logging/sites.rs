//! What is counted of each call site, in memory of fixed size: remote senders choose the
//! lines, but not the call sites that write them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::{Level, Record};

use crate::escape;

/// Call sites that are counted each for itself: several times what this program and its libraries
/// have. All others share one allowance.
const SITES_MAX: usize = 1024;
/// Characters of a line that stands for those like it.
const EXAMPLE_MAX: usize = 160;

/// How much may be written, as in the generic cell rate algorithm: a burst, and then a unit in each
/// interval.
#[derive(Debug)]
pub(super) struct Allowance {
    interval: u64,
    burst: u64,
    /// When all of it has been regained.
    full_at: AtomicU64,
}

impl Allowance {
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

    /// Takes a unit. Returns whether one was left.
    pub(super) fn take(&self, now: u64) -> bool {
        let next = |full_at: u64| self.allows(full_at, now).then(|| self.after(full_at, now, 1));
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Takes units that were used, also if they were not left.
    pub(super) fn charge(&self, now: u64, units: u64) {
        let next = |full_at: u64| Some(self.after(full_at, now, units));
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn after(&self, full_at: u64, now: u64, units: u64) -> u64 {
        full_at.max(now).saturating_add(self.interval.saturating_mul(units))
    }
}

/// A place in the source code that writes lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) level: Level,
    pub(super) module: &'static str,
    pub(super) file: Option<&'static str>,
    pub(super) line: Option<u32>,
}

/// The place of all call sites for which there is no other.
const SHARED: Place =
    Place { level: Level::Warn, module: module_path!(), file: Some(file!()), line: Some(line!()) };

impl Place {
    /// `None` for a record that no macro of `log` has made.
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

/// What is known of one call site.
#[derive(Debug)]
pub(super) struct Site {
    place: OnceLock<Place>,
    pub(super) allowance: Allowance,
    /// When it wrote a line last; 0 if it never did.
    written_at: AtomicU64,
    /// Lines that were left out and that no line has told of.
    left_out: AtomicU64,
    /// The first line that was left out.
    example: OnceLock<String>,
}

/// Lines of one call site that were left out.
#[derive(Debug)]
pub(super) struct LeftOut<'a> {
    pub(super) place: &'a Place,
    pub(super) count: u64,
    pub(super) example: &'a str,
}

impl Site {
    fn new(interval: Duration, burst: u64) -> Self {
        Self {
            place: OnceLock::new(),
            allowance: Allowance::new(interval, burst),
            written_at: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            example: OnceLock::new(),
        }
    }

    /// Returns whether it has written nothing for `silence`.
    pub(super) fn is_silent(&self, now: u64, silence: Duration) -> bool {
        let written_at = self.written_at.load(Ordering::Relaxed);
        let elapsed = Duration::from_nanos(now.saturating_sub(written_at));
        written_at == 0 || elapsed >= silence
    }

    /// Notes that it writes a line. Returns how many were left out before.
    pub(super) fn begin_line(&self, now: u64) -> u64 {
        self.written_at.store(now.max(1), Ordering::Relaxed);
        self.left_out.swap(0, Ordering::Relaxed)
    }

    /// Counts a line that is not written.
    pub(super) fn leave_out(&self, record: &Record<'_>) {
        self.example.get_or_init(|| escape::bounded_args(*record.args(), EXAMPLE_MAX));
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what was left out and not yet told of; `None` if nothing was.
    pub(super) fn take_left_out(&self) -> Option<LeftOut<'_>> {
        let count = self.left_out.swap(0, Ordering::Relaxed);
        let place = self.place.get().unwrap_or(&SHARED);
        let example = self.example.get().map_or("", String::as_str);
        (count > 0).then_some(LeftOut { place, count, example })
    }
}

/// All call sites.
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
        let Some(place) = Place::of(record) else {
            return &self.shared;
        };
        let (before, from) = self.sites.split_at(place.index());
        let mut probed = from.iter().chain(before);
        // The first that is free becomes that of this place.
        let owner = probed.find(|site| site.place.get_or_init(|| place).is_same(&place));
        owner.unwrap_or(&self.shared)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().chain([&self.shared])
    }
}

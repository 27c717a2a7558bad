//! A bounded queue between the log and its reader. A line never waits for the reader: when the
//! queue is full, lines are dropped and counted, and a line in their place says how many.
//!
//! The reader is a pipe, journald, a terminal or the log of Mesos, and any of them may hang. So one
//! thread writes, and only this thread can block. Lines of all levels share the queue and keep
//! their order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Maximum size of the queued lines in bytes. All call sites together may write half of this at
/// once (see `TOTAL_BURST`).
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// Maximum number of queued lines, which bounds the memory of short lines.
const LINES_MAX: usize = 16 * 1024;

/// Number of lines that this process has dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Whether lines are being dropped.
static IS_DROPPING: AtomicBool = AtomicBool::new(false);

/// Returns the number of lines that this process has dropped, because the reader of the log did not
/// take them.
#[must_use]
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Returns the problem for health while the reader of the log takes no lines.
#[must_use]
pub fn reader_problem() -> Option<String> {
    IS_DROPPING.load(Ordering::Relaxed).then(|| {
        let dropped = lines_dropped();
        format!(
            "the log loses lines, {dropped} so far: its reader takes none: see whether the process \
             that reads stderr hangs (journald, a pipe, a full disk), and restart it"
        )
    })
}

/// Writes lines on the thread of the queue. May block.
pub trait LineWriter<T>: Send + 'static {
    /// Writes a line.
    ///
    /// # Errors
    /// When the line is lost.
    fn write(&mut self, line: T) -> io::Result<()>;

    /// Writes that `count` lines were dropped.
    ///
    /// # Errors
    /// When the line is lost.
    fn write_dropped(&mut self, count: u64) -> io::Result<()>;
}

/// The queue. Clones share it.
#[derive(Debug)]
pub struct LineQueue<T>(Arc<Shared<T>>);

impl<T> Clone for LineQueue<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    has_entry: Condvar,
    is_drained: Condvar,
}

#[derive(Debug)]
struct State<T> {
    entries: VecDeque<Entry<T>>,
    bytes: usize,
    /// Whether new lines are dropped.
    is_closed: bool,
    /// Whether new verbose lines are dropped.
    is_closed_for_verbose: bool,
    /// Number of dropped lines that has no entry yet.
    dropped: u64,
    is_writing: bool,
}

#[derive(Debug)]
enum Entry<T> {
    Line { line: T, bytes: usize },
    Dropped(u64),
}

impl<T> State<T> {
    const fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            is_closed: false,
            is_closed_for_verbose: false,
            dropped: 0,
            is_writing: false,
        }
    }

    /// Returns whether a line is accepted. After a refusal, lines are refused until
    /// [`Self::reopen`].
    fn accepts(&mut self, bytes: usize, is_verbose: bool) -> bool {
        self.is_closed_for_verbose |= self.exceeds(bytes, 3);
        self.is_closed |= self.exceeds(bytes, 4);
        !(self.is_closed || is_verbose && self.is_closed_for_verbose)
    }

    /// Accepts lines again if the queue is half empty: otherwise a slow reader would get a line
    /// about dropped lines after every line. Returns whether it is half empty.
    fn reopen(&mut self) -> bool {
        let is_half_empty = !self.exceeds(0, 2);
        if is_half_empty {
            self.is_closed = false;
            self.is_closed_for_verbose = false;
        }
        is_half_empty
    }

    /// Returns whether `bytes` more exceed this share of the limits, in quarters.
    fn exceeds(&self, bytes: usize, quarters: usize) -> bool {
        self.bytes + bytes > BYTES_MAX / 4 * quarters
            || self.entries.len() >= LINES_MAX / 4 * quarters
    }

    /// Adds the entry of the lines that were dropped before.
    fn add_dropped(&mut self) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.entries.push_back(Entry::Dropped(dropped));
        }
    }

    fn is_drained(&self) -> bool {
        self.entries.is_empty() && self.dropped == 0 && !self.is_writing
    }
}

impl<T: Send + 'static> LineQueue<T> {
    /// Starts the thread `name`, which writes the lines. The thread is never joined: it may be blocked for
    /// ever.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn start(name: &str, writer: impl LineWriter<T>) -> io::Result<Self> {
        let shared = Shared {
            state: Mutex::new(State::new()),
            has_entry: Condvar::new(),
            is_drained: Condvar::new(),
        };
        let queue = Self(Arc::new(shared));
        let written = queue.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || written.write_lines(writer))?;
        Ok(queue)
    }

    /// Queues a line, or drops and counts it. `is_verbose` lines leave room for the others.
    pub fn push(&self, line: T, bytes: usize, is_verbose: bool) {
        let mut state = self.0.state.lock();
        if !state.accepts(bytes, is_verbose) {
            state.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            IS_DROPPING.store(true, Ordering::Relaxed);
            return;
        }
        state.add_dropped();
        state.bytes += bytes;
        state.entries.push_back(Entry::Line { line, bytes });
        drop(state);
        self.0.has_entry.notify_one();
    }

    /// Waits until all lines are written, but not longer than `timeout`. Returns whether they are.
    pub fn drain(&self, timeout: Duration) -> bool {
        let mut state = self.0.state.lock();
        let is_pending = |state: &mut State<T>| !state.is_drained();
        !self.0.is_drained.wait_while_for(&mut state, is_pending, timeout).timed_out()
    }

    fn write_lines(&self, mut writer: impl LineWriter<T>) {
        // Dropped lines that no written line reports yet.
        let mut lost = 0;
        loop {
            let (result, bytes) = match self.take() {
                Entry::Line { line, bytes } => (writer.write(line), bytes),
                Entry::Dropped(count) => {
                    lost += count;
                    (Ok(()), 0)
                }
            };
            if result.is_err() {
                lost += 1;
                DROPPED.fetch_add(1, Ordering::Relaxed);
            } else if lost > 0 && writer.write_dropped(lost).is_ok() {
                lost = 0;
            }
            self.finish(bytes, lost > 0);
        }
    }

    /// Waits for an entry and takes it.
    fn take(&self) -> Entry<T> {
        let mut state = self.0.state.lock();
        loop {
            if state.entries.is_empty() {
                state.add_dropped();
            }
            if let Some(entry) = state.entries.pop_front() {
                state.is_writing = true;
                return entry;
            }
            self.0.has_entry.wait(&mut state);
        }
    }

    /// Notes the end of a write.
    fn finish(&self, bytes: usize, is_failing: bool) {
        let mut state = self.0.state.lock();
        state.is_writing = false;
        state.bytes -= bytes;
        if state.reopen() {
            IS_DROPPING.store(is_failing, Ordering::Relaxed);
        }
        if state.is_drained() {
            self.0.is_drained.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that takes a line for each permit.
    struct Reader {
        permits: Receiver<()>,
        lines: Sender<String>,
    }

    impl LineWriter<String> for Reader {
        fn write(&mut self, line: String) -> io::Result<()> {
            self.permits.recv().map_err(io::Error::other)?;
            self.lines.send(line).map_err(io::Error::other)
        }

        fn write_dropped(&mut self, count: u64) -> io::Result<()> {
            self.lines.send(format!("dropped {count}")).map_err(io::Error::other)
        }
    }

    fn queue() -> (LineQueue<String>, Sender<()>, Receiver<String>) {
        let (permit, permits) = channel();
        let (sender, lines) = channel();
        (LineQueue::start("test", Reader { permits, lines: sender }).unwrap(), permit, lines)
    }

    #[test]
    fn full_queue_drops_lines_and_reports_them_in_place() {
        let (queue, permit, lines) = queue();
        let before = lines_dropped();
        let push = |name: &str| queue.push(name.to_owned(), BYTES_MAX / 4, false);
        ["a", "b", "c", "d", "lost", "lost"].into_iter().for_each(push);
        assert!(lines_dropped() >= before + 2);
        assert!(reader_problem().unwrap().starts_with("the log loses lines, "));
        assert!(!queue.drain(Duration::from_millis(20)), "nobody reads");
        (0..3).for_each(|_| permit.send(()).unwrap());
        assert_eq!([0; 3].map(|_| lines.recv().unwrap()), ["a", "b", "c"]);
        while queue.0.state.lock().is_closed {
            std::thread::yield_now();
        }
        push("e");
        (0..2).for_each(|_| permit.send(()).unwrap());
        assert_eq!([0; 3].map(|_| lines.recv().unwrap()), ["d", "dropped 2", "e"]);
        assert!(queue.drain(Duration::from_secs(60)));
    }

    #[test]
    fn dropped_lines_are_reported_without_a_further_line() {
        let (queue, permit, lines) = queue();
        for name in ["a", "lost"] {
            queue.push(name.to_owned(), BYTES_MAX, false);
        }
        permit.send(()).unwrap();
        assert_eq!([0; 2].map(|_| lines.recv().unwrap()), ["a", "dropped 1"]);
    }

    #[test]
    fn verbose_lines_leave_room_for_others() {
        let (queue, permit, lines) = queue();
        queue.push("debug".to_owned(), BYTES_MAX / 4 * 3, true);
        queue.push("lost".to_owned(), 1, true);
        queue.push("error".to_owned(), 1, false);
        (0..2).for_each(|_| permit.send(()).unwrap());
        assert_eq!([0; 3].map(|_| lines.recv().unwrap()), ["debug", "dropped 1", "error"]);
    }
}

//! Progress of subcommands that may last longer than a second: a spinner on stderr, with what the
//! subcommand is doing and for how long. It is shown on a terminal only, and erased at the end.

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use overlay_types::escape::one_line;

/// Time after which progress is shown. A spinner for a moment would only flicker.
const DELAY: Duration = Duration::from_secs(1);
/// Time between two frames of the spinner.
const FRAME: Duration = Duration::from_millis(100);

/// A running operation. The end of its scope erases the spinner.
pub(super) struct Progress {
    /// `None` without a terminal.
    shown: Option<Shown>,
}

struct Shown {
    bar: ProgressBar,
    /// Dropping it ends the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts an operation with this description, such as `examining this host`.
    pub(super) fn start(description: &str) -> Self {
        if !io::stderr().is_terminal() || has_dumb_terminal() {
            return Self { shown: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // A message longer than the line would be erased only in part.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        let (end, ended) = channel::<()>();
        let delayed = bar.clone();
        let show = move || {
            if ended.recv_timeout(DELAY) == Err(RecvTimeoutError::Timeout) {
                delayed.set_draw_target(ProgressDrawTarget::stderr());
                while ended.recv_timeout(FRAME) == Err(RecvTimeoutError::Timeout) {
                    delayed.tick();
                }
            }
        };
        // Without a thread there is no progress, which is no reason to fail.
        let thread = Builder::new().name("overlay-spinner".to_owned()).spawn(show).ok();
        let progress = Self { shown: Some(Shown { bar, end: Some(end), thread }) };
        progress.describe(description);
        progress
    }

    /// Replaces the description. It may contain text of a peer.
    pub(super) fn describe(&self, description: &str) {
        if let Some(Shown { bar, .. }) = &self.shown {
            bar.set_message(one_line(description).into_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(shown) = &mut self.shown {
            shown.end = None;
            if let Some(thread) = shown.thread.take() {
                // A panic of the thread is in the log.
                let _ = thread.join();
            }
            shown.bar.finish_and_clear();
        }
    }
}

/// Whether the terminal cannot erase a line.
fn has_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb")
}

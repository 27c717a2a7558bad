//! Progress on stderr: a spinner on a terminal, plain lines elsewhere, and nothing with `--json`.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use overlay_types::escape::one_line;

use crate::cli::output::{OutputFormat, print_error};

pub(super) enum Progress {
    Spinner(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    pub(super) fn start(format: &OutputFormat) -> Self {
        if format.json {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message("starting a master and its agents");
        Self::Spinner(bar)
    }

    pub(super) fn step(&self, line: &str) {
        match self {
            Self::Spinner(bar) => bar.println(format!("  {}", one_line(line))),
            Self::Lines => print_error(format_args!("  {}", one_line(line))),
            Self::Silent => {}
        }
    }

    pub(super) fn end(&self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}

//! Results on stdout: lines, JSON and tables.
//!
//! Whoever reads may stop reading, as `head` does: then the rest is dropped silently, and the exit
//! code is what it would have been. There is no colour, so that nothing depends on whether a
//! terminal reads.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, StdoutLock, Write};

use clap::Args;
use comfy_table::{ColumnConstraint, ContentArrangement, Table as Grid, Width, presets};
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::Failure;
use crate::escape;

/// Rows that are laid out together: enough to see the widths of the columns, and no burden if there
/// are millions.
const ROWS_MAX: usize = 1000;
/// Spaces between columns.
const GAP: u16 = 2;
/// A sentence in a narrower column is easier to read if the terminal breaks it.
const SENTENCE_MIN: u16 = 24;
/// Longest text of somebody else that is shown, in characters. The longest of ours are the changes
/// of a configuration.
const STRANGER_MAX: usize = 8192;
/// What stands in an empty cell, so that columns can be counted.
const NOTHING: &str = "-";

/// The form of a result.
#[derive(Debug, Args)]
pub(super) struct Form {
    /// Print JSON, for programs
    #[arg(
        long,
        env = "MESOS_OVERLAY_JSON",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(super) json: bool,
}

/// Where results go.
pub(super) struct Output {
    stdout: BufWriter<Pipe>,
}

impl Output {
    pub(super) fn new() -> Self {
        let pipe = Pipe { stdout: io::stdout().lock(), is_closed: false };
        Self { stdout: BufWriter::new(pipe) }
    }

    /// Writes a line, or several. Whatever it quotes, a terminal shows all of it.
    pub(super) fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        self.write(&escape::lines(&line.to_string()))
    }

    fn write(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdout, "{line}").map_err(|error| failure(&error))
    }

    /// Writes `value` as JSON on one line, without holding it in memory as text.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut serializer =
            serde_json::Serializer::with_formatter(&mut self.stdout, VisibleFormatter);
        value.serialize(&mut serializer).map_err(|error| failure(&error.into()))?;
        self.write("")
    }

    /// Writes JSON that a master wrote. It means the same as before.
    pub(super) fn json_text(&mut self, text: &str) -> Result<(), Failure> {
        self.write(&escape::json(text.trim_end()))
    }

    /// Writes what was not yet written. To be called before a failure is told on stderr.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(|error| failure(&error))
    }
}

/// JSON without invisible characters.
struct VisibleFormatter;

impl Formatter for VisibleFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(escape::json(fragment).as_bytes())
    }

    fn write_raw_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(escape::json(fragment).as_bytes())
    }
}

/// Writes to stderr what is no result. It fails only where nobody reads.
pub(super) fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "{}", escape::lines(&line.to_string()));
}

fn failure(error: &io::Error) -> Failure {
    Failure::new(format!("write the output: {error}"))
}

/// Stdout, until nobody reads it any more.
struct Pipe {
    stdout: StdoutLock<'static>,
    is_closed: bool,
}

impl Pipe {
    fn unless_closed(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            other => other,
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_closed {
            let result = self.stdout.write_all(bytes);
            self.unless_closed(result)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stdout.flush();
        self.unless_closed(result)
    }
}

/// Rows of cells in columns that two spaces keep apart. Every cell is in every row, so that a line
/// found by grep says everything.
pub(super) struct Table {
    header: Option<Vec<String>>,
    rows: Vec<Vec<String>>,
    /// How wide the columns have become so far.
    widths: Vec<u16>,
    /// Into how much the last column is to be fitted.
    wrap_width: Option<u16>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            header: Some(header.iter().map(|&cell| cell.to_owned()).collect()),
            rows: Vec::new(),
            widths: vec![0; header.len()],
            wrap_width: None,
        }
    }

    /// The same, with sentences in the last column: in a terminal they are broken to its width.
    pub(super) fn with_sentences(header: &[&str]) -> Self {
        Self { wrap_width: terminal_width(), ..Self::new(header) }
    }

    /// Adds a row. What was added so far may be written.
    pub(super) fn row<const N: usize>(
        &mut self,
        output: &mut Output,
        cells: [String; N],
    ) -> Result<(), Failure> {
        // Before the widths of columns are known: an escape sequence is wider than what it shows.
        let fill = |cell: String| match escape::lines(&cell) {
            text if text.is_empty() => NOTHING.to_owned(),
            text => text.into_owned(),
        };
        self.rows.push(cells.into_iter().map(fill).collect());
        if self.rows.len() < ROWS_MAX { Ok(()) } else { self.write(output) }
    }

    /// Writes the rows that were not yet written.
    pub(super) fn finish(mut self, output: &mut Output) -> Result<(), Failure> {
        self.write(output)
    }

    fn write(&mut self, output: &mut Output) -> Result<(), Failure> {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING);
        grid.add_rows(std::mem::take(&mut self.rows));
        if let Some(header) = self.header.take() {
            grid.set_header(header);
        } else if grid.is_empty() {
            return Ok(());
        }
        for (width, content) in self.widths.iter_mut().zip(grid.column_max_content_widths()) {
            *width = content.max(*width);
        }
        let last = self.widths.len().saturating_sub(1);
        let mut before_last = 0_u16;
        for (index, column) in grid.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { GAP }));
            if index < last {
                // Addresses are not broken, however narrow the terminal.
                let width = self.widths[index].saturating_add(GAP);
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
                before_last = before_last.saturating_add(width);
            }
        }
        let wrap_width = self.wrap_width.filter(|&width| {
            width.checked_sub(before_last).is_some_and(|rest| rest >= SENTENCE_MIN)
        });
        if let Some(width) = wrap_width {
            grid.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        for line in grid.lines() {
            output.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// `None` where it does not matter: nobody breaks lines in a file.
fn terminal_width() -> Option<u16> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| tcgetwinsize(&stdout))?;
    size.ok().map(|size| size.ws_col).filter(|&width| width > 0)
}

/// The IPv4 and the IPv6 of something, in one cell.
pub(super) fn both(v4: Option<impl Display>, v6: Option<impl Display>) -> String {
    let v4 = v4.map(|v4| v4.to_string());
    let v6 = v6.map(|v6| v6.to_string());
    v4.into_iter().chain(v6).collect::<Vec<_>>().join("\n")
}

/// What somebody else wrote, harmless to a terminal: one line of visible characters, not endless.
pub(super) fn harmless(text: &str) -> String {
    escape::bounded_line(text, STRANGER_MAX)
}

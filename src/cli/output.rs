//! Results on stdout: lines, JSON and tables.
//!
//! If the reader closes stdout early, as `head` does, the rest is dropped silently and the exit
//! code does not change. On a terminal, status words have [colors](super::color).

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, StdoutLock, Write};

use clap::{Args, ValueEnum};
use comfy_table::{ColumnConstraint, ContentArrangement, Table as Grid, Width, presets};
use overlay_types::escape;
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::{Failure, color};
use crate::logging::print_to_stderr;

/// Rows that are laid out together. This bounds the memory for a table of millions of rows.
const ROWS_MAX: usize = 1000;
/// Spaces between columns.
const GAP: u16 = 2;
/// Narrowest column in which sentences are wrapped. Below it, the terminal wraps them.
const SENTENCE_MIN: u16 = 24;
/// Longest text of a peer that is shown, in characters. The longest legitimate texts are the
/// changes of a configuration.
const FOREIGN_TEXT_MAX: usize = 8192;
/// Text of an empty cell, so that scripts can count columns.
const EMPTY_CELL: &str = "-";

/// The flag that selects JSON or text.
#[derive(Debug, Args)]
pub(super) struct OutputFormat {
    /// Print JSON, for programs
    #[arg(
        long,
        env = "MESOS_OVERLAY_JSON",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(super) json: bool,
}

impl OutputFormat {
    /// Prints `report` as JSON with `--json`; otherwise prints what `print_text` writes.
    pub(super) fn print(
        &self,
        report: &impl Serialize,
        print_text: impl FnOnce(&mut Output) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut output = Output::new();
        if self.json {
            output.json(report)?;
        } else {
            print_text(&mut output)?;
        }
        output.finish()
    }

    /// Prints the JSON that a master wrote with `--json`; otherwise prints what `print_text`
    /// writes.
    pub(super) fn print_body(
        &self,
        body: &[u8],
        print_text: impl FnOnce(&mut Output) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut output = Output::new();
        if self.json {
            output.json_text(&String::from_utf8_lossy(body))?;
        } else {
            print_text(&mut output)?;
        }
        output.finish()
    }
}

/// The flags that select a table or JSON.
#[derive(Debug, Args)]
pub(super) struct TableFormat {
    /// The output: table, for terminals of 80 columns; wide, without shortened texts; json, for
    /// programs
    #[arg(
        short = 'o',
        long,
        env = "MESOS_OVERLAY_FORMAT",
        default_value = "table",
        hide_possible_values = true,
        conflicts_with = "json"
    )]
    format: TableKind,
    /// Print JSON, for programs; as with --format json
    #[arg(
        long,
        env = "MESOS_OVERLAY_JSON",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    json: bool,
}

/// The kinds of output of [`TableFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TableKind {
    Table,
    Wide,
    Json,
}

impl TableFormat {
    pub(super) fn kind(&self) -> TableKind {
        if self.json { TableKind::Json } else { self.format }
    }

    /// Prints `report` as JSON, or what `print_text` writes. `print_text` gets whether long texts are
    /// shortened.
    pub(super) fn print(
        &self,
        report: &impl Serialize,
        print_text: impl FnOnce(&mut Output, bool) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut output = Output::new();
        match self.kind() {
            TableKind::Json => output.json(report)?,
            kind => print_text(&mut output, kind == TableKind::Table)?,
        }
        output.finish()
    }
}

/// Shared flag of subcommands that can show their actions without doing them.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct DryRun {
    /// Show what would be done, and change nothing
    #[arg(
        long,
        env = "MESOS_OVERLAY_DRY_RUN",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(super) dry_run: bool,
}

/// Buffered writer to stdout.
pub(super) struct Output {
    stdout: BufWriter<Pipe>,
    has_colors: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        let pipe = Pipe { stdout: io::stdout().lock(), is_closed: false };
        Self { stdout: BufWriter::new(pipe), has_colors: color::is_enabled() }
    }

    /// Writes one or several lines. Characters that a terminal would interpret are escaped.
    pub(super) fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        self.write(&escape::lines(&line.to_string()))
    }

    /// Writes a line with status words, which have colors on a terminal.
    pub(super) fn status_line(&mut self, line: impl Display) -> Result<(), Failure> {
        self.painted_line(line, |line| color::paint_status(line).into_owned())
    }

    /// Writes a line with colors on a terminal. `paint` gets the escaped line.
    pub(super) fn painted_line(
        &mut self,
        line: impl Display,
        paint: impl FnOnce(&str) -> String,
    ) -> Result<(), Failure> {
        let line = line.to_string();
        let line = escape::lines(&line);
        if self.has_colors { self.write(&paint(&line)) } else { self.write(&line) }
    }

    /// Writes a line for each text, escaped, after `label` and a colon.
    pub(super) fn labelled_lines(&mut self, label: &str, texts: &[String]) -> Result<(), Failure> {
        texts.iter().try_for_each(|text| self.line(format_args!("{label}: {}", sanitize(text))))
    }

    fn write(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdout, "{line}").map_err(|error| failure(&error))
    }

    /// Clears a terminal, for text that is shown again and again. Writes nothing into a file.
    pub(super) fn clear_terminal(&mut self) -> Result<(), Failure> {
        if io::stdout().is_terminal() { self.write("\x1b[2J\x1b[H") } else { Ok(()) }
    }

    /// Writes `value` as JSON on one line, without building the whole text in memory.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut serializer =
            serde_json::Serializer::with_formatter(&mut self.stdout, VisibleFormatter);
        value.serialize(&mut serializer).map_err(|error| failure(&error.into()))?;
        self.write("")
    }

    /// Writes JSON of a master, with invisible characters escaped. Its meaning does not change.
    pub(super) fn json_text(&mut self, text: &str) -> Result<(), Failure> {
        self.write(&escape::json(text.trim_end()))
    }

    /// Writes a text that the program generated for another program, unchanged.
    pub(super) fn generated(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(text).map_err(|error| failure(&error))
    }

    /// Flushes the output. Call this before a failure is printed on stderr.
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

/// Writes a line to stderr, in a service through the queue of the log. Errors are ignored: they
/// mean that the reader has closed it.
pub(super) fn print_error(line: impl Display) {
    print_to_stderr(&escape::lines(&line.to_string()));
}

fn failure(error: &io::Error) -> Failure {
    Failure::new(format!("write the output: {error}"))
}

/// Stdout that drops everything after the reader has closed it.
struct Pipe {
    stdout: StdoutLock<'static>,
    is_closed: bool,
}

impl Pipe {
    fn ignore_broken_pipe(&mut self, result: io::Result<()>) -> io::Result<()> {
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
            self.ignore_broken_pipe(result)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stdout.flush();
        self.ignore_broken_pipe(result)
    }
}

/// A table with columns separated by two spaces. Every row repeats all its cells, so that a line
/// found by grep is complete.
pub(super) struct Table {
    header: Option<Vec<String>>,
    rows: Vec<Vec<String>>,
    /// Widest cell of each column so far.
    widths: Vec<u16>,
    /// Width of the terminal, if the last column is wrapped.
    wrap_width: Option<u16>,
    /// Whether the last column begins with a status.
    has_status: bool,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            header: Some(header.iter().map(|&cell| cell.to_owned()).collect()),
            rows: Vec::new(),
            widths: vec![0; header.len()],
            wrap_width: None,
            has_status: false,
        }
    }

    /// Creates a table with a status or sentences in the last column. A terminal shows them wrapped,
    /// and status words with colors.
    pub(super) fn with_sentences(header: &[&str]) -> Self {
        Self { wrap_width: terminal_width(), has_status: true, ..Self::new(header) }
    }

    /// Adds a row. Writes the collected rows when their number reaches the limit.
    pub(super) fn row(
        &mut self,
        output: &mut Output,
        cells: impl IntoIterator<Item = String>,
    ) -> Result<(), Failure> {
        // Escape before the widths are measured: an escape sequence is wider than its character.
        let fill = |cell: String| match escape::lines(&cell) {
            text if text.is_empty() => EMPTY_CELL.to_owned(),
            text => text.into_owned(),
        };
        self.rows.push(cells.into_iter().map(fill).collect());
        if self.rows.len() < ROWS_MAX { Ok(()) } else { self.write(output) }
    }

    /// Writes the remaining rows.
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
                // Addresses are never wrapped, even in a narrow terminal.
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
            let line = line.trim_end();
            if self.has_status {
                output.painted_line(line, |line| paint_last_column(line, before_last.into()))?;
            } else {
                output.line(line)?;
            }
        }
        Ok(())
    }
}

/// Colors the status words in the column that begins at this character.
fn paint_last_column(line: &str, start: usize) -> String {
    let start = line.char_indices().nth(start).map_or(line.len(), |(at, _)| at);
    let (others, last) = line.split_at(start);
    format!("{others}{}", color::paint_status(last))
}

/// Returns the width of the terminal; `None` if stdout is none, since files are not wrapped.
fn terminal_width() -> Option<u16> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| tcgetwinsize(&stdout))?;
    size.ok().map(|size| size.ws_col).filter(|&width| width > 0)
}

/// Returns the IPv4 and the IPv6 address of an object as the lines of one cell.
pub(super) fn address_pair(v4: Option<impl Display>, v6: Option<impl Display>) -> String {
    let v4 = v4.map(|v4| v4.to_string());
    let v6 = v6.map(|v6| v6.to_string());
    v4.into_iter().chain(v6).collect::<Vec<_>>().join("\n")
}

/// Returns text of a peer as one line of visible characters with a limited length.
pub(super) fn sanitize(text: &str) -> String {
    escape::bounded_line(text, FOREIGN_TEXT_MAX)
}

/// Returns texts of a peer as the lines of one cell.
pub(super) fn sanitize_lines(texts: &[String]) -> String {
    texts.iter().map(|text| sanitize(text)).collect::<Vec<_>>().join("\n")
}

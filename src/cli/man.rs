//! `mesos-overlay man`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::output::Output;
use super::{Cli, Failure};

/// The section of the manual for programs of administrators.
const SECTION: &str = "8";

/// Write the manual pages.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay man | man -l -
  mesos-overlay man --directory /usr/local/share/man/man8

The packages install the pages: see `man mesos-overlay` and `man mesos-overlay-agent`.")]
pub(super) struct ManCommand {
    /// Write the page of the program and a page for each subcommand into this directory, which is
    /// created if it is missing. Without this flag: print the page of the program
    #[arg(long, env = "MESOS_OVERLAY_DIRECTORY", value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl ManCommand {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut program = Cli::command().disable_help_subcommand(true);
        program.build();
        if let Some(directory) = &self.directory {
            return write_pages(&program, directory);
        }
        let (_, page) = render(&program);
        let mut output = Output::new();
        output.generated(page.as_bytes())?;
        output.finish()
    }
}

/// Writes the page of the program and the page of each subcommand.
fn write_pages(program: &Command, directory: &Path) -> Result<(), Failure> {
    let failure = |path: &Path, error| Failure::new(format!("write {}: {error}", path.display()));
    fs::create_dir_all(directory).map_err(|error| failure(directory, error))?;
    let nested = program.get_subcommands().flat_map(Command::get_subcommands);
    for command in program.get_subcommands().chain(nested).chain([program]) {
        let (name, page) = render(command);
        let path = directory.join(name);
        fs::write(&path, page).map_err(|error| failure(&path, error))?;
    }
    Ok(())
}

/// Returns the name of a page's file, and the page.
fn render(command: &Command) -> (String, String) {
    let source = format!("mesos-overlay {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).section(SECTION).source(source);
    let mut page = Vec::new();
    let parts = [
        Man::render_title,
        Man::render_name_section,
        Man::render_synopsis_section,
        Man::render_description_section,
        Man::render_options_section,
    ];
    for part in parts {
        part(&man, &mut page).expect("a Vec takes all bytes");
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page).expect("a Vec takes all bytes");
    }
    let mut page = String::from_utf8(page).expect("clap's texts are UTF-8");
    if let Some(text) = command.get_after_help() {
        page += &render_examples(&text.to_string());
    }
    (man.get_filename(), page)
}

/// Renders the text after the options: examples, whose lines stay as they are, and then paragraphs.
fn render_examples(text: &str) -> String {
    let (examples, notes) = text.split_once("\n\n").unwrap_or((text, ""));
    let examples = examples.lines().filter(|line| *line != "Examples:");
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for example in examples {
        roff.text([roman(example.trim_start())]);
    }
    roff.control("fi", []);
    if !notes.is_empty() {
        roff.control("SH", ["NOTES"]);
        for paragraph in notes.split("\n\n") {
            roff.control("PP", []).text([roman(paragraph)]);
        }
    }
    roff.render()
}

//! Colors of status words on a terminal. They are added to lines that are laid out and escaped, so
//! that columns align, and text of a peer cannot contain any.
//!
//! The colors follow the conventions that anstream implements: none without a terminal, with a
//! `NO_COLOR` that is not empty, or with `TERM=dumb`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use anstream::{AutoStream, ColorChoice};
use clap::builder::styling::{AnsiColor, Style};

/// Characters that end a status word.
const DELIMITERS: [char; 3] = [':', ',', '('];

/// Returns whether stdout shows colors.
pub(super) fn is_enabled() -> bool {
    let stdout = io::stdout();
    stdout.is_terminal() && AutoStream::choice(&stdout) != ColorChoice::Never
}

/// Returns the color of a status word, also with the number of objects that have it.
fn color_of(text: &str) -> Option<AnsiColor> {
    let (count, word) = text.split_once(' ').unwrap_or(("", text));
    let word = match count.parse::<u64>() {
        Ok(0) => return None,
        Ok(_) => word,
        Err(_) => text,
    };
    match word {
        "ok" | "done" => Some(AnsiColor::Green),
        "failed" | "wrong" | "not served" | "problem" | "lost" => Some(AnsiColor::Red),
        "configuring" | "degraded" | "recovering" | "stale" | "starting" | "unassigned"
        | "unreported" | "warning" | "warnings" => Some(AnsiColor::Yellow),
        _ => None,
    }
}

/// Colors the status words in a line. A reason after a failure is plain text.
pub(super) fn paint_status(line: &str) -> Cow<'_, str> {
    let mut painted = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(DELIMITERS).map_or(rest.len(), |at| at + 1);
        let segment = rest[..end].trim_end_matches(DELIMITERS);
        let word = segment.trim();
        let Some(color) = color_of(word) else {
            painted += &rest[..end];
            rest = &rest[end..];
            continue;
        };
        let start = segment.len() - segment.trim_start().len();
        painted += &rest[..start];
        paint(&mut painted, word, color);
        painted += &rest[start + word.len()..end];
        rest = &rest[end..];
        if color == AnsiColor::Red && !word.starts_with(|first: char| first.is_ascii_digit()) {
            break;
        }
    }
    painted += rest;
    if painted.len() == line.len() { Cow::Borrowed(line) } else { Cow::Owned(painted) }
}

/// Colors a severity at the beginning of each line.
pub(super) fn paint_severity(text: &str) -> String {
    let mut painted = String::new();
    for line in text.split_inclusive('\n') {
        let word = line.split_whitespace().next().filter(|word| line.starts_with(word));
        match word.and_then(|word| Some((word, color_of(word)?))) {
            Some((word, color)) => {
                paint(&mut painted, word, color);
                painted += &line[word.len()..];
            }
            None => painted += line,
        }
    }
    painted
}

/// Colors a word wherever it is between spaces.
pub(super) fn paint_word(line: &str, word: &str) -> String {
    let Some(color) = color_of(word) else { return line.to_owned() };
    let mut painted = String::new();
    for part in line.split_inclusive(' ') {
        if part.trim_end() == word {
            paint(&mut painted, word, color);
            painted += &part[word.len()..];
        } else {
            painted += part;
        }
    }
    painted
}

fn paint(painted: &mut String, word: &str, color: AnsiColor) {
    let style = Style::new().fg_color(Some(color.into()));
    // Writing to a string does not fail.
    let _ = write!(painted, "{style}{word}{style:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows colors as letters.
    fn shown(painted: &str) -> String {
        let colors =
            [("\x1b[31m", "<r>"), ("\x1b[32m", "<g>"), ("\x1b[33m", "<y>"), ("\x1b[0m", "</>")];
        colors.iter().fold(painted.to_owned(), |text, (code, letter)| text.replace(code, letter))
    }

    #[test]
    fn status_words_have_colors_and_reasons_have_none() {
        for (line, expected) in [
            ("ok", "<g>ok</>"),
            ("stale, last report: ok", "<y>stale</>, last report: <g>ok</>"),
            ("vxlan-1: failed: a: ok", "vxlan-1: <r>failed</>: a: ok"),
            ("not served: failed", "<r>not served</>: failed"),
            ("master m:5050: degraded (epoch 1)", "master m:5050: <y>degraded</> (epoch 1)"),
            (
                "3 agents: 2 ok, 1 failed, 4 stale",
                "3 agents: <g>2 ok</>, <r>1 failed</>, <y>4 stale</>",
            ),
            ("1 agent: 1 ok, 0 failed", "1 agent: <g>1 ok</>, 0 failed"),
            ("the rest is okay", "the rest is okay"),
            ("", ""),
        ] {
            assert_eq!(shown(&paint_status(line)), expected);
        }
    }

    #[test]
    fn severity_has_color_at_beginning_of_lines_only() {
        assert_eq!(
            shown(&paint_severity("wrong    probe\n  ok     wrong\nok  a")),
            "<r>wrong</>    probe\n  ok     wrong\n<g>ok</>  a"
        );
    }

    #[test]
    fn lost_ping_has_color() {
        assert_eq!(
            shown(&paint_word("c1 a · lost 0.12 lost", "lost")),
            "c1 a · <r>lost</> 0.12 <r>lost</>"
        );
    }
}

//! Escapes invisible characters of untrusted text and limits its length.
//!
//! Names, error texts and paths come from peers, clients, Docker, ZooKeeper and the kernel. A
//! terminal executes control characters, and characters that set the text direction can disguise a
//! line. Every output uses this module: the log, the command line, and HTTP. Ordinary text of every
//! language is unchanged.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use itertools::Either;

/// Marks the end of a truncated text.
pub const CUT: &str = "… (cut)";

/// Whether a terminal shows nothing for the character, or executes it: the controls C0 and C1, DEL,
/// line separators, direction marks, and the other invisible format characters of Unicode. The
/// latter are most of the property `Default_Ignorable_Code_Point`.
const fn is_hidden(letter: char) -> bool {
    matches!(
        letter,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Whether the character is invisible and changes the shape of the previous character. Persian,
/// Indic scripts, Mongolian and emoji use such characters.
const fn is_joiner(letter: char) -> bool {
    matches!(letter, '\u{180b}'..='\u{180f}' | '\u{200c}'..='\u{200d}' | '\u{fe00}'..='\u{fe0f}')
}

/// Whether the character must be escaped after `previous`. A joiner is ordinary text after a
/// visible character that is not ASCII. Elsewhere it only makes two names look alike.
const fn needs_escape(letter: char, previous: char) -> bool {
    if is_joiner(letter) {
        return previous.is_ascii() || is_hidden(previous) || is_joiner(previous);
    }
    is_hidden(letter)
}

/// Writes text with escaped invisible characters, up to a number of characters.
///
/// [`fmt::Write::write_str`] fails at the limit, so that a long text is not formatted completely.
#[derive(Debug)]
pub struct Escaper<W> {
    out: W,
    previous: char,
    /// Whether line breaks and tabs are written unescaped.
    keeps_lines: bool,
    /// Number of characters that still fit.
    remaining: usize,
    bytes: usize,
    is_cut: bool,
}

impl<W: fmt::Write> Escaper<W> {
    /// Creates an escaper that writes one line of at most `characters` to `out`.
    pub const fn one_line(out: W, characters: usize) -> Self {
        let (previous, keeps_lines) = (' ', false);
        Self { out, previous, keeps_lines, remaining: characters, bytes: 0, is_cut: false }
    }

    /// Appends [`CUT`] if the text was too long. Returns the number of bytes written.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn finish(mut self) -> Result<usize, fmt::Error> {
        if self.is_cut {
            self.out.write_str(CUT)?;
            self.bytes += CUT.len();
        }
        Ok(self.bytes)
    }

    /// Whether the text was too long.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn must_escape(&self, letter: char) -> bool {
        let is_kept = self.keeps_lines && matches!(letter, '\n' | '\t');
        !is_kept && needs_escape(letter, self.previous)
    }
}

impl<W: fmt::Write> fmt::Write for Escaper<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Start of the current run of unescaped characters.
        let mut start = 0;
        for (at, letter) in text.char_indices() {
            if matches!(letter, ' '..='~') && self.remaining > 0 {
                self.remaining -= 1;
                self.previous = letter;
                continue;
            }
            let is_escaped = self.must_escape(letter);
            let sequence = escape_sequence(letter);
            let width = if is_escaped { sequence.clone().count() } else { 1 };
            self.is_cut |= width > self.remaining;
            if is_escaped || self.is_cut {
                self.out.write_str(&text[start..at])?;
                self.bytes += at - start;
                start = at + letter.len_utf8();
            }
            if self.is_cut {
                return Err(fmt::Error);
            }
            if is_escaped {
                sequence.clone().try_for_each(|letter| self.out.write_char(letter))?;
                self.bytes += width;
            }
            self.remaining -= width;
            self.previous = letter;
        }
        self.bytes += text.len() - start;
        self.out.write_str(&text[start..])
    }
}

/// Returns `\n`, `\r` and `\t`, or `\u{202e}` for other characters. All of them are ASCII.
fn escape_sequence(letter: char) -> impl Iterator<Item = char> + Clone {
    match letter {
        '\n' | '\r' | '\t' => Either::Left(letter.escape_default()),
        _ => Either::Right(letter.escape_unicode()),
    }
}

/// Returns the text and whether it was too long.
fn escape(text: &str, keeps_lines: bool, characters: usize) -> (String, bool) {
    let mut escaped = String::with_capacity(text.len().min(characters));
    let mut escaper = Escaper { keeps_lines, ..Escaper::one_line(&mut escaped, characters) };
    // Only the limit can fail: the text is in memory.
    let _ = escaper.write_str(text);
    let is_cut = escaper.is_cut();
    (escaped, is_cut)
}

/// Whether the text contains printable ASCII only. Most texts are plain.
fn is_plain(text: &str, keeps_lines: bool) -> bool {
    // No branch for each byte: the state of a large cluster has tens of megabytes.
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') | (keeps_lines & (byte == b'\n'));
    let chunks = text.as_bytes().chunks(256);
    chunks.into_iter().all(|chunk| chunk.iter().fold(true, |all, byte| all & is_plain(*byte)))
}

fn escape_unbounded(text: &str, keeps_lines: bool) -> Cow<'_, str> {
    if is_plain(text, keeps_lines) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escape(text, keeps_lines, usize::MAX).0)
}

/// Escapes all invisible characters, including line breaks.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape_unbounded(text, false)
}

/// Escapes all invisible characters except line breaks and tabs.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape_unbounded(text, true)
}

fn escape_bounded(text: &str, keeps_lines: bool, characters: usize) -> String {
    let (escaped, is_cut) = escape(text, keeps_lines, characters);
    if !is_cut {
        return escaped;
    }
    let without_mark = characters.saturating_sub(CUT.chars().count());
    escape(text, keeps_lines, without_mark).0 + CUT
}

/// Returns [`one_line`], truncated to `characters`. A truncated text ends with [`CUT`].
#[must_use]
pub fn bounded_line(text: &str, characters: usize) -> String {
    escape_bounded(text, false, characters)
}

/// Formats the arguments as one line, truncated to `characters`. A truncated text ends with
/// [`CUT`], and the rest is not formatted.
#[must_use]
pub fn bounded_args(arguments: fmt::Arguments<'_>, characters: usize) -> String {
    let mut text = String::new();
    let mut escaper = Escaper::one_line(&mut text, characters);
    let _ = escaper.write_fmt(arguments);
    let _ = escaper.finish();
    text
}

/// Returns [`lines`], truncated to `characters`. A truncated text ends with [`CUT`].
#[must_use]
pub fn bounded_lines(text: &str, characters: usize) -> String {
    escape_bounded(text, true, characters)
}

/// Escapes the invisible characters of JSON text with JSON escapes, `\u202e`. The value is
/// unchanged.
///
/// JSON allows the controls C0 only between tokens. Line breaks are kept. Other white space becomes
/// spaces, because a terminal executes a carriage return.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    if is_plain(text, true) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => escaped.push('\n'),
            '\r' | '\t' => escaped.push(' '),
            _ if is_hidden(letter) || is_joiner(letter) => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
            _ => escaped.push(letter),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A character of each class: C0, DEL, C1, separators, direction, zero width, tags.
    const HOSTILE: &str = "a\u{1b}[2J\u{7f}\u{9b}\u{2028}\u{2029}\u{61c}\u{200e}\u{202e}\u{2066}\
                           \u{200b}\u{200d}\u{feff}\u{ad}\u{e0041}\u{e0100}\r\n\tz";

    #[test]
    fn one_line_escapes_every_invisible_character() {
        assert_eq!(
            one_line(HOSTILE),
            "a\\u{1b}[2J\\u{7f}\\u{9b}\\u{2028}\\u{2029}\\u{61c}\\u{200e}\\u{202e}\\u{2066}\
             \\u{200b}\\u{200d}\\u{feff}\\u{ad}\\u{e0041}\\u{e0100}\\r\\n\\tz"
        );
    }

    #[test]
    fn lines_keep_line_breaks_and_tabs() {
        assert_eq!(lines("a\r\n\tb\u{202e}\n"), "a\\r\n\tb\\u{202e}\n");
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in [
            "Straße, naïve, Ωμέγα, Привет: „quoted“ – 10 %",
            "שלום عالم می\u{200c}خواهم हिन्दी क्\u{200d}ष ไทย",
            "日本語 한국어 中文 ᠮᠣᠩᠭᠣᠯ\u{180b}",
            "e\u{301} 👩\u{200d}🔬 ☺\u{fe0f} \\u{202e} \"'\\",
        ] {
            assert_eq!(one_line(text), text);
            assert_eq!(bounded_line(text, 1000), text);
        }
    }

    #[test]
    fn joiner_that_hides_a_difference_is_escaped() {
        assert_eq!(one_line("web\u{200d}1"), "web\\u{200d}1");
        assert_eq!(one_line("é\u{200d}\u{200d}"), "é\u{200d}\\u{200d}");
    }

    #[test]
    fn long_text_is_cut_between_characters_and_marked() {
        assert_eq!(bounded_line("abcdefghij", 10), "abcdefghij");
        assert_eq!(bounded_line("abcdefghijk", 10), "abc… (cut)");
        assert_eq!(bounded_line("ab\u{202e}cdefghij", 15), "ab… (cut)");
        assert_eq!(bounded_lines("a\nbcdefghijk", 10), "a\nb… (cut)");
        assert_eq!(bounded_line(&"ö".repeat(11), 10), "ööö… (cut)");
    }

    #[test]
    fn json_value_is_unchanged() {
        let value = serde_json::json!({ "a\u{202e}": HOSTILE, "b": "日本 \u{e0041}\u{7f}" });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let escaped = json(&text);
            let is_visible = |letter| !is_hidden(letter) || letter == '\n';
            assert!(escaped.chars().all(is_visible), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
        assert_eq!(json("{\r\t\"a\":\"\u{e0041}\"}\u{1b}"), "{  \"a\":\"\\udb40\\udc41\"}\\u001b");
    }

    proptest! {
        #[test]
        fn escaping_is_visible_bounded_and_idempotent(text in ".{0,40}", limit in 7_usize..60) {
            let escaped = bounded_line(&text, limit);
            prop_assert!(escaped.chars().count() <= limit, "{escaped:?}");
            prop_assert!(!escaped.chars().any(is_hidden), "{escaped:?}");
            prop_assert_eq!(bounded_line(&escaped, limit), escaped.clone());
            prop_assert_eq!(one_line(&escaped), escaped.as_str());
        }
    }
}

//! Prepares texts for messages: on one line, short, and without passwords.

use overlay_types::secret;

/// Returns `text` on one line and harmless to a terminal. A file may hold line breaks, escape
/// sequences and direction marks in its keys and values.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\'' | '"' | '\\' => line.push(letter),
            other => line.extend(other.escape_debug()),
        }
    }
    line
}

/// Returns the first `length` characters of `text`, with an ellipsis if `text` is longer.
pub(super) fn abbreviate(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns `url` without its user and password, because configurations are logged.
pub(super) fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme @ "zk", _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        // Malformed, or without a password.
        _ if secret::may_contain_part(url) => secret::HIDDEN.to_owned(),
        _ => url.to_owned(),
    }
}

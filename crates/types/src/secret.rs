//! Keeps passwords out of messages.
//!
//! An address of ZooKeeper may contain a user and a password. A malformed address reaches parsers
//! that expect other values, and their messages quote what they refuse. So a text that may contain
//! a password is not quoted, whatever its form is.

use std::borrow::Cow;
use std::path::Path;

/// Stands for a text that is not shown.
pub const HIDDEN: &str = "…";

/// Schemes of addresses without a password of ZooKeeper.
const HARMLESS_SCHEMES: [&str; 3] = ["http:", "https:", "file:"];

/// Whether `text` looks like an address with a password, or like an address of ZooKeeper whose
/// malformed part may hold one. A few harmless texts look like that as well.
#[must_use]
pub fn may_contain(text: &str) -> bool {
    let text = normalize(text);
    has_credentials(&text)
        || begins_as_address(&text)
        || ["zk:/", "zk//"].iter().any(|scheme| text.contains(scheme))
        || has_other_scheme(&text)
}

/// Whether `text` may be a part of an address with a password: a space, a line break or a shell
/// divides an address.
#[must_use]
pub fn may_contain_part(text: &str) -> bool {
    normalize(text).contains('@') || may_contain(text)
}

/// Returns `text` in quotes, or a description if it may contain a password.
#[must_use]
pub fn quote(text: &str) -> String {
    if may_contain_part(text) { "the given text".to_owned() } else { format!("'{text}'") }
}

/// Returns the path for a message. A path that is an address with a password is not shown.
#[must_use]
pub fn show_path(path: &Path) -> String {
    let text = path.display().to_string();
    if may_contain(&text) { HIDDEN.to_owned() } else { text }
}

/// Replaces every occurrence of `secrets` in `text`. The secrets are arguments of a command and
/// values of variables, of which only those are replaced that may contain a password.
#[must_use]
pub fn redact<'a, 'b>(text: &'a str, secrets: impl IntoIterator<Item = &'b str>) -> Cow<'a, str> {
    let mut redacted = Cow::Borrowed(text);
    for secret in secrets {
        for part in secret_parts(secret) {
            if redacted.contains(part) {
                redacted = redacted.replace(part, HIDDEN).into();
            }
        }
    }
    redacted
}

/// Returns the parts of `text` that may not be shown, the longest first.
fn secret_parts(text: &str) -> Vec<&str> {
    /// Shorter parts occur in other words of a message.
    const LENGTH_MIN: usize = 3;

    if !may_contain_part(text) {
        return Vec::new();
    }
    // `--master=zk://…`, `file://…`, `log:…`
    let suffixes = text.match_indices(['=', ':', '/']).map(|(at, _)| &text[at + 1..]);
    let before_server = text.rsplit_once('@').map_or("", |(before, _)| before);
    let passwords = before_server.match_indices([':', '/']).map(|(at, _)| &before_server[at + 1..]);
    let mut parts: Vec<&str> =
        [text].into_iter().chain(suffixes.filter(|part| may_contain_part(part))).collect();
    parts.extend(passwords);
    parts.retain(|part| part.len() >= LENGTH_MIN);
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts
}

/// Returns the text in lower case, with other spellings of '@' and ':' replaced.
fn normalize(text: &str) -> String {
    let text = text.to_lowercase().replace("%40", "@").replace("%3a", ":");
    text.replace(['\u{ff20}', '\u{fe6b}'], "@").replace(['\u{ff1a}', '\u{fe55}'], ":")
}

/// Whether a ':' is before the last '@', as in `USER:PASSWORD@HOST`.
fn has_credentials(text: &str) -> bool {
    text.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'))
}

/// Whether the text begins with `zk:` or similar.
fn begins_as_address(text: &str) -> bool {
    let text = text.trim_start_matches(|letter: char| !letter.is_ascii_alphanumeric());
    text.strip_prefix("zk").is_some_and(|rest| rest.starts_with([':', '/', '%', '@', '\\']))
}

/// Whether the text contains `//` after another scheme than that of the web or of a file.
fn has_other_scheme(text: &str) -> bool {
    text.match_indices("//").any(|(at, _)| {
        let before = &text[..at];
        !HARMLESS_SCHEMES.iter().any(|scheme| before.ends_with(scheme))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A password of the tests. No message contains it by chance.
    const SECRET: &str = "s3cr3tW0rd";

    /// One way to damage a text, at a place that `at` chooses.
    fn damage(text: &str, kind: u8, at: usize) -> String {
        let letters: Vec<char> = text.chars().collect();
        let secret = text.find(SECRET).map_or(0, |byte| text[..byte].chars().count());
        let inside = |at: usize| at > secret && at < secret + SECRET.len();
        let mut at = at % (letters.len() + 1);
        while inside(at) {
            at -= 1;
        }
        let (before, after): (String, String) =
            (letters[..at].iter().collect(), letters[at..].iter().collect());
        match kind % 12 {
            0 if !after.is_empty() && at != secret => {
                before + &after[after.chars().next().map_or(0, char::len_utf8)..]
            }
            1 => before + ":" + &after,
            2 => before + "@" + &after,
            3 => before + "/" + &after,
            4 => before + " " + &after,
            5 => before + "\"" + &after,
            6 => before + "%20" + &after,
            7 => format!("\u{feff}{text}"),
            8 => text.replace("zk", "ZK"),
            9 => text.replace('@', "%40"),
            10 => format!("ZK={text}"),
            _ => format!("'{text}'"),
        }
    }

    proptest! {
        #[test]
        fn damaged_address_is_not_shown(
            kinds in prop::collection::vec((0_u8..12, 0_usize..80), 0..3),
        ) {
            let mut text = format!("zk://user:{SECRET}@10.0.0.1:2181/overlay");
            for (kind, at) in kinds {
                text = damage(&text, kind, at);
            }
            prop_assert!(text.contains(SECRET));
            prop_assert!(may_contain(&text), "{text}");
            let message = format!("error: unexpected argument '{text}' found");
            let shown = redact(&message, [&*text]);
            prop_assert!(!shown.contains(SECRET), "{shown}");
        }
    }

    #[test]
    fn harmless_text_is_shown() {
        for text in [
            "10.0.0.1:5050",
            "master@10.0.0.1:5060",
            "zk-2.example:2181",
            "[::1]:5050",
            "http://10.0.0.1/",
            "/etc/mesos-overlay@1/network.json",
            "fd00::/64",
            "nowhere:port",
            "file:///etc/zk/address",
            "log:/var/lib/mesos/log",
            "",
        ] {
            assert!(!may_contain(text), "{text}");
            assert_eq!(
                redact(&format!("read {text}: x"), [text]).contains(HIDDEN),
                text.contains('@')
            );
        }
        assert_eq!(quote("nowhere:port"), "'nowhere:port'");
        assert_eq!(quote("a@b"), "the given text");
    }

    #[test]
    fn redaction_covers_values_of_flags_and_parts() {
        let argument = format!("--to=log:zk://u:{SECRET}@h/p");
        let message = format!("log:zk://u:{SECRET}@h/p: there is no state ({SECRET}@h)");
        let shown = redact(&message, ["import", &argument]);
        assert_eq!(shown, "…: there is no state (…@h)");
        assert!(matches!(redact("text", ["import", "--json"]), Cow::Borrowed(_)));
    }
}

//! The archive of a bundle: a directory of texts, with a table of contents.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use overlay_types::escape;

use super::redaction::Redaction;

/// Longest text of an item, in bytes. A longer one is cut.
pub(super) const TEXT_MAX: u64 = 8 * 1024 * 1024;

/// Longest reason and source in the table of contents, in characters.
const LINE_MAX: usize = 300;

/// Something to collect, with its text or the reason why there is none.
#[derive(Debug)]
pub(super) struct Item {
    /// The path in the archive.
    pub(super) name: String,
    /// Where the text comes from.
    pub(super) source: String,
    pub(super) content: Result<String, String>,
}

/// The items of an archive, without secrets.
#[derive(Debug)]
pub(super) struct Archive {
    redaction: Redaction,
    items: Vec<Item>,
}

impl Archive {
    pub(super) const fn new(redaction: Redaction) -> Self {
        Self { redaction, items: Vec::new() }
    }

    /// Adds an item, without its secrets. The name has no character with a meaning in paths.
    pub(super) fn add(&mut self, Item { name, source, content }: Item) {
        let redact = |text: String| cut(&self.redaction.apply(&text)).to_owned();
        self.items.push(Item {
            name: name.replace("..", "_").replace(|letter: char| !is_plain(letter), "_"),
            source: escape::bounded_line(&redact(source), LINE_MAX),
            content: content
                .map(redact)
                .map_err(|reason| escape::bounded_line(&redact(reason), LINE_MAX)),
        });
    }

    /// Returns the number of collected items.
    pub(super) fn count(&self) -> usize {
        self.items.iter().filter(|item| item.content.is_ok()).count()
    }

    /// Returns what could not be collected, with the reason.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.items.iter().filter_map(|item| {
            item.content.as_ref().err().map(|reason| (item.source.as_str(), reason.as_str()))
        })
    }

    /// Encodes the archive, a compressed tar with one directory of this name.
    pub(super) fn encode(&self, directory: &str, now: SystemTime) -> io::Result<Vec<u8>> {
        let gzip = GzEncoder::new(Vec::new(), Compression::default());
        let mut tar = tar::Builder::new(gzip);
        let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let contents = self.contents();
        let texts = self.items.iter().filter_map(|item| {
            item.content.as_ref().ok().map(|content| (item.name.as_str(), content.as_str()))
        });
        for (name, text) in [("contents.txt", contents.as_str())].into_iter().chain(texts) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(time);
            tar.append_data(&mut header, format!("{directory}/{name}"), text.as_bytes())?;
        }
        tar.into_inner()?.finish()
    }

    /// Returns the table of contents: each file with its source, and what is missing.
    fn contents(&self) -> String {
        let mut text = format!("mesos-overlay {}\n\n", env!("CARGO_PKG_VERSION"));
        for Item { name, source, content } in &self.items {
            // Writing to a string does not fail.
            let _ = match content {
                Ok(content) => writeln!(text, "{name}: {source} ({} bytes)", content.len()),
                Err(reason) => writeln!(text, "{name}: {source}: not collected: {reason}"),
            };
        }
        text
    }
}

/// Whether a letter is harmless in the path of a file.
const fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '/')
}

/// Returns the beginning of a text that is too long.
fn cut(text: &str) -> &str {
    let max = usize::try_from(TEXT_MAX).unwrap_or(usize::MAX);
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn item(name: &str, content: Result<&str, &str>) -> Item {
        Item {
            name: name.to_owned(),
            source: format!("source of {name}"),
            content: content.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn archive_has_redacted_texts_and_names_what_is_missing() {
        let mut archive = Archive::new(Redaction::new().unwrap());
        archive.add(item("a/one.txt", Ok("zk://user:s3cr3t@10.0.0.1:2181/a")));
        archive.add(item("../../etc/x y\n", Ok("text")));
        archive.add(item("two.txt", Err("zk://user:s3cr3t@10.0.0.1: no\nanswer")));
        assert_eq!(archive.count(), 2);
        assert_eq!(archive.missing().count(), 1);
        let bytes = archive.encode("bundle", SystemTime::UNIX_EPOCH).unwrap();
        let mut tar = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let read = tar.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mode().unwrap(), 0o600);
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (path, text)
        });
        let files: Vec<(String, String)> = read.collect();
        let contents = format!(
            "mesos-overlay {}\n\n\
             a/one.txt: source of a/one.txt (24 bytes)\n\
             _/_/etc/x_y_: source of ../../etc/x y\\n (4 bytes)\n\
             two.txt: source of two.txt: not collected: zk://…@10.0.0.1: no\\nanswer\n",
            env!("CARGO_PKG_VERSION")
        );
        let expected = [
            ("bundle/contents.txt", contents.as_str()),
            ("bundle/a/one.txt", "zk://…@10.0.0.1:2181/a"),
            ("bundle/_/_/etc/x_y_", "text"),
        ];
        assert_eq!(files, expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
    }
}

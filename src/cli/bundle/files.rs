//! The files of a bundle: the configuration, the files of the agent, and files that the operator
//! names.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use overlay_config::AgentConfig;
use overlay_types::secret::show_path;

use super::archive::{Item, TEXT_MAX};
use crate::files::open_without_waiting;

/// Files of the kernel and the distribution, with their names in the archive.
const HOST_FILES: [(&str, &str); 8] = [
    ("host/os-release.txt", "/etc/os-release"),
    ("host/kernel.txt", "/proc/version"),
    ("host/modules.txt", "/proc/modules"),
    ("host/uptime.txt", "/proc/uptime"),
    ("host/network-counters.txt", "/proc/net/snmp"),
    ("host/network-counters-extended.txt", "/proc/net/netstat"),
    ("host/softnet.txt", "/proc/net/softnet_stat"),
    ("host/memory.txt", "/proc/meminfo"),
];

/// Most entries of a directory that are listed.
const ENTRIES_MAX: usize = 1000;

/// Returns the files of the kernel and the distribution.
pub(super) fn host_files() -> impl Iterator<Item = Item> {
    HOST_FILES.into_iter().map(|(name, path)| file(name.to_owned(), Path::new(path)))
}

/// Returns the lists of the files of an agent, and its CNI configurations of these overlays.
pub(super) fn agent_files(config: &AgentConfig, overlays: &[String]) -> Vec<Item> {
    let mut items = vec![list("agent/state-dir.txt", &config.dataplane.state_dir)];
    if config.cni_dir.as_os_str().is_empty() {
        return items;
    }
    items.push(list("agent/cni-dir.txt", &config.cni_dir));
    items.extend(overlays.iter().map(|overlay| {
        let name = format!("{overlay}.conf");
        file(format!("agent/cni/{name}"), &config.cni_dir.join(name))
    }));
    items
}

/// Returns the files that the operator names, in their order.
pub(super) fn named_files(paths: &[PathBuf]) -> impl Iterator<Item = Item> + '_ {
    paths.iter().enumerate().map(|(index, path)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        file(format!("files/{}-{name}", index + 1), path)
    })
}

/// Returns a file as an item.
pub(super) fn file(name: String, path: &Path) -> Item {
    let content = read_regular_file(path);
    let content = content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Item { name, source: show_path(path), content: content.map_err(|error| error.to_string()) }
}

/// Reads the end of a regular file: of a long log, the last lines say most.
pub(super) fn read_regular_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open_without_waiting(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let excess = metadata.len().saturating_sub(TEXT_MAX);
    file.seek(SeekFrom::Start(excess))?;
    let mut content = Vec::new();
    file.take(TEXT_MAX).read_to_end(&mut content)?;
    if excess > 0 {
        // A part of a line may be a secret without its name.
        let end = content.iter().position(|byte| *byte == b'\n');
        content.drain(..end.map_or(content.len(), |end| end + 1));
    }
    Ok(content)
}

/// Lists a directory: the length of each entry, and its name.
fn list(name: &str, directory: &Path) -> Item {
    let list = || {
        let mut lines = Vec::new();
        for entry in fs::read_dir(directory)?.take(ENTRIES_MAX) {
            let entry = entry?;
            let length = entry.metadata()?.len();
            lines.push(format!("{length:>10} {}\n", entry.file_name().to_string_lossy()));
        }
        lines.sort_by(|one, other| one[11..].cmp(&other[11..]));
        Ok(lines.concat())
    };
    Item {
        name: name.to_owned(),
        source: format!("list of {}", show_path(directory)),
        content: list().map_err(|error: io::Error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_file_begins_with_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let max = usize::try_from(TEXT_MAX).unwrap();
        let line = "A_TOKEN=secret";
        // The limit is within the first line.
        let text = format!("{line}\n{}\n", "x".repeat(max - 8));
        fs::write(&path, &text).unwrap();
        assert_eq!(read_regular_file(&path).unwrap(), &text.as_bytes()[line.len() + 1..]);
        fs::write(&path, "x".repeat(max + 1)).unwrap();
        assert!(read_regular_file(&path).unwrap().is_empty());
        fs::write(&path, line).unwrap();
        assert_eq!(read_regular_file(&path).unwrap(), line.as_bytes());
    }
}

//! The commands that the demo suggests at its end. They work as pasted, wherever the program is.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{env, fs};

use super::NETWORK;
use crate::cli::PROGRAM;

/// The addresses of the suggested master and agent: ports that neither Mesos nor a service of a
/// distribution uses.
const MASTER: &str = "127.0.0.1:15050";
const AGENT: &str = "127.0.0.1:15051";

/// Returns the text with the suggested commands.
pub(super) fn next_steps() -> String {
    let Invocation { setup, name } = Invocation::of_this_process();
    let setup = setup.map(|setup| format!("  {setup}\n")).unwrap_or_default();
    let network = NETWORK.trim_end();
    format!(
        "
The demo is removed. To run a master, and an agent that changes nothing here:
{setup}  echo '
{network}
  ' > network.json
  {name} check network.json
  {name} plan network.json --agents 128
  {name} master --config network.json \\
    --store memory --listen {MASTER} 2> master.log &
  {name} agent --master {MASTER} --listen {AGENT} \\
    --cni-dir \"$PWD/cni\" --dataplane external --no-docker 2> agent.log &
  sleep 1; {name} state --master {MASTER}
  {name} status --master {MASTER} --wait
To stop them: 'kill %1 %2'. For agents with tunnels, on hosts of a cluster, see
'{name} agent --help'."
    )
}

/// How a shell runs this program.
#[derive(Debug, PartialEq, Eq)]
struct Invocation {
    /// A command that must come first.
    setup: Option<String>,
    /// The name of the program, or its path.
    name: String,
}

impl Invocation {
    fn of_this_process() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        match env::current_exe() {
            Ok(program) => Self::new(&program, &env::split_paths(&path).collect::<Vec<_>>()),
            Err(_) => Self { setup: None, name: PROGRAM.to_owned() },
        }
    }

    /// Returns the invocation of `program`, if these directories are searched for programs.
    fn new(program: &Path, directories: &[impl AsRef<Path>]) -> Self {
        let (Some(directory), Some(name)) = (program.parent(), program.file_name()) else {
            return Self { setup: None, name: quoted(&program.to_string_lossy()) };
        };
        let found = directories.iter().map(|directory| directory.as_ref().join(name));
        let is_found = found.into_iter().find(|path| path.exists());
        if is_found.is_some_and(|found| is_same_file(&found, program)) {
            return Self { setup: None, name: quoted(&name.to_string_lossy()) };
        }
        let directory = directory.to_string_lossy();
        if directory.contains(':') {
            // PATH cannot contain such a directory.
            return Self { setup: None, name: quoted(&program.to_string_lossy()) };
        }
        let setup = format!("PATH={}:$PATH", quoted(&directory));
        Self { setup: Some(setup), name: quoted(&name.to_string_lossy()) }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Quotes a word for the shell if necessary.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invocation_sets_path_unless_shell_finds_program() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, other) = (dir.path().join("my bin"), dir.path().join("other"));
        let program = bin.join("mesos-overlay");
        for path in [&bin, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("mesos-overlay"), "").unwrap();
        }
        let setup = Some(format!("PATH='{}':$PATH", bin.display()));
        let name = "mesos-overlay".to_owned();
        let found = Invocation { setup: None, name: name.clone() };
        let missing = Invocation { setup, name };
        assert_eq!(Invocation::new(&program, &[&bin, &other]), found);
        // Another program of the same name would run.
        assert_eq!(Invocation::new(&program, &[&other, &bin]), missing);
        assert_eq!(Invocation::new(&program, &[dir.path()]), missing);
        let odd = Path::new("/a:b/it's");
        assert_eq!(Invocation::new(odd, &[dir.path()]).name, r"'/a:b/it'\''s'");
    }
}

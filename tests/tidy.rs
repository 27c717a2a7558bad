//! The rules of the repository that rustfmt and clippy do not know, each an ordinary test. A
//! finding says where it is and what to do.
//!
//! A rule is a function from files to findings, so that its own test can show with a few invented
//! lines that it bites. Code is read without a parser: comments and the insides of literals are
//! blanked, and paths are expanded out of what is left. That is enough for `use` lines and paths as
//! rustfmt writes them, and it costs no dependency.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, OnceLock};

/// Longest file, without its tests.
const LINES_MAX: usize = 600;
/// Files that may be longer, and why.
const LONG_FILES: [(&str, &str); 0] = [];
/// Longest line, as in rustfmt.toml.
const COLUMNS_MAX: usize = 100;
/// Longest map of the sources.
const MAP_LINES_MAX: usize = 120;

/// What a room of `src/` is, and so what it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only pure rooms, and nothing of the world outside.
    Pure,
    /// What several adapters need to talk to the same thing: pure rooms only.
    Link,
    /// Pure rooms and links, and never another adapter: what else two of them share is pure and
    /// lives below.
    Adapter,
    /// All but the command line.
    Runtime,
    /// Everything; nobody uses it.
    Face,
}

/// Every room of `src/`.
const ROOMS: [(&str, Kind); 31] = [
    ("addr", Kind::Pure),
    ("clock", Kind::Pure),
    ("escape", Kind::Pure),
    ("limits", Kind::Pure),
    ("machine", Kind::Pure),
    ("metrics", Kind::Pure),
    ("mutation", Kind::Pure),
    ("protocol", Kind::Pure),
    ("tunnel", Kind::Pure),
    ("words", Kind::Pure),
    ("config", Kind::Pure),
    ("ipam", Kind::Pure),
    ("wire", Kind::Pure),
    ("master", Kind::Pure),
    ("agent", Kind::Pure),
    ("http", Kind::Pure),
    ("zookeeper", Kind::Link),
    ("program", Kind::Link),
    ("warnings", Kind::Link),
    ("logging", Kind::Adapter),
    ("store", Kind::Adapter),
    ("detector", Kind::Adapter),
    ("transport", Kind::Adapter),
    ("cni", Kind::Adapter),
    ("docker", Kind::Adapter),
    ("dataplane", Kind::Adapter),
    ("firewall", Kind::Adapter),
    ("host", Kind::Adapter),
    ("runtime", Kind::Runtime),
    ("cli", Kind::Face),
    ("module", Kind::Face),
];

/// The words in which the master speaks of its store: plain data, which live beside the trait that
/// they describe. The trait itself and its implementations are not for pure rooms.
const STORE_WORDS: [&str; 7] =
    ["Change", "Counts", "Epoch", "Key", "Loaded", "StoreError", "Version"];

/// What a pure room must not name: clocks, randomness of its own, threads, files, sockets, the
/// environment, the terminal.
const IMPURE: [&str; 24] = [
    "env_logger",
    "fastrand::Rng::new",
    "fastrand::u64",
    "hyper",
    "hyper_util",
    "nix",
    "redb",
    "rustix",
    "std::env",
    "std::fs",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "zookeeper_client",
];

/// What belongs to the process, and so to Mesos where we are its guest: signals, and with them the
/// handler that tokio installs to watch over children; the environment, limits, the umask, the
/// directory, and the end. Only the command line, whose process it is, may name it; and `guard.rs`
/// has a hook, of the copy of the standard library that is within the module.
const OF_THE_PROCESS: [&str; 14] = [
    "nix::sys::signal::sigaction",
    "nix::sys::signal::signal",
    "rustix::process::chdir",
    "rustix::process::fchdir",
    "rustix::process::setrlimit",
    "rustix::process::umask",
    "std::env::remove_var",
    "std::env::set_current_dir",
    "std::env::set_var",
    "std::panic::set_hook",
    "std::process::abort",
    "std::process::exit",
    "tokio::process",
    "tokio::signal",
];

/// A file of the repository.
#[derive(Debug)]
struct File {
    path: String,
    text: String,
    is_executable: bool,
    /// Whether it is nothing but tests.
    is_test: bool,
    code: OnceLock<String>,
    own_code: OnceLock<String>,
}

impl File {
    fn new(path: String, text: String, is_executable: bool) -> Self {
        let (code, own_code) = (OnceLock::new(), OnceLock::new());
        Self { path, text, is_executable, is_test: false, code, own_code }
    }

    /// See [`code`].
    fn code(&self) -> &str {
        self.code.get_or_init(|| code(&self.text))
    }

    /// The code without the modules that are compiled for tests only.
    fn own_code(&self) -> &str {
        let is_test = self.is_test;
        let own = || if is_test { String::new() } else { without_tests(self.code()) };
        self.own_code.get_or_init(own)
    }

    fn is(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, own)| own == extension)
    }

    /// Recorded by other programs: kept as it came.
    fn is_recorded(&self) -> bool {
        let folders = ["tests/golden/", "tests/fuzz/corpus/"];
        folders.iter().any(|folder| self.path.starts_with(folder)) || self.is("snap")
    }

    /// The room of `src/` that it belongs to.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let room = inside.split('/').next()?;
        let room = room.strip_suffix(".rs").unwrap_or(room);
        (!matches!(room, "lib" | "main")).then_some(room)
    }
}

/// The files that git knows or would add; where there is no git, all that are not hidden or built.
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = known_to_git(root).unwrap_or_else(|| {
        let mut paths = Vec::new();
        walk(root, Path::new(""), &mut paths);
        paths
    });
    paths.sort();
    let read = |path: String| {
        let place = root.join(&path);
        // What is no text, or was deleted a moment ago, has no lines to look at.
        let text = fs::read_to_string(&place).ok()?;
        let is_executable = fs::metadata(&place).ok()?.permissions().mode() & 0o111 != 0;
        Some(File::new(path, text, is_executable))
    };
    let mut files: Vec<File> = paths.into_iter().filter_map(read).collect();
    mark_tests(&mut files);
    files
});

/// What is compiled for tests only, and the suites that the adapters of one trait share.
fn mark_tests(files: &mut [File]) {
    let mut modules: Vec<String> = Vec::new();
    for file in rust(files) {
        let folder = file.path.trim_end_matches("mod.rs").trim_end_matches(".rs");
        let folder = folder.trim_end_matches('/');
        for rest in file.code().split("#[cfg(test)]\nmod ").skip(1) {
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            if let Some((name, ";")) = end.and_then(|end| rest.get(..=end)?.split_at_checked(end)) {
                modules.push(format!("{folder}/{name}"));
            }
        }
    }
    for file in files {
        let is_in = |module: &String| {
            let rest = file.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest.starts_with(['/', '.']))
        };
        file.is_test = file.path.starts_with("tests/")
            || file.path.starts_with("benches/")
            || file.path.ends_with("/conformance.rs")
            || modules.iter().any(is_in);
    }
}

fn known_to_git(root: &Path) -> Option<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    let paths: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    (!paths.is_empty()).then_some(paths)
}

fn walk(root: &Path, folder: &Path, paths: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).expect("the repository can be read") {
        let entry = entry.expect("the repository can be read");
        let name = entry.file_name().into_string().expect("names are text");
        let path = folder.join(&name);
        if entry.file_type().expect("the repository can be read").is_dir() {
            if !matches!(name.as_str(), ".git" | "build" | "target") {
                walk(root, &path, paths);
            }
        } else if path != Path::new("configure") {
            paths.push(path.to_str().expect("names are text").to_owned());
        }
    }
}

/// Fails with all findings.
fn demand(findings: &[String]) {
    assert!(findings.is_empty(), "{} to mend:\n{}", findings.len(), findings.join("\n"));
}

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.is("rs"))
}

fn sources(files: &[File]) -> impl Iterator<Item = &File> {
    rust(files).filter(|file| file.path.starts_with("src/"))
}

/// A finding for every line for which `what` has something to say.
fn in_lines<'a>(
    file: &File,
    text: &'a str,
    what: impl Fn(&'a str) -> Option<String>,
) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(index, line)| Some(format!("{}:{}: {}", file.path, index + 1, what(line)?)))
        .collect()
}

// ---- Reading code ----

/// The code without comments, and without what is inside of literals. Every line stays where it
/// was.
fn code(text: &str) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    for (span, is_literal) in blanks(&letters) {
        let edge = usize::from(is_literal);
        for letter in &mut letters[span.start + edge..span.end.saturating_sub(edge)] {
            *letter = if *letter == '\n' { '\n' } else { ' ' };
        }
    }
    letters.into_iter().collect()
}

/// The comments and the literals, and of each whether it is a literal.
fn blanks(letters: &[char]) -> Vec<(Range<usize>, bool)> {
    let mut blanks = Vec::new();
    let mut at = 0;
    while at < letters.len() {
        match end_of_blank(letters, at) {
            Some(end) => {
                blanks.push((at..end, letters[at] != '/'));
                at = end;
            }
            None => at += 1,
        }
    }
    blanks
}

/// Where the comment or literal ends that begins at `at`, if one does.
fn end_of_blank(letters: &[char], at: usize) -> Option<usize> {
    let after = |from: usize, pattern: &str| {
        let pattern: Vec<char> = pattern.chars().collect();
        let rest = letters.get(from..).unwrap_or_default();
        let found = rest.windows(pattern.len()).position(|window| window == pattern);
        found.map_or(letters.len(), |found| from + found + pattern.len())
    };
    let next = letters.get(at + 1).copied();
    let before = at.checked_sub(1).map(|before| letters[before]);
    let is_in_name = before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    match letters[at] {
        '/' if next == Some('/') => Some(after(at, "\n").saturating_sub(1).max(at + 1)),
        '/' if next == Some('*') => Some(after(at + 2, "*/")),
        '"' => Some(end_of_string(letters, at)),
        'r' if !is_in_name || before == Some('b') => {
            let hashes = letters[at + 1..].iter().take_while(|letter| **letter == '#').count();
            let is_raw = letters.get(at + 1 + hashes) == Some(&'"');
            is_raw.then(|| after(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes))))
        }
        // A letter, and not a lifetime.
        '\'' if next == Some('\\') => Some(after(at + 3, "'")),
        '\'' if letters.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

fn end_of_string(letters: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < letters.len() && letters[end] != '"' {
        end += if letters[end] == '\\' { 2 } else { 1 };
    }
    (end + 1).min(letters.len())
}

/// `code` without the modules that are compiled for tests only.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut code = code.to_owned();
    let mut from = 0;
    while let Some(mark) = code[from..].find(MARK).map(|found| from + found) {
        let rest = &code[mark + MARK.len()..];
        let opens = rest.find(['{', ';']).filter(|&at| rest[at..].starts_with('{'));
        from = mark + MARK.len();
        let is_module = rest.trim_start().starts_with("mod ");
        if let Some(opens) = opens.filter(|_| is_module) {
            let end = from + opens + end_of_block(&rest[opens..]);
            let lines = code[mark..end].matches('\n').count();
            code.replace_range(mark..end, &"\n".repeat(lines));
            from = mark;
        }
    }
    code
}

/// Behind the brace that closes the block with which `code` begins.
fn end_of_block(code: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in code.char_indices() {
        depth += match letter {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// A piece of code that a path can be made of, and its line.
type Token<'a> = (usize, &'a str);

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
            let length = if is_name(first) {
                rest.find(|letter| !is_name(letter)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(length);
            if !token.trim().is_empty() {
                tokens.push((index + 1, token));
            }
            rest = after;
        }
    }
    tokens
}

/// Every path of the code with its line; a group of a `use` as one path for each of its members.
fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path(&tokens, at, "", &mut paths).max(at + 1);
    }
    paths
}

/// Reads the path at `at` and returns where it ends.
fn path(
    tokens: &[Token<'_>],
    mut at: usize,
    prefix: &str,
    paths: &mut Vec<(usize, String)>,
) -> usize {
    let mut whole = prefix.to_owned();
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let is_name =
        |text: &str| text.starts_with(|letter: char| letter.is_alphabetic() || letter == '_');
    let start = at;
    while is_name(token(at)) {
        whole.push_str(token(at));
        at += 1;
        if token(at) != "::" {
            paths.push((tokens[start].0, whole));
            return at;
        }
        whole.push_str("::");
        at += 1;
        if token(at) == "{" {
            at += 1;
            while at < tokens.len() && token(at) != "}" {
                at = path(tokens, at, &whole, paths).max(at + 1);
            }
            return at + 1;
        }
    }
    if at > start {
        paths.push((tokens[start].0, whole.trim_end_matches(':').to_owned()));
    }
    at
}

/// The paths of a file of `src/` with `crate::` or `super::` in front resolved to begin with
/// `crate::`.
fn resolved_paths(file: &File) -> Vec<(usize, String)> {
    let inside = file.path.trim_start_matches("src/").trim_end_matches(".rs");
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    let own: Vec<&str> = inside.split('/').collect();
    let resolve = |path: String| {
        let mut rest = path.as_str();
        let mut above = 0;
        rest = rest.strip_prefix("self::").unwrap_or(rest);
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
            above += 1;
        }
        if above == 0 || above > own.len() {
            return path;
        }
        let base = own[..own.len() - above].join("::");
        format!("crate::{base}{}{rest}", if base.is_empty() { "" } else { "::" })
    };
    paths(file.own_code()).into_iter().map(|(line, path)| (line, resolve(path))).collect()
}

fn is_at_or_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn kind_of(room: &str) -> Option<Kind> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, kind)| *kind)
}

// ---- The rules ----

fn without_heading(files: &[File]) -> Vec<String> {
    let bare = rust(files).filter(|file| !file.text.starts_with("//! "));
    bare.map(|file| format!("{}:1: begin with `//!`: what it owns, and why so", file.path))
        .collect()
}

#[test]
fn every_file_says_what_it_is() {
    demand(&without_heading(&FILES));
    let files = [file("src/a.rs", "use std::fmt;\n"), file("src/b.rs", "//! The b.\n")];
    assert_eq!(without_heading(&files), ["src/a.rs:1: begin with `//!`: what it owns, and why so"]);
}

fn too_long(files: &[File]) -> Vec<String> {
    let length = |file: &File| {
        if file.own_code().is_empty() {
            0
        } else {
            file.text.lines().count() - lines_of_tests(file)
        }
    };
    rust(files)
        .filter(|file| LONG_FILES.iter().all(|(path, _)| *path != file.path))
        .filter(|file| length(file) > LINES_MAX)
        .map(|file| {
            let lines = length(file);
            format!("{}:{lines}: more than {LINES_MAX} lines without tests: split it", file.path)
        })
        .collect()
}

/// Lines in the modules that are compiled for tests only.
fn lines_of_tests(file: &File) -> usize {
    let is_gone = |(with, without): &(&str, &str)| with != without;
    file.code().lines().zip(file.own_code().lines()).filter(is_gone).count()
}

#[test]
fn no_file_is_too_long() {
    demand(&too_long(&FILES));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "f();\n".repeat(LINES_MAX));
    let code = "f();\n".repeat(LINES_MAX);
    let mut files = [
        file("src/a.rs", &format!("{code}f();\n")),
        file("src/b.rs", &format!("{code}{tests}").replacen("f();\nf();\n", "", 1)),
        file("src/c/tests.rs", &format!("{code}f();\n")),
        file("src/c/mod.rs", "#[cfg(test)]\nmod tests;\n"),
    ];
    mark_tests(&mut files);
    assert_eq!(too_long(&files), ["src/a.rs:601: more than 600 lines without tests: split it"]);
}

/// Too long lines, except where a literal goes over the edge: rustfmt does not break those, and a
/// text for operators is easier to find in one piece.
fn too_wide(files: &[File]) -> Vec<String> {
    rust(files)
        .flat_map(|file| {
            let letters: Vec<char> = file.text.chars().collect();
            let blanks = blanks(&letters);
            let is_in_literal = |at: usize| {
                let next = blanks.partition_point(|(span, _)| span.end <= at);
                blanks.get(next).is_some_and(|(span, literal)| *literal && span.contains(&at))
            };
            let mut start = 0;
            let mut findings = Vec::new();
            for (index, line) in file.text.lines().enumerate() {
                let width = line.chars().count();
                if width > COLUMNS_MAX && !is_in_literal(start + COLUMNS_MAX - 1) {
                    let place = format!("{}:{}", file.path, index + 1);
                    findings.push(format!("{place}: {width} columns: break it at {COLUMNS_MAX}"));
                }
                start += width + 1;
            }
            findings
        })
        .collect()
}

#[test]
fn no_line_is_too_wide() {
    demand(&too_wide(&FILES));
    let wide = "x".repeat(COLUMNS_MAX);
    let text = format!("//! {wide}\n    let text = \"{wide}\";\n{wide}\n    {wide}\n");
    assert_eq!(
        too_wide(&[file("src/a.rs", &text)]),
        ["src/a.rs:1: 104 columns: break it at 100", "src/a.rs:4: 104 columns: break it at 100"]
    );
}

/// Names that say nothing of what is inside.
fn catch_alls(files: &[File]) -> Vec<String> {
    const NAMES: [&str; 8] =
        ["utils", "util", "common", "helpers", "helper", "core", "internal", "misc"];
    files
        .iter()
        .filter_map(|file| {
            let parts = file.path.split('/').map(|part| part.split('.').next().unwrap_or(part));
            let name = parts.into_iter().find(|part| NAMES.contains(part))?;
            Some(format!("{}:1: '{name}' holds anything: name it after what it owns", file.path))
        })
        .collect()
}

#[test]
fn nothing_is_named_after_nothing() {
    demand(&catch_alls(&FILES));
    let files = [file("src/utils/mod.rs", ""), file("src/core.rs", ""), file("src/score.rs", "")];
    assert_eq!(
        catch_alls(&files),
        [
            "src/utils/mod.rs:1: 'utils' holds anything: name it after what it owns",
            "src/core.rs:1: 'core' holds anything: name it after what it owns"
        ]
    );
}

fn unlisted_rooms(files: &[File]) -> Vec<String> {
    let there: BTreeMap<&str, &File> =
        sources(files).filter_map(|file| Some((file.room()?, file))).collect();
    let unknown = there.iter().filter(|(room, _)| kind_of(room).is_none()).map(|(room, file)| {
        format!("{}:1: room '{room}' is not in ROOMS: say there what it may use", file.path)
    });
    let gone = ROOMS.iter().filter(|(room, _)| !there.contains_key(room));
    let gone = gone.map(|(room, _)| format!("tests/tidy.rs:1: ROOMS has '{room}', src/ has not"));
    unknown.chain(gone).collect()
}

#[test]
fn the_rooms_are_those_of_the_list() {
    demand(&unlisted_rooms(&FILES));
    let mut files: Vec<File> =
        ROOMS.iter().skip(1).map(|(room, _)| file(&format!("src/{room}/mod.rs"), "")).collect();
    files.push(file("src/attic.rs", ""));
    assert_eq!(
        unlisted_rooms(&files),
        [
            "src/attic.rs:1: room 'attic' is not in ROOMS: say there what it may use",
            "tests/tidy.rs:1: ROOMS has 'addr', src/ has not"
        ]
    );
}

fn impurities(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in sources(files) {
        if file.room().and_then(kind_of) != Some(Kind::Pure) {
            continue;
        }
        for (line, path) in resolved_paths(file) {
            if let Some(place) = IMPURE.iter().find(|place| is_at_or_in(&path, place)) {
                findings.push(format!(
                    "{}:{line}: {path}: a pure room has no {place}: take it as an argument, or \
                     move it into an adapter",
                    file.path
                ));
            }
        }
    }
    findings
}

#[test]
fn pure_rooms_are_pure() {
    demand(&impurities(&FILES));
    let text = "//! std::fs is only named.\n\
        use std::{collections::BTreeMap, time::{Duration, SystemTime}};\n\
        fn f() { std::thread::sleep(Duration::ZERO); }\n\
        const WORDS: &str = \"std::env::var\";\n\
        #[cfg(test)]\nmod tests {\n    use std::fs;\n}\nuse tokio::net;\n";
    let files = [file("src/master/mod.rs", text), file("src/store/mod.rs", text)];
    let advice = "take it as an argument, or move it into an adapter";
    let time = "std::time::SystemTime";
    assert_eq!(
        impurities(&files),
        [
            format!("src/master/mod.rs:2: {time}: a pure room has no {time}: {advice}"),
            format!(
                "src/master/mod.rs:3: std::thread::sleep: a pure room has no std::thread: {advice}"
            ),
            format!("src/master/mod.rs:9: tokio::net: a pure room has no tokio: {advice}"),
        ]
    );
}

fn rudeness(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in sources(files) {
        if file.room().is_none_or(|room| room == "cli") || file.path == "src/module/guard.rs" {
            continue;
        }
        for (line, path) in resolved_paths(file) {
            if let Some(place) = OF_THE_PROCESS.iter().find(|place| is_at_or_in(&path, place)) {
                findings.push(format!(
                    "{}:{line}: {path}: {place} belongs to the process, which may be Mesos: do \
                     without it, or move it into cli",
                    file.path
                ));
            }
        }
    }
    findings
}

#[test]
fn a_guest_leaves_the_process_as_it_is() {
    demand(&rudeness(&FILES));
    let text = "use std::process::Command;\nuse tokio::{process::Child, time::sleep};\n\
        fn f() { tokio::signal::ctrl_c(); }\n\
        #[cfg(test)]\nmod tests {\n    use tokio::signal;\n}\n";
    let files = [file("src/docker/command.rs", text), file("src/cli/host.rs", text)];
    let belongs = "belongs to the process, which may be Mesos: do without it, or move it into cli";
    assert_eq!(
        rudeness(&files),
        [
            format!("src/docker/command.rs:2: tokio::process::Child: tokio::process {belongs}"),
            format!("src/docker/command.rs:3: tokio::signal::ctrl_c: tokio::signal {belongs}"),
        ]
    );
}

/// Whether code of a room may name `path` of another.
fn may_use(kind: Kind, other: Kind, path: &str) -> bool {
    let is_word = |path: &str| {
        let word = path.strip_prefix("crate::store::").and_then(|rest| rest.split("::").next());
        word.is_some_and(|word| STORE_WORDS.contains(&word))
    };
    match kind {
        Kind::Pure => other == Kind::Pure || is_word(path),
        Kind::Link => other == Kind::Pure,
        Kind::Adapter => matches!(other, Kind::Pure | Kind::Link),
        Kind::Runtime => other != Kind::Face,
        Kind::Face => true,
    }
}

fn trespasses(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in sources(files) {
        let Some((room, kind)) = file.room().and_then(|room| Some((room, kind_of(room)?))) else {
            continue;
        };
        for (line, path) in resolved_paths(file) {
            let other = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next());
            let Some((other, other_kind)) = other.and_then(|name| Some((name, kind_of(name)?)))
            else {
                continue;
            };
            if other != room && !may_use(kind, other_kind, &path) {
                findings.push(format!(
                    "{}:{line}: {path}: {room} ({kind:?}) may not use {other} ({other_kind:?}): \
                     what both need is pure and lives below",
                    file.path
                ));
            }
        }
    }
    findings
}

#[test]
fn rooms_use_only_what_they_may() {
    demand(&trespasses(&FILES));
    let pure = "use crate::store::{Change, FileStore};\nuse crate::addr::Mac;\n";
    let adapter = "use super::super::docker::Docker;\nuse crate::agent::CniNetwork;\n";
    let files = [
        file("src/master/space.rs", pure),
        file("src/cni/directory.rs", adapter),
        file("src/runtime/mod.rs", "use super::cli::run;\nuse crate::docker::Docker;\n"),
        file("src/cli/mod.rs", "use crate::docker::Docker;\n"),
        file("src/store/memory.rs", "use crate::zookeeper::Session;\n"),
        file("src/zookeeper/mod.rs", "use crate::store::Epoch;\n"),
    ];
    let advice = "what both need is pure and lives below";
    assert_eq!(
        trespasses(&files),
        [
            format!(
                "src/master/space.rs:1: crate::store::FileStore: master (Pure) may not use store \
                 (Adapter): {advice}"
            ),
            format!(
                "src/cni/directory.rs:1: crate::docker::Docker: cni (Adapter) may not use docker \
                 (Adapter): {advice}"
            ),
            format!(
                "src/runtime/mod.rs:1: crate::cli::run: runtime (Runtime) may not use cli (Face): \
                 {advice}"
            ),
            format!(
                "src/zookeeper/mod.rs:1: crate::store::Epoch: zookeeper (Link) may not use store \
                 (Adapter): {advice}"
            ),
        ]
    );
}

fn protobuf_outside(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in sources(files).filter(|file| file.room() != Some("wire")) {
        for (line, path) in resolved_paths(file) {
            let is_generated = path.contains("wire::mesos") || path.contains("mesos::modules");
            if is_generated || is_at_or_in(&path, "prost") {
                findings.push(format!(
                    "{}:{line}: {path}: only wire names protobuf types: use those of protocol",
                    file.path
                ));
            }
        }
    }
    findings
}

#[test]
fn only_wire_names_protobuf_types() {
    demand(&protobuf_outside(&FILES));
    let text = "use crate::wire::{decode_agent, mesos};\nuse prost::Message;\n";
    assert_eq!(
        protobuf_outside(&[file("src/http/mod.rs", text), file("src/wire/mod.rs", text)]),
        [
            "src/http/mod.rs:1: crate::wire::mesos: only wire names protobuf types: use those of \
             protocol",
            "src/http/mod.rs:2: prost::Message: only wire names protobuf types: use those of protocol"
        ]
    );
}

fn flaws_of_the_map(files: &[File]) -> Vec<String> {
    let Some(map) = files.iter().find(|file| file.path == "src/lib.rs") else {
        return vec!["src/lib.rs:1: there is no map of the sources".to_owned()];
    };
    let mut findings = in_lines(map, &code(&map.text), |line| {
        let line = line.trim();
        let is_room = line.starts_with("pub mod ") && line.ends_with(';');
        let is_code = !line.is_empty() && !is_room && !line.starts_with("#![");
        is_code.then(|| "the map has no code: move it into a room".to_owned())
    });
    let length = map.text.lines().count();
    if length > MAP_LINES_MAX {
        findings.push(format!("src/lib.rs:{length}: more than {MAP_LINES_MAX} lines are no map"));
    }
    for (room, _) in ROOMS {
        let is_told = map.text.lines().any(|line| line.starts_with(&format!("//! - [`{room}`]: ")));
        if !is_told {
            findings.push(format!("src/lib.rs:1: say in a line what [`{room}`] is"));
        }
    }
    findings
}

#[test]
fn the_map_shows_every_room_and_has_no_code() {
    demand(&flaws_of_the_map(&FILES));
    let rooms: String =
        ROOMS.iter().skip(1).map(|(room, _)| format!("//! - [`{room}`]: it\n")).collect();
    let text = format!("{rooms}\npub mod addr; // comment\npub use addr::Mac;\n");
    let line = ROOMS.len() + 2;
    assert_eq!(
        flaws_of_the_map(&[file("src/lib.rs", &text)]),
        [
            format!("src/lib.rs:{line}: the map has no code: move it into a room"),
            "src/lib.rs:1: say in a line what [`addr`] is".to_owned(),
        ]
    );
}

fn unfinished(files: &[File]) -> Vec<String> {
    // Written so that this file has none of them.
    const MARKS: [&str; 4] =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), "HA\u{43}K"];
    const MACROS: [&str; 7] =
        ["todo!", "unimplemented!", "dbg!", "print!", "println!", "eprint!", "eprintln!"];
    let is_looked_at = |file: &&File| !file.is_recorded() && file.path != "Cargo.lock";
    let mut findings = Vec::new();
    for file in files.iter().filter(is_looked_at) {
        findings.extend(in_lines(file, &file.text, |line| {
            let words = line.split(|letter: char| !letter.is_alphanumeric());
            let mark = words.into_iter().find(|word| MARKS.contains(word))?;
            Some(format!("{mark}: do it now, or open an issue"))
        }));
    }
    for file in sources(files) {
        findings.extend(in_lines(file, file.own_code(), |line| {
            let found = MACROS.iter().find(|name| {
                let before = line.find(**name).map(|at| line[..at].chars().next_back());
                before.is_some_and(|before| !before.is_some_and(char::is_alphanumeric))
            })?;
            Some(format!("{found}: finish it; results go to a locked handle, the rest to the log"))
        }));
    }
    findings
}

#[test]
fn nothing_is_left_unfinished() {
    demand(&unfinished(&FILES));
    let text = format!("//! {}: x\nfn f() {{ todo!() }}\n// println!\n", concat!("TO", "DO"));
    assert_eq!(
        unfinished(&[file("src/a.rs", &text)]),
        [
            concat!("src/a.rs:1: TO", "DO: do it now, or open an issue"),
            "src/a.rs:2: todo!: finish it; results go to a locked handle, the rest to the log"
        ]
    );
}

/// Lints are lifted with `expect`, which says when it is no longer needed. Only for generated code,
/// which changes without us, that would be an error of its own.
fn allowances(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust(files) {
        let code = file.code();
        for (at, mark) in code.match_indices("#[allow(").chain(code.match_indices("#![allow(")) {
            let is_inner = mark.starts_with("#!");
            let item = code[at..].split_once("]\n").map_or("", |(_, item)| item.trim_start());
            let body = item.split_once('}').map_or(item, |(body, _)| body);
            let is_written = item.starts_with("mod ") && body.contains("include!(");
            let is_expanded = item.starts_with("#[cxx::bridge");
            let is_generated = !is_inner && (is_written || is_expanded);
            if !is_generated {
                let line = code[..at].matches('\n').count() + 1;
                let path = &file.path;
                findings.push(format!("{path}:{line}: write #[expect(…, reason = \"…\")]"));
            }
        }
    }
    findings
}

#[test]
fn lints_are_lifted_by_expect_only() {
    demand(&allowances(&FILES));
    let generated = "#[allow(\n    missing_docs,\n)]\nmod a {\n    include!(\"a.rs\");\n}\n";
    let files = [file("src/a.rs", generated), file("src/b.rs", "#[allow(dead_code)]\nmod b {}\n")];
    assert_eq!(allowances(&files), ["src/b.rs:1: write #[expect(…, reason = \"…\")]"]);
}

/// An ignored test has a reason, and something runs it by name: `tests/run`, or the test whose
/// child it is.
fn forgotten(files: &[File]) -> Vec<String> {
    let run = files.iter().find(|file| file.path == "tests/run").map_or("", |file| &file.text);
    let mut findings = Vec::new();
    for file in rust(files) {
        let target =
            file.path.strip_prefix("tests/").and_then(|path| path.split(['/', '.']).next());
        let is_run = target.is_some_and(|target| {
            let wanted = format!("--test {target} -- --ignored");
            run.lines().any(|line| line.contains(&wanted))
        });
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(rest) = line.trim_start().strip_prefix("#[ignore") else { continue };
            let place = format!("{}:{}", file.path, index + 1);
            if !rest.starts_with(" = \"") {
                findings.push(format!("{place}: say why: #[ignore = \"…\"]"));
            }
            let name = lines[index..].iter().find_map(|line| {
                let (_, name) = line.split_once("fn ")?;
                name.split('(').next()
            });
            let is_child = name.is_some_and(|name| file.text.contains(&format!("\"{name}\"")));
            if !is_run && !is_child {
                findings.push(format!("{place}: nothing runs it: let tests/run do so"));
            }
        }
    }
    findings
}

#[test]
fn every_ignored_test_is_run_by_something() {
    demand(&forgotten(&FILES));
    let mark = concat!("#[", "ignore");
    let files = [
        file("tests/run", "cargo test --test host -- --ignored\n"),
        file(
            "tests/host/main.rs",
            &format!("{mark} = \"root\"]\nfn a() {{}}\n{mark}]\nfn b() {{}}\n"),
        ),
        file("tests/kill.rs", &format!("{mark} = \"child\"]\nfn child() {{}}\nf(\"child\")\n")),
        file("src/a.rs", &format!("{mark} = \"slow\"]\nfn a() {{}}\n")),
    ];
    assert_eq!(
        forgotten(&files),
        [
            "tests/host/main.rs:3: say why: #[ignore = \"…\"]",
            "src/a.rs:1: nothing runs it: let tests/run do so"
        ]
    );
}

/// Variables of the environment that are ours begin with our name. Others may be set for the
/// programs that a test runs, and cargo's own are read by macros.
fn foreign_variables(files: &[File]) -> Vec<String> {
    const READERS: [&str; 4] = ["env = \"", "env::var(\"", "env::var_os(\"", "option_env!(\""];
    let mut findings = Vec::new();
    // These hear cargo and configure, or read Mesos' own flags, as the C++ modules do.
    let others = ["build.rs", "cpp-shim/build.rs", "src/module/parameters.rs", "tests/tidy.rs"];
    for file in rust(files).filter(|file| !others.contains(&file.path.as_str())) {
        findings.extend(in_lines(file, &file.text, |line| {
            let rest = READERS.iter().find_map(|reader| line.split_once(reader))?.1;
            let name = rest.split('"').next().unwrap_or(rest);
            let is_ours = name.starts_with("MESOS_OVERLAY_") || name.starts_with("CARGO_BIN_EXE_");
            (!is_ours).then(|| format!("{name}: name it MESOS_OVERLAY_{name}"))
        }));
    }
    findings
}

#[test]
fn variables_of_the_environment_have_our_name() {
    demand(&foreign_variables(&FILES));
    let text = "    env = \"MESOS_OVERLAY_LISTEN\",\n    std::env::var(\"PORT\")\n";
    assert_eq!(
        foreign_variables(&[file("src/cli/a.rs", text)]),
        ["src/cli/a.rs:2: PORT: name it MESOS_OVERLAY_PORT"]
    );
}

fn not_executable(files: &[File]) -> Vec<String> {
    let is_script = |file: &&File| file.text.starts_with("#!/");
    let still = files.iter().filter(is_script).filter(|file| !file.is_executable);
    let mut findings: Vec<String> =
        still.map(|file| format!("{0}:1: run `chmod +x {0}`", file.path)).collect();
    for path in ["tests/run", ".ci/run"] {
        if !files.iter().any(|file| file.path == path) {
            findings.push(format!("{path}:1: is missing: CONTRIBUTING.md promises it"));
        }
    }
    findings
}

#[test]
fn scripts_can_be_run() {
    demand(&not_executable(&FILES));
    let files = [file("tests/run", "#!/bin/bash\n"), file("a.md", "#! no script\n")];
    assert_eq!(
        not_executable(&files),
        [
            "tests/run:1: run `chmod +x tests/run`",
            ".ci/run:1: is missing: CONTRIBUTING.md promises it"
        ]
    );
}

fn stray_space(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !file.is_recorded()) {
        findings.extend(in_lines(file, &file.text, |line| {
            if line.ends_with(char::is_whitespace) {
                Some("white space at the end: remove it".to_owned())
            } else {
                let is_tab = file.is("rs") && line.contains('\t');
                is_tab.then(|| "a tab: use spaces, and \\t in a literal".to_owned())
            }
        }));
        let has_end = file.text.ends_with('\n') && !file.text.ends_with("\n\n");
        if !file.text.is_empty() && (!has_end || file.text.contains('\r')) {
            let last = file.text.lines().count();
            findings.push(format!("{}:{last}: end it with one newline, all in LF", file.path));
        }
    }
    findings
}

#[test]
fn there_is_no_stray_space() {
    demand(&stray_space(&FILES));
    let files = [
        file("a.rs", "a \nb\tc\n"),
        file("b.md", "a"),
        file("c.md", "a\n\n"),
        file("tests/golden/d", "a "),
    ];
    assert_eq!(
        stray_space(&files),
        [
            "a.rs:1: white space at the end: remove it",
            "a.rs:2: a tab: use spaces, and \\t in a literal",
            "b.md:1: end it with one newline, all in LF",
            "c.md:2: end it with one newline, all in LF"
        ]
    );
}

/// What is true of one machine only: its folders, and the registry that it gets packages from.
/// Cargo itself writes a registry into Cargo.lock.
fn places(files: &[File]) -> Vec<String> {
    // In two pieces each, so that this page keeps its own rule.
    const FOLDERS: [&str; 4] =
        [concat!("/", "work"), concat!("/", "root"), concat!("/", "home"), concat!("/", "Users")];
    const HOSTS: [&str; 10] = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("npmjs", ".org"),
        concat!("npmjs", ".com"),
        concat!("ghcr", ".io"),
        concat!("quay", ".io"),
        concat!("registry-1.docker", ".io"),
        concat!("hub.docker", ".com"),
        concat!("deb.debian", ".org"),
    ];
    let is_looked_at = |file: &&File| !file.is_recorded() && file.path != "Cargo.lock";
    let mut findings = Vec::new();
    for file in files.iter().filter(is_looked_at) {
        findings.extend(in_lines(file, &file.text, |line| {
            let folder = FOLDERS.iter().find(|folder| {
                line.match_indices(**folder).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + folder.len()..].chars().next();
                    let begins =
                        !before.is_some_and(|b| b.is_alphanumeric() || "_-.~/}".contains(b));
                    begins && !after.is_some_and(|after| after.is_alphanumeric() || after == '-')
                })
            });
            let host = HOSTS.iter().find(|host| line.contains(**host));
            let found = folder.or(host)?;
            Some(format!("{found}: is of one machine: write a path or place that every reader has"))
        }));
    }
    findings
}

#[test]
fn nothing_is_of_one_machine_only() {
    demand(&places(&FILES));
    let (folder, host) = (concat!("/", "work"), concat!("crates", ".io"));
    let text = format!("cd {folder}/tree\nDIR{folder}\n{folder}space\nhttps://{host}/x\n");
    let advice = "is of one machine: write a path or place that every reader has";
    assert_eq!(
        places(&[file("README.md", &text)]),
        [format!("README.md:1: {folder}: {advice}"), format!("README.md:4: {host}: {advice}")]
    );
}

/// The targets of the links in a page, with their lines. Not those in code.
fn links(page: &File) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut is_code = false;
    for (index, line) in page.text.lines().enumerate() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code || line.starts_with("    ") {
            continue;
        }
        // Every second piece is inside of back quotes.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in prose.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or(rest);
            links.push((index + 1, target.to_owned()));
        }
    }
    links
}

/// The file that a link of a page leads to; `None` if it leads out of the repository.
fn linked_file(page: &File, target: &str) -> Option<String> {
    let target = target.split('#').next().unwrap_or(target);
    if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let mut parts: Vec<&str> = page.path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn flaws_of_pages(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.is("md")) {
        let mut is_code = false;
        let titles = page.text.lines().filter(|line| {
            is_code ^= line.starts_with("```");
            !is_code && line.starts_with("# ")
        });
        let titles = titles.count();
        if titles != 1 || !page.text.starts_with("# ") {
            let path = &page.path;
            findings.push(format!("{path}:1: {titles} titles: write one `# `, in the first line"));
        }
        for (line, target) in links(page) {
            let Some(path) = linked_file(page, &target) else { continue };
            let is_there =
                |file: &File| file.path == path || file.path.starts_with(&format!("{path}/"));
            if !files.iter().any(is_there) {
                findings.push(format!("{}:{line}: {target}: leads nowhere", page.path));
            }
        }
    }
    findings
}

#[test]
fn pages_have_a_title_and_links_lead_somewhere() {
    demand(&flaws_of_pages(&FILES));
    let page = "# A\n[b](b.md#x) [c](../c.md) `[d](d.md)` [e](https://e)\n```\n# no title\n```\n";
    let files = [file("docs/a.md", page), file("docs/b.md", "B\n# B\n")];
    assert_eq!(
        flaws_of_pages(&files),
        [
            "docs/a.md:2: ../c.md: leads nowhere",
            "docs/b.md:1: 1 titles: write one `# `, in the first line"
        ]
    );
}

fn unlinked_pages(files: &[File]) -> Vec<String> {
    let pages = || files.iter().filter(|file| file.is("md"));
    let linked: BTreeSet<String> = pages()
        .flat_map(|page| {
            let targets = links(page).into_iter();
            let others = targets.filter_map(|(_, target)| linked_file(page, &target));
            others.filter(|path| *path != page.path)
        })
        .collect();
    pages()
        .filter(|page| page.path.starts_with("docs/") && !linked.contains(&page.path))
        .map(|page| format!("{}:1: no page links here: let README.md do so", page.path))
        .collect()
}

#[test]
fn every_page_is_linked_from_another() {
    demand(&unlinked_pages(&FILES));
    let files = [
        file("README.md", "# R\n[a](docs/a.md)\n"),
        file("docs/a.md", "# A\n"),
        file("docs/b.md", "# B\n[b](b.md)\n"),
    ];
    assert_eq!(unlinked_pages(&files), ["docs/b.md:1: no page links here: let README.md do so"]);
}

/// The entries of the sections of Cargo.toml whose name `is_wanted`, each with its line.
fn entries(manifest: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<(usize, &str)> {
    let mut section = "";
    let mut entries = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.split_once(" = ")
            && is_wanted(section)
            && !name.starts_with([' ', '#'])
        {
            entries.push((index + 1, name));
        }
    }
    entries
}

fn idle_dependencies(files: &[File]) -> Vec<String> {
    let Some(manifest) = files.iter().find(|file| file.path == "Cargo.toml") else {
        return vec!["Cargo.toml:1: is missing".to_owned()];
    };
    let used: BTreeSet<String> = rust(files)
        .filter(|file| file.path != "tests/tidy.rs")
        .flat_map(|file| paths(file.code()))
        .filter_map(|(_, path)| path.split("::").next().map(str::to_owned))
        .collect();
    entries(&manifest.text, |section| section.ends_with("dependencies"))
        .into_iter()
        .filter(|(_, name)| !used.contains(&name.replace('-', "_")))
        .map(|(line, name)| format!("Cargo.toml:{line}: {name} is not used: remove it"))
        .collect()
}

#[test]
fn every_dependency_is_used() {
    demand(&idle_dependencies(&FILES));
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nserde_json = \"1\"\nfoo-bar = \"1\"\n";
    let files =
        [file("Cargo.toml", manifest), file("src/a.rs", "use serde_json::Value; // foo_bar::x\n")];
    assert_eq!(idle_dependencies(&files), ["Cargo.toml:5: foo-bar is not used: remove it"]);
}

/// Pages state the version of Rust that Cargo.toml demands.
fn other_rusts(files: &[File]) -> Vec<String> {
    let manifest = files.iter().find(|file| file.path == "Cargo.toml");
    let demanded = manifest.and_then(|manifest| {
        let rest = manifest.text.split_once("rust-version = \"")?.1;
        rest.split('"').next()
    });
    let Some(demanded) = demanded else {
        return vec!["Cargo.toml:1: state the rust-version".to_owned()];
    };
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.is("md")) {
        findings.extend(in_lines(page, &page.text, |line| {
            let rest = line.split_once("Rust 1.")?.1;
            let stated: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let is_other = format!("1.{stated}") != demanded;
            is_other.then(|| format!("Rust 1.{stated}: Cargo.toml demands {demanded}"))
        }));
    }
    findings
}

#[test]
fn pages_state_the_rust_that_is_demanded() {
    demand(&other_rusts(&FILES));
    let files = [
        file("Cargo.toml", "rust-version = \"1.95\"\n"),
        file("README.md", "Needs Rust 1.95.\nNeeds Rust 1.9 or later.\n"),
    ];
    assert_eq!(other_rusts(&files), ["README.md:2: Rust 1.9: Cargo.toml demands 1.95"]);
}

/// Names of the recordings; some are no text, and so not among the files.
fn recordings() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(folder).expect("there are recordings");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    names.map(|name| name.into_string().expect("names are text")).collect()
}

fn idle_recordings(names: &[String], files: &[File]) -> Vec<String> {
    let is_used = |name: &str| {
        let literal = format!("{name}\"");
        rust(files).any(|file| file.path != "tests/tidy.rs" && file.text.contains(&literal))
    };
    let idle = names.iter().filter(|name| !name.starts_with("README") && !is_used(name));
    idle.map(|name| format!("tests/golden/{name}:1: no test compares with it")).collect()
}

#[test]
fn every_recording_is_compared_with() {
    demand(&idle_recordings(&recordings(), &FILES));
    let files = [file("src/tests.rs", "golden!(\"a.http\")\n")];
    let names = ["a.http".to_owned(), "b.http".to_owned()];
    assert_eq!(
        idle_recordings(&names, &files),
        ["tests/golden/b.http:1: no test compares with it"]
    );
}

// ---- The reader of code ----

/// A file that nobody has, for the tests of the rules.
fn file(path: &str, text: &str) -> File {
    File::new(path.to_owned(), text.to_owned(), false)
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    let text =
        "a /* \" */ \"b\\\"//\" 'c' '\"' '\\'' <'d> r#\"e\"f\"# for // g\nh br\"i\" \"j\nk\" l\n";
    let blanked = "a         \"     \" ' ' ' ' '  ' <'d> r      # for     \nh br  \" \" \n \" l\n";
    assert_eq!(code(text), blanked);
}

#[test]
fn groups_are_expanded_to_their_paths() {
    let code = "use a::{b::{C, D}, self, e};\nfn f() { g::<h::I>(j::k) }\n";
    let paths: Vec<(usize, String)> = paths(code);
    let has = |line: usize, path: &str| paths.contains(&(line, path.to_owned()));
    for path in ["a::b::C", "a::b::D", "a::self", "a::e"] {
        assert!(has(1, path), "{path} is not in {paths:?}");
    }
    assert!(has(2, "h::I") && has(2, "j::k") && has(2, "g"), "{paths:?}");
}

#[test]
fn the_files_are_found_without_git_as_well() {
    let mut walked = Vec::new();
    walk(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(""), &mut walked);
    let walked: BTreeSet<&String> = walked.iter().collect();
    let missing: Vec<_> = FILES.iter().filter(|file| !walked.contains(&file.path)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

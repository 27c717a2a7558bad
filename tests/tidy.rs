//! Rules of the repository that Cargo, rustfmt and clippy do not check. Each rule is a test that
//! applies a function to the files of the repository, and to a few invented files that break it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Longest line of a page, as `max_width` in rustfmt.toml.
const COLUMNS_MAX: usize = 100;
/// Longest name of a test.
const TEST_NAME_MAX: usize = 60;

/// A text file of the repository.
#[derive(Debug)]
struct File {
    /// Path from the root of the repository.
    path: String,
    text: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_page(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// Whether a person wrote it: not a recording, a corpus or a lock file.
    fn is_written(&self) -> bool {
        let generated = ["tests/golden/", "tests/fuzz/corpus/", "Cargo.lock", "/testdata/"];
        !generated.iter().any(|part| self.path.contains(part))
    }

    /// Returns `path:line: message` for every line for which `check` returns a message.
    fn lines(&self, check: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = self.text.lines().enumerate();
        lines
            .filter_map(|(index, line)| Some((index + 1, check(line)?)))
            .map(|(number, message)| format!("{}:{number}: {message}", self.path))
            .collect()
    }
}

/// All text files that git tracks or would add.
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    list_files(root, Path::new(""), &mut paths);
    let ignored = git_ignored(root, &paths);
    paths.retain(|path| !ignored.contains(path));
    paths.sort();
    let read = |path: &String| Some(File::new(path, &fs::read_to_string(root.join(path)).ok()?));
    paths.iter().filter_map(read).collect()
});

/// Lists the files below `folder`, without build products and git's own.
fn list_files(root: &Path, folder: &Path, paths: &mut Vec<String>) {
    let entries = fs::read_dir(root.join(folder)).expect("the folder is readable");
    for entry in entries.map(|entry| entry.expect("the entry is readable")) {
        let path = folder.join(entry.file_name());
        let is_excluded = ["target", ".git", "build"].iter().any(|name| path == Path::new(name));
        if entry.file_type().expect("a file type").is_dir() {
            if !is_excluded {
                list_files(root, &path, paths);
            }
        } else if !is_excluded {
            paths.push(path.to_str().expect("paths are UTF-8").to_owned());
        }
    }
}

/// Returns those of `paths` that .gitignore excludes; none where git is missing.
fn git_ignored(root: &Path, paths: &[String]) -> BTreeSet<String> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["check-ignore", "--no-index"]).args(paths);
    let output = git.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().map(str::to_owned).collect()
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

// ---- Sources ----

fn missing_headings(files: &[File]) -> Vec<String> {
    let is_missing = |file: &&File| file.is_rust() && !file.text.starts_with("//!");
    let missing = files.iter().filter(is_missing);
    missing.map(|file| format!("{}:1: begin with `//!` and the purpose", file.path)).collect()
}

#[test]
fn source_file_begins_with_its_purpose() {
    assert_none(&missing_headings(&FILES));
    let files = [File::new("a.rs", "//! A.\n"), File::new("b.rs", "use a;\n")];
    assert_eq!(missing_headings(&files), ["b.rs:1: begin with `//!` and the purpose"]);
}

fn bad_test_names(files: &[File]) -> Vec<String> {
    // The beginning of a sentence, where the subject of the test belongs.
    const SENTENCES: [&str; 12] = [
        "what", "who", "whoever", "the", "a", "an", "it", "nothing", "nobody", "where", "if", "as",
    ];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let mut is_test = false;
        findings.extend(file.text.lines().enumerate().filter_map(|(index, line)| {
            let line = line.trim_start();
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let name = line.split_once("fn ").filter(|_| is_test)?.1.split('(').next()?;
            is_test = false;
            let first = name.split('_').next()?;
            let is_bad = SENTENCES.contains(&first) || name.len() > TEST_NAME_MAX;
            let rule = format!("<subject>_<condition>_<expectation>, {TEST_NAME_MAX} characters");
            is_bad.then(|| format!("{}:{}: {name}: name it {rule}", file.path, index + 1))
        }));
    }
    findings
}

#[test]
fn test_name_states_subject_condition_and_expectation() {
    assert_none(&bad_test_names(&FILES));
    let text =
        "#[test]\nfn pool_full_is_refused() {}\n#[test]\nfn what_is_full() {}\nfn the() {}\n";
    let rule = "<subject>_<condition>_<expectation>, 60 characters";
    let finding = format!("a.rs:4: what_is_full: name it {rule}");
    assert_eq!(bad_test_names(&[File::new("a.rs", text)]), [finding]);
}

/// An ignored test is run by `tests/run`, or is the child process of a test of the same file.
fn unused_ignored_tests(files: &[File]) -> Vec<String> {
    let run = files.iter().find(|file| file.path == "tests/run").map_or("", |file| &file.text);
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let target =
            file.path.strip_prefix("tests/").and_then(|rest| rest.split(['/', '.']).next());
        let command = target.map(|target| format!("--test {target} -- --ignored"));
        let is_run = command.is_some_and(|command| run.contains(&command));
        let mut rest = file.text.as_str();
        while let Some((_, after)) = rest.split_once(concat!("#[", "ignore")) {
            rest = after;
            let name = rest.split_once("fn ").map_or("", |(_, name)| name);
            let name = name.split('(').next().unwrap_or(name);
            if !is_run && !file.text.contains(&format!("\"{name}\"")) {
                findings.push(format!("{}: {name}: let tests/run run it", file.path));
            }
        }
    }
    findings
}

#[test]
fn ignored_test_is_run_by_tests_run() {
    assert_none(&unused_ignored_tests(&FILES));
    let mark = concat!("#[", "ignore = \"x\"]");
    let files = [
        File::new("tests/run", "cargo test --test host -- --ignored\n"),
        File::new("tests/host/main.rs", &format!("{mark}\nfn a() {{}}\n")),
        File::new("tests/kill.rs", &format!("{mark}\nfn child() {{}}\nf(\"child\")\n")),
        File::new("src/a.rs", &format!("{mark}\nfn b() {{}}\n")),
    ];
    assert_eq!(unused_ignored_tests(&files), ["src/a.rs: b: let tests/run run it"]);
}

fn unused_recordings(names: &[String], files: &[File]) -> Vec<String> {
    let is_used = |name: &str| {
        let literal = format!("{name}\"");
        files.iter().any(|file| file.is_rust() && file.text.contains(&literal))
    };
    let unused = names.iter().filter(|name| !is_used(name));
    unused.map(|name| format!("tests/golden/{name}: no test compares with it")).collect()
}

#[test]
fn recording_is_compared_by_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(folder).expect("the recordings are readable");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let names: Vec<String> = entries.filter_map(name).collect();
    assert_none(&unused_recordings(&names, &FILES));
    let names = ["a.http".to_owned(), "b.http".to_owned()];
    let files = [File::new("a.rs", "golden!(\"a.http\")\n")];
    assert_eq!(
        unused_recordings(&names, &files),
        ["tests/golden/b.http: no test compares with it"]
    );
}

/// Finds dependencies whose name does not occur in the sources of their crate.
fn unused_dependencies(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for manifest in files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        let is_own = |file: &&File| {
            let is_of_member = folder.is_empty() && file.path.starts_with("crates/");
            file.is_rust() && file.path.starts_with(folder) && !is_of_member
        };
        let sources: Vec<&File> = files.iter().filter(is_own).collect();
        let mut section = "";
        for line in manifest.text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            }
            let is_dependency = section.ends_with("dependencies") && !section.contains("workspace");
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let is_name = !name.is_empty() && !name.starts_with(['[', '#', '"']);
            let path = name.replace('-', "_");
            let is_used = sources.iter().any(|file| file.text.contains(&path));
            if is_dependency && is_name && !is_used {
                findings.push(format!("{}: {name} is not used: remove it", manifest.path));
            }
        }
    }
    findings
}

#[test]
fn dependency_is_used_by_its_crate() {
    assert_none(&unused_dependencies(&FILES));
    let manifest =
        "[package]\nname = \"x\"\n[dependencies]\nfoo-bar = \"1\"\nlog.workspace = true\n";
    let files = [
        File::new("crates/a/Cargo.toml", manifest),
        File::new("crates/a/src/lib.rs", "use log::info;\n"),
        File::new("src/lib.rs", "use foo_bar::x;\n"),
    ];
    assert_eq!(
        unused_dependencies(&files),
        ["crates/a/Cargo.toml: foo-bar is not used: remove it"]
    );
}

// ---- Advice ----

/// Directories with messages for the operators of an agent's host.
const MESSAGES: [&str; 8] = [
    "crates/config/src/",
    "crates/doctor/src/",
    "crates/engine/src/",
    "crates/linux/src/",
    "crates/types/src/",
    "src/cli/agent.rs",
    "src/cli/doctor/",
    "src/runtime/",
];
/// The module that makes all commands that messages advise.
const ADVICE: &str = "crates/types/src/advice/";
/// Programs whose commands change a host.
const PROGRAMS: [&str; 18] = [
    "ip",
    "bridge",
    "nft",
    "iptables",
    "ip6tables",
    "ipset",
    "sysctl",
    "docker",
    "systemctl",
    "modprobe",
    "ethtool",
    "conntrack",
    "firewall-cmd",
    "ufw",
    "kill",
    "rm",
    "chmod",
    "mount",
];

/// Finds commands in messages that the module of commands does not make: no test runs them.
fn commands_outside_of_advice(files: &[File]) -> Vec<String> {
    let is_message = |file: &&File| {
        let is_test = file.path.contains("tests") || file.path.ends_with("fake_host.rs");
        MESSAGES.iter().any(|place| file.path.starts_with(place))
            && !file.path.starts_with(ADVICE)
            && !is_test
    };
    let find = |line: &str| {
        let quoted = line.split(['\'', '`']).skip(1);
        let mut programs = quoted.filter_map(|text| text.split_once(' ')).map(|(first, _)| first);
        let program = programs.find(|first| PROGRAMS.contains(first))?;
        Some(format!("a command of {program}: make it in {ADVICE}, where tests run it"))
    };
    let mut findings = Vec::new();
    for file in files.iter().filter(is_message) {
        let code = file.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let without_comments = File::new(&file.path, code);
        findings.extend(without_comments.lines(|line| {
            let is_comment = line.trim_start().starts_with("//");
            find(line).filter(|_| !is_comment)
        }));
    }
    findings
}

#[test]
fn advised_command_is_made_in_one_module() {
    assert_none(&commands_outside_of_advice(&FILES));
    let text = "/// Runs 'ip route'.\n\"run 'ip route delete {subnet}'\"\n\"'docker' failed\"\n";
    assert_eq!(
        commands_outside_of_advice(&[
            File::new("crates/linux/src/a.rs", text),
            File::new("crates/types/src/advice/a.rs", text),
            File::new("src/cli/demo/a.rs", text),
        ]),
        ["crates/linux/src/a.rs:2: a command of ip: make it in crates/types/src/advice/, where \
             tests run it"]
    );
}

/// Finds functions that make a command, and that no host test names.
fn untested_commands(files: &[File]) -> Vec<String> {
    let tests = files.iter().filter(|file| file.path.starts_with("tests/host/advice/"));
    let tests: String = tests.map(|file| file.text.as_str()).collect();
    let advice = files.iter().filter(|file| file.path.starts_with(ADVICE));
    let mut findings = Vec::new();
    for file in advice.filter(|file| !file.path.ends_with("/mod.rs")) {
        findings.extend(file.lines(|line| {
            let (_, rest) = line.trim_start().split_once("pub fn ")?;
            let name = rest.split('(').next()?;
            let is_tested = ["\"", "Command::"].iter().any(|before| {
                let after = if *before == "\"" { "\"" } else { "(" };
                tests.contains(&format!("{before}{name}{after}"))
            });
            (!is_tested).then(|| format!("{name}: run its command in tests/host/advice"))
        }));
    }
    findings
}

#[test]
fn advised_command_is_run_by_a_host_test() {
    assert_none(&untested_commands(&FILES));
    let functions = "    pub fn one(\n    pub fn two() -> Self {\n    pub fn three() -> Self {\n";
    let files = [
        File::new("crates/types/src/advice/a.rs", functions),
        File::new("tests/host/advice/mod.rs", "case(\"one\", Command::two(), 3)"),
    ];
    assert_eq!(
        untested_commands(&files),
        ["crates/types/src/advice/a.rs:3: three: run its command in tests/host/advice"]
    );
}

// ---- Texts ----

fn forbidden_texts(files: &[File]) -> Vec<String> {
    // In two pieces each, so that this file keeps its own rule.
    const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    const OF_ONE_MACHINE: [&str; 13] = [
        concat!(" /", "work/"),
        concat!("`/", "work/"),
        concat!("\"/", "root/"),
        concat!(" /", "home/"),
        concat!("/", "Users/"),
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("npmjs", ".org"),
        concat!("ghcr", ".io"),
        concat!("quay", ".io"),
        concat!("registry-1.docker", ".io"),
        concat!("hub.docker", ".com"),
        concat!("deb.debian", ".org"),
    ];
    let find = |line: &str| {
        let words: Vec<&str> = line.split(|letter: char| !letter.is_alphanumeric()).collect();
        if let Some(mark) = UNFINISHED.iter().find(|mark| words.contains(mark)) {
            return Some(format!("{mark}: finish it, or open an issue"));
        }
        let place = OF_ONE_MACHINE.iter().find(|place| line.contains(**place))?;
        Some(format!("{}: exists on one machine only", place.trim_start_matches([' ', '`', '"'])))
    };
    files.iter().filter(|file| file.is_written()).flat_map(|file| file.lines(find)).collect()
}

#[test]
fn text_names_no_single_machine_and_is_finished() {
    assert_none(&forbidden_texts(&FILES));
    let text =
        concat!("//! TO", "DO: x\ncd /", "work/a\nhttps://crates", ".io/x\nDIR/", "work/a\n");
    assert_eq!(
        forbidden_texts(&[File::new("a.md", text)]),
        [
            concat!("a.md:1: TO", "DO: finish it, or open an issue"),
            concat!("a.md:2: /", "work/: exists on one machine only"),
            concat!("a.md:3: crates", ".io: exists on one machine only"),
        ]
    );
}

/// Finds pages without exactly one title in the first line, and lines that are too wide. Lines of
/// code, tables and links cannot be wrapped.
fn misshapen_pages(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.is_page()) {
        let mut is_code = false;
        let mut titles = 0;
        for (index, line) in page.text.lines().enumerate() {
            is_code ^= line.trim_start().starts_with("```");
            titles += usize::from(!is_code && line.starts_with("# "));
            let can_wrap = !is_code && !line.starts_with(['|', ' ']) && !line.contains("](");
            if can_wrap && line.chars().count() > COLUMNS_MAX {
                let number = index + 1;
                findings.push(format!("{}:{number}: wrap at {COLUMNS_MAX} columns", page.path));
            }
        }
        if titles != 1 || !page.text.starts_with("# ") {
            findings.push(format!("{}:1: write one `# ` title, in the first line", page.path));
        }
    }
    findings
}

#[test]
fn page_has_one_title_and_wrapped_lines() {
    assert_none(&misshapen_pages(&FILES));
    let long = "x".repeat(COLUMNS_MAX + 1);
    let files = [
        File::new("a.md", &format!("# A\n```\n# no title {long}\n```\n{long}\n")),
        File::new("b.md", "B\n# B\n"),
    ];
    assert_eq!(
        misshapen_pages(&files),
        ["a.md:5: wrap at 100 columns", "b.md:1: write one `# ` title, in the first line"]
    );
}

/// A link of a page to a file of the repository.
struct Link {
    /// Line of the link in the page.
    line: usize,
    /// Path of the linked file, from the root of the repository.
    path: String,
    /// Anchor of the heading in the linked page; empty without one.
    anchor: String,
}

/// Returns the lines of a page outside of code, with their numbers.
fn prose(page: &File) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    page.text.lines().enumerate().filter_map(move |(index, line)| {
        is_code ^= line.trim_start().starts_with("```");
        (!is_code && !line.starts_with("    ")).then_some((index + 1, line))
    })
}

/// Returns the links and images of a page that lead to files of the repository.
fn links(page: &File) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in prose(page) {
        // Every second piece is between back quotes.
        let text: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or(rest);
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if !target.contains(':') {
                let path =
                    if file.is_empty() { page.path.clone() } else { resolve(&page.path, file) };
                links.push(Link { line, path, anchor: anchor.to_owned() });
            }
        }
    }
    links
}

/// Returns the anchors that GitHub gives to the headings of a page.
fn anchors(page: &File) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(page) {
        let heading = line.trim_start_matches('#');
        let Some(title) = heading.strip_prefix(' ').filter(|_| heading.len() < line.len()) else {
            continue;
        };
        let letters = title.to_lowercase().replace(' ', "-");
        let anchor: String =
            letters.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect();
        let repeated = (1..).map(|count| format!("{anchor}-{count}"));
        let mut names = std::iter::once(anchor.clone()).chain(repeated);
        anchors.extend(names.find(|name| !anchors.contains(name)));
    }
    anchors
}

/// Resolves a relative path in the page at `page`.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn broken_links(files: &[File]) -> Vec<String> {
    let exists = |path: &str| {
        files.iter().any(|file| file.path == path || file.path.starts_with(&format!("{path}/")))
    };
    let pages = || files.iter().filter(|file| file.is_page());
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        pages().map(|page| (page.path.as_str(), anchors(page))).collect();
    let mut findings = Vec::new();
    let mut linked = BTreeSet::new();
    for page in pages() {
        for Link { line, path, anchor } in links(page) {
            let place = format!("{}:{line}", page.path);
            if !exists(&path) {
                findings.push(format!("{place}: {path} does not exist"));
            } else if !anchor.is_empty() && !anchors[path.as_str()].contains(&anchor) {
                findings.push(format!("{place}: {path} has no heading #{anchor}"));
            }
            if path != page.path {
                linked.insert(path);
            }
        }
    }
    let is_doc = |file: &&File| {
        let is_image = file.path.ends_with(".svg") || file.path.ends_with(".png");
        (file.is_page() || is_image) && file.path.starts_with("docs/")
    };
    let orphans = files.iter().filter(is_doc).filter(|file| !linked.contains(&file.path));
    findings.extend(orphans.map(|file| format!("{}:1: no page links to it", file.path)));
    findings
}

#[test]
fn page_links_resolve_and_every_page_is_linked() {
    assert_none(&broken_links(&FILES));
    let text =
        "# A\n[b](b.md#x-1) [c](../c.md) `[d](d.md)` [e](https://e)\n[f](#g) [h](b.md#the-x)\n";
    let files = [
        File::new("docs/a.md", text),
        File::new("docs/b.md", "# B\n## X\n## X\n## The `x`\n![f](f.svg)\n"),
        File::new("docs/f.svg", ""),
        File::new("docs/g.svg", ""),
    ];
    assert_eq!(
        broken_links(&files),
        [
            "docs/a.md:2: c.md does not exist",
            "docs/a.md:3: docs/a.md has no heading #g",
            "docs/a.md:1: no page links to it",
            "docs/g.svg:1: no page links to it",
        ]
    );
}

/// Finds images without a title and a description for screen readers, or without colors for a dark
/// page.
fn unreadable_images(files: &[File]) -> Vec<String> {
    let images = files.iter().filter(|file| file.path.ends_with(".svg"));
    let parts = ["<title", "<desc", "@media (prefers-color-scheme: dark)"];
    let missing = |image: &File| {
        let missing = parts.into_iter().find(|part| !image.text.contains(part))?;
        Some(format!("{}:1: write {missing}", image.path))
    };
    images.filter_map(missing).collect()
}

#[test]
fn image_has_title_description_and_dark_colors() {
    assert_none(&unreadable_images(&FILES));
    let files = [File::new("docs/a.svg", "<svg><title>A</title></svg>")];
    assert_eq!(unreadable_images(&files), ["docs/a.svg:1: write <desc"]);
}

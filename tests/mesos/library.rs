//! What is tested, and where it comes from: Mesos, the module's library in its builds, and the host
//! program. What has to be built is built once in a run.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// These are the variables of the build, see `cpp-shim/build.rs`.
const PREFIX: &str = "MESOS_PREFIX";
const PROTOBUF: &str = "PROTOBUF_PREFIX";
const FLAGS: &str = "MESOS_CXXFLAGS";
const COMPILER: &str = "CXX";
/// The library that `make` has left, set by `tests/run`.
const LIBRARY: &str = "MESOS_OVERLAY_LIBRARY";

/// What `cpp-shim/build.rs` takes where nothing is said.
const STANDARD: &str = "-std=c++14";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILE: &str = "libmesos_network_overlay.so";
/// Frames stay readable in a report, and what it names is not optimized away.
const SANITIZER: &str = "-fsanitize=address -fno-omit-frame-pointer -O1 -g";

/// Where Mesos is installed.
pub(crate) fn prefix() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let prefix = variable(PREFIX).map(PathBuf::from);
        let prefix = prefix.expect("set MESOS_PREFIX to where Mesos is installed");
        let library = prefix.join("lib/libmesos.so");
        assert!(library.exists(), "{PREFIX}: there is no {}", library.display());
        prefix
    })
}

/// The library as it is delivered.
pub(crate) fn release_library() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match variable(LIBRARY).map(PathBuf::from) {
        Some(given) => {
            assert!(given.is_file(), "{LIBRARY}: there is no {}", given.display());
            given.canonicalize().expect("it has a path")
        }
        None => build("mesos-release", "mesos", &["--release"], None),
    })
}

/// The library that panics when a message of certain senders comes.
pub(crate) fn library_with_faults() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("mesos-faults", "mesos,faults", &[], None))
}

/// The library whose C++ half looks for misuse of memory.
pub(crate) fn sanitized_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let flags = format!("{} {SANITIZER}", flags());
        build("mesos-sanitized", "mesos", &[], Some(&flags))
    })
}

/// The program of `host.cpp`.
pub(crate) fn host_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("mesos-host", ""))
}

/// The same that looks for misuse of memory.
pub(crate) fn sanitized_host_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("mesos-host-sanitized", SANITIZER))
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn flags() -> String {
    let text = |value: OsString| value.into_string().expect("flags are text");
    variable(FLAGS).map_or_else(|| STANDARD.to_owned(), text)
}

/// Builds the library with cargo, in a directory of its own: each of these builds would undo the
/// one before it.
fn build(name: &str, features: &str, options: &[&str], flags: Option<&str>) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(name);
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(ROOT).args(["rustc", "--lib", "--crate-type", "cdylib", "--locked"]);
    command
        .args(["--features", features])
        .args(options)
        .arg("--target-dir")
        .arg(&target)
        .env(PREFIX, prefix());
    if let Some(flags) = flags {
        command.env(FLAGS, flags);
    }
    succeed(&mut command);
    let profile = if options.contains(&"--release") { "release" } else { "debug" };
    target.join(profile).join(FILE)
}

/// Compiles the host program as modules of Mesos are, and links it as mesos-master is.
fn compile(name: &str, more: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let bundled = prefix().join("lib/mesos/3rdparty");
    let protobuf = variable(PROTOBUF).map(|path| PathBuf::from(path).join("include"));
    let mut includes: Vec<PathBuf> = protobuf.into_iter().collect();
    includes.extend([prefix().join("include"), bundled.join("include")]);
    let mut command = Command::new(variable(COMPILER).unwrap_or_else(|| "c++".into()));
    command.arg("-w").args(flags().split_whitespace()).args(more.split_whitespace());
    for include in includes.iter().filter(|path| path.is_dir()) {
        command.arg("-I").arg(include);
    }
    command.arg("-o").arg(&program).arg(Path::new(ROOT).join("tests/mesos/host.cpp"));
    command.arg("-L").arg(prefix().join("lib")).arg("-L").arg(bundled.join("lib"));
    // libmesos brings glog and protobuf in: within itself, or as what it needs.
    command.arg(format!("-Wl,--copy-dt-needed-entries,-rpath,{}", prefix().join("lib").display()));
    command.args(["-lmesos", "-ldl", "-lpthread"]);
    succeed(&mut command);
    program
}

/// Output of a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

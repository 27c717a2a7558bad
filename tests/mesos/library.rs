//! Finds Mesos, and builds the variants of the module library and the host program. Each is built
//! once in a test run.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The environment variables of the build, see `cpp-shim/build.rs`.
const PREFIX: &str = "MESOS_PREFIX";
const PROTOBUF: &str = "PROTOBUF_PREFIX";
const FLAGS: &str = "MESOS_CXXFLAGS";
const COMPILER: &str = "CXX";
/// The variable with the path of the library that `make` built. `tests/run` sets it.
const LIBRARY: &str = "MESOS_OVERLAY_LIBRARY";

/// The default flags of `cpp-shim/build.rs`.
const DEFAULT_FLAGS: &str = "-std=c++14";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The libraries of Mesos, see `cpp-shim/build.rs`.
const LIBRARIES: [&str; 4] = ["mesos", "mesos-protobufs", "process", "glog"];
const LIBRARY_FILE: &str = "libmesos_network_overlay.so";
/// Enables AddressSanitizer with readable stack traces.
const SANITIZER: &str = "-fsanitize=address -fno-omit-frame-pointer -O1 -g";

/// Returns the directory in which Mesos is installed.
pub(crate) fn prefix() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let prefix = variable(PREFIX).map(PathBuf::from);
        let prefix = prefix.expect("set MESOS_PREFIX to the directory in which Mesos is installed");
        let found = library_directory(&prefix).is_some();
        assert!(found, "{PREFIX}: no libmesos.so in lib or lib64 of {}", prefix.display());
        prefix
    })
}

/// Returns the directory of `libmesos.so` in a prefix.
fn library_directory(prefix: &Path) -> Option<PathBuf> {
    let directories = ["lib", "lib64"].map(|name| prefix.join(name));
    directories.into_iter().find(|path| path.join("libmesos.so").exists())
}

/// Returns the path of `mesos-master` or `mesos-agent`. Automake installs them in `sbin`, CMake in
/// `bin`.
pub(crate) fn daemon(name: &str) -> PathBuf {
    let paths = ["sbin", "bin"].map(|directory| prefix().join(directory).join(name));
    let found = paths.iter().find(|path| path.exists()).cloned();
    found.unwrap_or_else(|| panic!("{PREFIX}: neither {paths:?} exists"))
}

/// Returns the path of the release build of the library.
pub(crate) fn release_library() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match variable(LIBRARY).map(PathBuf::from) {
        Some(given) => {
            assert!(given.is_file(), "{LIBRARY}: {} does not exist", given.display());
            given.canonicalize().expect("the path of an existing file")
        }
        None => build("mesos-release", "mesos", &["--release"], None),
    })
}

/// Returns the path of a library that panics on messages of certain senders.
pub(crate) fn fault_injection_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("mesos-faults", "mesos,faults", &[], None))
}

/// Returns the path of a library whose C++ half is built with AddressSanitizer.
pub(crate) fn sanitized_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let flags = format!("{} {SANITIZER}", flags());
        build("mesos-sanitized", "mesos", &[], Some(&flags))
    })
}

/// Returns the path of the host program, built from `host.cpp`.
pub(crate) fn host_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("mesos-host", ""))
}

/// Returns the path of the host program built with AddressSanitizer.
pub(crate) fn sanitized_host_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("mesos-host-sanitized", SANITIZER))
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn flags() -> String {
    let text = |value: OsString| value.into_string().expect("flags are text");
    variable(FLAGS).map_or_else(|| DEFAULT_FLAGS.to_owned(), text)
}

/// Builds the library with cargo. Each variant has its own target directory, since variants would
/// otherwise overwrite each other.
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
    run_ok(&mut command);
    let profile = if options.contains(&"--release") { "release" } else { "debug" };
    target.join(profile).join(LIBRARY_FILE)
}

/// Compiles the host program with the flags of Mesos modules, and links it with libmesos.
fn compile(name: &str, more_flags: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let libraries = library_directory(prefix()).expect("prefix() checks it");
    let bundled = libraries.join("mesos/3rdparty");
    let protobuf = variable(PROTOBUF).map(|path| PathBuf::from(path).join("include"));
    let mut includes: Vec<PathBuf> = protobuf.into_iter().collect();
    includes.extend([prefix().join("include"), bundled.join("include")]);
    let mut command = Command::new(variable(COMPILER).unwrap_or_else(|| "c++".into()));
    command.arg("-w").args(flags().split_whitespace()).args(more_flags.split_whitespace());
    for include in includes.iter().filter(|path| path.is_dir()) {
        command.arg("-I").arg(include);
    }
    command.arg("-o").arg(&program).arg(Path::new(ROOT).join("tests/mesos/host.cpp"));
    command.arg("-L").arg(&libraries).arg("-L").arg(bundled.join("lib"));
    // libmesos contains libprocess, glog and protobuf, or depends on their libraries.
    command.arg(format!("-Wl,--copy-dt-needed-entries,-rpath,{}", libraries.display()));
    // The host program itself uses libprocess only, but the modules also need libmesos.
    command.arg("-Wl,--no-as-needed");
    let exists = |name: &&str| libraries.join(format!("lib{name}.so")).exists();
    let libraries = LIBRARIES.into_iter().filter(exists).chain(["dl", "pthread"]);
    command.args(libraries.map(|name| format!("-l{name}")));
    run_ok(&mut command);
    program
}

/// Runs a command that must run_ok. Returns its stdout.
pub(crate) fn run_ok(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

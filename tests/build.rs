//! `bootstrap`, `configure` and `make` with the build tools of the machine, a fake Mesos and a fake
//! cargo. The fake Mesos is a prefix with minimal headers and a library with a few symbols. The
//! fake cargo is a script that logs its arguments. So the tests cover every error of `configure`
//! within seconds. The tier `mesos` tests with a real Mesos.

#![expect(clippy::unwrap_used, reason = "an unexpected result must fail the test")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// The files of the repository that the build reads.
const SOURCES: [&str; 15] = [
    "CHANGELOG.md",
    "Cargo.toml",
    "LICENSE",
    "Makefile.in",
    "README.md",
    "bootstrap",
    "configure.ac",
    "cpp-shim/agent_modules.json.in",
    "cpp-shim/master_modules.json.in",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/images/crates.svg",
    "docs/network.json",
    "docs/command-line.md",
    "modules.json.example",
];
/// Environment variables that the caller of the tests, such as cargo, may have set.
const VARIABLES: [&str; 12] = [
    "CARGO",
    "CPPFLAGS",
    "CXX",
    "CXXFLAGS",
    "LIBCLANG_PATH",
    "MAKEFLAGS",
    "MESOS_PREFIX",
    "NM",
    "OBJCOPY",
    "PROTOBUF_PREFIX",
    "READELF",
    "RUSTC",
];
const VERSION_HPP: &str = "include/mesos/version.hpp";
const PROTOBUF_H: &str = "lib/mesos/3rdparty/include/google/protobuf/stubs/common.h";
const SYMBOLS: [&str; 4] = [
    "com_mesosphere_mesos_MasterOverlayHelper",
    "com_mesosphere_mesos_AgentOverlayHelper",
    "com_mesosphere_mesos_OverlayMasterManager",
    "com_mesosphere_mesos_OverlayAgentManager",
];

/// A fake cargo: logs its arguments and creates the files that cargo would build.
const CARGO: &str = r#"#!/bin/sh
here=$(dirname "$0")
case $* in
--version) exit ;;
*--lib*)
    echo "cargo $*"
    env | grep -E '^(MESOS_PREFIX|MESOS_CXXFLAGS|PROTOBUF_PREFIX|CXX|LIBCLANG_PATH|RUSTC)=' | sort
    mkdir -p target/release
    g++ -shared -nostdlib -x c -o target/release/libmesos_network_overlay.so "$here/modules.c"
    ;;
*)
    echo "cargo $*"
    echo "a library without modules" >target/release/libmesos_network_overlay.so
    for name in mesos-overlay mesos-overlay-cni; do
        echo "int main;" | g++ -nostdlib -shared -x c -o target/release/$name -
    done
    ;;
esac >>"$here/cargo.log"
"#;

/// A temporary directory with a copy of the source tree, a fake Mesos, fake tools, and a build
/// directory. The paths of the source and build directories contain a space.
struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(TempDir::new().unwrap());
        for file in SOURCES {
            let to = fixture.path(&format!("the source/{file}"));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), to).unwrap();
        }
        fs::create_dir(fixture.path("the build")).unwrap();
        fixture.write_script(
            "the source/tests/run",
            "#!/bin/sh\necho \"tests/run $* of $MESOS_PREFIX\"\n",
        );
        fixture.write_script("tools/cargo", CARGO);
        fixture
            .write_script("tools/rustc", "#!/bin/sh\necho 'rustc 1.95.0 (59807616e 2026-04-14)'\n");
        fixture.write("tools/libclang.so", "");
        let modules = SYMBOLS.map(|symbol| format!("void *{symbol} = &{symbol};\n"));
        fixture.write("tools/modules.c", &modules.concat());
        fixture.create_mesos();
        fixture
    }

    /// Creates a fake Mesos 1.9.0 with a bundled protobuf 3.5.0.
    fn create_mesos(&self) {
        self.write_mesos_file(VERSION_HPP, "#define MESOS_VERSION \"1.9.0\"\n");
        self.write_mesos_file(
            "include/mesos/mesos.pb.h",
            "#include <google/protobuf/stubs/common.h>\n\
             #if 3005000 < GOOGLE_PROTOBUF_MIN_PROTOC_VERSION\n#error of another protoc\n#endif\n",
        );
        self.write_mesos_file("include/mesos/log/log.hpp", "");
        self.write_mesos_file("lib/mesos/3rdparty/include/zookeeper/zookeeper.h", "");
        self.write_mesos_file("include/mesos/master/detector.hpp", "#include <mesos/mesos.pb.h>\n");
        self.write_mesos_file("include/mesos/module/anonymous.hpp", "");
        self.write_mesos_file("include/process/http.hpp", "#include <stout/try.hpp>\n");
        self.write_mesos_file("include/process/process.hpp", "");
        self.write_mesos_file("include/stout/try.hpp", "");
        self.write_mesos_file("include/stout/json.hpp", "#define PICOJSON_USE_INT64\n");
        self.write_mesos_file(PROTOBUF_H, "#define GOOGLE_PROTOBUF_VERSION 3005000\n");
        self.build_libmesos("1.9.0", &["_ZN7process4spawnERKNSt7__cxx1112basic_stringE"]);
    }

    fn write_mesos_file(&self, name: &str, text: &str) {
        self.write(&format!("mesos/{name}"), text);
    }

    /// Builds `libmesos.so` of a version with the given symbols.
    fn build_libmesos(&self, version: &str, symbols: &[&str]) {
        let name = format!("libmesos-{version}.so");
        self.build_library(&format!("mesos/lib/{name}"), &name, symbols);
        let link = self.path("mesos/lib/libmesos.so");
        let _ = fs::remove_file(&link);
        symlink(name, link).unwrap();
    }

    /// Replaces the libraries by those of a Mesos that CMake built, such as clusterd: with the
    /// number of the ABI in the soname, and with libprocess as a library of its own.
    fn build_libmesos_with_cmake(&self, version: &str) {
        let [file, soname] = [version, "0"].map(|suffix| format!("libmesos.so.{suffix}"));
        self.build_library(&format!("mesos/lib/{file}"), &soname, &["_ZN5mesos4spawnEv"]);
        for (link, target) in [(&soname, &file), (&"libmesos.so".to_owned(), &soname)] {
            let link = self.path(&format!("mesos/lib/{link}"));
            let _ = fs::remove_file(&link);
            symlink(target, link).unwrap();
        }
        let symbols = [
            "_ZN7process4spawnERKNSt7__cxx1112basic_stringE",
            "_ZN7process7network7openssl10initializeEv",
        ];
        self.build_library("mesos/lib/libprocess.so", "libprocess.so", &symbols);
    }

    fn build_library(&self, path: &str, soname: &str, symbols: &[&str]) {
        let define = |(index, symbol)| format!("int s{index} __asm__(\"{symbol}\") = 1;\n");
        let code: String = symbols.iter().enumerate().map(define).collect();
        self.write("library.c", &code);
        let soname = format!("-Wl,-soname,{soname}");
        let mut compiler = Command::new("g++");
        compiler.args(["-shared", "-nostdlib", &soname, "-x", "c", "-o"]);
        let status = compiler.args([self.path(path), self.path("library.c")]).status();
        assert!(status.unwrap().success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write_script(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        self.mask_root(&fs::read(self.path(name)).unwrap())
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Replaces the path of this directory in `text` by ROOT.
    fn mask_root(&self, text: &[u8]) -> String {
        String::from_utf8_lossy(text).replace(self.0.path().to_str().unwrap(), "ROOT")
    }

    /// Returns the paths of all files below a directory, relative to this directory.
    fn files(&self, name: &str) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        let mut folders = vec![self.path(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let relative = path.strip_prefix(self.path(name)).unwrap();
                    files.insert(relative.to_str().unwrap().to_owned());
                }
            }
        }
        files
    }

    /// Runs a program in the build directory, without the variables of `VARIABLES`.
    fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Outcome {
        let mut command = Command::new(program);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let command = command.args(arguments).current_dir(self.path("the build"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let [stdout, stderr] = [stdout, stderr].map(|text| self.mask_root(&text));
        Outcome { succeeded: status.success(), stdout, stderr }
    }

    fn bootstrap(&self) {
        if !self.path("the source/configure").exists() {
            self.run("../the source/bootstrap", [""; 0]).success();
        }
    }

    /// Runs `configure` with the fake tools and with `arguments`, which override the fake tools.
    /// ROOT in `arguments` stands for this directory.
    fn configure(&self, arguments: &[&str]) -> Outcome {
        self.bootstrap();
        let defaults = [
            "CARGO=ROOT/tools/cargo",
            "RUSTC=ROOT/tools/rustc",
            "LIBCLANG_PATH=ROOT/tools",
            "--with-mesos=ROOT/mesos",
        ];
        let root = self.0.path().to_str().unwrap();
        let arguments =
            defaults.iter().chain(arguments).map(|argument| argument.replace("ROOT", root));
        self.run("../the source/configure", arguments)
    }

    /// Returns the value of a variable that the Makefile exports to cargo.
    fn exported_variable(&self, variable: &str) -> String {
        let makefile = self.read("the build/Makefile");
        let line_start = format!("export {variable} = ");
        let value = makefile.lines().find_map(|line| line.strip_prefix(&line_start));
        value.unwrap().to_owned()
    }

    /// Returns the only library of a module file.
    fn library_of(&self, name: &str) -> Value {
        let file: Value = serde_json::from_str(&self.read(name)).unwrap();
        assert_eq!(file["libraries"].as_array().unwrap().len(), 1, "{file}");
        file["libraries"][0].clone()
    }

    fn make(&self, arguments: &[&str]) -> Outcome {
        self.run("make", arguments)
    }
}

struct Outcome {
    succeeded: bool,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Returns stdout of a run that succeeded and wrote nothing to stderr.
    #[track_caller]
    fn success(self) -> String {
        assert!(self.succeeded && self.stderr.is_empty(), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Returns stderr of a run that failed.
    #[track_caller]
    fn failure(self) -> String {
        assert!(!self.succeeded, "{}", self.stdout);
        self.stderr
    }
}

/// A function that breaks the fake Mesos or a tool, an additional argument of `configure`, and the
/// expected error message.
type BrokenSetup = (fn(&Fixture), &'static str, &'static str);

/// Checks that each of these setups makes `configure` fail.
fn assert_each_refused(setups: &[BrokenSetup]) {
    let fixture = Fixture::new();
    for (break_setup, argument, error) in setups {
        fs::remove_dir_all(fixture.path("mesos")).unwrap();
        fixture.create_mesos();
        break_setup(&fixture);
        let arguments: &[&str] = if argument.is_empty() { &[] } else { &[argument] };
        assert_eq!(fixture.configure(arguments).failure(), format!("configure: error: {error}\n"));
    }
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn bootstrap_without_autoconf_fails() {
    let fixture = Fixture::new();
    fixture.write_script("tools/dirname", "#!/bin/sh\necho \"${1%/*}\"\n");
    let path = format!("PATH={}", fixture.path("tools").display());
    let outcome = fixture.run("env", [path.as_str(), "../the source/bootstrap"]);
    let error = outcome.failure();
    assert_eq!(error, "bootstrap: autoconf: not found: install the package autoconf\n");
}

/// Every unusable Mesos prefix that `configure` detects.
const UNUSABLE_MESOS: &[BrokenSetup] = &[
    (
        |_| {},
        "--with-mesos",
        "--with-mesos: not given: give the prefix that Mesos is installed in, as in \
             --with-mesos=/usr/local",
    ),
    (
        |_| {},
        "--with-mesos=ROOT/nowhere",
        "--with-mesos: ROOT/nowhere: not a directory: give the prefix that Mesos is installed in",
    ),
    (
        |_| {},
        "--with-mesos=ROOT/the build",
        "--with-mesos: 'ROOT/the build': white space, which takes compiler flags apart: give a \
             symbolic link without",
    ),
    (
        |fixture| fixture.write_mesos_file("CMakeLists.txt", ""),
        "",
        "--with-mesos: ROOT/mesos: a source or build tree of Mesos: run 'make install' in the \
             build tree, and give the prefix that it installs in",
    ),
    (
        |fixture| fixture.write_mesos_file("config.status", ""),
        "",
        "--with-mesos: ROOT/mesos: a source or build tree of Mesos: run 'make install' in the \
             build tree, and give the prefix that it installs in",
    ),
    (
        |fixture| fixture.remove("mesos/include/process/process.hpp"),
        "",
        "ROOT/mesos/include/process/process.hpp: not found: install Mesos with its headers (if \
             CMake builds it, with -DENABLE_INSTALL_MODULE_DEPENDENCIES=TRUE), and give the prefix \
             that it is installed in",
    ),
    (
        |fixture| fixture.write_mesos_file(VERSION_HPP, ""),
        "",
        "ROOT/mesos/include/mesos/version.hpp: it names no MESOS_VERSION: install Mesos again",
    ),
    (
        |fixture| fixture.write_mesos_file(VERSION_HPP, "#define MESOS_VERSION \"1.3.2\"\n"),
        "",
        "Mesos 1.3.2 in ROOT/mesos: too old: give the prefix of Mesos 1.4 or later",
    ),
    (
        |fixture| fixture.remove("mesos/lib/libmesos.so"),
        "",
        "libmesos.so: neither in ROOT/mesos/lib nor in ROOT/mesos/lib64: give the prefix of a \
             whole installation, headers and library",
    ),
    (
        |fixture| fixture.write_mesos_file("lib/libmesos.so", "text\n"),
        "",
        "ROOT/mesos/lib/libmesos.so: not a shared library: install Mesos again",
    ),
    (
        |fixture| fixture.build_libmesos("1.8.1", &["_ZN7process4spawnE"]),
        "",
        "ROOT/mesos/lib/libmesos.so: it is libmesos-1.8.1.so, but the headers in \
             ROOT/mesos/include are of Mesos 1.9.0: install both from one build",
    ),
    (
        |fixture| fixture.build_libmesos_with_cmake("1.8.1"),
        "",
        "ROOT/mesos/lib/libmesos.so: it is libmesos.so.1.8.1, but the headers in \
             ROOT/mesos/include are of Mesos 1.9.0: install both from one build",
    ),
    (
        |fixture| fixture.build_libmesos("1.9.0", &["_ZN5mesos4spawnE"]),
        "",
        "ROOT/mesos/lib/libmesos.so: it has no symbols of libprocess: give the prefix of a \
             whole installation",
    ),
    (
        |fixture| {
            fixture
                .write_mesos_file("include/process/process.hpp", "#include <boost/none_such.hpp>\n")
        },
        "",
        "Mesos 1.9.0: its headers compile neither as C++11 nor as C++14 nor as C++17: \
             boost/none_such.hpp: No such file or directory: give what is missing in CPPFLAGS; \
             config.log has all messages",
    ),
];

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_with_unusable_mesos_fails() {
    assert_each_refused(UNUSABLE_MESOS);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_with_missing_or_old_tools_fails() {
    let unchanged = |_: &Fixture| {};
    assert_each_refused(&[
        (
            unchanged,
            "NM=none",
            "none: not found, or it does not run: install binutils, or give NM and READELF",
        ),
        (
            unchanged,
            "READELF=none",
            "none: not found, or it does not run: install binutils, or give NM and READELF",
        ),
        (
            unchanged,
            "CARGO=none",
            "none: not found, or it does not run: install Rust 1.95 or later, or give CARGO",
        ),
        (
            unchanged,
            "RUSTC=none",
            "none: not found, or it does not run: install Rust 1.95 or later, or give RUSTC",
        ),
        (
            |fixture| {
                fixture.write_script("mesos/rustc", "#!/bin/sh\necho 'rustc 1.94.1 (e408947bf)'\n")
            },
            "RUSTC=ROOT/mesos/rustc",
            "ROOT/mesos/rustc: it is version 1.94.1: install Rust 1.95 or later, or give RUSTC",
        ),
        (
            unchanged,
            "LIBCLANG_PATH=ROOT/mesos",
            "libclang.so: not found in ROOT/mesos: install libclang-dev, or give the directory that \
             has it in LIBCLANG_PATH",
        ),
        (unchanged, "CXX=none", "none: not found, or it does not run: install g++, or give CXX"),
    ]);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_with_other_protobuf_than_mesos_fails() {
    assert_each_refused(&[
        (
            |_| {},
            "--with-protobuf=ROOT/nowhere",
            "--with-protobuf: ROOT/nowhere: not a directory: give the prefix that protobuf is \
             installed in",
        ),
        (
            |_| {},
            "--with-protobuf=ROOT/mesos",
            "ROOT/mesos/include/google/protobuf/stubs/common.h: not found: install protobuf with its \
             headers, and give the prefix that it is installed in",
        ),
        (
            |fixture| {
                fixture.write_mesos_file(PROTOBUF_H, "#define GOOGLE_PROTOBUF_VERSION 3021012\n")
            },
            "",
            "protobuf: the headers found are of 3.21.12, but Mesos was built with 3.5.0: give the \
             prefix of a protobuf 3.5.0 in --with-protobuf",
        ),
        (
            // If this header were missing, the compiler would find the header of the machine.
            |fixture| fixture.write_mesos_file(PROTOBUF_H, "#include <none_such.h>\n"),
            "",
            "protobuf: google/protobuf/stubs/common.h: not found: install the headers of protobuf \
             3.5.0, with which Mesos was built, or give their prefix in --with-protobuf",
        ),
    ]);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_in_path_with_special_character_fails() {
    let fixture = Fixture::new();
    fixture.bootstrap();
    for name in ["a$b", "a\"b", "a|b", "a&b", "a#b", "a'b", "a\\b"] {
        fs::create_dir(fixture.path(name)).unwrap();
        let command = "cd \"$0\" && exec '../the source/configure'";
        let path = fixture.path(name);
        let outcome = fixture.run("sh", ["-c".as_ref(), command.as_ref(), path.as_os_str()]);
        assert_eq!(
            outcome.failure(),
            format!(
                "configure: error: ROOT/{name}: a path with a quote, or one of \\ $ # | &: build \
                 elsewhere\n"
            )
        );
    }
}

/// `configure` derives the compiler flags from the library of Mesos.
#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_uses_compiler_flags_of_mesos() {
    let fixture = Fixture::new();
    let output = fixture.configure(&[]).success();
    let (_, summary) = output.split_once("\n\n").unwrap();
    assert_eq!(
        summary,
        "  Mesos         1.9.0 in ROOT/mesos\n  \
           C++           g++, c++11, string ABI 1\n  \
           SSL           no\n  \
           protobuf      3.5.0\n  \
           Rust          1.95.0\n  \
           installs in   /usr/local\n\n\
         Now run make.\n"
    );
    assert_eq!(
        fixture.exported_variable("MESOS_CXXFLAGS"),
        "-std=c++11 -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_FORMAT_MACROS \
         -IROOT/mesos/lib/mesos/3rdparty/include \
         -IROOT/mesos/lib/mesos/3rdparty/include/zookeeper"
    );

    // A Mesos 1.4 built by CMake: SSL, the old string ABI, an external protobuf, C++14 headers.
    fixture.write_mesos_file(VERSION_HPP, "#define MESOS_VERSION \"1.4.0\"\n");
    fixture.write_mesos_file("include/stout/json.hpp", "");
    fixture.write_mesos_file(
        "include/process/http.hpp",
        "#if __cplusplus < 201402L\n#error old\n#endif\n",
    );
    fs::rename(fixture.path("mesos/lib/mesos/3rdparty"), fixture.path("protobuf")).unwrap();
    fs::remove_dir_all(fixture.path("mesos/lib")).unwrap();
    fs::create_dir(fixture.path("mesos/lib64")).unwrap();
    fixture.build_library("mesos/lib64/libmesos.so", "libmesos.so", &["_ZN5mesos4spawnEv"]);
    let symbols = ["_ZN7process5spawnEv", "_ZN7process7network7openssl10initializeEv"];
    fixture.build_library("mesos/lib64/libprocess.so", "libprocess.so", &symbols);
    let arguments = ["--with-protobuf=ROOT/protobuf", "CPPFLAGS=-DA", "CXXFLAGS=-O1 -g"];
    let output = fixture.configure(&arguments).success();
    assert!(output.contains("\n  C++           g++, c++14, string ABI 0\n"), "{output}");
    assert!(output.contains("\n  SSL           yes\n"), "{output}");
    // The flag depends on whether the machine has the headers of ZooKeeper.
    let flags =
        fixture.exported_variable("MESOS_CXXFLAGS").replace(" -I/usr/include/zookeeper", "");
    assert_eq!(
        flags,
        "-DA -O1 -g -std=c++14 -D_GLIBCXX_USE_CXX11_ABI=0 -D__STDC_FORMAT_MACROS -DUSE_SSL_SOCKET \
         -DPICOJSON_USE_INT64"
    );
}

/// clusterd installs its libraries as CMake names them, and all headers in `include`.
#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn configure_accepts_mesos_built_with_cmake() {
    let fixture = Fixture::new();
    fixture.build_libmesos_with_cmake("1.9.0");
    let bundled = fixture.path("mesos/lib/mesos/3rdparty/include");
    for name in ["google", "zookeeper"] {
        fs::rename(bundled.join(name), fixture.path("mesos/include").join(name)).unwrap();
    }
    fs::remove_dir_all(fixture.path("mesos/lib/mesos")).unwrap();
    // CMake installs whole directories of headers.
    fixture.write_mesos_file("include/mesos/version.hpp.in", "");
    fs::remove_file(fixture.path("mesos/lib/libmesos-1.9.0.so")).unwrap();
    let output = fixture.configure(&[]).success();
    let summary = "  Mesos         1.9.0 in ROOT/mesos\n  \
                     C++           g++, c++11, string ABI 1\n  \
                     SSL           yes\n  \
                     protobuf      3.5.0\n";
    assert!(output.contains(summary), "{output}");
    assert_eq!(
        fixture.exported_variable("MESOS_CXXFLAGS"),
        "-std=c++11 -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_FORMAT_MACROS -DUSE_SSL_SOCKET \
         -IROOT/mesos/include/zookeeper"
    );
}

/// `make` builds the modules first, then the program without the `mesos` feature.
#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_builds_modules_and_program() {
    let fixture = Fixture::new();
    fixture.bootstrap();
    let sources = fixture.files("the source");
    fixture.configure(&[]).success();
    assert_eq!(
        fixture.make(&["install"]).failure().lines().next(),
        Some("install: .libs/libmesos_network_overlay.so: not found: run make first")
    );

    fixture.make(&["CARGOFLAGS=--offline"]).success();
    let flags = "--release --locked --config profile.release.strip=false --offline \
                 --manifest-path ROOT/the source/Cargo.toml --target-dir ROOT/the build/target";
    assert_eq!(
        fixture.read("tools/cargo.log"),
        format!(
            "cargo rustc {flags} --lib --crate-type cdylib \
             --features mesos\n\
             CXX=g++\n\
             LIBCLANG_PATH=ROOT/tools\n\
             MESOS_CXXFLAGS=-std=c++11 -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_FORMAT_MACROS \
             -IROOT/mesos/lib/mesos/3rdparty/include \
             -IROOT/mesos/lib/mesos/3rdparty/include/zookeeper\n\
             MESOS_PREFIX=ROOT/mesos\n\
             RUSTC=ROOT/tools/rustc\n\
             cargo build {flags} --bin mesos-overlay --bin mesos-overlay-cni\n"
        )
    );
    for built in ["libmesos_network_overlay.so", "mesos-overlay"] {
        let debug = fixture.path(&format!("the build/.libs/{built}.debug"));
        assert!(debug.exists(), "{built} has no separate debug information");
    }
    let library = "ROOT/the build/.libs/libmesos_network_overlay.so";
    assert!(fixture.path(&library.replace("ROOT/", "")).exists());
    let master = fixture.library_of("the build/master_modules.json");
    assert_eq!(master["file"], library);
    assert_eq!(master["modules"][0]["parameters"][0]["value"], "ROOT/the source/docs/network.json");
    assert_eq!(fixture.library_of("the build/agent_modules.json")["file"], library);

    fixture.make(&["distclean"]).success();
    assert_eq!(fixture.files("the build"), BTreeSet::new());
    assert_eq!(fixture.files("the source"), sources, "the build changed the source tree");
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_install_keeps_changed_config_files() {
    let fixture = Fixture::new();
    fixture.configure(&["--prefix=/usr", "--sysconfdir=/etc"]).success();
    fixture.make(&["all"]).success();
    let root = format!("DESTDIR={}", fixture.path("the root").display());
    fixture.make(&["install", &root]).success();
    let installed = [
        "etc/mesos-overlay/agent_modules.json",
        "etc/mesos-overlay/master_modules.json",
        "etc/mesos-overlay/network.json",
        "usr/bin/mesos-overlay",
        "usr/lib/libmesos_network_overlay.so",
        "usr/libexec/cni/mesos-overlay-cni",
        "usr/share/doc/mesos-overlay/CHANGELOG.md",
        "usr/share/doc/mesos-overlay/LICENSE",
        "usr/share/doc/mesos-overlay/README.md",
        "usr/share/doc/mesos-overlay/docs/architecture.md",
        "usr/share/doc/mesos-overlay/docs/configuration.md",
        "usr/share/doc/mesos-overlay/docs/images/crates.svg",
        "usr/share/doc/mesos-overlay/docs/command-line.md",
        "usr/share/doc/mesos-overlay/modules.json.example",
    ];
    assert_eq!(fixture.files("the root"), installed.map(str::to_owned).into());
    let library = fixture.library_of("the root/etc/mesos-overlay/master_modules.json");
    assert_eq!(library["file"], "/usr/lib/libmesos_network_overlay.so");
    let network = &library["modules"][0]["parameters"][0]["value"];
    assert_eq!(network, "/etc/mesos-overlay/network.json");

    // A second installation changes nothing.
    fixture.make(&["install", &root]).success();
    assert_eq!(fixture.files("the root"), installed.map(str::to_owned).into());

    fixture.write("the root/etc/mesos-overlay/network.json", "{}\n");
    let kept = "ROOT/the root/etc/mesos-overlay/network.json: kept, since it was changed";
    let output = fixture.make(&["install", &root]).success();
    let new = "the new one is ROOT/the root/etc/mesos-overlay/network.json.new";
    assert_eq!(output.lines().last(), Some(format!("install: {kept}: {new}").as_str()));
    let output = fixture.make(&["uninstall", &root]).success();
    assert_eq!(output.lines().last(), Some(format!("uninstall: {kept}").as_str()));
    assert_eq!(fixture.files("the root"), ["etc/mesos-overlay/network.json".to_owned()].into());
    assert_eq!(fixture.read("the root/etc/mesos-overlay/network.json"), "{}\n");
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_check_requires_all_four_modules() {
    let fixture = Fixture::new();
    fixture.configure(&[]).success();
    let output = fixture.make(&["check"]).success();
    assert_eq!(output.lines().last(), Some("tests/run mesos of ROOT/mesos"));
    let modules = fixture.read("tools/modules.c");
    for symbol in SYMBOLS {
        fixture.write("tools/modules.c", &modules.replace(symbol, "another"));
        let error = fixture.make(&["check"]).failure();
        let library = ".libs/libmesos_network_overlay.so";
        let missing = format!("no data symbol {symbol}: Mesos would not find this module");
        assert_eq!(error.lines().next(), Some(format!("{library}: {missing}").as_str()));
    }
}

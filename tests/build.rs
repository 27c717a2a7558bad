//! `bootstrap`, `configure` and `make`, whose programs are those of the machine, while Mesos and
//! cargo are stand-ins: a prefix with a few lines of headers and a library with a few symbols, and
//! a script that writes down how it was called. So every check of `configure` can be seen to fail,
//! and all of it takes seconds. What only a real Mesos shows belongs to the tier `mesos`.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// What the build reads of the repository.
const SOURCES: [&str; 14] = [
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
    "docs/network.json",
    "docs/program.md",
    "modules.json.example",
];
/// What a caller may have set, cargo among them.
const VARIABLES: [&str; 11] = [
    "CARGO",
    "CPPFLAGS",
    "CXX",
    "CXXFLAGS",
    "LIBCLANG_PATH",
    "MAKEFLAGS",
    "MESOS_PREFIX",
    "NM",
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

/// Answers as cargo and leaves what it would have built.
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
    echo program >target/release/mesos-overlay
    ;;
esac >>"$here/cargo.log"
"#;

/// A source tree that was bootstrapped, a Mesos, tools, and a directory to build in. Source and
/// build have a space in their paths.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        for file in SOURCES {
            let to = place.path(&format!("the source/{file}"));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), to).unwrap();
        }
        fs::create_dir(place.path("the build")).unwrap();
        place.script("the source/tests/run", "#!/bin/sh\necho \"tests/run $* of $MESOS_PREFIX\"\n");
        place.script("tools/cargo", CARGO);
        place.script("tools/rustc", "#!/bin/sh\necho 'rustc 1.95.0 (59807616e 2026-04-14)'\n");
        place.write("tools/libclang.so", "");
        let modules = SYMBOLS.map(|symbol| format!("void *{symbol} = &{symbol};\n"));
        place.write("tools/modules.c", &modules.concat());
        place.mesos();
        place
    }

    /// A Mesos 1.9.0 that brings its own protobuf 3.5.0.
    fn mesos(&self) {
        self.mesos_header(VERSION_HPP, "#define MESOS_VERSION \"1.9.0\"\n");
        self.mesos_header(
            "include/mesos/mesos.pb.h",
            "#include <google/protobuf/stubs/common.h>\n\
             #if 3005000 < GOOGLE_PROTOBUF_MIN_PROTOC_VERSION\n#error of another protoc\n#endif\n",
        );
        self.mesos_header("include/mesos/log/log.hpp", "");
        self.mesos_header("lib/mesos/3rdparty/include/zookeeper/zookeeper.h", "");
        self.mesos_header("include/mesos/master/detector.hpp", "#include <mesos/mesos.pb.h>\n");
        self.mesos_header("include/mesos/module/anonymous.hpp", "");
        self.mesos_header("include/process/http.hpp", "#include <stout/try.hpp>\n");
        self.mesos_header("include/process/process.hpp", "");
        self.mesos_header("include/stout/try.hpp", "");
        self.mesos_header("include/stout/json.hpp", "#define PICOJSON_USE_INT64\n");
        self.mesos_header(PROTOBUF_H, "#define GOOGLE_PROTOBUF_VERSION 3005000\n");
        self.libmesos("1.9.0", &["_ZN7process4spawnERKNSt7__cxx1112basic_stringE"]);
    }

    fn mesos_header(&self, name: &str, text: &str) {
        self.write(&format!("mesos/{name}"), text);
    }

    /// `libmesos.so` of this version with these symbols.
    fn libmesos(&self, version: &str, symbols: &[&str]) {
        let name = format!("libmesos-{version}.so");
        self.library(&format!("mesos/lib/{name}"), &name, symbols);
        let link = self.path("mesos/lib/libmesos.so");
        let _ = fs::remove_file(&link);
        symlink(name, link).unwrap();
    }

    fn library(&self, path: &str, soname: &str, symbols: &[&str]) {
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

    fn script(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        self.shown(&fs::read(self.path(name)).unwrap())
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// A text in which this directory is called PLACE.
    fn shown(&self, text: &[u8]) -> String {
        String::from_utf8_lossy(text).replace(self.0.path().to_str().unwrap(), "PLACE")
    }

    /// The files below a directory.
    fn files(&self, name: &str) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        let mut folders = vec![self.path(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let inside = path.strip_prefix(self.path(name)).unwrap();
                    files.insert(inside.to_str().unwrap().to_owned());
                }
            }
        }
        files
    }

    /// Runs a program in the build directory.
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
        let [stdout, stderr] = [stdout, stderr].map(|text| self.shown(&text));
        Outcome { succeeded: status.success(), stdout, stderr }
    }

    fn bootstrap(&self) {
        if !self.path("the source/configure").exists() {
            self.run("../the source/bootstrap", [""; 0]).success();
        }
    }

    /// Runs `configure` with the stand-ins and with `arguments`, which win over them. PLACE in them
    /// is this directory.
    fn configure(&self, arguments: &[&str]) -> Outcome {
        self.bootstrap();
        let defaults = [
            "CARGO=PLACE/tools/cargo",
            "RUSTC=PLACE/tools/rustc",
            "LIBCLANG_PATH=PLACE/tools",
            "--with-mesos=PLACE/mesos",
        ];
        let place = self.0.path().to_str().unwrap();
        let arguments = defaults.iter().chain(arguments).map(|one| one.replace("PLACE", place));
        self.run("../the source/configure", arguments)
    }

    /// What the Makefile hands to cargo in a variable.
    fn exported(&self, variable: &str) -> String {
        let makefile = self.read("the build/Makefile");
        let beginning = format!("export {variable} = ");
        let value = makefile.lines().find_map(|line| line.strip_prefix(&beginning));
        value.unwrap().to_owned()
    }

    /// The one library of a module file.
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
    /// The output of a run that succeeded and had nothing to say on stderr.
    #[track_caller]
    fn success(self) -> String {
        assert!(self.succeeded && self.stderr.is_empty(), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// What stands on stderr of a run that failed.
    #[track_caller]
    fn failure(self) -> String {
        assert!(!self.succeeded, "{}", self.stdout);
        self.stderr
    }
}

/// A way to spoil a Mesos or a tool, what `configure` is given beside it, and its error.
type Spoilt = (fn(&Place), &'static str, &'static str);

/// Each of them alone makes `configure` fail.
fn each_is_refused(all: &[Spoilt]) {
    let place = Place::new();
    for (spoil, argument, error) in all {
        fs::remove_dir_all(place.path("mesos")).unwrap();
        place.mesos();
        spoil(&place);
        let arguments: &[&str] = if argument.is_empty() { &[] } else { &[argument] };
        assert_eq!(place.configure(arguments).failure(), format!("configure: error: {error}\n"));
    }
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn bootstrap_needs_autoconf() {
    let place = Place::new();
    place.script("tools/dirname", "#!/bin/sh\necho \"${1%/*}\"\n");
    let path = format!("PATH={}", place.path("tools").display());
    let outcome = place.run("env", [path.as_str(), "../the source/bootstrap"]);
    let error = outcome.failure();
    assert_eq!(error, "bootstrap: autoconf: not found: install the package autoconf\n");
}

/// Every way in which a Mesos can be unfit.
const UNFIT: &[Spoilt] = &[
    (
        |_| {},
        "--with-mesos",
        "--with-mesos: not given: give the prefix that Mesos is installed in, as in \
             --with-mesos=/usr/local",
    ),
    (
        |_| {},
        "--with-mesos=PLACE/nowhere",
        "--with-mesos: PLACE/nowhere: not a directory: give the prefix that Mesos is installed in",
    ),
    (
        |_| {},
        "--with-mesos=PLACE/the build",
        "--with-mesos: 'PLACE/the build': white space, which takes compiler flags apart: give a \
             symbolic link without",
    ),
    (
        |place| place.mesos_header("include/mesos/version.hpp.in", ""),
        "",
        "--with-mesos: PLACE/mesos: a source or build tree of Mesos: run 'make install' in the \
             build tree, and give the prefix that it installs in",
    ),
    (
        |place| place.mesos_header("config.status", ""),
        "",
        "--with-mesos: PLACE/mesos: a source or build tree of Mesos: run 'make install' in the \
             build tree, and give the prefix that it installs in",
    ),
    (
        |place| place.remove("mesos/include/process/process.hpp"),
        "",
        "PLACE/mesos/include/process/process.hpp: not found: install Mesos with its headers, and \
             give the prefix that it is installed in",
    ),
    (
        |place| place.mesos_header(VERSION_HPP, ""),
        "",
        "PLACE/mesos/include/mesos/version.hpp: it names no MESOS_VERSION: install Mesos again",
    ),
    (
        |place| place.mesos_header(VERSION_HPP, "#define MESOS_VERSION \"1.3.2\"\n"),
        "",
        "Mesos 1.3.2 in PLACE/mesos: too old: give the prefix of Mesos 1.4 or later",
    ),
    (
        |place| place.remove("mesos/lib/libmesos.so"),
        "",
        "libmesos.so: neither in PLACE/mesos/lib nor in PLACE/mesos/lib64: give the prefix of a \
             whole installation, headers and library",
    ),
    (
        |place| place.mesos_header("lib/libmesos.so", "text\n"),
        "",
        "PLACE/mesos/lib/libmesos.so: not a shared library: install Mesos again",
    ),
    (
        |place| place.libmesos("1.8.1", &["_ZN7process4spawnE"]),
        "",
        "PLACE/mesos/lib/libmesos.so: it is libmesos-1.8.1.so, but the headers in \
             PLACE/mesos/include are of Mesos 1.9.0: install both from one build",
    ),
    (
        |place| place.libmesos("1.9.0", &["_ZN5mesos4spawnE"]),
        "",
        "PLACE/mesos/lib/libmesos.so: it has no symbols of libprocess: give the prefix of a \
             whole installation",
    ),
    (
        |place| {
            place.mesos_header("include/process/process.hpp", "#include <boost/none_such.hpp>\n")
        },
        "",
        "Mesos 1.9.0: its headers compile neither as C++11 nor as C++14 nor as C++17: \
             boost/none_such.hpp: No such file or directory: give what is missing in CPPFLAGS; \
             config.log has all messages",
    ),
];

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn a_mesos_that_cannot_be_built_against_is_refused() {
    each_is_refused(UNFIT);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn tools_that_are_missing_or_too_old_are_refused() {
    let none = |_: &Place| {};
    each_is_refused(&[
        (
            none,
            "NM=none",
            "none: not found, or it does not run: install binutils, or give NM and READELF",
        ),
        (
            none,
            "READELF=none",
            "none: not found, or it does not run: install binutils, or give NM and READELF",
        ),
        (
            none,
            "CARGO=none",
            "none: not found, or it does not run: install Rust 1.95 or later, or give CARGO",
        ),
        (
            none,
            "RUSTC=none",
            "none: not found, or it does not run: install Rust 1.95 or later, or give RUSTC",
        ),
        (
            |place| place.script("mesos/rustc", "#!/bin/sh\necho 'rustc 1.94.1 (e408947bf)'\n"),
            "RUSTC=PLACE/mesos/rustc",
            "PLACE/mesos/rustc: it is version 1.94.1: install Rust 1.95 or later, or give RUSTC",
        ),
        (
            none,
            "LIBCLANG_PATH=PLACE/mesos",
            "libclang.so: not found in PLACE/mesos: install libclang-dev, or give the directory that \
             has it in LIBCLANG_PATH",
        ),
        (none, "CXX=none", "none: not found, or it does not run: install g++, or give CXX"),
    ]);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn another_protobuf_than_that_of_mesos_is_refused() {
    each_is_refused(&[
        (
            |_| {},
            "--with-protobuf=PLACE/nowhere",
            "--with-protobuf: PLACE/nowhere: not a directory: give the prefix that protobuf is \
             installed in",
        ),
        (
            |_| {},
            "--with-protobuf=PLACE/mesos",
            "PLACE/mesos/include/google/protobuf/stubs/common.h: not found: install protobuf with its \
             headers, and give the prefix that it is installed in",
        ),
        (
            |place| place.mesos_header(PROTOBUF_H, "#define GOOGLE_PROTOBUF_VERSION 3021012\n"),
            "",
            "protobuf: the headers found are of 3.21.12, but Mesos was built with 3.5.0: give the \
             prefix of a protobuf 3.5.0 in --with-protobuf",
        ),
        (
            // Were it not there at all, that of the machine would be found.
            |place| place.mesos_header(PROTOBUF_H, "#include <none_such.h>\n"),
            "",
            "protobuf: google/protobuf/stubs/common.h: not found: install the headers of protobuf \
             3.5.0, with which Mesos was built, or give their prefix in --with-protobuf",
        ),
    ]);
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn a_directory_that_make_or_json_would_misread_is_refused() {
    let place = Place::new();
    place.bootstrap();
    for name in ["a$b", "a\"b", "a|b", "a&b", "a#b", "a'b", "a\\b"] {
        fs::create_dir(place.path(name)).unwrap();
        let command = "cd \"$0\" && exec '../the source/configure'";
        let path = place.path(name);
        let outcome = place.run("sh", ["-c".as_ref(), command.as_ref(), path.as_os_str()]);
        assert_eq!(
            outcome.failure(),
            format!(
                "configure: error: PLACE/{name}: a path with a quote, or one of \\ $ # | &: build \
                 elsewhere\n"
            )
        );
    }
}

/// How Mesos was compiled is read from its library, and the modules are compiled in the same way.
#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn the_modules_are_compiled_as_mesos_was() {
    let place = Place::new();
    let output = place.configure(&[]).success();
    let (_, summary) = output.split_once("\n\n").unwrap();
    assert_eq!(
        summary,
        "  Mesos         1.9.0 in PLACE/mesos\n  \
           C++           g++, c++11, string ABI 1\n  \
           SSL           no\n  \
           protobuf      3.5.0\n  \
           Rust          1.95.0\n  \
           installs in   /usr/local\n\n\
         Now run make.\n"
    );
    assert_eq!(
        place.exported("MESOS_CXXFLAGS"),
        "-std=c++11 -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_FORMAT_MACROS \
         -IPLACE/mesos/lib/mesos/3rdparty/include \
         -IPLACE/mesos/lib/mesos/3rdparty/include/zookeeper"
    );

    // A Mesos 1.4 by CMake, with SSL, old strings, a protobuf of its own and headers in C++14.
    place.mesos_header(VERSION_HPP, "#define MESOS_VERSION \"1.4.0\"\n");
    place.mesos_header("include/stout/json.hpp", "");
    place.mesos_header(
        "include/process/http.hpp",
        "#if __cplusplus < 201402L\n#error old\n#endif\n",
    );
    fs::rename(place.path("mesos/lib/mesos/3rdparty"), place.path("protobuf")).unwrap();
    fs::remove_dir_all(place.path("mesos/lib")).unwrap();
    fs::create_dir(place.path("mesos/lib64")).unwrap();
    place.library("mesos/lib64/libmesos.so", "libmesos.so", &["_ZN5mesos4spawnEv"]);
    let symbols = ["_ZN7process5spawnEv", "_ZN7process7network7openssl10initializeEv"];
    place.library("mesos/lib64/libprocess.so", "libprocess.so", &symbols);
    let own = ["--with-protobuf=PLACE/protobuf", "CPPFLAGS=-DA", "CXXFLAGS=-O1 -g"];
    let output = place.configure(&own).success();
    assert!(output.contains("\n  C++           g++, c++14, string ABI 0\n"), "{output}");
    assert!(output.contains("\n  SSL           yes\n"), "{output}");
    // The system may have the headers of ZooKeeper or not.
    let flags = place.exported("MESOS_CXXFLAGS").replace(" -I/usr/include/zookeeper", "");
    assert_eq!(
        flags,
        "-DA -O1 -g -std=c++14 -D_GLIBCXX_USE_CXX11_ABI=0 -D__STDC_FORMAT_MACROS -DUSE_SSL_SOCKET \
         -DPICOJSON_USE_INT64"
    );
}

/// The program is built without the modules, and after them.
#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_builds_the_modules_and_the_program() {
    let place = Place::new();
    place.bootstrap();
    let sources = place.files("the source");
    place.configure(&[]).success();
    assert_eq!(
        place.make(&["install"]).failure().lines().next(),
        Some("install: .libs/libmesos_network_overlay.so: not found: run make first")
    );

    place.make(&["CARGOFLAGS=--offline"]).success();
    let to = "--manifest-path PLACE/the source/Cargo.toml --target-dir PLACE/the build/target";
    assert_eq!(
        place.read("tools/cargo.log"),
        format!(
            "cargo rustc --release --locked --offline {to} --lib --crate-type cdylib \
             --features mesos\n\
             CXX=g++\n\
             LIBCLANG_PATH=PLACE/tools\n\
             MESOS_CXXFLAGS=-std=c++11 -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_FORMAT_MACROS \
             -IPLACE/mesos/lib/mesos/3rdparty/include \
             -IPLACE/mesos/lib/mesos/3rdparty/include/zookeeper\n\
             MESOS_PREFIX=PLACE/mesos\n\
             RUSTC=PLACE/tools/rustc\n\
             cargo build --release --locked --offline {to} --bin mesos-overlay\n"
        )
    );
    let library = "PLACE/the build/.libs/libmesos_network_overlay.so";
    assert!(place.path(&library.replace("PLACE/", "")).exists());
    let master = place.library_of("the build/master_modules.json");
    assert_eq!(master["file"], library);
    assert_eq!(
        master["modules"][0]["parameters"][0]["value"],
        "PLACE/the source/docs/network.json"
    );
    assert_eq!(place.library_of("the build/agent_modules.json")["file"], library);

    place.make(&["distclean"]).success();
    assert_eq!(place.files("the build"), BTreeSet::new());
    assert_eq!(place.files("the source"), sources, "the source tree is only read");
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_installs_and_keeps_what_an_operator_changed() {
    let place = Place::new();
    place.configure(&["--prefix=/usr", "--sysconfdir=/etc"]).success();
    place.make(&["all"]).success();
    let root = format!("DESTDIR={}", place.path("the root").display());
    place.make(&["install", &root]).success();
    let installed = [
        "etc/mesos-overlay/agent_modules.json",
        "etc/mesos-overlay/master_modules.json",
        "etc/mesos-overlay/network.json",
        "usr/bin/mesos-overlay",
        "usr/lib/libmesos_network_overlay.so",
        "usr/share/doc/mesos-overlay/CHANGELOG.md",
        "usr/share/doc/mesos-overlay/LICENSE",
        "usr/share/doc/mesos-overlay/README.md",
        "usr/share/doc/mesos-overlay/docs/architecture.md",
        "usr/share/doc/mesos-overlay/docs/configuration.md",
        "usr/share/doc/mesos-overlay/docs/program.md",
        "usr/share/doc/mesos-overlay/modules.json.example",
    ];
    assert_eq!(place.files("the root"), installed.map(str::to_owned).into());
    let library = place.library_of("the root/etc/mesos-overlay/master_modules.json");
    assert_eq!(library["file"], "/usr/lib/libmesos_network_overlay.so");
    let network = &library["modules"][0]["parameters"][0]["value"];
    assert_eq!(network, "/etc/mesos-overlay/network.json");

    // The same again changes nothing.
    place.make(&["install", &root]).success();
    assert_eq!(place.files("the root"), installed.map(str::to_owned).into());

    place.write("the root/etc/mesos-overlay/network.json", "{}\n");
    let kept = "PLACE/the root/etc/mesos-overlay/network.json: kept, since it was changed";
    let output = place.make(&["install", &root]).success();
    let new = "the new one is PLACE/the root/etc/mesos-overlay/network.json.new";
    assert_eq!(output.lines().last(), Some(format!("install: {kept}: {new}").as_str()));
    let output = place.make(&["uninstall", &root]).success();
    assert_eq!(output.lines().last(), Some(format!("uninstall: {kept}").as_str()));
    assert_eq!(place.files("the root"), ["etc/mesos-overlay/network.json".to_owned()].into());
    assert_eq!(place.read("the root/etc/mesos-overlay/network.json"), "{}\n");
}

#[test]
#[ignore = "build: needs autoconf, binutils, g++ and make"]
fn make_check_wants_all_four_modules() {
    let place = Place::new();
    place.configure(&[]).success();
    let output = place.make(&["check"]).success();
    assert_eq!(output.lines().last(), Some("tests/run mesos of PLACE/mesos"));
    let modules = place.read("tools/modules.c");
    for symbol in SYMBOLS {
        place.write("tools/modules.c", &modules.replace(symbol, "another"));
        let error = place.make(&["check"]).failure();
        let library = ".libs/libmesos_network_overlay.so";
        let missing = format!("no data symbol {symbol}: Mesos would not find this module");
        assert_eq!(error.lines().next(), Some(format!("{library}: {missing}").as_str()));
    }
}

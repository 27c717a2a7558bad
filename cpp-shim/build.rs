//! Builds the C++ half of the modules against the headers of Mesos. The build script runs this file
//! for the feature `mesos`. `configure` sets the variables. Without `configure`, `MESOS_PREFIX` is
//! sufficient if the defaults fit.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::Error;

const SOURCES: [&str; 3] = ["cpp-shim/create.cpp", "cpp-shim/log.cpp", "cpp-shim/process.cpp"];
const HEADERS: [&str; 3] = ["cpp-shim/log.hpp", "cpp-shim/process.hpp", "cpp-shim/shim.hpp"];
const BRIDGE: &str = "src/module/bridge.rs";
/// The default of Mesos' own `configure.ac`; `configure` determines the actual standard.
const STANDARD: &str = "-std=c++11";

/// The libraries of Mesos that use each other. Automake builds the first only, which then has the
/// code of all; CMake builds each.
const LIBRARIES: [&str; 4] = ["mesos", "mesos-protobufs", "process", "glog"];

/// The installation of Mesos, and the flags with which it was built.
struct Mesos {
    /// The directory of the libraries.
    libraries: PathBuf,
    includes: Vec<PathBuf>,
    flags: Vec<String>,
}

pub(crate) fn build(out: &Path) -> Result<(), Error> {
    for variable in ["MESOS_PREFIX", "PROTOBUF_PREFIX", "MESOS_CXXFLAGS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for file in SOURCES.iter().chain(&HEADERS).chain([&BRIDGE, &"cpp-shim/build.rs"]) {
        println!("cargo:rerun-if-changed={file}");
    }
    let mesos = Mesos::find()?;
    mesos.write_manifest(out)?;
    mesos.compile();
    // The library itself is not linked with libmesos. It binds to the libmesos of the process that
    // loads it, whose version Mesos then compares. A recorded dependency on another libmesos would
    // make the loader load both, and two copies of protobuf abort the process.
    for kind in ["bins", "tests", "benches"] {
        println!("cargo:rustc-link-arg-{kind}=-L{}", mesos.libraries.display());
        println!("cargo:rustc-link-arg-{kind}=-Wl,--as-needed");
        for name in mesos.library_names() {
            println!("cargo:rustc-link-arg-{kind}=-l{name}");
        }
    }
    // Mesos never unloads a module. If another host unloads the library, the code of its running
    // threads has to stay mapped.
    println!("cargo:rustc-link-arg=-Wl,-z,nodelete");
    // The linker defines symbols for the boundaries of sections that a dependency collects. It
    // exports them by default. binutils before 2.36 ignores the option with a warning.
    println!("cargo:rustc-link-arg=-Wl,-z,start-stop-visibility=hidden");
    Ok(())
}

impl Mesos {
    fn find() -> Result<Self, Error> {
        let prefix = env::var_os("MESOS_PREFIX").map(PathBuf::from).ok_or(
            "the feature 'mesos' needs the headers of Mesos: set MESOS_PREFIX to where it is \
             installed, or build with ./configure and make",
        )?;
        let version = prefix.join("include/mesos/version.hpp");
        if !version.exists() {
            return Err(format!(
                "there is no {}: set MESOS_PREFIX to where Mesos is installed",
                version.display()
            )
            .into());
        }
        let protobuf = env::var_os("PROTOBUF_PREFIX").filter(|path| !path.is_empty());
        let protobuf = protobuf.map(|prefix| PathBuf::from(prefix).join("include"));
        let mut includes: Vec<PathBuf> = protobuf.into_iter().collect();
        includes.push(prefix.join("include"));
        let libraries = ["lib", "lib64"].map(|name| prefix.join(name));
        let libraries = libraries.into_iter().find(|path| path.join("libmesos.so").exists());
        let libraries = libraries.unwrap_or_else(|| prefix.join("lib"));
        // Headers of boost, glog and protobuf that Mesos installed.
        let bundled = libraries.join("mesos/3rdparty/include");
        // Mesos includes the headers of ZooKeeper without their directory.
        let zookeeper = [&bundled, &prefix.join("include"), Path::new("/usr/include")]
            .map(|parent| parent.join("zookeeper"));
        includes.extend([bundled].into_iter().chain(zookeeper).filter(|path| path.exists()));
        let flags = env::var_os("MESOS_CXXFLAGS").unwrap_or_else(|| STANDARD.into());
        let flags = flags.to_string_lossy().split_whitespace().map(str::to_owned).collect();
        Ok(Self { libraries, includes, flags })
    }

    /// Returns the names of the libraries that the linker needs, see [`LIBRARIES`].
    fn library_names(&self) -> impl Iterator<Item = &'static str> {
        let exists = |name: &&str| self.libraries.join(format!("lib{name}.so")).exists();
        LIBRARIES.into_iter().filter(exists)
    }

    fn compile(&self) {
        let mut build = cxx_build::bridge(BRIDGE);
        build.files(SOURCES).warnings(false).flag_if_supported("-fvisibility=hidden");
        for include in &self.includes {
            // Not -isystem: the prefix may be /usr, and the search order of /usr must not change.
            build.include(include);
        }
        for flag in &self.flags {
            build.flag(flag);
        }
        if env::var_os("CARGO_FEATURE_FAULTS").is_some() {
            build.define("MESOS_OVERLAY_FAULTS", None);
        }
        build.compile("mesos_overlay_shim");
    }

    /// Generates the layout of a module's record, and the versions, from the headers of Mesos.
    fn write_manifest(&self, out: &Path) -> Result<(), Error> {
        let header = "#include <mesos/module.hpp>\n#include <mesos/version.hpp>\n";
        let bindings = bindgen::Builder::default()
            .header_contents("manifest.hpp", header)
            .clang_args(["-x", "c++"])
            .clang_args(&self.flags)
            .clang_args(self.includes.iter().map(|path| format!("-I{}", path.display())))
            .allowlist_type("mesos::modules::ModuleBase")
            .allowlist_var("MESOS_VERSION|MESOS_MODULE_API_VERSION")
            .allowlist_recursively(false)
            // The manifest and create.cpp check the layout.
            .layout_tests(false)
            .generate()?;
        fs::write(out.join("manifest.rs"), bindings.to_string())?;
        Ok(())
    }
}

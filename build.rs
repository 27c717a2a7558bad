//! Builds the C++ half of the Mesos modules, `cpp-shim/`, if the feature `mesos` is on.

#[cfg(feature = "mesos")]
#[path = "cpp-shim/build.rs"]
mod shim;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    #[cfg(feature = "mesos")]
    {
        let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
        shim::build(std::path::Path::new(&out))?;
    }
    Ok(())
}

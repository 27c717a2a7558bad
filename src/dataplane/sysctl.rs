//! The settings of our devices, in `/proc/sys/net` of the namespace of the calling thread. They go
//! with the device, so nothing has to be given back.

use std::{fs, io};

const ROOT: &str = "/proc/sys/net";

/// The number in a file below `/proc/sys/net`.
pub(super) fn read_number(name: &str) -> Option<u32> {
    fs::read_to_string(format!("{ROOT}/{name}")).ok()?.trim().parse().ok()
}

pub(super) fn write_number(name: &str, value: u32) -> io::Result<()> {
    fs::write(format!("{ROOT}/{name}"), value.to_string())
}

//! The resource usage of a process, as reported by the kernel.

use std::fs;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

/// The memory and descriptors of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Peak resident memory, in MiB.
    pub(crate) peak: f64,
    /// Resident memory, in MiB.
    pub(crate) resident: f64,
    /// Number of open descriptors.
    pub(crate) descriptors: usize,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self, String> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
        let mebibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u32 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(f64::from(kibibytes) / 1024.0)
        };
        let missing = || format!("{path} shows no memory usage");
        let path = format!("/proc/{pid}/fd");
        let descriptors = fs::read_dir(&path).map_err(|error| format!("read {path}: {error}"))?;
        Ok(Self {
            peak: mebibytes("VmHWM:").ok_or_else(missing)?,
            resident: mebibytes("VmRSS:").ok_or_else(missing)?,
            descriptors: descriptors.count(),
        })
    }
}

/// Returns the user and system CPU time of a process. The CPU clock is used, since `utime` and
/// `stime` in /proc/PID/stat have a resolution of only 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, String> {
    let failure = |error: nix::Error| format!("read the clock of process {pid}: {error}");
    let pid = Pid::from_raw(pid.cast_signed());
    ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).map(Duration::from).map_err(failure)
}

//! What a process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

/// What a process holds at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Most memory that was ever resident, in MiB.
    pub(crate) peak: f64,
    /// Memory that is resident, in MiB.
    pub(crate) resident: f64,
    /// Open descriptors.
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
        let missing = || format!("no memory in {path}");
        let path = format!("/proc/{pid}/fd");
        let descriptors = fs::read_dir(&path).map_err(|error| format!("read {path}: {error}"))?;
        Ok(Self {
            peak: mebibytes("VmHWM:").ok_or_else(missing)?,
            resident: mebibytes("VmRSS:").ok_or_else(missing)?,
            descriptors: descriptors.count(),
        })
    }
}

/// The processor time that a process has used, in user and in system mode: utime + stime of its
/// /proc/PID/stat, from a clock that does not count in hundredths of a second.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, String> {
    let failure = |error: nix::Error| format!("read the clock of process {pid}: {error}");
    let pid = Pid::from_raw(pid.cast_signed());
    ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).map(Duration::from).map_err(failure)
}

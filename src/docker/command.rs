//! Running a program that may hang, flood us, or leave children behind.
//!
//! The program gets a process group of its own, which is killed as a whole: a `docker` that hangs
//! may itself wait for a helper, which would otherwise live on and hold our pipes open.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// Longest answer that is read. 1,000 networks with some containers each are about 2 MiB.
const STDOUT_MAX: u64 = 8 * 1024 * 1024;
/// Longest complaint that is read; one line of it is shown.
const STDERR_MAX: u64 = 64 * 1024;
/// How long a killed program is waited for. It dies at once unless the kernel holds it in a system
/// call; then the runtime reaps it later.
const REAP_MAX: Duration = Duration::from_secs(1);

/// A program that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// A program that did not end as programs do.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no such program.
    NotFound,
    /// It could not be started.
    Start(io::Error),
    /// It was started, and its output or its end could not be read.
    Lost(io::Error),
    /// It was killed at the deadline.
    TimedOut,
    /// It was killed because it wrote without end.
    TooMuchOutput,
}

/// Runs `program` to its end, or kills it with all its children at the `deadline`, or when the
/// caller loses interest and drops the future.
pub(super) async fn run(
    program: &Path,
    arguments: impl Iterator<Item = &OsStr>,
    deadline: Instant,
) -> Result<Finished, Failure> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::NotFound,
            _ => Failure::Start(error),
        })?;
    let mut group = Group(child);
    let result = match timeout_at(deadline, group.finish()).await {
        Ok(result) => result,
        Err(_) => Err(Failure::TimedOut),
    };
    if result.is_err() {
        group.kill();
        let _ = timeout(REAP_MAX, group.0.wait()).await;
    }
    result
}

/// A child that leads a process group.
struct Group(Child);

impl Group {
    /// Reads first and waits for the end afterwards: as long as the child is not reaped, no other
    /// group can have its number, and [`Group::kill`] cannot hit a stranger.
    async fn finish(&mut self) -> Result<Finished, Failure> {
        let stdout = read(self.0.stdout.take(), STDOUT_MAX);
        let stderr = read(self.0.stderr.take(), STDERR_MAX);
        let (stdout, stderr) = tokio::try_join!(stdout, stderr)?;
        let status = self.0.wait().await.map_err(Failure::Lost)?;
        Ok(Finished { success: status.success(), status, stdout, stderr })
    }

    fn kill(&self) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It fails only if all of them have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn read(source: Option<impl AsyncRead + Unpin>, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    if let Some(source) = source {
        let mut source = source.take(limit + 1);
        let read = source.read_to_end(&mut content).await.map_err(Failure::Lost)?;
        if u64::try_from(read).is_ok_and(|read| read > limit) {
            return Err(Failure::TooMuchOutput);
        }
    }
    Ok(content)
}

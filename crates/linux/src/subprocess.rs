//! Runs programs such as `docker`, `nft` and `ipset`, which may hang, write endless output, or
//! leave children behind.
//!
//! Each program gets its own process group, and the whole group is killed. A `docker` that hangs
//! may wait for a helper process, which otherwise keeps running and holds our pipes open.
//!
//! tokio does not start the programs: before Linux 5.3, which has no pidfd, tokio installs a
//! handler of SIGCHLD, and in a Mesos process the signals belong to Mesos. So this module polls for
//! the end of the program, usually once or twice. Mesos ignores SIGPIPE; the standard library
//! resets it to the default for the program.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use overlay_types::escape;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Maximum length of the standard output. 1,000 Docker networks with some containers each are about
/// 2 MiB, the rules of iptables for 20,000 services about 20 MiB.
const STDOUT_MAX: u64 = 64 * 1024 * 1024;
/// Maximum length of the standard error. Only one line of it is shown.
const STDERR_MAX: u64 = 64 * 1024;
/// Maximum number of characters of an error line that are shown.
const ERROR_LINE_MAX: usize = 300;
/// Maximum wait for the end of a killed program. The program ends at once unless it is in an
/// uninterruptible system call. In that case a thread reaps the program later.
const REAP_MAX: Duration = Duration::from_secs(1);
/// First and maximum interval of the polls for the end of a program. Most programs end soon after
/// they close their output.
const POLL_INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// The directories of system programs, on every distribution. They may be missing in our own
/// `PATH`.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Finds a program in the directories of system programs. A path that cannot be read counts as
/// found: the error of its start names the cause.
#[must_use]
pub fn find_system_program(program: &str) -> Option<PathBuf> {
    let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    paths.find(|path| path.try_exists().unwrap_or(true))
}

/// The output and exit status of a program.
#[derive(Debug)]
pub struct ProcessOutput {
    /// Whether the exit status is 0.
    pub success: bool,
    /// The exit status.
    pub status: ExitStatus,
    /// The number of the process.
    pub process: Option<u32>,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error.
    pub stderr: Vec<u8>,
}

impl ProcessOutput {
    /// Returns the first line of the standard error that is not a warning, without these
    /// `prefixes`. Control characters are escaped.
    #[must_use]
    pub fn error_line(&self, prefixes: &[&str]) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        // Docker first warns about its configuration file if the process has no home directory, as
        // in an agent that systemd starts.
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.to_lowercase().starts_with("warning"));
        let Some(mut line) = line else {
            return format!("the program wrote no error and ended with {}", self.status);
        };
        for prefix in prefixes {
            line = line.strip_prefix(prefix).unwrap_or(line);
        }
        escape::bounded_line(line, ERROR_LINE_MAX)
    }
}

/// Why a program did not run to its end.
#[derive(Debug)]
pub enum SubprocessError {
    /// The program does not exist.
    NotFound,
    /// The program could not be started.
    Start(io::Error),
    /// The program's output or exit status could not be read.
    Io(io::Error),
    /// The program was killed at the deadline.
    TimedOut,
    /// The program was killed because its output was too long.
    TooMuchOutput,
}

/// Runs `program` to its end. Kills it with all its children at the `deadline`, or when the caller
/// drops the future. `input` is the program's standard input.
///
/// # Errors
/// See [`SubprocessError`]. An exit status other than 0 is not an error.
pub async fn run(
    program: &Path,
    arguments: impl Iterator<Item = &OsStr>,
    input: &[u8],
    deadline: Instant,
) -> Result<ProcessOutput, SubprocessError> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command, input, deadline).await
}

/// Runs a command like [`run`]. For programs that need more than arguments, such as an environment.
///
/// # Errors
/// See [`run`].
pub async fn run_command(
    mut command: Command,
    input: &[u8],
    deadline: Instant,
) -> Result<ProcessOutput, SubprocessError> {
    command.process_group(0);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let leader = start(&mut command).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SubprocessError::NotFound,
        _ => SubprocessError::Start(error),
    })?;
    let mut group = Group { leader: Some(leader) };
    let result = match timeout_at(deadline, group.finish(input)).await {
        Ok(result) => result,
        Err(_) => Err(SubprocessError::TimedOut),
    };
    if result.is_err() {
        group.kill();
        let _ = timeout(REAP_MAX, group.wait_for_end()).await;
    }
    result
}

/// Runs a program like [`run`], on a thread that may block and that is outside of a tokio runtime.
///
/// # Errors
/// See [`run`].
pub fn run_blocking<'a>(
    program: &Path,
    arguments: impl Iterator<Item = &'a OsStr>,
    input: &[u8],
    timeout: Duration,
) -> Result<ProcessOutput, SubprocessError> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().build().map_err(SubprocessError::Start)?;
    runtime.block_on(async { run(program, arguments, input, Instant::now() + timeout).await })
}

/// Starts a program with no signal blocked. The program inherits the signal mask of this thread,
/// and in a Mesos process our threads block all signals. So this thread unblocks them until the
/// program is started; meanwhile it may run a signal handler of Mesos.
fn start(command: &mut Command) -> io::Result<Child> {
    let blocked = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let child = command.spawn();
    if let Err(error) = blocked.thread_set_mask() {
        log::warn!("failed to block the signals of a thread again: {error}");
    }
    child
}

/// A process group and the child process that leads it. Dropping it kills and reaps the group.
struct Group {
    /// `None` after the leader was reaped. Until then no other group can get its number, so
    /// [`Group::kill`] cannot kill an unrelated group.
    leader: Option<Child>,
}

impl Group {
    /// Reads all output, and then waits for the end of the program.
    async fn finish(&mut self, input: &[u8]) -> Result<ProcessOutput, SubprocessError> {
        let process = self.leader.as_ref().map(Child::id);
        let (stdin, stdout, stderr) = match &mut self.leader {
            Some(leader) => (leader.stdin.take(), leader.stdout.take(), leader.stderr.take()),
            None => (None, None, None),
        };
        let stdin = write(stdin.map(OwnedFd::from), input);
        let stdout = read(stdout.map(OwnedFd::from), STDOUT_MAX);
        let stderr = read(stderr.map(OwnedFd::from), STDERR_MAX);
        let ((), stdout, stderr) = tokio::try_join!(stdin, stdout, stderr)?;
        let status = self.wait_for_end().await.map_err(SubprocessError::Io)?;
        Ok(ProcessOutput { success: status.success(), status, process, stdout, stderr })
    }

    /// Waits until the leader has ended, and reaps it.
    async fn wait_for_end(&mut self) -> io::Result<ExitStatus> {
        let (mut interval, longest) = POLL_INTERVAL;
        loop {
            if let Some(status) = self.try_reap()? {
                return Ok(status);
            }
            sleep(interval).await;
            interval = longest.min(2 * interval);
        }
    }

    /// Reaps the leader if it has ended.
    fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(leader) = &mut self.leader else {
            return Err(io::Error::other("the program was reaped before"));
        };
        let result = leader.try_wait();
        // An error means that other code has reaped the leader. Then its number may belong to
        // another process.
        if !matches!(result, Ok(None)) {
            self.leader = None;
        }
        result
    }

    /// Kills all processes of the group.
    fn kill(&self) {
        let id = self.leader.as_ref().map(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // This fails only if all processes of the group have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        if let Ok(None) = self.try_reap()
            && let Some(leader) = self.leader.take()
        {
            reap_on_thread(leader);
        }
    }
}

/// Reaps a killed program on its own thread, which ends with the program. Not in a task: the
/// runtime may be shutting down while the process continues.
fn reap_on_thread(mut killed: Child) {
    let thread = thread::Builder::new().name("overlay-reaper".to_owned());
    if let Err(error) = thread.spawn(move || killed.wait()) {
        log::warn!(
            "failed to start a thread that reaps a killed program: {error}: it stays a zombie"
        );
    }
}

async fn write(sink: Option<OwnedFd>, content: &[u8]) -> Result<(), SubprocessError> {
    if let Some(sink) = sink {
        let mut sink = pipe::Sender::from_owned_fd(sink).map_err(SubprocessError::Io)?;
        // A program that stops reading its input either reports why or needs no more.
        let _ = sink.write_all(content).await;
    }
    Ok(())
}

async fn read(source: Option<OwnedFd>, limit: u64) -> Result<Vec<u8>, SubprocessError> {
    let mut content = Vec::new();
    if let Some(source) = source {
        let source = pipe::Receiver::from_owned_fd(source).map_err(SubprocessError::Io)?;
        let mut source = source.take(limit + 1);
        let read = source.read_to_end(&mut content).await.map_err(SubprocessError::Io)?;
        if u64::try_from(read).is_ok_and(|read| read > limit) {
            return Err(SubprocessError::TooMuchOutput);
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// Runs shell scripts, which write files into a temporary directory.
    struct Script(tempfile::TempDir);

    impl Script {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Runs `script`. Its `$0` is the directory.
        async fn run(
            &self,
            script: &str,
            timeout: Duration,
        ) -> Result<ProcessOutput, SubprocessError> {
            let arguments = ["-c".as_ref(), script.as_ref(), self.0.path().as_os_str()];
            run(Path::new("/bin/sh"), arguments.into_iter(), b"", Instant::now() + timeout).await
        }

        /// Waits until the script has written the file `name`, and returns the content.
        async fn written(&self, name: &str) -> String {
            loop {
                let text = fs::read_to_string(self.0.path().join(name)).unwrap_or_default();
                if text.ends_with('\n') {
                    return text.trim().to_owned();
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    fn process(pid: &str) -> PathBuf {
        Path::new("/proc").join(pid).join("stat")
    }

    /// Asserts that a child process has ended and was reaped.
    #[expect(clippy::disallowed_methods, reason = "the caller may be outside of a runtime")]
    fn assert_reaped(pid: &str) {
        for _ in 0..1000 {
            if !process(pid).exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "the process still exists: {}",
            fs::read_to_string(process(pid)).unwrap_or_default()
        );
    }

    /// Asserts that a grandchild has ended. Another process reaps it.
    async fn assert_ended(pid: &str) {
        for _ in 0..1000 {
            let stat = fs::read_to_string(process(pid)).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("process {pid} still runs");
    }

    #[tokio::test]
    async fn output_and_exit_status_are_returned() {
        let output = Script::new().run("echo out; echo err >&2; exit 7", LONG).await.unwrap();
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!((output.success, output.status.code()), (false, Some(7)));
        let output = Script::new().run("cat; kill -9 $$", LONG).await.unwrap();
        assert_eq!((output.stdout.len(), output.status.code()), (0, None));
    }

    #[test]
    fn program_gets_input_and_may_ignore_it() {
        let run = |script: &str, input: &[u8]| {
            let arguments = ["-c".as_ref(), script.as_ref()].into_iter();
            run_blocking(Path::new("/bin/sh"), arguments, input, LONG).unwrap()
        };
        // More than a pipe holds, in both directions at once.
        let long = vec![b'x'; 1 << 20];
        assert!(run("cat", &long).stdout == long);
        assert_eq!(run("exec <&-; echo enough", &long).stdout, b"enough\n");
    }

    #[tokio::test]
    async fn program_without_output_is_killed_at_deadline() {
        let script = Script::new();
        let ends = "exec >&- 2>&-; sleep 0.2; exit 7";
        assert_eq!(script.run(ends, LONG).await.unwrap().status.code(), Some(7));
        let stays = r#"exec >&- 2>&-; echo $$ >"$0/pid"; sleep 1000"#;
        let result = script.run(stays, Duration::from_millis(500)).await;
        assert!(matches!(result, Err(SubprocessError::TimedOut)), "{result:?}");
        assert_reaped(&script.written("pid").await);
    }

    #[tokio::test]
    async fn child_that_holds_output_open_is_killed() {
        let script = Script::new();
        let leaves = r#"echo $$ >"$0/pid"; (sleep 1000 & echo $! >"$0/grandchild")"#;
        let result = script.run(leaves, Duration::from_millis(500)).await;
        assert!(matches!(result, Err(SubprocessError::TimedOut)), "{result:?}");
        assert_reaped(&script.written("pid").await);
        assert_ended(&script.written("grandchild").await).await;
    }

    #[tokio::test]
    async fn endless_output_kills_and_reaps_program() {
        for flood in [r#"echo $$ >"$0/pid"; exec yes"#, r#"echo $$ >"$0/pid"; exec yes >&2"#] {
            let script = Script::new();
            let result = script.run(flood, LONG).await;
            assert!(matches!(result, Err(SubprocessError::TooMuchOutput)), "{result:?}");
            assert_reaped(&script.written("pid").await);
        }
    }

    const HANG: &str = r#"sleep 1000 & echo $! >"$0/grandchild"; echo $$ >"$0/pid"; wait"#;

    #[tokio::test]
    async fn dropped_call_leaves_no_process() {
        let script = Script::new();
        tokio::select! {
            result = script.run(HANG, LONG) => panic!("{result:?}"),
            _ = script.written("pid") => {}
        }
        assert_reaped(&script.written("pid").await);
        assert_ended(&script.written("grandchild").await).await;
    }

    #[test]
    fn runtime_shutdown_leaves_no_process() {
        let script = std::sync::Arc::new(Script::new());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let call = std::sync::Arc::clone(&script);
        runtime.spawn(async move { call.run(HANG, LONG).await });
        let pid = runtime.block_on(script.written("pid"));
        drop(runtime);
        assert_reaped(&pid);
    }

    /// The signals that this thread blocks, ignores and catches. Pending signals are left out: the
    /// thread that runs the tests blocks all signals while it starts another thread.
    fn signals() -> Vec<String> {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines =
            status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
        lines.filter(|line| !line.starts_with("SigPnd")).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn program_has_default_signals_and_ours_are_kept() {
        let before = signals();
        // The test process ignores SIGPIPE, as a Mesos process does.
        let ignored = before.iter().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << 12), 1 << 12);
        let output = Script::new().run("kill -PIPE $$; echo survived", LONG).await.unwrap();
        assert_eq!(output.stdout, b"");
        let hang = Script::new().run("sleep 1000", Duration::from_millis(50)).await;
        assert!(matches!(hang, Err(SubprocessError::TimedOut)), "{hang:?}");
        assert_eq!(signals(), before);
    }

    #[tokio::test]
    async fn program_gets_signals_that_caller_blocks() {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).unwrap();
        let output = Script::new().run("kill -TERM $$; echo survived", LONG).await.unwrap();
        let after = SigSet::thread_get_mask().unwrap();
        before.thread_set_mask().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b""[..], None));
        assert!(after.contains(nix::sys::signal::SIGTERM), "SIGTERM is blocked again");
    }
}

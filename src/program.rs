//! Running a program that may hang, flood us, or leave children behind: `docker`, `nft`, `ipset`.
//!
//! The program gets a process group of its own, which is killed as a whole: a `docker` that hangs
//! may itself wait for a helper, which would otherwise live on and hold our pipes open.
//!
//! It is not started by tokio, which installs a handler of SIGCHLD where the kernel has no pidfd
//! (before 5.3): in a Mesos process the signals belong to Mesos. So nobody tells us when the
//! program ends, and we look, most often once or twice. What Mesos makes of SIGPIPE, to ignore it,
//! does not reach the program either: the standard library gives it the default back.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::escape;

/// Longest answer that is read. 1,000 Docker networks with some containers each are about 2 MiB,
/// the rules of iptables for 20,000 services about 20 MiB.
const STDOUT_MAX: u64 = 64 * 1024 * 1024;
/// Longest complaint that is read; one line of it is shown.
const STDERR_MAX: u64 = 64 * 1024;
/// Most characters of a complaint that are shown.
const SAID_MAX: usize = 300;
/// How long a killed program is waited for. It dies at once unless the kernel holds it in a system
/// call; then it is reaped later.
const REAP_MAX: Duration = Duration::from_secs(1);
/// First and longest pause between two looks whether a program has ended. One that has closed its
/// output ends within a moment, or means to stay.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Where programs of the system are, on every distribution. Our own path may lack them.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where a program of the system is, if it is there.
#[must_use]
pub fn of_system(program: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Whether it says that it succeeded.
    pub success: bool,
    /// How it ended.
    pub status: ExitStatus,
    /// Its answer.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// The line of its complaints that tells most, without these `openings`, fit to be shown.
    #[must_use]
    pub fn complaint(&self, openings: &[&str]) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        // Without a home directory, as in an agent that systemd starts, Docker first warns of its
        // own configuration file.
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.to_lowercase().starts_with("warning"));
        let Some(mut line) = line else {
            return format!("it said nothing and ended with {}", self.status);
        };
        for opening in openings {
            line = line.strip_prefix(opening).unwrap_or(line);
        }
        escape::bounded_line(line, SAID_MAX)
    }
}

/// A program that did not end as programs do.
#[derive(Debug)]
pub enum Failure {
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
/// caller loses interest and drops the future. It gets `input`, as far as it reads it.
///
/// # Errors
/// See [`Failure`]. A program that says that it failed is none.
pub async fn run(
    program: &Path,
    arguments: impl Iterator<Item = &OsStr>,
    input: &[u8],
    deadline: Instant,
) -> Result<Finished, Failure> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command, input, deadline).await
}

/// The same for a program that needs more than arguments, such as an environment.
///
/// # Errors
/// As [`run`].
pub async fn run_command(
    mut command: Command,
    input: &[u8],
    deadline: Instant,
) -> Result<Finished, Failure> {
    command.process_group(0);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let leader = start(&mut command).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::NotFound,
        _ => Failure::Start(error),
    })?;
    let mut group = Group { leader: Some(leader) };
    let result = match timeout_at(deadline, group.finish(input)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::TimedOut),
    };
    if result.is_err() {
        group.kill();
        let _ = timeout(REAP_MAX, group.end()).await;
    }
    result
}

/// The same for a thread that may block, and that is not within a runtime of tokio.
///
/// # Errors
/// As [`run`].
pub fn run_blocking<'a>(
    program: &Path,
    arguments: impl Iterator<Item = &'a OsStr>,
    input: &[u8],
    timeout: Duration,
) -> Result<Finished, Failure> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().build().map_err(Failure::Start)?;
    runtime.block_on(async { run(program, arguments, input, Instant::now() + timeout).await })
}

/// Starts a program on which signals act. It inherits the mask of the thread that starts it, and in
/// a Mesos process our threads block all signals: one does not for this moment, in which it may be
/// the one that runs a handler of Mesos.
fn start(command: &mut Command) -> io::Result<Child> {
    let blocked = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let child = command.spawn();
    if let Err(error) = blocked.thread_set_mask() {
        log::warn!("block the signals of a thread again: {error}");
    }
    child
}

/// A process group and the child that leads it. Dropped, it is killed and reaped.
struct Group {
    /// `None` once it was reaped. As long as it was not, no other group can have its number, and
    /// [`Group::kill`] cannot hit a stranger.
    leader: Option<Child>,
}

impl Group {
    /// Reads to the end of the output, and looks for the end of the program afterwards.
    async fn finish(&mut self, input: &[u8]) -> Result<Finished, Failure> {
        let (stdin, stdout, stderr) = match &mut self.leader {
            Some(leader) => (leader.stdin.take(), leader.stdout.take(), leader.stderr.take()),
            None => (None, None, None),
        };
        let stdin = write(stdin.map(OwnedFd::from), input);
        let stdout = read(stdout.map(OwnedFd::from), STDOUT_MAX);
        let stderr = read(stderr.map(OwnedFd::from), STDERR_MAX);
        let ((), stdout, stderr) = tokio::try_join!(stdin, stdout, stderr)?;
        let status = self.end().await.map_err(Failure::Lost)?;
        Ok(Finished { success: status.success(), status, stdout, stderr })
    }

    /// Waits until the leader has ended, and reaps it.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        let (mut pause, longest) = PAUSE;
        loop {
            if let Some(status) = self.try_reap()? {
                return Ok(status);
            }
            sleep(pause).await;
            pause = longest.min(2 * pause);
        }
    }

    /// Reaps the leader if it has ended.
    fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(leader) = &mut self.leader else {
            return Err(io::Error::other("it was waited for before"));
        };
        let result = leader.try_wait();
        // After an error as well: somebody else has reaped it, and its number may be anybody's.
        if !matches!(result, Ok(None)) {
            self.leader = None;
        }
        result
    }

    fn kill(&self) {
        let id = self.leader.as_ref().map(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It fails only if all of them have ended.
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
            reap_apart(leader);
        }
    }
}

/// Reaps a killed program on a thread of its own, which ends with it. Not in a task: this may be
/// the shutdown of the runtime, while the process that we are part of lives on.
fn reap_apart(mut killed: Child) {
    let thread = thread::Builder::new().name("overlay-reaper".to_owned());
    if let Err(error) = thread.spawn(move || killed.wait()) {
        log::warn!("start a thread that reaps a killed program: {error}: it stays as a zombie");
    }
}

async fn write(sink: Option<OwnedFd>, content: &[u8]) -> Result<(), Failure> {
    if let Some(sink) = sink {
        let mut sink = pipe::Sender::from_owned_fd(sink).map_err(Failure::Lost)?;
        // A program that does not read all of it says why, or has heard enough.
        let _ = sink.write_all(content).await;
    }
    Ok(())
}

async fn read(source: Option<OwnedFd>, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    if let Some(source) = source {
        let source = pipe::Receiver::from_owned_fd(source).map_err(Failure::Lost)?;
        let mut source = source.take(limit + 1);
        let read = source.read_to_end(&mut content).await.map_err(Failure::Lost)?;
        if u64::try_from(read).is_ok_and(|read| read > limit) {
            return Err(Failure::TooMuchOutput);
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A shell script, and a directory for what it writes.
    struct Script(tempfile::TempDir);

    impl Script {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Runs `script`, to which `$0` is the directory.
        async fn run(&self, script: &str, timeout: Duration) -> Result<Finished, Failure> {
            let arguments = ["-c".as_ref(), script.as_ref(), self.0.path().as_os_str()];
            run(Path::new("/bin/sh"), arguments.into_iter(), b"", Instant::now() + timeout).await
        }

        /// What it wrote into the file `name`, when it has.
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

    /// A child of ours is gone without a trace: it is no zombie either.
    #[expect(clippy::disallowed_methods, reason = "it waits where there may be no runtime")]
    fn assert_reaped(pid: &str) {
        for _ in 0..1000 {
            if !process(pid).exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it is still there: {}", fs::read_to_string(process(pid)).unwrap_or_default());
    }

    /// A child of a child has ended; who reaps it is not our business.
    async fn assert_ended(pid: &str) {
        for _ in 0..1000 {
            let stat = fs::read_to_string(process(pid)).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it lives on: {pid}");
    }

    #[tokio::test]
    async fn what_a_program_writes_and_how_it_ends_is_told() {
        let finished = Script::new().run("echo out; echo err >&2; exit 7", LONG).await.unwrap();
        assert_eq!(
            (finished.stdout.as_slice(), finished.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!((finished.success, finished.status.code()), (false, Some(7)));
        let finished = Script::new().run("cat; kill -9 $$", LONG).await.unwrap();
        assert_eq!((finished.stdout.len(), finished.status.code()), (0, None));
    }

    #[test]
    fn a_program_gets_what_it_is_to_read_and_may_leave_it() {
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
    async fn a_program_that_closes_its_output_is_waited_for_until_the_deadline() {
        let script = Script::new();
        let ends = "exec >&- 2>&-; sleep 0.2; exit 7";
        assert_eq!(script.run(ends, LONG).await.unwrap().status.code(), Some(7));
        let stays = r#"exec >&- 2>&-; echo $$ >"$0/pid"; sleep 1000"#;
        let result = script.run(stays, Duration::from_millis(500)).await;
        assert!(matches!(result, Err(Failure::TimedOut)), "{result:?}");
        assert_reaped(&script.written("pid").await);
    }

    #[tokio::test]
    async fn a_child_that_outlives_the_program_and_holds_its_output_is_killed() {
        let script = Script::new();
        let leaves = r#"echo $$ >"$0/pid"; (sleep 1000 & echo $! >"$0/grandchild")"#;
        let result = script.run(leaves, Duration::from_millis(500)).await;
        assert!(matches!(result, Err(Failure::TimedOut)), "{result:?}");
        assert_reaped(&script.written("pid").await);
        assert_ended(&script.written("grandchild").await).await;
    }

    #[tokio::test]
    async fn a_flood_is_killed_and_reaped() {
        for flood in [r#"echo $$ >"$0/pid"; exec yes"#, r#"echo $$ >"$0/pid"; exec yes >&2"#] {
            let script = Script::new();
            let result = script.run(flood, LONG).await;
            assert!(matches!(result, Err(Failure::TooMuchOutput)), "{result:?}");
            assert_reaped(&script.written("pid").await);
        }
    }

    const HANG: &str = r#"sleep 1000 & echo $! >"$0/grandchild"; echo $$ >"$0/pid"; wait"#;

    #[tokio::test]
    async fn nothing_is_left_of_a_call_that_is_given_up() {
        let script = Script::new();
        tokio::select! {
            result = script.run(HANG, LONG) => panic!("{result:?}"),
            _ = script.written("pid") => {}
        }
        assert_reaped(&script.written("pid").await);
        assert_ended(&script.written("grandchild").await).await;
    }

    #[test]
    fn nothing_is_left_when_the_runtime_ends() {
        let script = std::sync::Arc::new(Script::new());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let call = std::sync::Arc::clone(&script);
        runtime.spawn(async move { call.run(HANG, LONG).await });
        let pid = runtime.block_on(script.written("pid"));
        drop(runtime);
        assert_reaped(&pid);
    }

    /// What this thread makes of signals: blocked, ignored, caught. The thread that runs the tests
    /// blocks all of them while it starts another one.
    fn signals() -> Vec<String> {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines =
            status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
        lines.filter(|line| !line.starts_with("SigPnd")).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn our_signals_are_as_before_and_the_program_has_its_own() {
        let before = signals();
        // The test program ignores SIGPIPE, as a Mesos process does.
        let ignored = before.iter().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << 12), 1 << 12);
        let finished = Script::new().run("kill -PIPE $$; echo survived", LONG).await.unwrap();
        assert_eq!(finished.stdout, b"");
        let hang = Script::new().run("sleep 1000", Duration::from_millis(50)).await;
        assert!(matches!(hang, Err(Failure::TimedOut)), "{hang:?}");
        assert_eq!(signals(), before);
    }

    #[tokio::test]
    async fn a_program_is_not_deaf_where_we_are() {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).unwrap();
        let finished = Script::new().run("kill -TERM $$; echo survived", LONG).await.unwrap();
        let after = SigSet::thread_get_mask().unwrap();
        before.thread_set_mask().unwrap();
        assert_eq!((finished.stdout.as_slice(), finished.status.code()), (&b""[..], None));
        assert!(after.contains(nix::sys::signal::SIGTERM), "it is blocked again");
    }
}

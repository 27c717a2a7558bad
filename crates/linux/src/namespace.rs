//! Runs functions in other network namespaces. A network namespace belongs to a thread, so each
//! function gets a thread that ends afterwards.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, setns};

/// Calls `act` on a thread in the namespace.
///
/// # Errors
/// When the thread cannot enter the namespace.
pub(crate) fn in_namespace<T: Send>(
    namespace: &File,
    act: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    run_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(act())
    })
}

/// Calls `act` on a thread of its own.
///
/// # Errors
/// When `act` fails, or the thread cannot be started.
pub(crate) fn run_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("overlay-netns".to_owned());
        let thread = builder.spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

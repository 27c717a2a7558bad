//! Where Mesos calls us: a panic must not cross, since it would end mesos-master or mesos-agent.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

/// Runs `work`. If it panics, the log says so (see [`log_panics`]) and the result is `otherwise`.
pub(super) fn guarded<T>(doing: &'static str, otherwise: T, work: impl FnOnce() -> T) -> T {
    // What a panic leaves half done is a queue or a counter, which parking_lot's locks do not
    // poison, and whose worst state is a lost message.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("{doing}: it panicked, which is a defect: Mesos goes on");
        otherwise
    })
}

/// Lets panics go to the log, where an operator of Mesos looks, instead of to stderr. The hook is
/// that of our own copy of the standard library: it changes nothing for anybody else in the
/// process.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log::error!("{}", describe(panic))));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name").to_owned();
    format!("a panic{place} in thread {thread}: {}", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_guard() {
        assert_eq!(guarded("test", 1, || 2), 2);
        assert_eq!(guarded("test", 1, || panic!("boom")), 1);
    }
}

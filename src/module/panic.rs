//! Catches panics where Mesos calls the module: a panic would end mesos-master or mesos-agent.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

/// Runs `work`. If it panics, the panic is logged (see [`log_panics`]) and `fallback` is returned.
pub(super) fn guarded<T>(action: &'static str, fallback: T, work: impl FnOnce() -> T) -> T {
    // A panic may leave a queue or a counter half changed. The locks of parking_lot are not
    // poisoned, and the worst effect is a lost message.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("{action}: panicked, which is a defect: Mesos continues");
        fallback
    })
}

/// Sends panics to the log of Mesos instead of stderr. The hook belongs to this library's copy of
/// the standard library, so other code in the process is not affected.
#[expect(clippy::disallowed_methods, reason = "the hook of this library's copy of std")]
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
    let location = panic.location().map_or_else(String::new, |location| format!(" at {location}"));
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name").to_owned();
    format!("a panic{location} in thread {thread}: {}", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_caught_and_fallback_returned() {
        assert_eq!(guarded("test", 1, || 2), 2);
        assert_eq!(guarded("test", 1, || panic!("boom")), 1);
    }
}

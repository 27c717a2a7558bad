//! Sends panics to the log.

use std::panic::PanicHookInfo;

/// Sends panics to the log instead of stderr: the hook of the standard library would block a thread
/// while nobody reads stderr. In a Mesos process, the hook belongs to this library's copy of the
/// standard library, so other code in the process is not affected.
#[expect(clippy::disallowed_methods, reason = "the hook of this program, or of a library's std")]
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = describe(panic);
        if log::log_enabled!(log::Level::Error) {
            log::error!("{text}");
        } else {
            super::print_to_stderr(&text);
        }
    }));
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

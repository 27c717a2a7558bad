//! Catches panics where Mesos calls the module: a panic would end mesos-master or mesos-agent.

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use crate::logging::log_panics;

/// Runs `work`. If it panics, the panic is logged (see [`log_panics`]) and `fallback` is returned.
pub(super) fn guarded<T>(action: &'static str, fallback: T, work: impl FnOnce() -> T) -> T {
    // A panic may leave a queue or a counter half changed. The locks of parking_lot are not
    // poisoned, and the worst effect is a lost message.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("{action}: panicked, which is a defect: Mesos continues");
        fallback
    })
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

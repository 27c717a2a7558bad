//! Returns unused memory to the system.

/// Returns memory that was freed to the system. A job with thousands of peers frees several MiB,
/// which glibc keeps for later allocations, in one pool for each thread (`malloc_trim(3)`).
/// Does nothing in Mesos, whose memory may be large, and without glibc.
pub(super) fn release_unused() {
    #[cfg(all(target_env = "gnu", not(feature = "mesos")))]
    #[expect(unsafe_code, reason = "only the C library can release its memory")]
    // SAFETY: malloc_trim takes no pointer, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

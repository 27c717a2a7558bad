//! The deb and the rpm, and the units in them, in Debian systems that are made for the tests from
//! the machine's own sources of apt.
//!
//! The tests need root, Debian, mmdebstrap and dpkg-dev. Run them with `tests/run packages`.

#![expect(clippy::unwrap_used, reason = "an unexpected result must fail the test")]

mod booted;
mod lifecycle;
mod services;
mod system;
mod units;

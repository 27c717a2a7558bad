//! ZooKeeper sessions, and the election among masters.
//!
//! - [`session`]: a session with credentials, request timeouts and explained errors
//! - [`detector`]: detection of the leading master, and the election among masters

pub mod detector;
pub mod session;

//! Sessions between agents and masters, and the seals of their messages. Pure: no IO, no clock.
//!
//! ```text
//!   agent                                                           master
//!     AuthenticateAgent: principal, nonce ───────────────────────────▶
//!     ◀─────────────── AuthenticationChallenge: nonce, session, cookie
//!     RegisterAgent, sealed, with both nonces ───────────────────────▶  opens the session
//!     ◀────────────────────────── every later message is sealed ─────▶
//! ```
//! The key of a session depends on the secret, the principal and both nonces, and each direction has
//! its own key. A seal has the session, a counter and the HMAC-SHA-256 of the name of the message,
//! the session, the counter and the SHA-256 of the content. No address is covered: NAT may change
//! it. The receiver accepts only rising counters, so a message counts once, and lost messages do not
//! matter.
//!
//! The master keeps nothing of a challenge. The cookie tells it later that it made the challenge, for
//! this agent and this request. So neither a flood of requests nor a forged request affects a
//! session. A session replaces the former session of its agent only if its number is higher, so an
//! old opening cannot be replayed.
//!
//! Nobody tells an agent that the master has lost its session: the agent begins another one if its
//! registration is not answered, or if its link to the master ends.

mod agent;
mod keys;
mod master;
#[cfg(test)]
mod tests;

pub use agent::{AgentSession, AuthenticationStatus};
pub use keys::ContentDigest;
pub use master::MasterSessions;

//! The two kinds of modules.

use std::fmt;
use std::sync::atomic::AtomicBool;

use overlay_types::addr::{AGENT_PROCESS, MASTER_PROCESS};

/// The kind of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The master module.
    Master,
    /// The agent module.
    Agent,
}

impl Kind {
    /// Returns the ID of the module's libprocess process.
    #[must_use]
    pub const fn process(self) -> &'static str {
        match self {
            Self::Master => MASTER_PROCESS,
            Self::Agent => AGENT_PROCESS,
        }
    }

    /// Returns the flag that is set while this process has a module of this kind.
    pub(super) fn claimed(self) -> &'static AtomicBool {
        static MASTER: AtomicBool = AtomicBool::new(false);
        static AGENT: AtomicBool = AtomicBool::new(false);
        match self {
            Self::Master => &MASTER,
            Self::Agent => &AGENT,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "overlay master",
            Self::Agent => "overlay agent",
        })
    }
}

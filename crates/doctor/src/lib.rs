//! Diagnosis of a host and its tunnels.
//!
//! [`observe`] reads the state of the host and changes nothing. [`check`] derives findings from
//! that observation, which is plain data. Kernel and firewall support is tested in a temporary
//! network namespace. Only [`probe`] sends packets, to the peers that the kernel knows.

mod cause;
mod configuration;
mod dataplane;
mod finding;
mod host;
mod kernel_support;
mod local_checks;
pub mod observation;
mod observe;
mod overlay;
mod probe;
mod report;
mod rules;
#[cfg(test)]
mod tests;
mod tunnel;

pub use finding::{Finding, Severity};
use observation::Observation;
pub use observe::{QueryResults, observe};
pub use probe::check as probe;
pub use report::{Entry, Report};

/// Returns the findings of all checks, in the order of the checks.
#[must_use]
pub fn check(observation: &Observation) -> Vec<Finding> {
    let mut findings = configuration::check(observation);
    findings.extend(host::check(observation));
    findings.extend(overlay::check(observation));
    findings
}

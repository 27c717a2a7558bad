//! The authentication realm of Mesos for an endpoint.
//!
//! The names come from `src/master/constants.hpp` and `src/slave/constants.hpp` of Mesos 1.4 to
//! 1.12. No installed header contains them.

use std::path::Path;

use super::kind::Kind;

/// The access that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Returns the realm of an endpoint of a module in the Mesos program `executable`.
///
/// Mesos protects a realm only in the program to which the realm belongs. DC/OS loads both modules
/// into mesos-master, where a realm of the agent would leave the endpoint open. So the program
/// determines the realm. In a program of another name, such as mesos-local, the module determines
/// the realm.
pub(super) fn realm(kind: Kind, access: Access, executable: Option<&Path>) -> &'static str {
    let name = executable.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let is_master = if name.contains("mesos-master") {
        true
    } else if name.contains("mesos-agent") || name.contains("mesos-slave") {
        false
    } else {
        kind == Kind::Master
    };
    match (is_master, access) {
        (true, Access::Read) => "mesos-master-readonly",
        (true, Access::Write) => "mesos-master-readwrite",
        (false, Access::Read) => "mesos-agent-readonly",
        (false, Access::Write) => "mesos-agent-readwrite",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_determines_realm_before_module() {
        let realm = |kind, path: &str| realm(kind, Access::Read, Some(Path::new(path)));
        assert_eq!(realm(Kind::Master, "/usr/sbin/mesos-master"), "mesos-master-readonly");
        assert_eq!(realm(Kind::Agent, "/usr/sbin/mesos-master"), "mesos-master-readonly");
        assert_eq!(realm(Kind::Agent, "/usr/sbin/mesos-agent"), "mesos-agent-readonly");
        assert_eq!(realm(Kind::Agent, "/src/.libs/lt-mesos-slave"), "mesos-agent-readonly");
        assert_eq!(realm(Kind::Agent, "/usr/bin/mesos-local"), "mesos-agent-readonly");
        assert_eq!(realm(Kind::Master, "/usr/bin/mesos-local"), "mesos-master-readonly");
        assert_eq!(super::realm(Kind::Master, Access::Write, None), "mesos-master-readwrite");
    }
}

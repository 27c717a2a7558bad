//! Which of Mesos' authentication realms protects an endpoint.
//!
//! The names are those of `src/master/constants.hpp` and `src/slave/constants.hpp` of Mesos, the
//! same from 1.4 to 1.12. They are not in an installed header.

use std::path::Path;

use super::Kind;

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The realm of an endpoint of the part `kind` in the program at `executable`.
///
/// A realm is guarded only in the program that it belongs to: one of the agent's in mesos-master,
/// where DC/OS has both modules, would leave the endpoint open. So the program decides; one of
/// another name, such as mesos-local, which guards neither, gets the realm of the part.
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
    fn the_program_decides_and_then_the_part() {
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

//! Where the hosts of the demo are: namespaces that only this process has. Nothing of them has a
//! name or a file anywhere, so the kernel removes all of it when the process ends, however it ends.
//!
//! Root gets a network and a view of the file system of its own; anybody else, who may not have
//! these, gets a user namespace besides, in which it is root. Temporary files are on a file system
//! in memory that only this process sees.
//!
//! A process that has half entered cannot go back, and where a security module has its say it may
//! enter and then be allowed nothing. So a process of its own tries it out first.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{getegid, geteuid};

use crate::addr::{DeviceName, Mac, Vni};
use crate::cli::Failure;
use crate::dataplane::{Dataplane, Wiring};
use crate::tunnel::{Desired, Local, PORT_DEFAULT};

/// This program, however it was called.
const SELF: &str = "/proc/self/exe";
/// How a command line asks to try it out.
pub(super) const PROBE: &str = "--probe";

/// Why there cannot be hosts here, in a line with what to do about it; `None` if there can be. To
/// be called before there is another thread.
pub(super) fn obstacle() -> Option<String> {
    let mut probe = Command::new(SELF);
    probe.arg0("mesos-overlay").args(["--log", "off", "demo", PROBE]).stdin(Stdio::null());
    match probe.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("mesos-overlay: ");
            let why = if said.is_empty() { output.status.to_string() } else { said.to_owned() };
            Some(why.replace('\n', ": "))
        }
        Err(error) => Some(format!("start {SELF}: {error}: mount /proc")),
    }
}

/// Tries out what the demo needs, in this process, which is of no use afterwards.
pub(super) fn probe() -> Result<(), Failure> {
    enter()?;
    let make = || {
        let container = Namespace::new().map_err(|error| format!("make a namespace: {error}"))?;
        let mut wiring = Wiring::open().map_err(|error| error.to_string())?;
        let wired = wiring
            .set_up(&device("lo"), None)
            .and_then(|()| wiring.add_bridge(&device("bridge")))
            .and_then(|()| wiring.add_pair(&device("port"), &device("eth0"), container.as_fd()))
            .and_then(|()| wiring.set_master(&device("port"), &device("bridge")));
        let remedy = "load the kernel modules bridge and veth";
        wired.map_err(|error| format!("{error}: {remedy}"))?;
        let tunnel = Arc::new(Desired { locals: vec![any_tunnel()], ..Desired::default() });
        let report = Dataplane::open().and_then(|mut dataplane| dataplane.verify(&tunnel));
        let report = report.map_err(|error| error.to_string())?;
        report.faults().next().map_or(Ok(()), |fault| Err(fault.reason))
    };
    make().map_err(Failure::new)
}

/// A tunnel that leads nowhere.
fn any_tunnel() -> Local {
    Local {
        device: DeviceName::vtep(Vni::DEFAULT),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: Mac::from([0x70, 0xb3, 0xd5, 0, 0, 1]),
        underlay: Ipv4Addr::LOCALHOST.into(),
        mtu: None,
        containers_mtu: None,
        ip: None,
        ip6: None,
    }
}

/// A device of the demo's own.
pub(super) fn device(name: &str) -> DeviceName {
    name.parse().expect("the demo's names are names of devices")
}

/// Moves this process to where hosts can be made. To be called before there is another thread,
/// since that would stay behind.
pub(super) fn enter() -> Result<(), Failure> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let (user, group) = (geteuid(), getegid());
    match unshare(own) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|errno| refused(&errno.into()))?;
            // Without the first a group must not be mapped by somebody who is not root.
            write_of_self("setgroups", "deny")?;
            write_of_self("uid_map", &format!("0 {} 1", user.as_raw()))?;
            write_of_self("gid_map", &format!("0 {} 1", group.as_raw()))?;
        }
        Err(errno) => return Err(refused(&errno.into())),
    }
    let mount_failed = |what: String| {
        move |error: rustix::io::Errno| {
            Failure::new(format!("{what}: {error}: run it as root, outside of containers"))
        }
    };
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(mount_failed("keep mounts to ourselves".to_owned()))?;
    let folder = std::env::temp_dir();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("mesos-overlay-demo", &folder, "tmpfs", flags, None)
        .map_err(mount_failed(format!("mount a file system in memory at {}", folder.display())))
}

fn write_of_self(name: &str, content: &str) -> Result<(), Failure> {
    match fs::write(format!("/proc/self/{name}"), content) {
        Ok(()) => Ok(()),
        // Kernels before 3.19 have none, and do not ask for it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name == "setgroups" => Ok(()),
        Err(error) => Err(refused(&error)),
    }
}

fn refused(error: &io::Error) -> Failure {
    let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    Failure::new(format!("make a network namespace: {error}: {}", remedy(setting)))
}

/// What to do where namespaces are refused. `setting` reads below `/proc/sys`.
fn remedy(setting: impl Fn(&str) -> Option<String>) -> String {
    // Who refuses, with which value, and which value does not.
    let switches = [
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "10000"),
        ("user/max_net_namespaces", "0", "10000"),
    ];
    let is_off = |(name, off, _): &&(&str, &str, &str)| {
        setting(name).is_some_and(|value| value.trim() == *off)
    };
    match switches.iter().find(is_off) {
        Some((name, _, on)) => {
            format!("run it as root, or after 'sysctl -w {}={on}'", name.replace('/', "."))
        }
        None => "run it as root, outside of containers that forbid it".to_owned(),
    }
}

/// A network namespace without a name: it lasts as long as this or a process in it.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// A new one, with a loopback device that is up.
    pub(super) fn new() -> io::Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut wiring = Wiring::open().map_err(io::Error::other)?;
            wiring.set_up(&device("lo"), None).map_err(io::Error::other)?;
            Ok(Self(fs::File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Moves the calling thread, and the threads and programs that it starts, into it.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// What `act` returns, done by a thread in it.
    pub(super) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            self.enter()?;
            Ok(act())
        })
    }

    /// Where other programs find it as long as this process is there.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Namespaces are of threads: one that ends takes its own with it.
fn on_a_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("overlay-demo".to_owned());
        let thread = thread.spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the demo panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_forbids_namespaces_is_named() {
        let with = |name: &'static str, value: &'static str| {
            remedy(move |asked| (asked == name).then(|| format!("{value}\n")))
        };
        assert_eq!(
            with("kernel/unprivileged_userns_clone", "0"),
            "run it as root, or after 'sysctl -w kernel.unprivileged_userns_clone=1'"
        );
        assert_eq!(
            with("kernel/apparmor_restrict_unprivileged_userns", "1"),
            "run it as root, or after 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'"
        );
        assert_eq!(
            with("user/max_user_namespaces", "0"),
            "run it as root, or after 'sysctl -w user.max_user_namespaces=10000'"
        );
        let unknown = "run it as root, outside of containers that forbid it";
        assert_eq!(with("user/max_user_namespaces", "100"), unknown);
        assert_eq!(remedy(|_| None), unknown);
    }
}

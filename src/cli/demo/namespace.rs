//! The namespaces of the demo. They have neither names nor files, so the kernel removes them when
//! the process ends, even by SIGKILL.
//!
//! For root, the process creates a network namespace and a mount namespace. For another user, the
//! process also creates a user namespace, in which it is root. Temporary files are on a file system
//! in memory that only this process sees.
//!
//! A process cannot leave its new namespaces after a failure. A security module may also permit the
//! namespaces, and then forbid every operation in them. So a subprocess tests both first.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use overlay_linux::dataplane::{Dataplane, LinkBuilder};
use overlay_types::addr::{DeviceName, Mac, Vni};
use overlay_types::tunnel::{Desired, PORT_DEFAULT, VxlanDevice};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{getegid, geteuid};

use crate::cli::Failure;

/// The path of the executable of this process.
const SELF: &str = "/proc/self/exe";
/// The flag that runs only [`probe`].
pub(super) const PROBE: &str = "--probe";

/// Returns why hosts are not possible here, with the remedy; `None` if they are. Call this before
/// other threads start.
pub(super) fn obstacle() -> Option<String> {
    let mut probe = Command::new(SELF);
    probe.arg0("mesos-overlay").args(["--log", "off", "demo", PROBE]).stdin(Stdio::null());
    match probe.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let error = stderr.trim().trim_start_matches("mesos-overlay: ");
            let reason =
                if error.is_empty() { output.status.to_string() } else { error.to_owned() };
            Some(reason.replace('\n', ": "))
        }
        Err(error) => Some(format!("start {SELF}: {error}: mount /proc")),
    }
}

/// Tests everything that the demo needs. The process cannot be used for anything else afterwards.
pub(super) fn probe() -> Result<(), Failure> {
    enter()?;
    test_dataplane().map_err(Failure::new)
}

fn test_dataplane() -> Result<(), String> {
    let container = Namespace::new().map_err(|error| format!("create a namespace: {error}"))?;
    let mut links = LinkBuilder::open().map_err(|error| error.to_string())?;
    let built = links
        .set_up(&device("lo"), None)
        .and_then(|()| links.add_bridge(&device("bridge")))
        .and_then(|()| links.add_veth_pair(&device("port"), &device("eth0"), container.as_fd()))
        .and_then(|()| links.set_master(&device("port"), &device("bridge")));
    let remedy = "load the kernel modules bridge and veth";
    built.map_err(|error| format!("{error}: {remedy}"))?;
    let tunnel = Arc::new(Desired { vxlan_devices: vec![test_tunnel()], ..Desired::default() });
    let report = Dataplane::open().and_then(|mut dataplane| dataplane.verify(&tunnel));
    let report = report.map_err(|error| error.to_string())?;
    report.faults().next().map_or(Ok(()), |fault| Err(fault.reason))
}

/// Returns a tunnel without peers, for the test.
fn test_tunnel() -> VxlanDevice {
    VxlanDevice {
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

/// Returns the name of a device of the demo.
pub(super) fn device(name: &str) -> DeviceName {
    name.parse().expect("the demo uses valid device names")
}

/// Moves this process into namespaces in which it can create hosts. Call this before other threads
/// start, since those would keep their namespaces.
pub(super) fn enter() -> Result<(), Failure> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let (user, group) = (geteuid(), getegid());
    match unshare(own) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|errno| refused(&errno.into()))?;
            // The kernel lets a user map a group only after `setgroups` is denied.
            write_proc_self("setgroups", "deny")?;
            write_proc_self("uid_map", &format!("0 {} 1", user.as_raw()))?;
            write_proc_self("gid_map", &format!("0 {} 1", group.as_raw()))?;
        }
        Err(errno) => return Err(refused(&errno.into())),
    }
    let mount_failed = |action: String| {
        move |error: rustix::io::Errno| {
            Failure::new(format!("{action}: {error}: run it as root, outside of containers"))
        }
    };
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(mount_failed("make mounts private".to_owned()))?;
    let folder = std::env::temp_dir();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("mesos-overlay-demo", &folder, "tmpfs", flags, None)
        .map_err(mount_failed(format!("mount a file system in memory at {}", folder.display())))
}

fn write_proc_self(name: &str, content: &str) -> Result<(), Failure> {
    match fs::write(format!("/proc/self/{name}"), content) {
        Ok(()) => Ok(()),
        // Kernels before 3.19 have no such file, and do not require it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name == "setgroups" => Ok(()),
        Err(error) => Err(refused(&error)),
    }
}

fn refused(error: &io::Error) -> Failure {
    let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    Failure::new(format!("create a network namespace: {error}: {}", remedy(setting)))
}

/// Returns the remedy where namespaces are forbidden. `setting` reads a file below `/proc/sys`.
fn remedy(setting: impl Fn(&str) -> Option<String>) -> String {
    // The setting, the value that forbids namespaces, and the value that permits them.
    let switches = [
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "10000"),
        ("user/max_net_namespaces", "0", "10000"),
    ];
    let forbids = |(name, forbidding, _): &&(&str, &str, &str)| {
        setting(name).is_some_and(|value| value.trim() == *forbidding)
    };
    match switches.iter().find(forbids) {
        Some((name, _, permitting)) => {
            format!("run it as root, or after 'sysctl -w {}={permitting}'", name.replace('/', "."))
        }
        None => "run it as root, outside of containers that forbid it".to_owned(),
    }
}

/// A network namespace without a name. The kernel removes it when this descriptor is closed and no
/// process is in it.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// Creates a network namespace with an active loopback device.
    pub(super) fn new() -> io::Result<Self> {
        run_on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut links = LinkBuilder::open().map_err(io::Error::other)?;
            links.set_up(&device("lo"), None).map_err(io::Error::other)?;
            Ok(Self(fs::File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Moves the calling thread into the namespace. Threads and subprocesses that it starts follow.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `action` on a thread in the namespace.
    pub(super) fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        run_on_thread(|| {
            self.enter()?;
            Ok(action())
        })
    }

    /// Returns a path for other programs. It exists as long as this process.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `action` on a new thread, since the namespace is a property of the thread.
fn run_on_thread<T: Send>(action: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("overlay-demo".to_owned());
        let thread = thread.spawn_scoped(scope, action)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the demo panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedy_names_forbidding_setting() {
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

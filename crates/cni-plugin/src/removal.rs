//! Removes a port without the kernel's wait.
//!
//! Within about 2 ms the kernel takes both ends of a port down, and removes them from the list of
//! devices. Then it waits about 20 ms until no processor uses their memory (`rcu_barrier` in
//! `netdev_run_todo`), and only then it answers the request. DEL ends when the ends are gone from
//! the list, and a child process waits for the answer.

use std::fs::File;
use std::process;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork};
use overlay_cni::PluginError;
use overlay_linux::dataplane::HostSide;
use overlay_types::addr::DeviceName;

use crate::failure;

/// First and longest interval of the looks at the list of devices. They need no lock of the kernel.
/// Where many containers end at once, a request waits for the others.
const INTERVAL: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(8));

/// Removes a port, and with it the interface of the container. Returns whether it existed.
///
/// # Errors
/// When the kernel refuses.
#[expect(clippy::disallowed_methods, reason = "no other code runs meanwhile")]
pub(crate) fn remove_port(host: &mut HostSide, name: &DeviceName) -> Result<bool, PluginError> {
    if host.port(name).map_err(|error| failure::io(&error))?.is_none() {
        return Ok(false);
    }
    let child = start(name);
    let (mut interval, longest) = INTERVAL;
    while let Ok(child) = child
        && is_running(child)
    {
        if if_nametoindex(name.as_str()) == Err(Errno::ENODEV) {
            return Ok(true);
        }
        thread::sleep(interval);
        interval = longest.min(interval * 2);
    }
    // Without a child, or after one that the kernel has refused, this request has the error.
    host.remove_port(name).map_err(|error| failure::io(&error))?;
    Ok(true)
}

/// Starts the child process.
fn start(name: &DeviceName) -> Result<Pid, Errno> {
    #[expect(unsafe_code, reason = "the standard library has no fork")]
    // SAFETY: the plugin has one thread, so no other thread holds a lock in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => run_child(name),
    }
}

/// Sends the request, on a netlink socket of its own, and ends. The caller of the plugin reads the
/// plugin's pipes to their end, so the child closes them first.
#[expect(clippy::exit, reason = "the child must not return into the code of DEL")]
fn run_child(name: &DeviceName) -> ! {
    let null = File::options().read(true).write(true).open("/dev/null");
    let is_detached = null.is_ok_and(|null| {
        dup2_stdin(&null).is_ok() && dup2_stdout(&null).is_ok() && dup2_stderr(&null).is_ok()
    });
    if is_detached && let Ok(mut host) = HostSide::open() {
        let _ = host.remove_port(name);
    }
    process::exit(0)
}

fn is_running(child: Pid) -> bool {
    waitpid(child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
}

//! Docker daemons on the hosts of a cluster.

use std::fs;

use super::daemon::Daemon;
use super::host::{BUSYBOX, Host, output, wait_for};
use super::mesos::{DOCKER, docker_host};

/// The name of an image that contains only busybox and a shell.
pub(crate) const IMAGE: &str = "mesos-overlay-test";

/// Starts a Docker daemon on a host.
pub(crate) fn start_dockerd(host: &Host) -> Daemon {
    let mut command = host.command("/usr/sbin/dockerd");
    command.args(["--config-file", &host.write("daemon.json", "{}")]);
    // The hosts run no systemd, so dockerd manages its control groups. The host removes them.
    command.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent", host.name()]);
    command.args(["--storage-driver=vfs", "--data-root", &host.text("docker/data")]);
    command.args(["--exec-root", &host.text("docker/exec"), "--pidfile", &host.text("docker.pid")]);
    command.args(["--host", &docker_host(host)]);
    let daemon = Daemon::start(host, "dockerd", command);
    wait_for("dockerd answers", || {
        let mut version = host.command(DOCKER);
        version.args(["--host", &docker_host(host), "version"]);
        output(&mut version).status.success().then_some(())
    });
    daemon
}

/// Imports the image into the Docker daemon of a host.
pub(crate) fn import_image(host: &Host) {
    let bin = host.path("image/bin");
    fs::create_dir_all(&bin).expect("a directory");
    for name in ["busybox", "sh"] {
        fs::copy(BUSYBOX, bin.join(name)).expect("busybox is copied");
    }
    host.run_ok("tar", &["-C", &host.text("image"), "-cf", &host.text("image.tar"), "."]);
    host.run_ok(DOCKER, &["--host", &docker_host(host), "import", &host.text("image.tar"), IMAGE]);
}

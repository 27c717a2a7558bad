//! The file that a command writes: a regular file is replaced, and nothing else is. Files that a
//! command reads: a pipe blocks neither a reload nor the end of the process.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread::Builder;

use crate::support::{Master, NETWORK, RunningProcess, TestDir};

/// A work directory with a state.
fn dir_with_state() -> TestDir {
    let dir = TestDir::with_network();
    drop(Master::start(&dir));
    dir
}

fn export(output: &str) -> String {
    format!("export --from file --work-dir work --output {output}")
}

fn make_pipe(dir: &TestDir, name: &str) {
    assert!(Command::new("mkfifo").arg(dir.path(name)).status().unwrap().success());
}

#[test]
fn export_replaces_regular_file_only() {
    let dir = dir_with_state();
    dir.write("old.json", "old");
    fs::set_permissions(dir.path("old.json"), fs::Permissions::from_mode(0o644)).unwrap();
    dir.run(&export("old.json")).success();
    let mode = fs::metadata(dir.path("old.json")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let content = fs::read_to_string(dir.path("old.json")).unwrap();
    assert!(content.contains("mesos-overlay state"), "{content}");

    let _socket = UnixListener::bind(dir.path("socket")).unwrap();
    dir.write("target", "kept");
    symlink("target", dir.path("link")).unwrap();
    symlink("nothing", dir.path("dangling")).unwrap();
    let canonical = fs::canonicalize(dir.path("target")).unwrap();
    for (name, reason) in [
        ("socket", "it is a socket: name a regular file, or - for stdout".to_owned()),
        ("work", "it is a directory: name a regular file, or - for stdout".to_owned()),
        ("link", format!("it is a symbolic link: name the file itself, {}", canonical.display())),
        ("dangling", "it is a symbolic link to nothing: remove it, or name a file".to_owned()),
    ] {
        let error = dir.run(&export(name)).failure();
        assert_eq!(error, format!("mesos-overlay: write {name}: {reason}\n"));
    }
    assert_eq!(fs::read(dir.path("target")).unwrap(), b"kept");
    assert!(fs::symlink_metadata(dir.path("link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(dir.path("socket")).unwrap().file_type().is_socket());
}

#[test]
fn export_writes_into_pipe_and_device() {
    let dir = dir_with_state();
    let expected = dir.run(&export("-")).success();
    assert_eq!(dir.run(&export("/dev/stdout")).success(), expected);
    make_pipe(&dir, "pipe");
    let path = dir.path("pipe");
    let reader = Builder::new().spawn(move || fs::read_to_string(path).unwrap()).unwrap();
    dir.run(&export("pipe")).success();
    assert_eq!(reader.join().unwrap(), expected);
    assert!(fs::symlink_metadata(dir.path("pipe")).unwrap().file_type().is_fifo());
    // The null device, at another path. Only root can create it.
    let node = dir.path("null");
    let made = Command::new("mknod").arg(&node).args(["c", "1", "3"]).output().unwrap();
    if made.status.success() && fs::write(&node, "x").is_ok() {
        dir.run(&export("null")).success();
        assert!(fs::symlink_metadata(node).unwrap().file_type().is_char_device());
    }
}

#[test]
fn configuration_in_pipe_blocks_neither_reload_nor_end() {
    let dir = TestDir::new();
    make_pipe(&dir, "pipe");
    let path = dir.path("pipe");
    let writer = Builder::new().spawn(move || {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all(NETWORK.as_bytes())
    });
    let arguments = "master --config pipe --store memory --listen 127.0.0.1:0";
    let mut master = RunningProcess::start(&dir, arguments);
    let rest = master.expect_log("overlay master at ");
    let address = rest.split(": ").next().unwrap().to_owned();
    writer.unwrap().join().unwrap().unwrap();
    master.send_sighup();
    let reason = "read pipe: it is no regular file, so it cannot be read again: restart the \
                  master, or give it a regular file";
    master.expect_log(reason);
    let output = dir.run(&format!("reload --master {address}")).transcript();
    assert!(output.contains(reason), "{output}");
    let (status, log) = master.terminate();
    assert!(status.success(), "{log}");
}

//! Tests of the host's settings with temporary directories instead of `/etc` and `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use overlay_types::addr::{DeviceName, Vni};
use overlay_types::tunnel::{PORT_DEFAULT, VxlanDevice};

use super::*;

struct TestHost {
    folder: tempfile::TempDir,
}

fn desired(has_ipv6: bool) -> Desired {
    let local = VxlanDevice {
        device: DeviceName::vtep(Vni::DEFAULT),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: "70:B3:D5:80:00:01".parse().unwrap(),
        underlay: "10.0.0.1".parse().unwrap(),
        mtu: None,
        containers_mtu: None,
        ip: "44.128.0.1/16".parse().ok(),
        ip6: "fd01:a::1/64".parse().ok().filter(|_| has_ipv6),
    };
    Desired { vxlan_devices: vec![local], ..Desired::default() }
}

impl TestHost {
    /// A host that accepts router advertisements on eth0 and does not forward.
    fn new(folders: &[&str]) -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        for (name, value) in [
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/sys/net/ipv6/conf/all/forwarding", "0\n"),
            ("proc/sys/net/ipv6/conf/eth0/accept_ra", "1\n"),
            ("proc/sys/net/ipv6/conf/eth1/accept_ra", "0\n"),
            // Bridges of containers, and the defaults of new devices: they stay.
            ("proc/sys/net/ipv6/conf/m-a/accept_ra", "1\n"),
            ("proc/sys/net/ipv6/conf/docker0/accept_ra", "1\n"),
            ("proc/sys/net/ipv6/conf/br-0123456789ab/accept_ra", "1\n"),
            ("proc/sys/net/ipv6/conf/default/accept_ra", "1\n"),
        ] {
            host.write(name, value);
        }
        for folder in folders {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        for process in ["1", "thread-self"] {
            host.set_namespace(process, "namespaces/host");
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sets the network namespace of a process. procfs shows the same file for all processes of a
    /// namespace.
    fn set_namespace(&self, process: &str, namespace: &str) {
        let (file, link) = (self.path(namespace), self.path(&format!("proc/{process}/net/dev")));
        for path in [&file, &link] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&file, "").unwrap();
        let _ = fs::remove_file(&link);
        fs::hard_link(file, link).unwrap();
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn settings(&self) -> HostSettings {
        let paths = HostPaths { etc: self.path("etc"), proc: self.path("proc") };
        HostSettings::with_paths(&self.path("state"), paths)
    }

    /// Returns all files below `/etc` and `/proc`, with their content.
    fn dump(&self) -> BTreeMap<String, String> {
        fn walk(folder: &Path, files: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    walk(&entry.path(), files);
                } else if let Ok(text) = fs::read_to_string(entry.path()) {
                    files.insert(entry.path().display().to_string(), text.trim().to_owned());
                }
            }
        }
        let mut files = BTreeMap::new();
        ["etc", "proc"].iter().for_each(|name| walk(&self.path(name), &mut files));
        files
    }

    /// Returns the changes without the path of the temporary directory.
    fn descriptions(&self, done: Result<Vec<String>, HostError>) -> Vec<String> {
        let root = self.folder.path().display().to_string();
        done.unwrap().iter().map(|text| text.replace(&root, "")).collect()
    }
}

const ALL: [&str; 3] = ["etc/NetworkManager/conf.d", "etc/systemd/network", "etc/sysctl.d"];

#[test]
fn changes_are_made_once_and_restored() {
    let host = TestHost::new(&ALL);
    let before = host.dump();
    let settings = host.settings();
    assert_eq!(
        host.descriptions(settings.apply(&desired(true))),
        [
            "set net/ipv4/ip_forward to 1",
            "set net/ipv6/conf/eth0/accept_ra to 2",
            "set net/ipv6/conf/all/forwarding to 1",
            "write /etc/NetworkManager/conf.d/mesos-overlay.conf",
            "write /etc/systemd/network/00-mesos-overlay.network",
            "write /etc/systemd/networkd.conf.d/mesos-overlay.conf",
            "write /etc/sysctl.d/99-zz-mesos-overlay.conf",
        ]
    );
    assert_eq!(
        fs::read_to_string(host.path("etc/sysctl.d/99-zz-mesos-overlay.conf")).unwrap(),
        "# Written by the agent of mesos-overlay. 'mesos-overlay clean' removes it.\n\
         -net/ipv4/ip_forward = 1\n\
         -net/ipv4/conf/vtep1024/rp_filter = 2\n\
         -net/ipv6/conf/eth0/accept_ra = 2\n\
         -net/ipv6/conf/all/forwarding = 1\n"
    );
    // A restarted agent changes nothing either.
    assert_eq!(host.settings().apply(&desired(true)), Ok(Vec::new()));
    let list = host.descriptions(host.settings().preview_restore());
    let restored = host.settings().restore();
    assert_eq!(restored.failed, []);
    assert_eq!(host.descriptions(Ok(restored.done)), list);
    assert_eq!(list.len(), 7, "{list:?}");
    assert_eq!(host.dump(), before);
    assert!(!host.path("etc/systemd/networkd.conf.d").exists(), "we made the directory");
    assert!(host.path("etc/systemd/network").exists(), "the directory existed before");
    assert_eq!(host.settings().restore(), RestoreResult::default());
}

#[test]
fn unreadable_setting_is_named_and_its_former_value_kept() {
    let host = TestHost::new(&ALL);
    let settings = host.settings();
    settings.apply(&desired(false)).unwrap();
    fs::create_dir_all(host.path("proc/sys/net/ipv4/unreadable")).unwrap();
    let saved = r#"{"ipv4/unreadable":{"before":7,"after":1},"ipv4/ip_forward":{"before":0,"after":1},
        "ipv4/conf/gone/forwarding":{"before":0,"after":1}}"#;
    host.write("state/host-settings.json", saved);
    assert!(settings.preview_restore().is_err());
    let restored = settings.restore();
    let done = host.descriptions(Ok(restored.done));
    assert_eq!(done.last().map(String::as_str), Some("set net/ipv4/ip_forward to 0"));
    let failed: Vec<_> = restored.failed.iter().map(|(change, _)| change.as_str()).collect();
    assert_eq!(failed, ["restore net/ipv4/unreadable"]);
    assert!(settings.has_saved_settings(), "the next run restores it");
}

#[test]
fn failed_restore_is_named_and_rest_continues() {
    let host = TestHost::new(&ALL);
    let settings = host.settings();
    settings.apply(&desired(false)).unwrap();
    // Not even root can write this setting.
    let fixed = "/proc/sys/kernel/cap_last_cap";
    let value = fs::read_to_string(fixed).unwrap();
    std::os::unix::fs::symlink(fixed, host.path("proc/sys/net/ipv4/fixed")).unwrap();
    let saved = format!(
        r#"{{"ipv4/fixed":{{"before":7,"after":{}}},"ipv4/ip_forward":{{"before":0,"after":1}}}}"#,
        value.trim()
    );
    host.write("state/host-settings.json", &saved);
    let restored = settings.restore();
    let done = host.descriptions(Ok(restored.done));
    assert_eq!(done.last().map(String::as_str), Some("set net/ipv4/ip_forward to 0"));
    let (change, error) = &restored.failed[0];
    assert_eq!(change, "set net/ipv4/fixed to 7");
    assert_eq!(
        error.to_string(),
        "set net/ipv4/fixed to 7: Permission denied (os error 13): let the agent write to \
         /proc/sys, or set it with 'sysctl -w net/ipv4/fixed=7', which changes this setting of the \
         host"
    );
    // The saved values stay for the next attempt.
    assert_eq!(fs::read_to_string(host.path("state/host-settings.json")).unwrap(), saved);
}

#[test]
fn drift_is_repaired_and_later_changes_are_kept() {
    let host = TestHost::new(&ALL);
    let settings = host.settings();
    settings.apply(&desired(false)).unwrap();
    host.write("proc/sys/net/ipv4/ip_forward", "0");
    host.write("etc/sysctl.d/99-zz-mesos-overlay.conf", "");
    // An empty file has no mark, so it is foreign: an operator may disable our file that way.
    assert!(matches!(settings.apply(&desired(false)), Err(HostError::Foreign { .. })));
    assert_eq!(
        settings
            .apply(&desired(false))
            .unwrap_err()
            .to_string()
            .replace(&host.folder.path().display().to_string(), ""),
        "write /etc/sysctl.d/99-zz-mesos-overlay.conf: a foreign file exists there, so it is \
         left alone: rename it, or set host_settings to false"
    );
    fs::remove_file(host.path("etc/sysctl.d/99-zz-mesos-overlay.conf")).unwrap();
    // IPv6 is new, and adds two lines.
    assert_eq!(
        host.descriptions(settings.apply(&desired(true))).last().map(String::as_str),
        Some("write /etc/sysctl.d/99-zz-mesos-overlay.conf")
    );
    host.write("proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
    assert_eq!(
        host.descriptions(settings.preview_restore())[4..],
        ["set net/ipv4/ip_forward to 0", "set net/ipv6/conf/all/forwarding to 0"]
    );
}

#[test]
fn host_without_managers_or_overlays_gets_no_files() {
    let host = TestHost::new(&[]);
    let before = host.dump();
    assert_eq!(host.settings().apply(&Desired::default()), Ok(Vec::new()));
    assert_eq!(host.dump(), before);
    let done = host.settings().apply(&desired(false)).unwrap();
    assert_eq!(done, ["set net/ipv4/ip_forward to 1"]);
}

#[test]
fn other_namespace_gets_no_files() {
    let host = TestHost::new(&ALL);
    host.set_namespace("thread-self", "namespaces/other");
    let done = host.settings().apply(&desired(false)).unwrap();
    assert_eq!(done, ["set net/ipv4/ip_forward to 1"]);
}

#[test]
fn unreadable_saved_values_are_not_overwritten() {
    let host = TestHost::new(&[]);
    host.write("state/host-settings.json", "{");
    let error = host.settings().apply(&desired(false)).unwrap_err();
    assert!(matches!(error, HostError::File { action: "read", .. }), "{error}");
    let value = fs::read_to_string(host.path("proc/sys/net/ipv4/ip_forward")).unwrap();
    assert_eq!(value, "0\n");
}

#[test]
fn lock_is_held_by_one_process() {
    let host = TestHost::new(&[]);
    let state = host.path("state");
    let lock = HostLock::acquire(&state).unwrap();
    let refused = HostLock::acquire(&state).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "{} is held by process {}: one agent at a time programs a host: stop that process, or \
             give this agent another state_dir if this agent has its own network namespace",
            state.join("agent.lock").display(),
            std::process::id()
        )
    );
    assert!(!HostLock::is_stale(&state));
    drop(lock);
    assert!(HostLock::is_stale(&state) && !HostLock::is_stale(&host.path("other")));
    HostLock::acquire(&state).unwrap();
}

#[test]
fn lock_and_saved_settings_are_for_owner_only() {
    let host = TestHost::new(&[]);
    let state = host.path("new/state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(HostLock::acquire(&state).unwrap());
    assert_eq!(mode(&state), 0o700);
    let lock = HostLock::path_in(&state);
    // An earlier version made the lock file for all users.
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
    let held = fs::File::open(&lock).unwrap();
    held.try_lock_shared().unwrap();
    assert!(matches!(HostLock::acquire(&state), Err(HostError::Held { .. })));
    assert_eq!(mode(&lock), 0o600);
    let saved = state.join("saved");
    write_private(&saved, b"text").unwrap();
    assert_eq!(mode(&saved), 0o600);
}

#[test]
fn saved_settings_of_another_user_change_nothing() {
    let host = TestHost::new(&[]);
    host.write("proc/sys/kernel/kptr_restrict", "1");
    host.write("proc/sys/net/ipv4/ip_forward", "1");
    let before = host.dump();
    let saved = |name: &str| format!(r#"{{"{name}":{{"before":0,"after":1}}}}"#);
    let restore = |text: &str, mode: u32| {
        host.write("state/host-settings.json", text);
        let file = host.path("state/host-settings.json");
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        let restored = host.settings().restore();
        assert_eq!((host.dump(), restored.done), (before.clone(), Vec::new()), "{text}");
        restored.failed[0].1.to_string()
    };
    let error = restore(&saved("ipv4/ip_forward"), 0o666);
    assert!(error.contains("another user can write it: remove it"), "{error}");
    // A setting outside of `/proc/sys/net`.
    let absolute = host.path("proc/sys/kernel/kptr_restrict").display().to_string();
    for name in ["../kernel/kptr_restrict", "ipv4/../../kernel/kptr_restrict", &absolute] {
        let error = restore(&saved(name), 0o600);
        assert!(error.contains(" is no setting: remove it"), "{error}");
    }
    let link = host.path("state/host-settings.json");
    fs::remove_file(&link).unwrap();
    host.write("other", &saved("ipv4/ip_forward"));
    std::os::unix::fs::symlink(host.path("other"), &link).unwrap();
    assert_eq!(host.settings().restore().done, [""; 0]);
    assert_eq!(host.dump(), before);
}

#[test]
fn removed_or_replaced_lock_is_detected() {
    let host = TestHost::new(&[]);
    let state = host.path("state");
    let lock = HostLock::acquire(&state).unwrap();
    assert!(lock.is_at_its_path());
    fs::remove_file(HostLock::path_in(&state)).unwrap();
    assert!(!lock.is_at_its_path());
    let _other = HostLock::acquire(&state).unwrap();
    assert!(!lock.is_at_its_path());
    fs::remove_file(HostLock::path_in(&state)).unwrap();
    std::os::unix::fs::symlink(host.path("target"), HostLock::path_in(&state)).unwrap();
    assert!(HostLock::acquire(&state).is_err());
    assert!(!host.path("target").exists(), "the link was followed");
}

#[test]
fn cleanup_creates_no_lock_and_removes_it() {
    let host = TestHost::new(&[]);
    let state = host.path("state");
    assert!(HostLock::acquire_existing(&state).unwrap().is_none());
    assert!(!state.exists());
    let agent = HostLock::acquire(&state).unwrap();
    assert!(matches!(HostLock::acquire_existing(&state), Err(HostError::Held { .. })));
    drop(agent);
    let lock = HostLock::acquire_existing(&state).unwrap().unwrap();
    lock.remove().unwrap();
    assert!(!state.join("agent.lock").exists());
    HostLock::acquire(&state).unwrap();
}

#[test]
fn settings_reset_with_forwarding_are_saved() {
    let host = TestHost::new(&[]);
    for (name, value) in [
        ("proc/sys/net/ipv4/conf/all/accept_redirects", "0"),
        ("proc/sys/net/ipv4/conf/eth0/forwarding", "0"),
        ("proc/sys/net/ipv4/conf/eth1/forwarding", "1"),
    ] {
        host.write(name, value);
    }
    host.settings().apply(&desired(false)).unwrap();
    let list = host.descriptions(host.settings().preview_restore());
    assert_eq!(
        list,
        [
            "set net/ipv4/ip_forward to 0",
            "set net/ipv4/conf/all/accept_redirects to 0",
            "set net/ipv4/conf/eth1/forwarding to 1",
        ]
    );
}

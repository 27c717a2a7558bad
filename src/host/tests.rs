//! The host's settings on files that stand for `/etc` and `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::addr::{DeviceName, Vni};
use crate::tunnel::{Local, PORT_DEFAULT};

struct Place {
    folder: tempfile::TempDir,
}

fn desired(has_ipv6: bool) -> Desired {
    let local = Local {
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
    Desired { locals: vec![local], ..Desired::default() }
}

impl Place {
    /// A host that listens to routers on eth0 and forwards nothing.
    fn new(folders: &[&str]) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for (name, value) in [
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/sys/net/ipv6/conf/all/forwarding", "0\n"),
            ("proc/sys/net/ipv6/conf/eth0/accept_ra", "1\n"),
            ("proc/sys/net/ipv6/conf/eth1/accept_ra", "0\n"),
        ] {
            place.write(name, value);
        }
        for folder in folders {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        place.namespace("1", "net:[1]");
        place.namespace("thread-self", "net:[1]");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The network namespace of a process.
    fn namespace(&self, process: &str, name: &str) {
        let link = self.path(&format!("proc/{process}/ns/net"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(name, link).unwrap();
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn settings(&self) -> HostSettings {
        let roots = Roots { etc: self.path("etc"), proc: self.path("proc") };
        HostSettings::with_roots(&self.path("state"), roots)
    }

    /// All files below `/etc` and `/proc`.
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

    /// What was done, without the place where it happened.
    fn words(&self, done: Result<Vec<String>, HostError>) -> Vec<String> {
        let root = self.folder.path().display().to_string();
        done.unwrap().iter().map(|text| text.replace(&root, "")).collect()
    }
}

const ALL: [&str; 3] = ["etc/NetworkManager/conf.d", "etc/systemd/network", "etc/sysctl.d"];

#[test]
fn what_is_done_is_done_once_and_given_back() {
    let place = Place::new(&ALL);
    let before = place.dump();
    let settings = place.settings();
    assert_eq!(
        place.words(settings.apply(&desired(true))),
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
        fs::read_to_string(place.path("etc/sysctl.d/99-zz-mesos-overlay.conf")).unwrap(),
        "# Written by the agent of mesos-overlay. 'mesos-overlay clean' removes it.\n\
         -net/ipv4/ip_forward = 1\n\
         -net/ipv4/conf/vtep1024/rp_filter = 2\n\
         -net/ipv6/conf/eth0/accept_ra = 2\n\
         -net/ipv6/conf/all/forwarding = 1\n"
    );
    // Also by one that has been started anew.
    assert_eq!(place.settings().apply(&desired(true)), Ok(Vec::new()));
    let list = place.words(place.settings().to_restore());
    let restored = place.settings().restore();
    assert_eq!(restored.failed, []);
    assert_eq!(place.words(Ok(restored.done)), list);
    assert_eq!(list.len(), 7, "{list:?}");
    assert_eq!(place.dump(), before);
    assert!(!place.path("etc/systemd/networkd.conf.d").exists(), "it was made for our file");
    assert!(place.path("etc/systemd/network").exists(), "it was there before");
    assert_eq!(place.settings().restore(), Restored::default());
}

#[test]
fn what_cannot_be_given_back_is_named_and_the_rest_is_done() {
    let place = Place::new(&ALL);
    let settings = place.settings();
    settings.apply(&desired(false)).unwrap();
    // One that nobody, not even root, can write.
    let fixed = "/proc/sys/kernel/cap_last_cap";
    let value = fs::read_to_string(fixed).unwrap();
    std::os::unix::fs::symlink(fixed, place.path("proc/sys/net/ipv4/fixed")).unwrap();
    let memory = format!(
        r#"{{"ipv4/fixed":{{"before":7,"after":{}}},"ipv4/ip_forward":{{"before":0,"after":1}}}}"#,
        value.trim()
    );
    place.write("state/host-settings.json", &memory);
    let restored = settings.restore();
    let done = place.words(Ok(restored.done));
    assert_eq!(done.last().map(String::as_str), Some("set net/ipv4/ip_forward to 0"));
    let (what, error) = &restored.failed[0];
    assert_eq!(what, "set net/ipv4/fixed to 7");
    assert_eq!(
        error.to_string(),
        "set net/ipv4/fixed to 7: Permission denied (os error 13): set it with 'sysctl -w \
         net.ipv4.fixed=7', or let the agent write to /proc/sys"
    );
    // So that it can be tried again.
    assert_eq!(fs::read_to_string(place.path("state/host-settings.json")).unwrap(), memory);
}

#[test]
fn what_changed_is_mended_and_what_others_changed_since_is_theirs() {
    let place = Place::new(&ALL);
    let settings = place.settings();
    settings.apply(&desired(false)).unwrap();
    place.write("proc/sys/net/ipv4/ip_forward", "0");
    place.write("etc/sysctl.d/99-zz-mesos-overlay.conf", "");
    // An empty file has no mark: somebody wanted it so.
    assert!(matches!(settings.apply(&desired(false)), Err(HostError::Foreign { .. })));
    assert_eq!(
        settings
            .apply(&desired(false))
            .unwrap_err()
            .to_string()
            .replace(&place.folder.path().display().to_string(), ""),
        "write /etc/sysctl.d/99-zz-mesos-overlay.conf: there is a file that is not ours, so it is \
         left alone: rename it, or set host_settings to false"
    );
    fs::remove_file(place.path("etc/sysctl.d/99-zz-mesos-overlay.conf")).unwrap();
    // IPv6 came, and with it two lines.
    assert_eq!(
        place.words(settings.apply(&desired(true))).last().map(String::as_str),
        Some("write /etc/sysctl.d/99-zz-mesos-overlay.conf")
    );
    place.write("proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
    assert_eq!(
        place.words(settings.to_restore())[4..],
        ["set net/ipv4/ip_forward to 0", "set net/ipv6/conf/all/forwarding to 0"]
    );
}

#[test]
fn a_host_without_managers_or_overlays_gets_no_files() {
    let place = Place::new(&[]);
    let before = place.dump();
    assert_eq!(place.settings().apply(&Desired::default()), Ok(Vec::new()));
    assert_eq!(place.dump(), before);
    let done = place.settings().apply(&desired(false)).unwrap();
    assert_eq!(done, ["set net/ipv4/ip_forward to 1"]);
}

#[test]
fn files_are_for_the_namespace_of_the_first_process() {
    let place = Place::new(&ALL);
    place.namespace("thread-self", "net:[2]");
    let done = place.settings().apply(&desired(false)).unwrap();
    assert_eq!(done, ["set net/ipv4/ip_forward to 1"]);
}

#[test]
fn a_memory_that_cannot_be_read_is_not_written_over() {
    let place = Place::new(&[]);
    place.write("state/host-settings.json", "{");
    let error = place.settings().apply(&desired(false)).unwrap_err();
    assert!(matches!(error, HostError::File { action: "read", .. }), "{error}");
    let value = fs::read_to_string(place.path("proc/sys/net/ipv4/ip_forward")).unwrap();
    assert_eq!(value, "0\n");
}

#[test]
fn one_at_a_time_has_the_lock() {
    let place = Place::new(&[]);
    let state = place.path("state");
    let lock = HostLock::acquire(&state).unwrap();
    let refused = HostLock::acquire(&state).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "{} is held by process {}: one agent at a time programs a host: stop it, or give this \
             one another state_dir if it is in a network namespace of its own",
            state.join("agent.lock").display(),
            std::process::id()
        )
    );
    assert!(!HostLock::was_left(&state));
    drop(lock);
    assert!(HostLock::was_left(&state) && !HostLock::was_left(&place.path("other")));
    HostLock::acquire(&state).unwrap();
}

#[test]
fn who_cleans_up_makes_no_lock_and_leaves_none() {
    let place = Place::new(&[]);
    let state = place.path("state");
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
fn what_the_kernel_resets_with_forwarding_is_kept_too() {
    let place = Place::new(&[]);
    for (name, value) in [
        ("proc/sys/net/ipv4/conf/all/accept_redirects", "0"),
        ("proc/sys/net/ipv4/conf/eth0/forwarding", "0"),
        ("proc/sys/net/ipv4/conf/eth1/forwarding", "1"),
    ] {
        place.write(name, value);
    }
    place.settings().apply(&desired(false)).unwrap();
    let list = place.words(place.settings().to_restore());
    assert_eq!(
        list,
        [
            "set net/ipv4/ip_forward to 0",
            "set net/ipv4/conf/all/accept_redirects to 0",
            "set net/ipv4/conf/eth1/forwarding to 1",
        ]
    );
}

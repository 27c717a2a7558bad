//! The packages are installed, upgraded, removed and purged.

use crate::system::{DROP_IN, FOREIGN, SERVICES, System};

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn deb_is_installed_upgraded_removed_and_purged() {
    let system = System::new();
    let text = system.run("dpkg --install /1.deb");
    assert!(text.contains("mesos-overlay: no service is started: see "), "{text}");
    assert_eq!(system.systemctl_calls(), ["daemon-reload"]);
    system.check_installed();
    let user = system.run("getent passwd mesos-overlay");
    system.use_it();

    system.run("dpkg --install /2.deb");
    let restart = format!("--no-block try-restart {SERVICES}");
    assert_eq!(system.systemctl_calls(), ["daemon-reload", &restart]);
    let version = system.run("dpkg-query --show --showformat '${Version}' mesos-overlay");
    assert_eq!(version, format!("{}-2", env!("CARGO_PKG_VERSION")));
    system.check_installed();
    system.check_use_is_kept();
    assert!(system.read("etc/mesos-overlay/agent.env").contains("10.0.0.7"));
    assert_eq!(system.run("getent passwd mesos-overlay"), user);

    let text = system.run("dpkg --remove mesos-overlay");
    assert!(text.contains("the state in /var/lib/mesos-overlay stays"), "{text}");
    assert!(
        text.contains("'mesos-overlay clean --config /etc/mesos-overlay/agent.json'"),
        "{text}"
    );
    let (stop, disable) = (format!("stop {SERVICES}"), format!("--quiet disable {SERVICES}"));
    assert_eq!(system.systemctl_calls(), [&stop, &disable, "daemon-reload"]);
    assert!(!system.exists("usr/bin/mesos-overlay"));
    assert!(!system.exists("usr/lib/systemd/system/mesos-overlay-agent.service"));
    system.check_use_is_kept();

    let text = system.run("dpkg --purge mesos-overlay");
    assert!(text.contains("removed the state in /var/lib/mesos-overlay\n"), "{text}");
    assert!(text.contains("/etc/mesos-overlay has files of yours, which stay"), "{text}");
    assert!(text.contains("the devices and firewall rules of the agent stay"), "{text}");
    for name in ["var/lib/mesos-overlay", "etc/mesos-overlay/agent.env", DROP_IN] {
        assert!(!system.exists(name), "{name}");
    }
    for name in FOREIGN {
        assert_eq!(system.read(name), "foreign");
    }
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn upgrade_with_changed_defaults_keeps_files_of_the_operator() {
    let system = System::new();
    system.run("dpkg --install /1.deb");
    system.write("etc/mesos-overlay/agent.env", "MESOS_OVERLAY_LISTEN=10.0.0.7:5061\n");
    system.run(
        "dpkg-deb --raw-extract /2.deb /new && echo '# New.' | tee -a /new/etc/mesos-overlay/*.env \
         && dpkg-deb --build /new /changed.deb && dpkg --force-confold --install /changed.deb",
    );
    let read = |name: &str| system.read(&format!("etc/mesos-overlay/{name}"));
    assert_eq!(read("agent.env"), "MESOS_OVERLAY_LISTEN=10.0.0.7:5061\n");
    assert!(read("agent.env.dpkg-dist").ends_with("# New.\n"));
    assert!(read("master.env").ends_with("# New.\n"));
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn removal_without_running_systemd_disables_the_units() {
    let system = System::offline();
    system.run("dpkg --install /1.deb && systemctl enable mesos-overlay-agent");
    let link = "etc/systemd/system/multi-user.target.wants/mesos-overlay-agent.service";
    assert!(system.path(link).is_symlink());
    system.run("dpkg --remove mesos-overlay");
    assert!(!system.path(link).is_symlink());
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn deb_and_rpm_have_the_same_files() {
    let system = System::new();
    // The places of completions of zsh and of CNI plugins differ, and only Debian has a copyright
    // file.
    let edit = "sed 's,/zsh/[a-z-]*/,/zsh/,; s,/usr/libexec/cni/,/usr/lib/cni/,' | \
                grep -v -e /copyright -e '/$' | sort";
    let deb = system.run(&format!(
        "dpkg-deb --fsys-tarfile /1.deb | tar --list --verbose | awk '{{ print $1, $6 }}' | \
         sed 's, \\./, /,' | {edit}"
    ));
    let query = "rpm --query --package --queryformat '[%{FILEMODES:perms} %{FILENAMES}\\n]' /1.rpm";
    assert_eq!(deb, system.run(&format!("{query} | {edit}")));
    assert!(deb.lines().count() > 40, "{deb}");
    let owners =
        system.run("rpm --query --package --queryformat '[%{FILEUSERNAME}\\n]' /1.rpm | sort -u");
    assert_eq!(owners, "root\n");
    let config = system.run("rpm --query --package --configfiles /1.rpm");
    let deb_config = system.run("dpkg-deb --info /1.deb conffiles | sort");
    assert_eq!(config, deb_config);
    assert_eq!(config.lines().count(), 4, "{config}");
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn purged_deb_without_use_leaves_nothing_but_the_user() {
    let system = System::new();
    let files = "find / -xdev -path /proc -prune -o -name '*mesos*overlay*' -print | sort";
    assert_eq!(system.run(files), "");
    system.run("dpkg --install /1.deb");
    assert!(system.run(files).lines().count() > 10);
    system.run("dpkg --purge mesos-overlay");
    assert_eq!(system.run(files), "");
    system.run("getent passwd mesos-overlay");
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn rpm_is_installed_upgraded_and_removed() {
    let system = System::new();
    // The database of rpm has no packages of Debian, which hold what the program needs.
    system.run("rpm --install --nodeps /1.rpm");
    assert_eq!(system.systemctl_calls(), ["daemon-reload"]);
    system.check_installed();
    system.use_it();

    system.run("rpm --upgrade --nodeps /2.rpm");
    let restart = format!("--no-block try-restart {SERVICES}");
    // The script of the former package runs after that of the new one.
    assert_eq!(system.systemctl_calls(), ["daemon-reload", &restart, "daemon-reload"]);
    assert_eq!(system.run("rpm --query --queryformat '%{RELEASE}' mesos-overlay"), "2");
    system.check_installed();
    system.check_use_is_kept();
    assert!(system.read("etc/mesos-overlay/agent.env").contains("10.0.0.7"));

    let text = system.run("rpm --erase mesos-overlay");
    assert!(text.contains("the state in /var/lib/mesos-overlay stays"), "{text}");
    assert!(
        text.contains("'mesos-overlay clean --config /etc/mesos-overlay/agent.json'"),
        "{text}"
    );
    let (stop, disable) = (format!("stop {SERVICES}"), format!("--quiet disable {SERVICES}"));
    assert_eq!(system.systemctl_calls(), [&stop, &disable, "daemon-reload"]);
    assert!(!system.exists("usr/bin/mesos-overlay"));
    system.check_use_is_kept();
}

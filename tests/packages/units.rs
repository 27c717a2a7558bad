//! The units are valid, and permit no more than the services need.

use crate::system::{STATE, System, transcript};

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn units_are_valid_and_confined() {
    let system = System::new();
    system.run("dpkg --install /1.deb");
    let units = "/usr/lib/systemd/system";
    // The exposure is a number from 0, the best, to 10, here times 10.
    for (service, threshold) in [("master", 14), ("agent", 33)] {
        let unit = format!("{units}/mesos-overlay-{service}.service");
        let verify = format!("systemd-analyze verify --man=no {unit} 2>&1");
        assert_eq!(system.run(&verify), "");
        let security = |threshold: i32| {
            let command =
                format!("systemd-analyze security --offline=true --threshold={threshold}");
            system.command(&format!("{command} {unit}")).output().unwrap()
        };
        let output = security(threshold);
        assert!(output.status.success(), "{}", transcript(&output));
        // A unit that is much better deserves a lower threshold.
        assert!(!security(threshold - 5).status.success(), "{service}: lower the threshold");
    }
    let unit = "/usr/lib/systemd/system/mesos-overlay-agent.service";
    let text = system.run(&format!(
        "sed -i s/WatchdogSec=/WatchdogSek=/ {unit}; systemd-analyze verify --man=no {unit} 2>&1"
    ));
    assert!(text.contains("Unknown key 'WatchdogSek'"), "{text}");
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn master_runs_as_its_user_without_capabilities() {
    let system = System::new();
    system.run("dpkg --install /1.deb");
    system
        .run("install --directory --mode 700 --owner mesos-overlay /var/lib/mesos-overlay/master");
    // The same user, capabilities and variables as in the unit.
    let unit = system.read("usr/lib/systemd/system/mesos-overlay-master.service");
    let variables = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let variables = variables.collect::<Vec<_>>().join(" ");
    assert!(unit.contains("\nUser=mesos-overlay\n") && unit.contains("\nCapabilityBoundingSet=\n"));
    system.run("cp /etc/mesos-overlay/network.json.example /etc/mesos-overlay/network.json");
    let log = system.run(&format!(
        "{variables} MESOS_OVERLAY_LISTEN=127.0.0.1:0 timeout --preserve-status 3 setpriv \
         --reuid mesos-overlay --regid mesos-overlay --clear-groups --bounding-set=-all \
         --inh-caps=-all --no-new-privs mesos-overlay master"
    ));
    assert!(log.contains("overlay master at 127.0.0.1:"), "{log}");
    assert!(log.contains("stopping: SIGTERM"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(system.exists(STATE));
}

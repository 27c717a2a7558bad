# Creates the user of the master and the directory of the state. Starts nothing. $1 is 1 at the first
# installation, and 2 after an upgrade.
if ! getent passwd mesos-overlay >/dev/null; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers mesos-overlay.conf
    else
        useradd --system --user-group --no-create-home --home-dir /var/lib/mesos-overlay \
            --shell /usr/sbin/nologin mesos-overlay
    fi
fi
if command -v systemd-tmpfiles >/dev/null; then
    systemd-tmpfiles --create mesos-overlay.conf
else
    mkdir -p /var/lib/mesos-overlay
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ "$1" -gt 1 ]; then
        # A master starts only when ZooKeeper answers: do not wait for it.
        systemctl --no-block try-restart mesos-overlay-master.service mesos-overlay-agent.service
    fi
fi
exit 0

# Stops and disables the services at the removal ($1 is 0), not at an upgrade.
services="mesos-overlay-master.service mesos-overlay-agent.service"
if [ "$1" -eq 0 ] && command -v systemctl >/dev/null; then
    [ ! -d /run/systemd/system ] || systemctl stop $services
    # Without a running systemd too, as in an image: otherwise the links to the units stay.
    systemctl --quiet disable $services
fi
exit 0

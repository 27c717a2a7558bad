# rpm has no purge: the state and the files of the operator stay.
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ "$1" -eq 0 ]; then
    echo "mesos-overlay: the state in /var/lib/mesos-overlay stays"
    if [ -e /var/lib/mesos-overlay/agent.lock ]; then
        echo "mesos-overlay: containers keep their network. To remove it, install the package again, and run" \
            "'mesos-overlay clean --config /etc/mesos-overlay/agent.json' before you remove the package"
    fi
fi
exit 0

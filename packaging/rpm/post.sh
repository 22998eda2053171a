# After the files of the package are there. $1: 1 for the first installation, 2 for an upgrade.
#
# A restart of rowd keeps devices mounted and clients connected: the next process goes on with their connections.
systemd-sysusers rowd.conf
if [ "$1" -eq 1 ]; then
	systemctl --no-reload preset rowd.service
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	udevadm control --reload || echo "rowd: udev was not told; the names of devices count from the next boot on" >&2
	if [ "$1" -gt 1 ]; then
		systemctl try-restart rowd.service
	fi
fi

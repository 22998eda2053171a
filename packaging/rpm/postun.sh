# After the files of the package are gone. The pool is data of users and stays. $1: 0 for a removal.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" -eq 0 ]; then
	# The list of the package has files only.
	for dir in /usr/lib/rowd /usr/lib/systemd/system/modprobe@nbd.service.d /usr/share/doc/rowd/prometheus \
		/usr/share/doc/rowd /usr/share/licenses/rowd /etc/rowd /var/lib/rowd; do
		[ ! -d "$dir" ] || rmdir --ignore-fail-on-non-empty "$dir"
	done
	[ ! -d /var/lib/rowd ] || echo "rowd: the disks and snapshots in /var/lib/rowd were not removed" >&2
fi

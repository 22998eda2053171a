# After the files of the package are gone. The pool is data of users and stays. $1: 0 for a removal.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" -eq 0 ] && [ -d /var/lib/rowd ]; then
	rmdir --ignore-fail-on-non-empty /var/lib/rowd
	[ ! -d /var/lib/rowd ] || echo "rowd: the disks and snapshots in /var/lib/rowd were not removed" >&2
fi

# Before the files of the package go. $1: 0 for a removal, 1 for an upgrade, whose %post has restarted the service.
[ "$1" -eq 0 ] || exit 0

sh /usr/lib/rowd/in-use || exit 1
if [ -d /run/systemd/system ]; then
	systemctl disable --now rowd.service
else
	systemctl disable rowd.service
fi

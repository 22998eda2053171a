# Before the files of the package go. $1: 0 for a removal, 1 for an upgrade, whose %post has restarted the service.
[ "$1" -eq 0 ] || exit 0

# Kernel devices whose server is rowd; their backend is `rowd:ID:NAME`. Asked of the kernel, since a daemon that is
# stopped tells nothing and its devices wait for it all the same.
attached=
for file in /sys/block/nbd*/backend; do
	[ -e "$file" ] || continue
	backend=$(cat "$file")
	case "$backend" in
	rowd:*)
		device=${file#/sys/block/}
		attached="$attached /dev/${device%/backend} (${backend#rowd:*:})"
		;;
	esac
done
if [ -n "$attached" ]; then
	echo "rowd: not removed: these disks are attached and would be left without their server:$attached" >&2
	echo "rowd: unmount and detach them first: umount /dev/nbdN; rowctl disk detach NAME" >&2
	exit 1
fi
if [ -d /run/systemd/system ]; then
	systemctl disable --now rowd.service
else
	systemctl disable rowd.service
fi

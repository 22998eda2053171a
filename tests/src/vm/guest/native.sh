#!/bin/bash
# Starts the systemd of an image in namespaces of its own; it runs a script, keeps what that says, and ends.
#
#   native.sh IMAGE HOME: HOME has payload.tar and script; said and code appear there.
#
# Everything is mounted in this mount namespace only, and goes with its last process.
set -euo pipefail
image=$1 home=$2
mount --make-rprivate /
cd "$home"
mkdir space
mount -t tmpfs space space
mkdir space/lower space/upper space/work space/root
mount -o loop,ro,noload "$image" space/lower
mount -t overlay overlay -o lowerdir=space/lower,upperdir=space/upper,workdir=space/work space/root
root=$home/space/root
tar -xf payload.tar --no-overwrite-dir -C "$root"
mkdir -p "$root/mnt/home" "$root/var/lib/rowd" pool
mount --bind "$home" "$root/mnt/home"
# A pool belongs on a real file system.
mount --bind pool "$root/var/lib/rowd"
: > "$root/etc/fstab"
rm -f "$root/etc/systemd/system/multi-user.target.wants/vm-agent.service"
cat > "$root/etc/systemd/system/script.service" <<'UNIT'
[Unit]
After=basic.target
[Service]
ExecStart=/bin/bash -c 'bash -euo pipefail /mnt/home/script > /mnt/home/said 2>&1; echo $? > /mnt/home/code; systemctl poweroff'
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemd-sysusers
chroot "$root" systemctl --quiet enable script.service
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for dir in run tmp dev; do mount -t tmpfs tmpfs "$dir"; done
for node in null zero full random urandom tty; do cp -a "/dev/$node" dev/; done
mkdir dev/pts dev/shm old
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
pivot_root . old
umount -l /old
exec env -i container=other PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --log-target=console --show-status=0 < /dev/null
